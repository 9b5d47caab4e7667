// SPDX-License-Identifier: BSD-3-Clause

// Package suite runs the conformance cases: it boots a machine, hands the cases
// to the agent, watches console, link and machine while they run, and goes on in
// a restored machine when the kernel fell over. A crash belongs to the case that
// ran; the cases after it still get their turn.
package suite

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/zcvet/zcvet/guest/link"
	"github.com/zcvet/zcvet/guest/trace"
	"github.com/zcvet/zcvet/harness/fault"
	"github.com/zcvet/zcvet/harness/machine"
	"github.com/zcvet/zcvet/harness/progress"
	"github.com/zcvet/zcvet/harness/splat"
	"github.com/zcvet/zcvet/harness/verdict"
)

// VM is one running virtual machine with its NIC.
type VM interface {
	// Link is the guest link. Reading it returns an error once the machine is
	// gone.
	Link() io.ReadWriter
	// Done is closed when QEMU has ended or the NIC met a ring it cannot serve;
	// Err then says why. A nil Err means that the guest powered off.
	Done() <-chan struct{}
	Err() error
	// Call carries out one of the methods of package nic.
	Call(ctx context.Context, method string, args json.RawMessage) (any, error)
	// InjectNMI makes the guest print what its processors are doing.
	InjectNMI(ctx context.Context) error
	// ReadMemory copies the guest's RAM from a guest-physical address on. It works
	// until Close, whatever became of the guest.
	ReadMemory(p []byte, physical uint64) error
	// Snapshot saves the machine as it is now; the machine runs on.
	Snapshot(ctx context.Context) (Snapshot, error)
	// SaveEvidence keeps the NIC's capture and descriptor log under a name made
	// from the case, for whoever has to find out what happened.
	SaveEvidence(name string) error
	// Close ends the machine, whatever state it is in, and waits for it.
	Close() error
}

// Snapshot is a saved machine.
type Snapshot interface {
	// Restore starts another machine from the snapshot.
	Restore(ctx context.Context, console func(line string)) (VM, error)
	// Close frees the memory the snapshot holds.
	Close() error
}

// Booter starts machines.
type Booter interface {
	Boot(ctx context.Context, console func(line string)) (VM, error)
}

// Options says what to run.
type Options struct {
	Booter Booter
	// Parameters goes to the guest as it is, but for CaseTimeout, which is
	// Patience.Case.
	Parameters link.Parameters
	// Wanted selects the instances to run; nil means all.
	Wanted func(link.Instance) bool
	// Machines is how many machines may run at a time, 0 for one. There are fewer
	// for few cases.
	Machines int
	machine.Patience
	// Progress receives the number of finished cases, from one goroutine at a
	// time.
	Progress progress.Func
	// OnCase, if set, is called with every result as it comes, by one goroutine at
	// a time.
	OnCase func(verdict.Case)
	// Enough, if set, is asked between cases, by one goroutine at a time, and ends
	// the run with what there is when it says yes. The cases that did not run have
	// no status then.
	Enough func() bool
	// Console opens the log of every console line of one machine and of those that
	// replace it, with the marks of where cases begin. Machines that run at the
	// same time have one each, counted from 1. Nil keeps none.
	Console func(number int) (io.Writer, error)
	// Allowed are the splats that do not count.
	Allowed []splat.Allowed
}

// Result is what the cases and the console said.
type Result struct {
	Cases    []verdict.Case
	Splats   []splat.Splat // not decoded yet
	Features []link.Feature
	// Traces has the system calls of cases that did not pass, by id.
	Traces   map[string]*trace.Record
	Boot     time.Duration // exec of QEMU to Hello
	Boots    int
	Restores []time.Duration // exec of QEMU to the first message of the agent
	// Counters tell which lines of the kernel were executed, one set for each
	// machine that could be asked; none unless the kernel counts.
	Counters []link.Counters
	// Missing says what a kernel that counts lines or looks for leaks could not
	// tell, because its machine was lost.
	Missing []string
}

// maxLosses bounds how many machines may be lost while no case was running, or
// before the first one of a run started: it is then the machine that is broken,
// not a case.
const maxLosses = 3

// Run boots a machine and runs the wanted cases. It returns what was finished
// even with an error: one of class Boot when the agent was never reached, of
// class Infrastructure when machines cannot be had any more. A failed case or a
// crash is a result, not an error.
func Run(ctx context.Context, options Options) (*Result, error) {
	first, err := newRunner(options, 1)
	if err != nil {
		return newResult(), err
	}
	hello, err := first.boot(ctx)
	defer first.closeSnapshot()
	if err != nil {
		first.close()
		return first.result, err
	}
	return share(ctx, first, hello.Instances)
}

func newResult() *Result { return &Result{Traces: make(map[string]*trace.Record)} }

// runner runs its share of the cases in one machine after the other.
type runner struct {
	Options
	result   *Result
	session  *session
	snapshot Snapshot
	console  consoleLog
	// destroys holds the ids of the cases after which a machine is of no use.
	destroys map[string]bool
	// traced is where the agent of every machine records the system calls.
	traced []uint64
}

// newRunner makes the runner of that number.
func newRunner(options Options, number int) (*runner, error) {
	r := &runner{Options: options, result: newResult()}
	if options.Console != nil {
		writer, err := options.Console(number)
		if err != nil {
			return nil, fault.New(fault.Infrastructure, "console log: %w", err)
		}
		r.console.writer = writer
	}
	return r, nil
}

// close ends the machine, if one runs.
func (r *runner) close() {
	if r.session != nil {
		r.session.close()
		r.session = nil
	}
}

func (r *runner) closeSnapshot() {
	if r.snapshot != nil {
		r.snapshot.Close()
	}
}

// boot starts the first machine, selects the cases and takes the snapshot.
func (r *runner) boot(ctx context.Context) (*link.Hello, error) {
	hello, err := r.reach(ctx)
	if err != nil {
		return nil, err
	}
	all := len(hello.Instances)
	if r.Wanted != nil {
		hello.Instances = slices.DeleteFunc(hello.Instances, func(instance link.Instance) bool { return !r.Wanted(instance) })
	}
	if len(hello.Instances) == 0 {
		return nil, fault.New(fault.Usage, "the suite selection matches none of the %d cases", all).
			WithAdvice("zcvet run --list shows every case with its checklist ids")
	}
	return hello, r.takeSnapshot(ctx)
}

// reach starts the first machine and waits for its agent.
func (r *runner) reach(ctx context.Context) (*link.Hello, error) {
	started := time.Now()
	s, err := r.open(link.NewConn, func(console func(string)) (VM, error) {
		return r.Booter.Boot(ctx, console)
	})
	if err != nil {
		return nil, err
	}
	r.session = s
	r.result.Boots++

	hello, err := s.awaitHello(ctx)
	r.keepSplats(s)
	if err != nil {
		return nil, err
	}
	r.result.Boot = time.Since(started)
	r.result.Features = hello.Features
	r.traced = hello.Trace
	return hello, nil
}

// takeSnapshot saves the machine while the agent waits for work and the host has
// sent nothing yet, which is what link.ResumeConn relies on.
func (r *runner) takeSnapshot(ctx context.Context) error {
	snapshot, err := r.session.vm.Snapshot(ctx)
	if err != nil {
		// A machine that cannot be saved can still run cases; a crash then
		// costs a boot instead of a restore.
		r.console.note("no snapshot: %v", err)
		return nil
	}
	r.snapshot = snapshot
	return nil
}

// want adds a case to those that are to run.
func (r *runner) want(instance link.Instance) {
	r.result.Cases = append(r.result.Cases, newCase(instance))
	if instance.Destroys {
		if r.destroys == nil {
			r.destroys = make(map[string]bool)
		}
		r.destroys[instance.ID] = true
	}
}

func newCase(instance link.Instance) verdict.Case {
	return verdict.Case{
		ID: instance.ID, Name: instance.Name, Covers: instance.Covers,
		Proto: instance.Proto, Family: instance.Family, Link: instance.Link,
		Level: verdict.Level(instance.Level),
	}
}

// runAll runs every case that has no status yet, in as many machines as it takes.
// The cases that destroy their machine come last, each with one of its own.
func (r *runner) runAll(ctx context.Context) error {
	losses := 0
	for {
		left := r.unfinished()
		if len(left) == 0 {
			return r.shutdown(ctx)
		}
		if r.enough() {
			return nil // close throws the machine away in the middle of its work
		}
		if r.session == nil {
			if err := r.replace(ctx); err != nil {
				return err
			}
		}
		batch := r.batch(left)
		finished, err := r.runIn(ctx, r.session, batch)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err == nil && r.destroys[batch[0]] {
			if err := r.shutdown(ctx); err != nil {
				return err
			}
			continue
		}
		if err != nil {
			r.session.close()
			r.session = nil
			if r.gathers() {
				r.miss("a machine took along what its kernel had gathered: %v", err)
			}
			if finished > 0 {
				losses = 0
			} else if losses++; losses == maxLosses {
				return fault.New(fault.Infrastructure, "%d machines in a row were lost before a case could run: %w", losses, err)
			}
		}
	}
}

func (r *runner) unfinished() []string {
	var left []string
	for _, c := range r.result.Cases {
		if c.Status == "" {
			left = append(left, c.ID)
		}
	}
	return left
}

func (r *runner) enough() bool { return r.Enough != nil && r.Enough() }

// batch returns those of the cases that are left that can run in one machine:
// all that leave it usable, or a single one that does not.
func (r *runner) batch(left []string) []string {
	harmless := slices.DeleteFunc(slices.Clone(left), func(id string) bool { return r.destroys[id] })
	if len(harmless) > 0 {
		return harmless
	}
	return left[:1]
}

func (r *runner) find(id string) *verdict.Case {
	i := slices.IndexFunc(r.result.Cases, func(c verdict.Case) bool { return c.ID == id })
	if i < 0 {
		return nil
	}
	return &r.result.Cases[i]
}

// replace brings up a machine for the cases that are left, from the snapshot if
// there is one.
func (r *runner) replace(ctx context.Context) error {
	started := time.Now()
	if r.snapshot == nil {
		s, err := r.open(link.NewConn, func(console func(string)) (VM, error) {
			return r.Booter.Boot(ctx, console)
		})
		if err != nil {
			return err
		}
		r.session = s
		r.result.Boots++
		_, err = s.awaitHello(ctx)
		r.keepSplats(s)
		return err
	}
	s, err := r.open(link.ResumeConn, func(console func(string)) (VM, error) {
		return r.snapshot.Restore(ctx, console)
	})
	if err != nil {
		return err
	}
	r.session = s
	r.result.Restores = append(r.result.Restores, time.Since(started))
	return nil
}

// open starts a machine and the session that watches it.
func (r *runner) open(connect func(io.ReadWriter) *link.Conn, start func(console func(string)) (VM, error)) (*session, error) {
	s := newSession(r)
	vm, err := start(s.consoleLine)
	if err != nil {
		return nil, err
	}
	s.attach(vm, connect(vm.Link()))
	return s, nil
}

// shutdown ends the last machine the polite way, because a kernel can complain
// then too: leaked sockets and namespaces show up late.
func (r *runner) shutdown(ctx context.Context) error {
	s := r.session
	if s == nil {
		return nil
	}
	r.harvest(ctx, s)
	err := s.powerOff(ctx)
	r.keepSplats(s)
	s.close()
	r.session = nil
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		r.console.note("power-off: %v", err)
	}
	return nil
}

// errLost says that a machine cannot go on; the case that ran has got its status.
var errLost = errors.New("machine lost")

func lost(format string, args ...any) error {
	return fmt.Errorf("%w: %s", errLost, fmt.Sprintf(format, args...))
}
