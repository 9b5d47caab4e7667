// SPDX-License-Identifier: BSD-3-Clause

package processor

import (
	"errors"
	"os"
	"runtime"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

func TestEveryThreadGetsThePolicy(t *testing.T) {
	for range 8 {
		go runtime.LockOSThread() // ends, and its thread with it
	}
	for _, policy := range []uint32{unix.SCHED_BATCH, unix.SCHED_NORMAL} {
		if err := schedule(policy); err != nil {
			t.Fatal(err)
		}
		threads, err := os.ReadDir("/proc/self/task")
		if err != nil {
			t.Fatal(err)
		}
		for _, thread := range threads {
			id, err := strconv.Atoi(thread.Name())
			if err != nil {
				t.Fatal(err)
			}
			attributes, err := unix.SchedGetAttr(id, 0)
			if errors.Is(err, unix.ESRCH) {
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			if attributes.Policy != policy {
				t.Errorf("thread %d has the scheduling policy %d where %d was expected", id, attributes.Policy, policy)
			}
		}
	}
}
