// SPDX-License-Identifier: BSD-3-Clause

package report

import (
	"bufio"
	"fmt"
	"io"
	"strings"

	"github.com/zcvet/zcvet/harness/compare"
	"github.com/zcvet/zcvet/harness/fault"
	"github.com/zcvet/zcvet/harness/verdict"
)

// ComparisonWord is the outcome of a comparison in a word or two.
func ComparisonWord(c *compare.Comparison) string {
	switch fault.Class(c.Exit.Code) {
	case fault.None:
		return "NOTHING WORSE"
	case fault.Test:
		return "WORSE"
	}
	return "INCOMPLETE"
}

// ComparisonLine is the outcome in one line, without the word in front.
func ComparisonLine(c *compare.Comparison) string {
	if c.Exit.Error != "" {
		return firstLine(c.Exit.Error)
	}
	var names []string
	for _, column := range c.Columns {
		names = append(names, column.Name)
	}
	return strings.Join(names, ", ") + " on " + c.Kernel
}

// ComparisonEffort says what a comparison took: what was compiled, and how long it
// went on after the first column, which may have had to build a whole kernel. It is
// empty for one of stored runs.
func ComparisonEffort(c *compare.Comparison) string {
	if len(c.Columns) < 2 || c.Columns[0].PrepareSeconds == 0 {
		return ""
	}
	first, more := c.Columns[0], 0
	for _, column := range c.Columns[1:] {
		more += column.Kernel.Objects
	}
	return fmt.Sprintf("%s compiled for the first column and %d for the others; %s after the first column, %s in all",
		Plural(first.Kernel.Objects, "object"), more, Duration(c.Seconds-first.PrepareSeconds-first.RunSeconds), Duration(c.Seconds))
}

// StepName is the head of a step, "base → lore:v7".
func StepName(c *compare.Comparison, step *compare.Step) string {
	after := c.Columns[step.After].Name
	if step.Before < 0 {
		return after
	}
	return c.Columns[step.Before].Name + " → " + after
}

// StepLine says in one line what changed: "2 broken, 1 fixed: worse".
func StepLine(step *compare.Step) string {
	if step.Missing != "" {
		return "not compared: " + firstLine(step.Missing)
	}
	if step.Same && len(step.Findings) == 0 {
		return "the same binary"
	}
	var parts []string
	add := func(count int, what string) {
		if count > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", count, what))
		}
	}
	counts := &step.Counts
	add(counts.Broken, "broken")
	add(counts.Fixed, "fixed")
	add(counts.StillFailing, "still failing")
	add(counts.New-counts.NewFailing, "new")
	add(counts.NewFailing, "new and failing")
	add(counts.Gone, "gone")
	add(counts.Unstable, "unstable")
	for _, kind := range []compare.Kind{compare.New, compare.Gone} {
		splats, findings := 0, 0
		for _, change := range step.Splats {
			if change.Kind == kind {
				splats++
			}
		}
		for _, change := range step.Findings {
			if change.Kind == kind {
				findings++
			}
		}
		if splats > 0 {
			parts = append(parts, Plural(splats, string(kind)+" splat"))
		}
		if findings > 0 {
			parts = append(parts, Plural(findings, string(kind)+" finding"))
		}
	}
	if len(parts) == 0 {
		return "no difference"
	}
	if step.Worse {
		return strings.Join(parts, ", ") + ": worse"
	}
	return strings.Join(parts, ", ") + ": nothing worse"
}

// ChangeLines says how a case ended in both columns, a line or more for each, with
// the second result where it was another one.
func ChangeLines(change *compare.Change) []string {
	before, after := resultLines("before", change.Before), resultLines("after", change.After)
	if both := resultLines("both", change.After); alike(resultLines("both", change.Before), both) {
		return both
	}
	return append(before, after...)
}

// alike tells whether lines say the same, numbers aside.
func alike(a, b []string) bool {
	mask := func(lines []string) string { return numbers.ReplaceAllString(strings.Join(lines, "\n"), "#") }
	return mask(a) == mask(b)
}

func resultLines(when string, result *compare.Result) []string {
	if result == nil {
		return []string{fmt.Sprintf("%-7s not there", when+":")}
	}
	status := string(result.Status)
	if result.Again != nil && result.Again.Status == result.Status {
		status += " twice"
	}
	lines := []string{resultLine(when, status, result.Detail)}
	if result.Again != nil && result.Again.Status != result.Status {
		lines = append(lines, resultLine("again", string(result.Again.Status), result.Again.Detail))
	}
	return lines
}

func resultLine(when, status, detail string) string {
	text := fmt.Sprintf("%-7s %s", when+":", status)
	if detail = shorten(strings.TrimSpace(detail)); detail != "" {
		text += ": " + strings.ReplaceAll(detail, "\n", "\n        ")
	}
	return text
}

// ColumnTable puts the columns of a comparison side by side; the first row is the
// head, and the first cell of each row says what it is about.
func ColumnTable(c *compare.Comparison) [][]string {
	head := []string{""}
	for _, column := range c.Columns {
		head = append(head, column.Name)
	}
	table := [][]string{head}
	add := func(name string, cell func(*compare.Column) string) {
		row, empty := []string{name}, true
		for i := range c.Columns {
			text := cell(&c.Columns[i])
			empty = empty && text == ""
			row = append(row, text)
		}
		if !empty {
			table = append(table, row)
		}
	}
	count := func(of func(*verdict.Totals) int) func(*compare.Column) string {
		return func(column *compare.Column) string {
			if !column.Compared {
				return ""
			}
			return fmt.Sprint(of(&column.Totals))
		}
	}
	// A row of noughts only takes room.
	rare := func(of func(*verdict.Totals) int) func(*compare.Column) string {
		any := false
		for i := range c.Columns {
			any = any || of(&c.Columns[i].Totals) > 0
		}
		if !any {
			return func(*compare.Column) string { return "" }
		}
		return count(of)
	}
	add("verdict", func(column *compare.Column) string {
		if column.Compared && fault.Class(column.Exit.Code) == fault.Infrastructure {
			return "all skipped"
		}
		return Word(&verdict.Run{Exit: column.Exit})
	})
	add("passed", count(func(t *verdict.Totals) int { return t.Pass }))
	add("failed", count(func(t *verdict.Totals) int { return t.Fail }))
	add("crashed", rare(func(t *verdict.Totals) int { return t.Crash }))
	add("timed out", rare(func(t *verdict.Totals) int { return t.Timeout }))
	add("skipped", count(func(t *verdict.Totals) int { return t.Skip }))
	splats := 0
	for _, column := range c.Columns {
		splats += column.Splats
	}
	add("splats", func(column *compare.Column) string {
		if splats == 0 || !column.Compared {
			return ""
		}
		return fmt.Sprint(column.Splats)
	})
	add("ran again", func(column *compare.Column) string {
		if column.Repeated == 0 {
			return ""
		}
		return fmt.Sprint(column.Repeated)
	})
	add("ABI", func(column *compare.Column) string { return column.Series.ABI })
	add("compiled", func(column *compare.Column) string {
		switch {
		case column.Kernel.ID == "":
			return ""
		case column.Kernel.Cached:
			return "cached"
		case column.CacheHits > 0:
			return fmt.Sprintf("%d objects, %d not in ccache", column.Kernel.Objects, column.CacheMisses)
		}
		return fmt.Sprintf("%d objects", column.Kernel.Objects)
	})
	add("built in", func(column *compare.Column) string {
		if column.PrepareSeconds == 0 {
			return "" // a stored run, which does not say
		}
		return Duration(column.PrepareSeconds)
	})
	add("cases in", func(column *compare.Column) string {
		switch {
		case column.SameAs != "":
			return "same as " + column.SameAs
		case !column.Compared:
			return ""
		}
		return Duration(column.RunSeconds)
	})
	return table
}

// WriteComparison writes a comparison as Markdown for people.
func WriteComparison(w io.Writer, c *compare.Comparison) error {
	out := bufio.NewWriter(w)
	m := markdown{out}
	mark := "❌"
	if c.Exit.Code == 0 {
		mark = "✅"
	}
	m.line("## %s %s\n", mark, ComparisonWord(c))
	m.line("%s\n", inline(ComparisonLine(c)))
	for i, row := range ColumnTable(c) {
		cells := make([]string, len(row))
		for j, text := range row {
			cells[j] = cell(text)
		}
		m.line("| %s |", strings.Join(cells, " | "))
		if i == 0 {
			m.line("|---%s|", strings.Repeat("|---", len(row)-1))
		}
	}
	m.line("")
	if effort := ComparisonEffort(c); effort != "" {
		m.line("%s\n", effort)
	}
	for i := range c.Steps {
		m.comparisonStep(c, &c.Steps[i])
	}
	if c.Command != "" {
		m.line("### Repeat this comparison\n")
		m.block(c.Command)
	}
	return out.Flush()
}

func (m markdown) comparisonStep(c *compare.Comparison, step *compare.Step) {
	m.line("### %s\n", inline(StepName(c, step)))
	m.line("%s\n", inline(StepLine(step)))
	for _, reason := range step.Reasons {
		m.line("- %s", inline(reason))
	}
	if len(step.Reasons) > 0 {
		m.line("")
	}
	for _, kind := range compare.Kinds {
		folded := step.Fold(kind)
		for i, change := range folded {
			if i == maxFailures {
				m.line("… and %d more that are %s; see compare.json\n", len(folded)-i, kind)
				break
			}
			m.change(change)
		}
	}
	for _, change := range step.Splats {
		m.line("#### Splat %s: %s\n", change.Kind, inline(change.Splat.Title))
		m.line("%s\n", inline(splatLine(&change.Splat)))
	}
	for _, change := range step.Findings {
		m.line("#### Finding %s: %s\n", change.Kind, inline(change.Finding.Title))
	}
	if len(step.Cost) > 0 {
		m.line("#### Instructions for each send\n")
		m.block(strings.Join(CostLines(step.Cost, c.Columns[step.Before].Name, c.Columns[step.After].Name), "\n"))
	}
}

func (m markdown) change(change compare.Folded) {
	level := ""
	if change.Level == verdict.Should {
		level = " (SHOULD)"
	}
	// New cases that pass have nothing to say, and there are many.
	if change.Kind == compare.New && !change.After.Failed() {
		m.line("- %s and passes: %s%s%s", change.Kind, code(change.Name), level, joined(" on ", inline(Axes(change.Cases))))
		return
	}
	m.line("\n#### %s: %s%s\n", change.Kind, code(change.Name), level)
	if axes := Axes(change.Cases); axes != "" {
		m.line("on %s\n", inline(axes))
	}
	if len(change.Covers) > 0 {
		m.line("checklist: %s\n", inline(strings.Join(change.Covers, " ")))
	}
	m.block(strings.Join(ChangeLines(&change.Change), "\n"))
}
