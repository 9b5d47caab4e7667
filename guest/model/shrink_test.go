// SPDX-License-Identifier: BSD-3-Clause

package model

import (
	"slices"
	"testing"
)

// TestShrink looks for two operations in their order, among a hundred.
func TestShrink(t *testing.T) {
	var operations []Operation
	for i := range 100 {
		operations = append(operations, Operation{Kind: Send, Size: 1000 + i, Zerocopy: true, More: true, Request: 7, Fault: BadData})
	}
	operations[13] = Operation{Kind: Hold}
	operations[77].Size = 5000
	attempts := 0
	fails := func(candidate []Operation) bool {
		attempts++
		held := slices.Index(candidate, Operation{Kind: Hold})
		return held >= 0 && slices.ContainsFunc(candidate[held:], func(op Operation) bool {
			return op.Size >= 2000 && op.Zerocopy
		})
	}
	got := Shrink(operations, fails)
	want := []Operation{{Kind: Hold}, {Kind: Send, Size: 2500, Zerocopy: true}}
	if !slices.Equal(got, want) {
		t.Errorf("want %v, got %v", want, got)
	}
	if attempts > 200 {
		t.Errorf("%d attempts", attempts)
	}
}

func TestShrinkEndsWithItsTime(t *testing.T) {
	operations := slices.Repeat([]Operation{{Kind: Stamp}}, 50)
	left := 1
	got := Shrink(operations, func([]Operation) bool { left--; return left >= 0 })
	if len(got) != 25 {
		t.Errorf("one attempt was allowed, %d of 50 operations are left", len(got))
	}
}

func TestShrinkLeavesWhatItNeeds(t *testing.T) {
	operations := []Operation{{Kind: Read, Count: 3}, {Kind: Stamp}}
	got := Shrink(slices.Clone(operations), func(candidate []Operation) bool { return slices.Equal(candidate, operations) })
	if !slices.Equal(got, operations) {
		t.Errorf("got %v", got)
	}
}
