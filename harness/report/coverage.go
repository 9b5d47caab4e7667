// SPDX-License-Identifier: BSD-3-Clause

package report

import (
	"fmt"
	"strings"

	"github.com/zcvet/zcvet/harness/verdict"
)

// Unexecuted is what no case executed of one file's lines that one patch added.
type Unexecuted struct {
	Patch, File string
	Lines       []verdict.CoveredLine
}

// FoldCoverage groups the lines that no case executed by patch, in the order of
// the series, and by file.
func FoldCoverage(run *verdict.Run) []Unexecuted {
	if run.Coverage == nil {
		return nil
	}
	var folded []Unexecuted
	for _, patch := range run.Series.Patches {
		for _, line := range run.Coverage.Lines {
			if line.Count > 0 || line.Patch != patch.Subject {
				continue
			}
			if last := len(folded) - 1; last < 0 || folded[last].File != line.File || folded[last].Patch != line.Patch {
				folded = append(folded, Unexecuted{Patch: line.Patch, File: line.File})
			}
			last := &folded[len(folded)-1]
			last.Lines = append(last.Lines, line)
		}
	}
	return folded
}

// CoverageLine says in one line how much of the series was executed.
func CoverageLine(c *verdict.Coverage) string {
	if c.Executable == 0 {
		return "the series added no line that the compiler made code of"
	}
	return fmt.Sprintf("%d of %d executable lines that the series added were executed (%.1f %%)",
		c.Executed, c.Executable, 100*float64(c.Executed)/float64(c.Executable))
}

// maxUnexecuted is how many lines report.md shows.
const maxUnexecuted = 200

func (m markdown) second(run *verdict.Run) {
	line := Second(run)
	if line == "" {
		return
	}
	m.line("### Without SMAP\n\n%s\n", inline(line))
	m.line("| case | with SMAP off | |\n|---|---|---|")
	for i := range run.Cases {
		if c := &run.Cases[i]; c.Second != nil {
			m.line("| %s | %s | %s |", codeOrNothing(c.ID), c.Second.Status, cell(shorten(c.Second.Detail)))
		}
	}
	m.line("")
}

func (m markdown) coverage(run *verdict.Run) {
	if run.Coverage == nil {
		return
	}
	m.line("### Coverage\n\n%s\n", inline(CoverageLine(run.Coverage)))
	for _, missing := range run.Coverage.Missing {
		m.line("> %s\n", inline(missing))
	}
	left := maxUnexecuted
	for _, group := range FoldCoverage(run) {
		if left == 0 {
			m.line("… and more, all in run.json\n")
			break
		}
		lines := group.Lines[:min(left, len(group.Lines))]
		left -= len(lines)
		var text strings.Builder
		for _, line := range lines {
			fmt.Fprintf(&text, "%6d  %s\n", line.Line, line.Text)
		}
		m.line("**%s**, %s: no case executed\n", inline(group.Patch), code(group.File))
		m.block(text.String())
	}
}
