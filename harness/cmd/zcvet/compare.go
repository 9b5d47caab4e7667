// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"context"
	"os"
	"strings"
	"time"

	"al.essio.dev/pkg/shellescape"
	"github.com/spf13/cobra"

	"github.com/zcvet/zcvet/harness/compare"
	"github.com/zcvet/zcvet/harness/compare/columns"
	"github.com/zcvet/zcvet/harness/fault"
	"github.com/zcvet/zcvet/harness/results"
	"github.com/zcvet/zcvet/harness/vet"
)

func (a *app) compareCommand() *cobra.Command {
	var options vet.Options
	var costs bool
	command := &cobra.Command{
		Use:   "compare COLUMN COLUMN...",
		Short: "Tell what changed between revisions of a series",
		Long: `compare runs the same cases with the same seed on every column and tells what
changed from each to the next: what was fixed or broken, what still fails, what
is new or gone, and which complaints of the kernel. A column is "base" (the
kernel without a series), a series as for run, or SERIES@N for its revision N.

Cases that differ are run a second time in both columns before they are called a
difference. Kernels with the same binary run once.

Exit codes: 0 nothing got worse, 1 something did. A column that does not apply,
build or boot has nothing to compare; the first such column decides the exit
code (3, 4, 5), and the column after it is compared with the one before it.`,
		Example: `  zcvet compare base lore:v6 lore:v7 lore:v8
  zcvet compare --kernel 6.12 base mbox:v9.mbox
  zcvet compare reference ../mine@1 ../mine@2`,
		RunE: func(command *cobra.Command, words []string) error {
			return a.compare(command.Context(), words, options, costs)
		},
	}
	kernelFlags(command, &options)
	// The columns are the series.
	for _, name := range []string{"series", "rev"} {
		if err := command.Flags().MarkHidden(name); err != nil {
			panic(err) // a flag was renamed
		}
	}
	caseFlags(command, &options)
	command.Flags().BoolVar(&costs, "cost", false, "measure what sends cost on every kernel, as bench does, and compare that too")
	return command
}

func (a *app) compare(ctx context.Context, words []string, options vet.Options, costs bool) error {
	if options.Series != "none" || options.Revision != 0 {
		return fault.New(fault.Usage, "compare takes series as columns, not by --series and --rev").
			WithAdvice("zcvet compare base SERIES SERIES@N")
	}
	wanted, err := columns.Parse(words)
	if err != nil {
		return err
	}
	v, err := a.vetter(os.Stdout)
	if err != nil {
		return err
	}
	arguments := append(vet.Arguments{"zcvet", "compare"}, options.KernelFlags()...)
	arguments = append(arguments, options.CaseFlags()...)
	arguments.Add(costs, "--cost")
	return a.runColumns(ctx, v, wanted, options, shellescape.QuoteCommand(append(arguments, words...)), &columns.Comparer{Cost: costs})
}

// eachPatch runs the suite at every patch of a series.
func (a *app) eachPatch(ctx context.Context, options vet.Options) error {
	v, err := a.vetter(os.Stdout)
	if err != nil {
		return err
	}
	_, s, err := v.Load(ctx, options)
	if err != nil {
		return err
	}
	wanted, err := columns.EachPatch(s, options.Series)
	if err != nil {
		return err
	}
	return a.runColumns(ctx, v, wanted, options, options.RunCommand()+" --each-patch", &columns.Comparer{Decide: (*compare.Comparison).DecideEach})
}

// runColumns makes a comparison and shows it. The comparer says what is particular
// about it.
func (a *app) runColumns(ctx context.Context, v *vet.Vetter, wanted []columns.Column, options vet.Options, command string, comparer *columns.Comparer) error {
	var names []string
	for _, column := range wanted {
		names = append(names, column.Name)
	}
	group, err := results.CreateGroup(options.Out, time.Now(), command, options.Kernel, strings.Join(names, " "))
	if err != nil {
		return err
	}
	comparer.UI = v.UI
	comparer.Begin = func(options vet.Options, command string) (columns.Attempt, error) {
		// A column alone is a run, unless run has no flag for what is particular
		// about it.
		if options.Patches == 0 && !options.CountInstructions {
			command = options.RunCommand()
		}
		return v.Begin(options, command)
	}
	comparison, err := comparer.Compare(ctx, wanted, options, group, command)
	v.UI.Note("results: %s", group.Path)
	if err != nil {
		return err
	}
	v.UI.Comparison(comparison)
	return verdictError{fault.Class(comparison.Exit.Code)}
}
