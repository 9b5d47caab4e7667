// SPDX-License-Identifier: BSD-3-Clause

package cases

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/zcvet/zcvet/guest/leak"
	"github.com/zcvet/zcvet/guest/link"
	"github.com/zcvet/zcvet/guest/network"
	"github.com/zcvet/zcvet/guest/sys"
	"github.com/zcvet/zcvet/guest/trace"
)

// TaskMode is the argument that makes the agent run the cases it is told on its
// standard input, one after the other, until that ends. It is how the agent that is
// built for 32 bit runs cases: on a 64-bit kernel such a task comes through other
// entry points, with structures of another layout.
const TaskMode = "task"

// TaskRecorded is the argument behind TaskMode by which a task knows that it has a
// record of system calls to go on with, at descriptor taskRecord.
const (
	TaskRecorded = "recorded"
	taskRecord   = 3
)

// taskOrder tells a task what to run.
type taskOrder struct {
	Instance   string          `json:"instance"`
	Parameters link.Parameters `json:"parameters"`
}

// taskReport is what a task answers to an order, on its standard output. The first
// one, which nobody asked for, says that it is ready.
type taskReport struct {
	Log    []string `json:"log"`
	Result Result   `json:"result"`
}

// task is a process that runs cases. To start one takes several times as long as
// most of them.
type task struct {
	orders     *os.File
	answers    *os.File
	decoder    *json.Decoder
	complaints complaints
	ended      chan error
}

// startTask starts an agent as a task and waits until it is ready. Record may be nil.
func startTask(agent string, record *os.File) (*task, error) {
	orders, tell, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("pipe: %w", err)
	}
	defer func() { _ = orders.Close() }()
	hear, answers, err := os.Pipe()
	if err != nil {
		_ = tell.Close()
		return nil, fmt.Errorf("pipe: %w", err)
	}
	defer func() { _ = answers.Close() }()

	t := &task{orders: tell, answers: hear, decoder: json.NewDecoder(hear), ended: make(chan error, 1)}
	command := exec.Command(agent, TaskMode)
	command.Stdin, command.Stdout, command.Stderr = orders, answers, &t.complaints
	if record != nil {
		command.Args = append(command.Args, TaskRecorded)
		command.ExtraFiles = []*os.File{record}
	}
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started := make(chan error, 1)
	go func() {
		// The kernel takes the death of this thread for that of the parent.
		runtime.LockOSThread()
		err := command.Start()
		started <- err
		if err == nil {
			t.ended <- command.Wait()
		}
	}()
	if err := <-started; err != nil {
		_, _ = tell.Close(), hear.Close()
		return nil, err
	}
	// Otherwise the death of the task would not end its answers.
	_ = answers.Close()
	if _, err := t.hear(); err != nil {
		err = errors.Join(err, t.end())
		return nil, fmt.Errorf("%w\n%s", err, t.complaints.take())
	}
	return t, nil
}

// run has the task run a case. After an error the task is of no use.
func (t *task) run(order taskOrder) (taskReport, error) {
	if err := json.NewEncoder(t.orders).Encode(order); err != nil {
		return taskReport{}, err
	}
	return t.hear()
}

func (t *task) hear() (report taskReport, err error) {
	err = t.decoder.Decode(&report)
	return report, err
}

// end waits until the task has ended and returns how, nil for a task that was well.
func (t *task) end() error {
	_ = t.orders.Close()
	err := <-t.ended
	_ = t.answers.Close()
	return err
}

// complaints is what a process prints while it runs.
type complaints struct {
	lock sync.Mutex
	text bytes.Buffer
}

func (c *complaints) Write(text []byte) (int, error) {
	c.lock.Lock()
	defer c.lock.Unlock()
	return c.text.Write(text)
}

// take returns what has been printed since the last call.
func (c *complaints) take() string {
	c.lock.Lock()
	defer c.lock.Unlock()
	defer c.text.Reset()
	return c.text.String()
}

// TaskMain runs the instances that orders name and writes the reports. It returns
// the exit code.
func TaskMain(recorded bool, orders io.Reader, out io.Writer) int {
	if err := serveTask(recorded, orders, out); err != nil {
		fmt.Fprintf(os.Stderr, "task: %v\n", err)
		return 1
	}
	return 0
}

func serveTask(recorded bool, orders io.Reader, out io.Writer) error {
	if recorded {
		if err := continueRecord(); err != nil {
			return err
		}
	}
	here, err := network.Current()
	if err != nil {
		return err
	}
	missing := make(map[network.Link]string)
	for _, link := range network.Links {
		if link != network.Loopback {
			missing[link] = "out of reach of a task"
		}
	}
	environment := &Environment{Network: &network.Network{Sender: here, Receiver: here, Missing: missing}}
	sweep, err := leak.NewSweep()
	if err != nil {
		return err
	}
	told, reports := json.NewDecoder(orders), json.NewEncoder(out)
	var report taskReport
	for {
		if err := reports.Encode(report); err != nil {
			return err
		}
		var order taskOrder
		if err := told.Decode(&order); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if report, err = environment.runOrder(order); err != nil {
			return err
		}
		if err := sweep(); err != nil {
			return err
		}
	}
}

func (e *Environment) runOrder(order taskOrder) (report taskReport, err error) {
	instance, err := Find(order.Instance)
	if err != nil {
		return report, err
	}
	sys.Recorder().Continue()
	var lock sync.Mutex
	report.Result = e.Run(instance, order.Parameters, func(line string) {
		lock.Lock()
		defer lock.Unlock()
		report.Log = append(report.Log, line)
	})
	return report, nil
}

// continueRecord records the calls of this task behind those of the process that
// started it, which waits meanwhile.
func continueRecord() error {
	unix.CloseOnExec(taskRecord)
	region, err := trace.Map(taskRecord)
	if err != nil {
		return err
	}
	sys.SetRecorder(trace.NewRecorder(region))
	return nil
}
