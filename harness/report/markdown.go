// SPDX-License-Identifier: BSD-3-Clause

package report

import (
	"bufio"
	"fmt"
	"io"
	"strings"

	"github.com/zcvet/zcvet/harness/fault"
	"github.com/zcvet/zcvet/harness/verdict"
)

// Limits that keep report.md below the size GitHub takes for a job summary
// (1 MiB) however badly a run went.
const (
	maxFailures  = 60
	maxSplats    = 20
	maxTextLines = 80
	maxLogLines  = 40
	maxDetail    = 2000 // bytes
)

// WriteMarkdown writes the run for people: the verdict, what was tested, what
// the series itself is suspected of, what failed and why, which checklist ids
// ran where, what was skipped, and how to repeat it all.
func WriteMarkdown(w io.Writer, run *verdict.Run) error {
	out := bufio.NewWriter(w)
	m := markdown{out}
	m.head(run)
	m.findings(run)
	m.about(run)
	m.failures(run)
	m.second(run)
	m.splats(run)
	m.coverage(run)
	m.grid(run)
	m.skips(run)
	if run.Command != "" {
		m.line("### Repeat this run\n")
		m.block(run.Command)
	}
	return out.Flush()
}

type markdown struct{ out io.Writer }

func (m markdown) line(format string, args ...any) { fmt.Fprintf(m.out, format+"\n", args...) }

// block writes text that must not be interpreted, in a fence longer than any in
// the text.
func (m markdown) block(text string) {
	fence := "```"
	for strings.Contains(text, fence) {
		fence += "`"
	}
	m.line("%stext\n%s\n%s\n", fence, strings.TrimRight(cleanText(text), "\n"), fence)
}

func (m markdown) head(run *verdict.Run) {
	mark := "❌"
	if fault.Class(run.Exit.Code) == fault.None {
		mark = "✅"
	}
	about := "Linux " + run.Kernel.Version
	if name := SeriesName(run); name != "" {
		about = name + " on " + about
	}
	m.line("## %s %s: %s\n", mark, Word(run), inline(about))
	if len(run.Cases) > 0 {
		m.line("**%s** in %s\n", Counts(run.Totals), Duration(run.Seconds))
	}
	if run.Exit.Error != "" && Word(run) != "FAIL" {
		m.block(run.Exit.Error)
	}
}

func (m markdown) findings(run *verdict.Run) {
	for _, finding := range run.Series.Findings {
		m.line("> [!WARNING]")
		m.line("> **%s**: %s", inline(finding.Kind), inline(finding.Title))
		if finding.Patch != "" {
			m.line("> Patch: %s", inline(finding.Patch))
		}
		if place := Place(finding.File, finding.Line); place != "" {
			m.line("> %s", code(place))
		}
		if finding.Detail != "" {
			for line := range strings.SplitSeq(strings.TrimSpace(finding.Detail), "\n") {
				m.line("> %s", inline(line))
			}
		}
		m.line("")
	}
}

func (m markdown) about(run *verdict.Run) {
	m.line("| | |\n|---|---|")
	row := func(name, value string) {
		if strings.TrimSpace(value) != "" {
			m.line("| %s | %s |", name, value)
		}
	}
	row("kernel", cell(run.Kernel.Version+joined(" from ", run.Kernel.Source)))
	row("kernel id", codeOrNothing(run.Kernel.ID))
	row("config", cell(strings.Join(run.Kernel.Config, ", ")))
	switch {
	case run.Kernel.Cached:
		row("build", "cached"+cell(joined(", ", run.Kernel.Compiler)))
	case run.Kernel.BuildSeconds > 0:
		row("build", cell(fmt.Sprintf("%s, %d objects%s", Duration(run.Kernel.BuildSeconds), run.Kernel.Objects, joined(", ", run.Kernel.Compiler))))
	}
	s := &run.Series
	switch {
	case len(s.Patches) > 0:
		row("series", cell(fmt.Sprintf("%s, %d patches", SeriesName(run), len(s.Patches))))
	case run.Kernel.Version != "":
		row("series", "none")
	}
	row("message-id", codeOrNothing(s.MessageID))
	if s.ABI != "" {
		row("interface", cell(fmt.Sprintf("%s, SCM_ZC_NOTIFICATION = %d", s.ABI, s.Constant)))
	}
	machine := &run.Machine
	if machine.Accel != "" {
		row("machine", cell(machine.Accel+joined(" (", machine.AccelReason, ")")+joined(", cpu ", machine.CPU)+joined(", QEMU ", machine.QEMU)))
		boot := fmt.Sprintf("%d ms, %d boots", machine.BootMS, machine.Boots)
		if machine.Restores > 0 {
			boot += fmt.Sprintf("; %d restores of %d ms", machine.Restores, machine.RestoreMS)
		}
		row("boot", cell(boot))
	}
	row("seed", fmt.Sprint(run.Seed))
	m.line("")

	if len(s.Patches) == 0 {
		return
	}
	m.line("<details><summary>Patches</summary>\n\n| | patch | applied |\n|---:|---|---|")
	for i, patch := range s.Patches {
		how := "clean"
		switch {
		case patch.Fuzz:
			how = "**with fuzz**"
		case patch.Offset != 0:
			how = fmt.Sprintf("offset %d", patch.Offset)
		}
		m.line("| %d | %s | %s |", i+1, cell(patch.Subject), how)
	}
	m.line("\n</details>\n")
}

func (m markdown) failures(run *verdict.Run) {
	folded := Fold(run)
	if len(folded) == 0 {
		return
	}
	m.line("### Failures\n")
	for i, failure := range folded {
		if i == maxFailures {
			m.line("… and %d more; see results.ktap\n", len(folded)-maxFailures)
			break
		}
		level := ""
		if failure.Level == verdict.Should {
			level = " (SHOULD)"
		}
		m.line("#### %s %s%s\n", code(failure.Name), failure.Status, level)
		if axes := Axes(failure.Cases); axes != "" {
			m.line("on %s\n", inline(axes))
		}
		if len(failure.Covers) > 0 {
			m.line("checklist: %s\n", inline(strings.Join(failure.Covers, " ")))
		}
		m.block(shorten(failure.Detail))
		if len(failure.Log) > 0 {
			m.line("<details><summary>log of %s</summary>\n", html(failure.Cases[0].ID))
			m.block(tail(failure.Log, maxLogLines))
			m.line("</details>\n")
		}
	}
}

func (m markdown) splats(run *verdict.Run) {
	if len(run.Splats) == 0 {
		return
	}
	m.line("### Kernel splats\n")
	for i := range run.Splats {
		if i == maxSplats {
			m.line("… and %d more; see console.log\n", len(run.Splats)-maxSplats)
			break
		}
		splat := &run.Splats[i]
		m.line("#### %s\n", inline(splat.Title))
		if splat.Case != "" {
			m.line("while %s ran%s\n", code(splat.Case), InLeg(splat.Leg))
		}
		if place := Place(splat.File, splat.Line); place != "" {
			line := "at " + code(place)
			if splat.Patch != "" {
				line += ", a line last touched by **" + inline(splat.Patch) + "**"
			}
			m.line("%s\n", line)
		}
		if len(splat.Frames) > 0 {
			m.line("| function | line | patch |\n|---|---|---|")
			for _, frame := range splat.Frames[:min(len(splat.Frames), 12)] {
				name := frame.Function
				if frame.Inlined {
					name += " (inlined)"
				}
				m.line("| %s | %s | %s |", cell(name), cell(Place(frame.File, frame.Line)), cell(frame.Patch))
			}
			m.line("")
		}
		lines := strings.Split(splat.Text, "\n")
		m.line("<details><summary>console</summary>\n")
		m.block(strings.Join(lines[:min(len(lines), maxTextLines)], "\n"))
		m.line("</details>\n")
	}
}

// grid shows which checklist ids ran on which protocol and link, and how that
// ended.
func (m markdown) grid(run *verdict.Run) {
	grid := MakeGrid(run)
	if len(grid.Rows) == 0 {
		return
	}
	m.line("### Checklist\n")
	m.line("✓ passed, ✗ failed, ○ skipped; the number of cases that did.\n")
	row := []string{"id"}
	for _, column := range grid.Columns {
		if column == "" {
			column = "no link"
		}
		row = append(row, cell(column))
	}
	m.line("| %s |", strings.Join(row, " | "))
	m.line("|---%s|", strings.Repeat("|:---:", len(grid.Columns)))
	for _, id := range grid.Rows {
		row := []string{cell(id.ID)}
		for _, cell := range id.Cells {
			row = append(row, tally(cell))
		}
		m.line("| %s |", strings.Join(row, " | "))
	}
	m.line("")
	m.untested(grid)
}

// untested says why ids were not tested at all.
func (m markdown) untested(grid Grid) {
	var rows []GridRow
	for _, row := range grid.Rows {
		if row.Untested {
			rows = append(rows, row)
		}
	}
	if len(rows) == 0 {
		return
	}
	m.line("<details><summary>%s not tested here</summary>\n\n| id | why |\n|---|---|", Plural(len(rows), "id"))
	for _, row := range rows {
		m.line("| %s | %s |", cell(row.ID), cell(strings.Join(row.Reasons(), "; ")))
	}
	m.line("\n</details>\n")
}

// tally is one cell of the grid: failures are never hidden behind passes.
func tally(c GridCell) string {
	var parts []string
	if c.Failed > 0 {
		parts = append(parts, fmt.Sprintf("**✗ %d**", c.Failed))
	}
	if c.Passed > 0 {
		parts = append(parts, fmt.Sprintf("✓ %d", c.Passed))
	}
	if c.Skipped > 0 && len(parts) == 0 {
		parts = append(parts, fmt.Sprintf("○ %d", c.Skipped))
	}
	return strings.Join(parts, " ")
}

func (m markdown) skips(run *verdict.Run) {
	skips := FoldSkips(run)
	if len(skips) == 0 {
		return
	}
	m.line("<details><summary>%d skipped, by reason</summary>\n\n| reason | instances | cases |\n|---|---:|---|", run.Totals.Skip)
	for _, skip := range skips {
		names := skip.Names
		more := ""
		if len(names) > 8 {
			more = fmt.Sprintf(" and %d more", len(names)-8)
			names = names[:8]
		}
		reason := skip.Reason
		if reason == "" {
			reason = "no reason given"
		}
		m.line("| %s | %d | %s%s |", cell(reason), skip.Count, cell(strings.Join(names, ", ")), more)
	}
	m.line("\n</details>\n")
}

// inline escapes text outside of tables and code.
func inline(text string) string {
	text = strings.Join(strings.Fields(cleanText(text)), " ")
	return strings.NewReplacer(
		`\`, `\\`, "`", "\\`", "*", `\*`, "_", `\_`, "[", `\[`, "]", `\]`, "<", "&lt;", ">", "&gt;", "&", "&amp;", "#", `\#`, "~", `\~`, "@", "&#64;",
	).Replace(text)
}

// cell escapes text in a table.
func cell(text string) string { return strings.ReplaceAll(inline(text), "|", `\|`) }

// code is text in an inline code span; a backtick in it would end the span.
func code(text string) string {
	return "`" + strings.ReplaceAll(strings.Join(strings.Fields(cleanText(text)), " "), "`", "'") + "`"
}

func codeOrNothing(text string) string {
	if text == "" {
		return ""
	}
	return strings.ReplaceAll(code(text), "|", `\|`)
}

func html(text string) string {
	return strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;").Replace(text)
}

// joined is prefix, value and suffix, or nothing without a value.
func joined(prefix, value string, suffix ...string) string {
	if value == "" {
		return ""
	}
	return prefix + value + strings.Join(suffix, "")
}

// cleanText drops control characters that a console may have printed.
func cleanText(text string) string {
	return strings.Map(func(r rune) rune {
		if r < 0x20 && r != '\n' && r != '\t' || r == 0x7f {
			return -1
		}
		return r
	}, strings.ToValidUTF8(text, "\uFFFD"))
}

func shorten(text string) string {
	if len(text) <= maxDetail {
		return text
	}
	return strings.ToValidUTF8(text[:maxDetail], "") + " …"
}

func tail(lines []string, count int) string {
	if len(lines) > count {
		lines = append([]string{"…"}, lines[len(lines)-count:]...)
	}
	return strings.Join(lines, "\n")
}
