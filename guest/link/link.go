// SPDX-License-Identifier: BSD-3-Clause

// Package link is the guest link: the framed messages that host and agent
// exchange over two virtio-serial ports of their own, and the types they carry.
// The console is never used for results, because the kernel may print anything
// there at any time.
//
// One port is that of PID 1, which watches, the other that of the worker, which
// runs the cases: so that PID 1 can sleep while they run. The host speaks first
// only to start work; the agent says hello by itself. The conversation is:
//
//	worker → host  Hello            once, when links and namespaces are up
//	host → worker  Run              which instances, in which order
//	worker → host  CaseStart, Log, CaseEnd   per instance
//	worker → host  Call             a case drives the NIC; the host answers Reply
//	worker → host  Done             the end of a Run, explicit
//	PID 1 → host   Heartbeat        every HeartbeatInterval
//	PID 1 → host   Log              what the worker prints
//	PID 1 → host   Lost             the worker is dead; the machine runs no more cases
//	host → PID 1   Counters         asks for the counters of executed lines
//	PID 1 → host   Counters         the answer
//	host → PID 1   Leaks            asks for a search for leaked memory
//	PID 1 → host   Leaks            the answer
//	host → PID 1   Shutdown         power off
//	PID 1 → host   Fatal            it cannot go on
package link

import (
	"encoding/json"
	"time"
)

// Version is raised when a message changes its meaning; host and agent built
// from different trees refuse to talk.
const Version = 6

// HeartbeatInterval is how often the agent shows that PID 1 is still scheduled.
const HeartbeatInterval = 500 * time.Millisecond

// The names of the virtio-serial ports, as /sys/class/virtio-ports shows them.
const (
	PortName      = "zcvet.link"  // of PID 1
	CasesPortName = "zcvet.cases" // of the worker
)

// Kind tells what a message carries.
type Kind string

// The kinds of message, with the body type that goes with each.
const (
	KindHello     Kind = "hello"      // Hello
	KindRun       Kind = "run"        // Run
	KindCaseStart Kind = "case-start" // CaseStart
	KindLog       Kind = "log"        // Log
	KindCaseEnd   Kind = "case-end"   // CaseEnd
	KindCall      Kind = "call"       // Call
	KindReply     Kind = "reply"      // Reply
	KindDone      Kind = "done"       // Done
	KindLost      Kind = "lost"       // Lost
	KindCounters  Kind = "counters"   // Counters; no body from the host
	KindLeaks     Kind = "leaks"      // Leaks; no body from the host
	KindHeartbeat Kind = "heartbeat"  // no body
	KindShutdown  Kind = "shutdown"   // no body
	KindFatal     Kind = "fatal"      // Fatal
)

// Message is one frame.
type Message struct {
	Kind Kind            `json:"kind"`
	Body json.RawMessage `json:"body,omitempty"`
	// Number is that of a received frame, counted from 0 by its sender.
	Number uint32 `json:"-"`
}

// Hello says that the agent is ready and what it found.
type Hello struct {
	Version   int       `json:"version"`
	Release   string    `json:"release"` // uname -r
	Features  []Feature `json:"features"`
	Instances Instances `json:"instances"` // every case on every axis it applies to
	// Trace is where the record of system calls is: the guest-physical address
	// of each of its pages, for a host that has to read it in the memory of a
	// machine that crashed. Empty when the agent cannot tell.
	Trace []uint64 `json:"trace,omitempty"`
}

// Feature is something a case can need of the kernel or the machine.
type Feature struct {
	Name   string `json:"name"`
	Here   bool   `json:"here"`
	Reason string `json:"reason,omitempty"` // why it is not here
}

// Instance is one case on one protocol, family and link. Axes a case does not
// vary over are empty.
type Instance struct {
	ID     string   `json:"id"`
	Name   string   `json:"name"`
	Covers []string `json:"covers"`
	Level  string   `json:"level"` // "MUST" or "SHOULD"
	Proto  string   `json:"proto,omitempty"`
	Family string   `json:"family,omitempty"`
	Link   string   `json:"link,omitempty"`
	// Concurrent says that the instance is about what processors do at the same
	// time; the others need one.
	Concurrent bool `json:"concurrent,omitempty"`
}

// Run asks the agent to run instances in this order.
type Run struct {
	Instances []string   `json:"instances"`
	Parameter Parameters `json:"parameters"`
}

// Parameters is what the host knows about the kernel under test and the guest
// cannot find out by itself.
type Parameters struct {
	// ABI is the profile of the series: "v6", "v7", "v8", or empty for none.
	ABI string `json:"abi"`
	// Constant is SCM_ZC_NOTIFICATION from the built tree's headers, 0 if the
	// tree defines none.
	Constant int   `json:"constant"`
	Seed     int64 `json:"seed"`
	// CaseTimeout bounds one case; the agent kills the case's process at it.
	CaseTimeout time.Duration `json:"case_timeout"`
	// Mutant is the fault that the kernel is to have, by the name it goes by in
	// package mutants; empty for a kernel that has none to choose from.
	Mutant string `json:"mutant,omitempty"`
	// TimeScale multiplies the patience of waits inside a case; 1 under KVM,
	// larger under TCG and on debug kernels.
	TimeScale float64 `json:"time_scale"`
	// SearchSteps and SearchBudget bound each search for a failing sequence of
	// operations (R02), in operations and in time; 0 leaves that to the case.
	SearchSteps  int           `json:"search_steps,omitempty"`
	SearchBudget time.Duration `json:"search_budget,omitempty"`
	// CountsInstructions tells that the guest's time is a count of
	// instructions, one a nanosecond.
	CountsInstructions bool `json:"counts_instructions,omitempty"`
}

// CaseStart says that an instance begins.
type CaseStart struct {
	ID string        `json:"id"`
	At time.Duration `json:"at"` // by the guest's clock, see Now
}

// Log is what a case noted, or a worker printed, line by line.
type Log struct {
	ID    string   `json:"id"`
	Lines []string `json:"lines"`
}

// CaseEnd is the result of an instance.
type CaseEnd struct {
	ID     string        `json:"id"`
	Status string        `json:"status"` // pass, fail, skip or timeout
	Detail string        `json:"detail,omitempty"`
	Took   time.Duration `json:"took"`
	// Tainted is /proc/sys/kernel/tainted after the case.
	Tainted uint64 `json:"tainted"`
	// Spent tells that the case could not put back what it took away from the
	// machine. The rest of its Run is not done.
	Spent bool `json:"spent,omitempty"`
	// Measurements are what a case found that measures.
	Measurements []Measurement `json:"measurements,omitempty"`
	// Trace is the packed record of the case's system calls (package trace), of
	// a case that failed or tainted the kernel.
	Trace []byte `json:"trace,omitempty"`
}

// Lost says how the process that runs cases died, or was killed because its case
// took too long. The rest of its Run is not done.
type Lost struct {
	// CaseEnd is the end of the case that ran, without an ID when none did.
	CaseEnd
	// Frames is how many the worker has sent: those that the host has not read
	// yet come before this message.
	Frames uint32 `json:"frames"`
}

// Measurement is one figure of a case that measures.
type Measurement struct {
	Name         string `json:"name"` // unique in the case
	Instructions int64  `json:"instructions"`
}

// Call asks the host to do something for the case that runs: one of the NIC
// methods of package nic.
type Call struct {
	Number uint64          `json:"number"` // chosen by the guest, echoed in Reply
	Method string          `json:"method"`
	Args   json.RawMessage `json:"args,omitempty"`
}

// Reply answers a Call.
type Reply struct {
	Number uint64          `json:"number"`
	Error  string          `json:"error,omitempty"`
	Result json.RawMessage `json:"result,omitempty"`
}

// Done ends a Run.
type Done struct {
	Ran int `json:"ran"`
}

// Counters tells how often lines of the kernel were executed since the agent said
// hello.
type Counters struct {
	Files []CountersFile `json:"files"`
	// Error says why there are no counters, or not all of them.
	Error string `json:"error,omitempty"`
}

// CountersFile is one file as gcov writes and reads it.
type CountersFile struct {
	// Path ends with the object's place in the build tree, in front of which
	// stands the place of the build tree on the machine it was built on.
	Path string `json:"path"`
	Data []byte `json:"data"`
}

// Leaks are objects in the kernel's memory to which no pointer is left.
type Leaks struct {
	Leaks []Leak `json:"leaks"`
	// Total is how many there are; Leaks may be fewer.
	Total int `json:"total"`
	// Error says why the search failed.
	Error string `json:"error,omitempty"`
}

// Leak is one object.
type Leak struct {
	// Allocated is when, by the guest's clock, see Now.
	Allocated time.Duration `json:"allocated"`
	// Text is what the kernel says about it.
	Text string `json:"text"`
}

// Fatal is the agent's last word when it cannot go on.
type Fatal struct {
	Error string `json:"error"`
}
