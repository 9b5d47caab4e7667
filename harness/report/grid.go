// SPDX-License-Identifier: BSD-3-Clause

package report

import (
	"cmp"
	"slices"
	"strings"

	"github.com/zcvet/zcvet/harness/verdict"
)

// Grid shows which ids of the checklist ran on which protocol and link, and how
// that ended.
type Grid struct {
	// Columns are "tcp nic"; the empty one is for cases without axes.
	Columns []string
	Rows    []GridRow
}

// GridRow is one id.
type GridRow struct {
	ID    string
	Cells []GridCell // as Columns
	Cases []string   // names of the cases that cover the id, each once
	// Untested is true when no case of the id ran on any column.
	Untested bool
}

// GridCell counts the cases of an id on a protocol and link.
type GridCell struct {
	Passed, Failed, Skipped int
	// Reasons are why cases were skipped, each once.
	Reasons []string
}

// Empty tells that no case of the id exists there.
func (c GridCell) Empty() bool { return c.Passed+c.Failed+c.Skipped == 0 }

// Reasons are why cases of the id were skipped, each once.
func (r *GridRow) Reasons() []string {
	var reasons []string
	for _, cell := range r.Cells {
		for _, reason := range cell.Reasons {
			if !slices.Contains(reasons, reason) {
				reasons = append(reasons, reason)
			}
		}
	}
	return reasons
}

// MakeGrid returns the grid of a run, in the order of the checklist.
func MakeGrid(run *verdict.Run) Grid {
	var grid Grid
	type key struct{ id, column string }
	cells := make(map[key]*GridCell)
	rows := make(map[string]*GridRow)
	for i := range run.Cases {
		c := &run.Cases[i]
		column := strings.TrimSpace(c.Proto + " " + c.Link)
		if !slices.Contains(grid.Columns, column) {
			grid.Columns = append(grid.Columns, column)
		}
		for _, id := range c.Covers {
			row := rows[id]
			if row == nil {
				row = &GridRow{ID: id, Untested: true}
				rows[id] = row
			}
			if !slices.Contains(row.Cases, c.Name) {
				row.Cases = append(row.Cases, c.Name)
			}
			cell := cells[key{id, column}]
			if cell == nil {
				cell = &GridCell{}
				cells[key{id, column}] = cell
			}
			switch {
			case c.Status == verdict.Skip:
				cell.Skipped++
				if !slices.Contains(cell.Reasons, c.Detail) {
					cell.Reasons = append(cell.Reasons, c.Detail)
				}
				continue
			case Failed(c):
				cell.Failed++
			default:
				cell.Passed++
			}
			row.Untested = false
		}
	}
	slices.Sort(grid.Columns)
	for _, row := range rows {
		for _, column := range grid.Columns {
			cell := cells[key{row.ID, column}]
			if cell == nil {
				cell = &GridCell{}
			}
			row.Cells = append(row.Cells, *cell)
		}
		grid.Rows = append(grid.Rows, *row)
	}
	slices.SortFunc(grid.Rows, func(a, b GridRow) int { return compareIDs(a.ID, b.ID) })
	return grid
}

// compareIDs puts the ids in the order of the checklist: by letter with Z
// first, then as the checklist numbers them.
func compareIDs(a, b string) int {
	rank := func(id string) int {
		at := strings.IndexByte("ZNR", (id + " ")[0])
		if at < 0 {
			at = 3
		}
		return at
	}
	return cmp.Or(rank(a)-rank(b), strings.Compare(a, b))
}
