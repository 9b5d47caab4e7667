// SPDX-License-Identifier: BSD-3-Clause

// Package agent is PID 1 of the guest: it mounts, lays the network, watches over the
// worker process that runs the cases, and powers off.
//
// PID 1 itself touches no socket under test. Whatever a case does to its
// process, PID 1 can still say what happened. It sleeps while cases run: the worker
// talks to the host by itself.
package agent

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/zcvet/zcvet/guest/debugfs"
	"github.com/zcvet/zcvet/guest/link"
	"github.com/zcvet/zcvet/guest/network"
	"github.com/zcvet/zcvet/guest/trace"
)

const (
	// killPatience is how long a worker gets to die, at a TimeScale of 1.
	killPatience = 2 * time.Second
	// readyPatience is how long a fresh worker may be silent before PID 1 says
	// where it is, and says so again. When to give up is for the host to know.
	readyPatience = 10 * time.Second
	// lookInterval is how often PID 1 looks whether the case takes too long.
	lookInterval = 2 * link.HeartbeatInterval
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
	lay  func() error
	host *link.Conn
	// cases is the port of the worker, which PID 1 only hands on.
	cases int

	// debugfs is where it is mounted.
	debugfs string

	// killPatience, readyPatience and lookInterval are the constants of those
	// names, but for tests.
	killPatience, readyPatience, lookInterval time.Duration

	fromHost chan received
	// worker is nil once it has been lost.
	worker *workerProcess
	// console is the kernel's log.
	console *os.File
	// trace holds the record of the system calls of the case that runs. It
	// outlives the worker that writes it.
	trace *os.File
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
			_ = a.system.Signal(a.worker.pid, unix.SIGKILL)
		}
	}()

	err := a.begin()
	if err == nil {
		owned.Go(func() { a.beat(stop) })
		go a.hear(stop)
		err = a.obey()
	}
	if errors.Is(err, errShutdown) {
		return nil
	}
	_ = a.host.Send(link.KindFatal, link.Fatal{Error: err.Error()})
	return err
}

// hear turns the host's messages into a channel, up to and including the error that
// ends them.
func (a *Agent) hear(stop <-chan struct{}) {
	for {
		message, err := a.host.Receive()
		select {
		case a.fromHost <- received{message, err}:
		case <-stop:
			return
		}
		if err != nil {
			return
		}
	}
}

// begin lays the network while the worker starts, which says hello to the host when
// it hears of the network.
func (a *Agent) begin() error {
	if err := a.launch(); err != nil {
		return fmt.Errorf("start a worker: %w", err)
	}
	if err := a.lay(); err != nil {
		return fmt.Errorf("lay the network: %w", err)
	}
	if err := a.worker.tell(setup{Missing: a.network.Missing}); err != nil {
		// Of a worker that is dead, obey says more.
		a.output("", fmt.Sprintf("the worker was not told of the network: %v", err))
	}
	return nil
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

// obey watches the worker and does what the host asks.
func (a *Agent) obey() error {
	look := time.NewTicker(a.lookInterval)
	defer look.Stop()
	for {
		var err error
		select {
		case got := <-a.fromHost:
			if got.err != nil {
				return fmt.Errorf("receive from the host: %w", got.err)
			}
			err = a.answer(got.message.Kind)
		case status := <-a.death():
			err = a.bury(status, link.CaseEnd{Status: "fail"})
		case <-look.C:
			err = a.look()
		}
		if err != nil {
			return err
		}
	}
}

// answer does what the host asks for with a message.
func (a *Agent) answer(kind link.Kind) error {
	switch kind {
	case link.KindShutdown:
		return errShutdown
	case link.KindCounters:
		return a.host.Send(link.KindCounters, debugfs.CountersOf(a.debugfs))
	case link.KindLeaks:
		return a.host.Send(link.KindLeaks, debugfs.FindLeaks(a.debugfs))
	}
	return fmt.Errorf("unexpected %s message from the host", kind)
}

// death delivers how the worker died, once; nothing of a worker that is lost.
func (a *Agent) death() <-chan unix.WaitStatus {
	if a.worker == nil {
		return nil
	}
	return a.worker.died
}

// look looks whether the worker takes too long.
func (a *Agent) look() error {
	w := a.worker
	if w == nil {
		return nil
	}
	if w.sheet.ready.Load() == 0 && link.Now()-w.heard > a.readyPatience {
		w.heard = link.Now()
		a.output("", fmt.Sprintf("a fresh worker is silent for %v", w.heard-w.started))
		a.showStacks("")
		return nil
	}
	if s := w.sheet.current(); s.id != "" && link.Now()-s.began > s.limit {
		return a.timeOut(s)
	}
	return nil
}

// timeOut ends a case that ran into its limit. Go's runtime answers SIGQUIT with
// the stacks of all goroutines, which goes into the log.
func (a *Agent) timeOut(late shift) error {
	w := a.worker
	a.showStacks(late.id)
	detail := fmt.Sprintf("not finished after %v, killed; the log has its stacks", late.limit)
	var status unix.WaitStatus
	dead := false
	for _, signal := range []unix.Signal{unix.SIGQUIT, unix.SIGKILL} {
		_ = a.system.Signal(w.pid, signal)
		if status, dead = w.diesWithin(late.grace); dead {
			break
		}
	}
	if !dead {
		a.showStacks(late.id)
		return fmt.Errorf("%s: the worker cannot be killed: it is stuck in the kernel (%s)", late.id, detail)
	}
	return a.bury(status, link.CaseEnd{ID: late.id, Status: statusTimeout, Detail: detail})
}

// showStacks sends where the kernel has the worker's threads.
func (a *Agent) showStacks(id string) {
	a.output(id, a.system.Stacks(a.worker.pid)...)
}

// bury tells the host of the worker's death. End is what is known of it. With an ID,
// that case alone is to blame: if it has ended by itself in the last moment, and
// another has begun, then that one can run again.
func (a *Agent) bury(status unix.WaitStatus, end link.CaseEnd) error {
	w := a.worker
	a.worker = nil
	last, blamed := w.sheet.current(), end.ID
	printed := w.output.finish(max(last.grace, a.killPatience))
	if end.Detail == "" {
		end.Detail = epitaph(status)
		if printed != "" {
			end.Detail += "\n" + printed
		}
	}
	if w.sheet.ready.Load() == 0 {
		return fmt.Errorf("a fresh worker was lost: %s", end.Detail)
	}
	end.ID = last.id
	if blamed != "" && blamed != last.id {
		end.ID = ""
	}
	if end.ID != "" {
		end.Took = link.Now() - last.began
		end.Trace = packTrace(a.trace)
		var err error
		if end.Tainted, err = readTainted(a.system); err != nil {
			return err
		}
		if err := printMark(a.console, link.EndMark); err != nil {
			return err
		}
	}
	return a.host.Send(link.KindLost, link.Lost{CaseEnd: end, Frames: w.sheet.frames.Load()})
}

// readTainted returns the kernel's taint flags.
func readTainted(s system) (uint64, error) {
	flags, err := s.Tainted()
	if err != nil {
		return 0, fmt.Errorf("read the taint flags: %w", err)
	}
	return flags, nil
}

// packTrace returns the record of the case that has just ended, nil when there is
// none.
func packTrace(record *os.File) []byte {
	region := make([]byte, trace.Size)
	if _, err := record.ReadAt(region, 0); err != nil {
		return nil
	}
	packed, err := trace.Pack(region)
	if err != nil {
		return nil
	}
	return packed
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

// printMark puts a line on the console. It comes in order with what the kernel
// prints, as it goes through the kernel's own log: what is written to the console
// device overtakes it.
func printMark(kernelLog *os.File, mark string) error {
	// KERN_WARNING is the level of a splat, so that both are shown. Without the
	// newline the record would wait for more text, unseen.
	if _, err := kernelLog.WriteString("<4>" + mark + "\n"); err != nil {
		return fmt.Errorf("mark the case on the console: %w", err)
	}
	return nil
}

// output sends lines to the host. An error is that of the connection, which
// whoever waits for the host sees too.
func (a *Agent) output(id string, lines ...string) {
	_ = a.host.Send(link.KindLog, link.Log{ID: id, Lines: lines})
}
