// SPDX-License-Identifier: BSD-3-Clause

// Package compare tells what changed between runs of the same cases on different
// kernels: a base and revisions of a series, or the patches of one series one by
// one. It works on finished runs; package columns makes them.
package compare

import (
	"io"

	"github.com/zcvet/zcvet/harness/contract"
	"github.com/zcvet/zcvet/harness/cost"
	"github.com/zcvet/zcvet/harness/verdict"
)

// Schema is the version of the compare.json contract. Fields are added, never
// renamed.
const Schema = 1

// File is the name of a comparison in its directory.
const File = "compare.json"

// Comparison is everything a comparison found, as compare.json stores it.
type Comparison struct {
	Schema  int     `json:"schema"`
	Command string  `json:"command"` // the command line that repeats it
	Started string  `json:"started"` // RFC 3339
	Seconds float64 `json:"seconds"` // wall time of all of it
	Kernel  string  `json:"kernel"`  // as given to --kernel
	Suite   string  `json:"suite"`   // the selection of cases, the same in all columns
	Seed    int64   `json:"seed"`    // the same in all columns
	// Columns are in the order they were named.
	Columns []Column `json:"columns"`
	// Steps lead from column to column: one for each column but the first.
	Steps []Step       `json:"steps"`
	Exit  verdict.Exit `json:"exit"`
}

// Column is one kernel that was compared.
type Column struct {
	// Name heads the column: what the user gave, "base" or "lore:v7", without the
	// directory where that is not needed, or "patch 2" for a series that is cut
	// after its second patch.
	Name string `json:"name"`
	// Directory holds the run's own results (run.json and the rest), relative
	// to compare.json, with slashes.
	Directory string `json:"directory"`
	// SameAs is the name of the earlier column whose kernel has the same binary;
	// its cases and splats stand for this one's. Empty when the kernel ran itself.
	SameAs string `json:"same_as,omitempty"`
	// Binary is a hash of what is loaded of the kernel when it boots. Equal
	// hashes are equal kernels, whatever their line tables say. Empty when
	// there is no kernel.
	Binary string `json:"binary,omitempty"`

	Kernel verdict.Kernel `json:"kernel"`
	Series verdict.Series `json:"series"`
	Totals verdict.Totals `json:"totals"`
	Splats int            `json:"splats"`
	// CacheHits is how many of the compilations ccache had, CacheMisses how many
	// it did not: those that took a compiler. The build's own tools count too.
	CacheHits   int `json:"ccache_hits"`
	CacheMisses int `json:"ccache_misses"`
	// PrepareSeconds is what it took to apply, build and pack; RunSeconds is the
	// time from power-on to the end of the cases.
	PrepareSeconds float64 `json:"prepare_seconds"`
	RunSeconds     float64 `json:"run_seconds"`
	// Exit is how the column's own run ended.
	Exit verdict.Exit `json:"exit"`
	// Compared is true when the run has results for all cases. Otherwise the
	// column does not apply, build or boot, or the machine was at fault: see Exit.
	Compared bool `json:"compared"`
	// Repeated is how many cases were run again because they differed from a
	// neighbour; RepeatDirectory has that second run's results.
	Repeated        int    `json:"repeated"`
	RepeatDirectory string `json:"repeat_directory,omitempty"`
	// CostDirectory has the run in which costs were measured; empty when none was.
	CostDirectory string `json:"cost_directory,omitempty"`
}

// Step is the way from one column to the next.
type Step struct {
	// Before and After are indices into Columns. Before is the nearest earlier
	// column that has results: it is not After-1 when that does not apply,
	// build or boot. It is -1 when no earlier column has results.
	Before int `json:"before"`
	After  int `json:"after"`
	// Same is true when both columns have the same binary: nothing can differ.
	Same bool `json:"same,omitempty"`
	// Missing is why the two cannot be compared, "lore:v7 does not apply: …".
	// The lists are empty then.
	Missing string `json:"missing,omitempty"`

	Counts Counts `json:"counts"`
	// Changes has every case that is not the same and every one that fails in
	// both columns, in the order of the suite.
	Changes []Change `json:"changes"`
	// Splats are those that are new or gone, by fingerprint.
	Splats []SplatChange `json:"splats"`
	// Findings about the patches themselves that are new or gone.
	Findings []FindingChange `json:"findings"`
	// Cost has what was measured in either column, Before's as Without and
	// After's as With; empty when nothing was.
	Cost []cost.Row `json:"cost,omitempty"`

	// Worse is true when After is worse than Before by the rule of [Between].
	Worse bool `json:"worse"`
	// Reasons says in a line each what is worse.
	Reasons []string `json:"reasons"`
}

// Counts counts the changes of a step by kind. Same is the cases that pass, or
// are skipped, in both columns alike.
type Counts struct {
	Fixed        int `json:"fixed"`
	Broken       int `json:"broken"`
	StillFailing int `json:"still_failing"`
	New          int `json:"new"`
	// NewFailing is how many of New do not pass.
	NewFailing int `json:"new_failing"`
	Gone       int `json:"gone"`
	Unstable   int `json:"unstable"`
	Same       int `json:"same"`
}

// Kind says what became of a case from one column to the next.
type Kind string

// The kinds. A case that is skipped counts as one that is not there: what it
// asks about does not exist in that kernel.
const (
	Fixed        Kind = "fixed"         // failed, crashed or timed out; now passes
	Broken       Kind = "broken"        // passed; now fails, crashes or times out
	StillFailing Kind = "still-failing" // passes in neither, though it may fail in another way
	New          Kind = "new"           // was not there or skipped, now runs
	Gone         Kind = "gone"          // ran, now is not there or skipped
	// Unstable cases differed at first and did not do so again when both columns
	// ran them a second time: no difference can be claimed.
	Unstable Kind = "unstable"
)

// Kinds lists the kinds in the order a reader wants them.
var Kinds = []Kind{Broken, New, Gone, Fixed, StillFailing, Unstable}

// Change is one case whose results are not the same good ones in both columns.
type Change struct {
	Kind   Kind          `json:"kind"`
	ID     string        `json:"id"`
	Name   string        `json:"name"`
	Covers []string      `json:"covers"` // checklist ids
	Proto  string        `json:"proto"`
	Family string        `json:"family"`
	Link   string        `json:"link"`
	Level  verdict.Level `json:"level"`
	// Before and After are the results; nil when the column's agent does not
	// have the case.
	Before *Result `json:"before"`
	After  *Result `json:"after"`
	// Worse is true when the change counts against the later column.
	Worse bool `json:"worse"`
}

// Result is how a case ended in one column.
type Result struct {
	Status verdict.Status `json:"status"`
	Detail string         `json:"detail"`
	// Again is how it ended when it was run a second time; nil when it was not.
	Again *Result `json:"again,omitempty"`
}

// Failed tells whether the case did not do what it should have.
func (r *Result) Failed() bool {
	return r != nil && (r.Status == verdict.Fail || r.Status == verdict.Crash || r.Status == verdict.Timeout)
}

// Ran tells whether the case had anything to say: it is there and not skipped.
func (r *Result) Ran() bool { return r != nil && r.Status != verdict.Skip }

// Steady tells whether a second run, if there was one, agreed with the first: a
// case that fails once and crashes once fails steadily.
func (r *Result) Steady() bool {
	return r == nil || r.Again == nil || r.Again.Failed() == r.Failed() && r.Again.Ran() == r.Ran()
}

// SplatChange is a complaint of the kernel that only one of the columns has.
type SplatChange struct {
	Kind  Kind          `json:"kind"` // new or gone
	Splat verdict.Splat `json:"splat"`
	// Count is how many reports of it the column's run has.
	Count int `json:"count"`
}

// FindingChange is a fault of the patches that only one of the columns has.
type FindingChange struct {
	Kind    Kind            `json:"kind"` // new or gone
	Finding verdict.Finding `json:"finding"`
}

// Write stores c as indented JSON, nil lists as empty ones.
func (c *Comparison) Write(w io.Writer) error {
	out := *c
	out.Schema = Schema
	return contract.Write(w, &out)
}

// Read loads a compare.json and refuses one of another schema.
func Read(reader io.Reader) (*Comparison, error) {
	return contract.Read[Comparison](reader, File, Schema)
}
