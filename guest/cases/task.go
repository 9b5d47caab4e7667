// SPDX-License-Identifier: BSD-3-Clause

package cases

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/zcvet/zcvet/guest/link"
	"github.com/zcvet/zcvet/guest/network"
	"github.com/zcvet/zcvet/guest/sys"
	"github.com/zcvet/zcvet/guest/trace"
)

// TaskMode is the argument that makes the agent run one case and end. It is how
// the agent that is built for 32 bit runs a case: on a 64-bit kernel such a task
// comes through other entry points, with structures of another layout. What
// follows is a taskOrder.
const TaskMode = "task"

// Agent32 is the agent built for GOARCH=386, as package images puts it into the
// guest.
const Agent32 = "/agent32"

// in32Bit is the part of a name by which the case of a 32-bit task differs from
// that of a 64-bit one.
const in32Bit = "in-32-bit"

// taskOrder tells a task what to run.
type taskOrder struct {
	Instance   string          `json:"instance"`
	Parameters link.Parameters `json:"parameters"`
	// Recorded tells that taskRecord is the record of system calls.
	Recorded bool `json:"recorded"`
}

// taskRecord is the descriptor at which a task finds the record that it goes on
// with, if there is one.
const taskRecord = 3

// taskReport is what a task answers on its standard output.
type taskReport struct {
	Log    []string `json:"log"`
	Result Result   `json:"result"`
}

// inTask returns the declaration of c for a 32-bit task, and the function that
// runs c in one. The links whose ends lie in two namespaces or in the host are
// out of a task's reach.
func (c *Case) inTask() (Case, func(*T)) {
	declared := *c
	group, behaviour, _ := strings.Cut(c.Name, "/")
	declared.Name = group + "/" + in32Bit + "/" + behaviour
	declared.Doc = c.Doc + " (in a 32-bit task)"
	others := slices.DeleteFunc(slices.Clone(c.Covers), func(id string) bool { return id == "N08" })
	declared.Covers = append([]string{"N08"}, others...)
	declared.Axes = c.Axes.On(network.Loopback)
	declared.Needs = append([]string{ThirtyTwoBit}, c.Needs...)
	declared.In32Bit = false
	return declared, func(t *T) {
		original := t.Instance
		original.Case = c
		t.runTask(original)
	}
}

// runTask runs an instance in a 32-bit task; what comes out there becomes the
// result of this case. It ends the case.
func (t *T) runTask(instance Instance) {
	t.Helper()
	record := t.environment.Record
	order, err := json.Marshal(taskOrder{Instance: instance.ID(), Parameters: t.Parameters, Recorded: record != nil})
	t.Check(err, "order for a 32-bit task")
	var answer, complaints bytes.Buffer
	command := exec.Command(Agent32, TaskMode, string(order))
	command.Stdout, command.Stderr = &answer, &complaints
	// The case's thread outlives the command, the process may not.
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if record != nil {
		command.ExtraFiles = []*os.File{record}
		sys.Recorder().Mark(trace.Task, nil)
	} else {
		sys.Recorder().Mark(trace.Child, nil, "a 32-bit task")
	}
	err = command.Run()
	sys.Recorder().Continue()
	for line := range strings.Lines(complaints.String()) {
		t.Logf("%s", strings.TrimRight(line, "\n"))
	}
	t.Check(err, "run a 32-bit task")
	var report taskReport
	t.Check(json.Unmarshal(answer.Bytes(), &report), "answer of a 32-bit task")
	for _, line := range report.Log {
		if !strings.HasPrefix(line, failureMark) { // the result has it
			t.Logf("%s", line)
		}
	}
	switch report.Result.Status {
	case Pass:
	case Skip:
		t.Skipf("%s", report.Result.Detail)
	default:
		t.record(report.Result.Detail)
	}
}

// TaskMain runs the instance that an order names and writes the report. It
// returns the exit code.
func TaskMain(order string, out io.Writer) int {
	var told taskOrder
	if err := json.Unmarshal([]byte(order), &told); err != nil {
		fmt.Fprintf(os.Stderr, "task: %v\n", err)
		return 2
	}
	report, err := runOrder(told)
	if err == nil {
		err = json.NewEncoder(out).Encode(report)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "task: %v\n", err)
		return 1
	}
	return 0
}

func runOrder(order taskOrder) (*taskReport, error) {
	instance, err := Find(order.Instance)
	if err != nil {
		return nil, err
	}
	here, err := network.Current()
	if err != nil {
		return nil, err
	}
	defer func() { _ = here.Close() }()
	missing := make(map[network.Link]string)
	for _, link := range network.Links {
		if link != network.Loopback {
			missing[link] = "out of reach of a task"
		}
	}
	if order.Recorded {
		if err := continueRecord(); err != nil {
			return nil, err
		}
	}
	environment := &Environment{Network: &network.Network{Sender: here, Receiver: here, Missing: missing}}
	var lock sync.Mutex
	report := &taskReport{}
	report.Result = environment.Run(instance, order.Parameters, func(line string) {
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
	recorder := trace.NewRecorder(region)
	recorder.Continue()
	sys.SetRecorder(recorder)
	return nil
}

// probe32Bit starts the 32-bit agent, which does nothing without an order.
func probe32Bit(*Environment) error {
	if _, err := os.Stat(Agent32); err != nil {
		return fmt.Errorf("the image has no 32-bit agent: %w", err)
	}
	if err := exec.Command(Agent32, TaskMode).Run(); err != nil {
		return fmt.Errorf("the kernel starts no 32-bit program: %w", err)
	}
	return nil
}
