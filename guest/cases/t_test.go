// SPDX-License-Identifier: BSD-3-Clause

package cases

import (
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/zcvet/zcvet/guest/link"
	"github.com/zcvet/zcvet/guest/network"
	"github.com/zcvet/zcvet/guest/nic"
	"github.com/zcvet/zcvet/guest/notify"
)

// try runs a function as a case without axes, with little patience.
func try(run func(*T)) (Result, []string) {
	return tryOn(&Environment{Network: &network.Network{}}, Instance{Case: &Case{Name: "test/case", run: run}})
}

func tryOn(e *Environment, instance Instance) (Result, []string) {
	var log []string
	result := e.Run(instance, link.Parameters{Seed: 7, CaseTimeout: 30 * time.Millisecond}, func(line string) { log = append(log, line) })
	return result, log
}

func TestResults(t *testing.T) {
	for _, test := range []struct {
		name   string
		run    func(*T)
		status Status
		detail []string // parts of it
	}{
		{"nothing fails", func(*T) {}, Pass, nil},
		{"skip", func(t *T) { t.Skipf("no %s", "moon") }, Skip, []string{"no moon"}},
		{"skip after a failure", func(t *T) { t.Errorf("broken"); t.Skipf("no moon") }, Fail, []string{"broken"}},
		{"failures add up", func(t *T) { t.Errorf("one"); t.Errorf("two") }, Fail, []string{"one", "two"}},
		{"nothing runs after Fatalf", func(t *T) { t.Fatalf("first"); t.Errorf("second") }, Fail, []string{"t_test.go", "first"}},
		{"Check passes", func(t *T) { t.Check(nil, "try") }, Pass, nil},
		{"Check fails", func(t *T) { t.Check(unix.EPERM, "try") }, Fail, []string{"try: operation not permitted"}},
		{"panic", func(*T) { panic("oh no") }, Fail, []string{"panic: oh no", "t_test.go"}},
		{"panic elsewhere", func(t *T) { t.Go(func() { panic("oh no") }) }, Fail, []string{"panic: oh no"}},
		{"fault", func(t *T) {
			memory := t.Memory(1)
			t.Check(memory.Protect(0, 1, notify.NoAccess), "mprotect")
			memory.Bytes()[0] = 1
		}, Fail, []string{"panic: runtime error: invalid memory address"}},
		{"waiting in vain", func(t *T) { t.Eventually("pigs fly", func() bool { return false }) }, Fail, []string{"in vain", "pigs fly"}},
		{"waiting", func(t *T) {
			// Not the little patience of a test, which a busy machine uses up.
			t.Parameters = link.Parameters{}
			asked := 0
			t.Eventually("third time", func() bool { asked++; return asked == 3 })
		}, Pass, nil},
		{"failing cleanup", func(t *T) { t.Cleanup(func() { t.Errorf("mess") }) }, Fail, []string{"mess"}},
		{"no NIC on this link", func(t *T) { t.NIC() }, Fail, []string{"NICLinks"}},
		{"unknown feature", func(t *T) { t.Require("moon") }, Skip, []string{"moon"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			result, _ := try(test.run)
			if result.Status != test.status {
				t.Errorf("status %s, want %s: %s", result.Status, test.status, result.Detail)
			}
			for _, part := range test.detail {
				if !strings.Contains(result.Detail, part) {
					t.Errorf("detail %q lacks %q", result.Detail, part)
				}
			}
			if strings.Contains(result.Detail, "second") {
				t.Error("the case went on after its end")
			}
		})
	}
}

func TestFailureNamesTheLineOfTheCase(t *testing.T) {
	helper := func(t *T) {
		t.Helper()
		t.Errorf("from the helper")
	}
	_, _, line, _ := runtime.Caller(0)
	result, log := try(func(t *T) { helper(t) })
	if want := fmt.Sprintf("t_test.go:%d: from the helper", line+1); result.Detail != want {
		t.Errorf("detail %q, want %q", result.Detail, want)
	}
	if len(log) != 1 || !strings.Contains(log[0], "from the helper") {
		t.Errorf("log %q", log)
	}
}

func TestCleanupsRunInReverseAndDumpsOnlyAfterFailure(t *testing.T) {
	for _, fail := range []bool{false, true} {
		var order []string
		note := func(what string) func() { return func() { order = append(order, what) } }
		try(func(t *T) {
			t.Cleanup(note("first cleanup"))
			t.OnFailure(note("dump"))
			t.Cleanup(note("second cleanup"))
			t.Go(note("goroutine"))
			if fail {
				t.Fatalf("failed")
			}
		})
		want := []string{"goroutine", "second cleanup", "first cleanup"}
		if fail {
			want = []string{"goroutine", "dump", "second cleanup", "first cleanup"}
		}
		if !slices.Equal(order, want) {
			t.Errorf("fail %v: order %q, want %q", fail, order, want)
		}
	}
}

func TestWhatCannotBePutBackSpendsTheMachine(t *testing.T) {
	for _, test := range []struct {
		err    error
		status Status
	}{{nil, Pass}, {network.ErrNoDevice, Fail}} {
		var order []string
		result, _ := try(func(t *T) {
			t.PutBack(func() error { order = append(order, "put back"); return test.err })
			t.Cleanup(func() { order = append(order, "socket closed") })
		})
		if result.Spent != (test.err != nil) || result.Status != test.status {
			t.Errorf("%v: %+v", test.err, result)
		}
		if !slices.Equal(order, []string{"socket closed", "put back"}) {
			t.Errorf("order: %v", order)
		}
	}
}

func TestThreadStateEndsWithTheCase(t *testing.T) {
	threads := make(map[int]bool)
	for range 3 {
		try(func(*T) { threads[unix.Gettid()] = true })
	}
	if len(threads) != 3 {
		t.Errorf("three cases ran on %d threads", len(threads))
	}
}

func TestRandomnessIsOfSeedAndInstance(t *testing.T) {
	draw := func(name string) (drawn uint64) {
		tryOn(&Environment{Network: &network.Network{}}, Instance{Case: &Case{Name: name, run: func(t *T) { drawn = t.Rand.Uint64() }}})
		return drawn
	}
	if first, again := draw("a/b"), draw("a/b"); first != again {
		t.Error("the same instance drew other numbers")
	}
	if draw("a/b") == draw("a/c") {
		t.Error("two instances drew the same numbers")
	}
}

func TestMissingLinkSkips(t *testing.T) {
	e := &Environment{Network: &network.Network{Missing: map[network.Link]string{network.NIC: "not plugged"}}}
	ran := false
	result, _ := tryOn(e, Instance{Case: &Case{Name: "a/b", run: func(*T) { ran = true }}, Link: network.NIC})
	if result.Status != Skip || !strings.Contains(result.Detail, "not plugged") || ran {
		t.Errorf("%+v, ran %v", result, ran)
	}
}

func TestSCMNotificationIsAsItsTreeSays(t *testing.T) {
	for _, test := range []struct {
		parameters link.Parameters
		here       bool
	}{
		{link.Parameters{}, false},
		{link.Parameters{ABI: "v8"}, false},
		{link.Parameters{ABI: "v8", Constant: 81}, true},
	} {
		e := &Environment{Network: &network.Network{}, parameters: test.parameters}
		if err := e.feature(SCMNotification); (err == nil) != test.here {
			t.Errorf("%+v: %v", test.parameters, err)
		}
	}
}

// fakeHost answers NIC calls from a table and notes them.
type fakeHost struct {
	answers map[string]any
	calls   []string
}

func (h *fakeHost) Call(method string, args, result any) error {
	encoded, err := json.Marshal(args)
	if err != nil {
		return err
	}
	h.calls = append(h.calls, fmt.Sprintf("%s %s", method, encoded))
	answer, known := h.answers[method]
	if !known {
		return errors.New("refused")
	}
	if result == nil {
		return nil
	}
	encoded, err = json.Marshal(answer)
	if err != nil {
		return err
	}
	return json.Unmarshal(encoded, result)
}

func TestNICCalls(t *testing.T) {
	host := &fakeHost{answers: map[string]any{
		nic.MethodReset: nil, nic.MethodHold: nil, nic.MethodLateDMA: nil, nic.MethodSetLink: nil,
		nic.MethodRelease:    nic.Released{Released: 2, Held: 1},
		nic.MethodAddRule:    nic.RuleAdded{Rule: 5},
		nic.MethodRuleStatus: nic.RuleStatus{Matched: 3},
		nic.MethodRemoveRule: nic.RuleStatus{Acted: 4},
		nic.MethodFrames:     nic.Frames{Next: 9},
	}}
	e := &Environment{Network: &network.Network{}, Host: host}
	result, _ := tryOn(e, Instance{Link: network.NICNoSG, Case: &Case{Name: "a/b", run: func(t *T) {
		n := t.NIC()
		n.Hold(true)
		n.LateDMA(true)
		n.SetLink(n.Receiver, false)
		if released := n.Release(2); released.Held != 1 {
			t.Errorf("released %+v", released)
		}
		if rule := n.AddRule(nic.Rule{Port: n.Sender, Action: nic.Drop}); rule != 5 {
			t.Errorf("rule %d", rule)
		}
		if n.RuleStatus(5).Matched != 3 || n.RemoveRule(5).Acted != 4 {
			t.Errorf("rule status")
		}
		if n.Frames(n.Sender, 7, nic.UDP).Next != 9 {
			t.Errorf("frames")
		}
	}}})
	if result.Status != Pass {
		t.Fatal(result.Detail)
	}
	want := []string{
		`nic.hold {"port":"nosg0","on":true}`,
		`nic.late-dma {"port":"nosg0","on":true}`,
		`nic.set-link {"port":"nosg1","up":false}`,
		`nic.release {"port":"nosg0","count":2}`,
		`nic.add-rule {"port":"nosg0","match":"","action":"drop"}`,
		`nic.rule-status {"rule":5}`,
		`nic.remove-rule {"rule":5}`,
		`nic.frames {"port":"nosg0","since":7,"match":"udp"}`,
		`nic.reset null`,
	}
	if !slices.Equal(host.calls, want) {
		t.Errorf("calls:\n%s\nwant:\n%s", strings.Join(host.calls, "\n"), strings.Join(want, "\n"))
	}
}

func TestRefusedNICCallFailsTheCaseAndIsDumped(t *testing.T) {
	host := &fakeHost{answers: map[string]any{
		nic.MethodReset:  nil,
		nic.MethodFrames: nic.Frames{Frames: []nic.Frame{{Number: 41, Class: nic.UDP}}},
	}}
	e := &Environment{Network: &network.Network{}, Host: host}
	result, log := tryOn(e, Instance{Link: network.NIC, Case: &Case{Name: "a/b", run: func(t *T) { t.NIC().Hold(true) }}})
	if result.Status != Fail || !strings.Contains(result.Detail, "nic.hold: refused") {
		t.Errorf("%+v", result)
	}
	if !strings.Contains(strings.Join(log, "\n"), "nic1: frame 41 udp") {
		t.Errorf("the frames are not in the log: %q", log)
	}
}

func TestPatienceEndsBeforeTheCaseDoes(t *testing.T) {
	for _, test := range []struct {
		parameters link.Parameters
		want       time.Duration
	}{
		{link.Parameters{}, patience},
		{link.Parameters{TimeScale: 3}, 3 * patience},
		{link.Parameters{TimeScale: 0.1}, patience},
		{link.Parameters{TimeScale: 3, CaseTimeout: 12 * time.Second}, 4 * time.Second},
	} {
		if got := (&T{environment: &Environment{}, Parameters: test.parameters}).Patience(); got != test.want {
			t.Errorf("%+v: %v, want %v", test.parameters, got, test.want)
		}
	}
}

// A kernel on which case after case waits in vain is not waited for as long.
func TestPatienceEnds(t *testing.T) {
	e := &Environment{Network: &network.Network{}}
	patience := func() (now time.Duration) {
		tryOn(e, Instance{Case: &Case{Name: "test/patience", run: func(t *T) { now = t.Patience() }}})
		return now
	}
	full := patience()
	for range vainCases {
		if now := patience(); now != full {
			t.Errorf("the patience is %v before the last case that waits in vain, %v at first", now, full)
		}
		tryOn(e, Instance{Case: &Case{Name: "test/fails", run: func(t *T) { t.Errorf("at once") }}})
		tryOn(e, Instance{Case: &Case{Name: "test/waits", run: func(t *T) {
			t.Eventually("pigs fly", func() bool { return false })
		}}})
	}
	if now := patience(); now >= full {
		t.Errorf("the patience is %v after %d cases that waited in vain, %v at first", now, vainCases, full)
	}
}
