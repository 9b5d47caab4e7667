// SPDX-License-Identifier: BSD-3-Clause

package check_test

import (
	"fmt"
	"io/fs"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/zcvet/zcvet/harness/check"
	"github.com/zcvet/zcvet/harness/fault"
	"github.com/zcvet/zcvet/harness/series"
	"github.com/zcvet/zcvet/harness/verdict"
)

// files is a tree in memory.
type files map[string]string

func (f files) ReadFile(name string) ([]byte, error) {
	text, ok := f[name]
	if !ok {
		return nil, fmt.Errorf("%s: %w", name, fs.ErrNotExist)
	}
	return []byte(text), nil
}

// diff is a diff of one file with one hunk; lines begin with " ", "+" or "-".
func diff(name string, isNew bool, lines ...string) string {
	old, now := 0, 0
	for _, line := range lines {
		if line[0] != '+' {
			old++
		}
		if line[0] != '-' {
			now++
		}
	}
	text := fmt.Sprintf("diff --git a/%s b/%s\n", name, name)
	if isNew {
		text += fmt.Sprintf("new file mode 100644\n--- /dev/null\n+++ b/%s\n@@ -0,0 +1,%d @@\n", name, now)
	} else {
		text += fmt.Sprintf("--- a/%s\n+++ b/%s\n@@ -10,%d +10,%d @@\n", name, name, old, now)
	}
	return text + strings.Join(lines, "\n") + "\n"
}

const author = "A. Author <author@example.org>"

func patch(message string, diffs ...string) *series.Patch {
	return &series.Patch{
		Subject: "net: change it", Prefix: "PATCH net-next", Author: author, Message: message,
		Diff: []byte(strings.Join(diffs, "")),
	}
}

// verdicts are the results that are not pass, as "name status: summary".
func verdicts(results []check.Result) []string {
	var out []string
	for _, result := range results {
		if result.Status != check.Pass {
			out = append(out, fmt.Sprintf("%s %s: %s", result.Name, result.Status, result.Summary))
		}
	}
	return out
}

const signed = "Why.\n\nSigned-off-by: " + author

func TestTextual(t *testing.T) {
	harmless := diff("net/core/sock.c", false, " a", "+b")
	with := func(p *series.Patch, edit func(*series.Patch)) *series.Patch { edit(p); return p }
	for _, test := range []struct {
		name  string
		patch *series.Patch
		tree  files
		want  []string
	}{
		{"in order", patch(signed, harmless), nil, nil},
		{"nobody signed", patch("Why.", harmless), nil, []string{"signed-off-by fail: no Signed-off-by line"}},
		{
			"somebody else signed", patch("Why.\n\nSigned-off-by: B. Other <other@example.org>", harmless), nil,
			[]string{"signed-off-by fail: the author, " + author + ", has not signed off"},
		},
		{"signed with another address", patch("Why.\n\nSigned-off-by: A. Author <author@elsewhere.org>", harmless), nil, nil},
		{"signed with another spelling", patch("Why.\n\nsigned-off-by: Author, A. <AUTHOR@example.org>", harmless), nil, nil},
		{
			"a bare diff", with(patch("", harmless), func(p *series.Patch) { p.Author = "" }), nil,
			[]string{"signed-off-by skip: the patch is a bare diff: it names no author; make it with git format-patch"},
		},
		{"a good Fixes tag", patch("Why.\n\nFixes: 123456789abc (\"net: break it\")\nSigned-off-by: "+author, harmless), nil, nil},
		{
			"a short hash", patch("Why.\n\nFixes: 1234567 (\"net: break it\")\nSigned-off-by: "+author, harmless), nil,
			[]string{`fixes fail: not of the form: Fixes: 123456789abc ("subject of the commit")`},
		},
		{
			"a fix without a tag", with(patch(signed, harmless), func(p *series.Patch) { p.Prefix = "PATCH net v2 1/2" }), nil,
			[]string{"fixes warn: a patch for the net tree has no Fixes tag"},
		},
		{
			"inline in a .c file", patch(signed, diff("net/core/sock.c", false, " a", "+static inline int twice(int x)")), nil,
			[]string{"inline fail: static inline int twice(int x): the compiler decides better"},
		},
		{"inline in a header", patch(signed, diff("include/net/sock.h", false, " a", "+static inline int twice(int x)")), nil, nil},
		{
			"inline that moves, and in words", patch(signed, diff("net/core/sock.c", false, "-static inline int f(void)", "+static inline int f(int x)", "+/* inline it */", "+ * not inline", "+	pr_debug(\"inline\");")),
			nil, nil,
		},
		{
			"a selftest nobody runs", patch(signed, diff("tools/testing/selftests/net/new.sh", true, "+#!/bin/sh")),
			files{"tools/testing/selftests/net/Makefile": "TEST_PROGS := new.sh.old renew.sh\n"},
			[]string{"selftests fail: tools/testing/selftests/net/Makefile does not name new.sh: nobody will run it"},
		},
		{
			"a selftest in order", patch(signed, diff("tools/testing/selftests/net/new.c", true, "+int main;")),
			files{"tools/testing/selftests/net/Makefile": "TEST_GEN_PROGS += old \\\n\tnew\n", "tools/testing/selftests/net/.gitignore": "old\nnew\n"},
			nil,
		},
		{
			"a program git would see", patch(signed, diff("tools/testing/selftests/net/new.c", true, "+int main;")),
			files{"tools/testing/selftests/net/Makefile": "TEST_GEN_PROGS += new\n", "tools/testing/selftests/net/.gitignore": "# new\nold\n"},
			[]string{"selftests fail: tools/testing/selftests/net/.gitignore does not name new, which is built in the source directory"},
		},
		{
			"a config file out of order", patch(signed, diff("tools/testing/selftests/net/config", false, " CONFIG_B=y", "+CONFIG_A=y")),
			files{"tools/testing/selftests/net/config": strings.Repeat("# x\n", 9) + "CONFIG_B=y\nCONFIG_A=y\n"},
			[]string{"selftests fail: tools/testing/selftests/net/config CONFIG_A=y is not in alphabetical order"},
		},
		{
			"a config file that was out of order before", patch(signed, diff("tools/testing/selftests/net/config", false, " CONFIG_B=y", "+CONFIG_Z=y")),
			files{"tools/testing/selftests/net/config": "CONFIG_B=y\nCONFIG_A=y\n" + strings.Repeat("# x\n", 8) + "CONFIG_Z=y\n"},
			nil,
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := verdicts(check.Textual(&check.Change{Patch: test.patch, After: test.tree}))
			if d := cmp.Diff(test.want, got); d != "" {
				t.Errorf("results (-want +got):\n%s", d)
			}
		})
	}
}

const generic = "include/uapi/asm-generic/socket.h"

func TestSeries(t *testing.T) {
	of := func(count int, prefix, cover string) *series.Series {
		s := &series.Series{Name: "the series", Cover: cover}
		for range count {
			s.Patches = append(s.Patches, series.Patch{Prefix: prefix})
		}
		return s
	}
	arch := func(name, define string) (string, string) {
		return "arch/" + name + "/include/uapi/asm/socket.h", "#define SO_OLD 1\n" + define
	}
	tree := func(define string, but string) files {
		f := files{generic: "#define SO_OLD 1\n" + define}
		for _, name := range []string{"alpha", "mips", "parisc", "sparc"} {
			if name == but {
				name, text := arch(name, "")
				f[name] = text
				continue
			}
			name, text := arch(name, define)
			f[name] = text
		}
		return f
	}
	const scm = "#define SCM_NEW 81\n"
	for _, test := range []struct {
		name     string
		series   *series.Series
		after    files
		findings []verdict.Finding
		want     []string
	}{
		{"in order", of(3, "PATCH net-next v2 1/3", "Why."), tree(scm, ""), nil, nil},
		{"two without a cover letter", of(2, "PATCH net-next", ""), tree("", ""), nil, nil},
		{"three without one", of(3, "PATCH net-next", ""), tree("", ""), nil, []string{"cover-letter fail: 3 patches and no cover letter: git format-patch --cover-letter"}},
		{"sixteen", of(16, "PATCH net-next", "Why."), tree("", ""), nil, []string{"size fail: 16 patches, netdev takes 15 at once: split the series"}},
		{"no tree", of(1, "PATCH v3", ""), tree("", ""), nil, []string{"tree fail: a subject does not name the tree: git format-patch --subject-prefix='PATCH net-next'"}},
		{"bare diffs", of(1, "", ""), tree("", ""), nil, []string{"tree skip: the patches have no subject prefix; make them with git format-patch --subject-prefix='PATCH net-next'"}},
		{
			"one architecture forgotten", of(1, "PATCH net-next", ""), tree(scm, "parisc"), nil,
			[]string{"uapi fail: arch/parisc/include/uapi/asm/socket.h: does not define SCM_NEW"},
		},
		{
			"a number that is taken", of(1, "PATCH net-next", ""), tree(scm, ""),
			[]verdict.Finding{{Title: "SCM_NEW and SO_OLD are both 1", File: generic, Line: 2, Level: verdict.Must}, {Title: "fuzz", File: "x", Level: verdict.Should}},
			[]string{"uapi fail: include/uapi/asm-generic/socket.h: SCM_NEW and SO_OLD are both 1"},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := verdicts(check.Series(test.series, tree("", ""), test.after, test.findings))
			if d := cmp.Diff(test.want, got); d != "" {
				t.Errorf("results (-want +got):\n%s", d)
			}
		})
	}
}

func TestDecide(t *testing.T) {
	result := func(name string, status check.Status) check.Result {
		return check.Result{Name: name, Status: status, Summary: "the " + name}
	}
	for _, test := range []struct {
		name    string
		results []check.Result
		err     error
		code    int
		why     string
	}{
		{"pass", []check.Result{result(check.Build, check.Pass)}, nil, 0, ""},
		{"warnings and skips", []check.Result{result(check.Checkpatch, check.Warn), result(check.Clang, check.Skip)}, nil, 0, ""},
		{"a failure", []check.Result{result(check.Checkpatch, check.Fail), result(check.Inline, check.Fail)}, nil, 1, "2 failed"},
		{"a build", []check.Result{result(check.Checkpatch, check.Fail), result(check.Build, check.Fail)}, nil, 4, "the build"},
		{"a boot", []check.Result{result(check.Boot, check.Fail)}, nil, 5, "the boot"},
		{"a patch that does not apply", []check.Result{result(check.Build, check.Fail), result(check.Apply, check.Fail)}, nil, 3, "the apply"},
		{"the machine", []check.Result{result(check.Build, check.Pass)}, fault.New(fault.Infrastructure, "disk full"), 7, "disk full"},
	} {
		r := &check.Report{Patches: []check.Patch{{Results: test.results}}}
		r.Decide(test.err)
		if r.Exit.Code != test.code || r.Exit.Error != test.why {
			t.Errorf("%s: exit %d %q, want %d %q", test.name, r.Exit.Code, r.Exit.Error, test.code, test.why)
		}
	}
}
