// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/zcvet/zcvet/harness/fault"
	"github.com/zcvet/zcvet/harness/mutate"
)

// Of the two mutants one cannot be seen by the only case that may run: it has no
// range whose ends differ.
func TestMutate(t *testing.T) {
	got := zcvet(t, "mutate", "--kernel", "6.12", "--mutant", "capacity_minus_one,ends_swapped", "--suite", "scm/fifo")
	if got.code != fault.Test.ExitCode() {
		t.Errorf("exit %d with a survivor, want %d", got.code, fault.Test.ExitCode())
	}
	data, err := os.ReadFile(filepath.Join(got.dir, "mutants.json"))
	if err != nil {
		t.Fatal(err)
	}
	var report mutate.Report
	if err := json.Unmarshal(data, &report); err != nil {
		t.Fatal(err)
	}
	if report.Baseline == nil || report.Baseline.Cases == 0 || len(report.Baseline.Failures) > 0 {
		t.Errorf("the kernel without a fault: %+v", report.Baseline)
	}
	verdicts := map[string]mutate.Verdict{}
	for _, result := range report.Mutants {
		verdicts[result.Name] = result.Verdict
		if result.Ran == 0 {
			t.Errorf("%s: no case ran", result.Name)
		}
	}
	if verdicts["capacity_minus_one"] != mutate.Killed || verdicts["ends_swapped"] != mutate.Survived {
		t.Errorf("verdicts %v", verdicts)
	}
	for _, want := range []string{
		"capacity_minus_one  N01  killed    scm/fifo (N01)", "ends_swapped        N01  survived", "1 of 2 mutants survived",
	} {
		if !strings.Contains(got.stdout, want) {
			t.Errorf("the terminal does not say %q", want)
		}
	}
	for _, name := range []string{"none", "capacity_minus_one", "ends_swapped"} {
		if log, err := os.ReadFile(filepath.Join(got.dir, "console", name+".log")); err != nil || !strings.Contains(string(log), "scm/fifo") {
			t.Errorf("console of %s: %v\n%s", name, err, log)
		}
	}
	if text, err := os.ReadFile(filepath.Join(got.dir, "mutants.md")); err != nil || !strings.Contains(string(text), "| `ends_swapped` |") {
		t.Errorf("mutants.md: %v\n%s", err, text)
	}
}

// Exit code 0 means that every mutant was killed.
func TestMutateAllKilled(t *testing.T) {
	got := zcvet(t, "mutate", "--kernel", "6.12", "--mutant", "range_start_off_by_one", "--suite", "content/fields")
	if got.code != 0 {
		t.Errorf("exit %d, want 0: the only mutant shows in the only case", got.code)
	}
	if !strings.Contains(got.stdout, "range_start_off_by_one") || !strings.Contains(got.stdout, "killed") {
		t.Errorf("the terminal does not show the kill")
	}
}
