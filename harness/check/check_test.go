// SPDX-License-Identifier: BSD-3-Clause

package check_test

import (
	"bytes"
	"strings"
	"testing"

	"github.com/zcvet/zcvet/harness/check"
)

func TestWriteAndRead(t *testing.T) {
	r := &check.Report{
		Whole: []check.Result{{Name: check.Cover, Status: check.Pass}},
		Patches: []check.Patch{
			{Number: 1, Results: []check.Result{{Name: check.Build, Status: check.Fail}, {Name: check.Clang, Status: check.Skip}}},
			{Number: 2},
		},
	}
	r.Count()
	var text bytes.Buffer
	if err := r.Write(&text); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(text.String(), ": null") {
		t.Errorf("a list is null:\n%s", text.String())
	}
	got, err := check.Read(&text)
	if err != nil {
		t.Fatal(err)
	}
	if want := (check.Totals{Pass: 1, Fail: 1, Skip: 1}); got.Totals != want || len(got.Patches) != 2 {
		t.Errorf("read back %+v", got)
	}
	if _, err := check.Read(strings.NewReader(`{"schema": 99}`)); err == nil {
		t.Error("another schema is taken")
	}
}

func TestCatalogueNamesEachCheckOnce(t *testing.T) {
	seen := map[string]bool{}
	for _, c := range check.Catalogue {
		if seen[c.Name] || c.Rule == "" {
			t.Errorf("check %q is there twice or has no rule", c.Name)
		}
		seen[c.Name] = true
		if found, ok := check.Find(c.Name); !ok || found != c {
			t.Errorf("check %q is not found by its name", c.Name)
		}
	}
	if _, ok := check.Find("no-such-check"); ok {
		t.Error("an unknown check is found")
	}
}
