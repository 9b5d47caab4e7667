// SPDX-License-Identifier: BSD-3-Clause

// Package mutate tells whether the cases notice kernels that are broken on
// purpose. It runs the cases on the kernel without a fault, where all of them must
// pass, and then for each mutant those that cover its ids, where one must fail.
package mutate

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/zcvet/zcvet/guest/link"
	"github.com/zcvet/zcvet/harness/progress"
	"github.com/zcvet/zcvet/harness/suite"
	"github.com/zcvet/zcvet/harness/verdict"
	"github.com/zcvet/zcvet/patches/mutants"
)

// Laboratory runs cases on mutants.
type Laboratory interface {
	// Instances is every case on every axis it applies to.
	Instances() []link.Instance
	// Run runs instances, in this order, in a machine of its own whose kernel is
	// the mutant. It may be called from several goroutines. Of the options it
	// uses Machines, OnCase, Enough, Progress and Console; errors are those of
	// suite.Run.
	Run(ctx context.Context, mutant string, instances []link.Instance, options suite.Options) (*suite.Result, error)
}

// Options says what to run.
type Options struct {
	Mutants []mutants.Mutant
	// All runs every case on every mutant, not only those that cover its ids, and
	// shows so who else notices.
	All bool
	// Whole runs every case on the kernel without a fault, even those that no
	// mutant of the selection needs.
	Whole bool
	// Kills is how many failed cases are enough for a mutant, 0 for all.
	Kills int
	// Parallel is how many machines run at a time, 0 for one.
	Parallel int
	// Console opens a console log, named after the mutant; nil keeps none.
	Console func(name string) (io.WriteCloser, error)
	// Progress receives the number of finished cases of Clean, of finished mutants
	// of Run.
	Progress progress.Func
	// OnResult, if set, is called with every mutant's result as it comes, by one
	// goroutine at a time.
	OnResult func(Result)
}

// Verdict is what the cases made of a mutant.
type Verdict string

// The verdicts.
const (
	// Killed: a case failed that covers one of the mutant's ids, and failed again
	// when it was repeated.
	Killed Verdict = "killed"
	// Survived: none did. Cases that cover other ids may have.
	Survived Verdict = "survived"
)

// Failure is a case that failed.
type Failure struct {
	Case   string         `json:"case"` // id of the instance
	Name   string         `json:"name"`
	Status verdict.Status `json:"status"`
	// IDs are those that the case covers: of the mutant's own ids for a kill, all
	// of them otherwise.
	IDs    []string `json:"ids"`
	Detail string   `json:"detail"`
	// Reproducer is the C program that shows the failure, relative to
	// mutants.json; NoReproducer says why there is none.
	Reproducer   string `json:"reproducer,omitempty"`
	NoReproducer string `json:"no_reproducer,omitempty"`
}

// Result is what became of a mutant.
type Result struct {
	mutants.Mutant
	Verdict Verdict `json:"verdict"`
	// KilledBy are the cases that failed, twice, and cover an id of the mutant,
	// NoticedBy the others that failed.
	KilledBy  []Failure `json:"killed_by"`
	NoticedBy []Failure `json:"noticed_by"`
	// Once are cases that failed as KilledBy did, but not when they were repeated.
	Once []Failure `json:"once,omitempty"`
	// Ran is how many cases got a status, Skipped how many of those were skipped.
	Ran     int     `json:"ran"`
	Skipped int     `json:"skipped"`
	Seconds float64 `json:"seconds"`
	// Reason says why nothing could be seen, empty if something could.
	Reason string `json:"reason,omitempty"`
}

// Baseline is what the cases made of the kernel without a fault.
type Baseline struct {
	Cases    int       `json:"cases"`
	Skipped  int       `json:"skipped"`
	Failures []Failure `json:"failures"`
	Seconds  float64   `json:"seconds"`
}

// everyCase is the id that the harness checks around every case: splats. A case
// that failed with one covers it too.
const everyCase = "R04"

// Clean runs the cases on the kernel without a fault. It returns what there is even
// with an error.
func Clean(ctx context.Context, lab Laboratory, options Options) (*Baseline, error) {
	instances := lab.Instances()
	if !options.Whole && !options.All {
		instances = union(instances, plans(lab, options))
	}
	started := time.Now()
	result, err := run(ctx, lab, mutants.None, mutants.None, instances, options, suite.Options{
		Machines: options.Parallel, Progress: options.Progress,
	})
	baseline := &Baseline{Seconds: time.Since(started).Seconds()}
	if result != nil {
		baseline.Cases, baseline.Skipped = count(result)
		baseline.Failures = failures(result)
	}
	if err != nil {
		return baseline, fmt.Errorf("the kernel without a fault: %w", err)
	}
	return baseline, nil
}

// Run runs the cases on every mutant but those that failed in the baseline: what
// fails without a fault says nothing about one. It returns what there is even with
// an error.
func Run(ctx context.Context, lab Laboratory, baseline *Baseline, options Options) ([]Result, error) {
	unreliable := map[string]bool{}
	for _, failure := range baseline.Failures {
		unreliable[failure.Case] = true
	}
	plans := plans(lab, options)
	for i := range plans {
		plans[i] = slices.DeleteFunc(plans[i], func(instance link.Instance) bool { return unreliable[instance.ID] })
	}
	results := make([]Result, len(options.Mutants))
	var lock sync.Mutex // guards finished and the calls of OnResult and Progress
	finished := 0
	try := func(ctx context.Context, i int) error {
		m := options.Mutants[i]
		result, err := runMutant(ctx, lab, m, plans[i], options)
		if err != nil {
			return fmt.Errorf("mutant %s: %w", m.Name, err)
		}
		lock.Lock()
		defer lock.Unlock()
		results[i] = *result
		finished++
		options.Progress.Report(progress.Update{
			Done: int64(finished), Total: int64(len(results)), Unit: progress.Mutants, What: m.Name,
		})
		if options.OnResult != nil {
			options.OnResult(*result)
		}
		return nil
	}
	// A race takes two processors that really run at the same time, which the host
	// does not have for a machine among several.
	err := tryAll(ctx, max(options.Parallel, 1), options.Mutants, false, try)
	if err == nil {
		err = tryAll(ctx, 1, options.Mutants, true, try)
	}
	return slices.DeleteFunc(results, func(result Result) bool { return result.Verdict == "" }), err
}

// tryAll tries the mutants that are racy, or those that are not, so many at a time.
func tryAll(ctx context.Context, parallel int, all []mutants.Mutant, racy bool, try func(ctx context.Context, i int) error) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(parallel)
	for i, m := range all {
		if m.Racy == racy {
			group.Go(func() error { return try(ctx, i) })
		}
	}
	return group.Wait()
}

func plans(lab Laboratory, options Options) [][]link.Instance {
	all := lab.Instances()
	plans := make([][]link.Instance, len(options.Mutants))
	for i, m := range options.Mutants {
		plans[i] = plan(all, m, options.All)
	}
	return plans
}

// plan selects the cases for a mutant, and orders them so that different cases
// come first and the same case on other axes later: a kill is found soon, and by
// several cases.
func plan(all []link.Instance, m mutants.Mutant, every bool) []link.Instance {
	var names []string
	byName := map[string][]link.Instance{}
	for _, instance := range all {
		if !every && !intersect(instance.Covers, m.Covers) {
			continue
		}
		if byName[instance.Name] == nil {
			names = append(names, instance.Name)
		}
		byName[instance.Name] = append(byName[instance.Name], instance)
	}
	// Of an equal round those that are about the mutant come first.
	slices.SortStableFunc(names, func(a, b string) int {
		return len(common(byName[b][0].Covers, m.Covers)) - len(common(byName[a][0].Covers, m.Covers))
	})
	var ordered []link.Instance
	for round := 0; ; round++ {
		before := len(ordered)
		for _, name := range names {
			if instances := byName[name]; round < len(instances) {
				ordered = append(ordered, instances[round])
			}
		}
		if len(ordered) == before {
			return ordered
		}
	}
}

func union(all []link.Instance, plans [][]link.Instance) []link.Instance {
	wanted := map[string]bool{}
	for _, instances := range plans {
		for _, instance := range instances {
			wanted[instance.ID] = true
		}
	}
	return slices.DeleteFunc(slices.Clone(all), func(instance link.Instance) bool { return !wanted[instance.ID] })
}

func common(a, b []string) []string {
	return slices.DeleteFunc(slices.Clone(a), func(id string) bool { return !slices.Contains(b, id) })
}

func intersect(a, b []string) bool { return len(common(a, b)) > 0 }

func failed(status verdict.Status) bool {
	return status == verdict.Fail || status == verdict.Crash || status == verdict.Timeout
}

// racyRounds is how often the cases run on a mutant that shows in a race, until one
// fails.
const racyRounds = 3

func runMutant(ctx context.Context, lab Laboratory, m mutants.Mutant, instances []link.Instance, options Options) (*Result, error) {
	result := &Result{Mutant: m, Verdict: Survived}
	if len(instances) == 0 {
		result.Reason = "no case covers " + strings.Join(m.Covers, " or ")
		return result, nil
	}
	started := time.Now()
	rounds := 1
	for left := instances; len(left) > 0; {
		kills := len(result.KilledBy)
		outcome, err := run(ctx, lab, m.Name, m.Name, left, options, suite.Options{
			OnCase: func(c verdict.Case) {
				if failed(c.Status) && intersect(c.Covers, m.Covers) {
					kills++
				}
			},
			Enough: func() bool { return options.enough(kills) },
		})
		if err != nil {
			return nil, err
		}
		if ran, skipped := count(outcome); rounds == 1 {
			result.Ran += ran
			result.Skipped += skipped
		}
		if err := judge(ctx, lab, result, outcome, left, options); err != nil {
			return nil, err
		}
		if options.enough(len(result.KilledBy)) {
			break
		}
		left = unfinished(left, outcome)
		if m.Racy && len(left) == 0 && len(result.KilledBy) == 0 && rounds < racyRounds {
			left = instances
			rounds++
		}
	}
	result.Seconds = time.Since(started).Seconds()
	if len(result.KilledBy) > 0 {
		result.Verdict = Killed
	} else if result.Ran == result.Skipped {
		result.Reason = fmt.Sprintf("all %d cases that cover %s were skipped", result.Ran, strings.Join(m.Covers, " or "))
	}
	return result, nil
}

// enough tells whether a mutant has been killed often enough.
func (o *Options) enough(kills int) bool { return !o.All && o.Kills > 0 && kills >= o.Kills }

// judge files the failures of an outcome. Those that kill have to happen again: a
// case that fails now and then must not pass for one that notices.
func judge(ctx context.Context, lab Laboratory, result *Result, outcome *suite.Result, instances []link.Instance, options Options) error {
	var kills []Failure
	for _, failure := range failures(outcome) {
		if own := common(failure.IDs, result.Covers); len(own) > 0 {
			failure.IDs = own
			kills = append(kills, failure)
		} else {
			result.NoticedBy = append(result.NoticedBy, failure)
		}
	}
	again := map[string]bool{}
	if len(kills) > 0 && !result.Racy {
		repeated := slices.DeleteFunc(slices.Clone(instances), func(instance link.Instance) bool {
			return !slices.ContainsFunc(kills, func(kill Failure) bool { return kill.Case == instance.ID })
		})
		outcome, err := run(ctx, lab, result.Name, result.Name+"-again", repeated, options, suite.Options{})
		if err != nil {
			return err
		}
		for _, failure := range failures(outcome) {
			again[failure.Case] = true
		}
	}
	for _, kill := range kills {
		if result.Racy || again[kill.Case] {
			result.KilledBy = append(result.KilledBy, kill)
		} else {
			result.Once = append(result.Once, kill)
		}
	}
	return nil
}

// unfinished returns the instances that got no status.
func unfinished(instances []link.Instance, outcome *suite.Result) []link.Instance {
	finished := map[string]bool{}
	for _, c := range outcome.Cases {
		finished[c.ID] = c.Status != ""
	}
	return slices.DeleteFunc(slices.Clone(instances), func(instance link.Instance) bool { return finished[instance.ID] })
}

// run runs instances on a mutant with console logs of that name.
func run(ctx context.Context, lab Laboratory, mutant, log string, instances []link.Instance, options Options, how suite.Options) (*suite.Result, error) {
	if options.Console == nil {
		return lab.Run(ctx, mutant, instances, how)
	}
	var consoles []io.Closer
	defer func() {
		for _, console := range consoles {
			console.Close()
		}
	}()
	how.Console = func(number int) (io.Writer, error) {
		name := log
		if number > 1 {
			name += fmt.Sprintf("-%d", number)
		}
		console, err := options.Console(name)
		if err != nil {
			return nil, err
		}
		consoles = append(consoles, console)
		return console, nil
	}
	return lab.Run(ctx, mutant, instances, how)
}

func count(result *suite.Result) (ran, skipped int) {
	for _, c := range result.Cases {
		if c.Status != "" {
			ran++
		}
		if c.Status == verdict.Skip {
			skipped++
		}
	}
	return ran, skipped
}

// failures lists the cases that failed. One during which the kernel complained
// covers the id of complaints too.
func failures(result *suite.Result) []Failure {
	complained := map[string]bool{}
	for _, splat := range result.Splats {
		complained[splat.Case] = true
	}
	var list []Failure
	for _, c := range result.Cases {
		if !failed(c.Status) {
			continue
		}
		ids := slices.Clone(c.Covers)
		if complained[c.ID] && !slices.Contains(ids, everyCase) {
			ids = append(ids, everyCase)
		}
		detail, _, _ := strings.Cut(c.Detail, "\n")
		failure := Failure{Case: c.ID, Name: c.Name, Status: c.Status, IDs: ids, Detail: detail}
		if c.Evidence != nil {
			failure.Reproducer, failure.NoReproducer = c.Evidence.Reproducer, c.Evidence.NoReproducer
		}
		list = append(list, failure)
	}
	return list
}
