// SPDX-License-Identifier: BSD-3-Clause

package gate

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/zcvet/zcvet/harness/check"
	"github.com/zcvet/zcvet/harness/fault"
	"github.com/zcvet/zcvet/harness/kbuild"
	"github.com/zcvet/zcvet/harness/verdict"
)

func TestFresh(t *testing.T) {
	before := []string{
		"../net/core/sock.c: In function 'old':",
		"../net/core/sock.c:10:5: warning: unused variable 'a' [-Wunused-variable]",
		"   10 |     int a;",
		"net/core/sock.c:20: warning: Function parameter 'x' not described in 'f'",
	}
	for _, test := range []struct {
		name  string
		after []string
		want  []check.Message
	}{
		{"the same", before, nil},
		{"the same on other lines", []string{"../net/core/sock.c:15:5: warning: unused variable 'a' [-Wunused-variable]"}, nil},
		{
			"once more", append([]string{"../net/core/sock.c:12:5: warning: unused variable 'a' [-Wunused-variable]"}, before...),
			[]check.Message{{File: "net/core/sock.c", Line: 10, Text: "warning: unused variable 'a' [-Wunused-variable]"}},
		},
		{
			"other ones", append([]string{"net/core/sock.c:9:1: error: expected ';'", "net/ipv4/udp.c:3:4: warning: unused variable 'a' [-Wunused-variable]"}, before...),
			[]check.Message{{File: "net/core/sock.c", Line: 9, Text: "error: expected ';'"}, {File: "net/ipv4/udp.c", Line: 3, Text: "warning: unused variable 'a' [-Wunused-variable]"}},
		},
		{"what explains", append([]string{"net/core/sock.c:9:1: note: declared here", "net/core/sock.c:9:1:    expected restricted __be16"}, before...), nil},
	} {
		if d := cmp.Diff(test.want, fresh(before, test.after)); d != "" {
			t.Errorf("%s (-want +got):\n%s", test.name, d)
		}
	}
}

func TestJudgeCheckpatch(t *testing.T) {
	for _, test := range []struct {
		name, output string
		status       check.Status
		summary      string
		messages     int
	}{
		{"nothing", "", check.Pass, "nothing to say", 0},
		{
			"a remark", "23: CHECK:PARENTHESIS_ALIGNMENT: Alignment should match open parenthesis\n", check.Warn,
			"1 message: CHECK: Alignment should match open parenthesis (PARENTHESIS_ALIGNMENT, line 23 of the mail)", 1,
		},
		{
			"an error after a remark", "20: WARNING:LONG_LINE: line length of 90 exceeds 80 columns\n23: ERROR:SPACING: space required before the open parenthesis '('\n", check.Fail,
			"2 messages, first ERROR: space required before the open parenthesis '(' (SPACING, line 23 of the mail)", 2,
		},
	} {
		got := judgeCheckpatch(test.output).Result
		if got.Status != test.status || got.Summary != test.summary || len(got.Messages) != test.messages {
			t.Errorf("%s: %+v", test.name, got)
		}
	}
}

func TestJudgeCompilation(t *testing.T) {
	said := func(compiler, sparse string) map[string]kbuild.Said {
		words := kbuild.Said{}
		if compiler != "" {
			words.Compiler = []string{compiler}
		}
		if sparse != "" {
			words.Sparse = []string{sparse}
		}
		return map[string]kbuild.Said{"net/core/sock": words, "net/core/dev": {}}
	}
	const (
		unused = "net/core/sock.c:1:2: warning: unused variable 'a' [-Wunused-variable]"
		order  = "net/core/sock.c:1:2: warning: restricted __be16 degrades to integer"
	)
	for _, test := range []struct {
		name          string
		before, after kbuild.Compilation
		compiler      check.Status
		sparse        check.Status
	}{
		{"nothing", kbuild.Compilation{Said: said("", "")}, kbuild.Compilation{Said: said("", "")}, check.Pass, check.Pass},
		{"as before", kbuild.Compilation{Said: said(unused, order)}, kbuild.Compilation{Said: said(unused, order)}, check.Pass, check.Pass},
		{"mended", kbuild.Compilation{Said: said(unused, order)}, kbuild.Compilation{Said: said("", "")}, check.Pass, check.Pass},
		{"the compiler", kbuild.Compilation{Said: said("", order)}, kbuild.Compilation{Said: said(unused, order)}, check.Fail, check.Pass},
		{"sparse", kbuild.Compilation{Said: said("", "")}, kbuild.Compilation{Said: said("", order)}, check.Pass, check.Fail},
		{"a file that is new", kbuild.Compilation{}, kbuild.Compilation{Said: said(unused, "")}, check.Fail, check.Pass},
		{"make, without a message", kbuild.Compilation{}, kbuild.Compilation{Failed: true}, check.Fail, check.Pass},
		{"make, as before", kbuild.Compilation{Failed: true}, kbuild.Compilation{Failed: true}, check.Warn, check.Pass},
	} {
		c := &compiled{before: &test.before, after: &test.after}
		if got := c.judge(false).Result; got.Status != test.compiler {
			t.Errorf("%s: the compiler's check is %s: %s", test.name, got.Status, got.Summary)
		}
		if got := c.judge(true).Result; got.Status != test.sparse {
			t.Errorf("%s: sparse's check is %s: %s", test.name, got.Status, got.Summary)
		}
	}
	broken := &compiled{err: fault.New(fault.Build, "Kconfig:3: syntax error")}
	if got := broken.judge(false).Result; got.Status != check.Fail || got.Summary != "Kconfig:3: syntax error" {
		t.Errorf("a configuration that is broken: %+v", got)
	}
}

func TestTalkative(t *testing.T) {
	c := &kbuild.Compilation{Said: map[string]kbuild.Said{
		"net/core/sock":   {Compiler: []string{"net/core/sock.c:1:2: warning: unused variable 'a' [-Wunused-variable]"}},
		"net/core/dev":    {Sparse: []string{"net/core/dev.c:1:2: warning: symbol 'a' was not declared. Should it be static?"}},
		"net/core/skbuff": {Compiler: []string{"ccache: a remark of the tool"}},
		"net/core/filter": {},
	}}
	if d := cmp.Diff([]string{"net/core/dev.o", "net/core/sock.o"}, talkative(c)); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func TestIsAmong(t *testing.T) {
	targets := []string{"net/core/", "net/socket.o"}
	for unit, want := range map[string]bool{
		"net/core/sock": true, "net/core/sub/a": true, "net/socket": true, "net/compat": false, "net/core": false, "net/core2/a": false,
	} {
		if got := isAmong(unit, targets); got != want {
			t.Errorf("%s: %v", unit, got)
		}
	}
}

func TestEachCountsTheMessageOfAHeaderOnce(t *testing.T) {
	header := check.Message{File: "include/net/sock.h", Line: 4, Text: "warning: x"}
	source := check.Message{File: "include/net/a.h", Line: 4, Text: "warning: x"}
	got := each([]check.Message{header, source, header})
	if d := cmp.Diff([]check.Message{source, header}, got); d != "" {
		t.Error(d)
	}
}

func TestJudgeBoot(t *testing.T) {
	for class, want := range map[fault.Class]check.Status{
		fault.None: check.Pass, fault.Test: check.Pass, fault.Boot: check.Fail, fault.Crash: check.Fail,
	} {
		run := &verdict.Run{Exit: verdict.Exit{Code: class.ExitCode(), Error: "why"}}
		if got := judgeBoot(run, "the console").Result; got.Status != want {
			t.Errorf("a run of class %s: %s", class, got.Status)
		}
	}
}
