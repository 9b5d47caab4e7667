// SPDX-License-Identifier: BSD-3-Clause

package source

import (
	"encoding/json"

	"github.com/zcvet/zcvet/harness/cache"
	"github.com/zcvet/zcvet/harness/fault"
)

// pins is the kind of the small entries that say which cached tree a version
// stands for. `zcvet cache prune` forgets them.
const pins cache.Kind = "pins"

// pin remembers what a version resolved to, so that it means the same kernel
// until the user asks for a newer one.
func (r *resolver) pin(version string, kernel *Kernel) error {
	data, err := json.Marshal(kernel)
	if err != nil {
		return fault.New(fault.Infrastructure, "remember the source: %w", err)
	}
	return r.Cache.Put(pins, version, data)
}

// pinned returns the kernel a version was resolved to before, nil when it was
// not or its tree is gone. No tool is run for it.
func (r *resolver) pinned(version string) *Kernel {
	data, err := r.Cache.Get(pins, version)
	if err != nil {
		return nil
	}
	var kernel Kernel
	// An entry that cannot be read, or was written for a cache that has moved,
	// is as good as none.
	if json.Unmarshal(data, &kernel) != nil || kernel.ID == "" || !r.Cache.Has(cache.Sources, kernel.ID) {
		return nil
	}
	kernel.Dir = r.Cache.Path(cache.Sources, kernel.ID)
	return &kernel
}
