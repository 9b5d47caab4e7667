// SPDX-License-Identifier: BSD-3-Clause

// Package trace is the record of the system calls that a case made: what it
// asked the kernel, and what the kernel answered.
//
// The guest writes it into a piece of memory of fixed size, call by call, before
// and after each call. Nothing is formatted and nothing is sent while a case
// runs, so that recording costs little and changes little. The memory outlives
// the process of the case, and the host can read it in the memory of a guest
// whose kernel has crashed: the call that never returned is the last one in it.
package trace

import (
	"time"

	"golang.org/x/sys/unix"
)

// Call is one system call, or a mark between two of them.
type Call struct {
	// Number counts the calls and marks of a case from 0, in the order in which
	// they began.
	Number int
	// Thread is the id of the thread in the guest.
	Thread int
	// Narrow tells that a 32-bit task made it, whose structures have another
	// layout.
	Narrow bool
	// Name is that of the system call, "sendmsg", or one of the marks below.
	Name string
	// Arguments are the scalar arguments, in the order of the call. FD arguments
	// are those the guest saw. Package sys says for each call what they are.
	Arguments []int64
	// In is the memory that the call was given, in a fixed order for each name.
	In []Memory

	// Returned is false for a call that had not returned when the record was
	// taken.
	Returned bool
	Result   int64
	Errno    unix.Errno
	// Outcome are scalars that the kernel wrote, Out is memory it wrote to.
	Outcome []int64
	Out     []Memory

	// Began and Ended are times since the case started.
	Began, Ended time.Duration
}

// Memory is a piece of the caller's memory.
type Memory struct {
	Address uint64
	Length  int
	// Bytes are the first of them, as many as the record keeps; nil when the
	// caller itself could not read them.
	Bytes []byte

	// source is the memory while it is still to be read.
	source []byte
}

// The marks. They are calls that have returned at once.
const (
	// Failure is a failed expectation; In holds its message.
	Failure = "failure"
	// Expectation is one that the case has about to check. Arguments[0] says
	// which, see ExactlyOnce.
	Expectation = "expectation"
	// Host is a call to the host's NIC; In holds the method and its arguments in
	// JSON.
	Host = "host"
	// Task is a 32-bit task, which makes the calls that follow.
	Task = "task"
	// Child is a process of its own, whose calls are not recorded; In holds its
	// name.
	Child = "child"
	// Beyond is something that the case does, or looks at, and that no system
	// call of the record shows; In says what.
	Beyond = "beyond"
)

// The expectations.
const (
	// ExactlyOnce: each of the first Arguments[2] zero-copy sends of the socket
	// Arguments[1] has been notified, and none of them twice.
	ExactlyOnce = 1
)

// Text returns piece i of the memory that the call was given as a string.
func (c *Call) Text(i int) string {
	if i >= len(c.In) {
		return ""
	}
	return string(c.In[i].Bytes)
}

// Argument returns scalar argument i, 0 if there are fewer.
func (c *Call) Argument(i int) int64 {
	if i >= len(c.Arguments) {
		return 0
	}
	return c.Arguments[i]
}
