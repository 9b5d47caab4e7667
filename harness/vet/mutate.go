// SPDX-License-Identifier: BSD-3-Clause

package vet

import (
	"cmp"
	"context"
	"errors"
	"io"
	"os"
	"slices"
	"time"

	"al.essio.dev/pkg/shellescape"

	"github.com/zcvet/zcvet/guest/link"
	"github.com/zcvet/zcvet/harness/fault"
	"github.com/zcvet/zcvet/harness/machine"
	"github.com/zcvet/zcvet/harness/mutate"
	"github.com/zcvet/zcvet/harness/results"
	"github.com/zcvet/zcvet/harness/rig"
	"github.com/zcvet/zcvet/harness/suite"
	"github.com/zcvet/zcvet/harness/verdict"
	"github.com/zcvet/zcvet/patches/mutants"
)

// MutateOptions says which mutants to look at and how.
type MutateOptions struct {
	// Pattern is what mutants.Set.Select explains; empty for all.
	Pattern  string
	All      bool
	Kills    int
	Parallel int
}

// Mutate runs the cases on mutants of the reference series. The report is complete
// even if the error is not nil: the error is then the reason it ended early. It is
// nil if the options make no sense or there is no place for results. Of options it
// uses what is about kernel, machine and results, and Suite, to which the cases are
// limited.
func (v *Vetter) Mutate(ctx context.Context, options Options, what MutateOptions, command string) (report *mutate.Report, err error) {
	if _, err := suite.Select(options.Suite); err != nil {
		return nil, err
	}
	if _, err := configuration(options); err != nil {
		return nil, err
	}
	started := time.Now()
	directory, err := results.Create(options.Out, started, options.Kernel, "mutants")
	if err != nil {
		return nil, err
	}
	report = &mutate.Report{Command: command, Started: started.UTC().Format(time.RFC3339)}
	defer func() {
		report.Seconds = time.Since(started).Seconds()
		if ctx.Err() != nil {
			err = fault.New(fault.Infrastructure, "interrupted: %w", context.Cause(ctx))
		}
		report.Decide(err)
		err = errors.Join(err,
			directory.WriteFile("mutants.json", report.Write),
			directory.WriteFile("mutants.md", report.WriteMarkdown),
			directory.Close())
		v.UI.Note("results: %s", directory.Path)
	}()
	return report, v.mutate(ctx, options, what, directory, report)
}

func (v *Vetter) mutate(ctx context.Context, options Options, what MutateOptions, directory *results.Directory, report *mutate.Report) error {
	series, err := os.MkdirTemp("", "zcvet-mutants-")
	if err != nil {
		return fault.New(fault.Infrastructure, "series of the mutants: %w", err)
	}
	defer os.RemoveAll(series)
	var selected []mutants.Mutant
	options.Series = "mutants"
	options.seriesFor = func(port string) (string, error) {
		set, err := mutants.Load(port)
		if err != nil {
			return "", err
		}
		if selected, err = set.Select(cmp.Or(what.Pattern, "*"), options.Config); err != nil {
			return "", err
		}
		report.LeftOut = set.LeftOut(cmp.Or(what.Pattern, "*"), options.Config)
		return series, set.WriteSeries(series, v.Root, mutants.None)
	}

	run := &verdict.Run{Seed: options.Seed}
	prepared, err := v.Prepare(ctx, options, run)
	report.Kernel, report.Series, report.Machine = run.Kernel, run.Series, run.Machine
	if err != nil {
		return err
	}
	defer prepared.Close()
	if err := directory.CopyConfig(prepared.Kernel.Config); err != nil {
		return err
	}

	step := v.UI.Step("boot")
	lab, err := v.laboratory(ctx, options, prepared, directory, run)
	if err != nil {
		step.Fail(err)
		return err
	}
	defer lab.base.Close()
	report.Machine.QEMU, report.Machine.BootMS = lab.booter.QEMU(), lab.base.Boot.Milliseconds()
	step.Done("ready in %.2f s, saved", lab.base.Boot.Seconds())

	step = v.UI.Step("no fault")
	mutating := mutate.Options{
		Mutants: selected, All: what.All, Whole: what.Pattern == "", Kills: what.Kills, Parallel: what.Parallel,
		Console:  func(mutant string) (io.WriteCloser, error) { return directory.ConsoleOf(mutant) },
		Progress: step.Progress,
	}
	if report.Baseline, err = mutate.Clean(ctx, lab, mutating); err != nil {
		step.Fail(err)
		return err
	}
	step.Done("%d of %d cases fail", len(report.Baseline.Failures), report.Baseline.Cases)
	for _, failure := range report.Baseline.Failures {
		v.UI.Warn("without a fault %s fails: %s", failure.Case, failure.Detail)
	}

	step = v.UI.Step("mutants")
	mutating.Progress = step.Progress
	mutating.OnResult = func(result mutate.Result) {
		if result.Verdict == mutate.Survived {
			v.UI.Warn("%s survived: %s", result.Name, result.Why())
		}
	}
	report.Mutants, err = mutate.Run(ctx, lab, report.Baseline, mutating)
	if err != nil {
		step.Fail(err)
		return err
	}
	report.Decide(nil)
	step.Done("%d killed, %d survived", report.Totals.Killed, report.Totals.Survived)
	return nil
}

// laboratory is a mutate.Laboratory of machines restored from one that was saved.
type laboratory struct {
	base      *suite.Base
	instances []link.Instance
	booter    *rig.Booter
	common    suite.Options
	// about is what all mutants have in common, and directory where programs go
	// that show them; command runs one case on a mutant.
	about     *verdict.Run
	directory *results.Directory
	command   func(mutant, id string) string
}

func (v *Vetter) laboratory(ctx context.Context, options Options, prepared *Prepared, directory *results.Directory, run *verdict.Run) (*laboratory, error) {
	booter := &rig.Booter{Machine: prepared.Machine(options)}
	patience := machine.NewPatience(prepared.Accelerator, prepared.needs.Slowdown)
	common := suite.Options{
		Booter: booter,
		Parameters: link.Parameters{
			ABI: run.Series.ABI, Constant: run.Series.Constant, Seed: options.Seed, TimeScale: patience.Scale,
		},
		Patience: patience,
		Console:  directory.Console,
		Allowed:  prepared.allowed,
	}
	wanted, err := suite.Select(options.Suite)
	if err != nil {
		return nil, err
	}
	base, err := suite.Save(ctx, common)
	if err != nil {
		return nil, err
	}
	instances := slices.DeleteFunc(slices.Clone(base.Instances), func(i link.Instance) bool { return !wanted(i) })
	return &laboratory{
		base: base, instances: instances, booter: booter, common: common, about: run, directory: directory,
		command: func(mutant, id string) string {
			return shellescape.QuoteCommand([]string{"zcvet", "mutate", "--kernel", options.Kernel, "--mutant", mutant, "--suite", id})
		},
	}, nil
}

func (l *laboratory) Instances() []link.Instance { return l.instances }

func (l *laboratory) Run(ctx context.Context, mutant string, instances []link.Instance, how suite.Options) (*suite.Result, error) {
	how.Booter, how.Parameters, how.Patience, how.Allowed = l.common.Booter, l.common.Parameters, l.common.Patience, l.common.Allowed
	how.Parameters.Mutant = mutant
	outcome, err := l.base.Run(ctx, how, instances)
	if outcome == nil || mutant == mutants.None {
		return outcome, err
	}
	return outcome, errors.Join(err, l.reproduce(mutant, outcome))
}

// reproduce keeps programs that show what failed on a mutant.
func (l *laboratory) reproduce(mutant string, outcome *suite.Result) error {
	run := &verdict.Run{Kernel: l.about.Kernel, Series: l.about.Series, Cases: outcome.Cases}
	run.Series.Name += ", mutant " + mutant
	for _, found := range outcome.Splats {
		run.Splats = append(run.Splats, verdict.Splat{Title: found.Title, Case: found.Case})
	}
	programs := reproduction{
		directory: l.directory, run: run, traces: outcome.Traces,
		command: func(id string) string { return l.command(mutant, id) },
		name:    func(id string) string { return results.ReproducerName(mutant + "/" + id) },
	}
	return programs.keep()
}
