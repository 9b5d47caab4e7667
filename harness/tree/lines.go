// SPDX-License-Identifier: BSD-3-Clause

package tree

import (
	"bytes"
	"slices"
)

// pristineOwner marks a line that no patch touched.
const pristineOwner = -1

// maxEdits bounds the search for the shortest edit script, whose memory grows
// with the square of it: 2000 edits take some 16 MB. A patch that replaces
// more lines in one file is blamed for everything between its first and last
// change there.
const maxEdits = 2000

// Blame tells which patch last touched a line (from 1) of a file of the patched
// tree, as an index into Series.Patches; ok is false when none did.
func (t *Tree) Blame(file string, line int) (patch int, ok bool) {
	owners := t.owners[file]
	if line < 1 || line > len(owners) || owners[line-1] == pristineOwner {
		return 0, false
	}
	return int(owners[line-1]), true
}

// Touched lists the patches that touched a file, as indices into
// Series.Patches, for a fault on a line that no patch changed: the cause may be
// a line that is gone.
func (t *Tree) Touched(file string) []int {
	var patches []int
	for i, applied := range t.Applied {
		if slices.Contains(applied.Files, file) {
			patches = append(patches, i)
		}
	}
	return patches
}

// carry moves the owners of a file's lines across a change: lines that stayed
// keep theirs, lines that are new belong to patch. Nil owners are all pristine.
func carry(owners []int32, before, after []byte, patch int32) []int32 {
	old, now := splitLines(before), splitLines(after)
	out := make([]int32, len(now))
	for i := range out {
		out[i] = patch
	}
	matchLines(old, now, func(i, j int) {
		if i < len(owners) {
			out[j] = owners[i]
		} else {
			out[j] = pristineOwner
		}
	})
	return out
}

func splitLines(data []byte) [][]byte {
	lines := bytes.SplitAfter(data, []byte("\n"))
	if len(lines[len(lines)-1]) == 0 {
		lines = lines[:len(lines)-1]
	}
	return lines
}

// matchLines calls keep for every pair of lines that a shortest edit script
// from a to b leaves in place. The script is found by Myers' greedy algorithm.
func matchLines(a, b [][]byte, keep func(i, j int)) {
	prefix := 0
	for prefix < len(a) && prefix < len(b) && bytes.Equal(a[prefix], b[prefix]) {
		keep(prefix, prefix)
		prefix++
	}
	suffix := 0
	for suffix < len(a)-prefix && suffix < len(b)-prefix && bytes.Equal(a[len(a)-1-suffix], b[len(b)-1-suffix]) {
		keep(len(a)-1-suffix, len(b)-1-suffix)
		suffix++
	}
	a, b = a[prefix:len(a)-suffix], b[prefix:len(b)-suffix]
	if len(a) == 0 || len(b) == 0 {
		return
	}

	// furthest[k+offset] is the largest x reached on diagonal k = x - y; trace
	// keeps its state before each round so that the path can be walked back.
	limit := min(len(a)+len(b), maxEdits)
	offset := limit + 1
	furthest := make([]int32, 2*offset+1)
	var trace [][]int32
	for edits := 0; edits <= limit; edits++ {
		trace = append(trace, slices.Clone(furthest[offset-edits-1:offset+edits+2]))
		for k := -edits; k <= edits; k += 2 {
			x := furthest[offset+k-1] + 1
			if k == -edits || k != edits && furthest[offset+k-1] < furthest[offset+k+1] {
				x = furthest[offset+k+1]
			}
			y := x - int32(k)
			for int(x) < len(a) && int(y) < len(b) && bytes.Equal(a[x], b[y]) {
				x, y = x+1, y+1
			}
			furthest[offset+k] = x
			if int(x) >= len(a) && int(y) >= len(b) {
				walkBack(trace, len(a), len(b), func(i, j int) { keep(prefix+i, prefix+j) })
				return
			}
		}
	}
}

func walkBack(trace [][]int32, x, y int, keep func(i, j int)) {
	for edits := len(trace) - 1; edits >= 0; edits-- {
		// The slice of round `edits` starts at diagonal -edits-1.
		at := func(k int) int { return int(trace[edits][k+edits+1]) }
		k := x - y
		previous := k - 1
		if k == -edits || k != edits && at(k-1) < at(k+1) {
			previous = k + 1
		}
		fromX := at(previous)
		fromY := fromX - previous
		if edits == 0 {
			fromX, fromY = 0, 0
		}
		for x > fromX && y > fromY {
			x, y = x-1, y-1
			keep(x, y)
		}
		x, y = fromX, fromY
	}
}
