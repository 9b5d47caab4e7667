// SPDX-License-Identifier: BSD-3-Clause

// Package progress is how a step tells how far it is, without knowing who
// listens: a terminal, a log, or nobody.
package progress

// Update is the state of one step.
type Update struct {
	// Done and Total are in Unit; Total is 0 while it is unknown.
	Done, Total int64
	Unit        Unit
	// What is being worked on now: a file, a case, a phase. May be empty.
	What string
}

// Unit says what an Update counts.
type Unit string

// The units.
const (
	Bytes   Unit = "bytes"
	Objects Unit = "objects" // compiled kernel objects
	Files   Unit = "files"
	Cases   Unit = "cases"
	Mutants Unit = "mutants"
)

// Func receives updates; it is called from one goroutine at a time and must be
// quick. A nil Func drops them.
type Func func(Update)

// Report calls f unless it is nil.
func (f Func) Report(update Update) {
	if f != nil {
		f(update)
	}
}
