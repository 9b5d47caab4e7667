// SPDX-License-Identifier: BSD-3-Clause

package report_test

import (
	"bytes"
	"encoding/xml"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jstemmer/go-junit-report/v2/junit"

	"github.com/zcvet/zcvet/harness/fault"
	"github.com/zcvet/zcvet/harness/report"
	"github.com/zcvet/zcvet/harness/verdict"
)

var update = flag.Bool("update", false, "write the golden files anew")

func base() *verdict.Run {
	return &verdict.Run{
		Command: "zcvet run --kernel 6.12 --series patches/6.12 --seed 7",
		Started: "2026-11-22T15:00:00Z",
		Seconds: 28.44,
		Seed:    7,
		Kernel: verdict.Kernel{
			Version: "6.12.95", Source: "debian linux-source-6.12 6.12.95-1", ID: "k-0123456789ab",
			Config: []string{"base", "net"}, Compiler: "gcc 12.2.0", Cached: true,
		},
		Series: verdict.Series{
			Name: "net: zero-copy notifications by control message", Revision: 2, ABI: "v8", Constant: 81,
			MessageID: "20260101.1-me@example.org",
			Patches: []verdict.Patch{
				{Subject: "sock: support MSG_ZEROCOPY notifications | in cmsgs", File: "0001.patch"},
				{Subject: "selftests: add _SCM_ZC_ `tests`", File: "0002.patch", Offset: 12},
			},
		},
		Machine: verdict.Machine{
			Accel: "tcg", AccelReason: "KVM is there but its guests do not run", CPU: "max", QEMU: "7.2.22",
			BootMS: 790, RestoreMS: 140, Boots: 1, Restores: 2,
		},
		Cases: []verdict.Case{
			{ID: "option/ignored/tcp/ipv4/lo", Name: "option/ignored", Covers: []string{"Z01"}, Proto: "tcp", Family: "ipv4", Link: "lo", Level: verdict.Must, Status: verdict.Pass, MS: 12},
			{ID: "option/ignored/udp/ipv6/nic", Name: "option/ignored", Covers: []string{"Z01"}, Proto: "udp", Family: "ipv6", Link: "nic", Level: verdict.Must, Status: verdict.Pass, MS: 8},
			{ID: "notify/capacity", Name: "notify/capacity", Covers: []string{"N01", "N02"}, Level: verdict.Must, Status: verdict.Skip, Detail: "the kernel has no SCM_ZC_NOTIFICATION (EINVAL on #probe)"},
		},
	}
}

func passing() *verdict.Run {
	run := base()
	run.Decide(verdict.Policy{}, nil)
	return run
}

func failing() *verdict.Run {
	run := base()
	run.Series.Patches[0].Fuzz = true
	run.Series.Findings = []verdict.Finding{
		{
			Kind: "uapi-collision", Title: "SCM_ZC_NOTIFICATION is 78, which SCM_DEVMEM_LINEAR has", Detail: "alpha and mips alike",
			Patch: run.Series.Patches[0].Subject, File: "include/uapi/asm-generic/socket.h", Line: 139, Level: verdict.Must,
		},
		{Kind: "fuzz", Title: "0001.patch applied with fuzz 2", Level: verdict.Should},
	}
	for _, proto := range []string{"tcp", "udp"} {
		for i, family := range []string{"ipv4", "ipv6"} {
			id := fmt.Sprintf("counter/failed-send/%s/%s/nic", proto, family)
			run.Cases = append(run.Cases, verdict.Case{
				ID: id, Name: "counter/failed-send", Covers: []string{"Z11"}, Proto: proto, Family: family, Link: "nic",
				Level: verdict.Must, Status: verdict.Fail, MS: 31,
				Detail: fmt.Sprintf("after EFAULT the next send took id %d, want %d:\na failed send must not take an id", 4+i, 3+i),
				Log:    []string{"sent 3", "recvmsg(MSG_ERRQUEUE) = 0 \x1b[1m]]>"},
			})
		}
	}
	run.Cases = append(run.Cases,
		verdict.Case{
			ID: "notify/epollerr/tcp/ipv4/lo", Name: "notify/epollerr", Covers: []string{"N07"}, Proto: "tcp", Family: "ipv4", Link: "lo",
			Level: verdict.Should, Status: verdict.Timeout, MS: 5000, Detail: "no edge within 5 s",
		},
	)
	run.Decide(verdict.Policy{}, nil)
	return run
}

// tolerating is a run with nothing but SHOULD failures and findings.
func tolerating() *verdict.Run {
	run := base()
	run.Series.Findings = []verdict.Finding{{Kind: "fuzz", Title: "0001.patch applied with fuzz 2", Level: verdict.Should}}
	run.Cases = append(run.Cases, verdict.Case{
		ID: "notify/epollerr/tcp/ipv4/lo", Name: "notify/epollerr", Covers: []string{"N07"}, Proto: "tcp", Family: "ipv4", Link: "lo",
		Level: verdict.Should, Status: verdict.Fail, MS: 5, Detail: "two edges",
	})
	run.Decide(verdict.Policy{}, nil)
	return run
}

func crashing() *verdict.Run {
	run := base()
	run.Cases = append(run.Cases, verdict.Case{
		ID: "notify/copy-out/tcp/ipv4/nic", Name: "notify/copy-out", Covers: []string{"N09"}, Proto: "tcp", Family: "ipv4", Link: "nic",
		Level: verdict.Must, Status: verdict.Crash, MS: 40, Detail: "BUG: supervisor write access of user address in __sock_cmsg_send",
	})
	run.Splats = []verdict.Splat{
		{
			Title: "BUG: supervisor write access of user address in __sock_cmsg_send", Kind: "oops", Case: "notify/copy-out/tcp/ipv4/nic",
			Function: "__sock_cmsg_send", File: "net/core/sock.c", Line: 2911, Patch: run.Series.Patches[0].Subject,
			Text: "BUG: unable to handle page fault for address: 000000c000184010\n```\nCall Trace:",
			Frames: []verdict.Frame{
				{Function: "zc_copy", File: "include/net/sock.h", Line: 3, Inlined: true},
				{Function: "__sock_cmsg_send", File: "net/core/sock.c", Line: 2911, Patch: run.Series.Patches[0].Subject},
				{Function: "tcp_sendmsg_locked", File: "net/ipv4/tcp.c", Line: 1153},
			},
		},
		{Title: "WARNING at kernel/softirq.c:12 in foo", Kind: "warning", Text: "WARNING: CPU: 0"},
	}
	run.Decide(verdict.Policy{}, nil)
	return run
}

func unbuilt() *verdict.Run {
	run := &verdict.Run{Command: "zcvet run --kernel 6.12 --series mbox:x", Seconds: 131, Kernel: verdict.Kernel{Version: "6.12.95"}}
	run.Decide(verdict.Policy{}, fault.New(fault.Build, "net/core/sock.c:12: error: 'x' undeclared, 100%% sure\n(patch 1)"))
	return run
}

func TestGolden(t *testing.T) {
	for name, run := range map[string]*verdict.Run{"pass": passing(), "should": tolerating(), "fail": failing(), "crash": crashing(), "unbuilt": unbuilt()} {
		for extension, write := range map[string]func(io.Writer, *verdict.Run) error{
			"ktap": report.WriteKTAP, "xml": report.WriteJUnit, "md": report.WriteMarkdown, "annotations": report.WriteAnnotations,
		} {
			t.Run(name+"."+extension, func(t *testing.T) {
				var got bytes.Buffer
				if err := write(&got, run); err != nil {
					t.Fatal(err)
				}
				golden := filepath.Join("testdata", name+"."+extension)
				if *update {
					if err := os.WriteFile(golden, got.Bytes(), 0o644); err != nil {
						t.Fatal(err)
					}
				}
				want, err := os.ReadFile(golden)
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(string(want), got.String()); diff != "" {
					t.Errorf("-want +got:\n%s", diff)
				}
			})
		}
	}
}

// What CI servers do with the file: parse it, and believe the totals.
func TestJUnitIsWellFormed(t *testing.T) {
	for _, run := range []*verdict.Run{passing(), tolerating(), failing(), crashing(), unbuilt()} {
		var out bytes.Buffer
		if err := report.WriteJUnit(&out, run); err != nil {
			t.Fatal(err)
		}
		var suites junit.Testsuites
		if err := xml.Unmarshal(out.Bytes(), &suites); err != nil {
			t.Fatalf("%v\n%s", err, out.String())
		}
		tests, failures, errors, skipped := 0, 0, 0, 0
		for _, suite := range suites.Suites {
			for _, test := range suite.Testcases {
				tests++
				if test.Failure != nil {
					failures++
				}
				if test.Error != nil {
					errors++
				}
				if test.Skipped != nil {
					skipped++
				}
			}
		}
		if tests != suites.Tests || failures != suites.Failures || errors != suites.Errors || skipped != suites.Skipped {
			t.Errorf("totals %d/%d/%d/%d, cases %d/%d/%d/%d", suites.Tests, suites.Failures, suites.Errors, suites.Skipped, tests, failures, errors, skipped)
		}
		if good := run.Exit.Code == 0; good != (failures+errors == 0) {
			t.Errorf("exit %d, but %d failures and %d errors", run.Exit.Code, failures, errors)
		}
	}
}

// A plan must count what follows it, on both levels, and a run that failed must
// have a "not ok" on the top level.
func TestKTAPPlans(t *testing.T) {
	for _, run := range []*verdict.Run{passing(), tolerating(), failing(), crashing(), unbuilt()} {
		var out bytes.Buffer
		if err := report.WriteKTAP(&out, run); err != nil {
			t.Fatal(err)
		}
		plans, results := map[string]int{}, map[string]int{}
		bad := false
		check := func(level string) {
			if plans[level] != results[level] {
				t.Errorf("plan of %d, %d results\n%s", plans[level], results[level], out.String())
			}
			plans[level], results[level] = 0, 0
		}
		for line := range strings.Lines(out.String()) {
			text := strings.TrimLeft(line, " ")
			level := line[:len(line)-len(text)]
			var number int
			if _, err := fmt.Sscanf(text, "1..%d", &number); err == nil {
				plans[level] = number
			}
			if strings.HasPrefix(text, "ok ") || strings.HasPrefix(text, "not ok ") {
				results[level]++
				if level == "" {
					check("  ")
					bad = bad || strings.HasPrefix(text, "not ok ")
				}
			}
		}
		check("")
		if bad != (run.Exit.Code != 0) {
			t.Errorf("exit %d, top level bad: %v", run.Exit.Code, bad)
		}
	}
}

func TestFold(t *testing.T) {
	folded := report.Fold(failing())
	if len(folded) != 2 {
		t.Fatalf("%d entries, want 2", len(folded))
	}
	if got := report.Axes(folded[0].Cases); got != "tcp, udp × ipv4, ipv6 × nic" {
		t.Errorf("axes %q", got)
	}
	if folded[1].Level != verdict.Should {
		t.Error("a SHOULD failure stands before a MUST failure")
	}
}

func TestAxes(t *testing.T) {
	one := verdict.Case{Proto: "tcp", Family: "ipv4", Link: "lo"}
	for _, test := range []struct {
		cases []verdict.Case
		want  string
	}{
		{nil, ""},
		{[]verdict.Case{{}}, ""},
		{[]verdict.Case{one}, "tcp/ipv4/lo"},
		{[]verdict.Case{one, {Proto: "udp", Family: "ipv6", Link: "lo"}}, "tcp/ipv4/lo, udp/ipv6/lo"},
		{[]verdict.Case{{Link: "lo"}, {Link: "nic"}}, "lo, nic"},
	} {
		if got := report.Axes(test.cases); got != test.want {
			t.Errorf("Axes(%v) = %q, want %q", test.cases, got, test.want)
		}
	}
}

func TestDuration(t *testing.T) {
	for seconds, want := range map[float64]string{0.04: "0.0 s", 28.44: "28.4 s", 100: "1 min 40 s", 3725: "1 h 2 min"} {
		if got := report.Duration(seconds); got != want {
			t.Errorf("Duration(%v) = %q, want %q", seconds, got, want)
		}
	}
}

// Every command is one line, and nothing in a message can start another.
func TestAnnotationsEscape(t *testing.T) {
	run := base()
	run.Series.Directory = "my,own:patches"
	run.Series.Patches = []verdict.Patch{{
		Subject: "net: x", File: "x.patch", DiffLine: 1,
		Diff: "diff --git a/net/x,y.c b/net/x,y.c\n--- a/net/x,y.c\n+++ b/net/x,y.c\n@@ -2,0 +3,1 @@\n+bug\n",
	}}
	run.Splats = []verdict.Splat{{Title: "a,b:c%\n::error::injected", File: "net/x,y.c", Line: 3, Patch: "net: x", Source: "bug"}}
	run.Decide(verdict.Policy{}, nil)
	var out bytes.Buffer
	if err := report.WriteAnnotations(&out, run); err != nil {
		t.Fatal(err)
	}
	first, _, _ := strings.Cut(out.String(), "\n")
	want := "::error file=my%2Cown%3Apatches/x.patch,line=5,title=a%2Cb%3Ac%25%0A%3A%3Aerror%3A%3Ainjected::" +
		"a,b:c%25%0A::error::injected at net/x,y.c:3, last touched by \"net: x\""
	if first != want {
		t.Errorf("got  %s\nwant %s", first, want)
	}
	if strings.Count(out.String(), "\n") != 2 {
		t.Errorf("want two lines:\n%s", out.String())
	}
}

func TestWordOfEveryClass(t *testing.T) {
	seen := make(map[string]bool)
	for class := fault.None; class <= fault.Infrastructure; class++ {
		word := report.Word(&verdict.Run{Exit: verdict.Exit{Code: class.ExitCode()}})
		if word == "" {
			t.Errorf("class %v has no word", class)
		}
		seen[word] = true
	}
	if len(seen) != 7 {
		t.Errorf("%d words; usage and infrastructure share one, the others must differ", len(seen))
	}
}
