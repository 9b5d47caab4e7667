// SPDX-License-Identifier: BSD-3-Clause

package cases

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/zcvet/zcvet/guest/network"
	"github.com/zcvet/zcvet/guest/sys"
	"github.com/zcvet/zcvet/guest/trace"
)

// Agent32 is the agent built for GOARCH=386, as package images puts it into the
// guest.
const Agent32 = "/agent32"

// in32Bit is the part of a name by which the case of a 32-bit task differs from
// that of a 64-bit one.
const in32Bit = "in-32-bit"

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
	task, record := t.environment.task, t.environment.Record
	own := task == nil
	if own {
		var err error
		task, err = startTask(Agent32, record)
		t.Check(err, "start a 32-bit task")
	}
	if record != nil {
		sys.Recorder().Mark(trace.Task, nil)
	} else {
		sys.Recorder().Mark(trace.Child, nil, "a 32-bit task")
	}
	report, err := task.run(taskOrder{Instance: instance.ID(), Parameters: t.Parameters})
	sys.Recorder().Continue()
	// What a case that fails leaves behind is not for the next one, and the
	// descriptors of a task that is started now are not for the sweep.
	if own || err != nil || report.Result.Status == Fail {
		t.environment.task = nil
		err = errors.Join(err, task.end())
	}
	for line := range strings.Lines(task.complaints.take()) {
		t.Logf("%s", strings.TrimRight(line, "\n"))
	}
	t.Check(err, "run a 32-bit task")
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

// probe32Bit starts the 32-bit agent, which then waits for cases.
func probe32Bit(e *Environment) error {
	if _, err := os.Stat(Agent32); err != nil {
		return fmt.Errorf("the image has no 32-bit agent: %w", err)
	}
	task, err := startTask(Agent32, e.Record)
	if err != nil {
		return fmt.Errorf("the kernel starts no 32-bit program: %w", err)
	}
	e.task = task
	return nil
}
