// SPDX-License-Identifier: BSD-3-Clause

// Package cost tells what a series costs those who do not use it and saves those
// who do, in instructions of the guest. Wall-clock time of a shared machine cannot
// show a difference of a few per cent; a count of instructions is the same in
// every run. What it does not show is what caches, locks and other processors do.
package cost

import (
	"cmp"
	"fmt"
	"io"
	"slices"

	"github.com/zcvet/zcvet/harness/contract"
	"github.com/zcvet/zcvet/harness/verdict"
)

// Schema is the version of the form in which a Table is stored.
const Schema = 1

// Suite selects the cases that measure.
const Suite = "cost"

// Tolerance is by which part the cost of a send that does not use the series may
// grow before that counts as an increase (N21). A changed structure or function
// moves code that has not changed: the compiler spills another register, and a
// handful of instructions come or go that no one wrote.
const Tolerance = 0.01

// Table is what was measured on a kernel without and with a series.
type Table struct {
	Schema int    `json:"schema"`
	Kernel string `json:"kernel"` // version
	Series string `json:"series"`
	Rows   []Row  `json:"rows"`
}

// Row is one measurement on both kernels, in instructions for each send.
type Row struct {
	Case    string `json:"case"` // without its axes
	Proto   string `json:"proto"`
	Family  string `json:"family"`
	Measure string `json:"measure"`
	// Without and With are the medians without and with the series, 0 where
	// there is none: a kernel without the series has no requests to measure.
	Without int64 `json:"without"`
	With    int64 `json:"with"`
}

// Change is by which part With is larger than Without; 0 if either is missing.
func (r Row) Change() float64 {
	if r.Without == 0 || r.With == 0 {
		return 0
	}
	return float64(r.With-r.Without) / float64(r.Without)
}

// unused is the case whose sends do not use the series.
const unused = "cost/send-without-request"

// Exceeds tells whether the series makes a send dearer that does not use it. What
// the users of notifications pay is theirs to judge.
func (r Row) Exceeds() bool { return r.Case == unused && r.Change() > Tolerance }

// Compare pairs the measurements of two runs of the same cases, in the order of
// the run with the series.
//
// A case that did not pass has no measurements; that is for the verdict of its
// run to say.
func Compare(without, with *verdict.Run) *Table {
	table := &Table{Schema: Schema, Kernel: with.Kernel.Version, Series: with.Series.Name}
	for _, run := range []*verdict.Run{without, with} {
		for _, c := range run.Cases {
			for _, m := range c.Measurements {
				row := table.row(c, m.Name)
				if run == with {
					row.With = m.Instructions
				} else {
					row.Without = m.Instructions
				}
			}
		}
	}
	slices.SortStableFunc(table.Rows, func(a, b Row) int { return cmp.Compare(a.Case, b.Case) })
	return table
}

// Write stores t as indented JSON.
func (t *Table) Write(w io.Writer) error {
	return contract.Write(w, t)
}

// row finds or adds the row of a measurement.
func (t *Table) row(c verdict.Case, measure string) *Row {
	at := slices.IndexFunc(t.Rows, func(r Row) bool {
		return r.Case == c.Name && r.Proto == c.Proto && r.Family == c.Family && r.Measure == measure
	})
	if at < 0 {
		t.Rows = append(t.Rows, Row{Case: c.Name, Proto: c.Proto, Family: c.Family, Measure: measure})
		at = len(t.Rows) - 1
	}
	return &t.Rows[at]
}

// Exceeding returns the rows that are an increase.
func Exceeding(rows []Row) []Row {
	return slices.DeleteFunc(slices.Clone(rows), func(r Row) bool { return !r.Exceeds() })
}

// Complaint says of so many rows that they are an increase.
func Complaint(count int) string {
	return fmt.Sprintf("%d of the sends that do not use the series cost over %.0f %% more", count, 100*Tolerance)
}
