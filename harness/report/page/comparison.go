// SPDX-License-Identifier: BSD-3-Clause

package page

import (
	"fmt"
	"io"

	"github.com/zcvet/zcvet/harness/check"
	"github.com/zcvet/zcvet/harness/compare"
	"github.com/zcvet/zcvet/harness/fault"
	"github.com/zcvet/zcvet/harness/report"
	"github.com/zcvet/zcvet/harness/verdict"
)

// cell is one cell of a table with a column for each kernel.
type cell struct{ Text, Class, Link, Detail string }

type row struct {
	Name, ID string
	Cells    []cell
}

type step struct {
	compare.Step
	Title, Summary string
}

type comparisonPage struct {
	Command string
	Columns []compare.Column
	Rows    []row
	Cases   []row
	Steps   []step
}

// WriteComparison writes the page of a comparison, its columns side by side.
func WriteComparison(w io.Writer, c *compare.Comparison) error {
	data := comparisonPage{Command: c.Command, Columns: c.Columns, Rows: columnRows(c), Cases: caseRows(c)}
	worse := 0
	for _, s := range c.Steps {
		title := "up to " + c.Columns[s.After].Name
		if s.Before >= 0 {
			title = c.Columns[s.Before].Name + " → " + c.Columns[s.After].Name
		}
		if s.Worse {
			worse++
		}
		n := s.Counts
		data.Steps = append(data.Steps, step{Step: s, Title: title, Summary: fmt.Sprintf(
			"%d broken, %d fixed, %d still failing, %d new, %d gone, %d unstable, %d the same",
			n.Broken, n.Fixed, n.StillFailing, n.New, n.Gone, n.Unstable, n.Same)})
	}
	page := layout{
		Title: "zcvet: comparison on Linux " + c.Kernel, Word: "NOT WORSE", Mood: "good",
		Heading: fmt.Sprintf("%d kernels compared on Linux %s", len(c.Columns), c.Kernel),
		Started: c.Started, Contract: compare.File,
		Facts: []fact{{"cases", c.Suite}, {"seed", fmt.Sprint(c.Seed)}, {"took", report.Duration(c.Seconds)}},
		Lead:  c.Exit.Error,
	}
	if fault.Class(c.Exit.Code) != fault.None {
		page.Mood, page.Word = "bad", report.Word(&verdict.Run{Exit: c.Exit})
		if worse > 0 {
			page.Word = "WORSE"
		}
	}
	if c.Command != "" {
		page.Sections = append(page.Sections, section{"repeat", "Repeat", 0})
	}
	page.Sections = append(page.Sections, section{"columns", "Side by side", len(c.Columns)})
	if len(data.Cases) > 0 {
		page.Sections = append(page.Sections, section{"cases", "Cases", len(data.Cases)})
	}
	page.Sections = append(page.Sections, section{"steps", "From column to column", len(c.Steps)})
	return write(w, page, "comparison", data)
}

func columnRows(c *compare.Comparison) []row {
	var rows []row
	add := func(name string, value func(*compare.Column) cell) {
		r := row{Name: name}
		empty := true
		for i := range c.Columns {
			v := value(&c.Columns[i])
			empty = empty && v.Text == ""
			r.Cells = append(r.Cells, v)
		}
		if !empty {
			rows = append(rows, r)
		}
	}
	text := func(value func(*compare.Column) string) func(*compare.Column) cell {
		return func(column *compare.Column) cell { return cell{Text: value(column)} }
	}
	add("verdict", func(column *compare.Column) cell {
		v := cell{Text: report.Word(&verdict.Run{Exit: column.Exit}), Class: "fail"}
		if fault.Class(column.Exit.Code) == fault.None {
			v.Class = "pass"
		}
		if column.Directory != "" {
			v.Link = column.Directory + "/report.html"
		}
		return v
	})
	add("cases", text(func(column *compare.Column) string {
		if !column.Compared {
			return ""
		}
		return report.Counts(column.Totals)
	}))
	add("complaints", text(func(column *compare.Column) string { return fmt.Sprint(column.Splats) }))
	add("series", text(func(column *compare.Column) string { return column.Series.Name }))
	add("interface", text(func(column *compare.Column) string { return column.Series.ABI }))
	add("kernel", text(func(column *compare.Column) string { return column.Kernel.Version }))
	add("same binary as", text(func(column *compare.Column) string { return column.SameAs }))
	add("trouble", text(func(column *compare.Column) string {
		if column.Compared {
			return ""
		}
		return column.Exit.Error
	}))
	return rows
}

// caseRows has a row for each case that some step changes, with what is known of
// it in every column.
func caseRows(c *compare.Comparison) []row {
	var rows []row
	index := make(map[string]int)
	for _, s := range c.Steps {
		for _, change := range s.Changes {
			at, known := index[change.ID]
			if !known {
				at = len(rows)
				index[change.ID] = at
				rows = append(rows, row{ID: change.ID, Cells: make([]cell, len(c.Columns))})
			}
			set := func(column int, r *compare.Result) {
				if r == nil || column < 0 {
					return
				}
				rows[at].Cells[column] = cell{Text: string(r.Status), Class: string(r.Status), Detail: clean(r.Detail)}
				if r.Again != nil && r.Again.Status != r.Status {
					rows[at].Cells[column].Text += ", then " + string(r.Again.Status)
				}
			}
			set(s.Before, change.Before)
			set(s.After, change.After)
		}
	}
	return rows
}

// WriteCheck writes the page of the checks of a series; logs are one link away.
func WriteCheck(w io.Writer, r *check.Report) error {
	page := layout{
		Title: "zcvet: checks of " + r.Series.Name, Word: report.Word(&verdict.Run{Exit: r.Exit}), Mood: "bad",
		Heading: r.Series.Name + " on Linux " + r.Kernel.Version, Lead: r.Exit.Error, Started: r.Started, Contract: check.File,
		Facts:    []fact{{"patches", fmt.Sprint(len(r.Patches))}, {"took", report.Duration(r.Seconds)}},
		Sections: []section{{"series", "The series", len(r.Whole)}, {"patches", "Patch by patch", len(r.Patches)}},
	}
	if fault.Class(r.Exit.Code) == fault.None {
		page.Mood = "good"
	}
	return write(w, page, "check", struct{ Report *check.Report }{r})
}

// checkClass is the colour of a check's status.
func checkClass(status check.Status) string {
	switch status {
	case "pass", "fail", "skip":
		return string(status)
	case "warn":
		return "warn"
	}
	return ""
}
