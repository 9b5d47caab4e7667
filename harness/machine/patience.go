// SPDX-License-Identifier: BSD-3-Clause

package machine

import "time"

// Patience is how long to wait for what. The times nest: a case is given up
// before the kernel counts as silent for good, and both before the machine. So
// the innermost clock that sees a fault is the one that names it.
type Patience struct {
	// Boot is from exec of QEMU to the agent's hello.
	Boot time.Duration
	// Silence is how long the agent's heartbeat may be missing before the
	// kernel counts as hung.
	Silence time.Duration
	// Case bounds one case; the agent kills the case at it.
	Case time.Duration
	// Suite is what one case may take in the eyes of the suite: Case, the
	// agent's clean-up and the message about it.
	Suite time.Duration
	// Backtrace is how long the kernel may take to print its stacks after an
	// NMI.
	Backtrace time.Duration
	// Command bounds one QMP command.
	Command time.Duration
	// Scale is the factor in all of the above, for time-outs inside the guest.
	Scale float64
}

// Factors of slowness, with reserve for a machine that is busy with other work.
const (
	tcgScale = 3
	// A counted second has a billion instructions, and of these an emulated
	// processor executes some fifty million in a second of ours.
	countedScale = 20
)

// NewPatience returns the times for an accelerator and a kernel that takes so many
// times longer than one without debugging; less than 1 counts as 1.
func NewPatience(accelerator Accelerator, slowdown float64) Patience {
	scale := max(slowdown, 1)
	if accelerator.Name == TCG {
		scale *= tcgScale
	}
	scaled := func(base time.Duration) time.Duration { return time.Duration(float64(base) * scale) }
	return Patience{
		Boot:      scaled(20 * time.Second),
		Silence:   scaled(3 * time.Second),
		Case:      scaled(10 * time.Second),
		Suite:     scaled(15 * time.Second),
		Backtrace: scaled(4 * time.Second),
		Command:   scaled(5 * time.Second),
		Scale:     scale,
	}
}

// Counted returns the times for a machine whose clock counts instructions. The
// guest's own clock is as slow as the guest, so Scale stays.
func (p Patience) Counted() Patience {
	for _, limit := range []*time.Duration{&p.Boot, &p.Silence, &p.Suite, &p.Backtrace} {
		*limit *= countedScale
	}
	return p
}

// Machine is how long a machine may live to boot and run so many cases.
func (p Patience) Machine(cases int) time.Duration {
	return p.Boot + time.Duration(cases)*p.Suite + p.Silence + p.Backtrace
}
