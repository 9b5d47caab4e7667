// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/zcvet/zcvet/harness/check"
	"github.com/zcvet/zcvet/harness/checkout"
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

// flawed has a series for each check, in a directory of its name, on which that check
// fails and no other. What is left are the exit codes.
func flawed(t *testing.T, only string, names ...string) {
	t.Helper()
	codes := map[string]int{check.Apply: 3, check.Build: 4, check.Boot: 5}
	for _, name := range names {
		t.Run(name, func(t *testing.T) {
			got, failed := checks(t, "patches/testdata/flawed/"+name, only)
			if code, special := codes[name]; special {
				got.requireCode(t, code)
			} else {
				got.requireCode(t, 1)
			}
			if d := cmp.Diff([]string{name}, failed); d != "" {
				t.Errorf("failed checks (-want +got):\n%s", d)
			}
		})
	}
}

// TestCheckFindsWhatIsFlawed is about the checks that need no compiler.
func TestCheckFindsWhatIsFlawed(t *testing.T) {
	flawed(t, textual, check.Cover, check.Size, check.Tree, check.Uapi, check.Apply, check.SignedOff, check.Fixes, check.Checkpatch,
		check.Inline, check.Kdoc, check.Selftests)
}

// TestCheckFindsWhatCompilersFind makes all checks of each series: none of the
// others may fail.
func TestCheckFindsWhatCompilersFind(t *testing.T) {
	configurations(t)
	names := []string{check.Build, check.Boot, check.Warnings, check.Sparse, check.Build32, check.BuildAll}
	if _, err := exec.LookPath("clang"); err == nil {
		names = append(names, check.Clang)
	}
	flawed(t, "", names...)
}

// TestFlawedSeriesForEveryCheck sees to it that a check that is added has one.
func TestFlawedSeriesForEveryCheck(t *testing.T) {
	root, err := checkout.Find()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range check.Catalogue {
		if patches, err := filepath.Glob(filepath.Join(root, "patches/testdata/flawed", c.Name, "*.patch")); err != nil || len(patches) == 0 {
			t.Errorf("no series is flawed for check %s: %v", c.Name, err)
		}
	}
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
