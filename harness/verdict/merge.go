// SPDX-License-Identifier: BSD-3-Clause

package verdict

import (
	"fmt"
	"slices"
)

// Merge makes one run of several on the same kernel, such as the shards of a
// matrix. A case that is in more than one is told by the run in which it did worst:
// a failure that was seen is not taken back. The first run names kernel, series
// and machine; the verdict is the gravest of all.
func Merge(runs []*Run) (*Run, error) {
	if len(runs) == 0 {
		return nil, fmt.Errorf("no results to merge")
	}
	merged := *runs[0]
	merged.Cases, merged.Splats = slices.Clone(merged.Cases), slices.Clone(merged.Splats)
	index := make(map[string]int)
	for i, c := range merged.Cases {
		index[c.ID] = i
	}
	for _, run := range runs[1:] {
		if run.Kernel.ID != merged.Kernel.ID || run.Kernel.Version != merged.Kernel.Version {
			return nil, fmt.Errorf("results of different kernels: %s (%s) and %s (%s)",
				merged.Kernel.Version, merged.Kernel.ID, run.Kernel.Version, run.Kernel.ID)
		}
		for _, c := range run.Cases {
			at, known := index[c.ID]
			switch {
			case !known:
				index[c.ID] = len(merged.Cases)
				merged.Cases = append(merged.Cases, c)
			case gravity(c.Status) > gravity(merged.Cases[at].Status):
				merged.Cases[at] = c
			}
		}
		merged.Splats = append(merged.Splats, run.Splats...)
		merged.Seconds += run.Seconds
		merged.Machine.Boots += run.Machine.Boots
		merged.Machine.Restores += run.Machine.Restores
		if worse(run.Exit, merged.Exit) {
			merged.Exit = run.Exit
		}
	}
	var err error
	if merged.Totals, err = count(merged.Cases); err != nil {
		return nil, err
	}
	return &merged, nil
}

// gravity orders statuses: a case that ran says more than one that was skipped. One
// that does not exist is the gravest, so that it is not lost before it is noticed.
func gravity(status Status) int {
	known := []Status{Skip, Pass, Fail, Timeout, Crash}
	if at := slices.Index(known, status); at >= 0 {
		return at
	}
	return len(known)
}

// worse tells whether exit a is graver than b. The codes are in that order, from 0
// for a run that passed to 7 for one that says nothing.
func worse(a, b Exit) bool { return a.Code > b.Code }
