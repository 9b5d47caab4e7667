// SPDX-License-Identifier: BSD-3-Clause

package suite_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/zcvet/zcvet/guest/link"
	"github.com/zcvet/zcvet/guest/trace"
	"github.com/zcvet/zcvet/harness/verdict"
)

// recorded is the record of a case that made so many calls.
func recorded(id string, calls int) []byte {
	region := make([]byte, trace.Size)
	r := trace.NewRecorder(region)
	r.Start(id)
	for i := range calls {
		r.End(r.Begin("listen", []int64{3, int64(i)}, nil, 0), 0, 0, nil, nil, 0)
	}
	return region
}

func callsOf(cases []verdict.Case, id string) []string {
	i := slices.IndexFunc(cases, func(c verdict.Case) bool { return c.ID == id })
	if cases[i].Evidence == nil {
		return nil
	}
	return cases[i].Evidence.Calls
}

// A case that fails tells its calls along with its end; one that passes tells
// none, whatever the agent sent.
func TestCallsOfAFailure(t *testing.T) {
	send := func(status, of string, calls int) behaviour {
		return func(vm *fakeVM, conn *link.Conn, id string) {
			packed, err := trace.Pack(recorded(of, calls))
			if err != nil {
				panic(err)
			}
			vm.console("[    1.5] something about " + id)
			vm.end(conn, link.CaseEnd{ID: id, Status: status, Trace: packed})
		}
	}
	lab := &laboratory{
		instances: []string{"a", "b", "c", "d"},
		behaviour: map[string]behaviour{
			"a": send("fail", "a", 3), "b": send("pass", "b", 3), "c": send("fail", "b", 3), "d": send("fail", "d", 1000),
		},
	}
	result, err := run(t, lab, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := callsOf(result.Cases, "a"); len(got) != 3 || !strings.HasSuffix(got[2], "listen(3, 2) = 0") {
		t.Errorf("calls of a: %q", got)
	}
	if got := result.Cases[0].Evidence.Console; len(got) != 1 || !strings.Contains(got[0], "something about a") {
		t.Errorf("console of a: %q", got)
	}
	if result.Cases[1].Evidence != nil || result.Traces["b"] != nil {
		t.Error("evidence of a case that passed")
	}
	if got := callsOf(result.Cases, "c"); got != nil {
		t.Errorf("c has the calls of another case: %q", got)
	}
	if got := callsOf(result.Cases, "d"); len(got) > 100 || !strings.HasSuffix(got[len(got)-1], "listen(3, 999) = 0") {
		t.Errorf("calls of d: %d lines, the last %q", len(got), got[len(got)-1])
	}
}

// What a case gives back after its failure did not lead there.
func TestCallsEndWithTheFailure(t *testing.T) {
	region := make([]byte, trace.Size)
	r := trace.NewRecorder(region)
	r.Start("a")
	call := func(name string) { r.End(r.Begin(name, []int64{3}, nil, 0), 0, 0, nil, nil, 0) }
	call("listen")
	r.Mark(trace.Failure, nil, "it does not listen")
	for range 1000 {
		call("close")
	}
	packed, err := trace.Pack(region)
	if err != nil {
		t.Fatal(err)
	}
	lab := &laboratory{instances: []string{"a"}, behaviour: map[string]behaviour{
		"a": func(vm *fakeVM, conn *link.Conn, id string) {
			vm.end(conn, link.CaseEnd{ID: id, Status: "fail", Trace: packed})
		},
	}}
	result, err := run(t, lab, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := callsOf(result.Cases, "a"); len(got) != 2 || !strings.HasSuffix(got[1], "it does not listen") {
		t.Errorf("calls: %q", got)
	}
}

// The record of a case whose kernel died is found page by page in its memory.
func TestCallsOfACrash(t *testing.T) {
	lab := &laboratory{
		instances: []string{"a"},
		behaviour: map[string]behaviour{"a": dies(fmt.Errorf("gone"))},
		memory:    make([]byte, 4<<20),
	}
	region := recorded("a", 5)
	for i := 0; i < len(region); i += trace.PageSize {
		place := uint64(3<<20 - 2*i)
		copy(lab.memory[place:], region[i:][:trace.PageSize])
		lab.traced = append(lab.traced, place)
	}
	result, err := run(t, lab, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := callsOf(result.Cases, "a"); len(got) != 5 {
		t.Errorf("calls: %q", got)
	}
}
