// SPDX-License-Identifier: BSD-3-Clause

package vet

import (
	"context"
	"errors"
	"io"
	"path/filepath"
	"slices"
	"time"

	"github.com/zcvet/zcvet/guest/cases"
	"github.com/zcvet/zcvet/guest/link"
	"github.com/zcvet/zcvet/harness/fault"
	"github.com/zcvet/zcvet/harness/machine"
	"github.com/zcvet/zcvet/harness/results"
	"github.com/zcvet/zcvet/harness/rig"
	"github.com/zcvet/zcvet/harness/suite"
	"github.com/zcvet/zcvet/harness/terminal"
	"github.com/zcvet/zcvet/harness/verdict"
)

// Attempt is a run in its pieces, for those who have something to decide between
// them. Prepare or Use comes first, then Cases, and always End.
type Attempt struct {
	// Run is what is known so far.
	Run *verdict.Run

	vetter    *Vetter
	options   Options
	wanted    func(link.Instance) bool
	directory *results.Directory
	started   time.Time
}

// Begin checks the options and makes the directory of the results.
func (v *Vetter) Begin(options Options, command string) (*Attempt, error) {
	wanted, err := suite.Select(options.Suite)
	if err != nil {
		return nil, err
	}
	if len(options.Only) > 0 {
		selected := wanted
		wanted = func(instance link.Instance) bool {
			return slices.Contains(options.Only, instance.ID) && selected(instance)
		}
	}
	if _, err := configuration(options); err != nil {
		return nil, err
	}
	started := time.Now()
	directory, err := results.Create(options.Out, started, options.Kernel, filepath.Base(options.Series))
	if err != nil {
		return nil, err
	}
	run := &verdict.Run{Command: command, Started: started.UTC().Format(time.RFC3339), Seed: options.Seed}
	run.Series.Spec = options.Series
	return &Attempt{Run: run, vetter: v, options: options, wanted: wanted, directory: directory, started: started}, nil
}

// Go goes all the way: what Prepare, Cases and End do one after the other.
func (a *Attempt) Go(ctx context.Context) (*verdict.Run, error) {
	prepared, err := a.Prepare(ctx)
	if err == nil {
		err = a.Cases(ctx, prepared)
		prepared.Close()
	}
	return a.End(ctx, err)
}

// Path is the directory of the results.
func (a *Attempt) Path() string { return a.directory.Path }

// Prepare makes everything a machine needs. The caller closes it.
func (a *Attempt) Prepare(ctx context.Context) (*Prepared, error) {
	return a.vetter.Prepare(ctx, a.options, a.Run)
}

// Use takes what an attempt with the same kernel, series and configuration has
// prepared before.
func (a *Attempt) Use(prepared *Prepared) {
	about := prepared.about
	a.Run.Kernel, a.Run.Series, a.Run.Machine = about.Kernel, about.Series, about.Machine
	a.Run.Kernel.Cached, a.Run.Kernel.Objects = true, 0
}

// Adopt takes the results of a run whose kernel has the same binary, in place of
// Cases.
func (a *Attempt) Adopt(run *verdict.Run) {
	a.Run.Machine, a.Run.Cases, a.Run.Splats = run.Machine, slices.Clone(run.Cases), slices.Clone(run.Splats)
}

// Cases runs the cases and stores what they and the console said in a.Run.
func (a *Attempt) Cases(ctx context.Context, prepared *Prepared) error {
	v, options, run := a.vetter, a.options, a.Run
	if prepared.Kernel.Config != "" {
		if err := a.directory.CopyConfig(prepared.Kernel.Config); err != nil {
			return err
		}
	}
	static := prepared.static(a.wanted)
	for _, c := range static {
		v.UI.Case(c)
	}
	if len(static) > 0 && !slices.ContainsFunc(cases.Instances(), func(i cases.Instance) bool { return a.wanted(i.Describe()) }) {
		run.Cases = static
		return nil
	}
	step := v.UI.Step("cases")
	booter := a.booter(prepared, options)
	how := a.suite(prepared, booter, a.wanted, step)
	how.OnCase = v.UI.Case
	outcome, err := suite.Run(ctx, how)
	run.Machine.QEMU = booter.QEMU()
	prepared.judge(outcome, run, err)
	if kept := a.keepEvidence(prepared, outcome); err == nil {
		err = kept
	}
	run.Cases = append(run.Cases, static...)
	if err != nil {
		step.Fail(err)
		return err
	}
	step.Done("%d, booted in %.2f s%s", len(run.Cases), outcome.Boot.Seconds(), restores(outcome))
	for _, missing := range outcome.Missing {
		v.UI.Warn("%s", missing)
	}
	if err := a.withoutSMAP(ctx, prepared, outcome); err != nil {
		return err
	}
	return v.coverage(ctx, prepared, outcome, run)
}

// booter starts machines with those options. Evidence of another leg of the run
// does not overwrite that of the first.
func (a *Attempt) booter(prepared *Prepared, options Options) *rig.Booter {
	leg := ""
	if options.SMAPOff != a.options.SMAPOff {
		leg = "-smap-off"
	}
	return &rig.Booter{
		Machine: prepared.Machine(options),
		Evidence: func(caseID, kind string) (io.WriteCloser, error) {
			return a.directory.Evidence(caseID+leg, kind)
		},
	}
}

// suite is how to run the wanted cases. OnCase is left to the caller.
func (a *Attempt) suite(prepared *Prepared, booter *rig.Booter, wanted func(link.Instance) bool, step *terminal.Step) suite.Options {
	patience := machine.NewPatience(prepared.Accelerator, prepared.needs.Slowdown)
	if a.options.CountInstructions {
		patience = patience.Counted()
	}
	return suite.Options{
		Booter: booter,
		Parameters: link.Parameters{
			ABI: a.Run.Series.ABI, Constant: a.Run.Series.Constant, Seed: a.options.Seed, TimeScale: patience.Scale,
			SearchSteps: a.options.SearchSteps, SearchBudget: a.options.SearchBudget,
			CountsInstructions: a.options.CountInstructions,
		},
		Wanted:   wanted,
		Machines: a.options.machines(),
		Concurrent: !slices.ContainsFunc(cases.Instances(), func(i cases.Instance) bool {
			return !i.Case.Concurrent && wanted(i.Describe())
		}),
		Patience: patience,
		Progress: step.Progress,
		Console:  a.directory.Console,
		Allowed:  prepared.allowed,
	}
}

// End gives the verdict and stores it. Err is what ended the run early, or nil; it
// is part of the verdict, and returned with what went wrong in storing it.
func (a *Attempt) End(ctx context.Context, err error) (*verdict.Run, error) {
	a.Run.Seconds = time.Since(a.started).Seconds()
	if interrupted := ctx.Err(); interrupted != nil {
		err = fault.New(fault.Infrastructure, "interrupted: %w", context.Cause(ctx))
	}
	a.Run.Decide(a.options.Policy, err)
	return a.Run, errors.Join(err, a.directory.Write(a.Run), a.directory.Close())
}
