// SPDX-License-Identifier: BSD-3-Clause

package machine

import (
	"math"
	"time"
)

// readTSC returns the host's time-stamp counter.
func readTSC() uint64

// tscStart is a moment in both clocks, far enough back by the time a machine is
// started.
var tscStart = readClocks()

type clocks struct {
	tsc  uint64
	time time.Time
}

func readClocks() clocks { return clocks{tsc: readTSC(), time: time.Now()} }

// tscBaseline makes the reading error, a few microseconds, small beside it.
const tscBaseline = 50 * time.Millisecond

// hostTSC is the rate of the time-stamp counter in kHz. TCG hands the host's
// counter to the guest.
func hostTSC() int {
	if elapsed := time.Since(tscStart.time); elapsed < tscBaseline {
		time.Sleep(tscBaseline - elapsed)
	}
	now := readClocks()
	seconds := now.time.Sub(tscStart.time).Seconds()
	return int(math.Round(float64(now.tsc-tscStart.tsc) / seconds / 1000))
}
