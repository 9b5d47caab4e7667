// SPDX-License-Identifier: BSD-3-Clause

package page

import (
	"fmt"
	"html/template"
	"io"

	"github.com/zcvet/zcvet/harness/check"
	"github.com/zcvet/zcvet/harness/fault"
	"github.com/zcvet/zcvet/harness/report"
)

type checkPage struct {
	Report *check.Report
	// Table is [report.CheckTable].
	Head []string
	Rows [][]string
}

// WriteCheck writes the page of the checks of a series; logs are one link away.
func WriteCheck(w io.Writer, r *check.Report) error {
	table := report.CheckTable(r)
	page := layout{
		Title: "zcvet: checks of " + r.Series.Name, Word: report.CheckWord(r), Mood: "bad",
		Heading: r.Series.Name + " on Linux " + r.Kernel.Version, Lead: r.Exit.Error, Started: r.Started, Contract: check.File,
		Numbers: []number{
			{"passed", "pass", r.Totals.Pass}, {"warned", "warn", r.Totals.Warn}, {"failed", "fail", r.Totals.Fail}, {"skipped", "", r.Totals.Skip},
		},
		Facts:    []fact{{"patches", fmt.Sprint(len(r.Patches))}, {"took", report.Duration(r.Seconds)}},
		Sections: []section{{"overview", "Overview", 0}, {"series", "The series", 0}, {"patches", "Patch by patch", len(r.Patches)}},
	}
	if r.Command != "" {
		page.Sections = append(page.Sections, section{"repeat", "Repeat", 0})
	}
	if fault.Class(r.Exit.Code) == fault.None {
		page.Mood = "good"
	}
	return write(w, page, "check", checkPage{r, table[0][1:], table[1:]})
}

// checkClass is the colour of a check's status.
func checkClass(status check.Status) string {
	switch status {
	case check.Pass, check.Fail, check.Skip, check.Warn:
		return string(status)
	}
	return ""
}

// checkSign shows a cell of [report.CheckTable]; a screen reader says what the sign
// means.
func checkSign(cell string) template.HTML {
	sign := map[string]string{".": "✓", "fail": "✗", "warn": "!", "skip": "○"}[cell]
	if sign == "" {
		return template.HTML(template.HTMLEscapeString(cell))
	}
	if cell == "." {
		cell = "pass"
	}
	return template.HTML(fmt.Sprintf(`<span aria-hidden="true">%s</span><span class="hidden">%s</span>`, sign, cell))
}

// checkRule is what a check demands.
func checkRule(name string) string {
	c, _ := check.Find(name)
	return c.Rule
}
