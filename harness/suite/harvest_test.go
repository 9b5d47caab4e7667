// SPDX-License-Identifier: BSD-3-Clause

package suite_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/zcvet/zcvet/guest/cases"
	"github.com/zcvet/zcvet/guest/link"
	"github.com/zcvet/zcvet/harness/splat"
	"github.com/zcvet/zcvet/harness/suite"
	"github.com/zcvet/zcvet/harness/verdict"
)

var gathering = []link.Feature{{Name: cases.GCov, Here: true}, {Name: cases.Kmemleak, Here: true}}

// leak is an object that was allocated so long after the boot; the fake guest begins
// a case each second.
func leak(allocated time.Duration, address string) link.Leak {
	return link.Leak{Allocated: allocated, Text: "unreferenced object 0x" + address + ` (size 232):
  comm "agent", pid 95, jiffies 4294905120
  hex dump (first 16 bytes):
    00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00  ................
  backtrace (crc 1a2b3c4d):
    [<ffffffff8173b1a2>] kmem_cache_alloc_noprof+0x1f2/0x260
    [<ffffffff8173c000>] __alloc_skb+0x122/0x190
    [<ffffffff81736100>] sock_omalloc+0x52/0x90
`}
}

func TestLeaksBelongToTheirCases(t *testing.T) {
	lab := &laboratory{
		instances: []string{"a", "b", "c"}, features: gathering,
		leaks: link.Leaks{Leaks: []link.Leak{leak(2*time.Second, "ffff888004a91b00"), leak(9*time.Second, "ffff888004a91c00")}, Total: 2},
	}
	result, err := run(t, lab, nil)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]verdict.Status{"a": verdict.Pass, "b": verdict.Fail, "c": verdict.Fail}
	if diff := cmp.Diff(want, statuses(result)); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if len(result.Splats) != 1 {
		t.Fatalf("%d splats for one leak that two cases made", len(result.Splats))
	}
	if s := result.Splats[0]; s.Kind != splat.Leak || s.Case != "b" || s.Title != "memory leak in __alloc_skb" || len(s.Frames) == 0 {
		t.Errorf("splat %s %q of %q", s.Kind, s.Title, s.Case)
	}
	if len(result.Missing) > 0 {
		t.Errorf("missing: %q", result.Missing)
	}
}

func TestLeakFromBeforeTheCases(t *testing.T) {
	lab := &laboratory{
		instances: []string{"a"}, features: gathering,
		leaks: link.Leaks{Leaks: []link.Leak{leak(500*time.Millisecond, "ffff888004a91b00")}, Total: 1},
	}
	result, err := run(t, lab, nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(result.Splats) != 1 || result.Splats[0].Case != "" || result.Cases[0].Status != verdict.Pass {
		t.Errorf("%d splats, the case is %s", len(result.Splats), result.Cases[0].Status)
	}
}

func TestAllowedLeaksDoNotCount(t *testing.T) {
	lab := &laboratory{
		instances: []string{"a"}, features: gathering,
		leaks: link.Leaks{Leaks: []link.Leak{leak(1500*time.Millisecond, "ffff888004a91b00")}, Total: 1},
	}
	allowed, err := splat.ParseAllowed(strings.NewReader("2999-01-01 | memory leak in __alloc_skb | known\n"))
	if err != nil {
		t.Fatal(err)
	}
	result, err := run(t, lab, func(o *suite.Options) { o.Allowed = allowed })
	if err != nil {
		t.Fatal(err)
	}
	if len(result.Splats) > 0 || result.Cases[0].Status != verdict.Pass {
		t.Errorf("%d splats, the case is %s", len(result.Splats), result.Cases[0].Status)
	}
}

func TestCountersOfALostMachineAreMissed(t *testing.T) {
	counters := link.Counters{Files: []link.CountersFile{{Path: "net/core/sock.gcda", Data: []byte("x")}}}
	lab := &laboratory{
		instances: []string{"a", "b", "c"}, features: gathering[:1], counters: counters,
		behaviour: map[string]behaviour{"b": prints(dies(nil), oops...)},
	}
	result, err := run(t, lab, nil)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]link.Counters{counters}, result.Counters); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if len(result.Missing) != 1 {
		t.Errorf("one machine was lost, missing: %q", result.Missing)
	}
}

func TestWhatTheGuestCannotTellIsSaid(t *testing.T) {
	lab := &laboratory{
		instances: []string{"a"}, features: gathering,
		leaks: link.Leaks{Error: "no scan"}, counters: link.Counters{Error: "too many"},
	}
	result, err := run(t, lab, nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(result.Missing) != 2 || !strings.Contains(result.Missing[0], "no scan") || !strings.Contains(result.Missing[1], "too many") {
		t.Errorf("missing: %q", result.Missing)
	}
}
