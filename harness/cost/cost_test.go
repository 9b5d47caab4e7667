// SPDX-License-Identifier: BSD-3-Clause

package cost_test

import (
	"bytes"
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/zcvet/zcvet/guest/cases"
	"github.com/zcvet/zcvet/harness/cost"
	"github.com/zcvet/zcvet/harness/verdict"
)

func measured(name, proto string, figures ...verdict.Measurement) verdict.Case {
	return verdict.Case{Name: name, Proto: proto, Family: "ipv4", Status: verdict.Pass, Measurements: figures}
}

// tables of a series that makes sends with a control message dearer.
func example() *cost.Table {
	without := &verdict.Run{Cases: []verdict.Case{
		measured("cost/send-without-request", "tcp", verdict.Measurement{Name: "plain", Instructions: 10000}, verdict.Measurement{Name: "control", Instructions: 10000}),
		measured("cost/notifications", "tcp", verdict.Measurement{Name: "error queue", Instructions: 30000}),
		{Name: "cost/by-request", Proto: "tcp", Family: "ipv4", Status: verdict.Skip},
	}}
	with := &verdict.Run{
		Kernel: verdict.Kernel{Version: "6.12.1"}, Series: verdict.Series{Name: "a series"},
		Cases: []verdict.Case{
			measured("cost/send-without-request", "tcp", verdict.Measurement{Name: "plain", Instructions: 10100}, verdict.Measurement{Name: "control", Instructions: 10101}),
			measured("cost/notifications", "tcp", verdict.Measurement{Name: "error queue", Instructions: 40000}),
			measured("cost/by-request", "tcp", verdict.Measurement{Name: "sendmsg", Instructions: 28000}),
		},
	}
	return cost.Compare(without, with)
}

func TestCompare(t *testing.T) {
	table := example()
	want := &cost.Table{
		Schema: cost.Schema, Kernel: "6.12.1", Series: "a series",
		Rows: []cost.Row{
			{Case: "cost/by-request", Proto: "tcp", Family: "ipv4", Measure: "sendmsg", With: 28000},
			{Case: "cost/notifications", Proto: "tcp", Family: "ipv4", Measure: "error queue", Without: 30000, With: 40000},
			{Case: "cost/send-without-request", Proto: "tcp", Family: "ipv4", Measure: "plain", Without: 10000, With: 10100},
			{Case: "cost/send-without-request", Proto: "tcp", Family: "ipv4", Measure: "control", Without: 10000, With: 10101},
		},
	}
	if diff := cmp.Diff(want, table); diff != "" {
		t.Error(diff)
	}
	var stored bytes.Buffer
	if err := table.Write(&stored); err != nil {
		t.Fatal(err)
	}
	var back cost.Table
	if err := json.Unmarshal(stored.Bytes(), &back); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(table, &back); diff != "" {
		t.Errorf("read back: %s", diff)
	}
}

// TestOnlySendsThatDoNotUseTheSeriesAreJudged: a per cent more is the compiler's
// doing, and what notifications cost is a figure and no fault.
func TestOnlySendsThatDoNotUseTheSeriesAreJudged(t *testing.T) {
	dearer := cost.Exceeding(example().Rows)
	if len(dearer) != 1 || dearer[0].Measure != "control" {
		t.Errorf("dearer are %+v, want the send with a control message alone", dearer)
	}
	if change := (cost.Row{With: 5}).Change(); change != 0 {
		t.Errorf("without anything to compare with the change is %v", change)
	}
}

// TestTheJudgedCaseExists ties the rule to the case it is about.
func TestTheJudgedCaseExists(t *testing.T) {
	for _, c := range cases.All() {
		if (cost.Row{Case: c.Name, Without: 100, With: 200}).Exceeds() {
			return
		}
	}
	t.Error("no case is judged: it was renamed, and a series could cost what it likes")
}
