// SPDX-License-Identifier: BSD-3-Clause

package suite_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/zcvet/zcvet/guest/link"
	"github.com/zcvet/zcvet/harness/fault"
	"github.com/zcvet/zcvet/harness/machine"
	"github.com/zcvet/zcvet/harness/splat"
	"github.com/zcvet/zcvet/harness/suite"
	"github.com/zcvet/zcvet/harness/verdict"
)

// patience is short where a test has to run into it, and long where a slow
// machine must not.
var patience = machine.Patience{
	Boot: time.Minute, Case: time.Minute, Suite: time.Minute, Silence: time.Minute, Backtrace: 5 * time.Second,
}

var oops = []string{
	"[    2.000000] BUG: kernel NULL pointer dereference, address: 0000000000000010",
	"[    2.000001] #PF: supervisor read access in kernel mode",
	"[    2.000002] Oops: Oops: 0000 [#1] PREEMPT SMP NOPTI",
	"[    2.000003] CPU: 0 UID: 0 PID: 57 Comm: agent Not tainted 6.12.0 #1",
	"[    2.000004] RIP: 0010:tcp_sendmsg_locked+0x12/0x40",
	"[    2.000005] Call Trace:",
	"[    2.000006]  <TASK>",
	"[    2.000007]  tcp_sendmsg+0x2c/0x40",
	"[    2.000008]  </TASK>",
	"[    2.000009] ---[ end trace 0000000000000000 ]---",
}

var warning = []string{
	"[    3.000000] ------------[ cut here ]------------",
	"[    3.000001] WARNING: CPU: 0 PID: 57 at net/core/skbuff.c:1800 msg_zerocopy_callback+0x12/0x40",
	"[    3.000002] CPU: 0 UID: 0 PID: 57 Comm: agent Not tainted 6.12.0 #1",
	"[    3.000003] RIP: 0010:msg_zerocopy_callback+0x12/0x40",
	"[    3.000004] Call Trace:",
	"[    3.000005]  <TASK>",
	"[    3.000006]  skb_release_data+0x2c/0x40",
	"[    3.000007]  </TASK>",
	"[    3.000008] ---[ end trace 0000000000000000 ]---",
}

func run(t *testing.T, lab *laboratory, change func(*suite.Options)) (*suite.Result, error) {
	t.Helper()
	lab.t = t
	options := suite.Options{Booter: lab, Patience: patience}
	if change != nil {
		change(&options)
	}
	result, err := suite.Run(t.Context(), options)
	if lab.open != 0 {
		t.Errorf("%d machines were left running", lab.open)
	}
	return result, err
}

// statuses maps each case to its status.
func statuses(result *suite.Result) map[string]verdict.Status {
	got := map[string]verdict.Status{}
	for _, c := range result.Cases {
		got[c.ID] = c.Status
	}
	return got
}

func TestResultsAreKept(t *testing.T) {
	lab := &laboratory{
		instances: []string{"a", "b", "c"},
		behaviour: map[string]behaviour{"b": ends("fail", "expected 1, got 2"), "c": ends("skip", "no such device")},
	}
	var told []string
	result, err := run(t, lab, func(o *suite.Options) {
		o.OnCase = func(c verdict.Case) { told = append(told, c.ID) }
	})
	if err != nil {
		t.Fatal(err)
	}
	want := []verdict.Case{
		{ID: "a", Name: "a", Level: verdict.Must, Status: verdict.Pass, MS: 1},
		{ID: "b", Name: "b", Level: verdict.Must, Status: verdict.Fail, MS: 1, Detail: "expected 1, got 2", Log: []string{"noted by b"}, Evidence: &verdict.Evidence{}},
		{ID: "c", Name: "c", Level: verdict.Must, Status: verdict.Skip, MS: 1, Detail: "no such device"},
	}
	if diff := cmp.Diff(want, result.Cases); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"a", "b", "c"}, told); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"b"}, lab.evidence); diff != "" {
		t.Errorf("evidence is kept of failures only: %s", diff)
	}
	if lab.boots != 1 || lab.restores != 0 {
		t.Errorf("%d boots, %d restores", lab.boots, lab.restores)
	}
}

func TestOnlyWantedCasesRun(t *testing.T) {
	lab := &laboratory{instances: []string{"a", "b"}}
	wanted := func(name string) func(*suite.Options) {
		return func(o *suite.Options) { o.Wanted = func(i link.Instance) bool { return i.ID == name } }
	}
	result, err := run(t, lab, wanted("b"))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]verdict.Status{"b": verdict.Pass}, statuses(result)); diff != "" {
		t.Error(diff)
	}
	if _, err := run(t, lab, wanted("none of them")); fault.Of(err) != fault.Usage {
		t.Errorf("an empty selection: %v, want a usage error", err)
	}
}

// What a case cannot put back is missing to all others, which get another machine.
func TestCaseThatSpendsItsMachine(t *testing.T) {
	for _, test := range []struct {
		name      string
		instances []string
		ran       [][]string // what each machine is asked for
	}{
		{"others are left", []string{"a", "unplugs", "b", "c"}, [][]string{{"a", "unplugs", "b", "c"}, {"b", "c"}}},
		{"it is the last", []string{"a", "unplugs"}, [][]string{{"a", "unplugs"}}},
	} {
		t.Run(test.name, func(t *testing.T) {
			lab := &laboratory{instances: test.instances, behaviour: map[string]behaviour{"unplugs": spends("the device did not come back")}}
			result, err := run(t, lab, nil)
			if err != nil {
				t.Fatal(err)
			}
			for _, c := range result.Cases {
				if (c.Status == verdict.Fail) != (c.ID == "unplugs") {
					t.Errorf("%s: %s", c.ID, c.Status)
				}
			}
			if diff := cmp.Diff(test.ran, lab.ran); diff != "" {
				t.Errorf("what each machine was asked for: %s", diff)
			}
			if lab.boots != 1 || lab.restores != len(test.ran)-1 {
				t.Errorf("%d boots, %d restores", lab.boots, lab.restores)
			}
		})
	}
}

func TestConcurrentCasesRunInAMachineWithMoreProcessors(t *testing.T) {
	lab := &laboratory{
		instances:  []string{"a", "races", "b", "crashes"},
		concurrent: map[string]bool{"races": true, "crashes": true},
		behaviour:  map[string]behaviour{"races": prints(hangs(), oops...)},
	}
	result, err := run(t, lab, nil)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]verdict.Status{
		"a": verdict.Pass, "races": verdict.Crash, "b": verdict.Pass, "crashes": verdict.Pass,
	}
	if diff := cmp.Diff(want, statuses(result)); diff != "" {
		t.Error(diff)
	}
	// The second goes on with what the crash left of the first.
	ran := [][]string{{"a", "b"}, {"races", "crashes"}, {"crashes"}}
	if diff := cmp.Diff(ran, lab.ran); diff != "" {
		t.Errorf("what ran in each machine: %s", diff)
	}
	if diff := cmp.Diff([]int{1, 2, 2}, lab.processors); diff != "" {
		t.Errorf("the processors of each machine: %s", diff)
	}
	if lab.boots != 2 || lab.restores != 1 {
		t.Errorf("%d boots, %d restores", lab.boots, lab.restores)
	}
}

func TestOnlyConcurrentCasesTakeOneMachine(t *testing.T) {
	lab := &laboratory{
		instances:  []string{"a", "races"},
		concurrent: map[string]bool{"races": true},
	}
	_, err := run(t, lab, func(o *suite.Options) {
		o.Wanted = func(i link.Instance) bool { return i.Concurrent }
		o.Concurrent = true
		o.Machines = 2
	})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]int{2}, lab.processors); diff != "" || lab.boots != 1 {
		t.Errorf("%d boots, the processors of each machine: %s", lab.boots, diff)
	}
}

func TestCrashBelongsToItsCaseAndTheOthersStillRun(t *testing.T) {
	for _, test := range []struct {
		name   string
		crash  behaviour
		detail string
		kind   string
	}{
		{"oops, machine lives", prints(hangs(), oops...), "NULL", "oops"},
		{"oops, machine dies", prints(dies(errors.New("guest panicked")), oops...), "NULL", "oops"},
		{"machine dies silently", dies(errors.New("qemu: killed")), "qemu: killed", ""},
		{"oops, the case is reported first", prints(ends("fail", "worker was killed"), oops...), "NULL", "oops"},
	} {
		t.Run(test.name, func(t *testing.T) {
			lab := &laboratory{
				instances: []string{"a", "b", "c"},
				behaviour: map[string]behaviour{"b": test.crash},
			}
			result, err := run(t, lab, nil)
			if err != nil {
				t.Fatal(err)
			}
			want := map[string]verdict.Status{"a": verdict.Pass, "b": verdict.Crash, "c": verdict.Pass}
			if diff := cmp.Diff(want, statuses(result)); diff != "" {
				t.Error(diff)
			}
			if detail := result.Cases[1].Detail; !strings.Contains(detail, test.detail) {
				t.Errorf("detail %q does not say %q", detail, test.detail)
			}
			if lab.boots != 1 || lab.restores != 1 {
				t.Errorf("%d boots and %d restores, want 1 and 1", lab.boots, lab.restores)
			}
			if test.kind == "" {
				return
			}
			if len(result.Splats) != 1 || string(result.Splats[0].Kind) != test.kind || result.Splats[0].Case != "b" {
				t.Errorf("splats %+v", result.Splats)
			}
		})
	}
}

func TestSplatFailsTheCaseThatRan(t *testing.T) {
	lab := &laboratory{
		instances: []string{"a", "b", "c"},
		behaviour: map[string]behaviour{"b": prints(ends("pass", ""), warning...)},
	}
	result, err := run(t, lab, nil)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]verdict.Status{"a": verdict.Pass, "b": verdict.Fail, "c": verdict.Pass}
	if diff := cmp.Diff(want, statuses(result)); diff != "" {
		t.Error(diff)
	}
	if len(result.Splats) != 1 || result.Splats[0].Case != "b" {
		t.Errorf("splats %+v", result.Splats)
	}
	if lab.restores != 0 {
		t.Error("a warning is no reason to leave the machine")
	}
}

func TestTaintWithoutWordsFails(t *testing.T) {
	tainted := func(vm *fakeVM, conn *link.Conn, id string) {
		vm.end(conn, link.CaseEnd{ID: id, Status: "pass", Tainted: 1 << 9})
	}
	lab := &laboratory{
		instances: []string{"a", "b"},
		behaviour: map[string]behaviour{"a": tainted, "b": tainted},
	}
	result, err := run(t, lab, nil)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]verdict.Status{"a": verdict.Fail, "b": verdict.Pass}
	if diff := cmp.Diff(want, statuses(result)); diff != "" {
		t.Errorf("the case that set the taint fails, those after it do not: %s", diff)
	}
}

// TestConsoleMayBeAhead holds that the marks are looked for by name: the guest goes
// on with the next case while the host still reads about the last one.
func TestConsoleMayBeAhead(t *testing.T) {
	lab := &laboratory{instances: []string{"a", "b"}}
	ahead := func(vm *fakeVM, conn *link.Conn, id string) {
		if id == "a" {
			for _, other := range lab.instances {
				vm.console("[    4.000000] " + link.StartMark(other))
				vm.console("[    4.000000] " + link.EndMark)
			}
		}
		_ = conn.Send(link.KindCaseEnd, link.CaseEnd{ID: id, Status: "pass"})
	}
	lab.behaviour = map[string]behaviour{"a": ahead, "b": ahead}
	var console bytes.Buffer
	if _, err := run(t, lab, func(o *suite.Options) {
		o.Console = func(int) (io.Writer, error) { return &console, nil }
	}); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(console.String(), "never showed") {
		t.Errorf("a mark that had come was waited for: %s", console.String())
	}
}

func TestHangGetsABacktrace(t *testing.T) {
	lab := &laboratory{
		instances: []string{"a", "b"},
		behaviour: map[string]behaviour{"a": hangs(
			"[    9.000000] NMI backtrace for cpu 0",
			"[    9.000001] CPU: 0 UID: 0 PID: 57 Comm: agent Not tainted 6.12.0 #1",
			"[    9.000002] RIP: 0010:udp_sendmsg+0x12/0x40",
			"[    9.000003] Call Trace:",
			"[    9.000004]  <TASK>",
			"[    9.000005]  __sys_sendto+0x2c/0x40",
			"[    9.000006]  </TASK>",
		)},
	}
	result, err := run(t, lab, func(o *suite.Options) { o.Silence = 300 * time.Millisecond })
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]verdict.Status{"a": verdict.Crash, "b": verdict.Pass}
	if diff := cmp.Diff(want, statuses(result)); diff != "" {
		t.Error(diff)
	}
	if lab.nmis != 1 {
		t.Errorf("%d NMIs", lab.nmis)
	}
	if len(result.Splats) != 1 || result.Splats[0].Kind != "hang" || result.Splats[0].Function != "udp_sendmsg" {
		t.Errorf("splats %+v", result.Splats)
	}
}

// TestProcessStuckInTheKernelIsAHang has a guest with two processors: the case is
// stuck on one, and PID 1 on the other says that it cannot end it.
func TestProcessStuckInTheKernelIsAHang(t *testing.T) {
	lab := &laboratory{
		instances: []string{"a", "b"},
		behaviour: map[string]behaviour{"a": func(vm *fakeVM, conn *link.Conn, _ string) {
			_ = conn.Send(link.KindFatal, link.Fatal{Error: "the worker cannot be killed"})
			<-vm.done
		}},
	}
	result, err := run(t, lab, func(o *suite.Options) { o.Backtrace = 300 * time.Millisecond })
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]verdict.Status{"a": verdict.Crash, "b": verdict.Pass}
	if diff := cmp.Diff(want, statuses(result)); diff != "" {
		t.Error(diff)
	}
	if lab.nmis != 1 {
		t.Errorf("%d NMIs", lab.nmis)
	}
}

// TestAgentThatStartsNoCaseIsAHang has a PID 1 that lives and does not work: its
// heartbeats must not keep the run waiting for ever. The case before it is blamed,
// as for every fault that shows after the end of a case.
func TestAgentThatStartsNoCaseIsAHang(t *testing.T) {
	lab := &laboratory{
		instances: []string{"a", "b"},
		behaviour: map[string]behaviour{"a": func(vm *fakeVM, conn *link.Conn, id string) {
			vm.end(conn, link.CaseEnd{ID: id, Status: "pass"})
			for conn.Send(link.KindHeartbeat, nil) == nil {
				time.Sleep(10 * time.Millisecond)
			}
		}},
	}
	result, err := run(t, lab, func(o *suite.Options) {
		o.Patience.Suite, o.Backtrace = 300*time.Millisecond, 300*time.Millisecond
	})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]verdict.Status{"a": verdict.Crash, "b": verdict.Pass}
	if diff := cmp.Diff(want, statuses(result)); diff != "" {
		t.Error(diff)
	}
	if lab.restores != 1 || lab.nmis != 1 {
		t.Errorf("%d restores, %d NMIs, want one of each", lab.restores, lab.nmis)
	}
}

// TestConsoleThatCannotBeReadFailsItsCase: a kernel whose console nobody can read
// has not been silent (R04).
func TestConsoleThatCannotBeReadFailsItsCase(t *testing.T) {
	for _, after := range []struct {
		name string
		then behaviour
	}{
		{"the case passes", ends("pass", "")},
		{"the case never ends", hangs()},
	} {
		t.Run(after.name, func(t *testing.T) {
			lab := &laboratory{
				instances: []string{"a", "b", "c"},
				behaviour: map[string]behaviour{"b": prints(after.then, strings.Repeat("\xff", 70<<10))},
			}
			result, err := run(t, lab, nil)
			if err != nil {
				t.Fatal(err)
			}
			want := map[string]verdict.Status{"a": verdict.Pass, "b": verdict.Crash, "c": verdict.Pass}
			if diff := cmp.Diff(want, statuses(result)); diff != "" {
				t.Error(diff)
			}
			if len(result.Splats) != 1 || result.Splats[0].Kind != splat.Unreadable || result.Splats[0].Case != "b" {
				t.Errorf("splats %+v, want that the console of b cannot be read", result.Splats)
			}
			if lab.restores != 1 {
				t.Errorf("%d restores: the cases after it need a console that can be read", lab.restores)
			}
		})
	}
}

func TestCallsAreAnswered(t *testing.T) {
	var replies []link.Reply
	calls := func(vm *fakeVM, conn *link.Conn, id string) {
		for number, method := range []string{"nic.hold", "refused"} {
			_ = conn.Send(link.KindCall, link.Call{Number: uint64(number), Method: method})
			message, err := conn.Receive()
			if err != nil {
				return
			}
			reply, _ := link.Decode[link.Reply](message)
			replies = append(replies, reply)
		}
		vm.end(conn, link.CaseEnd{ID: id, Status: "pass"})
	}
	lab := &laboratory{instances: []string{"a"}, behaviour: map[string]behaviour{"a": calls}}
	if _, err := run(t, lab, nil); err != nil {
		t.Fatal(err)
	}
	want := []link.Reply{
		{Number: 0, Result: json.RawMessage(`{"answer":42}`)},
		{Number: 1, Error: "no such method"},
	}
	if diff := cmp.Diff(want, replies); diff != "" {
		t.Error(diff)
	}
}

func TestBootFailures(t *testing.T) {
	for _, test := range []struct {
		name string
		lab  *laboratory
		boot time.Duration
		say  string
	}{
		{
			"panic", &laboratory{noHello: true, boot: []string{
				"[    0.500000] Run /init as init process",
				"[    0.600000] Kernel panic - not syncing: No working init found.  Try passing init= option to kernel.",
				"[    0.600001] CPU: 0 UID: 0 PID: 1 Comm: swapper/0 Not tainted 6.12.0 #1",
				"[    0.600002] ---[ end Kernel panic - not syncing: No working init found.  Try passing init= option to kernel. ]---",
			}},
			time.Minute, "No working init found",
		},
		{"silence", &laboratory{noHello: true, boot: []string{"[    0.1] Linux version"}}, 300 * time.Millisecond, "not ready after"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := run(t, test.lab, func(o *suite.Options) { o.Patience.Boot = test.boot })
			if fault.Of(err) != fault.Boot {
				t.Fatalf("%v is of class %v", err, fault.Of(err))
			}
			if !strings.Contains(err.Error(), test.say) {
				t.Errorf("%q does not say %q", err, test.say)
			}
			classed, _ := errors.AsType[*fault.Error](err)
			if !strings.Contains(classed.Output, test.lab.boot[0]) {
				t.Errorf("the console is not shown: %q", classed.Output)
			}
			if test.name == "silence" && !strings.Contains(classed.Output, "\nthe worker waits in do_futex") {
				t.Errorf("what PID 1 says is not shown: %q", classed.Output)
			}
		})
	}
}

func TestMachinesThatNeverRunACaseEndTheRun(t *testing.T) {
	lab := &laboratory{
		instances: []string{"a"},
		behaviour: map[string]behaviour{"a": func(_ *fakeVM, conn *link.Conn, _ string) {
			_ = conn.Send(link.KindCaseEnd, link.CaseEnd{ID: "somebody else's", Status: "pass"})
		}},
	}
	result, err := run(t, lab, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := result.Cases[0]; got.Status != verdict.Fail || !strings.Contains(got.Detail, "guest link") {
		t.Errorf("a broken agent: %+v", got)
	}
}

func TestInterruptKeepsWhatWasFinished(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	lab := &laboratory{t: t, instances: []string{"a", "b"}, behaviour: map[string]behaviour{
		"b": func(vm *fakeVM, _ *link.Conn, _ string) {
			cancel()
			<-vm.done
		},
	}}
	result, err := suite.Run(ctx, suite.Options{Booter: lab, Patience: patience})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	if diff := cmp.Diff(map[string]verdict.Status{"a": verdict.Pass, "b": ""}, statuses(result)); diff != "" {
		t.Error(diff)
	}
}

func TestConsoleLogShowsWhereCasesBegin(t *testing.T) {
	var console bytes.Buffer
	lab := &laboratory{instances: []string{"a"}, behaviour: map[string]behaviour{"a": prints(ends("pass", ""), "[    2.0] hello")}}
	if _, err := run(t, lab, func(o *suite.Options) {
		o.Console = func(int) (io.Writer, error) { return &console, nil }
	}); err != nil {
		t.Fatal(err)
	}
	if want := "[    2.0] hello\n"; !strings.Contains(console.String(), want) || !strings.Contains(console.String(), link.StartMark("a")) {
		t.Errorf("console log %q", console.String())
	}
}

// TestLostWorker has PID 1 report a case whose worker it had to kill. The report
// overtakes what the worker had still sent. The other cases run in another machine,
// and nothing that the kernel has gathered is lost.
func TestLostWorker(t *testing.T) {
	end := link.CaseEnd{ID: "b", Status: "timeout", Detail: "not finished after 1s", Took: time.Second}
	lab := &laboratory{
		instances: []string{"a", "b", "c"}, features: gathering[:1],
		// Hello, three frames of a, the start of b and its last words.
		behaviour: map[string]behaviour{"b": kills(link.Lost{CaseEnd: end, Frames: 6}, "last words")},
	}
	var console strings.Builder
	result, err := run(t, lab, func(o *suite.Options) { o.Console = func(int) (io.Writer, error) { return &console, nil } })
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]verdict.Status{"a": verdict.Pass, "b": verdict.Timeout, "c": verdict.Pass}
	if diff := cmp.Diff(want, statuses(result)); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	b := result.Cases[1]
	slices.Sort(b.Log) // the links are not in order with each other
	if diff := cmp.Diff([]string{"SIGQUIT: quit", "last words"}, b.Log); diff != "" || b.Detail != end.Detail || b.MS != 1000 {
		t.Errorf("%q after %d ms, log -want +got:\n%s", b.Detail, b.MS, diff)
	}
	if lab.boots != 1 || lab.restores != 1 {
		t.Errorf("%d boots, %d restores", lab.boots, lab.restores)
	}
	if len(result.Counters) != 2 || len(result.Missing) != 0 {
		t.Errorf("counters of %d machines, missing %q", len(result.Counters), result.Missing)
	}
	if strings.Contains(console.String(), "never showed the end") {
		t.Error("the end of a case was missed on the console")
	}
}

// TestWorkerLostBetweenCases has a worker die that had just ended its case, by the
// mark of PID 1 for another case that runs again.
func TestWorkerLostBetweenCases(t *testing.T) {
	for name, lost := range map[string]link.Lost{
		"no case ran":                 {CaseEnd: link.CaseEnd{Status: "fail", Detail: "killed"}, Frames: 4},
		"its case had ended already":  {CaseEnd: link.CaseEnd{ID: "a", Status: "timeout", Detail: "late"}, Frames: 4},
		"it is of a case of no suite": {CaseEnd: link.CaseEnd{ID: "unheard of", Status: "fail"}, Frames: 4},
	} {
		t.Run(name, func(t *testing.T) {
			lab := &laboratory{instances: []string{"a", "b"}, behaviour: map[string]behaviour{
				"a": func(vm *fakeVM, conn *link.Conn, id string) {
					ends("pass", "")(vm, conn, id)
					kills(lost)(vm, conn, id)
				},
			}}
			result, err := run(t, lab, nil)
			if err != nil {
				t.Fatal(err)
			}
			want := map[string]verdict.Status{"a": verdict.Pass, "b": verdict.Pass}
			if diff := cmp.Diff(want, statuses(result)); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
			if diff := cmp.Diff([][]string{{"a", "b"}, {"b"}}, lab.ran); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

func TestWorkersThatAreLostBeforeACase(t *testing.T) {
	lab := &laboratory{instances: []string{"a"}, behaviour: map[string]behaviour{
		"a": kills(link.Lost{CaseEnd: link.CaseEnd{Detail: "its process ended: no such mutant"}, Frames: 1}),
	}}
	_, err := run(t, lab, nil)
	if fault.Of(err) != fault.Infrastructure || !strings.Contains(err.Error(), "no such mutant") {
		t.Errorf("workers that are lost one after the other: %v", err)
	}
}

func TestAgentThatSkipsItsWork(t *testing.T) {
	silent := func(*fakeVM, *link.Conn, string) {}
	lab := &laboratory{instances: []string{"a", "b"}, behaviour: map[string]behaviour{"a": silent}}
	result, err := run(t, lab, nil)
	if fault.Of(err) != fault.Infrastructure || !strings.Contains(err.Error(), "done after 0 of 1 cases") {
		t.Errorf("an agent that never runs a case: %v", err)
	}
	want := map[string]verdict.Status{"a": "", "b": verdict.Pass}
	if diff := cmp.Diff(want, statuses(result)); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// TestComplaintOfTheNextCase has the console be a case ahead of the link: the kernel
// complains of the next case before the end of the one before has arrived.
func TestComplaintOfTheNextCase(t *testing.T) {
	lab := &laboratory{instances: []string{"a", "b", "c"}, behaviour: map[string]behaviour{
		"a": func(vm *fakeVM, conn *link.Conn, id string) {
			vm.console("[    4.000000] " + link.EndMark)
			vm.console("[    4.100000] " + link.StartMark("b"))
			for _, line := range warning {
				vm.console(line)
			}
			vm.console("[    4.200000] " + link.EndMark)
			_ = conn.Send(link.KindCaseEnd, link.CaseEnd{ID: id, Status: "pass"})
		},
		"b": func(_ *fakeVM, conn *link.Conn, id string) {
			_ = conn.Send(link.KindCaseEnd, link.CaseEnd{ID: id, Status: "pass"})
		},
	}}
	result, err := run(t, lab, nil)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]verdict.Status{"a": verdict.Pass, "b": verdict.Fail, "c": verdict.Pass}
	if diff := cmp.Diff(want, statuses(result)); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if len(result.Splats) != 1 || result.Splats[0].Case != "b" {
		t.Errorf("splats %+v, want one of b", result.Splats)
	}
}
