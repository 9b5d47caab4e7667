// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"al.essio.dev/pkg/shellescape"
	"github.com/spf13/cobra"

	"github.com/zcvet/zcvet/harness/check"
	"github.com/zcvet/zcvet/harness/check/gate"
	"github.com/zcvet/zcvet/harness/fault"
	"github.com/zcvet/zcvet/harness/results"
	"github.com/zcvet/zcvet/harness/series"
	"github.com/zcvet/zcvet/harness/terminal"
	"github.com/zcvet/zcvet/harness/verdict"
	"github.com/zcvet/zcvet/harness/vet"
	"github.com/zcvet/zcvet/kconfig"
)

func (a *app) checkCommand() *cobra.Command {
	var options vet.Options
	var only string
	var list bool
	command := &cobra.Command{
		Use:   "check",
		Short: "Check each patch of a series as netdev's gate does",
		Long: `check goes through a series patch by patch with the rules of netdev's own gate:
whether each patch builds and boots, new warnings of gcc, sparse and clang against
the patch before, a 32-bit build and one with all options on of the directories
touched, checkpatch and kernel-doc of the tree itself, trailers, selftests, and the
series as a whole. Results are kept: what did not change is not checked again.

Exit codes: 0 nothing failed, 1 something did, 3 a patch does not apply, 4 does not
build, 5 does not boot. Warnings, and checks whose tool is not installed, fail
nothing.`,
		Example: `  zcvet check --kernel 6.12 --series patches/6.12
  zcvet check --series mbox:v9.mbox --only '!build-*,!boot'`,
		Args: noArguments,
		RunE: func(command *cobra.Command, _ []string) error {
			wanted, err := selectChecks(only)
			if err != nil {
				return err
			}
			if list {
				return listChecks(wanted)
			}
			return a.check(command.Context(), options, only, wanted)
		},
	}
	kernelFlags(command, &options)
	flags := command.Flags()
	flags.StringVar(&options.Out, "out", "", "directory of the results (default a new one in results/, and results/latest)")
	flags.StringVar(&only, "only", "", `checks to make: names, with * and !, as in "checkpatch,build*" or "!boot" (default all)`)
	flags.BoolVar(&list, "list", false, "list the checks with their rules, and make none")
	return command
}

// selectChecks reads --only: patterns of names, separated by commas; those with "!"
// exclude, and exclude from all if there are no others.
func selectChecks(patterns string) (func(name string) bool, error) {
	if patterns == "" {
		return func(string) bool { return true }, nil
	}
	var include, exclude []string
	for pattern := range strings.SplitSeq(patterns, ",") {
		pattern = strings.TrimSpace(pattern)
		name, excludes := strings.CutPrefix(pattern, "!")
		matches := 0
		for _, c := range check.Catalogue {
			matched, err := path.Match(name, c.Name)
			if err != nil {
				return nil, fault.New(fault.Usage, "--only %s: pattern %q: %w", patterns, name, err)
			}
			if matched {
				matches++
			}
		}
		if matches == 0 {
			return nil, fault.New(fault.Usage, "--only %s: no check is called %q", patterns, name).WithAdvice("zcvet check --list shows them")
		}
		if excludes {
			exclude = append(exclude, name)
		} else {
			include = append(include, name)
		}
	}
	if include == nil {
		include = []string{"*"}
	}
	matchesAny := func(patterns []string, name string) bool {
		for _, pattern := range patterns {
			if matched, err := path.Match(pattern, name); err == nil && matched {
				return true
			}
		}
		return false
	}
	return func(name string) bool { return matchesAny(include, name) && !matchesAny(exclude, name) }, nil
}

func listChecks(wanted func(string) bool) error {
	table := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "CHECK\tOF\tRULE")
	for _, c := range check.Catalogue {
		if wanted(c.Name) {
			fmt.Fprintf(table, "%s\t%s\t%s\n", c.Name, c.Scope, c.Rule)
		}
	}
	if err := table.Flush(); err != nil {
		return fault.New(fault.Infrastructure, "list: %w", err)
	}
	return nil
}

func (a *app) check(ctx context.Context, options vet.Options, only string, wanted func(string) bool) error {
	config, err := kconfig.Load(options.Config)
	if err != nil {
		return fault.New(fault.Usage, "%w", err)
	}
	if options.Series == series.None {
		return fault.New(fault.Usage, "there is no patch to check").WithAdvice("name a series: zcvet check --series SERIES")
	}
	v, err := a.vetter(os.Stdout)
	if err != nil {
		return err
	}
	from, s, err := v.Load(ctx, options)
	if err != nil {
		return err
	}
	options.Loaded = s
	arguments := append(vet.Arguments{"zcvet", "check"}, options.KernelFlags()...)
	arguments = append(arguments, options.SeriesFlags()...)
	arguments.Add(only != "", "--only", only)
	command := shellescape.QuoteCommand(arguments)
	group, err := results.CreateGroup(options.Out, time.Now(), command, options.Kernel, "check", filepath.Base(options.Series))
	if err != nil {
		return err
	}
	g := &gate.Gate{
		Cache: v.Cache, UI: v.UI, Log: v.Log, Jobs: options.Jobs, Config: config, Wanted: wanted,
		Boot: boots(v, options, group, command),
	}
	report, err := g.Check(ctx, from, s, group, command)
	v.UI.Note("results: %s", group.Path)
	if report == nil || fault.Of(err) == fault.Usage {
		return err
	}
	if err != nil {
		v.UI.Error(err)
	}
	v.UI.Checks(report)
	if report.Exit.Code == 0 && err != nil {
		return err // the verdict is good, but could not be stored
	}
	return verdictError{fault.Class(report.Exit.Code)}
}

// bootCase is the case that a kernel runs to show that it has booted.
const bootCase = "option/values"

// boots returns what boots a kernel with the first patches of a series, in silence:
// the check has its own line for it.
func boots(v *vet.Vetter, options vet.Options, group *results.Group, command string) func(context.Context, int) (*verdict.Run, error) {
	silent := *v
	silent.UI = terminal.New(io.Discard, terminal.Options{Quiet: true})
	return func(ctx context.Context, patches int) (*verdict.Run, error) {
		options := options
		options.Patches, options.Suite, options.Seed = patches, bootCase, 1
		options.Out = group.Run(fmt.Sprintf("boot-%d", patches))
		return silent.Run(ctx, options, command)
	}
}
