// SPDX-License-Identifier: BSD-3-Clause

package agent

import (
	"bufio"
	"bytes"
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
	// outputWidth is how long a line may be in bytes, a longer one becomes
	// several; a batch is how many go in one message, which is within
	// link.MaxFrame even if each byte of it is escaped.
	outputWidth = 16 << 10
	outputBatch = 32
	// outputHead is how many of its first lines a death of the worker shows:
	// the Go runtime says first why it gave up, and then goes into detail.
	outputHead = 30
)

// workerProcess is a worker as PID 1 sees it.
type workerProcess struct {
	pid     int
	started time.Duration // by link.Now
	// heard is when it was last said that it is silent, or started.
	heard time.Duration
	// setup is the pipe through which it hears of the network.
	setup *os.File
	sheet *timesheet
	// died delivers once, when the process has been reaped.
	died   <-chan unix.WaitStatus
	output *output
}

// tell tells a fresh worker about the network.
func (w *workerProcess) tell(told setup) error {
	return errors.Join(json.NewEncoder(w.setup).Encode(told), w.setup.Close())
}

// diesWithin waits for the worker's death.
func (w *workerProcess) diesWithin(patience time.Duration) (status unix.WaitStatus, dead bool) {
	select {
	case status = <-w.died:
		return status, true
	case <-time.After(patience):
		return 0, false
	}
}

// launch starts the worker and the goroutine that reads what it prints.
func (a *Agent) launch() (err error) {
	var handed []*os.File // which the worker has then
	defer func() {
		for _, file := range handed {
			_ = file.Close()
		}
	}()
	w := &workerProcess{started: link.Now()}
	w.heard = w.started
	null, err := os.Open(os.DevNull)
	if err != nil {
		return err
	}
	handed = append(handed, null)
	sheet, err := newTimesheet()
	if err != nil {
		return err
	}
	handed = append(handed, sheet)
	if w.sheet, err = mapTimesheet(int(sheet.Fd())); err != nil {
		return err
	}
	if a.console, err = a.system.KernelLog(); err != nil {
		return err
	}
	if a.trace, err = trace.NewFile(); err != nil {
		return err
	}
	told, tell, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("pipe: %w", err)
	}
	handed = append(handed, told)
	w.setup = tell
	read, write, err := os.Pipe()
	if err != nil {
		_ = tell.Close()
		return fmt.Errorf("pipe: %w", err)
	}
	handed = append(handed, write)

	files := make([]int, workerFiles)
	files[0] = int(null.Fd())
	files[1], files[2] = int(write.Fd()), int(write.Fd())
	files[workerLink] = a.cases
	files[workerSetup] = int(told.Fd())
	files[workerSender], files[workerReceiver] = a.network.Sender.FD(), a.network.Receiver.FD()
	files[workerTrace], files[workerTimesheet] = int(a.trace.Fd()), int(sheet.Fd())
	files[workerConsole] = int(a.console.Fd())
	w.output = &output{send: a.output, current: func() string { return w.sheet.current().id }, done: make(chan struct{})}
	go w.output.read(read)
	if w.pid, err = a.system.StartWorker(files); err != nil {
		_ = tell.Close()
		return err
	}
	w.died = reap(a.system, w.pid)
	a.worker = w
	return nil
}

// reap collects every child of PID 1, the worker and processes whose parents have
// died, until there is none: then none can come any more. The channel delivers how
// the worker ended.
func reap(s system, worker int) <-chan unix.WaitStatus {
	died := make(chan unix.WaitStatus, 1)
	go func() {
		for {
			pid, status, err := s.Wait()
			if err != nil {
				return
			}
			if pid == worker {
				died <- status
			}
		}
	}()
	return died
}

// output sends what a worker prints to the host. The Go runtime prints the stacks
// of a panic or of SIGQUIT there.
type output struct {
	send func(id string, lines ...string)
	// current returns the case that runs.
	current func() string
	done    chan struct{}
	// unsent are lines of the case id, of which only the reader knows. What is
	// there to be read goes in one message: on a busy machine a dump line by line
	// takes longer than the host is patient.
	unsent []string

	lock  sync.Mutex
	id    string // of the case that count and head are about
	count int
	head  []string
}

// read reads until every holder of the pipe's other end is gone.
func (o *output) read(pipe *os.File) {
	defer close(o.done)
	defer func() { _ = pipe.Close() }()
	lines := bufio.NewReaderSize(pipe, outputWidth)
	for {
		line, _, err := lines.ReadLine()
		if err != nil {
			if !errors.Is(err, io.EOF) {
				o.line(fmt.Sprintf("output of the worker: %v", err))
			}
			o.flush()
			return
		}
		o.line(string(line))
		if rest, _ := lines.Peek(lines.Buffered()); len(o.unsent) == outputBatch || !bytes.ContainsRune(rest, '\n') {
			o.flush()
		}
	}
}

func (o *output) line(line string) {
	id := o.current()
	if id != o.id {
		o.flush()
	}
	o.lock.Lock()
	if id != o.id {
		o.id, o.count, o.head = id, 0, nil
	}
	o.count++
	count := o.count
	if len(o.head) < outputHead {
		o.head = append(o.head, line)
	}
	o.lock.Unlock()
	switch {
	case count < outputLines:
		o.unsent = append(o.unsent, line)
	case count == outputLines:
		o.unsent = append(o.unsent, "(what the case prints from here on is not kept)")
	}
}

func (o *output) flush() {
	if len(o.unsent) > 0 {
		o.send(o.id, o.unsent...)
		o.unsent = nil
	}
}

// finish waits for the end of a dead worker's output and returns the first lines
// that its last case printed. A child of the worker may hold the pipe open, so it
// does not wait for ever.
func (o *output) finish(patience time.Duration) string {
	select {
	case <-o.done:
	case <-time.After(patience):
	}
	id := o.current()
	o.lock.Lock()
	defer o.lock.Unlock()
	if o.id != id {
		return ""
	}
	return strings.Join(o.head, "\n")
}
