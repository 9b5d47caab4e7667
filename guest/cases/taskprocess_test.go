// SPDX-License-Identifier: BSD-3-Clause

package cases

import (
	"os"
	"strings"
	"testing"

	"github.com/zcvet/zcvet/guest/link"
	"github.com/zcvet/zcvet/guest/trace"
)

// start starts a task of the width of the test.
func start(t *testing.T, record *os.File) *task {
	t.Helper()
	started, err := startTask("/proc/self/exe", record)
	if err != nil {
		t.Fatal(err)
	}
	return started
}

func TestTaskRunsCasesOneAfterTheOther(t *testing.T) {
	layNetwork(t)
	record, err := trace.NewFile()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = record.Close() }()
	region, err := trace.Map(int(record.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	recorder := trace.NewRecorder(region)
	task := start(t, record)
	for _, id := range []string{"counter/consecutive-ids/tcp/ipv4/lo", "counter/consecutive-ids/udp/ipv4/lo", "counter/consecutive-ids/udp/ipv4/nic"} {
		recorder.Start(id)
		report, err := task.run(taskOrder{Instance: id, Parameters: link.Parameters{Seed: 1, TimeScale: 1}})
		if err != nil {
			t.Fatalf("%s: %v; %s", id, err, task.complaints.take())
		}
		want := Pass
		if strings.HasSuffix(id, "nic") {
			want = Skip
		}
		if report.Result.Status != want {
			t.Errorf("%s: %s, want %s: %s", id, report.Result.Status, want, report.Result.Detail)
		}
		recorded, err := trace.Parse(region)
		if err != nil {
			t.Fatal(err)
		}
		if sent := len(recorded.Calls) > 0; recorded.Case != id || sent != (want == Pass) {
			t.Errorf("%s: a record of %d calls of %s", id, len(recorded.Calls), recorded.Case)
		}
	}
	if err := task.end(); err != nil {
		t.Errorf("the task ended with %v; %s", err, task.complaints.take())
	}
}

func TestTaskThatGivesUp(t *testing.T) {
	task := start(t, nil)
	if _, err := task.run(taskOrder{Instance: "no/such/case"}); err == nil {
		t.Error("a report of a case that is not there")
	}
	if err := task.end(); err == nil {
		t.Error("the task ended well")
	}
	if said := task.complaints.take(); !strings.Contains(said, "no/such/case") {
		t.Errorf("the task said %q", said)
	}
}

func TestTaskThatDoesNotStart(t *testing.T) {
	for _, program := range []string{"/bin/false", "/no/such/agent"} {
		if task, err := startTask(program, nil); err == nil {
			t.Errorf("%s serves as a task", program)
			_ = task.end()
		}
	}
}
