// SPDX-License-Identifier: BSD-3-Clause

package columns_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/zcvet/zcvet/harness/compare"
	"github.com/zcvet/zcvet/harness/compare/columns"
	"github.com/zcvet/zcvet/harness/cost"
	"github.com/zcvet/zcvet/harness/fault"
	"github.com/zcvet/zcvet/harness/kbuild"
	"github.com/zcvet/zcvet/harness/results"
	"github.com/zcvet/zcvet/harness/series"
	"github.com/zcvet/zcvet/harness/verdict"
	"github.com/zcvet/zcvet/harness/vet"
)

// kernel is what a fake series makes of the kernel.
type kernel struct {
	binary string // the contents of the kernel
	err    error  // of Prepare
	// cases gives the results, one map for each time the cases run; the last one
	// stays.
	cases []map[string]verdict.Status
	// instructions is what a send costs.
	instructions int64
}

// fake is a vetter without kernels and machines.
type fake struct {
	t       *testing.T
	kernels map[string]*kernel // by series
	log     []string           // what was done, in order
	failing error              // of Cases
	stop    func()             // called when cases run
	cost    bool               // measure costs
}

func (f *fake) begin(options vet.Options, command string) (columns.Attempt, error) {
	if options.Seed != 7 || command != "zcvet compare" {
		f.t.Errorf("a run with seed %d for %q", options.Seed, command)
	}
	k := f.kernels[options.Series]
	if k == nil {
		f.t.Fatalf("a run of series %q", options.Series)
	}
	return &attempt{fake: f, kernel: k, options: options, run: &verdict.Run{Seed: options.Seed}}, nil
}

type attempt struct {
	fake    *fake
	kernel  *kernel
	options vet.Options
	run     *verdict.Run
}

func (a *attempt) Path() string { return a.options.Out }

func (a *attempt) name() string {
	name := a.options.Series
	if a.options.Revision != 0 {
		name += fmt.Sprintf("@%d", a.options.Revision)
	}
	if a.options.Patches != 0 {
		name += fmt.Sprintf("/%d", a.options.Patches)
	}
	return name
}

func (a *attempt) did(format string, args ...any) {
	a.fake.log = append(a.fake.log, fmt.Sprintf(format, args...))
}

func (a *attempt) Prepare(context.Context) (*vet.Prepared, error) {
	a.did("prepare %s", a.name())
	if a.kernel.err != nil {
		return nil, a.kernel.err
	}
	boot := filepath.Join(a.fake.t.TempDir(), "boot")
	if err := os.WriteFile(boot, []byte(a.kernel.binary), 0o644); err != nil {
		a.fake.t.Fatal(err)
	}
	a.run.Kernel = verdict.Kernel{ID: a.kernel.binary, Objects: 3}
	return &vet.Prepared{Kernel: &kbuild.Kernel{Boot: boot, CacheHits: 2, CacheLookups: 3}}, nil
}

func (a *attempt) Go(ctx context.Context) (*verdict.Run, error) {
	prepared, err := a.Prepare(ctx)
	if err == nil {
		err = a.Cases(ctx, prepared)
	}
	return a.End(ctx, err)
}

func (a *attempt) Use(*vet.Prepared) { a.did("use %s", a.name()) }

func (a *attempt) Adopt(run *verdict.Run) {
	a.did("adopt %s", a.name())
	a.run.Cases = run.Cases
}

func (a *attempt) Cases(context.Context, *vet.Prepared) error {
	only := ""
	if len(a.options.Only) > 0 {
		only = " only " + strings.Join(a.options.Only, " ")
	}
	if a.options.CountInstructions {
		a.did("measure %s", a.name())
		a.run.Cases = []verdict.Case{{ID: "cost", Name: a.options.Suite, Level: verdict.Must, Status: verdict.Pass, Measurements: []verdict.Measurement{{Name: "plain", Instructions: a.kernel.instructions}}}}
		return nil
	}
	a.did("run %s%s", a.name(), only)
	if a.fake.stop != nil {
		a.fake.stop()
	}
	if a.fake.failing != nil {
		return a.fake.failing
	}
	results := a.kernel.cases[0]
	if len(a.kernel.cases) > 1 {
		a.kernel.cases = a.kernel.cases[1:]
	}
	for _, id := range slices.Sorted(maps.Keys(results)) {
		if only == "" || slices.Contains(a.options.Only, id) {
			a.run.Cases = append(a.run.Cases, verdict.Case{ID: id, Name: id, Level: verdict.Must, Status: results[id]})
		}
	}
	return nil
}

func (a *attempt) End(ctx context.Context, err error) (*verdict.Run, error) {
	if ctx.Err() != nil {
		err = fault.New(fault.Infrastructure, "interrupted: %w", ctx.Err())
	}
	a.run.Decide(verdict.Policy{}, err)
	return a.run, err
}

func (f *fake) Section(string, ...any) {}
func (f *fake) Note(string, ...any)    {}
func (f *fake) Error(err error)        { f.log = append(f.log, "error "+err.Error()) }

func (f *fake) compare(ctx context.Context, words ...string) (*compare.Comparison, *results.Group, error) {
	f.t.Helper()
	wanted, err := columns.Parse(words)
	if err != nil {
		f.t.Fatal(err)
	}
	group, err := results.CreateGroup(filepath.Join(f.t.TempDir(), "out"), time.Now(), "zcvet compare")
	if err != nil {
		f.t.Fatal(err)
	}
	comparer := &columns.Comparer{Begin: f.begin, UI: f, Cost: f.cost}
	c, err := comparer.Compare(ctx, wanted, vet.Options{Kernel: "6.12", Suite: "all", Seed: 7, Series: "none"}, group, "zcvet compare")
	return c, group, err
}

type outcomes = map[string]verdict.Status

func (f *fake) requireLog(want ...string) {
	f.t.Helper()
	if d := cmp.Diff(want, f.log); d != "" {
		f.t.Errorf("what was done (-want +got):\n%s", d)
	}
}

func TestRunsEachColumnAndRepeatsWhatDiffers(t *testing.T) {
	f := &fake{t: t, kernels: map[string]*kernel{
		"none": {binary: "0", cases: []outcomes{{"a": "pass", "b": "pass", "c": "skip"}}},
		"v1":   {binary: "1", cases: []outcomes{{"a": "fail", "b": "pass", "c": "skip"}}},
		"v2":   {binary: "2", cases: []outcomes{{"a": "pass", "b": "fail", "c": "pass"}, {"a": "pass", "b": "pass", "c": "pass"}}},
	}}
	c, group, err := f.compare(t.Context(), "base", "v1", "v2")
	if err != nil {
		t.Fatal(err)
	}
	f.requireLog(
		"prepare none", "run none", "prepare v1", "run v1", "prepare v2", "run v2",
		// Once for each column, though v1 has two neighbours.
		"use none", "run none only a",
		"use v1", "run v1 only a b c",
		"use v2", "run v2 only a b c",
	)
	if got := c.Steps[0].Counts; got != (compare.Counts{Broken: 1, Same: 2}) {
		t.Errorf("base to v1: %+v", got)
	}
	if got := c.Steps[1].Counts; got != (compare.Counts{Fixed: 1, New: 1, Unstable: 1}) {
		t.Errorf("v1 to v2: %+v", got)
	}
	if c.Exit.Code != 1 || c.Exit.Error != "v1 is worse than base: 1 case passed before and fails now" {
		t.Errorf("exit %+v", c.Exit)
	}
	column := c.Columns[1]
	if column.Repeated != 3 || column.Directory != "2-v1" || column.RepeatDirectory != "2-v1-again" || column.CacheHits != 2 || column.CacheMisses != 1 || column.Kernel.Objects != 3 {
		t.Errorf("column %+v", column)
	}

	file, err := os.Open(filepath.Join(group.Path, compare.File))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	stored, err := compare.Read(file)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(c.Exit, stored.Exit); d != "" || len(stored.Columns) != 3 {
		t.Errorf("%s holds %d columns: %s", compare.File, len(stored.Columns), d)
	}
	if info, err := os.Stat(filepath.Join(group.Path, "compare.md")); err != nil || info.Size() == 0 {
		t.Errorf("compare.md: %v", err)
	}
}

func TestIdenticalBinariesRunOnce(t *testing.T) {
	f := &fake{t: t, kernels: map[string]*kernel{
		"none": {binary: "0", cases: []outcomes{{"a": "pass"}}},
		"v1":   {binary: "1", cases: []outcomes{{"a": "fail"}}},
		"v2":   {binary: "1", cases: []outcomes{{"a": "pass"}}}, // never runs
	}}
	c, _, err := f.compare(t.Context(), "base", "v1", "v2")
	if err != nil {
		t.Fatal(err)
	}
	f.requireLog(
		"prepare none", "run none", "prepare v1", "run v1", "prepare v2", "adopt v2",
		"use none", "run none only a", "use v1", "run v1 only a",
	)
	if c.Columns[2].SameAs != "v1" || !c.Steps[1].Same || c.Steps[1].Counts.StillFailing != 1 {
		t.Errorf("column %+v, step %+v", c.Columns[2], c.Steps[1])
	}
}

func TestMeasuresTheCostsOfEachBinaryOnce(t *testing.T) {
	f := &fake{t: t, cost: true, kernels: map[string]*kernel{
		"none": {binary: "0", cases: []outcomes{{"a": "pass"}}, instructions: 5000},
		"v1":   {err: fault.New(fault.Build, "no")},
		"v2":   {binary: "2", cases: []outcomes{{"a": "pass"}}, instructions: 5100},
		"v3":   {binary: "2", cases: []outcomes{{"a": "pass"}}},
	}}
	c, _, err := f.compare(t.Context(), "base", "v1", "v2", "v3")
	if err != nil {
		t.Fatal(err)
	}
	f.requireLog(
		"prepare none", "run none", "prepare v1", "error no", "prepare v2", "run v2", "prepare v3", "adopt v3",
		"prepare none", "measure none", "prepare v2", "measure v2",
	)
	want := []cost.Row{{Case: "cost", Measure: "plain", Without: 5000, With: 5100}}
	if d := cmp.Diff(want, c.Steps[1].Cost); d != "" || len(c.Steps[2].Cost) > 0 {
		t.Errorf("cost of v2 (-want +got):\n%s\nof v3: %+v", d, c.Steps[2].Cost)
	}
	if got := c.Columns[2].CostDirectory; got != "3-v2-cost" {
		t.Errorf("the costs of v2 are in %q", got)
	}
}

// TestRunsOfALongNameStayApart has a column whose name is cut in that of its
// directory: its second run must not take the place of the first.
func TestRunsOfALongNameStayApart(t *testing.T) {
	long := "20240730184120.4089835-1-zijianzhang@bytedance.com"
	f := &fake{t: t, cost: true, kernels: map[string]*kernel{
		"none": {binary: "0", cases: []outcomes{{"a": "pass"}}},
		long:   {binary: "1", cases: []outcomes{{"a": "fail"}}},
	}}
	c, _, err := f.compare(t.Context(), "base", long)
	if err != nil {
		t.Fatal(err)
	}
	column := c.Columns[1]
	if column.Directory == column.RepeatDirectory || column.Directory == column.CostDirectory || column.RepeatDirectory == column.CostDirectory {
		t.Errorf("runs at %s, %s and %s", column.Directory, column.RepeatDirectory, column.CostDirectory)
	}
}

func TestColumnThatDoesNotApplyIsAResult(t *testing.T) {
	f := &fake{t: t, kernels: map[string]*kernel{
		"none": {binary: "0", cases: []outcomes{{"a": "pass"}}},
		"v1":   {err: fault.New(fault.Apply, "patch 1/2 does not apply")},
		"v2":   {binary: "2", cases: []outcomes{{"a": "fail"}}},
	}}
	c, _, err := f.compare(t.Context(), "base", "v1", "v2")
	if err != nil {
		t.Fatal(err)
	}
	f.requireLog(
		"prepare none", "run none", "prepare v1", "error patch 1/2 does not apply", "prepare v2", "run v2",
		"use none", "run none only a", "use v2", "run v2 only a",
	)
	if c.Steps[0].Missing != "v1 cannot be compared: patch 1/2 does not apply" || c.Steps[1].Before != 0 || c.Steps[1].Counts.Broken != 1 {
		t.Errorf("steps %+v", c.Steps)
	}
	if c.Exit.Code != 3 {
		t.Errorf("exit %+v", c.Exit)
	}
}

func TestWhatEveryColumnWouldMeetEndsTheComparison(t *testing.T) {
	for _, class := range []fault.Class{fault.Usage, fault.Infrastructure} {
		f := &fake{t: t, kernels: map[string]*kernel{
			"none": {err: fault.New(class, "no such kernel")},
			"v1":   {binary: "1", cases: []outcomes{{"a": "pass"}}},
		}}
		if _, _, err := f.compare(t.Context(), "base", "v1"); fault.Of(err) != class {
			t.Errorf("%s: %v", class, err)
		}
		f.requireLog("prepare none", "error no such kernel")
	}
}

func TestInterruptEndsTheComparison(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	f := &fake{t: t, stop: cancel, kernels: map[string]*kernel{
		"none": {binary: "0", cases: []outcomes{{"a": "pass"}}},
		"v1":   {binary: "1", cases: []outcomes{{"a": "pass"}}},
	}}
	if _, _, err := f.compare(ctx, "base", "v1"); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	f.requireLog("prepare none", "run none")
}

func TestParse(t *testing.T) {
	t.Chdir(t.TempDir())
	for _, dir := range []string{"mine", "odd@7", "base"} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	got, err := columns.Parse([]string{"base", "mine", "mine@6", "odd@7", "lore:v7", "20240730184120.4089835-1-zijianzhang@bytedance.com", "id@example.org@3", "./base"})
	if err != nil {
		t.Fatal(err)
	}
	want := []columns.Column{
		{Name: "base", Series: "none"},
		{Name: "mine", Series: "mine"},
		{Name: "mine@6", Series: "mine", Revision: 6},
		{Name: "odd@7", Series: "odd@7"},
		{Name: "lore:v7", Series: "lore:v7"},
		{Name: "20240730184120.4089835-1-zijianzhang@bytedance.com", Series: "20240730184120.4089835-1-zijianzhang@bytedance.com"},
		{Name: "id@example.org@3", Series: "id@example.org", Revision: 3},
		{Name: "./base", Series: "./base"},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("columns (-want +got):\n%s", d)
	}
	for _, dir := range []string{"sent/v1", "sent/v2", "other/v2"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	got, err = columns.Parse([]string{"base", "sent/v1", "sent/v1", "./mine@2", "sent/v2", "other/v2", "lore:v1"})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, column := range got {
		names = append(names, column.Name)
	}
	if d := cmp.Diff([]string{"base", "v1", "v1", "mine@2", "sent/v2", "other/v2", "lore:v1"}, names); d != "" {
		t.Errorf("names (-want +got):\n%s", d)
	}
	for _, words := range [][]string{nil, {"base"}, {"base", ""}, {"base", "mine@0"}} {
		if _, err := columns.Parse(words); fault.Of(err) != fault.Usage {
			t.Errorf("%q: %v", words, err)
		}
	}
}

func TestEachPatch(t *testing.T) {
	s := &series.Series{Patches: make([]series.Patch, 2)}
	got, err := columns.EachPatch(s, "mine")
	if err != nil {
		t.Fatal(err)
	}
	want := []columns.Column{
		{Name: "patch 1", Series: "mine", Patches: 1, Loaded: s},
		{Name: "patch 2", Series: "mine", Patches: 2, Loaded: s},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("columns (-want +got):\n%s", d)
	}
	if _, err := columns.EachPatch(&series.Series{}, "none"); fault.Of(err) != fault.Usage {
		t.Errorf("a series without patches: %v", err)
	}
}
