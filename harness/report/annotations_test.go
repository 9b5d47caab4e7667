// SPDX-License-Identifier: BSD-3-Clause

package report_test

import (
	"bytes"
	"fmt"
	"regexp"
	"strings"
	"testing"

	"github.com/zcvet/zcvet/harness/report"
	"github.com/zcvet/zcvet/harness/verdict"
)

// mailed is a patch as it lies in the checkout.
const mailed = `From: A Developer <developer@example.org>
Subject: [PATCH 2/2] sock: count sends

They were not counted.
---
diff --git a/net/core/sock.c b/net/core/sock.c
index 1111111..2222222 100644
--- a/net/core/sock.c
+++ b/net/core/sock.c
@@ -100,3 +100,5 @@ static void one(void)
 	before();
+	lock();
+	count();
 	between();
 	after();
@@ -200,2 +202,5 @@ static void other(void)
 	before();
+	lock();
+	count();
+	unlock();
 	after();
--
2.39.2
`

// patched is a run of a series in patches/mine, of which mailed is a file.
func patched() *verdict.Run {
	run := base()
	run.Series.Directory = "patches/mine"
	diff := mailed[strings.Index(mailed, "diff --git"):strings.Index(mailed, "--\n2.39.2")]
	run.Series.Patches = []verdict.Patch{
		{Subject: "sock: move things", File: "0001.patch"},
		{Subject: "sock: count sends", File: "0002.patch", Diff: diff, DiffLine: strings.Count(mailed[:strings.Index(mailed, "diff --git")], "\n") + 1},
	}
	return run
}

func annotations(t *testing.T, run *verdict.Run) []string {
	t.Helper()
	run.Decide(verdict.Policy{}, nil)
	var out bytes.Buffer
	if err := report.WriteAnnotations(&out, run); err != nil {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
}

// The annotation of a splat is at the line of the patch file that adds the guilty
// line, told from its twin by how near it is.
func TestAnnotationsAtThePatch(t *testing.T) {
	run := patched()
	run.Splats = []verdict.Splat{
		{Title: "WARNING in other", File: "net/core/sock.c", Line: 207, Source: "\tcount();", Patch: "sock: count sends"},
		{Title: "WARNING in one", File: "net/core/sock.c", Line: 104, Source: "\tcount();", Patch: "sock: count sends"},
		{Title: "WARNING in old code", File: "net/core/sock.c", Line: 12},
	}
	run.Series.Findings = []verdict.Finding{
		{Kind: "made-up", Title: "bad line", File: "net/core/sock.c", Line: 203, Patch: "sock: count sends", Level: verdict.Must},
	}
	lines := strings.Split(mailed, "\n")
	got := annotations(t, run)
	for i, want := range []string{"\tcount();", "\tcount();", "", "\tlock();"} {
		match := regexp.MustCompile(`^::error (?:file=patches/mine/0002\.patch,line=(\d+),)?title=`).FindStringSubmatch(got[i])
		if match == nil {
			t.Fatalf("annotation %d: %s", i, got[i])
		}
		at := 0
		_, _ = fmt.Sscan(match[1], &at)
		switch {
		case want == "" && at != 0:
			t.Errorf("a line of no patch is annotated at line %d", at)
		case want != "" && (at == 0 || lines[at-1] != "+"+want):
			t.Errorf("annotation %d is at line %d, want one that adds %q", i, at, want)
		}
	}
	if got[0] == got[1] {
		t.Errorf("two splats at one line: %s", got[0])
	}

	run.Series.Directory = ""
	for _, line := range annotations(t, run) {
		if strings.Contains(line, "file=") {
			t.Errorf("a series that is not in the checkout has no files: %s", line)
		}
	}
}

// Lines that no case executed are annotated too, neighbours at once.
func TestAnnotationsOfCoverage(t *testing.T) {
	run := patched()
	run.Coverage = &verdict.Coverage{}
	for i, line := range []string{"lock();", "count();", "lock();", "count();", "unlock();"} {
		run.Coverage.Lines = append(run.Coverage.Lines, verdict.CoveredLine{
			File: "net/core/sock.c", Line: 100 + i, Patch: "sock: count sends", Text: line, Count: int64(map[int]int{0: 3, 2: 1}[i]),
		})
	}
	var notices []string
	for _, line := range annotations(t, run) {
		if strings.Contains(line, "title=not executed") {
			notices = append(notices, line)
		}
	}
	want := []string{
		"::notice file=patches/mine/0002.patch,line=13,title=not executed::no case executed what this adds",
		"::notice file=patches/mine/0002.patch,line=19,endLine=20,title=not executed::no case executed what this adds",
	}
	if strings.Join(notices, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(notices, "\n"), strings.Join(want, "\n"))
	}
}
