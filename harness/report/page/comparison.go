// SPDX-License-Identifier: BSD-3-Clause

package page

import (
	"fmt"
	"io"
	"path"
	"slices"

	"github.com/zcvet/zcvet/harness/compare"
	"github.com/zcvet/zcvet/harness/fault"
	"github.com/zcvet/zcvet/harness/report"
	"github.com/zcvet/zcvet/harness/verdict"
)

// cell is one cell of a table with a column for each kernel.
type cell struct{ Text, Class, Link, Detail string }

type row struct {
	Name, Axes string
	Cells      []cell
	// Bad is true when some column has a failure there.
	Bad bool
}

type step struct {
	compare.Step
	Title, Line string
	Changes     []change
	// Added are the names of the new cases that pass, which have nothing to say.
	Added      []string
	AddedCount int
	Cost       []string
}

type change struct {
	compare.Folded
	Axes  string
	Lines []string
}

type caseTable struct {
	Label   string
	Columns []compare.Column
	Rows    []row
}

type comparisonPage struct {
	Command string
	Columns []compare.Column
	Rows    []row
	Steps   []step
	// Failing are the cases that some column fails, Rest the others that differ.
	Failing, Rest []row
}

// WriteComparison writes the page of a comparison, its columns side by side.
func WriteComparison(w io.Writer, c *compare.Comparison) error {
	data := comparisonPage{Command: c.Command, Columns: c.Columns, Rows: columnRows(c)}
	for _, row := range caseRows(c) {
		if row.Bad {
			data.Failing = append(data.Failing, row)
		} else {
			data.Rest = append(data.Rest, row)
		}
	}
	for i := range c.Steps {
		data.Steps = append(data.Steps, aboutStep(c, &c.Steps[i]))
	}
	page := layout{
		Title: "zcvet: comparison on Linux " + c.Kernel, Word: report.ComparisonWord(c), Mood: "good",
		Heading: fmt.Sprintf("%d kernels compared on Linux %s", len(c.Columns), c.Kernel), Lead: c.Exit.Error,
		Started: c.Started, Contract: compare.File,
		Facts:    []fact{{"cases", c.Suite}, {"seed", fmt.Sprint(c.Seed)}, {"took", report.Duration(c.Seconds)}},
		Sections: []section{{"steps", "What changed", 0}, {"columns", "Side by side", 0}},
	}
	if fault.Class(c.Exit.Code) != fault.None {
		page.Mood = "bad"
	}
	if effort := report.ComparisonEffort(c); effort != "" {
		page.Facts = append(page.Facts, fact{"effort", effort})
	}
	if count := len(data.Failing) + len(data.Rest); count > 0 {
		page.Sections = append(page.Sections, section{"cases", "Cases", count})
	}
	if c.Command != "" {
		page.Sections = append(page.Sections, section{"repeat", "Repeat", 0})
	}
	return write(w, page, "comparison", data)
}

func aboutStep(c *compare.Comparison, s *compare.Step) step {
	out := step{Step: *s, Title: report.StepName(c, s), Line: report.StepLine(s)}
	if s.Same {
		return out // what still fails was told at the step before
	}
	for _, kind := range compare.Kinds {
		for _, folded := range s.Fold(kind) {
			if kind == compare.New && !folded.After.Failed() {
				out.AddedCount += len(folded.Cases)
				if !slices.Contains(out.Added, folded.Name) {
					out.Added = append(out.Added, folded.Name)
				}
				continue
			}
			out.Changes = append(out.Changes, change{Folded: folded, Axes: report.Axes(folded.Cases), Lines: report.ChangeLines(&folded.Change)})
		}
	}
	if len(s.Cost) > 0 {
		out.Cost = report.CostLines(s.Cost, c.Columns[s.Before].Name, c.Columns[s.After].Name)
	}
	return out
}

// columnRows is the table of the terminal, with what only a page has room for.
func columnRows(c *compare.Comparison) []row {
	var rows []row
	for _, line := range report.ColumnTable(c)[1:] {
		r := row{Name: line[0]}
		for _, text := range line[1:] {
			r.Cells = append(r.Cells, cell{Text: text})
		}
		rows = append(rows, r)
	}
	for i := range c.Columns {
		column := &c.Columns[i]
		// The first row is the verdict.
		v := &rows[0].Cells[i]
		v.Class = "fail"
		if fault.Class(column.Exit.Code) == fault.None || column.Compared && fault.Class(column.Exit.Code) == fault.Infrastructure {
			v.Class = "pass"
		}
		if column.Directory != "" {
			v.Link = column.Directory + "/report.html"
			if !path.IsAbs(v.Link) {
				v.Link = "./" + v.Link // a colon in it makes no scheme
			}
		}
	}
	add := func(name string, value func(*compare.Column) string) {
		r, empty := row{Name: name}, true
		for i := range c.Columns {
			text := value(&c.Columns[i])
			empty = empty && text == ""
			r.Cells = append(r.Cells, cell{Text: text})
		}
		if !empty {
			rows = append(rows, r)
		}
	}
	add("trouble", (*compare.Column).Trouble)
	add("series", func(column *compare.Column) string { return column.Series.Name })
	add("kernel", func(column *compare.Column) string { return column.Kernel.Version })
	return rows
}

// caseRows has a row for the cases that some step changes, with what is known of
// them in every column: cases of one name that ended alike are one row.
func caseRows(c *compare.Comparison) []row {
	type known struct {
		about verdict.Case
		cells []cell
	}
	var all []*known
	index := make(map[string]*known)
	for i := range c.Steps {
		for _, change := range c.Steps[i].Changes {
			k := index[change.ID]
			if k == nil {
				k = &known{
					about: verdict.Case{Name: change.Name, Proto: change.Proto, Family: change.Family, Link: change.Link},
					cells: make([]cell, len(c.Columns)),
				}
				index[change.ID] = k
				all = append(all, k)
			}
			k.cells[c.Steps[i].Before] = resultCell(change.Before)
			k.cells[c.Steps[i].After] = resultCell(change.After)
		}
	}
	var rows []row
	var cases [][]verdict.Case
	at := make(map[string]int)
	for _, k := range all {
		spread(c, k.cells)
		key := k.about.Name
		for _, cell := range k.cells {
			key += "\x00" + cell.Text
		}
		i, found := at[key]
		if !found {
			i = len(rows)
			at[key] = i
			rows = append(rows, row{Name: k.about.Name, Cells: k.cells, Bad: slices.ContainsFunc(k.cells, func(c cell) bool { return c.bad() })})
			cases = append(cases, nil)
		}
		cases[i] = append(cases[i], k.about)
	}
	for i := range rows {
		rows[i].Axes = report.Axes(cases[i])
	}
	return rows
}

// resultCell is the result of a case in one column.
func resultCell(r *compare.Result) cell {
	if r == nil {
		return cell{Text: "not there"}
	}
	out := cell{Text: string(r.Status), Class: string(r.Status), Detail: clean(r.Detail)}
	if r.Again != nil && r.Again.Status != r.Status {
		out.Text += ", then " + string(r.Again.Status)
	}
	return out
}

func (c cell) bad() bool { return c.Class == "fail" || c.Class == "crash" || c.Class == "timeout" }

// spread fills the columns in which a case did what it does in a neighbour.
func spread(c *compare.Comparison, cells []cell) {
	fill := func(s *compare.Step, from, to int) {
		if s.Missing == "" && cells[to].Text == "" {
			cells[to] = cells[from]
		}
	}
	for i := range c.Steps {
		fill(&c.Steps[i], c.Steps[i].Before, c.Steps[i].After)
	}
	for i := range slices.Backward(c.Steps) {
		fill(&c.Steps[i], c.Steps[i].After, c.Steps[i].Before)
	}
}
