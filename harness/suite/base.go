// SPDX-License-Identifier: BSD-3-Clause

package suite

import (
	"context"
	"time"

	"github.com/zcvet/zcvet/guest/link"
)

// Base is a machine that was saved when its agent was ready. Any number of runs
// can start from it, side by side too: none sees what another did.
type Base struct {
	// Instances is every case on every axis it applies to.
	Instances []link.Instance
	Features  []link.Feature
	Boot      time.Duration // exec of QEMU to Hello

	// traced is where the agent records the system calls.
	traced []uint64
	// snapshot is nil for a machine that cannot be saved. Each run then boots.
	snapshot Snapshot
}

// Save boots a machine, saves it and ends it. Of the options it uses Booter,
// Patience, Console and Allowed. Errors are those of Run.
func Save(ctx context.Context, options Options) (*Base, error) {
	r, err := newRunner(options, 1)
	if err != nil {
		return nil, err
	}
	hello, err := r.reach(ctx)
	if err == nil {
		err = r.takeSnapshot(ctx)
	}
	r.close()
	if err != nil {
		r.closeSnapshot()
		return nil, err
	}
	return &Base{
		Instances: hello.Instances, Features: r.result.Features, Boot: r.result.Boot,
		traced: r.traced, snapshot: r.snapshot,
	}, nil
}

// Close frees the memory that the base holds. Runs must have ended.
func (b *Base) Close() {
	if b.snapshot != nil {
		b.snapshot.Close()
		b.snapshot = nil
	}
}

// Run runs instances in this order, but those that destroy their machine last,
// from the state the base was saved in. Of the options it uses all but Wanted.
// Results and errors are those of Run.
func (b *Base) Run(ctx context.Context, options Options, instances []link.Instance) (*Result, error) {
	r, err := newRunner(options, 1)
	if err != nil {
		return newResult(), err
	}
	r.traced, r.snapshot, r.result.Features = b.traced, b.snapshot, b.Features
	return share(ctx, r, instances)
}
