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
	// Link is the guest link to PID 1, Cases that to the worker. Reading them
	// returns an error once the machine is gone.
	Link() io.ReadWriter
	Cases() io.ReadWriter
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
	// Boot starts a machine with so many processors.
	Boot(ctx context.Context, processors int, console func(line string)) (VM, error)
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
	// Concurrent says that all wanted cases are, so that the first machine has the
	// processors for them before its agent has told what cases there are.
	Concurrent bool
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
	Boot     time.Duration // exec of QEMU to Hello, of the first machine
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
	var saved stock
	defer saved.close()
	first, err := newRunner(options, 1, &saved)
	if err != nil {
		return newResult(), err
	}
	instances, err := first.begin(ctx)
	if err != nil {
		first.close()
		return first.result, err
	}
	return share(ctx, first, instances)
}

func newResult() *Result { return &Result{Traces: make(map[string]*trace.Record)} }

// runner runs its share of the cases in one machine after the other.
type runner struct {
	Options
	result  *Result
	stock   *stock
	console consoleLog
	// instances are the cases by their ids.
	instances map[string]link.Instance
	// session is with the machine that runs, nil if none does.
	session *session
}

// newRunner makes the runner of that number.
func newRunner(options Options, number int, saved *stock) (*runner, error) {
	r := &runner{Options: options, result: newResult(), stock: saved, instances: make(map[string]link.Instance)}
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

// begin starts the first machine and selects the cases.
func (r *runner) begin(ctx context.Context) ([]link.Instance, error) {
	kind := alone
	if r.Concurrent {
		kind = together
	}
	hello, err := r.bringUp(ctx, kind)
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
	return hello.Instances, nil
}

// boot starts a machine from power-on and waits for its agent.
func (r *runner) boot(ctx context.Context, processors int) (*link.Hello, error) {
	started := time.Now()
	s, err := r.open(link.NewConn, processors, func(console func(string)) (VM, error) {
		return r.Booter.Boot(ctx, processors, console)
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
	if r.result.Boot == 0 {
		r.result.Boot = time.Since(started)
		r.result.Features = hello.Features
	}
	return hello, nil
}

// takeSnapshot saves the machine while the agent waits for work and the host has
// sent nothing yet, which is what link.ResumeConn relies on. It returns nil for a
// machine that cannot be saved.
func (r *runner) takeSnapshot(ctx context.Context) Snapshot {
	snapshot, err := r.session.vm.Snapshot(ctx)
	if err != nil {
		// It can still run cases; a crash then costs a boot instead of a
		// restore.
		r.console.note("no snapshot: %v", err)
		return nil
	}
	return snapshot
}

// restore starts a machine from a snapshot.
func (r *runner) restore(ctx context.Context, snapshot Snapshot, processors int) error {
	started := time.Now()
	s, err := r.open(link.ResumeConn, processors, func(console func(string)) (VM, error) {
		return snapshot.Restore(ctx, console)
	})
	if err != nil {
		return err
	}
	r.session = s
	r.result.Restores = append(r.result.Restores, time.Since(started))
	return nil
}

// want adds a case to those that are to run.
func (r *runner) want(instance link.Instance) {
	r.result.Cases = append(r.result.Cases, newCase(instance))
	r.instances[instance.ID] = instance
}

func newCase(instance link.Instance) verdict.Case {
	return verdict.Case{
		ID: instance.ID, Name: instance.Name, Covers: instance.Covers,
		Proto: instance.Proto, Family: instance.Family, Link: instance.Link,
		Level: verdict.Level(instance.Level),
	}
}

// runAll runs every case that has no status yet, in as many machines as it takes.
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
		batch, processors := r.batch(left)
		if r.session != nil && r.session.processors != processors {
			if err := r.shutdown(ctx); err != nil {
				return err
			}
		}
		if r.session == nil {
			if _, err := r.bringUp(ctx, processors); err != nil {
				return err
			}
		}
		finished, err := r.runIn(ctx, r.session, batch)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if errors.Is(err, errSpent) {
			if err := r.shutdown(ctx); err != nil {
				return err
			}
		} else if err != nil {
			r.keepRest(r.session)
			r.close()
			if r.gathers() {
				r.miss("a machine took along what its kernel had gathered: %v", err)
			}
		}
		if err == nil || finished > 0 {
			losses = 0
		} else if losses++; losses == maxLosses {
			return fault.New(fault.Infrastructure, "%d machines in a row were lost before a case could run: %w", losses, err)
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

// batch returns those of the cases that are left that can run in one machine, and
// its processors: first those for the machine that runs, then those for any other.
func (r *runner) batch(left []string) (batch []string, processors int) {
	processors = alone
	if r.session != nil {
		processors = r.session.processors
	}
	fits := func(id string) bool { return processorsOf(r.instances[id]) == processors }
	if !slices.ContainsFunc(left, fits) {
		processors = processorsOf(r.instances[left[0]])
	}
	return slices.DeleteFunc(slices.Clone(left), func(id string) bool { return !fits(id) }), processors
}

func (r *runner) find(id string) *verdict.Case {
	i := slices.IndexFunc(r.result.Cases, func(c verdict.Case) bool { return c.ID == id })
	if i < 0 {
		return nil
	}
	return &r.result.Cases[i]
}

// open starts a machine and the session that watches it.
func (r *runner) open(connect func(io.ReadWriter) *link.Conn, processors int, start func(console func(string)) (VM, error)) (*session, error) {
	s := newSession(r, processors)
	vm, err := start(s.consoleLine)
	if err != nil {
		return nil, err
	}
	s.attach(vm, connect(vm.Link()), connect(vm.Cases()))
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
	r.keepRest(s)
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

// errLost says that a machine cannot go on, errSpent that it can do everything but
// run cases. The case that ran has got its status.
var (
	errLost  = errors.New("machine lost")
	errSpent = errors.New("no other case can run")
)

func lost(format string, args ...any) error {
	return fmt.Errorf("%w: %s", errLost, fmt.Sprintf(format, args...))
}
