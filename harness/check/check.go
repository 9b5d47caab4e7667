// SPDX-License-Identifier: BSD-3-Clause

// Package check holds the checks that netdev's own gate makes of each patch of a
// series, as far as text alone decides them, and the results of all of them.
// Package gate adds those that compile and boot.
package check

import (
	"fmt"
	"io"

	"github.com/zcvet/zcvet/harness/contract"
	"github.com/zcvet/zcvet/harness/fault"
	"github.com/zcvet/zcvet/harness/verdict"
)

// Schema is the version of the check.json contract. Fields are added, never
// renamed.
const Schema = 1

// File is the name of the results in their directory.
const File = "check.json"

// Report is what the checks found, as check.json stores it.
type Report struct {
	Schema  int            `json:"schema"`
	Command string         `json:"command"` // the command line that repeats it
	Started string         `json:"started"` // RFC 3339
	Seconds float64        `json:"seconds"`
	Kernel  verdict.Kernel `json:"kernel"`
	Series  verdict.Series `json:"series"`
	// Whole are the checks of the series as a whole.
	Whole []Result `json:"whole"`
	// Patches has one entry for each patch, in order. It ends early when a patch
	// does not apply.
	Patches []Patch      `json:"patches"`
	Totals  Totals       `json:"totals"`
	Exit    verdict.Exit `json:"exit"`
}

// Patch is a patch with its results.
type Patch struct {
	Number  int      `json:"number"` // from 1
	Subject string   `json:"subject"`
	File    string   `json:"file"` // base name in the series' directory or mailbox
	Results []Result `json:"results"`
}

// Result is how one check ended.
type Result struct {
	// Name is that of the check, as in [Catalogue].
	Name   string `json:"name"`
	Status Status `json:"status"`
	// Summary is one line: what is wrong, or for a skip why and what to do.
	Summary string `json:"summary"`
	// Messages are the places it is about; may be empty even for a failure.
	Messages []Message `json:"messages,omitempty"`
	// Log is the file with everything the tool said, relative to check.json,
	// with slashes; empty when there is nothing more to say.
	Log     string  `json:"log,omitempty"`
	Seconds float64 `json:"seconds"`
	// Cached is true when the result is of an earlier time: the patch, the tree
	// before it and the tools are the same.
	Cached bool `json:"cached,omitempty"`
}

// Message is one thing a tool had to say.
type Message struct {
	File string `json:"file,omitempty"` // relative to the source's root
	Line int    `json:"line,omitempty"` // in the patched file, 0 for none
	Text string `json:"text"`
}

// Status is how a check ended.
type Status string

// The statuses.
const (
	Pass Status = "pass"
	Warn Status = "warn" // netdev's gate shows it and does not stop for it
	Fail Status = "fail"
	Skip Status = "skip" // it could not be made; Summary says why
)

// Totals counts the results by status.
type Totals struct {
	Pass int `json:"pass"`
	Warn int `json:"warn"`
	Fail int `json:"fail"`
	Skip int `json:"skip"`
}

// Count fills r.Totals from the results.
func (r *Report) Count() {
	r.Totals = Totals{}
	counts := map[Status]*int{Pass: &r.Totals.Pass, Warn: &r.Totals.Warn, Fail: &r.Totals.Fail, Skip: &r.Totals.Skip}
	for _, results := range r.all() {
		for _, result := range results {
			if count := counts[result.Status]; count != nil {
				*count++
			}
		}
	}
}

// all lists the results of the series and of each patch.
func (r *Report) all() [][]Result {
	lists := [][]Result{r.Whole}
	for _, patch := range r.Patches {
		lists = append(lists, patch.Results)
	}
	return lists
}

// Write stores r as indented JSON, nil lists as empty ones.
func (r *Report) Write(w io.Writer) error {
	out := *r
	out.Schema = Schema
	return contract.Write(w, &out)
}

// Read loads a check.json and refuses one of another schema.
func Read(reader io.Reader) (*Report, error) { return contract.Read[Report](reader, File, Schema) }

// Failed is the first result with status fail of a check, nil when there is none.
func (r *Report) Failed(name string) *Result {
	for _, results := range r.all() {
		for i := range results {
			if results[i].Name == name && results[i].Status == Fail {
				return &results[i]
			}
		}
	}
	return nil
}

// Decide fills r.Totals and r.Exit. Err is what ended the checks early, or nil. A
// series that does not apply, build or boot has the class of a run that met that,
// any other failure is class test; warnings and skips fail nothing.
func (r *Report) Decide(err error) {
	r.Count()
	class, why := fault.None, ""
	switch {
	case err != nil:
		class, why = fault.Of(err), err.Error()
	case r.Totals.Fail > 0:
		class, why = fault.Test, fmt.Sprintf("%d failed", r.Totals.Fail)
		for _, severe := range []struct {
			name  string
			class fault.Class
		}{{Apply, fault.Apply}, {Build, fault.Build}, {Boot, fault.Boot}} {
			if result := r.Failed(severe.name); result != nil {
				class, why = severe.class, result.Summary
				break
			}
		}
	}
	r.Exit = verdict.Exit{Class: class.String(), Code: class.ExitCode(), Error: why}
}
