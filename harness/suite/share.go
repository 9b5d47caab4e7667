// SPDX-License-Identifier: BSD-3-Clause

package suite

import (
	"context"
	"maps"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/zcvet/zcvet/guest/link"
	"github.com/zcvet/zcvet/harness/progress"
	"github.com/zcvet/zcvet/harness/splat"
	"github.com/zcvet/zcvet/harness/verdict"
)

// fewest is how many cases make another machine worth its restore.
const fewest = 32

// share runs the instances in as many machines at a time as there may be. First
// is the runner of one of them, with its machine or only a snapshot; the others
// start from that snapshot. Which machine runs which case depends on nothing but
// the instances, so that a run can be repeated.
func share(ctx context.Context, first *runner, instances []link.Instance) (*Result, error) {
	together := &together{Options: first.Options, total: len(instances)}
	shares := deal(instances, min(max(first.Machines, 1), max(len(instances)/fewest, 1)))
	runners := []*runner{first}
	for number := 2; number <= len(shares); number++ {
		r, err := newRunner(first.Options, number)
		if err != nil {
			first.close()
			return first.result, err
		}
		r.traced, r.snapshot, r.result.Features = first.traced, first.snapshot, first.result.Features
		runners = append(runners, r)
	}
	together.report()
	group, ctx := errgroup.WithContext(ctx)
	for i, r := range runners {
		together.join(&r.Options)
		for _, instance := range shares[i] {
			r.want(instance)
		}
		group.Go(func() error {
			defer r.close()
			return r.runAll(ctx)
		})
	}
	err := group.Wait()
	return merge(runners, instances), err
}

// deal gives each of so many machines its share. The cases that destroy a machine
// take long, and are dealt out for themselves. So do those on some links, which
// follow each other in the same order in every case: each case is dealt out from
// another machine on than the one before.
func deal(instances []link.Instance, machines int) [][]link.Instance {
	shares := make([][]link.Instance, machines)
	for _, destroys := range []bool{false, true} {
		next, named, name := 0, 0, ""
		for _, instance := range instances {
			if instance.Destroys != destroys {
				continue
			}
			if instance.Name != name {
				name = instance.Name
				next = named
				named++
			}
			shares[next%machines] = append(shares[next%machines], instance)
			next++
		}
	}
	return shares
}

// together makes the calls of several runners those of one.
type together struct {
	Options
	lock     sync.Mutex // is held during the calls
	finished int
	total    int
}

// join has a runner with those options make its calls through t.
func (t *together) join(options *Options) {
	options.OnCase = func(c verdict.Case) {
		t.lock.Lock()
		defer t.lock.Unlock()
		if t.Options.OnCase != nil {
			t.Options.OnCase(c)
		}
		t.finished++
		t.report()
	}
	if t.Options.Enough != nil {
		options.Enough = func() bool {
			t.lock.Lock()
			defer t.lock.Unlock()
			return t.Options.Enough()
		}
	}
}

func (t *together) report() {
	t.Progress.Report(progress.Update{Done: int64(t.finished), Total: int64(t.total), Unit: progress.Cases})
}

// merge makes one result of those of all runners, in the order of the instances.
func merge(runners []*runner, instances []link.Instance) *Result {
	place := make(map[string]int, len(instances))
	for i, instance := range instances {
		place[instance.ID] = i + 1
	}
	// What came before the first case has place 0.
	order := func(id string) int { return place[id] }
	merged := runners[0].result
	for _, r := range runners[1:] {
		merged.Cases = append(merged.Cases, r.result.Cases...)
		merged.Splats = append(merged.Splats, r.result.Splats...)
		maps.Copy(merged.Traces, r.result.Traces)
		merged.Boots += r.result.Boots
		merged.Restores = append(merged.Restores, r.result.Restores...)
		merged.Counters = append(merged.Counters, r.result.Counters...)
		merged.Missing = append(merged.Missing, r.result.Missing...)
	}
	slices.SortFunc(merged.Cases, func(a, b verdict.Case) int { return order(a.ID) - order(b.ID) })
	slices.SortStableFunc(merged.Splats, func(a, b splat.Splat) int { return order(a.Case) - order(b.Case) })
	return merged
}
