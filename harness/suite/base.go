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
	r := &runner{Options: options, result: newResult()}
	hello, err := r.reach(ctx)
	if err == nil {
		err = r.takeSnapshot(ctx)
	}
	base := &Base{Features: r.result.Features, Boot: r.result.Boot, traced: r.traced, snapshot: r.snapshot}
	r.snapshot = nil // it is the base's now
	r.close()
	if err != nil {
		base.Close()
		return nil, err
	}
	base.Instances = hello.Instances
	return base, nil
}

// Close frees the memory that the base holds. Runs must have ended.
func (b *Base) Close() {
	if b.snapshot != nil {
		b.snapshot.Close()
		b.snapshot = nil
	}
}

// Run runs instances in this order, but those that destroy their machine last,
// from the state the base was saved in. Of the options it uses all but Wanted. Results and errors are those of Run.
func (b *Base) Run(ctx context.Context, options Options, instances []link.Instance) (*Result, error) {
	r := &runner{Options: options, result: newResult(), traced: b.traced, snapshot: b.snapshot}
	r.result.Features = b.Features
	r.console.writer = options.Console
	defer func() {
		r.snapshot = nil // it outlives the run
		r.close()
	}()
	for _, instance := range instances {
		r.want(instance)
	}
	err := r.runAll(ctx)
	return r.result, err
}
