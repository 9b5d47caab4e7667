// SPDX-License-Identifier: BSD-3-Clause

package results_test

import (
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/zcvet/zcvet/harness/fault"
	"github.com/zcvet/zcvet/harness/results"
)

func TestGroupHoldsRunsAndLogs(t *testing.T) {
	t.Chdir(t.TempDir())
	group, err := results.CreateGroup("", started, "zcvet compare base lore:v7", "6.12", "compare")
	if err != nil {
		t.Fatal(err)
	}
	if want := "results/20261122-150405-6.12-compare"; group.Path != want {
		t.Errorf("the group is at %s, want %s", group.Path, want)
	}
	if target, err := os.Readlink("results/latest"); err != nil || target != filepath.Base(group.Path) {
		t.Errorf("latest points at %q, %v", target, err)
	}
	run, err := results.Create(group.Run("2-lore:v7"), started)
	if err != nil {
		t.Fatal(err)
	}
	defer run.Close()
	if got, want := group.Relative(run.Path), "2-lore-v7"; got != want {
		t.Errorf("the run is at %s, want %s", got, want)
	}
	if target, err := os.Readlink("results/latest"); err != nil || target != filepath.Base(group.Path) {
		t.Errorf("after a run of the group latest points at %q, %v", target, err)
	}
	log, err := group.Log("1 build/warnings", "net/core/sock.c:1: warning\n")
	if err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(filepath.Join(group.Path, filepath.FromSlash(log))); err != nil || string(text) != "net/core/sock.c:1: warning\n" {
		t.Errorf("log %s: %q, %v", log, text, err)
	}
	if err := group.Write("compare.json", func(w io.Writer) error { _, err := io.WriteString(w, "{}"); return err }); err != nil {
		t.Error(err)
	}

	// A second time at the same place, and never in place of something else.
	again, err := results.CreateGroup(group.Path, started, "zcvet compare")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(again.Path, "compare.json")); err == nil {
		t.Error("what the earlier command left is still there")
	}
	if err := os.WriteFile("thesis.tex", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := results.CreateGroup(".", started, "zcvet compare"); fault.Of(err) != fault.Usage {
		t.Errorf("a directory with other things in it: %v", err)
	}
}
