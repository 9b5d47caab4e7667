// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"context"
	"os"
	"path/filepath"
	"time"

	"al.essio.dev/pkg/shellescape"
	"github.com/spf13/cobra"

	"github.com/zcvet/zcvet/harness/cost"
	"github.com/zcvet/zcvet/harness/fault"
	"github.com/zcvet/zcvet/harness/machine"
	"github.com/zcvet/zcvet/harness/report"
	"github.com/zcvet/zcvet/harness/results"
	"github.com/zcvet/zcvet/harness/series"
	"github.com/zcvet/zcvet/harness/verdict"
	"github.com/zcvet/zcvet/harness/vet"
)

func (a *app) benchCommand() *cobra.Command {
	options := vet.Options{Suite: cost.Suite, Seed: 1, CountInstructions: true}
	command := &cobra.Command{
		Use:   "bench",
		Short: "Measure what a series costs and saves, in instructions",
		Long: `bench runs the cases that measure on the kernel without the series and on the
kernel with it, in a machine whose clock counts instructions: the figures are the
same in every run, whatever else this machine does. A send that does not use the
series must not have become dearer (N21): exit code 1 if it has.`,
		Args: noArguments,
		RunE: func(command *cobra.Command, _ []string) error { return a.bench(command.Context(), options) },
	}
	kernelFlags(command, &options)
	// Only an emulated processor can be counted.
	if err := command.Flags().MarkHidden("accel"); err != nil {
		panic(err) // the flag was renamed
	}
	command.Flags().StringVar(&options.Out, "out", "", "directory of the results (default a new one in results/, and results/latest)")
	return command
}

func (a *app) bench(ctx context.Context, options vet.Options) error {
	v, err := a.vetter(os.Stdout)
	if err != nil {
		return err
	}
	options.Accelerator = "auto" // not worth a word in the command that repeats this
	arguments := append(vet.Arguments{"zcvet", "bench"}, options.KernelFlags()...)
	command := shellescape.QuoteCommand(append(arguments, options.SeriesFlags()...))
	options.Accelerator = machine.TCG
	group, err := results.CreateGroup(options.Out, time.Now(), command, options.Kernel, filepath.Base(options.Series), "cost")
	if err != nil {
		return err
	}
	without, with := options, options
	without.Series, without.Revision = series.None, 0
	without.Out, with.Out = group.Run("without"), group.Run("with")
	var runs []*verdict.Run
	for _, options := range []vet.Options{without, with} {
		attempt, err := v.Begin(options, command)
		if err != nil {
			return err
		}
		run, err := attempt.Go(ctx)
		if err != nil {
			return err
		}
		if run.Exit.Code != 0 {
			v.UI.Summary(run)
			return verdictError{fault.Class(run.Exit.Code)}
		}
		runs = append(runs, run)
	}
	table := cost.Compare(runs[0], runs[1])
	if err := group.Write("cost.json", table.Write); err != nil {
		return err
	}
	if err := report.WriteCost(os.Stdout, table); err != nil {
		return fault.New(fault.Infrastructure, "%w", err)
	}
	v.UI.Note("results: %s", group.Path)
	if dearer := len(cost.Exceeding(table.Rows)); dearer > 0 {
		return fault.New(fault.Test, "%s", cost.Complaint(dearer))
	}
	return nil
}
