// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/zcvet/zcvet/guest/cases"
	"github.com/zcvet/zcvet/guest/link"
	"github.com/zcvet/zcvet/harness/fault"
	"github.com/zcvet/zcvet/harness/report"
	"github.com/zcvet/zcvet/harness/suite"
	"github.com/zcvet/zcvet/harness/tree"
	"github.com/zcvet/zcvet/harness/verdict"
	"github.com/zcvet/zcvet/harness/vet"
	"github.com/zcvet/zcvet/kconfig"
)

// kernelFlags are the flags of every command that needs a kernel with a series.
func kernelFlags(command *cobra.Command, options *vet.Options) {
	machineFlags(command, options)
	flags := command.Flags()
	flags.StringVar(&options.Series, "series", "none", "directory of patches, mbox:FILE, message-id, lore URL, lore:vN, reference (our own) or none")
	flags.IntVar(&options.Revision, "rev", 0, "revision of the series (default the one named, or the newest)")
	flags.BoolVar(&options.NoFuzz, "no-fuzz", false, "refuse a patch that applies only with fuzz")
}

// machineFlags are the flags of every command that needs a kernel.
func machineFlags(command *cobra.Command, options *vet.Options) {
	flags := command.Flags()
	flags.StringVar(&options.Kernel, "kernel", "6.12", "version (6.12), tar:FILE, dir:PATH, git:URL@REF or image:BZIMAGE")
	flags.BoolVar(&options.Refresh, "refresh", false, "look for a newer source of the version than the cached one")
	flags.StringVar(&options.Config, "config", "default", "kernel configuration: "+strings.Join(kconfig.Names(), ", "))
	flags.IntVarP(&options.Jobs, "jobs", "j", 0, "parallel compilations (default one per processor)")
	flags.StringVar(&options.Accelerator, "accel", "auto", "auto, kvm or tcg; kvm fails instead of falling back")
	flags.StringVar(&options.CPU, "cpu", "", `QEMU's CPU model, such as "max,smap=off" (default the best of the accelerator)`)
	flags.Var((*smap)(&options.SMAPOff), "smap", "on or off; off lets the kernel touch user memory without the helpers for it (and when it is on, cases that crash on that are run again with it off)")
}

// caseFlags are the flags of every command that runs cases.
func caseFlags(command *cobra.Command, options *vet.Options) {
	flags := command.Flags()
	flags.StringVar(&options.Suite, "suite", suite.Everything, `cases to run: checklist ids, groups, cases, protocols, links, with * and !, as in "Z3*,poll,!udp"`)
	flags.StringVar(&options.Out, "out", "", "directory of the results (default a new one in results/, and results/latest)")
	flags.Int64Var(&options.Seed, "seed", 1, "seed of everything random")
	flags.IntVar(&options.SearchSteps, "search-steps", 0, "operations of each search for a failing sequence (R02), a few hundred by default")
	flags.DurationVar(&options.SearchBudget, "search-budget", 0, "time of each such search, and of shrinking what it finds (default 1s, more without KVM)")
	flags.IntVar(&options.Parallel, "parallel", 0, "machines at a time (default one per processor, at most 4)")
	flags.BoolVar(&options.Policy.Strict, "strict", false, "failures of SHOULD cases fail the run")
	flags.BoolVar(&options.Policy.ExpectAll, "expect-all", false, "skipped cases fail the run")
}

// smap is the value of a flag that switches supervisor mode access prevention off.
type smap bool

func (s *smap) Set(text string) error {
	switch text {
	case "on", "off":
		*s = text == "off"
		return nil
	}
	return fmt.Errorf("%q is neither on nor off", text)
}

func (s *smap) String() string {
	if *s {
		return "off"
	}
	return "on"
}

func (*smap) Type() string { return "on|off" }

func (a *app) runCommand() *cobra.Command {
	var options vet.Options
	var list, kernelID, eachPatch bool
	command := &cobra.Command{
		Use:   "run",
		Short: "Build a kernel with a series and run the cases on it",
		Example: `  zcvet run --kernel 6.12 --series patches/6.12
  zcvet run --kernel 6.12 --series lore:v7
  zcvet run --kernel 6.12 --series none --suite poll,Z30
  zcvet run --kernel dir:../linux --series mbox:v9.mbox --no-fuzz`,
		Args: noArguments,
		RunE: func(command *cobra.Command, _ []string) error {
			switch {
			case options.Parallel < 0:
				return fault.New(fault.Usage, "--parallel %d: it takes a number from 1", options.Parallel)
			case options.SearchSteps < 0 || options.SearchBudget < 0:
				return fault.New(fault.Usage, "--search-steps and --search-budget cannot be negative")
			case list:
				return listCases(options.Suite)
			case kernelID:
				return a.printKernelID(command, options)
			case eachPatch:
				return a.eachPatch(command.Context(), options)
			}
			return a.run(command, options)
		},
	}
	kernelFlags(command, &options)
	caseFlags(command, &options)
	flags := command.Flags()
	flags.BoolVar(&eachPatch, "each-patch", false, "run the cases at every patch of the series, and tell what each one changed")
	flags.BoolVar(&list, "list", false, "list the cases with their checklist ids, and run nothing")
	flags.BoolVar(&kernelID, "kernel-id", false, "print the id the kernel would be cached under, and build nothing")
	return command
}

func (a *app) run(command *cobra.Command, options vet.Options) error {
	v, err := a.vetter(os.Stdout)
	if err != nil {
		return err
	}
	run, err := v.Run(command.Context(), options, options.RunCommand())
	if run == nil {
		return err
	}
	if err != nil {
		v.UI.Error(err)
	}
	v.UI.Summary(run)
	if os.Getenv("GITHUB_ACTIONS") == "true" {
		if err := report.WriteAnnotations(os.Stdout, run); err != nil {
			return fault.New(fault.Infrastructure, "annotations: %w", err)
		}
	}
	if run.Exit.Code == 0 && err != nil {
		return err // the verdict is good, but could not be stored
	}
	return verdictError{fault.Class(run.Exit.Code)}
}

// listCases prints the selected cases, one line for each with the axes folded.
func listCases(patterns string) error {
	wanted, err := suite.Select(patterns)
	if err != nil {
		return err
	}
	table := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "CASE\tLEVEL\tCOVERS\tINSTANCES\tBEHAVIOUR")
	var listed verdict.Run
	for _, c := range cases.All() {
		instances := slices.DeleteFunc(c.Instances(), func(i cases.Instance) bool { return !wanted(described(i)) })
		if len(instances) == 0 {
			continue
		}
		for _, i := range instances {
			listed.Cases = append(listed.Cases, verdict.Case{Name: c.Name, Covers: c.Covers, Proto: string(i.Proto), Link: string(i.Link)})
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%d\t%s\n", c.Name, c.Level, strings.Join(c.Covers, " "), len(instances), c.Doc)
	}
	for _, c := range tree.StaticCases {
		if wanted(link.Instance{ID: c.Name, Name: c.Name, Covers: c.Covers}) {
			listed.Cases = append(listed.Cases, verdict.Case{Name: c.Name, Covers: c.Covers})
			fmt.Fprintf(table, "%s\t%s\t%s\t1\t%s\n", c.Name, c.Level, strings.Join(c.Covers, " "), c.Doc)
		}
	}
	if err := table.Flush(); err != nil {
		return fault.New(fault.Infrastructure, "list: %w", err)
	}
	if len(listed.Cases) == 0 {
		return fault.New(fault.Usage, "the suite selection %q matches no case", patterns)
	}
	fmt.Printf("%d instances\n\n", len(listed.Cases))
	return listGrid(&listed)
}

// listGrid prints how many instances cover each id of the checklist on each
// protocol and link.
func listGrid(listed *verdict.Run) error {
	grid := report.MakeGrid(listed)
	table := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	columns := slices.Clone(grid.Columns)
	if columns[0] == "" {
		columns[0] = "anywhere"
	}
	fmt.Fprintf(table, "ID\t%s\n", strings.Join(columns, "\t"))
	for _, row := range grid.Rows {
		fmt.Fprint(table, row.ID)
		for _, cell := range row.Cells {
			if cell.Empty() {
				fmt.Fprint(table, "\t-")
			} else {
				fmt.Fprintf(table, "\t%d", cell.Passed)
			}
		}
		fmt.Fprintln(table)
	}
	if err := table.Flush(); err != nil {
		return fault.New(fault.Infrastructure, "list: %w", err)
	}
	return nil
}

func described(i cases.Instance) link.Instance {
	return link.Instance{
		ID: i.ID(), Name: i.Case.Name, Covers: i.Case.Covers, Level: string(i.Case.Level),
		Proto: string(i.Proto), Family: string(i.Family), Link: string(i.Link),
	}
}

// printKernelID prints nothing but the id on standard output, for scripts that
// cache by it.
func (a *app) printKernelID(command *cobra.Command, options vet.Options) error {
	v, err := a.vetter(os.Stderr)
	if err != nil {
		return err
	}
	id, err := v.KernelID(command.Context(), options)
	if err != nil {
		return err
	}
	fmt.Println(id)
	return nil
}
