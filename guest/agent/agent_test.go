// SPDX-License-Identifier: BSD-3-Clause

package agent

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/zcvet/zcvet/guest/link"
	"github.com/zcvet/zcvet/guest/network"
	"github.com/zcvet/zcvet/guest/trace"
)

// fakeSystem stands in for the kernel under PID 1. Its workers are goroutines
// that follow a script.
type fakeSystem struct {
	// script is what the worker does. It ends when it returns.
	script func(w *fakeWorker)
	// mount and sysctl fail when they return an error.
	mount  func(target string) error
	sysctl func(name string) error
	// kernelLog is where the marks go.
	kernelLog string

	// killPatience is long, so that a worker that dies as it should always has
	// the time, but in tests of workers that do not.
	killPatience time.Duration

	deaths chan death

	lock    sync.Mutex
	mounts  []string
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

func newFakeSystem(t *testing.T, script func(w *fakeWorker)) *fakeSystem {
	t.Helper()
	kernelLog := filepath.Join(t.TempDir(), "kmsg")
	if err := os.WriteFile(kernelLog, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	return &fakeSystem{script: script, killPatience: time.Minute, deaths: make(chan death, 16), kernelLog: kernelLog}
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

func (f *fakeSystem) KernelLog() (*os.File, error) {
	return os.OpenFile(f.kernelLog, os.O_WRONLY|os.O_APPEND, 0)
}

// printed returns what is on the console.
func (f *fakeSystem) printed(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(f.kernelLog)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
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
	sheet, err := mapTimesheet(files[workerTimesheet])
	if err != nil {
		return 0, err
	}
	out, setup := dup(files[1]), dup(files[workerSetup])
	w := &fakeWorker{
		pid: 100, sheet: sheet, out: out, setup: setup, trace: dup(files[workerTrace]),
		signals: make(chan unix.Signal, 4), release: make(chan struct{}),
	}
	f.lock.Lock()
	defer f.lock.Unlock()
	f.workers = append(f.workers, w)
	go func() {
		status := exited0
		defer func() {
			out.Close()
			setup.Close()
			w.trace.Close()
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
		f.script(w)
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
	f.workers[0].signals <- signal
	return nil
}

func (f *fakeSystem) Stacks(pid int) []string  { return []string{fmt.Sprintf("stack of %d", pid)} }
func (f *fakeSystem) Tainted() (uint64, error) { return 512, nil }
func (f *fakeSystem) PowerOff() error          { return nil }

// fakeWorker is a worker as PID 1 knows it: its timesheet, and what it prints.
type fakeWorker struct {
	pid     int
	sheet   *timesheet
	out     *os.File
	setup   *os.File
	trace   *os.File
	signals chan unix.Signal
	release chan struct{}
}

// die ends the worker as if it had been reaped with status.
func (w *fakeWorker) die(status unix.WaitStatus) { panic(status) }

// greet does what a worker does before its first case.
func (w *fakeWorker) greet() {
	if _, err := readSetup(w.setup); err != nil {
		panic(err)
	}
	w.sheet.frames.Store(1)
	w.sheet.ready.Store(1)
}

// begin enters a case that may take an hour.
func (w *fakeWorker) begin(id string) { w.sheet.begin(id, time.Hour, time.Minute) }

// sleep is the rest of a worker's life that does nothing until it is killed.
func (w *fakeWorker) sleep() {
	for <-w.signals != unix.SIGKILL {
	}
	w.die(killed)
}

// host is the test's end of the guest link.
type host struct {
	t      *testing.T
	system *fakeSystem
	stream net.Conn
	conn   *link.Conn
	served chan error
}

// serve runs an agent on a fake system and returns the host's end of its link.
func serve(t *testing.T, system *fakeSystem) *host {
	t.Helper()
	return serveWith(t, system, func(*Agent) {})
}

// serveWith changes the agent before it serves.
func serveWith(t *testing.T, system *fakeSystem, change func(*Agent)) *host {
	t.Helper()
	ours, theirs := net.Pipe()
	t.Cleanup(func() { ours.Close(); theirs.Close() })
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { null.Close() })
	namespace := network.FromFD(int(null.Fd()))
	a := newAgent(system, &network.Network{Sender: namespace, Receiver: namespace}, link.NewConn(theirs), int(null.Fd()))
	a.debugfs = t.TempDir()
	a.killPatience, a.lookInterval = system.killPatience, time.Millisecond
	change(a)
	h := &host{t: t, system: system, stream: ours, conn: link.NewConn(ours), served: make(chan error, 1)}
	go func() { h.served <- a.serve() }()
	return h
}

// worker returns the worker.
func (h *host) worker() *fakeWorker {
	h.system.lock.Lock()
	defer h.system.lock.Unlock()
	return h.system.workers[0]
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
		case link.KindHeartbeat, link.KindLog:
		default:
			h.t.Fatalf("%s message %s where %s was due", message.Kind, message.Body, kind)
		}
	}
}

func (h *host) send(kind link.Kind, body any) {
	h.t.Helper()
	if err := h.conn.Send(kind, body); err != nil {
		h.t.Fatal(err)
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

// TestLostWorker has a worker do what it should not. PID 1 says what became of its
// case and lives on.
func TestLostWorker(t *testing.T) {
	const timely, late = time.Hour, time.Nanosecond
	for _, test := range []struct {
		name    string
		bad     func(w *fakeWorker)
		limit   time.Duration
		id      string
		status  string
		detail  string
		signals []unix.Signal
	}{
		{"dies of a signal", func(w *fakeWorker) { w.die(killed) }, timely, "bad", "fail", "died of killed", nil},
		{"gives up", func(w *fakeWorker) {
			_, _ = w.out.WriteString("fatal error: oh no\ngoroutine 1\n")
			w.die(exited2)
		}, timely, "bad", "fail", "exit code 2\nfatal error: oh no\ngoroutine 1", nil},
		{"ends by itself", func(*fakeWorker) {}, timely, "bad", "fail", "exit code 0", nil},
		{"ends between two cases", func(w *fakeWorker) { w.sheet.end() }, timely, "", "fail", "exit code 0", nil},
		{"dies while it enters a case", func(w *fakeWorker) { w.sheet.turn.Add(1) }, timely, "", "fail", "exit code 0", nil},
		{"hangs, ends by SIGQUIT", func(w *fakeWorker) {
			if signal := <-w.signals; signal == unix.SIGQUIT {
				_, _ = w.out.WriteString("SIGQUIT: quit\n")
			}
			w.die(exited2)
		}, late, "bad", "timeout", "not finished after", []unix.Signal{unix.SIGQUIT}},
		{
			"hangs, ends by SIGKILL only", func(w *fakeWorker) { w.sleep() },
			late, "bad", "timeout", "not finished after",
			[]unix.Signal{unix.SIGQUIT, unix.SIGKILL},
		},
		{"is quitted when it has just gone on to the next case", func(w *fakeWorker) {
			<-w.signals
			w.sheet.begin("next", time.Hour, time.Hour)
			w.die(exited2)
		}, late, "", "timeout", "not finished after", []unix.Signal{unix.SIGQUIT}},
	} {
		t.Run(test.name, func(t *testing.T) {
			system := newFakeSystem(t, func(w *fakeWorker) {
				w.greet()
				w.sheet.frames.Store(7)
				grace := time.Minute
				if slices.Contains(test.signals, unix.SIGKILL) {
					grace = 20 * time.Millisecond
				}
				w.sheet.begin("bad", test.limit, grace)
				test.bad(w)
			})
			h := serve(t, system)
			lost := decode[link.Lost](t, h.next(link.KindLost))
			if lost.ID != test.id || lost.Status != test.status || !strings.Contains(lost.Detail, test.detail) {
				t.Errorf("lost as %+v, want %q %s with %q", lost, test.id, test.status, test.detail)
			}
			if lost.Frames != 7 {
				t.Errorf("%d frames, want 7", lost.Frames)
			}
			marks := ""
			if test.id != "" {
				marks = "<4>" + link.EndMark + "\n"
				if lost.Tainted != 512 {
					t.Errorf("taint flags %d are not the kernel's", lost.Tainted)
				}
			}
			if got := system.printed(t); got != marks {
				t.Errorf("console %q, want %q", got, marks)
			}
			h.next(link.KindHeartbeat)
			h.shutdown()
			if !slices.Equal(system.signals, test.signals) {
				t.Errorf("signals %v, want %v", system.signals, test.signals)
			}
		})
	}
}

// TestLostWorkerLeavesItsRecord has PID 1 pass on the system calls of a case whose
// worker died.
func TestLostWorkerLeavesItsRecord(t *testing.T) {
	h := serve(t, newFakeSystem(t, func(w *fakeWorker) {
		w.greet()
		region, err := trace.Map(int(w.trace.Fd()))
		if err != nil {
			panic(err)
		}
		trace.NewRecorder(region).Start("bad")
		w.begin("bad")
	}))
	region, err := trace.Unpack(decode[link.Lost](t, h.next(link.KindLost)).Trace)
	if err != nil {
		t.Fatal(err)
	}
	if record, err := trace.Parse(region); err != nil || record.Case != "bad" {
		t.Errorf("record %+v, %v", record, err)
	}
	h.shutdown()
}

func TestTimeOutLeavesItsStacksInTheLog(t *testing.T) {
	h := serve(t, newFakeSystem(t, func(w *fakeWorker) {
		w.greet()
		_, _ = w.out.WriteString("before\n")
		<-w.release
		w.sheet.begin("slow", time.Nanosecond, time.Minute)
		<-w.signals
		_, _ = w.out.WriteString("SIGQUIT: quit\ngoroutine 7\n")
		w.die(exited2)
	}))
	var log []string
	for {
		message, err := h.conn.Receive()
		if err != nil {
			t.Fatal(err)
		}
		if message.Kind == link.KindLost {
			break
		}
		if message.Kind == link.KindLog {
			said := decode[link.Log](t, message)
			for _, line := range said.Lines {
				log = append(log, said.ID+": "+line)
				if line == "before" {
					close(h.worker().release)
				}
			}
		}
	}
	if want := []string{": before", "slow: stack of 100", "slow: SIGQUIT: quit", "slow: goroutine 7"}; !slices.Equal(log, want) {
		t.Errorf("log %q, want %q", log, want)
	}
	h.shutdown()
}

func TestWorkerThatCannotBeKilledIsFatal(t *testing.T) {
	stuck := make(chan struct{})
	t.Cleanup(func() { close(stuck) })
	h := serve(t, newFakeSystem(t, func(w *fakeWorker) {
		w.greet()
		w.sheet.begin("stuck", time.Nanosecond, 20*time.Millisecond)
		<-stuck
	}))
	if fatal := decode[link.Fatal](t, h.next(link.KindFatal)); !strings.Contains(fatal.Error, "stuck: the worker cannot be killed") {
		t.Errorf("fatal %q", fatal.Error)
	}
	if err := <-h.served; err == nil {
		t.Error("serve returned nil")
	}
}

func TestFreshWorkerThatDiesIsFatal(t *testing.T) {
	h := serve(t, newFakeSystem(t, func(w *fakeWorker) {
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

func TestFreshWorkerThatIsSilent(t *testing.T) {
	h := serveWith(t, newFakeSystem(t, func(w *fakeWorker) { w.sleep() }), func(a *Agent) { a.readyPatience = time.Nanosecond })
	for _, want := range []string{"a fresh worker is silent for ", "stack of 100", "a fresh worker is silent for "} {
		said := decode[link.Log](t, h.next(link.KindLog))
		if said.ID != "" || len(said.Lines) != 1 || !strings.HasPrefix(said.Lines[0], want) {
			t.Errorf("log %+v, want %q", said, want)
		}
	}
	h.shutdown()
}

// TestOutputIsBounded has a case print more than is kept, and the next one less.
func TestOutputIsBounded(t *testing.T) {
	var sent []string
	id := "loud"
	send := func(id string, lines ...string) {
		for _, line := range lines {
			sent = append(sent, id+": "+line)
		}
	}
	o := &output{send: send, current: func() string { return id }, done: make(chan struct{})}
	for range outputLines + 10 {
		o.line("again")
	}
	o.flush()
	if last := sent[len(sent)-1]; len(sent) != outputLines || !strings.Contains(last, "not kept") {
		t.Errorf("%d lines, the last %q", len(sent), last)
	}
	id = "quiet"
	o.line("once")
	o.flush()
	if last := sent[len(sent)-1]; last != "quiet: once" {
		t.Errorf("the last line is %q", last)
	}
	close(o.done)
	if got := o.finish(0); got != "once" {
		t.Errorf("the last case printed %q", got)
	}
}

// TestOutputGoesInBatches has lines wait to be read, the last of them unfinished.
func TestOutputGoesInBatches(t *testing.T) {
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := write.WriteString(strings.Repeat("line\n", 2*outputBatch+3) + "unfinished"); err != nil {
		t.Fatal(err)
	}
	batches := make(chan []string, 10)
	o := &output{
		send:    func(_ string, lines ...string) { batches <- lines },
		current: func() string { return "case" },
		done:    make(chan struct{}),
	}
	go o.read(read)
	for _, want := range []int{outputBatch, outputBatch, 3} {
		if got := <-batches; len(got) != want || slices.ContainsFunc(got, func(line string) bool { return line != "line" }) {
			t.Errorf("%d lines %q, want %d", len(got), got, want)
		}
	}
	if _, err := write.WriteString(" no more"); err != nil {
		t.Fatal(err)
	}
	_ = write.Close()
	if got := <-batches; !slices.Equal(got, []string{"unfinished no more"}) {
		t.Errorf("the last line is %q", got)
	}
	<-o.done
}

func TestLongestBatchFitsAFrame(t *testing.T) {
	line := strings.Repeat("\x01", outputWidth)
	log := link.Log{ID: "case", Lines: slices.Repeat([]string{line}, outputBatch)}
	if err := link.NewConn(new(bytes.Buffer)).Send(link.KindLog, log); err != nil {
		t.Error(err)
	}
}

func TestHostThatBreaksTheProtocol(t *testing.T) {
	h := serve(t, newFakeSystem(t, func(w *fakeWorker) { w.greet(); w.sleep() }))
	h.send(link.KindHello, nil)
	if fatal := decode[link.Fatal](t, h.next(link.KindFatal)); !strings.Contains(fatal.Error, "unexpected hello message") {
		t.Errorf("fatal %q", fatal.Error)
	}
	<-h.served
}

func TestEndOfTheLinkEndsTheAgent(t *testing.T) {
	h := serve(t, newFakeSystem(t, func(w *fakeWorker) { w.greet(); w.sleep() }))
	h.next(link.KindHeartbeat)
	h.stream.Close()
	if err := <-h.served; !errors.Is(err, io.EOF) {
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
			system := newFakeSystem(t, nil)
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

func TestCountersAndLeaks(t *testing.T) {
	h := serve(t, newFakeSystem(t, func(w *fakeWorker) { w.greet(); w.sleep() }))
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
