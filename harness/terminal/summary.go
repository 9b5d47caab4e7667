// SPDX-License-Identifier: BSD-3-Clause

package terminal

import (
	"fmt"
	"strings"

	"github.com/zcvet/zcvet/harness/fault"
	"github.com/zcvet/zcvet/harness/report"
	"github.com/zcvet/zcvet/harness/verdict"
)

// Limits of what the summary shows; the report files have everything.
const (
	maxFailures = 25
	maxSplats   = 10
	maxFrames   = 6
	maxSkips    = 8
	maxLog      = 8
)

// Case tells that a case ended: a failure is printed at once, in one line,
// everything else only when verbose.
func (ui *UI) Case(c verdict.Case) {
	word, style := strings.ToUpper(string(c.Status)), red
	switch c.Status {
	case verdict.Pass:
		style = green
	case verdict.Skip:
		style = dim
	}
	if !report.Failed(&c) && !ui.options.Verbose || ui.options.Quiet {
		return
	}
	detail, _, _ := strings.Cut(strings.TrimSpace(c.Detail), "\n")
	if detail != "" {
		detail = ": " + clean(detail)
	}
	ui.mu.Lock()
	defer ui.mu.Unlock()
	ui.line("%s %s%s", ui.paint(style, fmt.Sprintf("%-*s", nameWidth-1, word)), c.ID, detail)
}

// Summary prints what a person wants to know at the end: failures by reason,
// splats, findings, what was skipped, how to repeat the run, and last the
// verdict in one line.
func (ui *UI) Summary(run *verdict.Run) {
	ui.mu.Lock()
	step := ui.step
	ui.mu.Unlock()
	if step != nil {
		step.end("")
	}
	ui.mu.Lock()
	defer ui.mu.Unlock()
	wrote := ui.failures(run)
	wrote = ui.second(run) || wrote
	wrote = ui.splats(run) || wrote
	wrote = ui.findings(run) || wrote
	if !ui.options.Quiet {
		ui.skips(run)
	}
	failed := fault.Class(run.Exit.Code) != fault.None
	if failed && run.Command != "" && !ui.options.Quiet {
		ui.line("%s", ui.paint(dim, "repeat:  "+run.Command))
		wrote = true
	}
	if wrote {
		ui.line("")
	}
	style := green
	if failed {
		style = red
	}
	ui.line("%s  %s", ui.paint(style, report.Word(run)), report.Line(run))
}

func (ui *UI) failures(run *verdict.Run) bool {
	folded := report.Fold(run)
	for i, failure := range folded {
		if i == maxFailures {
			ui.line("\n… and %d more kinds of failure, all in results.ktap", len(folded)-i)
			break
		}
		style, word := red, strings.ToUpper(string(failure.Status))
		if failure.Level == verdict.Should {
			style, word = yellow, word+" (SHOULD)"
		}
		covers := ""
		if len(failure.Covers) > 0 {
			covers = "  [" + strings.Join(failure.Covers, " ") + "]"
		}
		ui.line("\n%s  %s%s", ui.paint(style, word), ui.paint(bold, failure.Name), covers)
		if axes := report.Axes(failure.Cases); axes != "" {
			ui.line("      on %s", axes)
		}
		ui.text("      ", failure.Detail)
		log := failure.Log
		if cut := len(log) - maxLog; cut > 1 && !ui.options.Verbose {
			ui.line("      | … %d lines before", cut)
			log = log[cut:]
		}
		for _, line := range log {
			ui.text("      | ", line)
		}
	}
	return len(folded) > 0
}

// second tells how the rest of the series did in cases that crashed on touching
// user memory.
func (ui *UI) second(run *verdict.Run) bool {
	line := report.Second(run)
	if line == "" {
		return false
	}
	ui.line("\n%s  %s", ui.paint(bold, "AGAIN"), line)
	for i := range run.Cases {
		c := &run.Cases[i]
		if c.Second == nil || c.Second.Status == verdict.Pass {
			continue
		}
		ui.line("      %s %s", c.Second.Status, c.ID)
		ui.text("      | ", c.Second.Detail)
	}
	return true
}

func (ui *UI) splats(run *verdict.Run) bool {
	for i := range run.Splats {
		if i == maxSplats {
			ui.line("\n… and %d more splats, all in console.log", len(run.Splats)-i)
			break
		}
		splat := &run.Splats[i]
		ui.line("\n%s  %s", ui.paint(red, "SPLAT"), ui.paint(bold, clean(splat.Title)))
		if splat.Case != "" {
			ui.line("      while %s ran%s", splat.Case, report.InLeg(splat.Leg))
		}
		if place := report.Place(splat.File, splat.Line); place != "" {
			ui.line("      at %s", place)
		}
		if splat.Patch != "" {
			ui.line("      a line last touched by \"%s\"", clean(splat.Patch))
		}
		for i, frame := range splat.Frames {
			if i == maxFrames {
				break
			}
			name := frame.Function
			if frame.Inlined {
				name += " (inlined)"
			}
			line := strings.TrimRight(fmt.Sprintf("      | %-32s %s", name, report.Place(frame.File, frame.Line)), " ")
			if frame.Patch != "" {
				line += "  <- " + clean(frame.Patch)
			}
			ui.line("%s", line)
		}
	}
	return len(run.Splats) > 0
}

func (ui *UI) findings(run *verdict.Run) bool {
	for _, finding := range run.Series.Findings {
		style, word := red, "FINDING"
		if finding.Level == verdict.Should {
			style, word = yellow, word+" (SHOULD)"
		}
		ui.line("\n%s  %s: %s", ui.paint(style, word), finding.Kind, ui.paint(bold, clean(finding.Title)))
		if finding.Patch != "" {
			ui.line("      in \"%s\"", clean(finding.Patch))
		}
		if place := report.Place(finding.File, finding.Line); place != "" {
			ui.line("      at %s", place)
		}
		ui.text("      ", finding.Detail)
	}
	return len(run.Series.Findings) > 0
}

func (ui *UI) skips(run *verdict.Run) {
	skips := report.FoldSkips(run)
	if len(skips) > 0 {
		ui.line("\n%s", ui.paint(dim, "skipped:"))
	}
	for i, skip := range skips {
		if i == maxSkips && !ui.options.Verbose {
			ui.line("      … and for %d more reasons", len(skips)-i)
			break
		}
		reason := clean(skip.Reason)
		if reason == "" {
			reason = "no reason given"
		}
		ui.line("%5d  %s", skip.Count, reason)
		if ui.options.Verbose {
			for _, name := range skip.Names {
				ui.line("       - %s", name)
			}
		}
	}
	if len(skips) > 0 {
		ui.line("")
	}
}

// text prints the lines of a text under an indent.
func (ui *UI) text(indent, text string) {
	for line := range strings.SplitSeq(strings.TrimSpace(text), "\n") {
		if line = strings.TrimRight(clean(line), " "); line != "" {
			ui.line("%s%s", indent, line)
		}
	}
}

// clean drops control characters: what comes out of a guest or a mail must not
// drive the terminal.
func clean(text string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\t':
			return ' '
		case r < 0x20 || r >= 0x7f && r < 0xa0:
			return -1
		}
		return r
	}, strings.ToValidUTF8(text, "\uFFFD"))
}
