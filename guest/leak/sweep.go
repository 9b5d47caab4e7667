// SPDX-License-Identifier: BSD-3-Clause

package leak

import (
	"fmt"
	"math"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// NewSweep returns a function that closes every descriptor that this process has
// opened since.
func NewSweep() (sweep func() error, err error) {
	// The first timer makes the runtime open descriptors of its own.
	time.Sleep(time.Nanosecond)
	first, err := firstFreeDescriptor()
	if err != nil {
		return nil, err
	}
	return func() error { return unix.CloseRange(uint(first), math.MaxInt32, 0) }, nil
}

// firstFreeDescriptor returns a number from which on every descriptor is free,
// and below which none is.
func firstFreeDescriptor() (int, error) {
	open, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return 0, fmt.Errorf("list the open descriptors: %w", err)
	}
	highest := 0
	for _, entry := range open {
		if fd, err := strconv.Atoi(entry.Name()); err == nil {
			highest = max(highest, fd)
		}
	}
	for {
		filler, err := unix.FcntlInt(0, unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return 0, fmt.Errorf("fill the free descriptors: %w", err)
		}
		if filler > highest {
			return filler, unix.Close(filler)
		}
	}
}
