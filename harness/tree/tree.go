// SPDX-License-Identifier: BSD-3-Clause

// Package tree applies a series to a kernel source, patch by patch and as
// strictly as git am would, and looks at the outcome for faults that can be
// seen without running it.
//
// The result is an overlay: the pristine source is only read, and only the
// files that the series touches are held.
package tree

import (
	"io/fs"

	"github.com/zcvet/zcvet/harness/series"
	"github.com/zcvet/zcvet/harness/source"
	"github.com/zcvet/zcvet/harness/verdict"
)

// Tree is a kernel source with a series applied to it.
type Tree struct {
	Kernel *source.Kernel
	Series *series.Series
	// ID names the contents of the patched tree, whichever way they came
	// about. It is Kernel.ID alone when nothing differs.
	ID string
	// Overlay holds the contents of every file that differs from the pristine
	// source, by slash-separated path from the tree's root.
	Overlay map[string][]byte
	// Mode holds the permissions of each file in Overlay, 0644 or 0755.
	Mode map[string]fs.FileMode
	// Deleted lists the files of the pristine source that are gone, sorted.
	Deleted []string
	// Applied tells for each patch of the series, in order, how it went in.
	Applied []Applied
	// Findings are the faults found: hunks placed with fuzz, and uapi numbers
	// that were already taken.
	Findings []verdict.Finding
	// ABI is the profile of the notification interface ("v1" to "v8"), empty
	// when the tree has none.
	ABI string
	// Constant is SCM_ZC_NOTIFICATION as include/uapi/asm-generic/socket.h of
	// the patched tree defines it, 0 when it does not.
	Constant int

	owners map[string][]int32
	// numberFaults and layoutFaults are what the static cases have found.
	numberFaults, layoutFaults []string
}

// Applied is how one patch went in.
type Applied struct {
	Subject string
	File    string // base name of the patch
	SHA256  string // of the diff
	// Fuzz is true when git refused the patch and it was placed by ignoring
	// context lines.
	Fuzz bool
	// Offset is the largest distance in lines between where a hunk said it
	// belongs and where it was applied.
	Offset int
	// Files lists the paths the patch touched, sorted.
	Files []string
	// Hunks are those that did not go in exactly where they said.
	Hunks []Hunk
	// Output is what git, and patch after it, said.
	Output string
}

// Hunk is a hunk that was applied with an offset or with fuzz.
type Hunk struct {
	File   string
	Number int // from 1 in its file
	Line   int // where it was applied
	Offset int // signed, lines
	Fuzz   int // context lines ignored, 0 to 2
}
