// SPDX-License-Identifier: BSD-3-Clause

package report_test

import (
	"bytes"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/zcvet/zcvet/harness/report"
	"github.com/zcvet/zcvet/harness/verdict"
)

func covered() *verdict.Run {
	run := base()
	first, second := run.Series.Patches[0].Subject, run.Series.Patches[1].Subject
	run.Coverage = &verdict.Coverage{
		Executable: 5, Executed: 2,
		Lines: []verdict.CoveredLine{
			{File: "net/core/sock.c", Line: 10, Patch: second, Text: "return -EINVAL;"},
			{File: "net/core/sock.c", Line: 12, Patch: first, Text: "count++;", Count: 7},
			{File: "net/core/sock.c", Line: 20, Patch: first, Text: "goto out;"},
			{File: "net/socket.c", Line: 3, Patch: first, Text: "break; /* ``` */"},
			{File: "net/socket.c", Line: 4, Patch: second, Text: "x = 1;", Count: 1},
		},
		Missing: []string{"net/rds/send.c is not compiled in this configuration"},
	}
	run.Decide(verdict.Policy{}, nil)
	return run
}

func TestFoldCoverage(t *testing.T) {
	run := covered()
	lines := run.Coverage.Lines
	want := []report.Unexecuted{
		{Patch: lines[1].Patch, File: "net/core/sock.c", Lines: lines[2:3]},
		{Patch: lines[1].Patch, File: "net/socket.c", Lines: lines[3:4]},
		{Patch: lines[0].Patch, File: "net/core/sock.c", Lines: lines[0:1]},
	}
	if diff := cmp.Diff(want, report.FoldCoverage(run)); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if got := report.FoldCoverage(base()); got != nil {
		t.Errorf("a run without coverage has %+v", got)
	}
}

func TestMarkdownShowsWhatNoCaseExecuted(t *testing.T) {
	var out bytes.Buffer
	if err := report.WriteMarkdown(&out, covered()); err != nil {
		t.Fatal(err)
	}
	for _, phrase := range []string{
		"### Coverage", "2 of 5 executable lines that the series added were executed (40.0 %)",
		"net/rds/send.c is not compiled", "`net/core/sock.c`", "    20  goto out;", "````text",
	} {
		if !strings.Contains(out.String(), phrase) {
			t.Errorf("report.md does not say %q:\n%s", phrase, out.String())
		}
	}
	if strings.Contains(out.String(), "count++") {
		t.Error("a line that was executed is listed")
	}
}

func TestCoverageOfNothing(t *testing.T) {
	if got := report.CoverageLine(&verdict.Coverage{}); strings.Contains(got, "NaN") {
		t.Errorf("%q", got)
	}
}

func TestSecond(t *testing.T) {
	run := crashing()
	if got := report.Second(run); got != "" {
		t.Errorf("nothing was run again: %q", got)
	}
	last := &run.Cases[len(run.Cases)-1]
	last.Second = &verdict.Second{Leg: verdict.SMAPOff, Status: verdict.Fail, Detail: "expected [0,0], came [0,1]"}
	if got, want := report.Second(run), "1 that crashed on touching user memory, again with SMAP off: 0 passed, 1 failed, 0 skipped"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	var out bytes.Buffer
	if err := report.WriteMarkdown(&out, run); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out.String(), "| `"+last.ID+"` | fail | expected \\[0,0\\], came \\[0,1\\] |") {
		t.Errorf("report.md:\n%s", out.String())
	}
}
