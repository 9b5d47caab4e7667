// SPDX-License-Identifier: BSD-3-Clause

// Package reporttest has results for the tests of everything that shows results.
package reporttest

import (
	"github.com/zcvet/zcvet/harness/compare"
	"github.com/zcvet/zcvet/harness/fault"
	"github.com/zcvet/zcvet/harness/verdict"
)

// Comparison is one in which something of everything happened.
func Comparison() *compare.Comparison {
	base := testRun("", map[string]verdict.Status{
		"counter/ids": verdict.Pass, "poll/edge": verdict.Fail, "scm/fifo": verdict.Skip, "scm/capacity": verdict.Skip, "content/range": verdict.Fail, "data/copied": verdict.Pass,
	})
	v1 := testRun("v7", map[string]verdict.Status{
		"counter/ids": verdict.Fail, "poll/edge": verdict.Pass, "scm/fifo": verdict.Pass, "scm/capacity": verdict.Crash, "content/range": verdict.Timeout, "data/copied": verdict.Fail,
	})
	v1.Splats = []verdict.Splat{{
		Title: "BUG: kernel NULL pointer dereference in sock_cmsg_send", Kind: "oops", Case: "scm/capacity/tcp/ipv4/nic", Function: "sock_cmsg_send",
		File: "net/core/sock.c", Line: 2970, Patch: "sock: support | zerocopy", Fingerprint: "0123456789ab",
	}}
	v1.Series.Findings = []verdict.Finding{{Kind: "uapi-collision", Title: "SCM_ZC_NOTIFICATION and SCM_DEVMEM_LINEAR are both 78", Level: verdict.Must}}
	v1.Decide(verdict.Policy{}, nil)
	again := *v1
	again.Cases = nil
	for _, c := range v1.Cases {
		if c.Name == "data/copied" {
			c.Status, c.Detail = verdict.Pass, ""
		}
		again.Cases = append(again.Cases, c)
	}
	outcomes := []compare.Outcome{{Run: base, Again: base, Cost: measured(10012, 0)}, {Run: v1, Again: &again, Cost: measured(10317, 27500)}, {Run: v1, Again: &again}}
	c := joined(outcomes, "base", "lore:v7", "lore:v8")
	c.Columns[2].SameAs = "lore:v7"
	return c
}

// measured is a run that measured costs, in instructions; 0 for none.
func measured(send, request int64) *verdict.Run {
	run := &verdict.Run{Cases: []verdict.Case{{
		Name: "cost/send-without-request", Proto: "tcp", Family: "ipv4", Measurements: []verdict.Measurement{{Name: "plain", Instructions: send}},
	}}}
	if request > 0 {
		run.Cases = append(run.Cases, verdict.Case{
			Name: "cost/notifications-by-request", Proto: "tcp", Family: "ipv4", Measurements: []verdict.Measurement{{Name: "every 32", Instructions: request}},
		})
	}
	return run
}

// Unchanged is one in which nothing differs.
func Unchanged() *compare.Comparison {
	run := testRun("v8", map[string]verdict.Status{"counter/ids": verdict.Pass})
	return joined([]compare.Outcome{{Run: run}, {Run: run}}, "reference", "patches/6.12")
}

// DoesNotApply has a column without results.
func DoesNotApply() *compare.Comparison {
	run := testRun("", map[string]verdict.Status{"counter/ids": verdict.Pass})
	broken := &verdict.Run{}
	broken.Decide(verdict.Policy{}, fault.New(fault.Apply, "patch 1/3 \"sock: add it\": does not apply: net/core/sock.c, hunk 2"))
	return joined([]compare.Outcome{{Run: run}, {Run: broken}}, "base", "lore:v7")
}

func testRun(abi string, status map[string]verdict.Status) *verdict.Run {
	run := &verdict.Run{}
	run.Kernel = verdict.Kernel{Version: "6.12.95", ID: "k" + abi, Objects: 34}
	run.Series.ABI = abi
	// In this order, whatever the map's is.
	for _, name := range []string{"counter/ids", "poll/edge", "content/range", "data/copied", "scm/fifo", "scm/capacity"} {
		ended, ok := status[name]
		if !ok {
			continue
		}
		for _, proto := range []string{"tcp", "udp"} {
			c := verdict.Case{
				ID: name + "/" + proto + "/ipv4/nic", Name: name, Covers: []string{"Z10"}, Proto: proto, Family: "ipv4", Link: "nic",
				Level: verdict.Must, Status: ended,
			}
			switch ended {
			case verdict.Skip:
				c.Detail = "this kernel has no SCM_ZC_NOTIFICATION"
			case verdict.Fail:
				c.Detail = "the second send took id 2, want 1:\nan application would wait for ever"
			case verdict.Timeout:
				c.Detail = "no end within 20 s"
			case verdict.Crash:
				c.Detail = "BUG: kernel NULL pointer dereference in sock_cmsg_send"
			}
			run.Cases = append(run.Cases, c)
		}
	}
	run.Decide(verdict.Policy{}, nil)
	return run
}

func joined(outcomes []compare.Outcome, names ...string) *compare.Comparison {
	c := &compare.Comparison{
		Command: "zcvet compare --kernel 6.12 base lore:v7 lore:v8", Started: "2026-11-24T12:00:00Z", Seconds: 123.4,
		Kernel: "6.12", Suite: "all", Seed: 1,
	}
	for i, outcome := range outcomes {
		run := outcome.Run
		column := compare.Column{
			Name: names[i], Directory: names[i], Binary: run.Kernel.ID, Kernel: run.Kernel, Series: run.Series, Totals: run.Totals,
			Splats: len(run.Splats), CacheHits: 31, CacheMisses: 3, PrepareSeconds: 48.1, RunSeconds: 21.7, Exit: run.Exit,
		}
		if outcome.Again != nil {
			column.Repeated = len(outcome.Again.Cases)
		}
		c.Columns = append(c.Columns, column)
	}
	c.Join(outcomes, false)
	return c
}
