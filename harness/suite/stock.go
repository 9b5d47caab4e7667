// SPDX-License-Identifier: BSD-3-Clause

package suite

import (
	"context"
	"sync"

	"github.com/zcvet/zcvet/guest/link"
)

// The processors of a machine.
const (
	// alone is for most cases. Emulation is quicker by a quarter without a second
	// processor: atomic operations need no care, and none wakes the other.
	alone = 1
	// together is for cases that are about what happens at the same time.
	together = 2
)

// processorsOf is how many the machine of an instance has.
func processorsOf(instance link.Instance) int {
	if instance.Concurrent {
		return together
	}
	return alone
}

// stock keeps, by their processors, machines that were saved when their agents were
// ready. Runners share it.
type stock [together + 1]saved

// saved is a machine of a stock.
type saved struct {
	// lock is held while the machine boots, so that one boot serves all.
	lock sync.Mutex
	// snapshot is nil before that, and of a machine that cannot be saved: then each
	// one boots.
	snapshot Snapshot
	// traced is where the agent records the system calls.
	traced []uint64
}

// close frees the memory of the snapshots, once no runner needs them.
func (s *stock) close() {
	for i := range s {
		if s[i].snapshot != nil {
			s[i].snapshot.Close()
			s[i].snapshot = nil
		}
	}
}

// bringUp starts a machine with so many processors, from a snapshot if the stock has
// one. Else it boots, is saved, and the Hello of its agent is returned.
func (r *runner) bringUp(ctx context.Context, processors int) (*link.Hello, error) {
	saved := &r.stock[processors]
	saved.lock.Lock()
	if saved.snapshot == nil {
		defer saved.lock.Unlock()
		hello, err := r.boot(ctx, processors)
		if err != nil {
			return nil, err
		}
		r.session.traced = hello.Trace
		saved.traced, saved.snapshot = hello.Trace, r.takeSnapshot(ctx)
		return hello, nil
	}
	saved.lock.Unlock()
	if err := r.restore(ctx, saved.snapshot, processors); err != nil {
		return nil, err
	}
	r.session.traced = saved.traced
	return nil, nil
}
