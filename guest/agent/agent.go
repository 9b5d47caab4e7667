// SPDX-License-Identifier: BSD-3-Clause

// Package agent is PID 1 of the guest: it mounts, lays the network, runs cases in
// a worker process as the host asks for them, and powers off.
//
// PID 1 itself touches no socket under test. Whatever a case does to its
// process, PID 1 can still say what happened.
package agent

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/zcvet/zcvet/guest/cases"
	"github.com/zcvet/zcvet/guest/debugfs"
	"github.com/zcvet/zcvet/guest/link"
	"github.com/zcvet/zcvet/guest/network"
	"github.com/zcvet/zcvet/guest/trace"
)

const (
	// defaultCaseTimeout bounds a case whose Run names no limit.
	defaultCaseTimeout = 30 * time.Second
	// killPatience is how long a worker gets to die, at a TimeScale of 1.
	killPatience = 2 * time.Second
	// readyPatience bounds the start of a worker, which is never scaled: even
	// a debug kernel under emulation starts a process in a second or two.
	readyPatience = 30 * time.Second
	// statusTimeout is the status that only PID 1 can give a case.
	statusTimeout = "timeout"
)

// errShutdown ends Serve when the host asks for it.
var errShutdown = errors.New("the host asked for shutdown")

// Agent is PID 1's side of the guest link.
type Agent struct {
	system  system
	network *network.Network
	// lay lays the network, once.
	lay    func() error
	host   *link.Conn
	reaper *reaper

	// debugfs is where it is mounted.
	debugfs string
	// history is when which case ran, for what is found out later.
	history []debugfs.Event

	// killPatience is the constant of that name, but for tests.
	killPatience time.Duration

	fromHost chan received
	worker   *workerProcess
	// trace holds the record of the system calls of the case that runs. All
	// workers write to the same one, so that it outlives each.
	trace   *os.File
	tainted uint64 // as the last case left the kernel
	// calls on their way to the host, by the number PID 1 gave them. A worker
	// numbers its own, so those of a dead one and of its successor would mix.
	calls       map[uint64]pendingCall
	callNumbers uint64
}

type pendingCall struct {
	worker *workerProcess
	number uint64
}

// received is a message or the error that ends a connection.
type received struct {
	message *link.Message
	err     error
}

// serve talks to the host until it asks for shutdown, which returns nil. On any
// other end the host has been told by a Fatal message, if it could be reached.
func (a *Agent) serve() error {
	stop := make(chan struct{})
	var owned sync.WaitGroup
	defer owned.Wait()
	defer close(stop)
	defer func() {
		if a.worker != nil {
			a.worker.abandon()
		}
	}()

	err := a.sayHello()
	if err == nil {
		owned.Go(func() { a.beat(stop) })
		go forward(a.host, a.fromHost, stop)
		err = a.obey()
	}
	if errors.Is(err, errShutdown) {
		return nil
	}
	_ = a.host.Send(link.KindFatal, link.Fatal{Error: err.Error()})
	return err
}

// forward turns a connection into a channel, up to and including the error that
// ends it.
func forward(conn *link.Conn, to chan<- received, stop <-chan struct{}) {
	for {
		message, err := conn.Receive()
		select {
		case to <- received{message, err}:
		case <-stop:
			return
		}
		if err != nil {
			return
		}
	}
}

// sayHello lays the network while the first worker starts, and passes the
// worker's Hello on. A snapshot taken at Hello so holds a worker.
func (a *Agent) sayHello() error {
	if err := a.launch(); err != nil {
		return err
	}
	if err := a.lay(); err != nil {
		return fmt.Errorf("lay the network: %w", err)
	}
	hello, err := a.greet()
	if err != nil {
		return err
	}
	if err := debugfs.ResetCounters(a.debugfs); err != nil {
		return fmt.Errorf("reset the counters of executed lines: %w", err)
	}
	return a.host.Send(link.KindHello, hello)
}

// beat shows the host that PID 1 is scheduled.
func (a *Agent) beat(stop <-chan struct{}) {
	ticker := time.NewTicker(link.HeartbeatInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			if a.host.Send(link.KindHeartbeat, nil) != nil {
				return // whoever waits for the host sees the same
			}
		case <-stop:
			return
		}
	}
}

// obey does what the host asks.
func (a *Agent) obey() error {
	for {
		message, err := a.next(<-a.fromHost)
		if err != nil {
			return err
		}
		switch message.Kind {
		case link.KindRun:
			run, err := link.Decode[link.Run](message)
			if err != nil {
				return err
			}
			if mutant := run.Parameter.Mutant; mutant != "" {
				if err := a.system.SetMutant(mutant); err != nil {
					return fmt.Errorf("make the kernel mutant %q: %w", mutant, err)
				}
			}
			for _, id := range run.Instances {
				if err := a.runCase(id, run.Parameter); err != nil {
					return err
				}
			}
			if err := a.host.Send(link.KindDone, link.Done{Ran: len(run.Instances)}); err != nil {
				return err
			}
		case link.KindReply:
			a.passReply(message)
		case link.KindCounters:
			if err := a.host.Send(link.KindCounters, debugfs.CountersOf(a.debugfs)); err != nil {
				return err
			}
		case link.KindLeaks:
			if err := a.host.Send(link.KindLeaks, debugfs.FindLeaks(a.debugfs, a.history)); err != nil {
				return err
			}
		default:
			return fmt.Errorf("unexpected %s message from the host", message.Kind)
		}
	}
}

// next turns what came from the host into a message, or errShutdown.
func (a *Agent) next(got received) (*link.Message, error) {
	if got.err != nil {
		return nil, fmt.Errorf("receive from the host: %w", got.err)
	}
	if got.message.Kind == link.KindShutdown {
		return nil, errShutdown
	}
	return got.message, nil
}

// runCase runs one instance in the worker. The error is about the agent, not
// about the case.
func (a *Agent) runCase(id string, parameters link.Parameters) error {
	limit := parameters.CaseTimeout
	if limit <= 0 {
		limit = defaultCaseTimeout
	}
	grace := time.Duration(float64(a.killPatience) * max(parameters.TimeScale, 1))

	if err := a.requireWorker(); err != nil {
		return err
	}
	if err := a.host.Send(link.KindCaseStart, link.CaseStart{ID: id}); err != nil {
		return err
	}
	if err := a.system.Print(link.StartMark(id)); err != nil {
		return fmt.Errorf("mark the case on the console: %w", err)
	}
	started := time.Now()
	a.history = append(a.history, debugfs.Event{Case: id, At: started})
	end, err := a.await(id, parameters, limit, grace)
	if err != nil {
		return err
	}
	if end.Took == 0 {
		end.Took = time.Since(started)
	}
	if end.Tainted, err = a.system.Tainted(); err != nil {
		return fmt.Errorf("read the taint flags: %w", err)
	}
	if end.Status == string(cases.Fail) || end.Status == statusTimeout || end.Tainted != a.tainted {
		end.Trace = a.packTrace()
	}
	a.tainted = end.Tainted
	if err := a.system.Print(link.EndMark); err != nil {
		return fmt.Errorf("mark the case on the console: %w", err)
	}
	return a.host.Send(link.KindCaseEnd, end)
}

// packTrace returns the record of the case that has just ended, nil when there is
// none.
func (a *Agent) packTrace() []byte {
	region := make([]byte, trace.Size)
	if _, err := a.trace.ReadAt(region, 0); err != nil {
		return nil
	}
	packed, err := trace.Pack(region)
	if err != nil {
		return nil
	}
	return packed
}

// requireWorker makes sure that there is a worker. One that died after its case
// had ended says nothing about the next one.
func (a *Agent) requireWorker() error {
	if a.worker != nil {
		select {
		case status := <-a.worker.died:
			a.output("", "between two cases the worker was lost: "+epitaph(status))
			a.worker.abandon()
			a.worker = nil
		default:
			return nil
		}
	}
	if err := a.launch(); err != nil {
		return err
	}
	_, err := a.greet()
	return err
}

// await passes messages between worker and host until the instance has ended
// one way or another.
func (a *Agent) await(id string, parameters link.Parameters, limit, grace time.Duration) (link.CaseEnd, error) {
	w := a.worker
	w.output.begin(id)
	deadline := time.Now().Add(limit)
	// A worker that does not read must not stop PID 1.
	_ = w.file.SetWriteDeadline(deadline)
	timer := time.NewTimer(limit)
	defer timer.Stop()

	ask := link.Run{Instances: []string{id}, Parameter: parameters}
	if err := w.conn.Send(link.KindRun, ask); err != nil {
		return a.bury(id, grace, fmt.Sprintf("the worker cannot be reached: %v", err))
	}
	for {
		select {
		case got := <-w.messages:
			if got.err != nil {
				return a.bury(id, grace, fmt.Sprintf("the worker's messages ended: %v", got.err))
			}
			switch got.message.Kind {
			case link.KindCaseEnd:
				end, err := link.Decode[link.CaseEnd](got.message)
				if err == nil && end.ID == id {
					return end, nil
				}
				return a.bury(id, grace, fmt.Sprintf("the worker reported on %q (%v)", end.ID, err))
			case link.KindLog:
				if err := a.host.Send(link.KindLog, got.message.Body); err != nil {
					return link.CaseEnd{}, err
				}
			case link.KindCall:
				call, err := link.Decode[link.Call](got.message)
				if err != nil {
					return a.bury(id, grace, err.Error())
				}
				if err := a.passCall(w, call); err != nil {
					return link.CaseEnd{}, err
				}
			default:
				return a.bury(id, grace, fmt.Sprintf("the worker sent a %s message", got.message.Kind))
			}
		case got := <-a.fromHost:
			message, err := a.next(got)
			if err != nil {
				return link.CaseEnd{}, err
			}
			if message.Kind != link.KindReply {
				return link.CaseEnd{}, fmt.Errorf("unexpected %s message from the host while %s runs", message.Kind, id)
			}
			a.passReply(message)
		case <-timer.C:
			return a.timeOut(id, limit, grace)
		}
	}
}

// passCall sends a worker's call to the host under a number of PID 1's own.
func (a *Agent) passCall(w *workerProcess, call link.Call) error {
	a.callNumbers++
	a.calls[a.callNumbers] = pendingCall{worker: w, number: call.Number}
	call.Number = a.callNumbers
	return a.host.Send(link.KindCall, call)
}

// passReply gives the host's answer to the worker that asked, if it still lives.
func (a *Agent) passReply(message *link.Message) {
	reply, err := link.Decode[link.Reply](message)
	if err != nil {
		a.output("", fmt.Sprintf("reply of the host: %v", err))
		return
	}
	pending, known := a.calls[reply.Number]
	delete(a.calls, reply.Number)
	if !known || pending.worker != a.worker {
		return
	}
	reply.Number = pending.number
	// A worker that does not take it is found by the time-out of its case.
	_ = a.worker.conn.Send(link.KindReply, reply)
}

// timeOut ends a case that ran into its limit. Go's runtime answers SIGQUIT with
// the stacks of all goroutines, which goes into the log.
func (a *Agent) timeOut(id string, limit, grace time.Duration) (link.CaseEnd, error) {
	for _, line := range a.system.Stacks(a.worker.pid) {
		a.output(id, line)
	}
	_ = a.system.Signal(a.worker.pid, unix.SIGQUIT)
	detail := fmt.Sprintf("not finished after %v, killed; the log has its stacks", limit)
	end, err := a.bury(id, grace, detail)
	end.Status, end.Detail = statusTimeout, detail
	return end, err
}

// bury waits for a worker that is dead or should be, helps it along, and tells
// how it died. The next case gets a new one.
func (a *Agent) bury(id string, grace time.Duration, why string) (link.CaseEnd, error) {
	w := a.worker
	a.worker = nil
	defer w.abandon()
	var status unix.WaitStatus
	select {
	case status = <-w.died:
	case <-time.After(grace):
		_ = a.system.Signal(w.pid, unix.SIGKILL)
		select {
		case status = <-w.died:
		case <-time.After(grace):
			for _, line := range a.system.Stacks(w.pid) {
				a.output(id, line)
			}
			return link.CaseEnd{}, fmt.Errorf("%s: the worker cannot be killed: it is stuck in the kernel (%s)", id, why)
		}
	}
	printed := w.output.finish(grace)
	detail := fmt.Sprintf("%s; %s", why, epitaph(status))
	if printed != "" {
		detail += "\n" + printed
	}
	return link.CaseEnd{ID: id, Status: "fail", Detail: detail}, nil
}

// epitaph says how a process ended.
func epitaph(status unix.WaitStatus) string {
	switch {
	case status.Signaled():
		return fmt.Sprintf("its process died of %v: the kernel killed it, or the Go runtime gave up", status.Signal())
	case status.Exited():
		return fmt.Sprintf("its process ended with exit code %d", status.ExitStatus())
	}
	return fmt.Sprintf("its process ended with status %#x", uint32(status))
}

// output sends a line to the host. An error is that of the connection, which
// whoever waits for the host sees too.
func (a *Agent) output(id, line string) {
	_ = a.host.Send(link.KindLog, link.Log{ID: id, Line: line})
}
