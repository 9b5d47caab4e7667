// SPDX-License-Identifier: BSD-3-Clause

package tree

import (
	"bytes"
	"strings"
	"testing"
)

// FuzzChanges: whatever a diff says, no path that is used leaves the tree.
func FuzzChanges(f *testing.F) {
	for _, seed := range []string{
		"diff --git a/x b/x\n--- a/x\n+++ b/x\n@@ -1 +1 @@\n-a\n+b\n",
		"diff --git a/../x b/../x\n--- a/../x\n+++ b/../x\n@@ -1 +1 @@\n-a\n+b\n",
		"diff --git a/x b/y\nsimilarity index 90%\nrename from x\nrename to /y\n",
		"diff --git \"a/\\056\\056/x\" \"b/\\056\\056/x\"\nnew file mode 120000\n",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, diff []byte) {
		files, err := changes(diff)
		if err != nil {
			return
		}
		for _, name := range paths(files) {
			if strings.HasPrefix(name, "/") || name == ".." || strings.HasPrefix(name, "../") || strings.Contains(name, "/../") || strings.Contains(name, "\x00") {
				t.Errorf("path %q", name)
			}
		}
	})
}

// FuzzReport: the words of git and patch repeat lines of the patch.
func FuzzReport(f *testing.F) {
	f.Add("Checking patch {a => b}/x.c...\nHunk #1 succeeded at 18 (offset 1 line).\nerror: while searching for:\nx\n\nerror: patch failed: x.c:17\nerror: x.c: patch does not apply\n")
	f.Add("patching file 'a b'\nHunk #2 succeeded at 153 with fuzz 2 (offset -3 lines).\nHunk #3 FAILED at 99999999999999999999.\n")
	f.Fuzz(func(t *testing.T, text string) {
		r := parseReport(text)
		for _, hunk := range r.hunks {
			if hunk.Number < 0 || hunk.Line < 0 || hunk.Fuzz < 0 {
				t.Errorf("hunk %+v", hunk)
			}
		}
		_ = describe(r.locate(nil))
	})
}

// FuzzMatchLines: what is said to stay is equal and in order, and all that is
// equal at the ends stays.
func FuzzMatchLines(f *testing.F) {
	f.Add("a\nb\nc\n", "a\nx\nc\n")
	f.Add("a\nb\nc\na\nb\nb\na\n", "c\nb\na\nb\na\nc\n")
	f.Add("", "x")
	f.Fuzz(func(t *testing.T, before, after string) {
		a, b := splitLines([]byte(before)), splitLines([]byte(after))
		keptA, keptB := make([]bool, len(a)), make([]bool, len(b))
		partner := map[int]int{}
		matchLines(a, b, func(i, j int) {
			if keptA[i] || keptB[j] || !bytes.Equal(a[i], b[j]) {
				t.Fatalf("line %d with line %d", i, j)
			}
			keptA[i], keptB[j] = true, true
			partner[i] = j
		})
		last, kept := -1, 0
		for i := range a {
			if j, ok := partner[i]; ok {
				if j <= last {
					t.Fatalf("out of order at line %d", i)
				}
				last = j
				kept++
			}
		}
		if want := longestCommon(a, b); len(a)+len(b) < 200 && kept != want {
			t.Errorf("%d lines stay, %d could\n%q\n%q", kept, want, before, after)
		}
	})
}

// longestCommon is the length of the longest common subsequence, by the book.
func longestCommon(a, b [][]byte) int {
	row := make([]int, len(b)+1)
	for _, x := range a {
		diagonal := 0
		for j, y := range b {
			above := row[j+1]
			if bytes.Equal(x, y) {
				row[j+1] = diagonal + 1
			} else {
				row[j+1] = max(row[j+1], row[j])
			}
			diagonal = above
		}
	}
	return row[len(b)]
}
