// SPDX-License-Identifier: BSD-3-Clause

package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/zcvet/zcvet/guest/link"
	"github.com/zcvet/zcvet/guest/network"
)

// fakeSystem stands in for the kernel under PID 1. Its workers are goroutines
// that follow a script.
type fakeSystem struct {
	// script is what the nth worker does, from 0. A worker ends when it
	// returns, or when it is killed.
	script func(n int, w *fakeWorker)
	// mount and sysctl fail when they return an error.
	mount  func(target string) error
	sysctl func(name string) error
	mutant func(name string) error

	// killPatience is long, so that a worker that dies as it should always has
	// the time, but in tests of workers that do not.
	killPatience time.Duration

	deaths chan death

	lock    sync.Mutex
	mounts  []string
	printed []string
	workers []*fakeWorker
	signals []unix.Signal
}

type death struct {
	pid    int
	status unix.WaitStatus
}

// Statuses as wait reports them.
const (
	exited0 = unix.WaitStatus(0)
	exited2 = unix.WaitStatus(2 << 8)
	killed  = unix.WaitStatus(unix.SIGKILL)
)

func newFakeSystem(script func(n int, w *fakeWorker)) *fakeSystem {
	return &fakeSystem{script: script, killPatience: time.Minute, deaths: make(chan death, 16)}
}

func (f *fakeSystem) Mount(_, target, _ string) error {
	f.mounts = append(f.mounts, target)
	if f.mount != nil {
		return f.mount(target)
	}
	return nil
}

func (f *fakeSystem) SetSysctl(name, _ string) error {
	if f.sysctl != nil {
		return f.sysctl(name)
	}
	return nil
}

func (f *fakeSystem) SetMutant(name string) error {
	if f.mutant != nil {
		return f.mutant(name)
	}
	return nil
}

func (f *fakeSystem) Print(line string) error {
	f.lock.Lock()
	defer f.lock.Unlock()
	f.printed = append(f.printed, line)
	return nil
}

func (f *fakeSystem) StartWorker(files []int) (int, error) {
	if len(files) != workerFiles {
		return 0, fmt.Errorf("%d files for a worker", len(files))
	}
	dup := func(fd int) *os.File {
		copied, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			panic(err)
		}
		return os.NewFile(uintptr(copied), "worker file")
	}
	stream, out := dup(files[workerLink]), dup(files[1])
	f.lock.Lock()
	defer f.lock.Unlock()
	n := len(f.workers)
	w := &fakeWorker{
		pid: 100 + n, conn: link.NewConn(stream), stream: stream, out: out,
		signals: make(chan unix.Signal, 4), release: make(chan struct{}),
	}
	f.workers = append(f.workers, w)
	go func() {
		status := exited0
		defer func() {
			out.Close()
			stream.Close()
			f.deaths <- death{w.pid, status}
		}()
		defer func() {
			if reason := recover(); reason != nil {
				var isStatus bool
				if status, isStatus = reason.(unix.WaitStatus); !isStatus {
					panic(reason)
				}
			}
		}()
		f.script(n, w)
	}()
	return w.pid, nil
}

func (f *fakeSystem) Wait() (int, unix.WaitStatus, error) {
	d := <-f.deaths
	return d.pid, d.status, nil
}

func (f *fakeSystem) Signal(pid int, signal unix.Signal) error {
	f.lock.Lock()
	defer f.lock.Unlock()
	f.signals = append(f.signals, signal)
	f.workers[pid-100].signals <- signal
	return nil
}

func (f *fakeSystem) Stacks(pid int) []string  { return []string{fmt.Sprintf("stack of %d", pid)} }
func (f *fakeSystem) Tainted() (uint64, error) { return 512, nil }
func (f *fakeSystem) PowerOff() error          { return nil }

// fakeWorker is the worker's end of the connection.
type fakeWorker struct {
	pid     int
	conn    *link.Conn
	stream  *os.File
	out     *os.File
	signals chan unix.Signal
	release chan struct{}
}

// die ends the worker as if it had been reaped with status.
func (w *fakeWorker) die(status unix.WaitStatus) { panic(status) }

func (w *fakeWorker) receive() *link.Message {
	message, err := w.conn.Receive()
	if err != nil {
		w.die(exited0)
	}
	return message
}

// greet does what a worker does before its first case.
func (w *fakeWorker) greet() {
	w.receive()
	_ = w.conn.Send(link.KindHello, link.Hello{Version: link.Version, Release: "6.12"})
}

// nextCase waits for a case and returns its id.
func (w *fakeWorker) nextCase() string {
	for {
		if message := w.receive(); message.Kind == link.KindRun {
			run, err := link.Decode[link.Run](message)
			if err != nil || len(run.Instances) != 1 {
				panic(fmt.Sprintf("run %s: %v", message.Body, err))
			}
			return run.Instances[0]
		}
	}
}

func (w *fakeWorker) pass(id string) {
	_ = w.conn.Send(link.KindCaseEnd, link.CaseEnd{ID: id, Status: "pass", Took: time.Millisecond})
}

// passAll is the rest of a good worker's life.
func (w *fakeWorker) passAll() {
	for {
		w.pass(w.nextCase())
	}
}

// host is the test's end of the guest link.
type host struct {
	t      *testing.T
	agent  *Agent
	conn   *link.Conn
	served chan error
}

// serve runs an agent on a fake system and returns the host's end of its link.
func serve(t *testing.T, system *fakeSystem) *host {
	t.Helper()
	ours, theirs := net.Pipe()
	t.Cleanup(func() { ours.Close(); theirs.Close() })
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { null.Close() })
	namespace := network.FromFD(int(null.Fd()))
	a := newAgent(system, &network.Network{Sender: namespace, Receiver: namespace}, link.NewConn(theirs))
	a.debugfs = t.TempDir()
	a.killPatience = system.killPatience
	go a.reaper.run()
	h := &host{t: t, agent: a, conn: link.NewConn(ours), served: make(chan error, 1)}
	go func() { h.served <- a.serve() }()
	return h
}

// next returns the next message that is neither a heartbeat nor, unless the test
// asks for one, a log line.
func (h *host) next(kind link.Kind) *link.Message {
	h.t.Helper()
	for {
		message, err := h.conn.Receive()
		if err != nil {
			h.t.Fatalf("waiting for %s: %v", kind, err)
		}
		switch message.Kind {
		case kind:
			return message
		case link.KindHeartbeat, link.KindLog, link.KindCaseStart:
		default:
			h.t.Fatalf("%s message %s where %s was due", message.Kind, message.Body, kind)
		}
	}
}

func (h *host) run(limit time.Duration, ids ...string) {
	h.t.Helper()
	h.send(link.KindRun, link.Run{Instances: ids, Parameter: link.Parameters{CaseTimeout: limit}})
}

func (h *host) send(kind link.Kind, body any) {
	h.t.Helper()
	if err := h.conn.Send(kind, body); err != nil {
		h.t.Fatal(err)
	}
}

func (h *host) expectEnd(id, status, detail string) {
	h.t.Helper()
	end := decode[link.CaseEnd](h.t, h.next(link.KindCaseEnd))
	if end.ID != id || end.Status != status || !strings.Contains(end.Detail, detail) {
		h.t.Errorf("case ended as %+v, want %s %s with %q", end, id, status, detail)
	}
	if end.Tainted != 512 {
		h.t.Errorf("%s: taint flags %d are not the kernel's", id, end.Tainted)
	}
}

// shutdown ends the agent and expects that it ends well.
func (h *host) shutdown() {
	h.t.Helper()
	go h.drain()
	h.send(link.KindShutdown, nil)
	if err := <-h.served; err != nil {
		h.t.Errorf("serve: %v", err)
	}
}

// drain takes what the agent still says.
func (h *host) drain() {
	for {
		if _, err := h.conn.Receive(); err != nil {
			return
		}
	}
}

func decode[T any](t *testing.T, message *link.Message) T {
	t.Helper()
	body, err := link.Decode[T](message)
	if err != nil {
		t.Fatal(err)
	}
	return body
}

func TestRunInTheOrderTheHostAsksFor(t *testing.T) {
	system := newFakeSystem(func(_ int, w *fakeWorker) {
		w.greet()
		for {
			id := w.nextCase()
			_ = w.conn.Send(link.KindLog, link.Log{ID: id, Line: "note"})
			w.pass(id)
		}
	})
	h := serve(t, system)
	if hello := decode[link.Hello](t, h.next(link.KindHello)); hello.Release != "6.12" {
		t.Errorf("hello %+v", hello)
	}
	h.run(time.Minute, "b", "a")
	var got []string
	for len(got) == 0 || !strings.HasPrefix(got[len(got)-1], "done") {
		message, err := h.conn.Receive()
		if err != nil {
			t.Fatal(err)
		}
		var body struct {
			ID, Line, Status string
			Ran              int
		}
		if message.Body != nil {
			if err := json.Unmarshal(message.Body, &body); err != nil {
				t.Fatal(err)
			}
		}
		if message.Kind != link.KindHeartbeat {
			got = append(got, strings.TrimSpace(fmt.Sprint(message.Kind, " ", body.ID, body.Line, body.Status)))
		}
	}
	want := []string{
		"case-start b", "log bnote", "case-end bpass",
		"case-start a", "log anote", "case-end apass", "done",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	h.shutdown()
	if want := []string{link.StartMark("b"), link.EndMark, link.StartMark("a"), link.EndMark}; !slices.Equal(system.printed, want) {
		t.Errorf("console %q, want %q", system.printed, want)
	}
	if len(system.workers) != 1 {
		t.Errorf("%d workers for two good cases", len(system.workers))
	}
}

// TestWorkerThatFails runs one case in a worker that does what it should not,
// and another after it, which must not suffer.
func TestWorkerThatFails(t *testing.T) {
	for _, test := range []struct {
		name    string
		bad     func(w *fakeWorker, id string)
		status  string
		detail  string
		signals []unix.Signal
	}{
		{"dies of a signal", func(w *fakeWorker, _ string) { w.die(killed) }, "fail", "died of killed", nil},
		{"gives up", func(w *fakeWorker, _ string) {
			_, _ = w.out.WriteString("fatal error: oh no\ngoroutine 1\n")
			w.die(exited2)
		}, "fail", "exit code 2\nfatal error: oh no\ngoroutine 1", nil},
		{"ends by itself", func(*fakeWorker, string) {}, "fail", "exit code 0", nil},
		{"hangs, ends by SIGQUIT", func(w *fakeWorker, _ string) {
			if signal := <-w.signals; signal == unix.SIGQUIT {
				_, _ = w.out.WriteString("SIGQUIT: quit\n")
			}
			w.die(exited2)
		}, "timeout", "not finished after", []unix.Signal{unix.SIGQUIT}},
		{"hangs, ends by SIGKILL only", func(w *fakeWorker, _ string) {
			for <-w.signals != unix.SIGKILL {
			}
			w.die(killed)
		}, "timeout", "not finished after", []unix.Signal{unix.SIGQUIT, unix.SIGKILL}},
		{"sends garbage", func(w *fakeWorker, _ string) {
			_, _ = w.stream.Write([]byte("this is no frame at all"))
			<-w.signals
			w.die(killed)
		}, "fail", "corrupt frame", []unix.Signal{unix.SIGKILL}},
		{"reports on another case", func(w *fakeWorker, _ string) {
			w.pass("another")
			<-w.signals
			w.die(killed)
		}, "fail", `reported on "another"`, []unix.Signal{unix.SIGKILL}},
		{"sends a message of PID 1's", func(w *fakeWorker, _ string) {
			_ = w.conn.Send(link.KindShutdown, nil)
			<-w.signals
			w.die(killed)
		}, "fail", "sent a shutdown message", []unix.Signal{unix.SIGKILL}},
		{"sends a call that is none", func(w *fakeWorker, _ string) {
			_ = w.conn.Send(link.KindCall, []string{"what"})
			<-w.signals
			w.die(killed)
		}, "fail", "call body", []unix.Signal{unix.SIGKILL}},
	} {
		t.Run(test.name, func(t *testing.T) {
			system := newFakeSystem(func(n int, w *fakeWorker) {
				w.greet()
				if n == 0 {
					test.bad(w, w.nextCase())
					return
				}
				w.passAll()
			})
			if slices.Contains(test.signals, unix.SIGKILL) {
				system.killPatience = 20 * time.Millisecond
			}
			h := serve(t, system)
			h.next(link.KindHello)
			limit := time.Minute
			if test.status == "timeout" {
				limit = time.Millisecond
			}
			h.run(limit, "bad")
			h.expectEnd("bad", test.status, test.detail)
			h.next(link.KindDone)
			h.run(time.Minute, "good")
			h.expectEnd("good", "pass", "")
			h.next(link.KindDone)
			h.shutdown()
			if !slices.Equal(system.signals, test.signals) {
				t.Errorf("signals %v, want %v", system.signals, test.signals)
			}
		})
	}
}

func TestTimeOutLeavesItsStacksInTheLog(t *testing.T) {
	system := newFakeSystem(func(_ int, w *fakeWorker) {
		w.greet()
		w.nextCase()
		<-w.signals
		_, _ = w.out.WriteString("SIGQUIT: quit\ngoroutine 7\n")
		w.die(exited2)
	})
	h := serve(t, system)
	h.next(link.KindHello)
	h.run(time.Millisecond, "slow")
	var log []string
	for {
		message, err := h.conn.Receive()
		if err != nil {
			t.Fatal(err)
		}
		if message.Kind == link.KindCaseEnd {
			break
		}
		if message.Kind == link.KindLog {
			line := decode[link.Log](t, message)
			log = append(log, line.ID+": "+line.Line)
		}
	}
	if want := []string{"slow: stack of 100", "slow: SIGQUIT: quit", "slow: goroutine 7"}; !slices.Equal(log, want) {
		t.Errorf("log %q, want %q", log, want)
	}
	h.next(link.KindDone)
	h.shutdown()
}

func TestWorkerThatCannotBeKilledIsFatal(t *testing.T) {
	stuck := make(chan struct{})
	t.Cleanup(func() { close(stuck) })
	system := newFakeSystem(func(_ int, w *fakeWorker) {
		w.greet()
		w.nextCase()
		<-stuck
	})
	system.killPatience = 20 * time.Millisecond
	h := serve(t, system)
	h.next(link.KindHello)
	h.run(time.Millisecond, "stuck")
	if fatal := decode[link.Fatal](t, h.next(link.KindFatal)); !strings.Contains(fatal.Error, "stuck: the worker cannot be killed") {
		t.Errorf("fatal %q", fatal.Error)
	}
	if err := <-h.served; err == nil {
		t.Error("serve returned nil")
	}
}

func TestWorkerLostBetweenCasesIsReplaced(t *testing.T) {
	system := newFakeSystem(func(n int, w *fakeWorker) {
		w.greet()
		if n > 0 {
			w.passAll()
		}
		w.pass(w.nextCase())
		<-w.release
		w.die(killed)
	})
	h := serve(t, system)
	h.next(link.KindHello)
	h.run(time.Minute, "first")
	h.expectEnd("first", "pass", "")
	h.next(link.KindDone)
	close(system.workers[0].release)
	h.awaitReaped(system.workers[0].pid)
	h.run(time.Minute, "second")
	h.expectEnd("second", "pass", "")
	h.next(link.KindDone)
	h.shutdown()
}

// awaitReaped waits until PID 1 has been told how a worker died.
func (h *host) awaitReaped(pid int) {
	reaper := h.agent.reaper
	for waiting := true; waiting; time.Sleep(time.Millisecond) {
		reaper.lock.Lock()
		_, waiting = reaper.waiting[pid]
		reaper.lock.Unlock()
	}
}

func TestFreshWorkerThatFailsIsFatal(t *testing.T) {
	h := serve(t, newFakeSystem(func(_ int, w *fakeWorker) {
		_, _ = w.out.WriteString("worker: no such luck\n")
		w.die(exited2)
	}))
	if fatal := decode[link.Fatal](t, h.next(link.KindFatal)); !strings.Contains(fatal.Error, "exit code 2") || !strings.Contains(fatal.Error, "no such luck") {
		t.Errorf("fatal %q", fatal.Error)
	}
	if err := <-h.served; err == nil {
		t.Error("serve returned nil")
	}
}

func TestCallsAndReplies(t *testing.T) {
	answers := make(chan link.Reply, 1)
	h := serve(t, newFakeSystem(func(n int, w *fakeWorker) {
		w.greet()
		id := w.nextCase()
		_ = w.conn.Send(link.KindCall, link.Call{Number: 1, Method: fmt.Sprintf("from worker %d", n)})
		if n == 0 {
			<-w.signals
			w.die(killed)
		}
		reply, err := link.Decode[link.Reply](w.receive())
		if err != nil {
			panic(err)
		}
		answers <- reply
		w.pass(id)
		w.passAll()
	}))
	h.next(link.KindHello)
	h.run(20*time.Millisecond, "first")
	lost := decode[link.Call](t, h.next(link.KindCall))
	h.expectEnd("first", "timeout", "")
	h.next(link.KindDone)

	h.run(time.Minute, "second")
	call := decode[link.Call](t, h.next(link.KindCall))
	if call.Method != "from worker 1" || call.Number == lost.Number {
		t.Errorf("call %+v after %+v", call, lost)
	}
	h.send(link.KindReply, link.Reply{Number: lost.Number, Result: json.RawMessage(`"late"`)})
	h.send(link.KindReply, link.Reply{Number: 4711, Result: json.RawMessage(`"unasked"`)})
	h.send(link.KindReply, link.Reply{Number: call.Number, Result: json.RawMessage(`"right"`)})
	h.expectEnd("second", "pass", "")
	if reply := <-answers; reply.Number != 1 || string(reply.Result) != `"right"` {
		t.Errorf("the worker got %+v", reply)
	}
	h.next(link.KindDone)
	h.shutdown()
}

func TestShutdownDuringACase(t *testing.T) {
	h := serve(t, newFakeSystem(func(_ int, w *fakeWorker) {
		w.greet()
		w.nextCase()
		w.receive() // ends when PID 1 closes the connection
	}))
	h.next(link.KindHello)
	h.run(time.Minute, "endless")
	h.next(link.KindCaseStart)
	h.shutdown()
}

func TestHeartbeatsGoOnDuringACase(t *testing.T) {
	h := serve(t, newFakeSystem(func(_ int, w *fakeWorker) {
		w.greet()
		w.nextCase()
		w.receive()
	}))
	h.next(link.KindHello)
	h.run(time.Minute, "endless")
	h.next(link.KindCaseStart)
	h.next(link.KindHeartbeat)
	h.shutdown()
}

func TestHostThatBreaksTheProtocol(t *testing.T) {
	for _, test := range []struct {
		name string
		send func(h *host)
		want string
	}{
		{"unexpected message", func(h *host) { h.send(link.KindHello, nil) }, "unexpected hello message"},
		{"a run inside a run", func(h *host) {
			h.run(time.Minute, "a")
			h.next(link.KindCaseStart)
			h.run(time.Minute, "b")
		}, "unexpected run message from the host while a runs"},
		{"a run that is none", func(h *host) { h.send(link.KindRun, 5) }, "run body"},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := serve(t, newFakeSystem(func(_ int, w *fakeWorker) {
				w.greet()
				w.nextCase()
				w.receive()
			}))
			h.next(link.KindHello)
			test.send(h)
			if fatal := decode[link.Fatal](t, h.next(link.KindFatal)); !strings.Contains(fatal.Error, test.want) {
				t.Errorf("fatal %q, want %q", fatal.Error, test.want)
			}
			<-h.served
		})
	}
}

func TestEndOfTheLinkEndsTheAgent(t *testing.T) {
	ours, theirs := net.Pipe()
	system := newFakeSystem(func(_ int, w *fakeWorker) { w.greet(); w.passAll() })
	namespace := network.FromFD(0)
	a := newAgent(system, &network.Network{Sender: namespace, Receiver: namespace}, link.NewConn(theirs))
	a.debugfs = t.TempDir()
	go a.reaper.run()
	served := make(chan error, 1)
	go func() { served <- a.serve() }()
	if _, err := link.NewConn(ours).Receive(); err != nil {
		t.Fatal(err)
	}
	ours.Close()
	if err := <-served; !errors.Is(err, io.EOF) {
		t.Errorf("serve: %v, want EOF", err)
	}
}

func TestBoot(t *testing.T) {
	broken := errors.New("broken")
	for _, test := range []struct {
		name   string
		mount  func(string) error
		sysctl func(string) error
		want   error
	}{
		{"all well", nil, nil, nil},
		{"no debugfs", func(target string) error {
			if target == "/sys/kernel/debug" {
				return broken
			}
			return nil
		}, nil, nil},
		{"no proc", func(target string) error {
			if target == "/proc" {
				return broken
			}
			return nil
		}, nil, broken},
		{"no sysctl", nil, func(string) error { return broken }, broken},
	} {
		t.Run(test.name, func(t *testing.T) {
			system := newFakeSystem(nil)
			system.mount, system.sysctl = test.mount, test.sysctl
			if err := boot(system); !errors.Is(err, test.want) {
				t.Errorf("boot: %v, want %v", err, test.want)
			}
			if system.mounts[0] != "/proc" {
				t.Errorf("mounted %q first; the other steps need /proc", system.mounts[0])
			}
		})
	}
}

func TestOnlyPID1MayBeInit(t *testing.T) {
	if err := mayBeInit(4711); err == nil || !strings.Contains(err.Error(), "PID 4711") {
		t.Errorf("as PID 4711: %v", err)
	}
}

func TestMutantIsSelectedBeforeTheCases(t *testing.T) {
	var selected []string
	system := newFakeSystem(func(_ int, w *fakeWorker) { w.greet(); w.passAll() })
	system.mutant = func(name string) error {
		if name == "unheard_of" {
			return unix.EINVAL
		}
		selected = append(selected, name)
		return nil
	}
	h := serve(t, system)
	h.next(link.KindHello)
	for _, mutant := range []string{"", "holes"} {
		h.send(link.KindRun, link.Run{Instances: []string{"a"}, Parameter: link.Parameters{Mutant: mutant}})
		h.next(link.KindCaseStart)
		h.next(link.KindCaseEnd)
		h.next(link.KindDone)
	}
	h.send(link.KindRun, link.Run{Instances: []string{"a"}, Parameter: link.Parameters{Mutant: "unheard_of"}})
	if fatal := decode[link.Fatal](t, h.next(link.KindFatal)); !strings.Contains(fatal.Error, `"unheard_of"`) {
		t.Errorf("fatal %q for a mutant the kernel does not have", fatal.Error)
	}
	<-h.served
	if !slices.Equal(selected, []string{"holes"}) {
		t.Errorf("selected %q, a run that names no mutant must leave the kernel alone", selected)
	}
}

func TestCountersAndLeaks(t *testing.T) {
	h := serve(t, newFakeSystem(func(_ int, w *fakeWorker) { w.greet(); w.nextCase() }))
	h.next(link.KindHello)
	h.send(link.KindCounters, nil)
	if got := decode[link.Counters](t, h.next(link.KindCounters)); got.Error == "" {
		t.Errorf("a kernel that does not count answered %+v", got)
	}
	h.send(link.KindLeaks, nil)
	if got := decode[link.Leaks](t, h.next(link.KindLeaks)); got.Error == "" {
		t.Errorf("a kernel without kmemleak answered %+v", got)
	}
	h.send(link.KindShutdown, nil)
	if err := <-h.served; err != nil {
		t.Error(err)
	}
}
