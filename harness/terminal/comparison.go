// SPDX-License-Identifier: BSD-3-Clause

package terminal

import (
	"fmt"
	"strings"

	"github.com/mattn/go-runewidth"

	"github.com/zcvet/zcvet/harness/compare"
	"github.com/zcvet/zcvet/harness/report"
	"github.com/zcvet/zcvet/harness/verdict"
)

// Limits of what a comparison shows per step and kind of change; compare.md and
// compare.json have everything.
const (
	maxChanges = 12
	maxNames   = 8
)

// Section begins a part of a longer command.
func (ui *UI) Section(format string, args ...any) {
	ui.endStep()
	if ui.options.Quiet {
		return
	}
	ui.mu.Lock()
	defer ui.mu.Unlock()
	ui.line("\n%s", ui.paint(bold, clean(fmt.Sprintf(format, args...))))
}

// endStep ends the open step, if any, without a word.
func (ui *UI) endStep() {
	ui.mu.Lock()
	step := ui.step
	ui.mu.Unlock()
	if step != nil {
		step.end("")
	}
}

// Comparison prints what changed between neighbouring columns: the columns side by
// side, then for each step the cases behind every difference with what they said,
// and last the verdict in one line.
func (ui *UI) Comparison(c *compare.Comparison) {
	ui.endStep()
	ui.mu.Lock()
	defer ui.mu.Unlock()
	ui.columns(c)
	for i := range c.Steps {
		ui.comparisonStep(c, &c.Steps[i])
	}
	ui.line("")
	if effort := report.ComparisonEffort(c); effort != "" && !ui.options.Quiet {
		ui.line("%s", ui.paint(dim, effort))
	}
	style := green
	if c.Exit.Code != 0 {
		style = red
		if c.Command != "" && !ui.options.Quiet {
			ui.line("%s", ui.paint(dim, "repeat:  "+c.Command))
		}
	}
	ui.line("%s  %s  %s", ui.paint(style, report.ComparisonWord(c)), clean(report.ComparisonLine(c)), report.Duration(c.Seconds))
}

// columns prints the table of the columns.
func (ui *UI) columns(c *compare.Comparison) {
	table := report.ColumnTable(c)
	widths := make([]int, len(table[0]))
	for _, row := range table {
		for i, cell := range row {
			widths[i] = max(widths[i], runewidth.StringWidth(clean(cell)))
		}
	}
	ui.line("")
	for i, row := range table {
		var line strings.Builder
		for j, cell := range row {
			line.WriteString(runewidth.FillRight(clean(cell), widths[j]+2))
		}
		style := plain
		if i == 0 {
			style = bold
		}
		ui.line("%s", ui.paint(style, strings.TrimRight(line.String(), " ")))
	}
}

func (ui *UI) comparisonStep(c *compare.Comparison, step *compare.Step) {
	ui.line("\n%s  %s", ui.paint(bold, clean(report.StepName(c, step))), clean(report.StepLine(step)))
	kinds := compare.Kinds
	if step.Same {
		kinds = nil // what still fails was told at the step before
	}
	for _, kind := range kinds {
		folded := step.Fold(kind)
		if kind == compare.New {
			folded = ui.newAndPassing(folded)
		}
		for i, change := range folded {
			if i == maxChanges {
				ui.line("      … and %d more that are %s, all in compare.md", len(folded)-i, kind)
				break
			}
			ui.change(change)
		}
	}
	for _, change := range step.Splats {
		word, style := "NEW SPLAT", red
		if change.Kind == compare.Gone {
			word, style = "GONE SPLAT", green
		}
		ui.line("  %s  %s", ui.paint(style, word), ui.paint(bold, clean(change.Splat.Title)))
		if change.Splat.Case != "" {
			ui.line("      while %s ran", clean(change.Splat.Case))
		}
		if place := report.Place(change.Splat.File, change.Splat.Line); place != "" {
			ui.line("      at %s", clean(place))
		}
		if change.Splat.Patch != "" {
			ui.line("      a line last touched by \"%s\"", clean(change.Splat.Patch))
		}
	}
	for _, change := range step.Findings {
		ui.line("  %s  %s: %s", strings.ToUpper(string(change.Kind))+" FINDING", change.Finding.Kind, clean(change.Finding.Title))
	}
	if len(step.Cost) > 0 {
		ui.line("  COST  instructions for each send")
		for _, line := range report.CostLines(step.Cost, c.Columns[step.Before].Name, c.Columns[step.After].Name) {
			ui.line("%s", strings.TrimRight("      "+line, " "))
		}
	}
}

// newAndPassing takes what is new and passes out of a list and prints it in a few
// lines: that is what a series is for, and it has nothing to say.
func (ui *UI) newAndPassing(folded []compare.Folded) []compare.Folded {
	var failing []compare.Folded
	var names []string
	count := 0
	for _, change := range folded {
		if change.After.Failed() {
			failing = append(failing, change)
			continue
		}
		names = append(names, change.Name)
		count += len(change.Cases)
	}
	if len(names) == 0 {
		return failing
	}
	shown := names
	more := ""
	if len(names) > maxNames && !ui.options.Verbose {
		shown, more = names[:maxNames], fmt.Sprintf(" and %d more", len(names)-maxNames)
	}
	ui.line("  %s  %s, all pass: %s%s", ui.paint(green, "NEW"), plural(count, "case"), clean(strings.Join(shown, ", ")), more)
	return failing
}

func plural(count int, word string) string {
	if count == 1 {
		return "1 " + word
	}
	return fmt.Sprintf("%d %ss", count, word)
}

// change prints one change on all its axes.
func (ui *UI) change(change compare.Folded) {
	style, word := dim, strings.ToUpper(string(change.Kind))
	switch {
	case change.Worse:
		style = red
	case change.Kind == compare.Fixed:
		style = green
	case change.Kind == compare.Unstable:
		style = yellow
	}
	if change.Level == verdict.Should {
		word += " (SHOULD)"
	}
	covers := ""
	if len(change.Covers) > 0 {
		covers = "  [" + strings.Join(change.Covers, " ") + "]"
	}
	ui.line("  %s  %s%s", ui.paint(style, word), ui.paint(bold, change.Name), covers)
	if axes := report.Axes(change.Cases); axes != "" {
		ui.line("      on %s", axes)
	}
	for _, text := range report.ChangeLines(&change.Change) {
		for line := range strings.SplitSeq(text, "\n") {
			ui.line("      %s", strings.TrimRight(clean(line), " "))
		}
	}
}
