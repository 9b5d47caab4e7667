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
// is the runner of one of them, with its machine or only what there is in the stock.
// Which cases run in one machine depends on nothing but the instances, so that a run
// can be repeated.
func share(ctx context.Context, first *runner, instances []link.Instance) (*Result, error) {
	joint := &joint{Options: first.Options, total: len(instances)}
	shares := deal(instances, worthwhile(instances, max(first.Machines, 1)))
	runners := []*runner{first}
	for number := 2; number <= len(shares); number++ {
		r, err := newRunner(first.Options, number, first.stock)
		if err != nil {
			first.close()
			return first.result, err
		}
		r.result.Features = first.result.Features
		runners = append(runners, r)
	}
	joint.report()
	group, ctx := errgroup.WithContext(ctx)
	for i, r := range runners {
		joint.join(&r.Options)
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

// kinds is how many kinds of machine the instances need.
func kinds(instances []link.Instance) int {
	seen := map[int]bool{}
	for _, instance := range instances {
		seen[processorsOf(instance)] = true
	}
	return len(seen)
}

// worthwhile is how many of the machines that there may be the instances get.
func worthwhile(instances []link.Instance, machines int) int {
	kinds := kinds(instances)
	if kinds == 1 && instances[0].Concurrent {
		machines = max(machines/together, 1)
	}
	return min(machines, max(len(instances)/fewest, kinds))
}

// How long things take beside a case of the common sort, roughly: a case that is
// concurrent, and the boot of a machine of another kind.
const (
	concurrentWeight = 4
	otherBootWeight  = 60
)

// deal gives each of so many machines its share. Of cases of both kinds the concurrent
// ones go to half of the machines only: those run for a while with twice the
// processors, of which the host has no more than machines.
func deal(instances []link.Instance, machines int) (shares [][]link.Instance) {
	firstConcurrent := machines / together
	if kinds(instances) == 1 {
		firstConcurrent = 0
	}
	shares = make([][]link.Instance, machines)
	load := make([]int, machines)
	give := func(instance link.Instance, weight, from, turn int) {
		among := machines - from
		chosen := from + turn%among // where they are alike, cases take turns
		for i := range among {
			if next := from + (i+turn)%among; load[next] < load[chosen] {
				chosen = next
			}
		}
		if instance.Concurrent && len(shares[chosen]) == 0 && chosen > 0 {
			load[chosen] += otherBootWeight
		}
		shares[chosen] = append(shares[chosen], instance)
		load[chosen] += weight
	}
	var common []link.Instance
	for _, instance := range instances {
		if instance.Concurrent {
			give(instance, concurrentWeight, firstConcurrent, 0)
		} else {
			common = append(common, instance)
		}
	}
	// Those on some links take longer, and follow each other in the same order in
	// every case: each case is dealt out from another machine on than the one before.
	turn, name := 0, ""
	for _, instance := range common {
		if instance.Name != name {
			name = instance.Name
			turn++
		}
		give(instance, 1, 0, turn)
	}
	return shares
}

// joint makes the calls of several runners those of one.
type joint struct {
	Options
	lock     sync.Mutex // is held during the calls
	finished int
	total    int
}

// join has a runner with those options make its calls through j.
func (j *joint) join(options *Options) {
	options.OnCase = func(c verdict.Case) {
		j.lock.Lock()
		defer j.lock.Unlock()
		if j.Options.OnCase != nil {
			j.Options.OnCase(c)
		}
		j.finished++
		j.report()
	}
	if j.Options.Enough != nil {
		options.Enough = func() bool {
			j.lock.Lock()
			defer j.lock.Unlock()
			return j.Options.Enough()
		}
	}
}

func (j *joint) report() {
	j.Progress.Report(progress.Update{Done: int64(j.finished), Total: int64(j.total), Unit: progress.Cases})
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
