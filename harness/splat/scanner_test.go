// SPDX-License-Identifier: BSD-3-Clause

package splat_test

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/zcvet/zcvet/harness/splat"
	"github.com/zcvet/zcvet/harness/verdict"
)

var update = flag.Bool("update", false, "write the golden files anew")

// render shows everything a log gave, for the golden files.
func render(splats []splat.Splat) string {
	var out strings.Builder
	for i, s := range splats {
		if i > 0 {
			out.WriteString("\n")
		}
		fmt.Fprintf(&out, "title: %s\nkind: %s\nfunction: %s\nsite: %s\ntaint: %s\nline: %d, %d lines of text\npartial: %v\n",
			s.Title, s.Kind, s.Function, s.Site, s.Taint, s.Line, strings.Count(s.Text, "\n")+1, s.Partial)
		if s.UserAccess {
			out.WriteString("user access\n")
		}
		for _, frame := range s.Frames {
			exact := ""
			if frame.Exact {
				exact = " exact"
			}
			fmt.Fprintf(&out, "  %s%s\n", frame, exact)
		}
	}
	return out.String()
}

func TestLogs(t *testing.T) {
	logs, err := filepath.Glob("testdata/logs/*.log")
	if err != nil || len(logs) == 0 {
		t.Fatalf("no logs: %v", err)
	}
	for _, path := range logs {
		name := strings.TrimSuffix(filepath.Base(path), ".log")
		t.Run(name, func(t *testing.T) {
			log, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			splats, err := splat.Scan(bytes.NewReader(log), splat.Options{})
			if err != nil {
				t.Fatal(err)
			}
			got := render(splats)
			golden := strings.TrimSuffix(path, ".log") + ".golden"
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}

			// Bytes arrive as the serial line delivers them.
			scanner := splat.NewScanner(splat.Options{})
			for _, b := range log {
				if _, err := scanner.Write([]byte{b}); err != nil {
					t.Fatal(err)
				}
			}
			if err := scanner.Close(); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(splats, scanner.Take()); diff != "" {
				t.Errorf("byte by byte gives something else, -whole +bytes:\n%s", diff)
			}
		})
	}
}

func TestUnreadable(t *testing.T) {
	for _, test := range []struct{ name, log string }{
		{"NUL flood", "[    0.1] boots\n" + strings.Repeat("\x00", 4096) + "\n"},
		{"no newline", strings.Repeat("x", 100_000)},
		{"binary", strings.Repeat("\xff\xfe\x80", 400) + "\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if _, err := splat.Scan(strings.NewReader(test.log), splat.Options{}); !errors.Is(err, splat.ErrUnreadable) {
				t.Errorf("error %v, want ErrUnreadable", err)
			}
		})
	}
}

func TestUnreadableKeepsWhatWasFound(t *testing.T) {
	log := readLog(t, "warn") + strings.Repeat("\x00", 4096) + "\n"
	splats, err := splat.Scan(strings.NewReader(log), splat.Options{})
	if !errors.Is(err, splat.ErrUnreadable) || len(splats) != 1 {
		t.Errorf("%d splats, error %v; want the one before the hole and ErrUnreadable", len(splats), err)
	}
}

// A few characters lost on the line, invalid bytes in somebody's message and a
// NUL or two are everyday life.
func TestTolerates(t *testing.T) {
	log := "\x00\x00\xfe boots\n" + strings.ReplaceAll(readLog(t, "warn"), "Hardware name", "Hard\xffware\x00 name")
	splats, err := splat.Scan(strings.NewReader(log), splat.Options{})
	if err != nil || len(splats) != 1 {
		t.Errorf("%d splats, error %v; want 1", len(splats), err)
	}
}

func readLog(t *testing.T, name string) string {
	t.Helper()
	log, err := os.ReadFile(filepath.Join("testdata/logs", name+".log"))
	if err != nil {
		t.Fatal(err)
	}
	return string(log)
}

// A splat belongs to the case that ran when its report began, and is handed out
// when it is complete and not at the end of the log.
func TestStreaming(t *testing.T) {
	scanner := splat.NewScanner(splat.Options{})
	scanner.SetCase("first")
	lines := strings.SplitAfter(readLog(t, "null-deref"), "\n")
	ended := 0
	for i, line := range lines {
		if _, err := scanner.Write([]byte(line)); err != nil {
			t.Fatal(err)
		}
		if i == 3 {
			if !scanner.Busy() {
				t.Error("not busy inside a report")
			}
			scanner.SetCase("second")
		}
		for _, s := range scanner.Take() {
			ended = i
			if s.Case != "first" {
				t.Errorf("belongs to %q", s.Case)
			}
		}
	}
	if !strings.Contains(lines[ended], "end trace") {
		t.Errorf("handed out at %q", lines[ended])
	}
	if !scanner.Panicked() || scanner.Busy() {
		t.Errorf("panicked %v, busy %v", scanner.Panicked(), scanner.Busy())
	}
}

func TestRepeats(t *testing.T) {
	warn := readLog(t, "warn")
	for _, test := range []struct {
		options splat.Options
		want    int
	}{
		{splat.Options{}, 2},
		{splat.Options{Repeats: true}, 3},
	} {
		scanner := splat.NewScanner(test.options)
		for i, log := range []string{warn, warn, warn} {
			if i == 2 {
				scanner.SetCase("another")
			}
			if _, err := scanner.Write([]byte(log)); err != nil {
				t.Fatal(err)
			}
		}
		if got := len(scanner.Take()); got != test.want {
			t.Errorf("%+v: %d splats, want %d", test.options, got, test.want)
		}
	}
}

func TestHangTakesBacktraces(t *testing.T) {
	scanner := splat.NewScanner(splat.Options{})
	scanner.SetCase("notify/endless")
	scanner.BeginHang("no heartbeat for 10 s")
	const log = `[   20.000001][    C0] NMI backtrace for cpu 0
[   20.000101][    C0] CPU: 0 UID: 0 PID: 0 Comm: swapper/0 Not tainted 6.12.95 #1
[   20.000201][    C0] RIP: 0010:pv_native_safe_halt+0xf/0x20
[   20.000301][    C0] Call Trace:
[   20.000401][    C0]  <TASK>
[   20.000501][    C0]  default_idle+0x5/0x10
[   20.000601][    C0]  </TASK>
[   20.000701][    C1] NMI backtrace for cpu 1
[   20.000801][    C1] RIP: 0010:zc_notification_take+0x9e/0x1b0
[   20.000901][    C1] Call Trace:
[   20.001001][    C1]  <TASK>
[   20.001101][    C1]  __sock_cmsg_send+0x2a4/0x3f0
[   20.001201][    C1]  </TASK>
[   20.001301][    C1] Kernel panic - not syncing: NMI: Not continuing
`
	if _, err := scanner.Write([]byte(log)); err != nil {
		t.Fatal(err)
	}
	if err := scanner.Close(); err != nil {
		t.Fatal(err)
	}
	splats := scanner.Take()
	if len(splats) != 1 {
		t.Fatalf("%d splats, want 1:\n%s", len(splats), render(splats))
	}
	got := splats[0]
	if got.Title != "hang in zc_notification_take" || got.Kind != splat.Hang || got.Case != "notify/endless" {
		t.Errorf("title %q, kind %q, case %q", got.Title, got.Kind, got.Case)
	}
	if !strings.Contains(got.Text, "no heartbeat for 10 s") || !strings.Contains(got.Text, "NMI backtrace for cpu 0") {
		t.Errorf("text lacks the reason or a backtrace:\n%s", got.Text)
	}
}

func TestHangNoticedByTheKernelToo(t *testing.T) {
	scanner := splat.NewScanner(splat.Options{})
	if _, err := scanner.Write([]byte(readLog(t, "rcu-stall"))); err != nil {
		t.Fatal(err)
	}
	scanner.BeginHang("no heartbeat for 10 s")
	_ = scanner.Close()
	if splats := scanner.Take(); len(splats) != 1 || splats[0].Kind != splat.RCUStall {
		t.Errorf("want the kernel's own report only, got:\n%s", render(splats))
	}
}

func TestAllocFailures(t *testing.T) {
	splats, err := splat.Scan(strings.NewReader(readLog(t, "nothing")), splat.Options{AllocFailures: true})
	if err != nil {
		t.Fatal(err)
	}
	if len(splats) != 1 || splats[0].Kind != splat.Alloc {
		t.Errorf("got:\n%s", render(splats))
	}
}

func TestFingerprint(t *testing.T) {
	base := splat.Splat{Kind: splat.Warning, Frames: []splat.Frame{
		{Function: "a", Offset: 1}, {Function: "b"}, {Function: "c.isra.0"}, {Function: "d"}, {Function: "e"}, {Function: "f"},
	}}
	same := splat.Splat{Kind: splat.Warning, Title: "other", Frames: []splat.Frame{
		{Function: "a", Offset: 9}, {Function: "b"}, {Function: "c.constprop.1"}, {Function: "d"}, {Function: "e"}, {Function: "z"},
	}}
	other := splat.Splat{Kind: splat.Warning, Frames: []splat.Frame{{Function: "a"}, {Function: "b"}}}
	if base.Fingerprint() != same.Fingerprint() {
		t.Error("offsets, clones and the sixth function change the fingerprint")
	}
	if base.Fingerprint() == other.Fingerprint() {
		t.Error("different stacks have one fingerprint")
	}
	if (&splat.Splat{Title: "x"}).Fingerprint() == (&splat.Splat{Title: "y"}).Fingerprint() {
		t.Error("without frames the title must tell splats apart")
	}
}

func TestAllowed(t *testing.T) {
	day := func(text string) time.Time {
		at, err := time.Parse(time.DateOnly, text)
		if err != nil {
			t.Fatal(err)
		}
		return at
	}
	list, err := splat.ParseAllowed(strings.NewReader(`
# a comment
2026-11-30 | WARNING at net/core/sock.c:* in __sk_destruct | known, discussed
`))
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name           string
		now            time.Time
		log            string
		found, dropped int
	}{
		{"in force", day("2026-11-30").Add(23 * time.Hour), "warn", 0, 1},
		{"expired", day("2026-12-01"), "warn", 1, 0},
		{"other title", day("2026-11-01"), "kasan", 1, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			scanner := splat.NewScanner(splat.Options{Allowed: list, Now: test.now})
			if _, err := scanner.Write([]byte(readLog(t, test.log))); err != nil {
				t.Fatal(err)
			}
			if found, dropped := len(scanner.Take()), len(scanner.Dropped()); found != test.found || dropped != test.dropped {
				t.Errorf("found %d, dropped %d; want %d, %d", found, dropped, test.found, test.dropped)
			}
		})
	}
}

func TestParseAllowedRefuses(t *testing.T) {
	for _, line := range []string{
		"WARNING at x",
		"2026-11-30 | WARNING at x |",
		"2026-11-30 | | reason",
		"soon | WARNING | reason",
		"2026-11-30 | [ | reason",
	} {
		if _, err := splat.ParseAllowed(strings.NewReader(line)); err == nil {
			t.Errorf("%q is accepted", line)
		}
	}
}

func TestDefaultAllowedParses(t *testing.T) {
	if _, err := splat.DefaultAllowed(); err != nil {
		t.Error(err)
	}
}

func TestVerdictBlames(t *testing.T) {
	s := splat.Splat{
		Title: "BUG: kernel NULL pointer dereference in tcp_sendmsg_locked", Kind: splat.Oops, Function: "tcp_sendmsg_locked",
		Frames: []splat.Frame{
			{
				Function: "tcp_sendmsg_locked", File: "include/linux/skbuff.h", Line: 7,
				Inlined: []splat.Inline{{Function: "skb_zcopy", File: "net/ipv4/tcp.c", Line: 70}},
			},
			{Function: "tcp_sendmsg", File: "net/ipv4/tcp.c", Line: 90},
		},
	}
	blame := func(file string, line int) (string, bool) {
		if file == "net/ipv4/tcp.c" {
			return fmt.Sprintf("patch of line %d", line), true
		}
		return "", false
	}
	got := s.Verdict(blame)
	want := verdict.Splat{
		Title: s.Title, Kind: "oops", Function: "tcp_sendmsg_locked", Fingerprint: s.Fingerprint(),
		File: "net/ipv4/tcp.c", Line: 70, Patch: "patch of line 70",
		Frames: []verdict.Frame{
			{Function: "skb_zcopy", File: "include/linux/skbuff.h", Line: 7, Inlined: true},
			{Function: "tcp_sendmsg_locked", File: "net/ipv4/tcp.c", Line: 70, Patch: "patch of line 70"},
			{Function: "tcp_sendmsg", File: "net/ipv4/tcp.c", Line: 90, Patch: "patch of line 90"},
		},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if got := s.Verdict(nil); got.File != "include/linux/skbuff.h" || got.Patch != "" {
		t.Errorf("without a series: %s, patch %q", got.File, got.Patch)
	}
}

func FuzzScan(f *testing.F) {
	logs, _ := filepath.Glob("testdata/logs/*.log")
	for _, path := range logs {
		log, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(log, 7)
	}
	f.Fuzz(func(t *testing.T, log []byte, at int) {
		whole, err := splat.Scan(bytes.NewReader(log), splat.Options{Repeats: true})
		for _, s := range whole {
			if s.Title == "" || s.Kind == "" || s.Line < 1 {
				t.Errorf("splat without title, kind or line: %+v", s)
			}
			s.Verdict(nil)
		}
		// How the bytes are cut into writes must not matter.
		if at < 0 || at > len(log) {
			return
		}
		scanner := splat.NewScanner(splat.Options{Repeats: true})
		_, _ = scanner.Write(log[:at])
		_, _ = scanner.Write(log[at:])
		if errCut := scanner.Close(); (errCut == nil) != (err == nil) {
			t.Errorf("whole: %v, cut at %d: %v", err, at, errCut)
		}
		if diff := cmp.Diff(render(whole), render(scanner.Take())); diff != "" && err == nil {
			t.Errorf("-whole +cut:\n%s", diff)
		}
	})
}
