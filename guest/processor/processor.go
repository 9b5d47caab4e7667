// SPDX-License-Identifier: BSD-3-Clause

// Package processor chooses how processes share the only processor of a guest.
package processor

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"
)

// Share has this process, and those that it starts, wait for the one that runs to
// sleep when they are woken (SCHED_BATCH), if there is one processor only. Every
// change from one process to another makes an emulated machine throw all its
// translations away.
func Share() error {
	if runtime.NumCPU() > 1 {
		return nil
	}
	return schedule(unix.SCHED_BATCH)
}

// schedule gives all threads of the process a policy. One that comes meanwhile has
// that of the thread it came from, so that threads are looked for until none is new.
func schedule(policy uint32) error {
	changed := map[int]bool{}
	for {
		threads, err := os.ReadDir("/proc/self/task")
		if err != nil {
			return fmt.Errorf("threads of the process: %w", err)
		}
		fresh := false
		for _, thread := range threads {
			id, err := strconv.Atoi(thread.Name())
			if err != nil || changed[id] {
				continue
			}
			attributes := &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: policy}
			if err := unix.SchedSetAttr(id, attributes, 0); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("scheduling policy of thread %d: %w", id, err)
			}
			changed[id], fresh = true, true
		}
		if !fresh {
			return nil
		}
	}
}
