// SPDX-License-Identifier: BSD-3-Clause

package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/zcvet/zcvet/guest/cases"
	"github.com/zcvet/zcvet/guest/debugfs"
	"github.com/zcvet/zcvet/guest/leak"
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
	workerSetup
	workerSender
	workerReceiver
	workerTrace
	workerTimesheet
	workerConsole
	workerFiles // their number
)

// defaultCaseTimeout bounds a case whose Run names no limit.
const defaultCaseTimeout = 30 * time.Second

// setup tells a worker about the network its descriptors lead to. It comes through a
// pipe, once the network is laid.
type setup struct {
	Missing map[network.Link]string `json:"missing"`
}

// Worker runs cases as the host asks for them; it returns with an error only.
func Worker() error {
	// What a case starts must not have them.
	for fd := workerLink; fd < workerFiles; fd++ {
		unix.CloseOnExec(fd)
	}
	sheet, err := mapTimesheet(workerTimesheet)
	if err != nil {
		return err
	}
	w := &worker{
		conn: link.NewConn(countedPort{newPort(workerLink), sheet}), sheet: sheet,
		console: os.NewFile(workerConsole, "kernel log"),
		waiting: make(map[uint64]chan link.Reply), instances: make(map[string]cases.Instance),
	}
	// Before the setup comes: PID 1 is laying the network meanwhile.
	hello, err := w.hello()
	if err != nil {
		return err
	}
	told, err := readSetup(os.NewFile(workerSetup, "setup"))
	if err != nil {
		return err
	}
	w.environment = &cases.Environment{
		Network: &network.Network{
			Sender:   network.FromFD(workerSender),
			Receiver: network.FromFD(workerReceiver),
			Missing:  told.Missing,
		},
		Host:   w,
		Record: os.NewFile(workerTrace, "trace"),
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
	if w.tainted, err = readTainted(kernel{}); err != nil {
		return err
	}
	if err := debugfs.ResetCounters(debugfs.Root); err != nil {
		return fmt.Errorf("reset the counters of executed lines: %w", err)
	}
	if w.environment.Sweep, err = leak.NewSweep(); err != nil {
		return err
	}
	if err := w.conn.Send(link.KindHello, hello); err != nil {
		return err
	}
	sheet.ready.Store(1)
	return w.obey()
}

// readSetup waits until PID 1 has laid the network.
func readSetup(pipe *os.File) (told setup, err error) {
	defer func() { _ = pipe.Close() }()
	if err := json.NewDecoder(pipe).Decode(&told); err != nil {
		return told, fmt.Errorf("wait for the network: %w", err)
	}
	return told, nil
}

// workerFailed says on standard error, which PID 1 reads, why a worker ends, and
// returns its exit code.
func workerFailed(err error) int {
	fmt.Fprintf(os.Stderr, "worker: %v\n", err)
	return 1
}

// worker is the state of a worker process.
type worker struct {
	conn        *link.Conn
	sheet       *timesheet
	console     *os.File
	environment *cases.Environment
	instances   map[string]cases.Instance
	recorder    *trace.Recorder
	tainted     uint64 // as the last case left the kernel

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

// obey does what the host asks. Cases run beside it: an error ends the process even
// if a case hangs.
func (w *worker) obey() error {
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
			go func() {
				if err := w.run(run); err != nil {
					os.Exit(workerFailed(err))
				}
			}()
		case link.KindReply:
			if err := w.passReply(message); err != nil {
				return err
			}
		default:
			return fmt.Errorf("unexpected %s message from the host", message.Kind)
		}
	}
}

// passReply gives the host's answer to the case that waits for it.
func (w *worker) passReply(message *link.Message) error {
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
	return nil
}

// run runs the instances of a Run, one after the other. The error is about the
// worker, not about a case.
func (w *worker) run(run link.Run) error {
	if mutant := run.Parameter.Mutant; mutant != "" {
		if err := os.WriteFile(mutantFile, []byte(mutant), 0); err != nil {
			return fmt.Errorf("make the kernel mutant %q: %w", mutant, err)
		}
	}
	for _, id := range run.Instances {
		if spent, err := w.runCase(id, run.Parameter); err != nil || spent {
			return err
		}
	}
	return w.conn.Send(link.KindDone, link.Done{Ran: len(run.Instances)})
}

// mutantFile switches on one of the faults that the kernel can have.
const mutantFile = "/sys/module/zcvet/parameters/mutant"

// runCase runs one instance and reports how it ended. It tells whether that was the
// last one that can run in this machine.
func (w *worker) runCase(id string, parameters link.Parameters) (spent bool, err error) {
	limit := parameters.CaseTimeout
	if limit <= 0 {
		limit = defaultCaseTimeout
	}
	w.sheet.begin(id, limit, time.Duration(float64(killPatience)*max(parameters.TimeScale, 1)))
	if err := w.conn.Send(link.KindCaseStart, link.CaseStart{ID: id, At: link.Now()}); err != nil {
		return false, err
	}
	if err := printMark(w.console, link.StartMark(id)); err != nil {
		return false, err
	}
	end := link.CaseEnd{ID: id, Status: string(cases.Fail), Detail: "no case is called that"}
	w.recorder.Start(id)
	if instance, known := w.instances[id]; known {
		result := w.environment.Run(instance, parameters, func(line string) {
			_ = w.conn.Send(link.KindLog, link.Log{ID: id, Lines: []string{line}})
		})
		end.Status, end.Detail, end.Took = string(result.Status), result.Detail, result.Took
		end.Measurements, end.Spent = result.Measurements, result.Spent
	}
	if end.Tainted, err = readTainted(kernel{}); err != nil {
		return false, err
	}
	if end.Status == string(cases.Fail) || end.Tainted != w.tainted {
		end.Trace = packTrace(w.environment.Record)
	}
	w.tainted = end.Tainted
	if err := printMark(w.console, link.EndMark); err != nil {
		return false, err
	}
	if err := w.conn.Send(link.KindCaseEnd, end); err != nil {
		return false, err
	}
	w.sheet.end()
	return end.Spent, nil
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
