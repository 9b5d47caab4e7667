// SPDX-License-Identifier: BSD-3-Clause

package suite

import (
	"context"
	"time"

	"github.com/zcvet/zcvet/guest/link"
)

// Base is a machine that was saved when its agent was ready, and others with other
// processors as they are needed. Any number of runs can start from it, side by side
// too: none sees what another did.
type Base struct {
	// Instances is every case on every axis it applies to.
	Instances []link.Instance
	Features  []link.Feature
	Boot      time.Duration // exec of QEMU to Hello

	stock stock // has the machines
}

// Save boots a machine, saves it and ends it. Of the options it uses Booter,
// Patience, Console and Allowed. Errors are those of Run.
func Save(ctx context.Context, options Options) (*Base, error) {
	base := &Base{}
	r, err := newRunner(options, 1, &base.stock)
	if err != nil {
		return nil, err
	}
	hello, err := r.bringUp(ctx, alone)
	r.close()
	if err != nil {
		base.Close()
		return nil, err
	}
	base.Instances, base.Features, base.Boot = hello.Instances, r.result.Features, r.result.Boot
	return base, nil
}

// Close frees the memory that the base holds. Runs must have ended.
func (b *Base) Close() { b.stock.close() }

// Run runs instances in this order, but those that need other processors later, from
// the state the base was saved in. Of the options it uses all but Wanted. Results and
// errors are those of Run.
func (b *Base) Run(ctx context.Context, options Options, instances []link.Instance) (*Result, error) {
	r, err := newRunner(options, 1, &b.stock)
	if err != nil {
		return newResult(), err
	}
	r.result.Features = b.Features
	return share(ctx, r, instances)
}
