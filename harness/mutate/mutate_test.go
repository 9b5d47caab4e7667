// SPDX-License-Identifier: BSD-3-Clause

package mutate

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/zcvet/zcvet/guest/link"
	"github.com/zcvet/zcvet/harness/fault"
	"github.com/zcvet/zcvet/harness/splat"
	"github.com/zcvet/zcvet/harness/suite"
	"github.com/zcvet/zcvet/harness/verdict"
	"github.com/zcvet/zcvet/patches/mutants"
)

var update = flag.Bool("update", false, "write the golden files")

// fakeLab is a laboratory whose cases fail as a table says.
type fakeLab struct {
	instances []link.Instance
	// fails holds "mutant case" with the status of that case there.
	fails map[string]verdict.Status
	// splats holds "mutant case" when the kernel complains.
	splats map[string]bool
	broken map[string]error // by mutant

	lock sync.Mutex
	ran  map[string][]string // by mutant, ids in order
	// once holds "mutant case" of those that fail the first time only.
	once map[string]bool
	// round is in which round, from 0, a case fails on a mutant.
	round map[string]int
}

func (l *fakeLab) Instances() []link.Instance { return l.instances }

func (l *fakeLab) Run(_ context.Context, mutant string, instances []link.Instance, options suite.Options) (*suite.Result, error) {
	l.lock.Lock()
	defer l.lock.Unlock()
	if l.ran == nil {
		l.ran = map[string][]string{}
	}
	if options.Console != nil {
		for number := range max(options.Machines, 1) {
			console, err := options.Console(number + 1)
			if err != nil {
				return &suite.Result{}, err
			}
			_, _ = io.WriteString(console, "console of "+mutant)
		}
	}
	result := &suite.Result{}
	for _, instance := range instances {
		result.Cases = append(result.Cases, verdict.Case{ID: instance.ID, Name: instance.Name, Covers: instance.Covers})
	}
	for i := range result.Cases {
		if options.Enough != nil && options.Enough() {
			break
		}
		c := &result.Cases[i]
		c.Status = verdict.Pass
		if key := mutant + " " + c.ID; l.once[key] && !slices.Contains(l.ran[mutant], c.ID) {
			c.Status = verdict.Fail
		}
		if round, ok := l.round[mutant+" "+c.ID]; ok && round == occurrences(l.ran[mutant], c.ID) {
			c.Status = verdict.Fail
		}
		if status, ok := l.fails[mutant+" "+c.ID]; ok {
			c.Status, c.Detail = status, "expected that, came this\nand more"
		}
		if l.splats[mutant+" "+c.ID] {
			result.Splats = append(result.Splats, splat.Splat{Case: c.ID, Title: "WARNING"})
		}
		l.ran[mutant] = append(l.ran[mutant], c.ID)
		if options.OnCase != nil {
			options.OnCase(*c)
		}
	}
	return result, l.broken[mutant]
}

func occurrences(all []string, one string) int {
	return len(slices.DeleteFunc(slices.Clone(all), func(each string) bool { return each != one }))
}

func instance(id string, covers ...string) link.Instance {
	name, _, _ := strings.Cut(id, ":")
	return link.Instance{ID: id, Name: name, Covers: covers}
}

func newLab() *fakeLab {
	return &fakeLab{instances: []link.Instance{
		instance("fifo:tcp", "N01"), instance("fifo:udp", "N01"),
		instance("order:tcp", "N05", "N01"),
		instance("poll:tcp", "Z40"),
	}}
}

func mutant(name string, covers ...string) mutants.Mutant {
	return mutants.Mutant{Name: name, Area: mutants.SCM, Breaks: "something", Covers: covers}
}

func verdicts(results []Result) map[string]string {
	got := map[string]string{}
	for _, result := range results {
		got[result.Name] = strings.TrimSpace(string(result.Verdict) + " " + names(result.KilledBy))
		if result.Verdict == Survived {
			got[result.Name] = "survived: " + result.Why()
		}
	}
	return got
}

func TestVerdicts(t *testing.T) {
	lab := newLab()
	lab.fails = map[string]verdict.Status{
		"killed fifo:udp":    verdict.Fail,
		"crashed order:tcp":  verdict.Crash,
		"timed_out poll:tcp": verdict.Timeout,
		"elsewhere poll:tcp": verdict.Fail,
		"skipped poll:tcp":   verdict.Skip,
		"splat fifo:tcp":     verdict.Fail,
	}
	lab.splats = map[string]bool{"splat fifo:tcp": true}
	options := Options{All: true, Mutants: []mutants.Mutant{
		mutant("killed", "N01"), mutant("crashed", "N05"), mutant("timed_out", "Z40", "Z41"),
		mutant("alive", "N01"), mutant("elsewhere", "N01"), mutant("splat", "R04"),
	}}
	results, err := Run(t.Context(), lab, &Baseline{}, options)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"killed":    "killed fifo (N01)",
		"crashed":   "killed order (N05)",
		"timed_out": "killed poll (Z40)",
		"alive":     "survived: 4 cases that cover its ids passed",
		"elsewhere": "survived: noticed, but not by its ids: poll (Z40)",
		"splat":     "killed fifo (R04)",
	}
	if diff := cmp.Diff(want, verdicts(results)); diff != "" {
		t.Error(diff)
	}
	if results[0].KilledBy[0].Detail != "expected that, came this" {
		t.Errorf("detail %q", results[0].KilledBy[0].Detail)
	}
}

func TestWhyNothingWasSeen(t *testing.T) {
	lab := newLab()
	lab.fails = map[string]verdict.Status{"skipped poll:tcp": verdict.Skip}
	results, err := Run(t.Context(), lab, &Baseline{}, Options{Mutants: []mutants.Mutant{
		mutant("uncovered", "N19", "N22"), mutant("skipped", "Z40"),
	}})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"uncovered": "survived: no case covers N19 or N22",
		"skipped":   "survived: all 1 cases that cover Z40 were skipped",
	}
	if diff := cmp.Diff(want, verdicts(results)); diff != "" {
		t.Error(diff)
	}
}

// Only what covers the ids runs, different cases before the same on other axes,
// and no more than are needed.
func TestWhatRuns(t *testing.T) {
	for _, test := range []struct {
		name    string
		covers  []string
		options Options
		fails   []string
		want    []string
	}{
		{"covering cases", []string{"N01"}, Options{}, nil, []string{"fifo:tcp", "order:tcp", "fifo:udp"}},
		{"most ids first", []string{"N01", "N05"}, Options{}, nil, []string{"order:tcp", "fifo:tcp", "fifo:udp"}},
		{"enough kills", []string{"N01"}, Options{Kills: 1}, []string{"order:tcp"}, []string{"fifo:tcp", "order:tcp", "order:tcp"}},
		{"all of them", []string{"Z40"}, Options{Kills: 1, All: true}, []string{"poll:tcp"}, []string{"poll:tcp", "fifo:tcp", "order:tcp", "fifo:udp", "poll:tcp"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			lab := newLab()
			lab.fails = map[string]verdict.Status{}
			for _, id := range test.fails {
				lab.fails["m "+id] = verdict.Fail
			}
			test.options.Mutants = []mutants.Mutant{mutant("m", test.covers...)}
			if _, err := Run(t.Context(), lab, &Baseline{}, test.options); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, lab.ran["m"]); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// A case that fails now and then kills nothing, and the search for one that does
// goes on.
func TestKillsHappenAgain(t *testing.T) {
	lab := newLab()
	lab.once = map[string]bool{"flaky fifo:tcp": true, "later fifo:tcp": true, "racy poll:tcp": true}
	lab.fails = map[string]verdict.Status{"later order:tcp": verdict.Fail}
	racy := mutant("racy", "Z40")
	racy.Racy = true
	results, err := Run(t.Context(), lab, &Baseline{}, Options{Kills: 1, Mutants: []mutants.Mutant{
		mutant("flaky", "N01"), mutant("later", "N01"), racy,
	}})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"flaky": "survived: failed, but not when repeated: fifo (N01)",
		"later": "killed order (N01)",
		"racy":  "killed poll (Z40)",
	}
	if diff := cmp.Diff(want, verdicts(results)); diff != "" {
		t.Error(diff)
	}
	if results[0].Ran != 3 {
		t.Errorf("%d cases ran on a mutant that a flake seemed to kill, 3 cover its id", results[0].Ran)
	}
}

// A race that is not lost the first time is tried again, when the others are done.
func TestRacesAreTriedAgain(t *testing.T) {
	lab := newLab()
	lab.round = map[string]int{"late order:tcp": racyRounds - 1}
	lab.fails = map[string]verdict.Status{"sure fifo:tcp": verdict.Fail}
	late, never := mutant("late", "N01"), mutant("never", "N01")
	late.Racy, never.Racy = true, true
	var order []string
	results, err := Run(t.Context(), lab, &Baseline{}, Options{
		Kills: 1, Parallel: 3, Mutants: []mutants.Mutant{late, never, mutant("sure", "N01")},
		OnResult: func(result Result) { order = append(order, result.Name) },
	})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"late": "killed order (N01)", "never": "survived: 3 cases that cover its ids passed", "sure": "killed fifo (N01)"}
	if diff := cmp.Diff(want, verdicts(results)); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"sure", "late", "never"}, order); diff != "" {
		t.Errorf("order: %s", diff)
	}
}

func TestClean(t *testing.T) {
	lab := newLab()
	lab.fails = map[string]verdict.Status{"none poll:tcp": verdict.Fail, "none fifo:udp": verdict.Skip}
	options := Options{Mutants: []mutants.Mutant{mutant("m", "Z40")}}
	baseline, err := Clean(t.Context(), lab, options)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"poll:tcp"}, lab.ran["none"]); diff != "" {
		t.Errorf("of a selection only what it needs:\n%s", diff)
	}
	// A case that fails without a fault kills nothing.
	lab.fails["m poll:tcp"] = verdict.Fail
	results, err := Run(t.Context(), lab, baseline, options)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]string{"m": "survived: no case covers Z40"}, verdicts(results)); diff != "" {
		t.Error(diff)
	}

	lab.ran = nil
	options.Whole = true
	if baseline, err = Clean(t.Context(), lab, options); err != nil {
		t.Fatal(err)
	}
	if baseline.Cases != 4 || baseline.Skipped != 1 || len(baseline.Failures) != 1 {
		t.Errorf("the whole suite: %+v", baseline)
	}

	// Several machines share the work.
	options.Parallel = 3
	baseline.Seconds = 0
	again, err := Clean(t.Context(), lab, options)
	if err != nil {
		t.Fatal(err)
	}
	again.Seconds = 0
	if diff := cmp.Diff(baseline, again); diff != "" {
		t.Errorf("on three machines (-one +three):\n%s", diff)
	}
}

func TestErrorsEndTheRun(t *testing.T) {
	broken := fault.New(fault.Infrastructure, "no machine")
	lab := newLab()
	lab.broken = map[string]error{"b": broken}
	results, err := Run(t.Context(), lab, &Baseline{}, Options{Mutants: []mutants.Mutant{mutant("a", "N01"), mutant("b", "N01")}})
	if !errors.Is(err, broken) || !strings.Contains(err.Error(), "mutant b") {
		t.Errorf("%v, want the error of mutant b", err)
	}
	if len(results) != 1 || results[0].Name != "a" {
		t.Errorf("what was finished before is lost: %v", results)
	}
	lab.broken = map[string]error{mutants.None: broken}
	if _, err := Clean(t.Context(), lab, Options{Whole: true}); !errors.Is(err, broken) {
		t.Errorf("%v, want the error of the kernel without a fault", err)
	}
}

type consoleFile struct {
	bytes.Buffer
	closed bool
}

func (f *consoleFile) Close() error {
	f.closed = true
	return nil
}

func TestParallelRunsAndTheirConsoles(t *testing.T) {
	lab := newLab()
	consoles := map[string]*consoleFile{}
	var lock sync.Mutex
	options := Options{Parallel: 3, Console: func(name string) (io.WriteCloser, error) {
		lock.Lock()
		defer lock.Unlock()
		if name == "m3" {
			return nil, os.ErrPermission
		}
		consoles[name] = &consoleFile{}
		return consoles[name], nil
	}}
	var want, got []string
	options.OnResult = func(result Result) { got = append(got, result.Name) }
	for _, name := range []string{"m0", "m1", "m2"} {
		options.Mutants = append(options.Mutants, mutant(name, "N01"))
		want = append(want, name)
	}
	results, err := Run(t.Context(), lab, &Baseline{}, options)
	if err != nil {
		t.Fatal(err)
	}
	var order []string
	for _, result := range results {
		order = append(order, result.Name)
		if console := consoles[result.Name]; console.String() != "console of "+result.Name || !console.closed {
			t.Errorf("console of %s: %q, closed %v", result.Name, console.String(), console.closed)
		}
	}
	if diff := cmp.Diff(want, order); diff != "" {
		t.Errorf("the results are in the order of the list (-want +got):\n%s", diff)
	}
	if slices.Sort(got); !slices.Equal(got, want) {
		t.Errorf("OnResult heard of %v", got)
	}
	options.Mutants = []mutants.Mutant{mutant("m3", "N01")}
	if _, err := Run(t.Context(), lab, &Baseline{}, options); fault.Of(err) != fault.Infrastructure {
		t.Errorf("%v for a console that cannot be kept", err)
	}
}

func report() *Report {
	return &Report{
		Command: "zcvet mutate --kernel 6.12", Started: "2026-11-24T12:00:00Z", Seconds: 93,
		Kernel:   verdict.Kernel{Version: "6.12.117", Config: []string{"base", "zerocopy"}},
		Machine:  verdict.Machine{Accel: "tcg"},
		Baseline: &Baseline{Cases: 100, Skipped: 4},
		LeftOut:  []mutants.Mutant{{Name: "locked", Area: mutants.SCM, Breaks: "the lock is wrong", Covers: []string{"R04"}, Config: "debug"}},
		Mutants: []Result{
			{
				Mutant: mutants.Mutant{Name: "holes", Area: mutants.SCM, Breaks: "a | in the text", Covers: []string{"N01"}}, Verdict: Killed, Ran: 3,
				KilledBy: []Failure{{Case: "fifo:tcp", Name: "fifo", IDs: []string{"N01"}}, {Case: "fifo:udp", Name: "fifo", IDs: []string{"N01"}}, {Case: "order:tcp", Name: "order", IDs: []string{"N01"}}},
			},
			{Mutant: mutants.Mutant{Name: "early", Area: mutants.Zerocopy, Breaks: "too early", Covers: []string{"Z3A", "Z36"}}, Verdict: Survived, Ran: 7, Skipped: 1},
			{Mutant: mutants.Mutant{Name: "late", Area: mutants.Zerocopy, Breaks: "too late", Covers: []string{"Z30"}}, Verdict: Survived, NoticedBy: []Failure{{Name: "poll", IDs: []string{"Z40"}}}},
		},
	}
}

func TestForms(t *testing.T) {
	r := report()
	if class := r.Decide(nil); class != fault.Test {
		t.Errorf("two survivors are of class %v", class)
	}
	for name, write := range map[string]func(io.Writer) error{
		"report.md": r.WriteMarkdown, "report.txt": r.WriteTable, "report.json": r.Write,
	} {
		var got bytes.Buffer
		if err := write(&got); err != nil {
			t.Fatal(err)
		}
		golden := filepath.Join("testdata", name)
		if *update {
			if err := os.WriteFile(golden, got.Bytes(), 0o666); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(golden)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(want), got.String()); diff != "" {
			t.Errorf("%s (-want +got), -update writes it:\n%s", name, diff)
		}
		if name == "report.json" {
			var again Report
			if err := json.Unmarshal(got.Bytes(), &again); err != nil {
				t.Errorf("what was written cannot be read: %v", err)
			}
		}
	}
}

func TestDecide(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(*Report)
		err    error
		want   fault.Class
	}{
		{"survivors", func(*Report) {}, nil, fault.Test},
		{"all killed", func(r *Report) { r.Mutants = r.Mutants[:1] }, nil, fault.None},
		{"not clean", func(r *Report) {
			r.Mutants, r.Baseline.Failures = r.Mutants[:1], []Failure{{Case: "a"}}
		}, nil, fault.Test},
		{"build failed", func(*Report) {}, fault.New(fault.Build, "no"), fault.Build},
		{"nothing reached", func(r *Report) { r.Mutants, r.Baseline = nil, nil }, fault.New(fault.Boot, "no"), fault.Boot},
	} {
		r := report()
		test.change(r)
		if got := r.Decide(test.err); got != test.want || r.Exit.Code != test.want.ExitCode() {
			t.Errorf("%s: class %v, exit %+v, want %v", test.name, got, r.Exit, test.want)
		}
	}
}
