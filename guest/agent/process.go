// SPDX-License-Identifier: BSD-3-Clause

package agent

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/zcvet/zcvet/guest/link"
	"github.com/zcvet/zcvet/guest/trace"
)

const (
	// outputLines bounds what a worker may print during one case; a dump of
	// all goroutines is a tenth of it.
	outputLines = 4000
	// outputHead is how many of its first lines a death of the worker shows:
	// the Go runtime says first why it gave up, and then goes into detail.
	outputHead = 30
)

// workerProcess is a worker as PID 1 sees it.
type workerProcess struct {
	pid  int
	conn *link.Conn
	// file is the stream under conn.
	file     *os.File
	messages chan received
	// died delivers once, when the process has been reaped.
	died   <-chan unix.WaitStatus
	output *output
	// stop ends the goroutine that fills messages.
	stop chan struct{}
}

// greet tells a fresh worker about the network, waits until it is ready and
// returns its Hello.
func (a *Agent) greet() (json.RawMessage, error) {
	w := a.worker
	failed := func(why string) error {
		end, err := a.bury("", a.killPatience, why)
		if err != nil {
			return err
		}
		return errors.New(end.Detail)
	}
	_ = w.file.SetWriteDeadline(time.Now().Add(readyPatience))
	if err := w.conn.Send(kindSetup, setup{Missing: a.network.Missing}); err != nil {
		return nil, failed(fmt.Sprintf("a fresh worker cannot be reached: %v", err))
	}
	select {
	case got := <-w.messages:
		if got.err != nil {
			return nil, failed(fmt.Sprintf("a fresh worker is gone: %v", got.err))
		}
		if got.message.Kind != link.KindHello {
			return nil, failed(fmt.Sprintf("a fresh worker sent a %s message", got.message.Kind))
		}
		return got.message.Body, nil
	case <-time.After(readyPatience):
		return nil, fmt.Errorf("a fresh worker is silent for %v; %s", readyPatience, strings.Join(a.system.Stacks(w.pid), "; "))
	}
}

// launch starts a worker and the goroutines that read from it.
func (a *Agent) launch() error {
	w, err := a.start()
	if err != nil {
		return fmt.Errorf("start a worker: %w", err)
	}
	a.worker = w
	return nil
}

func (a *Agent) start() (*workerProcess, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("socketpair: %w", err)
	}
	defer func() { _ = unix.Close(pair[1]) }()
	// This end only: the deadlines of the poller need it, the worker reads
	// with plain blocking calls.
	if err := unix.SetNonblock(pair[0], true); err != nil {
		_ = unix.Close(pair[0])
		return nil, fmt.Errorf("socketpair: %w", err)
	}
	file := os.NewFile(uintptr(pair[0]), "worker")
	read, write, err := os.Pipe()
	if err != nil {
		_ = file.Close()
		return nil, fmt.Errorf("pipe: %w", err)
	}
	defer func() { _ = write.Close() }()
	null, err := os.Open(os.DevNull)
	if err != nil {
		_ = file.Close()
		_ = read.Close()
		return nil, err
	}
	defer func() { _ = null.Close() }()

	w := &workerProcess{
		conn: link.NewConn(file), file: file,
		messages: make(chan received), stop: make(chan struct{}),
		output: readOutput(read, a.output),
	}
	if a.trace == nil {
		if a.trace, err = trace.NewFile(); err != nil {
			_ = file.Close()
			_ = read.Close()
			return nil, err
		}
	}
	files := make([]int, workerFiles)
	files[workerTrace] = int(a.trace.Fd())
	files[0] = int(null.Fd())
	files[1], files[2] = int(write.Fd()), int(write.Fd())
	files[workerLink] = pair[1]
	files[workerSender], files[workerReceiver] = a.network.Sender.FD(), a.network.Receiver.FD()
	w.pid, w.died, err = a.reaper.start(func() (int, error) { return a.system.StartWorker(files) })
	if err != nil {
		_ = file.Close()
		return nil, err
	}
	go forward(w.conn, w.messages, w.stop)
	return w, nil
}

// abandon closes PID 1's end of the connection. A worker that still lives ends
// by itself.
func (w *workerProcess) abandon() {
	close(w.stop)
	_ = w.file.Close()
}

// output sends what a worker prints to the host, line by line. The Go runtime
// prints the stacks of a panic or of SIGQUIT there.
type output struct {
	send func(id, line string)
	done chan struct{}

	lock  sync.Mutex
	id    string
	count int
	head  []string
}

// readOutput reads until every holder of the pipe's other end is gone.
func readOutput(pipe *os.File, send func(id, line string)) *output {
	o := &output{send: send, done: make(chan struct{})}
	go func() {
		defer close(o.done)
		defer func() { _ = pipe.Close() }()
		lines := bufio.NewReaderSize(pipe, 16<<10)
		for {
			// A line longer than the buffer comes in pieces.
			line, _, err := lines.ReadLine()
			if err != nil {
				if !errors.Is(err, io.EOF) {
					o.line(fmt.Sprintf("output of the worker: %v", err))
				}
				return
			}
			o.line(string(line))
		}
	}()
	return o
}

// begin makes what is printed from now on part of the log of an instance.
func (o *output) begin(id string) {
	o.lock.Lock()
	defer o.lock.Unlock()
	o.id, o.count, o.head = id, 0, nil
}

func (o *output) line(line string) {
	o.lock.Lock()
	id := o.id
	o.count++
	count := o.count
	if len(o.head) < outputHead {
		o.head = append(o.head, line)
	}
	o.lock.Unlock()
	switch {
	case count < outputLines:
		o.send(id, line)
	case count == outputLines:
		o.send(id, "(what the case prints from here on is not kept)")
	}
}

// finish waits for the end of a dead worker's output and returns its first lines.
// A child of the worker may hold the pipe open, so it does not wait for ever.
func (o *output) finish(patience time.Duration) string {
	select {
	case <-o.done:
	case <-time.After(patience):
	}
	o.lock.Lock()
	defer o.lock.Unlock()
	return strings.Join(o.head, "\n")
}

// reaper collects every child of PID 1: workers, and processes whose parents
// have died.
type reaper struct {
	system system

	lock    sync.Mutex
	changed *sync.Cond
	started int // how many children PID 1 itself has started
	waiting map[int]chan unix.WaitStatus
}

func newReaper(s system) *reaper {
	r := &reaper{system: s, waiting: make(map[int]chan unix.WaitStatus)}
	r.changed = sync.NewCond(&r.lock)
	return r
}

// start starts a child and returns a channel that delivers how it ended.
func (r *reaper) start(child func() (pid int, err error)) (int, <-chan unix.WaitStatus, error) {
	// Held over the start, so that a child that dies at once is not reaped
	// before it is known.
	r.lock.Lock()
	defer r.lock.Unlock()
	pid, err := child()
	if err != nil {
		return 0, nil, err
	}
	died := make(chan unix.WaitStatus, 1)
	r.waiting[pid] = died
	r.started++
	r.changed.Signal()
	return pid, died, nil
}

// run reaps as long as PID 1 lives. Without any child it waits for the next
// start; an orphan cannot appear before that, because it needs a parent first.
func (r *reaper) run() {
	seen := 0
	for {
		pid, status, err := r.system.Wait()
		r.lock.Lock()
		if err != nil {
			for r.started == seen {
				r.changed.Wait()
			}
			seen = r.started
			r.lock.Unlock()
			continue
		}
		if died, known := r.waiting[pid]; known {
			delete(r.waiting, pid)
			died <- status
		}
		r.lock.Unlock()
	}
}
