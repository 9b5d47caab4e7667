// SPDX-License-Identifier: BSD-3-Clause

package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/zcvet/zcvet/guest/cases"
	"github.com/zcvet/zcvet/guest/link"
	"github.com/zcvet/zcvet/guest/network"
	"github.com/zcvet/zcvet/guest/sys"
	"github.com/zcvet/zcvet/guest/trace"
)

// WorkerMode is the argument that makes the agent a worker: the process that
// runs cases. It is one of its own so that a case that hangs or dies does not
// take PID 1 with it.
const WorkerMode = "worker"

// The descriptors a worker inherits, besides standard input and output.
const (
	workerLink = 3 + iota
	workerSender
	workerReceiver
	workerTrace
	workerFiles // their number
)

// kindSetup is sent by PID 1 to a fresh worker, once the network is laid; the
// worker answers with its Hello. The other messages are those of the guest link,
// each Run with a single instance.
const kindSetup link.Kind = "setup"

// setup tells a worker about the network its descriptors lead to.
type setup struct {
	Missing map[network.Link]string `json:"missing"`
}

// Worker runs cases as PID 1 asks for them, until PID 1 closes the connection.
func Worker() error {
	// What a case starts must not hold PID 1's connection open.
	for _, fd := range []int{workerLink, workerSender, workerReceiver, workerTrace} {
		unix.CloseOnExec(fd)
	}
	conn := link.NewConn(descriptor(workerLink))
	w := &worker{conn: conn, waiting: make(map[uint64]chan link.Reply), instances: make(map[string]cases.Instance)}
	// Before the setup comes: PID 1 is laying the network meanwhile.
	hello, err := w.hello()
	if err != nil {
		return err
	}
	message, err := conn.Receive()
	if err != nil {
		return fmt.Errorf("wait for setup: %w", err)
	}
	if message.Kind != kindSetup {
		return fmt.Errorf("%s message where %s was due", message.Kind, kindSetup)
	}
	told, err := link.Decode[setup](message)
	if err != nil {
		return err
	}
	w.environment = &cases.Environment{
		Network: &network.Network{
			Sender:   network.FromFD(workerSender),
			Receiver: network.FromFD(workerReceiver),
			Missing:  told.Missing,
		},
		Host:  w,
		Sweep: w.sweep,
	}
	w.environment.Counters = cases.OpenCounters(w.environment.Network)
	hello.Features = w.environment.Features()
	region, err := trace.Map(workerTrace)
	if err != nil {
		return err
	}
	w.recorder = trace.NewRecorder(region)
	sys.SetRecorder(w.recorder)
	hello.Trace = trace.Pages(region)
	// Reading the release has opened the descriptors of Go's poller, so those
	// that come later than the counters belong to cases.
	if w.firstFree, err = firstFreeDescriptor(); err != nil {
		return err
	}
	if err := conn.Send(link.KindHello, hello); err != nil {
		return err
	}
	if err := w.receive(); !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}

// worker is the state of a worker process.
type worker struct {
	conn        *link.Conn
	environment *cases.Environment
	instances   map[string]cases.Instance
	firstFree   int
	recorder    *trace.Recorder

	lock    sync.Mutex
	calls   uint64
	waiting map[uint64]chan link.Reply
}

// hello returns the worker's Hello without the features, which depend on the
// network.
func (w *worker) hello() (link.Hello, error) {
	release, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return link.Hello{}, err
	}
	hello := link.Hello{Version: link.Version, Release: strings.TrimSpace(string(release))}
	for _, instance := range cases.Instances() {
		described := instance.Describe()
		w.instances[described.ID] = instance
		hello.Instances = append(hello.Instances, described)
	}
	return hello, nil
}

// firstFreeDescriptor returns a number from which on every descriptor is free,
// and below which none is.
func firstFreeDescriptor() (int, error) {
	open, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return 0, fmt.Errorf("list the open descriptors: %w", err)
	}
	highest := 0
	for _, entry := range open {
		if fd, err := strconv.Atoi(entry.Name()); err == nil {
			highest = max(highest, fd)
		}
	}
	for {
		filler, err := unix.FcntlInt(0, unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return 0, fmt.Errorf("fill the free descriptors: %w", err)
		}
		if filler > highest {
			return filler, unix.Close(filler)
		}
	}
}

// receive takes PID 1's messages until the connection ends. Cases run beside it:
// an error ends the process even if a case hangs.
func (w *worker) receive() error {
	for {
		message, err := w.conn.Receive()
		if err != nil {
			return err
		}
		switch message.Kind {
		case link.KindRun:
			run, err := link.Decode[link.Run](message)
			if err != nil {
				return err
			}
			if len(run.Instances) != 1 {
				return fmt.Errorf("a run of %d instances, a worker runs one at a time", len(run.Instances))
			}
			go w.run(run.Instances[0], run.Parameter)
		case link.KindReply:
			reply, err := link.Decode[link.Reply](message)
			if err != nil {
				return err
			}
			w.lock.Lock()
			waiting := w.waiting[reply.Number]
			delete(w.waiting, reply.Number)
			w.lock.Unlock()
			if waiting == nil {
				return fmt.Errorf("reply to call %d, which nobody waits for", reply.Number)
			}
			waiting <- reply
		default:
			return fmt.Errorf("unexpected %s message", message.Kind)
		}
	}
}

// run runs one instance and reports how it ended. PID 1 asks for the next one
// only after that.
func (w *worker) run(id string, parameters link.Parameters) {
	end := link.CaseEnd{ID: id, Status: string(cases.Fail), Detail: "no case is called that"}
	if instance, known := w.instances[id]; known {
		w.recorder.Start(id)
		result := w.environment.Run(instance, parameters, func(line string) {
			_ = w.conn.Send(link.KindLog, link.Log{ID: id, Line: line})
		})
		end.Status, end.Detail, end.Took = string(result.Status), result.Detail, result.Took
		end.Measurements = result.Measurements
	}
	// An error of the connection ends receive, and with it the process.
	_ = w.conn.Send(link.KindCaseEnd, end)
}

// sweep closes the descriptors that a case made by itself; the framework has
// closed what it opened.
func (w *worker) sweep() error {
	return unix.CloseRange(uint(w.firstFree), math.MaxInt32, 0)
}

// Call implements cases.Caller over the guest link.
func (w *worker) Call(method string, args, result any) error {
	call := link.Call{Method: method}
	if args != nil {
		encoded, err := json.Marshal(args)
		if err != nil {
			return fmt.Errorf("encode the argument: %w", err)
		}
		call.Args = encoded
	}
	answer := make(chan link.Reply, 1)
	w.lock.Lock()
	w.calls++
	call.Number = w.calls
	w.waiting[call.Number] = answer
	w.lock.Unlock()
	if err := w.conn.Send(link.KindCall, call); err != nil {
		return err
	}
	reply := <-answer
	if reply.Error != "" {
		return errors.New(reply.Error)
	}
	if result == nil {
		return nil
	}
	if err := json.Unmarshal(reply.Result, result); err != nil {
		return fmt.Errorf("decode the answer: %w", err)
	}
	return nil
}
