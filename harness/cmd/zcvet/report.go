// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"al.essio.dev/pkg/shellescape"
	"github.com/spf13/cobra"

	"github.com/zcvet/zcvet/harness/check"
	"github.com/zcvet/zcvet/harness/check/gate"
	"github.com/zcvet/zcvet/harness/compare"
	"github.com/zcvet/zcvet/harness/compare/columns"
	"github.com/zcvet/zcvet/harness/fault"
	"github.com/zcvet/zcvet/harness/report"
	"github.com/zcvet/zcvet/harness/report/page"
	"github.com/zcvet/zcvet/harness/results"
	"github.com/zcvet/zcvet/harness/verdict"
)

// formats are the forms of a run that can be written to standard output.
var formats = map[string]func(io.Writer, *verdict.Run) error{
	"html": page.WriteRun, "md": report.WriteMarkdown, "ktap": report.WriteKTAP, "junit": report.WriteJUnit,
	"annotations": report.WriteAnnotations,
	"txt":         func(w io.Writer, run *verdict.Run) error { return report.WriteText(w, run, results.Tester()) },
	"json":        func(w io.Writer, run *verdict.Run) error { return run.Write(w) },
	"b4":          func(w io.Writer, run *verdict.Run) error { return report.WriteB4(w, run, "") },
}

func (a *app) reportCommand() *cobra.Command {
	var format string
	var diff, strict bool
	command := &cobra.Command{
		Use:   "report RESULTS...",
		Short: "Render stored results again, merge them, or tell their differences",
		Long: `report reads run.json (or compare.json, check.json) of each directory. Of one
directory it writes every form of the report again. Several runs of one kernel,
such as shards, are merged; of different kernels, or with --diff, it tells what
changed from each run to the next, as compare does. --format writes one form to
standard output and changes no file.

The exit code is that of the results: of a run as zcvet run gave it, of a
difference as zcvet compare gives it.`,
		Example: `  zcvet report results/latest
  zcvet report --format txt results/latest
  zcvet report --format html shard-1 shard-2 >report.html
  zcvet report results/before results/after`,
		Args: func(command *cobra.Command, arguments []string) error {
			if len(arguments) == 0 {
				return fmt.Errorf("%s needs directories of results (%s --help)", command.CommandPath(), command.CommandPath())
			}
			return nil
		},
		RunE: func(command *cobra.Command, directories []string) error {
			if _, known := formats[format]; format != "" && !known {
				return fault.New(fault.Usage, "no format %q", format).
					WithAdvice("the formats are %s", strings.Join(slices.Sorted(maps.Keys(formats)), ", "))
			}
			out := command.OutOrStdout()
			if len(directories) == 1 && !diff {
				if done, err := reportOther(out, directories[0], format); done || err != nil {
					return err
				}
			}
			var runs []*verdict.Run
			for _, directory := range directories {
				run, err := readRun(directory)
				if err != nil {
					return err
				}
				runs = append(runs, run)
			}
			if diff || !oneKernel(runs) {
				return a.reportDiff(out, directories, runs, format, strict)
			}
			return reportRuns(out, directories, runs, format)
		},
	}
	command.Flags().StringVar(&format, "format", "", "write one form to standard output: "+strings.Join(slices.Sorted(maps.Keys(formats)), ", "))
	command.Flags().BoolVar(&diff, "diff", false, "tell what changed from each run to the next (md, html, json), even if the kernel is the same")
	command.Flags().BoolVar(&strict, "strict", false, "in a difference changes of SHOULD cases count")
	return command
}

// oneKernel tells whether all runs are of one kernel, so that they can be merged.
func oneKernel(runs []*verdict.Run) bool {
	return !slices.ContainsFunc(runs, func(run *verdict.Run) bool { return run.Kernel.ID != runs[0].Kernel.ID })
}

// readRun reads the run.json of a directory, or the file itself.
func readRun(path string) (*verdict.Run, error) {
	var run *verdict.Run
	err := readJSON(path, "run.json", func(r io.Reader) (err error) {
		run, err = verdict.Read(r)
		return err
	})
	return run, err
}

func readJSON(path, name string, read func(io.Reader) error) error {
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		path = filepath.Join(path, name)
	}
	file, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return fault.New(fault.Usage, "%s: there are no results", path).WithAdvice("name the directory that a run has left, such as results/latest")
	}
	if err != nil {
		return fault.New(fault.Usage, "%w", err)
	}
	defer func() { _ = file.Close() }()
	if err := read(file); err != nil {
		return fault.New(fault.Usage, "%s: %w", path, err)
	}
	return nil
}

func reportRuns(out io.Writer, directories []string, runs []*verdict.Run, format string) error {
	run, err := verdict.Merge(runs)
	if err != nil {
		return fault.New(fault.Usage, "%w", err)
	}
	switch {
	case format != "":
		err = formats[format](out, run)
	case len(directories) > 1:
		err = report.WriteMarkdown(out, run)
	default:
		err = results.Render(directories[0], run)
	}
	if err != nil {
		return fault.New(fault.Infrastructure, "%w", err)
	}
	return verdictError{fault.Class(run.Exit.Code)}
}

// comparisonFormats are the forms of a comparison, checkFormats those of checks.
var (
	comparisonFormats = map[string]func(io.Writer, *compare.Comparison) error{
		"html": page.WriteComparison, "md": report.WriteComparison,
		"json": func(w io.Writer, c *compare.Comparison) error { return c.Write(w) },
	}
	checkFormats = map[string]func(io.Writer, *check.Report) error{
		"html": page.WriteCheck, "md": report.WriteChecks,
		"json": func(w io.Writer, r *check.Report) error { return r.Write(w) },
	}
)

// reportOther renders a directory that holds no run but a comparison or checks.
func reportOther(out io.Writer, directory, format string) (done bool, err error) {
	group := &results.Group{Path: directory}
	exists := func(name string) bool {
		_, err := os.Stat(filepath.Join(directory, name))
		return err == nil
	}
	var exit verdict.Exit
	switch {
	case exists(compare.File):
		var c *compare.Comparison
		if err := readJSON(directory, compare.File, func(r io.Reader) (err error) { c, err = compare.Read(r); return err }); err != nil {
			return true, err
		}
		exit, err = c.Exit, render(out, format, comparisonFormats, c, func() error { return columns.Store(c, group) })
	case exists(check.File):
		var r *check.Report
		if err := readJSON(directory, check.File, func(in io.Reader) (err error) { r, err = check.Read(in); return err }); err != nil {
			return true, err
		}
		exit, err = r.Exit, render(out, format, checkFormats, r, func() error { return gate.Store(r, group) })
	default:
		return false, nil
	}
	if err != nil {
		return true, err
	}
	return true, verdictError{fault.Class(exit.Code)}
}

// render writes one form of some results to out, or all of them to their place.
func render[R any](out io.Writer, format string, formats map[string]func(io.Writer, R) error, results R, store func() error) error {
	if format == "" {
		return store()
	}
	write := formats[format]
	if write == nil {
		return fault.New(fault.Usage, "these results have no format %q", format).
			WithAdvice("they have %s", strings.Join(slices.Sorted(maps.Keys(formats)), ", "))
	}
	if err := write(out, results); err != nil {
		return fault.New(fault.Infrastructure, "%w", err)
	}
	return nil
}

// reportDiff compares stored runs as columns of a comparison. What compare knows
// beside them, the binaries and second results, the runs do not tell.
func (a *app) reportDiff(out io.Writer, directories []string, runs []*verdict.Run, format string, strict bool) error {
	if len(runs) < 2 {
		return fault.New(fault.Usage, "a difference needs two results or more")
	}
	c := &compare.Comparison{
		Command: shellescape.QuoteCommand(append([]string{"zcvet", "report", "--diff"}, directories...)),
		Started: runs[0].Started, Suite: "as in the runs", Seed: runs[0].Seed,
	}
	var outcomes []compare.Outcome
	var versions []string
	for i, run := range runs {
		outcomes = append(outcomes, compare.Outcome{Run: run})
		versions = append(versions, run.Kernel.Version)
		c.Seconds += run.Seconds
		c.Columns = append(c.Columns, compare.Column{
			Name: filepath.Base(filepath.Clean(directories[i])), Directory: filepath.ToSlash(directories[i]), Kernel: run.Kernel, Series: run.Series,
			Totals: run.Totals, Splats: len(run.Splats), Exit: run.Exit, RunSeconds: run.Seconds,
		})
	}
	c.Kernel = strings.Join(slices.Compact(versions), ", ")
	c.Join(outcomes, strict)
	err := render(out, format, comparisonFormats, c, func() error {
		a.uiOn(os.Stdout).Comparison(c)
		return nil
	})
	if err != nil {
		return err
	}
	return verdictError{fault.Class(c.Exit.Code)}
}
