// SPDX-License-Identifier: BSD-3-Clause

package model

import "slices"

// Shrink looks for a shorter and plainer sequence that fails too. Fails carries
// one out on a fresh socket; from the moment it answers no to everything, as it
// does when its time is up, nothing changes any more. Unless that happened, no
// operation of the result can be left out and none made simpler.
//
// Leaving out goes by halves first, as in delta debugging: a sequence of n
// operations of which few matter takes some log n attempts for each.
func Shrink(operations []Operation, fails func([]Operation) bool) []Operation {
	for {
		shorter := simplify(leaveOut(operations, fails), fails)
		if slices.Equal(shorter, operations) {
			return operations
		}
		operations = shorter
	}
}

func leaveOut(operations []Operation, fails func([]Operation) bool) []Operation {
	for size := max(len(operations)/2, 1); ; size /= 2 {
		for at := 0; at < len(operations); {
			candidate := slices.Delete(slices.Clone(operations), at, min(at+size, len(operations)))
			if fails(candidate) {
				operations = candidate
			} else {
				at += size
			}
		}
		if size <= 1 {
			return operations
		}
	}
}

func simplify(operations []Operation, fails func([]Operation) bool) []Operation {
	for at := range operations {
		for again := true; again; {
			again = false
			for _, simpler := range operations[at].simpler() {
				candidate := slices.Clone(operations)
				candidate[at] = simpler
				if fails(candidate) {
					operations, again = candidate, true
					break
				}
			}
		}
	}
	return operations
}

// simpler lists operations that are like o with less to it, the plainest first.
func (o Operation) simpler() []Operation {
	var simpler []Operation
	add := func(change func(*Operation)) {
		other := o
		change(&other)
		if other != o {
			simpler = append(simpler, other)
		}
	}
	if o.Kind == Send {
		add(func(o *Operation) { o.Size = min(o.Size, 1) })
		add(func(o *Operation) { o.Size /= 2 })
		add(func(o *Operation) { o.Zerocopy = false })
		add(func(o *Operation) { o.More = false })
		add(func(o *Operation) { o.Fault = NoFault })
		if o.Fault != BadControl {
			add(func(o *Operation) { o.Request = 0 })
		}
		add(func(o *Operation) { o.Request = min(o.Request, 1) })
		add(func(o *Operation) { o.Request /= 2 })
	}
	if o.Count > 1 {
		add(func(o *Operation) { o.Count = 1 })
	}
	if o.Kind == Read {
		add(func(o *Operation) { o.Count = 0 })
	}
	return simpler
}
