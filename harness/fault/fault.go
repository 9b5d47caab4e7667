// SPDX-License-Identifier: BSD-3-Clause

// Package fault gives every error that can end a run a class. The class is what
// scripts see: it decides the exit code of the command and the exit field of
// run.json.
package fault

import (
	"context"
	"errors"
	"fmt"
)

// Class says which step of a run failed, and so whose turn it is to act: the
// author of the series, the owner of the machine, or us.
type Class int

// The classes, with the exit codes that architecture.md promises to scripts.
const (
	// None: every MUST case passed.
	None Class = 0
	// Test: at least one MUST case failed (any case with --strict).
	Test Class = 1
	// Usage: the command line or an input named on it makes no sense.
	Usage Class = 2
	// Apply: the series does not apply to the kernel.
	Apply Class = 3
	// Build: the patched kernel does not configure, compile or link.
	Build Class = 4
	// Boot: the kernel never reached the guest agent.
	Boot Class = 5
	// Crash: the kernel panicked, oopsed, hung or printed a splat.
	Crash Class = 6
	// Infrastructure: a tool, the disk, the network or the harness failed, and
	// nothing is known about the series.
	Infrastructure Class = 7
)

var names = map[Class]string{
	None:           "pass",
	Test:           "test",
	Usage:          "usage",
	Apply:          "apply",
	Build:          "build",
	Boot:           "boot",
	Crash:          "crash",
	Infrastructure: "infrastructure",
}

// String returns the name used in run.json's exit.class.
func (c Class) String() string {
	if name, ok := names[c]; ok {
		return name
	}
	return fmt.Sprintf("class %d", int(c))
}

// ExitCode is the process exit code of the class, 0 to 7.
func (c Class) ExitCode() int { return int(c) }

// Error is an error with a class, and with the advice that lets the reader of
// the one line he is shown do something about it.
type Error struct {
	Class Class
	// Err is what went wrong.
	Err error
	// Advice says what to do, as a sentence without a full stop; may be empty.
	Advice string
	// Output is what the failing tool printed, or the tail of the console;
	// shown after the error line, may be empty.
	Output string
}

func (e *Error) Error() string { return e.Err.Error() }

// Unwrap returns the error that was classed.
func (e *Error) Unwrap() error { return e.Err }

// New classes a formatted error; the format takes %w as fmt.Errorf does.
func New(class Class, format string, args ...any) *Error {
	return &Error{Class: class, Err: fmt.Errorf(format, args...)}
}

// WithAdvice adds what the reader can do about the error and returns e.
func (e *Error) WithAdvice(format string, args ...any) *Error {
	e.Advice = fmt.Sprintf(format, args...)
	return e
}

// WithOutput adds the words of the failing tool and returns e.
func (e *Error) WithOutput(output string) *Error {
	e.Output = output
	return e
}

// Of returns the class of err: that of the outermost *Error in its chain, None
// for nil, and Infrastructure for an error nobody classed.
func Of(err error) Class {
	if err == nil {
		return None
	}
	if classed, ok := errors.AsType[*Error](err); ok {
		return classed.Class
	}
	return Infrastructure
}

// IsCancelled tells whether err comes from the user's interrupt rather than
// from anything that failed.
func IsCancelled(err error) bool { return errors.Is(err, context.Canceled) }
