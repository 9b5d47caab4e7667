// SPDX-License-Identifier: BSD-3-Clause

package report_test

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/zcvet/zcvet/harness/report"
	"github.com/zcvet/zcvet/harness/verdict"
)

const tester = "Ada Example <ada@example.org>"

func text(t *testing.T, run *verdict.Run, tester string) string {
	t.Helper()
	var out bytes.Buffer
	if err := report.WriteText(&out, run, tester); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// What goes to a list is plain text of at most 72 columns.
func TestMailIsNarrow(t *testing.T) {
	for _, run := range []*verdict.Run{passing(), tolerating(), failing(), crashing(), unbuilt()} {
		for line := range strings.Lines(text(t, run, tester)) {
			line = strings.TrimRight(line, "\n")
			if strings.HasPrefix(line, "    ") || strings.HasPrefix(line, "Subject:") {
				continue // quoted as it is
			}
			if utf8.RuneCountInString(line) > 72 && strings.Contains(strings.TrimSpace(line), " ") {
				t.Errorf("%d columns: %s", utf8.RuneCountInString(line), line)
			}
		}
	}
}

// Only who is known signs, and only what has no fault at all.
func TestTestedBy(t *testing.T) {
	const tag = "\nTested-by: " + tester + "\n"
	if got := text(t, passing(), tester); !strings.HasSuffix(got, tag) {
		t.Errorf("no tag below\n%s", got)
	}
	if got := text(t, passing(), ""); strings.Contains(got, "Tested-by") {
		t.Errorf("nobody signs\n%s", got)
	}
	bare := passing()
	bare.Series = verdict.Series{}
	for name, run := range map[string]*verdict.Run{"SHOULD": tolerating(), "MUST": failing(), "crash": crashing(), "build": unbuilt(), "no series": bare} {
		if got := text(t, run, tester); strings.Contains(got, "Tested-by") {
			t.Errorf("%s: signed all the same\n%s", name, got)
		}
	}
}

func TestMailNamesWhatWasTested(t *testing.T) {
	run := failing()
	run.Cases[len(run.Cases)-1].Evidence = &verdict.Evidence{
		Calls: []string{" 0.000100 socket(AF_INET, SOCK_STREAM, 0) = 5", " 0.000200 sendmsg(5, {iov=[100 unreadable]}, MSG_ZEROCOPY) = -1 EFAULT"}, Reproducer: "reproducers/x.c",
	}
	got := text(t, run, "")
	for _, want := range []string{
		"In-Reply-To: <20260101.1-me@example.org>\n", "Subject: Re: net: zero-copy", "Linux 6.12.95 (debian", "base, net; gcc",
		"counter/failed-send fail [Z11]", "a failed send must not take an id", "\n    socket(AF_INET, SOCK_STREAM, 0) = 5\n", "reproducers/x.c",
		"zcvet run --kernel 6.12 --series patches/6.12 --seed 7",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
}

// The fields and words are b4's.
func TestB4(t *testing.T) {
	for name, want := range map[string]struct {
		run      *verdict.Run
		statuses string
	}{
		"pass": {passing(), "pass"}, "should": {tolerating(), "pass warn warn"}, "fail": {failing(), "fail fail warn fail warn"},
		"crash": {crashing(), "fail fail fail fail"}, "unbuilt": {unbuilt(), "fail"},
	} {
		var out bytes.Buffer
		if err := report.WriteB4(&out, report.B4Checks(want.run, "results/latest")); err != nil {
			t.Fatal(err)
		}
		var checks []map[string]string
		if err := json.Unmarshal(out.Bytes(), &checks); err != nil {
			t.Fatal(err)
		}
		var statuses []string
		for _, check := range checks {
			statuses = append(statuses, check["status"])
			if check["tool"] != "zcvet" || check["summary"] == "" || !strings.HasPrefix(check["url"], "file:///") || len(check) != 5 {
				t.Errorf("%s: %v", name, check)
			}
		}
		if got := strings.Join(statuses, " "); got != want.statuses {
			t.Errorf("%s: %s, want %s", name, got, want.statuses)
		}
	}
}
