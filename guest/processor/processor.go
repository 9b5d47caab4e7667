// SPDX-License-Identifier: BSD-3-Clause

// Package processor chooses the processors of the guest that a process runs on,
// and how it shares them with others.
//
// Two processors that wake each other and flush each other's translations cost
// an emulated machine a third of its time. So what does not need them has one.
// And every change from one process to another throws all translations away, so
// that on its one processor a process that is woken waits for the other to sleep.
package processor

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"
)

// Confine leaves this process one processor, the first, and with it the
// processes that it starts. None of them interrupts another when it is woken
// (SCHED_BATCH).
func Confine() error {
	var first unix.CPUSet
	first.Set(0)
	return use(&first, unix.SCHED_BATCH)
}

// Spread gives this process all processors, on which it runs as soon as it is
// woken (SCHED_NORMAL).
func Spread() error {
	every, err := Every()
	if err != nil {
		return err
	}
	return use(every, unix.SCHED_NORMAL)
}

// Every is the set of all processors, whatever this process is left with.
func Every() (*unix.CPUSet, error) {
	var before, all, every unix.CPUSet
	// Of a thread of its own, so that the caller's stays where it is.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err := unix.SchedGetaffinity(0, &before)
	for processor := range len(all) * strconv.IntSize {
		all.Set(processor)
	}
	// The kernel leaves those that exist (sched_setaffinity).
	if err == nil {
		err = unix.SchedSetaffinity(0, &all)
	}
	if err == nil {
		err = unix.SchedGetaffinity(0, &every)
	}
	if err == nil {
		err = unix.SchedSetaffinity(0, &before)
	}
	if err != nil {
		return nil, fmt.Errorf("processors of the machine: %w", err)
	}
	return &every, nil
}

// use moves all threads of the process to the processors and has them scheduled by
// the policy. One that comes meanwhile has those of the thread it came from, so that
// threads are looked for until none is new.
func use(set *unix.CPUSet, policy uint32) error {
	runtime.GOMAXPROCS(set.Count())
	moved := map[int]bool{}
	for {
		threads, err := os.ReadDir("/proc/self/task")
		if err != nil {
			return fmt.Errorf("threads of the process: %w", err)
		}
		fresh := false
		for _, thread := range threads {
			id, err := strconv.Atoi(thread.Name())
			if err != nil || moved[id] {
				continue
			}
			if err := unix.SchedSetaffinity(id, set); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("processors of thread %d: %w", id, err)
			}
			attributes := &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: policy}
			if err := unix.SchedSetAttr(id, attributes, 0); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("scheduling policy of thread %d: %w", id, err)
			}
			moved[id], fresh = true, true
		}
		if !fresh {
			return nil
		}
	}
}
