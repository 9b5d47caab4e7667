// SPDX-License-Identifier: BSD-3-Clause

package report

import (
	"bufio"
	"fmt"
	"io"
	"strings"

	"github.com/zcvet/zcvet/harness/check"
	"github.com/zcvet/zcvet/harness/fault"
	"github.com/zcvet/zcvet/harness/verdict"
)

// CheckWord is the outcome of the checks in a word or two.
func CheckWord(r *check.Report) string {
	switch fault.Class(r.Exit.Code) {
	case fault.None:
		return "PASS"
	case fault.Apply, fault.Build, fault.Boot, fault.Test:
		return Word(&verdict.Run{Exit: r.Exit})
	}
	return "ERROR"
}

// CheckLine is the outcome in one line, without the word in front.
func CheckLine(r *check.Report) string {
	text := fmt.Sprintf("%d passed, %d warned, %d failed, %d skipped", r.Totals.Pass, r.Totals.Warn, r.Totals.Fail, r.Totals.Skip)
	return fmt.Sprintf("%s  kernel %s  series %s  %s", text, r.Kernel.Version, SeriesName(&verdict.Run{Series: r.Series}), Duration(r.Seconds))
}

// CheckTable shows every check of a patch against every patch; the first row is
// the head, and the first cell of each row the name of a check. What passed is a
// dot, so that the rest stands out.
func CheckTable(r *check.Report) [][]string {
	head := []string{"patch"}
	for _, patch := range r.Patches {
		head = append(head, fmt.Sprint(patch.Number))
	}
	table := [][]string{head}
	for _, c := range check.Catalogue {
		row, made := []string{c.Name}, false
		for _, patch := range r.Patches {
			cell := ""
			for _, result := range patch.Results {
				if result.Name != c.Name {
					continue
				}
				made = true
				if cell = string(result.Status); result.Status == check.Pass {
					cell = "."
				}
			}
			row = append(row, cell)
		}
		if made {
			table = append(table, row)
		}
	}
	return table
}

// WriteChecks writes the results of the checks as Markdown for people.
func WriteChecks(w io.Writer, r *check.Report) error {
	out := bufio.NewWriter(w)
	m := markdown{out}
	mark := "❌"
	if r.Exit.Code == 0 {
		mark = "✅"
	}
	m.line("## %s %s: checks of %s\n", mark, CheckWord(r), inline(r.Series.Name))
	m.line("%s\n", inline(CheckLine(r)))
	if r.Exit.Error != "" {
		m.block(r.Exit.Error)
	}
	for i, row := range CheckTable(r) {
		m.line("| %s |", strings.Join(row, " | "))
		if i == 0 {
			m.line("|---%s|", strings.Repeat("|:-:", max(len(row)-1, 1)))
		}
	}
	m.line("")
	m.results("The series", r.Whole)
	for _, patch := range r.Patches {
		m.results(fmt.Sprintf("%d/%d %s", patch.Number, len(r.Patches), patch.Subject), patch.Results)
	}
	if r.Command != "" {
		m.line("### Repeat these checks\n")
		m.block(r.Command)
	}
	return out.Flush()
}

// results lists what did not pass of one patch.
func (m markdown) results(about string, results []check.Result) {
	head := false
	for i := range results {
		result := &results[i]
		if result.Status == check.Pass {
			continue
		}
		if !head {
			m.line("### %s\n", inline(about))
			head = true
		}
		rule := ""
		if c, ok := check.Find(result.Name); ok && result.Status == check.Fail {
			rule = "; the rule: " + c.Rule
		}
		m.line("- **%s** %s: %s%s", result.Status, result.Name, inline(result.Summary+rule), joined(" [log](", result.Log, ")"))
		for j, message := range result.Messages {
			if j == maxFailures {
				m.line("  - … and %d more", len(result.Messages)-j)
				break
			}
			m.line("  - %s", inline(strings.TrimPrefix(Place(message.File, message.Line)+": "+message.Text, ": ")))
		}
	}
	if head {
		m.line("")
	}
}
