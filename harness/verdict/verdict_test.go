// SPDX-License-Identifier: BSD-3-Clause

package verdict_test

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/zcvet/zcvet/harness/fault"
	"github.com/zcvet/zcvet/harness/verdict"
)

func cases(statuses ...verdict.Status) []verdict.Case {
	var list []verdict.Case
	for _, status := range statuses {
		list = append(list, verdict.Case{ID: string(status), Level: verdict.Must, Status: status})
	}
	return list
}

func should(list []verdict.Case) []verdict.Case {
	for i := range list {
		list[i].Level = verdict.Should
	}
	return list
}

func TestDecide(t *testing.T) {
	finding := func(level verdict.Level) verdict.Series {
		return verdict.Series{Findings: []verdict.Finding{{Kind: "uapi-collision", Level: level}}}
	}
	for _, test := range []struct {
		name   string
		run    verdict.Run
		policy verdict.Policy
		err    error
		want   fault.Class
	}{
		{"all pass", verdict.Run{Cases: cases(verdict.Pass, verdict.Skip)}, verdict.Policy{}, nil, fault.None},
		{"a MUST case fails", verdict.Run{Cases: cases(verdict.Pass, verdict.Fail)}, verdict.Policy{}, nil, fault.Test},
		{"a MUST case times out", verdict.Run{Cases: cases(verdict.Pass, verdict.Timeout)}, verdict.Policy{}, nil, fault.Test},
		{"a SHOULD case fails", verdict.Run{Cases: should(cases(verdict.Pass, verdict.Fail))}, verdict.Policy{}, nil, fault.None},
		{"a SHOULD case fails, strict", verdict.Run{Cases: should(cases(verdict.Pass, verdict.Fail))}, verdict.Policy{Strict: true}, nil, fault.Test},
		{"a crash outranks a failure", verdict.Run{Cases: cases(verdict.Fail, verdict.Crash)}, verdict.Policy{}, nil, fault.Crash},
		{"a crash of a SHOULD case", verdict.Run{Cases: should(cases(verdict.Crash))}, verdict.Policy{}, nil, fault.Crash},
		{"a splat while all passes", verdict.Run{Cases: cases(verdict.Pass), Splats: []verdict.Splat{{Title: "WARNING"}}}, verdict.Policy{}, nil, fault.Crash},
		{"a MUST finding", verdict.Run{Cases: cases(verdict.Pass), Series: finding(verdict.Must)}, verdict.Policy{}, nil, fault.Test},
		{"a SHOULD finding", verdict.Run{Cases: cases(verdict.Pass), Series: finding(verdict.Should)}, verdict.Policy{}, nil, fault.None},
		{"a skip that was not expected", verdict.Run{Cases: cases(verdict.Pass, verdict.Skip)}, verdict.Policy{ExpectAll: true}, nil, fault.Test},
		{"nothing but skips", verdict.Run{Cases: cases(verdict.Skip)}, verdict.Policy{}, nil, fault.Infrastructure},
		{"an early end outranks all", verdict.Run{Cases: cases(verdict.Crash)}, verdict.Policy{}, fault.New(fault.Infrastructure, "disk"), fault.Infrastructure},
		{"does not apply", verdict.Run{}, verdict.Policy{}, fault.New(fault.Apply, "hunk 3"), fault.Apply},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := test.run.Decide(test.policy, test.err)
			if got != test.want || test.run.Exit.Code != test.want.ExitCode() || test.run.Exit.Class != test.want.String() {
				t.Errorf("got %v, exit %+v; want %v", got, test.run.Exit, test.want)
			}
			if (got == fault.None) != (test.run.Exit.Error == "") {
				t.Errorf("exit %+v: a reason is given exactly when the run did not pass", test.run.Exit)
			}
		})
	}
}

func TestDecideCountsAFindingOnce(t *testing.T) {
	failed := verdict.Case{ID: "series/uapi-numbers", Level: verdict.Must, Status: verdict.Fail}
	finding := verdict.Finding{Level: verdict.Must, Case: failed.ID}
	for _, test := range []struct {
		cases []verdict.Case
		want  string
	}{
		{[]verdict.Case{failed}, "1 failed"},
		{nil, "1 failed"}, // the case was not selected
	} {
		run := verdict.Run{Cases: test.cases, Series: verdict.Series{Findings: []verdict.Finding{finding}}}
		if run.Decide(verdict.Policy{}, nil); run.Exit.Error != test.want {
			t.Errorf("%d cases: %q, want %q", len(test.cases), run.Exit.Error, test.want)
		}
	}
}

func TestDecideCounts(t *testing.T) {
	run := verdict.Run{Cases: cases(verdict.Pass, verdict.Pass, verdict.Fail, verdict.Skip, verdict.Crash, verdict.Timeout)}
	run.Decide(verdict.Policy{}, nil)
	run.Decide(verdict.Policy{}, nil) // deciding again must not count twice
	want := verdict.Totals{Pass: 2, Fail: 1, Skip: 1, Crash: 1, Timeout: 1}
	if diff := cmp.Diff(want, run.Totals); diff != "" {
		t.Error(diff)
	}
}

// TestContract holds the names other people's scripts read.
func TestContract(t *testing.T) {
	run := verdict.Run{
		Series: verdict.Series{Patches: []verdict.Patch{{}}, Findings: []verdict.Finding{{}}},
		Cases:  []verdict.Case{{Status: verdict.Pass}},
		Splats: []verdict.Splat{{}},
	}
	run.Decide(verdict.Policy{}, nil)
	var text bytes.Buffer
	if err := run.Write(&text); err != nil {
		t.Fatal(err)
	}
	var got map[string]any
	if err := json.Unmarshal(text.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	first := func(list string) map[string]any { return got[list].([]any)[0].(map[string]any) }
	series := got["series"].(map[string]any)
	for _, part := range []struct {
		name string
		have map[string]any
		keys string
	}{
		{"run", got, "schema kernel series machine cases splats totals exit"},
		{"kernel", got["kernel"].(map[string]any), "version source id config compiler build_seconds cached"},
		{"series", series, "name revision message_id abi patches findings"},
		{"patch", series["patches"].([]any)[0].(map[string]any), "subject sha256 fuzz offset"},
		{"machine", got["machine"].(map[string]any), "accel accel_reason cpu qemu boot_ms"},
		{"case", first("cases"), "id name covers proto family link level status ms detail"},
		{"splat", first("splats"), "title kind case function file line patch"},
		{"totals", got["totals"].(map[string]any), "pass fail skip crash timeout"},
		{"exit", got["exit"].(map[string]any), "class code"},
	} {
		for key := range strings.FieldsSeq(part.keys) {
			if _, ok := part.have[key]; !ok {
				t.Errorf("%s has no %q", part.name, key)
			}
		}
	}
	if got["schema"] != float64(1) {
		t.Errorf("schema %v", got["schema"])
	}
}

func TestReadRefusesAnotherSchema(t *testing.T) {
	if _, err := verdict.Read(strings.NewReader(`{"schema": 2}`)); err == nil || !strings.Contains(err.Error(), "schema 2") {
		t.Errorf("%v", err)
	}
	if _, err := verdict.Read(strings.NewReader(`{`)); err == nil {
		t.Error("half a file was read")
	}
}
