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

	"github.com/spf13/cobra"

	"github.com/zcvet/zcvet/harness/check"
	"github.com/zcvet/zcvet/harness/compare"
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
	"b4":          func(w io.Writer, run *verdict.Run) error { return report.WriteB4(w, report.B4Checks(run, "")) },
}

func (a *app) reportCommand() *cobra.Command {
	var format string
	var diff, strict bool
	command := &cobra.Command{
		Use:   "report RESULTS...",
		Short: "Render stored results again, merge them, or tell their differences",
		Long: `report reads run.json (or compare.json, check.json) of each directory. Of one run
it writes every form of the report again, beside it. Several runs of the same
kernel, such as shards, are merged; --diff tells what changed from each run to the
next. --format writes one form to standard output and changes no file.

The exit code is that of the results: of a run as zcvet run gave it, of a
difference 1 if something got worse.`,
		Example: `  zcvet report results/latest
  zcvet report --format txt results/latest
  zcvet report --format html shard-1 shard-2 >report.html
  zcvet report --diff results/before results/after`,
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
			if diff {
				return reportDiff(command.OutOrStdout(), directories, format, strict)
			}
			return reportRuns(command.OutOrStdout(), directories, format)
		},
	}
	command.Flags().StringVar(&format, "format", "", "write one form to standard output: "+strings.Join(slices.Sorted(maps.Keys(formats)), ", "))
	command.Flags().BoolVar(&diff, "diff", false, "tell what changed from each run to the next (md or html)")
	command.Flags().BoolVar(&strict, "strict", false, "with --diff: changes of SHOULD cases count")
	return command
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

func reportRuns(out io.Writer, directories []string, format string) error {
	if len(directories) == 1 {
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
	run, err := verdict.Merge(runs)
	if err != nil {
		return fault.New(fault.Usage, "%w", err).WithAdvice("zcvet report --diff tells what differs between kernels")
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

// reportOther renders a directory that holds no run but a comparison or checks.
func reportOther(out io.Writer, directory, format string) (done bool, err error) {
	if format != "" && format != "html" {
		return false, nil
	}
	exists := func(name string) bool {
		_, err := os.Stat(filepath.Join(directory, name))
		return err == nil
	}
	var write func(io.Writer) error
	var exit verdict.Exit
	switch {
	case exists(compare.File):
		var c *compare.Comparison
		if err := readJSON(directory, compare.File, func(r io.Reader) (err error) { c, err = compare.Read(r); return err }); err != nil {
			return true, err
		}
		write, exit = func(w io.Writer) error { return page.WriteComparison(w, c) }, c.Exit
	case exists(check.File):
		var c *check.Report
		if err := readJSON(directory, check.File, func(r io.Reader) (err error) { c, err = check.Read(r); return err }); err != nil {
			return true, err
		}
		write, exit = func(w io.Writer) error { return page.WriteCheck(w, c) }, c.Exit
	default:
		return false, nil
	}
	if format == "" {
		err = results.RenderFile(directory, "report.html", write)
	} else {
		err = write(out)
	}
	if err != nil {
		return true, fault.New(fault.Infrastructure, "%w", err)
	}
	return true, verdictError{fault.Class(exit.Code)}
}

func reportDiff(out io.Writer, directories []string, format string, strict bool) error {
	if len(directories) < 2 {
		return fault.New(fault.Usage, "a difference needs two results or more")
	}
	c := &compare.Comparison{Kernel: "", Suite: "as in the runs"}
	var outcomes []compare.Outcome
	for _, directory := range directories {
		run, err := readRun(directory)
		if err != nil {
			return err
		}
		outcomes = append(outcomes, compare.Outcome{Run: run})
		c.Kernel, c.Seed, c.Started = run.Kernel.Version, run.Seed, run.Started
		c.Columns = append(c.Columns, compare.Column{
			Name: filepath.Base(filepath.Clean(directory)), Directory: filepath.ToSlash(directory), Kernel: run.Kernel, Series: run.Series,
			Totals: run.Totals, Splats: len(run.Splats), Exit: run.Exit, Compared: compare.HasResults(run), RunSeconds: run.Seconds,
		})
	}
	c.Join(outcomes, strict)
	write := report.WriteComparison
	switch format {
	case "html":
		write = page.WriteComparison
	case "json":
		write = func(w io.Writer, c *compare.Comparison) error { return c.Write(w) }
	case "", "md":
	default:
		return fault.New(fault.Usage, "a difference has no format %q", format).WithAdvice("the formats are html, json, md")
	}
	if err := write(out, c); err != nil {
		return fault.New(fault.Infrastructure, "%w", err)
	}
	return verdictError{fault.Class(c.Exit.Code)}
}
