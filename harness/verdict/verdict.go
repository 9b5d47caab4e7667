// SPDX-License-Identifier: BSD-3-Clause

// Package verdict holds the result of a run as run.json stores it, and the rule
// that turns results into one verdict.
//
// The JSON form is a contract: other people's scripts read it. Fields are added,
// never renamed, and Schema is raised if a meaning ever has to change.
package verdict

import (
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/zcvet/zcvet/harness/contract"
	"github.com/zcvet/zcvet/harness/fault"
)

// Schema is the version of the run.json contract.
const Schema = 1

// Run is everything that is known at the end of a run. A run that ended early
// leaves the parts it did not reach empty.
type Run struct {
	Schema  int     `json:"schema"`
	Command string  `json:"command"` // the command line that repeats the run
	Started string  `json:"started"` // RFC 3339
	Seconds float64 `json:"seconds"` // wall time of the whole run
	Seed    int64   `json:"seed"`
	Kernel  Kernel  `json:"kernel"`
	Series  Series  `json:"series"`
	Machine Machine `json:"machine"`
	Cases   []Case  `json:"cases"`
	Splats  []Splat `json:"splats"`
	// Coverage is nil unless the kernel was built to measure it.
	Coverage *Coverage `json:"coverage,omitempty"`
	Totals   Totals    `json:"totals"`
	Exit     Exit      `json:"exit"`
}

// Kernel is the kernel that was booted.
type Kernel struct {
	Version string `json:"version"` // as the tree's Makefile says, "6.12.95"
	Source  string `json:"source"`  // provider and place, "debian linux-source-6.12 6.12.95-1"
	// ID names the built kernel by content: source, patched files, config and
	// toolchain. Equal ids are equal kernels.
	ID           string   `json:"id"`
	Config       []string `json:"config"` // names of the merged fragments
	Compiler     string   `json:"compiler"`
	BuildSeconds float64  `json:"build_seconds"`
	Objects      int      `json:"objects"` // compiled by this run, 0 when cached
	Cached       bool     `json:"cached"`
}

// Series is the patch series under test.
type Series struct {
	Name      string `json:"name"`
	Spec      string `json:"spec"` // as given to --series
	Revision  int    `json:"revision"`
	MessageID string `json:"message_id"`
	// ABI is the profile of the notification interface: "v6", "v7", "v8", or
	// empty when the tree has none.
	ABI string `json:"abi"`
	// Constant is SCM_ZC_NOTIFICATION as the patched tree's generic uapi
	// header defines it, 0 when it does not.
	Constant int `json:"constant"`
	// Directory is where the patches are, relative to the working directory,
	// empty when they did not come from a directory below it.
	Directory string    `json:"directory,omitempty"`
	Patches   []Patch   `json:"patches"`
	Findings  []Finding `json:"findings"`
}

// Patch is one patch of the series and how it applied.
type Patch struct {
	Subject string `json:"subject"`
	File    string `json:"file"` // relative to the series' directory, or base name of the mailbox
	SHA256  string `json:"sha256"`
	// Fuzz is true when context lines had to be ignored for at least one hunk:
	// the patch was put where it seemed to belong.
	Fuzz bool `json:"fuzz"`
	// Offset is the largest distance in lines between where a hunk claimed to
	// belong and where it was applied.
	Offset int `json:"offset"`
	// Diff is the change, so that a report can show the line a fault is in.
	Diff string `json:"diff,omitempty"`
	// DiffLine is the line of File (from 1) at which Diff begins, 0 when it is
	// not there as it stands.
	DiffLine int `json:"diff_line,omitempty"`
}

// Finding is a fault of the series that was found without running it.
type Finding struct {
	Kind   string `json:"kind"` // "uapi-collision", "fuzz"
	Title  string `json:"title"`
	Detail string `json:"detail"`
	Patch  string `json:"patch"` // subject of the patch to blame, if known
	File   string `json:"file"`
	Line   int    `json:"line"`
	Level  Level  `json:"level"` // a MUST finding fails the run
	// Case is the id of the case that fails for the same reason, if there is one.
	Case string `json:"case,omitempty"`
}

// Machine is the virtual machine the cases ran on.
type Machine struct {
	Accel       string `json:"accel"` // "kvm" or "tcg"
	AccelReason string `json:"accel_reason"`
	CPU         string `json:"cpu"`
	QEMU        string `json:"qemu"`
	BootMS      int64  `json:"boot_ms"`    // exec of QEMU to agent ready
	RestoreMS   int64  `json:"restore_ms"` // median of the restores, 0 if none
	Boots       int    `json:"boots"`
	Restores    int    `json:"restores"`
	// Features is what the agent found that cases can need, and why what is
	// missing is missing.
	Features []Feature `json:"features,omitempty"`
	// Missing says what a kernel that counts executed lines or looks for leaked
	// memory could not tell, because its machine was lost.
	Missing []string `json:"missing,omitempty"`
}

// Feature is something a case can need of the kernel or the machine.
type Feature struct {
	Name   string `json:"name"`
	Here   bool   `json:"here"`
	Reason string `json:"reason,omitempty"` // why it is not here
}

// Level says how much a failure matters.
type Level string

// The levels of the checklist.
const (
	Must   Level = "MUST"   // data, notifications, memory or the machine is at stake
	Should Level = "SHOULD" // a reviewer would object
)

// Status is how a case ended.
type Status string

// The statuses of run.json.
const (
	Pass    Status = "pass"
	Fail    Status = "fail"
	Skip    Status = "skip"
	Crash   Status = "crash"
	Timeout Status = "timeout"
)

// NotRun begins the detail of a case that was skipped because the run ended before
// its turn. It says nothing about the kernel.
const NotRun = "not run: "

// Case is the result of one case on one protocol, family and link.
type Case struct {
	// ID is unique in the run: name/proto/family/link, without the axes the
	// case does not vary over.
	ID     string   `json:"id"`
	Name   string   `json:"name"`
	Covers []string `json:"covers"` // checklist ids
	Proto  string   `json:"proto"`
	Family string   `json:"family"`
	Link   string   `json:"link"`
	Level  Level    `json:"level"`
	Status Status   `json:"status"`
	MS     int64    `json:"ms"`
	// Detail is the reason of a skip or failure; for a failure what was
	// expected, what came and why it matters.
	Detail string `json:"detail"`
	// Measurements are the figures of a case that measures, in the order in
	// which it took them.
	Measurements []Measurement `json:"measurements,omitempty"`
	// Log is what the case noted on its way; kept for failures only.
	Log []string `json:"log,omitempty"`
	// Second is how the case ended when it was run again on another machine. It
	// says more about the series and changes nothing in the verdict; nil unless
	// there was reason to.
	Second *Second `json:"second,omitempty"`
	// Evidence is there for failures only.
	Evidence *Evidence `json:"evidence,omitempty"`
}

// SMAPOff is the leg of a run on a processor without supervisor mode access
// prevention: a kernel that touches user memory without the helpers for it does not
// crash there.
const SMAPOff = "smap=off"

// Second is the result of a case in another leg of the run.
type Second struct {
	Leg    string `json:"leg"` // SMAPOff
	Status Status `json:"status"`
	MS     int64  `json:"ms"`
	Detail string `json:"detail"`
}

// Measurement is one figure of a case that measures: a median.
type Measurement struct {
	Name         string `json:"name"`
	Instructions int64  `json:"instructions"`
}

// Splat is a kernel complaint found on the console.
type Splat struct {
	Title string `json:"title"`
	Kind  string `json:"kind"` // "oops", "warning", "kasan", "hang", "panic", …
	Case  string `json:"case"` // id of the case that ran, empty outside any
	// Leg is empty but for splats of cases that were run again on another
	// machine; see Second.
	Leg      string `json:"leg,omitempty"`
	Function string `json:"function"`
	File     string `json:"file"`
	Line     int    `json:"line"`
	// Patch is the subject of the patch of the series that last touched that
	// line, empty when the series did not.
	Patch string `json:"patch"`
	// Source is that line itself, known where Patch is.
	Source string `json:"source,omitempty"`
	// Text is the console excerpt.
	Text string `json:"text"`
	// Fingerprint is equal for two reports of one fault: a hash of the kind
	// and the first five functions.
	Fingerprint string `json:"fingerprint,omitempty"`
	// Frames is the stack from Function on, decoded.
	Frames []Frame `json:"frames,omitempty"`
}

// Frame is one function on the stack of a splat.
type Frame struct {
	Function string `json:"function"`
	File     string `json:"file,omitempty"` // relative to the source's root
	Line     int    `json:"line,omitempty"`
	// Inlined is true for a function that the compiler folded into the next
	// one of the list.
	Inlined bool `json:"inlined,omitempty"`
	// Patch is the subject of the patch that last touched the line.
	Patch string `json:"patch,omitempty"`
	// Source is the line itself, known where Patch is.
	Source string `json:"source,omitempty"`
}

// Coverage tells which lines that the series added were executed while the cases
// ran.
type Coverage struct {
	// Executable is how many added lines the compiler made code of, Executed how
	// many of those ran at least once.
	Executable int `json:"executable"`
	Executed   int `json:"executed"`
	// Lines has every executable line, by file and number.
	Lines []CoveredLine `json:"lines"`
	// Missing says what the counts lack: files that were not compiled, and
	// machines that took their counters along.
	Missing []string `json:"missing,omitempty"`
}

// CoveredLine is one executable line that the series added.
type CoveredLine struct {
	File  string `json:"file"`  // relative to the source's root
	Line  int    `json:"line"`  // in the patched file
	Patch string `json:"patch"` // subject of the patch that last touched it
	Text  string `json:"text"`
	Count int64  `json:"count"` // how often it ran
}

// Totals counts the cases by status.
type Totals struct {
	Pass    int `json:"pass"`
	Fail    int `json:"fail"`
	Skip    int `json:"skip"`
	Crash   int `json:"crash"`
	Timeout int `json:"timeout"`
}

// Exit is the class of the run and the exit code that goes with it.
type Exit struct {
	Class string `json:"class"`
	Code  int    `json:"code"`
	// Error is the one line that says why, empty when the run passed.
	Error string `json:"error"`
}

// Policy is what the user asked the verdict to be strict about.
type Policy struct {
	Strict    bool // SHOULD failures fail the run
	ExpectAll bool // skips fail the run
}

// Decide fills r.Totals and r.Exit from the cases, splats and findings. Err is
// the error that ended the run early, or nil; its class wins, because nothing
// that ran before it is a full answer. Otherwise a crash outranks a failed case:
// a kernel that fell over says little about the cases after it.
func (r *Run) Decide(policy Policy, err error) fault.Class {
	r.Schema = Schema
	var uncounted error
	if r.Totals, uncounted = count(r.Cases); err == nil {
		err = uncounted
	}
	failed := 0
	for i := range r.Cases {
		if r.Cases[i].fails(policy) {
			failed++
		}
	}
	for _, finding := range r.Series.Findings {
		counted := finding.Case != "" && slices.ContainsFunc(r.Cases, func(c Case) bool { return c.ID == finding.Case })
		if (finding.Level == Must || policy.Strict) && !counted {
			failed++
		}
	}

	class, why := fault.None, ""
	switch {
	case err != nil:
		class, why = fault.Of(err), err.Error()
	case r.Totals.Crash > 0 || len(r.Splats) > 0:
		class, why = fault.Crash, r.crashReason()
	case failed > 0:
		class, why = fault.Test, fmt.Sprintf("%d failed", failed)
	case r.Totals.Pass == 0 && len(r.Cases) > 0:
		// A run in which everything was skipped has shown nothing.
		class, why = fault.Infrastructure, "no case ran: all were skipped"
	}
	r.Exit = Exit{Class: class.String(), Code: class.ExitCode(), Error: why}
	return class
}

// count counts the statuses. One that does not exist is an error.
func count(cases []Case) (totals Totals, err error) {
	counts := map[Status]*int{
		Pass: &totals.Pass, Fail: &totals.Fail, Skip: &totals.Skip, Crash: &totals.Crash, Timeout: &totals.Timeout,
	}
	for i := range cases {
		counter, known := counts[cases[i].Status]
		if !known {
			err = errors.Join(err, fmt.Errorf("%s has the unknown status %q", cases[i].ID, cases[i].Status))
			continue
		}
		*counter++
	}
	return totals, err
}

func (c *Case) fails(policy Policy) bool {
	switch c.Status {
	case Fail, Timeout:
		return c.Level == Must || policy.Strict
	case Skip:
		return policy.ExpectAll
	}
	return false
}

func (r *Run) crashReason() string {
	if len(r.Splats) > 0 {
		return r.Splats[0].Title
	}
	for _, c := range r.Cases {
		if c.Status == Crash {
			return c.ID + ": " + c.Detail
		}
	}
	return ""
}

// Write stores r as indented JSON, nil lists as empty ones.
func (r *Run) Write(w io.Writer) error { return contract.Write(w, r) }

// Read loads a run.json and refuses one of another schema.
func Read(reader io.Reader) (*Run, error) { return contract.Read[Run](reader, "run.json", Schema) }
