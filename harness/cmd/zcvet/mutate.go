// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"text/tabwriter"

	"al.essio.dev/pkg/shellescape"
	"github.com/spf13/cobra"

	"github.com/zcvet/zcvet/harness/fault"
	"github.com/zcvet/zcvet/harness/suite"
	"github.com/zcvet/zcvet/harness/vet"
	"github.com/zcvet/zcvet/patches/mutants"
)

// enoughKills is how many failed cases are enough for a mutant by default.
const enoughKills = 2

func (a *app) mutateCommand() *cobra.Command {
	var options vet.Options
	var what vet.MutateOptions
	var list bool
	command := &cobra.Command{
		Use:   "mutate",
		Short: "Tell whether the cases notice kernels that are broken on purpose",
		Long: `mutate builds one kernel that has many small faults, one of which a parameter
switches on: our reference series, patches/mutants on top of it. On the kernel
without a fault all cases must pass. Then for each mutant those cases run that cover
the ids the mutant was made for, and one of them must fail.

Exit codes: 0 all mutants were killed, 1 one survived, or a case failed without a
fault; the others are those of zcvet run.`,
		Example: `  zcvet mutate --kernel 6.12
  zcvet mutate --mutant 'lost_*,Z36' --all
  zcvet mutate --config debug --mutant irqs_left_on`,
		Args: noArguments,
		RunE: func(command *cobra.Command, _ []string) error {
			if list {
				return listMutants(what.Pattern)
			}
			return a.mutate(command, options, what)
		},
	}
	machineFlags(command, &options)
	flags := command.Flags()
	flags.StringVar(&what.Pattern, "mutant", "", "mutants: names, areas (scm, zerocopy) and checklist ids, with * (default all)")
	flags.StringVar(&options.Suite, "suite", suite.Everything, "cases that may run, as in zcvet run")
	flags.BoolVar(&what.All, "all", false, "run every case on every mutant and show who else notices")
	flags.IntVar(&what.Kills, "kills", enoughKills, "failed cases that are enough for a mutant, 0 runs all that cover its ids")
	flags.IntVar(&what.Parallel, "parallel", 2*runtime.NumCPU(), "machines at a time; those of mutants wait more than they work")
	flags.StringVar(&options.Out, "out", "", "directory of the results (default a new one in results/, and results/latest)")
	flags.Int64Var(&options.Seed, "seed", 1, "seed of everything random")
	flags.BoolVar(&list, "list", false, "list the mutants, and run nothing")
	return command
}

func (a *app) mutate(command *cobra.Command, options vet.Options, what vet.MutateOptions) error {
	switch {
	case what.Kills < 0:
		return fault.New(fault.Usage, "--kills %d: it takes a number from 0", what.Kills)
	case what.Parallel < 1:
		return fault.New(fault.Usage, "--parallel %d: it takes a number from 1", what.Parallel)
	}
	v, err := a.vetter(os.Stdout)
	if err != nil {
		return err
	}
	report, err := v.Mutate(command.Context(), options, what, repeatMutate(options, what))
	if report == nil {
		return err
	}
	if len(report.Mutants) > 0 {
		if err := report.WriteTable(os.Stdout); err != nil {
			return fault.New(fault.Infrastructure, "table: %w", err)
		}
	}
	if err != nil {
		return err
	}
	if report.Exit.Error != "" {
		fmt.Println(report.Exit.Error)
	}
	return verdictError{fault.Class(report.Exit.Code)}
}

// repeatMutate is the command that does the same again.
func repeatMutate(options vet.Options, what vet.MutateOptions) string {
	arguments := append(vet.Arguments{"zcvet", "mutate"}, options.KernelFlags()...)
	arguments.Add(what.Pattern != "", "--mutant", what.Pattern)
	arguments.Add(options.Suite != suite.Everything, "--suite", options.Suite)
	arguments.Add(what.All, "--all")
	arguments.Add(what.Kills != enoughKills, "--kills", strconv.Itoa(what.Kills))
	arguments.Add(options.Seed != 1, "--seed", strconv.FormatInt(options.Seed, 10))
	return shellescape.QuoteCommand(arguments)
}

// listMutants prints the mutants of every kernel that has some.
func listMutants(pattern string) error {
	if pattern == "" {
		pattern = "*"
	}
	table := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "LINUX\tMUTANT\tAREA\tIDS\tCONFIG\tBREAKS")
	for _, port := range mutants.Ports() {
		set, err := mutants.Load(port)
		if err != nil {
			return err
		}
		selected, err := set.Select(pattern, mutants.EveryConfig)
		if err != nil {
			return err
		}
		for _, m := range selected {
			fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\n", port, m.Name, m.Area, strings.Join(m.Covers, " "), m.Config, m.Breaks)
		}
	}
	if err := table.Flush(); err != nil {
		return fault.New(fault.Infrastructure, "list: %w", err)
	}
	return nil
}
