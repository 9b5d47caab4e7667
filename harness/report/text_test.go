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

// The fields and words are b4's, and so is that there is one result: b4 would keep
// the last one only.
func TestB4(t *testing.T) {
	for name, want := range map[string]struct {
		run     *verdict.Run
		status  string
		details string
	}{
		"pass": {passing(), "pass", ""}, "should": {tolerating(), "warn", "warn warn"}, "fail": {failing(), "fail", "fail warn fail warn"},
		"crash": {crashing(), "fail", "fail fail fail"}, "unbuilt": {unbuilt(), "fail", "-"},
	} {
		var out bytes.Buffer
		if err := report.WriteB4(&out, want.run, "results/latest one"); err != nil {
			t.Fatal(err)
		}
		var results []map[string]string
		if err := json.Unmarshal(out.Bytes(), &results); err != nil || len(results) != 1 {
			t.Fatalf("%s: %v\n%s", name, err, &out)
		}
		got := results[0]
		if got["tool"] != "zcvet" || got["status"] != want.status || got["summary"] == "" || len(got) != 5 {
			t.Errorf("%s: %v", name, got)
		}
		if !strings.HasPrefix(got["url"], "file:///") || !strings.HasSuffix(got["url"], "results/latest%20one/report.html") {
			t.Errorf("%s: url %s", name, got["url"])
		}
		var details []map[string]string
		switch {
		case want.details == "-":
			if got["details"] != want.run.Exit.Error {
				t.Errorf("%s: details %q", name, got["details"])
			}
			continue
		case want.details == "" && got["details"] == "":
			continue
		}
		if err := json.Unmarshal([]byte(got["details"]), &details); err != nil {
			t.Errorf("%s: details: %v: %s", name, err, got["details"])
		}
		var statuses []string
		for _, detail := range details {
			statuses = append(statuses, detail["status"])
			if detail["context"] == "" || detail["state"] == "" || detail["description"] == "" {
				t.Errorf("%s: detail %v", name, detail)
			}
		}
		if list := strings.Join(statuses, " "); list != want.details {
			t.Errorf("%s: details are %s, want %s", name, list, want.details)
		}
	}
}
