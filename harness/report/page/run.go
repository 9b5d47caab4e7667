// SPDX-License-Identifier: BSD-3-Clause

package page

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"al.essio.dev/pkg/shellescape"
	"mvdan.cc/sh/v3/shell"

	"github.com/zcvet/zcvet/harness/fault"
	"github.com/zcvet/zcvet/harness/report"
	"github.com/zcvet/zcvet/harness/verdict"
)

// runPage is what the template of a run shows.
type runPage struct {
	Run      *verdict.Run
	Early    bool // the run ended before its cases were through
	Failures []failure
	Splats   []splat
	Grid     report.Grid
	Untested []report.GridRow
	Diffs    []patch
	Skips    []report.Skips
	About    []fact
	Missing  []verdict.Feature
}

type failure struct {
	report.Folded
	Axes string
	// Evidence is that of the first case that has excerpts.
	Evidence *verdict.Evidence
	Splats   []link
	Repeat   string
	Open     bool
}

type link struct{ ID, Title string }

type splat struct {
	*verdict.Splat
	Excerpt *excerpt
}

type excerpt struct {
	Number int // of the patch
	File   string
	Table  table
}

type patch struct {
	report.Diff
	Tables []table
	// Never is how many lines never ran, "3 lines", empty for none.
	Never  string
	Guilty bool
}

// openFailures is how many failures show their system calls unasked.
const openFailures = 3

// WriteRun writes the page of a run.
func WriteRun(w io.Writer, run *verdict.Run) error {
	data := runPage{Run: run, Grid: report.MakeGrid(run), Skips: report.FoldSkips(run), About: about(run)}
	class := fault.Class(run.Exit.Code)
	data.Early = class != fault.None && class != fault.Test && len(run.Splats) == 0
	for _, feature := range run.Machine.Features {
		if !feature.Here {
			data.Missing = append(data.Missing, feature)
		}
	}
	for _, row := range data.Grid.Rows {
		if row.Untested {
			data.Untested = append(data.Untested, row)
		}
	}
	for i, folded := range report.Fold(run) {
		data.Failures = append(data.Failures, describe(run, folded, i < openFailures))
	}
	diffs := report.Diffs(run)
	for i := range run.Splats {
		s := splat{Splat: &run.Splats[i]}
		s.Text = clean(s.Text)
		if diff, file, hunk, ok := report.Excerpt(diffs, s.Splat); ok {
			s.Excerpt = &excerpt{Number: diff.Number, File: file, Table: table{Caption: file, Hunks: []report.DiffHunk{hunk}}}
		}
		data.Splats = append(data.Splats, s)
	}
	for _, diff := range diffs {
		data.Diffs = append(data.Diffs, annotate(diff, run.Coverage != nil))
	}
	return write(w, head(run, &data), "run", data)
}

func describe(run *verdict.Run, folded report.Folded, open bool) failure {
	f := failure{Folded: folded, Axes: report.Axes(folded.Cases), Open: open, Repeat: RepeatCase(run, &folded.Cases[0])}
	f.Detail = clean(f.Detail)
	ids := make(map[string]bool)
	for i := range folded.Cases {
		c := &folded.Cases[i]
		ids[c.ID] = true
		if f.Evidence == nil && c.Evidence != nil {
			evidence := *c.Evidence
			f.Evidence = &evidence
		}
		// The program may have been made from another case of the same failure.
		if f.Evidence != nil && c.Evidence != nil && f.Evidence.Reproducer == "" && c.Evidence.Reproducer != "" {
			f.Evidence.Reproducer, f.Evidence.NoReproducer = c.Evidence.Reproducer, ""
		}
	}
	for i := range run.Splats {
		if ids[run.Splats[i].Case] {
			f.Splats = append(f.Splats, link{fmt.Sprintf("splat-%d", i), run.Splats[i].Title})
		}
	}
	return f
}

// RepeatCase is the command that runs the cases of one name again, as a run did.
func RepeatCase(run *verdict.Run, c *verdict.Case) string {
	if run.Command == "" {
		return ""
	}
	words, err := shell.Fields(run.Command, func(string) string { return "" })
	if err != nil {
		return ""
	}
	if at := slices.Index(words, "--suite"); at >= 0 && at+1 < len(words) {
		words[at+1] = c.Name
	} else {
		words = append(words, "--suite", c.Name)
	}
	return shellescape.QuoteCommand(words)
}

func annotate(diff report.Diff, covered bool) patch {
	p := patch{Diff: diff}
	never := 0
	for _, file := range diff.Files {
		p.Tables = append(p.Tables, table{Caption: file.Name, Hunks: file.Hunks, Covered: covered})
		for _, hunk := range file.Hunks {
			for _, line := range hunk.Lines {
				p.Guilty = p.Guilty || line.Guilty
				if line.Executable && line.Count == 0 {
					never++
				}
			}
		}
	}
	if never > 0 {
		p.Never = report.Plural(never, "line")
	}
	return p
}

func head(run *verdict.Run, data *runPage) layout {
	about := "Linux " + run.Kernel.Version
	if name := report.SeriesName(run); name != "" {
		about = name + " on " + about
	}
	page := layout{
		Title: report.Word(run) + ": " + about, Word: report.Word(run), Heading: about, Mood: "bad",
		Started: run.Started, Contract: "run.json", Lead: lead(run),
	}
	if fault.Class(run.Exit.Code) == fault.None {
		page.Mood = "good"
	}
	t := run.Totals
	if len(run.Cases) > 0 {
		page.Numbers = []number{{"passed", "pass", t.Pass}, {"failed", "fail", t.Fail}, {"skipped", "skip", t.Skip}}
		if t.Crash > 0 {
			page.Numbers = append(page.Numbers, number{"crashed", "fail", t.Crash})
		}
		if t.Timeout > 0 {
			page.Numbers = append(page.Numbers, number{"timed out", "fail", t.Timeout})
		}
		if c := run.Coverage; c != nil {
			page.Facts = append(page.Facts, fact{"coverage of the patches", percent(c.Executed, c.Executable)})
		}
	}
	addFact := func(name, value string) {
		if value != "" {
			page.Facts = append(page.Facts, fact{name, value})
		}
	}
	addFact("config", strings.Join(run.Kernel.Config, ", "))
	if run.Series.ABI != "" {
		addFact("interface", fmt.Sprintf("%s, SCM_ZC_NOTIFICATION %d", run.Series.ABI, run.Series.Constant))
	}
	addFact("machine", run.Machine.Accel)
	addFact("took", report.Duration(run.Seconds))

	addSection := func(there bool, id, name string, count int) {
		if there {
			page.Sections = append(page.Sections, section{id, name, count})
		}
	}
	addSection(data.Early && run.Exit.Error != "", "why", "Why", 0)
	addSection(run.Command != "", "repeat", "Repeat", 0)
	addSection(len(run.Series.Findings) > 0, "findings", "Findings", len(run.Series.Findings))
	addSection(len(data.Failures) > 0, "failures", "Failures", len(data.Failures))
	addSection(len(run.Splats) > 0, "splats", "Splats", len(run.Splats))
	addSection(len(data.Grid.Rows) > 0, "checklist", "Checklist", len(data.Grid.Rows))
	addSection(run.Coverage != nil, "coverage", "Coverage", 0)
	addSection(len(data.Diffs) > 0, "patches", "Patches", len(data.Diffs))
	addSection(len(data.Skips) > 0, "skipped", "Skipped", t.Skip)
	addSection(true, "about", "What was tested", 0)
	return page
}

// lead says in a sentence what the verdict rests on.
func lead(run *verdict.Run) string {
	switch fault.Class(run.Exit.Code) {
	case fault.None:
		if len(run.Series.Patches) == 0 {
			return "Every case that must pass does on this kernel, without a series."
		}
		return "Every case that must pass does, and the kernel had nothing to complain about."
	case fault.Test:
		return fmt.Sprintf("%s of %s did not do what a user relies on.", report.Plural(run.Totals.Fail+run.Totals.Timeout, "case"), report.Plural(len(run.Cases), "case"))
	case fault.Crash:
		return run.Exit.Error
	case fault.Apply:
		return "The series does not apply to this kernel, so nothing was run."
	case fault.Build:
		return "The kernel does not build with the series, so nothing was run."
	case fault.Boot:
		return "The kernel was built but did not boot far enough to run a case."
	}
	return "The tool failed: nothing is known about the series."
}

func about(run *verdict.Run) []fact {
	var rows []fact
	add := func(name, value string) {
		if strings.TrimSpace(value) != "" {
			rows = append(rows, fact{name, value})
		}
	}
	joined := func(prefix, value, suffix string) string {
		if value == "" {
			return ""
		}
		return prefix + value + suffix
	}
	add("kernel", run.Kernel.Version+joined(" from ", run.Kernel.Source, ""))
	add("kernel id", run.Kernel.ID)
	add("configuration", strings.Join(run.Kernel.Config, ", "))
	add("compiler", run.Kernel.Compiler)
	if len(run.Series.Patches) > 0 {
		add("series", fmt.Sprintf("%s, %s", report.SeriesName(run), fmt.Sprintf("%d patches", len(run.Series.Patches))))
	} else {
		add("series", "none")
	}
	add("message-id", run.Series.MessageID)
	if run.Machine.Accel != "" {
		add("machine", run.Machine.Accel+joined(" (", run.Machine.AccelReason, ")")+joined(", cpu ", run.Machine.CPU, "")+joined(", QEMU ", run.Machine.QEMU, ""))
		boot := fmt.Sprintf("%d ms, %s", run.Machine.BootMS, report.Plural(run.Machine.Boots, "boot"))
		if run.Machine.Restores > 0 {
			boot += fmt.Sprintf("; %s of %d ms", report.Plural(run.Machine.Restores, "restore"), run.Machine.RestoreMS)
		}
		add("boot", boot)
	}
	add("seed", fmt.Sprint(run.Seed))
	return rows
}
