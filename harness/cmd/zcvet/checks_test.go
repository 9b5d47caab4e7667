// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/zcvet/zcvet/harness/check"
)

// textual leaves out the checks that compile.
const textual = "!build*,!boot,!warnings,!sparse"

// checks runs zcvet check and returns the names of the checks that failed.
func checks(t *testing.T, series, only string) (outcome, []string) {
	t.Helper()
	got := zcvet(t, "check", "--kernel", "6.12", "--series", series, "--only", only)
	file, err := os.Open(filepath.Join(got.dir, check.File))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	r, err := check.Read(file)
	if err != nil {
		t.Fatal(err)
	}
	var failed []string
	for _, c := range check.Catalogue {
		if r.Failed(c.Name) != nil {
			failed = append(failed, c.Name)
		}
	}
	return got, failed
}

// TestCheckFindsWhatIsFlawed has a series for each check that this makes; those
// that need a compiler are left out for their time.
func TestCheckFindsWhatIsFlawed(t *testing.T) {
	for _, name := range []string{
		check.Cover, check.Tree, check.Uapi, check.SignedOff, check.Fixes, check.Checkpatch, check.Inline, check.Kdoc, check.Selftests,
	} {
		t.Run(name, func(t *testing.T) {
			got, failed := checks(t, "patches/testdata/flawed/"+name, textual)
			got.requireCode(t, 1)
			if d := cmp.Diff([]string{name}, failed); d != "" {
				t.Errorf("failed checks (-want +got):\n%s", d)
			}
		})
	}
	t.Run(check.Apply, func(t *testing.T) {
		got, failed := checks(t, "patches/testdata/flawed/apply", textual)
		got.requireCode(t, 3)
		if d := cmp.Diff([]string{check.Apply}, failed); d != "" {
			t.Errorf("failed checks (-want +got):\n%s", d)
		}
	})
}

func TestCheckPassesTheReferenceSeries(t *testing.T) {
	got, failed := checks(t, "reference", textual)
	got.requireCode(t, 0)
	if len(failed) > 0 {
		t.Errorf("failed: %s", strings.Join(failed, ", "))
	}
	again, _ := checks(t, "reference", textual)
	again.requireSaid(t, "cached")
}
