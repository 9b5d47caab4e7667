// SPDX-License-Identifier: BSD-3-Clause

package link

import (
	"time"

	"golang.org/x/sys/unix"
)

// Now reads the clock that all processes of a guest share: the time since it booted
// (CLOCK_MONOTONIC).
func Now() time.Duration {
	var now unix.Timespec
	// It fails for a clock that is not there only (clock_gettime(2)).
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &now)
	return time.Duration(now.Nano())
}
