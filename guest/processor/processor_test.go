// SPDX-License-Identifier: BSD-3-Clause

package processor_test

import (
	"errors"
	"os"
	"runtime"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/zcvet/zcvet/guest/processor"
)

// sets returns the set of each thread of this process.
func sets(t *testing.T) map[int]unix.CPUSet {
	t.Helper()
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	found := map[int]unix.CPUSet{}
	for _, thread := range threads {
		id, err := strconv.Atoi(thread.Name())
		if err != nil {
			t.Fatal(err)
		}
		var set unix.CPUSet
		if err := unix.SchedGetaffinity(id, &set); err == nil {
			found[id] = set
		}
	}
	return found
}

func expectPolicy(t *testing.T, thread int, want uint32) {
	t.Helper()
	attributes, err := unix.SchedGetAttr(thread, 0)
	if errors.Is(err, unix.ESRCH) {
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	if attributes.Policy != want {
		t.Errorf("thread %d has the scheduling policy %d where %d was expected", thread, attributes.Policy, want)
	}
}

func TestConfineAndSpread(t *testing.T) {
	var allowed unix.CPUSet
	if err := unix.SchedGetaffinity(0, &allowed); err != nil {
		t.Fatal(err)
	}
	if !allowed.IsSet(0) || allowed.Count() == 1 {
		t.Skipf("this test may run on %d processors; it needs two, the first among them", allowed.Count())
	}
	every, err := processor.Every()
	if err != nil {
		t.Fatal(err)
	}
	for range 8 {
		go runtime.LockOSThread() // ends, and its thread with it
	}

	if err := processor.Confine(); err != nil {
		t.Fatal(err)
	}
	for id, set := range sets(t) {
		if set.Count() != 1 || !set.IsSet(0) {
			t.Errorf("thread %d has %d processors after Confine", id, set.Count())
		}
		expectPolicy(t, id, unix.SCHED_BATCH)
	}
	if confined, err := processor.Every(); err != nil || *confined != *every {
		t.Errorf("a confined process sees %d processors of %d, %v", confined.Count(), every.Count(), err)
	}
	if err := processor.Spread(); err != nil {
		t.Fatal(err)
	}
	for id, set := range sets(t) {
		if set != *every {
			t.Errorf("thread %d has %d processors after Spread", id, set.Count())
		}
		expectPolicy(t, id, unix.SCHED_NORMAL)
	}
	if runtime.GOMAXPROCS(0) != every.Count() {
		t.Errorf("GOMAXPROCS is %d with %d processors", runtime.GOMAXPROCS(0), every.Count())
	}
}
