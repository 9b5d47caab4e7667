// SPDX-License-Identifier: BSD-3-Clause

package report_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/zcvet/zcvet/harness/compare"
	"github.com/zcvet/zcvet/harness/fault"
	"github.com/zcvet/zcvet/harness/report"
	"github.com/zcvet/zcvet/harness/report/reporttest"
)

func TestWriteComparison(t *testing.T) {
	for name, c := range map[string]*compare.Comparison{
		"comparison":          reporttest.Comparison(),
		"comparison-nothing":  reporttest.Unchanged(),
		"comparison-no-apply": reporttest.DoesNotApply(),
	} {
		var got bytes.Buffer
		if err := report.WriteComparison(&got, c); err != nil {
			t.Fatal(err)
		}
		golden(t, name+".md", got.String())
	}
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestComparisonWord(t *testing.T) {
	for class, want := range map[fault.Class]string{
		fault.None: "NOTHING WORSE", fault.Test: "WORSE", fault.Apply: "INCOMPLETE", fault.Infrastructure: "INCOMPLETE",
	} {
		c := &compare.Comparison{}
		c.Exit.Code = class.ExitCode()
		if got := report.ComparisonWord(c); got != want {
			t.Errorf("%v: %s, want %s", class, got, want)
		}
	}
}
