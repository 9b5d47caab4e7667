// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/zcvet/zcvet/harness/checkout"
	"github.com/zcvet/zcvet/harness/compare"
	"github.com/zcvet/zcvet/patches/mutants"
)

// revisions makes a function that writes a revision of the reference series of which
// it is known what is wrong: one fault of the mutants, or none.
func revisions(t *testing.T) func(name, mutant string) string {
	t.Helper()
	root, err := checkout.Find()
	if err != nil {
		t.Fatal(err)
	}
	set, err := mutants.Load("6.12")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	return func(name, mutant string) string {
		path := filepath.Join(dir, name)
		if err := set.WriteSeries(path, root, mutant); err != nil {
			t.Fatal(err)
		}
		return path
	}
}

// comparison reads what a comparison found.
func (o outcome) comparison(t *testing.T) *compare.Comparison {
	t.Helper()
	file, err := os.Open(filepath.Join(o.dir, compare.File))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	c, err := compare.Read(file)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestCompareRevisions has revisions in which a fault is introduced, mended while
// another is introduced, and mended again.
func TestCompareRevisions(t *testing.T) {
	if testing.Short() {
		t.Skip("needs kernels and virtual machines, which -short leaves out")
	}
	revision := revisions(t)
	sound := revision("sound", mutants.None)
	got := zcvet(t, "compare", "--kernel", "6.12", "--suite", "option/values,scm/full-capacity",
		sound, revision("option", "option_takes_any_value"), revision("capacity", "capacity_minus_one"), sound)
	got.requireCode(t, 1)
	c := got.comparison(t)
	steps := []struct {
		kinds  map[string]compare.Kind // by case
		counts compare.Counts
		worse  bool
	}{
		{map[string]compare.Kind{"option/values": compare.Broken}, compare.Counts{Broken: 4, Same: 5}, true},
		{map[string]compare.Kind{"option/values": compare.Fixed, "scm/full-capacity": compare.Broken}, compare.Counts{Fixed: 4, Broken: 4, Same: 1}, true},
		{map[string]compare.Kind{"scm/full-capacity": compare.Fixed}, compare.Counts{Fixed: 4, Same: 5}, false},
	}
	for i, want := range steps {
		step := c.Steps[i]
		kinds := map[string]compare.Kind{}
		for _, change := range step.Changes {
			if known, ok := kinds[change.Name]; ok && known != change.Kind {
				t.Errorf("step %d: %s is both %s and %s", i+1, change.Name, known, change.Kind)
			}
			kinds[change.Name] = change.Kind
			if change.Before.Again == nil || change.After.Again == nil {
				t.Errorf("step %d: %s was not run again in both columns", i+1, change.ID)
			}
		}
		if d := cmp.Diff(want.kinds, kinds); d != "" {
			t.Errorf("step %d (-want +got):\n%s", i+1, d)
		}
		if d := cmp.Diff(want.counts, step.Counts); d != "" {
			t.Errorf("step %d, counts (-want +got):\n%s", i+1, d)
		}
		if step.Worse != want.worse {
			t.Errorf("step %d: worse %v: %q", i+1, step.Worse, step.Reasons)
		}
	}
	run, err := readRun(filepath.Join(got.dir, c.Columns[1].Directory))
	if err != nil || !strings.HasPrefix(run.Command, "zcvet run --kernel 6.12 --series ") {
		t.Errorf("the run of a column is repeated by %q, %v", run.Command, err)
	}
	if c.Columns[3].SameAs != c.Columns[0].Name {
		t.Errorf("the last column ran again: %+v", c.Columns[3])
	}
	// One file tells the revisions apart: with it comes no more than the objects
	// that hold the tables of symbols. The build before was that of the column
	// before, unless that was made another day.
	if c.Columns[2].Kernel.Objects > 8 && !c.Columns[1].Kernel.Cached {
		t.Errorf("%d objects were compiled for %s", c.Columns[2].Kernel.Objects, c.Columns[2].Name)
	}
	got.requireSaid(t, "the same binary as", "sound → option  4 broken: worse", "option → capacity  4 broken, 4 fixed: worse",
		"capacity → sound  4 fixed: nothing worse", "WORSE")

	// The stored runs say the same, each step with the exit code of its own.
	for i, want := range steps {
		before, after := filepath.Join(got.dir, c.Columns[i].Directory), filepath.Join(got.dir, c.Columns[i+1].Directory)
		stored := zcvet(t, "report", "--format", "json", before, after)
		code := 0
		if want.worse {
			code = 1
		}
		stored.requireCode(t, code)
		again, err := compare.Read(strings.NewReader(stored.stdout))
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want.counts, again.Steps[0].Counts); d != "" {
			t.Errorf("step %d, of the stored runs (-want +got):\n%s", i+1, d)
		}
	}
}
