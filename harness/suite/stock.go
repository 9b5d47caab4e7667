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
type stock struct {
	lock  sync.Mutex
	saved map[int]*saved
}

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

func (s *stock) of(processors int) *saved {
	s.lock.Lock()
	defer s.lock.Unlock()
	if s.saved == nil {
		s.saved = make(map[int]*saved)
	}
	if s.saved[processors] == nil {
		s.saved[processors] = &saved{}
	}
	return s.saved[processors]
}

// close frees the memory of the snapshots, once no runner needs them.
func (s *stock) close() {
	s.lock.Lock()
	defer s.lock.Unlock()
	for _, saved := range s.saved {
		if saved.snapshot != nil {
			saved.snapshot.Close()
			saved.snapshot = nil
		}
	}
}

// bringUp starts a machine with so many processors, from a snapshot if the stock has
// one. Else it boots, is saved, and the Hello of its agent is returned.
func (r *runner) bringUp(ctx context.Context, processors int) (*link.Hello, error) {
	saved := r.stock.of(processors)
	saved.lock.Lock()
	if saved.snapshot == nil {
		defer saved.lock.Unlock()
		hello, err := r.boot(ctx, processors)
		if err != nil {
			return nil, err
		}
		saved.traced = hello.Trace
		saved.snapshot = r.takeSnapshot(ctx)
		return hello, nil
	}
	saved.lock.Unlock()
	return nil, r.restore(ctx, saved.snapshot, processors)
}
