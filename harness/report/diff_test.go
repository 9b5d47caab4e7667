// SPDX-License-Identifier: BSD-3-Clause

package report_test

import (
	"testing"

	"github.com/zcvet/zcvet/harness/report"
	"github.com/zcvet/zcvet/harness/verdict"
)

const smallDiff = `diff --git a/net/core/sock.c b/net/core/sock.c
--- a/net/core/sock.c
+++ b/net/core/sock.c
@@ -10,4 +10,6 @@ int sock_init(void)
 	int a;
+	a = 1;
 	b();
+	return 0;
 	c();
-	d();
+	return 0;
`

// The guilty line is found although a later patch has moved it, and of two equal
// lines the nearer one is it; coverage goes to the lines in their order.
func TestDiffs(t *testing.T) {
	run := &verdict.Run{
		Series: verdict.Series{Patches: []verdict.Patch{{Subject: "one", Diff: smallDiff}}},
		Splats: []verdict.Splat{{Patch: "one", File: "net/core/sock.c", Line: 117, Source: "\treturn 0;"}},
		Coverage: &verdict.Coverage{Lines: []verdict.CoveredLine{
			{File: "net/core/sock.c", Line: 111, Patch: "one", Text: "\ta = 1;", Count: 3},
			{File: "net/core/sock.c", Line: 113, Patch: "one", Text: "\treturn 0;", Count: 0},
			{File: "net/core/sock.c", Line: 115, Patch: "one", Text: "\treturn 0;", Count: 2},
		}},
	}
	diffs := report.Diffs(run)
	if len(diffs) != 1 || len(diffs[0].Files) != 1 || diffs[0].Added != 3 || diffs[0].Removed != 1 {
		t.Fatalf("%+v", diffs)
	}
	lines := diffs[0].Files[0].Hunks[0].Lines
	type seen struct {
		op         byte
		old, new   int
		at         int
		executable bool
		count      int64
		guilty     bool
	}
	want := []seen{
		{' ', 10, 10, 5, false, 0, false},
		{'+', 0, 11, 6, true, 3, false},
		{' ', 11, 12, 7, false, 0, false},
		{'+', 0, 13, 8, true, 0, false},
		{' ', 12, 14, 9, false, 0, false},
		{'-', 13, 0, 10, false, 0, false},
		{'+', 0, 15, 11, true, 2, true},
	}
	for i, line := range lines {
		got := seen{line.Op, line.Old, line.New, line.At, line.Executable, line.Count, line.Guilty}
		if got != want[i] {
			t.Errorf("line %d: %+v, want %+v", i, got, want[i])
		}
	}
	diff, file, hunk, ok := report.Excerpt(diffs, &run.Splats[0])
	if !ok || diff.Number != 1 || file != "net/core/sock.c" || len(hunk.Lines) == 0 {
		t.Errorf("excerpt %v %s %+v", ok, file, hunk)
	}
}
