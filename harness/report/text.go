// SPDX-License-Identifier: BSD-3-Clause

package report

import (
	"bufio"
	"fmt"
	"io"
	"strings"

	"github.com/zcvet/zcvet/harness/fault"
	"github.com/zcvet/zcvet/harness/paragraph"
	"github.com/zcvet/zcvet/harness/verdict"
)

// Limits of what a mail says.
const (
	columns      = 72
	mailFailures = 12
	mailSplats   = 5
	mailCalls    = 30
	mailFrames   = 8
)

// WriteText writes the run as a plain-text reply to the series, to be sent by
// mail: header lines, then text of at most 72 columns, but for words that are
// longer. Tester is "Name <address>" of whoever ran it; without one, and unless
// everything passed, there is no Tested-by line.
func WriteText(w io.Writer, run *verdict.Run, tester string) error {
	out := bufio.NewWriter(w)
	m := mail{out}
	m.head(run)
	m.about(run)
	m.result(run)
	m.findings(run)
	m.failures(run)
	m.splats(run)
	if run.Command != "" {
		m.line("To repeat it:\n")
		m.wrap("    ", "      ", cleanText(run.Command))
		m.line("")
	}
	if Spotless(run) && tester != "" {
		m.line("Tested-by: %s", tester)
	}
	return out.Flush()
}

// Spotless tells whether nothing at all was wrong with the series: every case that
// ran passed, SHOULD or not, and nothing was found in the patches.
func Spotless(run *verdict.Run) bool {
	t := run.Totals
	return fault.Class(run.Exit.Code) == fault.None && len(run.Series.Patches) > 0 && t.Pass > 0 &&
		t.Fail+t.Crash+t.Timeout == 0 && len(run.Splats) == 0 && len(run.Series.Findings) == 0
}

type mail struct{ out io.Writer }

func (m mail) line(format string, args ...any) { fmt.Fprintf(m.out, format+"\n", args...) }

// wrap writes text in lines of at most 72 columns.
func (m mail) wrap(first, indent, text string) {
	prefix := first
	for part := range strings.SplitSeq(strings.TrimSpace(text), "\n") {
		for _, line := range paragraph.Lines(part, prefix, indent, columns) {
			m.line("%s", line)
		}
		prefix = indent
	}
}

func (m mail) head(run *verdict.Run) {
	s := &run.Series
	if s.MessageID != "" {
		m.line("In-Reply-To: <%s>", cleanText(s.MessageID))
	}
	if name := SeriesName(run); name != "" {
		m.line("Subject: Re: %s", strings.Join(strings.Fields(cleanText(name)), " "))
	}
	m.line("")
	if len(s.Patches) > 0 {
		for i, patch := range s.Patches {
			m.wrap(fmt.Sprintf("> %d/%d ", i+1, len(s.Patches)), ">     ", cleanText(patch.Subject))
		}
		m.line("")
	}
}

func (m mail) about(run *verdict.Run) {
	row := func(name, value string) {
		if strings.TrimSpace(value) != "" {
			m.wrap(fmt.Sprintf("  %-11s ", name), strings.Repeat(" ", 14), cleanText(value))
		}
	}
	m.line("Tested with zcvet:\n")
	row("series", run.Series.MessageID)
	if run.Series.MessageID == "" {
		row("series", run.Series.Spec)
	}
	row("base", "Linux "+run.Kernel.Version+joined(" (", run.Kernel.Source, ")"))
	row("config", strings.Join(run.Kernel.Config, ", ")+joined("; ", run.Kernel.Compiler))
	if run.Series.ABI != "" {
		row("interface", fmt.Sprintf("%s, SCM_ZC_NOTIFICATION %d", run.Series.ABI, run.Series.Constant))
	}
	row("machine", run.Machine.Accel+joined(", QEMU ", run.Machine.QEMU)+joined(", cpu ", run.Machine.CPU))
	m.line("")
}

func (m mail) result(run *verdict.Run) {
	text := Word(run)
	if len(run.Cases) > 0 {
		text += ": " + Counts(run.Totals)
	}
	m.wrap("", "", text+".")
	if why, is := ended(run); is && why != "" {
		m.line("")
		m.literal(why, 30)
	}
	m.line("")
}

// literal writes text that must not be wrapped, such as the output of a compiler.
func (m mail) literal(text string, limit int) {
	lines := strings.Split(strings.TrimRight(cleanText(text), "\n"), "\n")
	if len(lines) > limit {
		lines = append(lines[:limit], fmt.Sprintf("[%d more lines]", len(lines)-limit))
	}
	for _, line := range lines {
		m.line("%s", strings.TrimRight("    "+strings.ReplaceAll(line, "\t", "        "), " "))
	}
}

func (m mail) findings(run *verdict.Run) {
	for _, finding := range run.Series.Findings {
		text := finding.Title
		if place := Place(finding.File, finding.Line); place != "" {
			text += " (" + place + ")"
		}
		m.wrap("* ", "  ", finding.Kind+": "+cleanText(text))
		if finding.Patch != "" {
			m.wrap("  ", "  ", "in \""+cleanText(finding.Patch)+"\"")
		}
		m.line("")
	}
}

func (m mail) failures(run *verdict.Run) {
	folded := Fold(run)
	shortest := shortestCase(folded)
	for i, failure := range folded {
		if i == mailFailures {
			m.wrap("", "", fmt.Sprintf("… and %s more; the report has them all.", Plural(len(folded)-i, "kind of failure")))
			m.line("")
			break
		}
		text := failure.Name + " " + string(failure.Status)
		if failure.Level == verdict.Should {
			text += " (SHOULD)"
		}
		if len(failure.Covers) > 0 {
			text += " [" + strings.Join(failure.Covers, " ") + "]"
		}
		m.wrap(fmt.Sprintf("%d. ", i+1), "   ", text)
		if axes := Axes(failure.Cases); axes != "" {
			m.wrap("   ", "   ", "on "+axes)
		}
		m.wrap("   ", "   ", shorten(cleanText(failure.Detail)))
		m.line("")
	}
	if shortest == nil {
		return
	}
	m.wrap("", "", fmt.Sprintf("The shortest way to see it, %s:", shortest.ID))
	m.line("")
	calls := shortest.Evidence.Calls
	if cut := len(calls) - mailCalls; cut > 0 {
		m.line("    [%d calls before]", cut)
		calls = calls[cut:]
	}
	for _, call := range calls {
		// Without its time, which says nothing to another reader.
		if fields := strings.SplitN(strings.TrimSpace(call), " ", 2); len(fields) == 2 && strings.Contains(fields[0], ".") {
			call = fields[1]
		}
		m.wrap("    ", "        ", cleanText(call))
	}
	m.line("")
	switch {
	case shortest.Evidence.Reproducer != "":
		m.wrap("", "", "A C program that does this is attached, and says how to compile it: "+shortest.Evidence.Reproducer)
		m.line("")
	case shortest.Evidence.NoReproducer != "":
		m.wrap("", "", "There is no stand-alone program for it: "+shortest.Evidence.NoReproducer)
		m.line("")
	}
}

// shortestCase is the failure that takes the fewest system calls to see, of those
// that have a program if there are any.
func shortestCase(folded []Folded) *verdict.Case {
	var best *verdict.Case
	better := func(c *verdict.Case) bool {
		if best == nil {
			return true
		}
		if has, had := c.Evidence.Reproducer != "", best.Evidence.Reproducer != ""; has != had {
			return has
		}
		return len(c.Evidence.Calls) < len(best.Evidence.Calls)
	}
	for i := range folded {
		for j := range folded[i].Cases {
			c := &folded[i].Cases[j]
			if c.Evidence != nil && len(c.Evidence.Calls) > 0 && better(c) {
				best = c
			}
		}
	}
	return best
}

func (m mail) splats(run *verdict.Run) {
	for i := range run.Splats {
		if i == mailSplats {
			m.line("… and %d more complaints of the kernel.\n", len(run.Splats)-i)
			break
		}
		splat := &run.Splats[i]
		m.wrap("", "", "The kernel: "+cleanText(splatLine(splat)))
		if splat.Case != "" {
			m.wrap("  ", "  ", "while "+splat.Case+" ran")
		}
		if splat.Source != "" {
			m.line("\n    +%s", strings.ReplaceAll(cleanText(splat.Source), "\t", "        "))
		}
		if len(splat.Frames) > 0 {
			m.line("")
			for _, frame := range splat.Frames[:min(len(splat.Frames), mailFrames)] {
				m.line("    %s", strings.TrimSpace(fmt.Sprintf("%-30s %s", frame.Function, Place(frame.File, frame.Line))))
			}
		}
		m.line("")
	}
}
