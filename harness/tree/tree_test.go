// SPDX-License-Identifier: BSD-3-Clause

package tree_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/zcvet/zcvet/harness/fault"
	"github.com/zcvet/zcvet/harness/series"
	"github.com/zcvet/zcvet/harness/source"
	"github.com/zcvet/zcvet/harness/tree"
	"github.com/zcvet/zcvet/harness/verdict"
)

// numbered returns a file of n lines that are all different.
func numbered(n int) string {
	var b strings.Builder
	for i := 1; i <= n; i++ {
		fmt.Fprintf(&b, "line %d\n", i)
	}
	return b.String()
}

const socketHeader = `/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
#ifndef __ASM_GENERIC_SOCKET_H
#define __ASM_GENERIC_SOCKET_H

#define SO_TXTIME		61
#define SCM_TXTIME		SO_TXTIME

#define SO_PASSPIDFD		76
#define SO_PEERPIDFD		77

#define SO_DEVMEM_LINEAR	78
#define SCM_DEVMEM_LINEAR	SO_DEVMEM_LINEAR

#if !defined(__KERNEL__)
#endif
#endif
`

// files is a small tree by path.
type files map[string]string

func base() files {
	return files{
		"Makefile":                          "VERSION = 6\n",
		"net/core.c":                        numbered(60),
		"net/old.c":                         numbered(20),
		"scripts/run.sh":                    "#!/bin/sh\n",
		"include/uapi/asm-generic/socket.h": socketHeader,
		"tools/include/uapi/asm-generic/socket.h": socketHeader,
	}
}

func write(t *testing.T, dir string, content files) {
	t.Helper()
	for name, text := range content {
		full := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
			t.Fatal(err)
		}
		mode := os.FileMode(0o644)
		if strings.HasSuffix(name, ".sh") {
			mode = 0o755
		}
		if err := os.WriteFile(full, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
	}
}

func kernel(t *testing.T, content files) *source.Kernel {
	t.Helper()
	dir := t.TempDir()
	write(t, dir, content)
	return &source.Kernel{Version: "6.12.1", ID: "test-6.12.1", Dir: dir}
}

// diff lets git describe the way from one tree to another, so that the tests
// apply what git really writes.
func diff(t *testing.T, from, to files) []byte {
	t.Helper()
	dir := t.TempDir()
	write(t, filepath.Join(dir, "a"), from)
	write(t, filepath.Join(dir, "b"), to)
	command := exec.Command("git", "diff", "--no-index", "-M", "--no-color", "--no-prefix", "a", "b")
	command.Dir = dir
	command.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_NOSYSTEM=1")
	out, err := command.Output()
	if exit, ok := errors.AsType[*exec.ExitError](err); err != nil && (!ok || exit.ExitCode() != 1) {
		t.Fatal(err)
	}
	// "rename from a/x": without --no-index there would be no prefix.
	out = bytes.ReplaceAll(out, []byte("rename from a/"), []byte("rename from "))
	return bytes.ReplaceAll(out, []byte("rename to b/"), []byte("rename to "))
}

func patches(diffs ...[]byte) *series.Series {
	s := &series.Series{Name: "test"}
	for i, d := range diffs {
		s.Patches = append(s.Patches, series.Patch{Subject: fmt.Sprintf("net: change %d", i+1), File: fmt.Sprintf("%04d.patch", i+1), Diff: d})
	}
	return s
}

func with(content files, edits ...func(files)) files {
	out := files{}
	for name, text := range content {
		out[name] = text
	}
	for _, edit := range edits {
		edit(out)
	}
	return out
}

func replace(name, from, to string) func(files) {
	return func(f files) {
		if !strings.Contains(f[name], from) {
			panic(name + " has no " + from)
		}
		f[name] = strings.Replace(f[name], from, to, 1)
	}
}

func prepend(name, text string) func(files) {
	return func(f files) { f[name] = text + f[name] }
}

func apply(t *testing.T, k *source.Kernel, s *series.Series, options tree.Options) *tree.Tree {
	t.Helper()
	got, err := tree.Apply(t.Context(), k, s, options)
	if err != nil {
		if classed, ok := errors.AsType[*fault.Error](err); ok {
			t.Fatalf("%v\n%s", err, classed.Output)
		}
		t.Fatal(err)
	}
	return got
}

func overlay(got *tree.Tree) files {
	out := files{}
	for name, data := range got.Overlay {
		out[name] = string(data)
	}
	return out
}

func TestApplyOutcomes(t *testing.T) {
	change := diff(t, base(), with(base(), replace("net/core.c", "line 30\n", "line thirty\n")))
	for _, test := range []struct {
		name   string
		tree   files
		offset int
		fuzz   bool
	}{
		{"clean", base(), 0, false},
		{"offset down", with(base(), prepend("net/core.c", "one\ntwo\nthree\n")), 3, false},
		{"offset up", with(base(), replace("net/core.c", "line 1\nline 2\n", "")), 2, false},
		{"fuzz", with(base(), replace("net/core.c", "line 27\n", "line twenty-seven\n")), 0, true},
		{"fuzz and offset", with(base(), replace("net/core.c", "line 27\n", "x\n"), prepend("net/core.c", "one\n")), 1, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			k := kernel(t, test.tree)
			got := apply(t, k, patches(change), tree.Options{})
			want := with(test.tree, replace("net/core.c", "line 30\n", "line thirty\n"))["net/core.c"]
			if d := cmp.Diff(files{"net/core.c": want}, overlay(got)); d != "" {
				t.Errorf("overlay: %s", d)
			}
			applied := got.Applied[0]
			if applied.Offset != test.offset || applied.Fuzz != test.fuzz {
				t.Errorf("offset %d, fuzz %v; want %d, %v\n%s", applied.Offset, applied.Fuzz, test.offset, test.fuzz, applied.Output)
			}
			if found := len(got.Findings) == 1 && got.Findings[0].Kind == tree.KindFuzz && got.Findings[0].Level == verdict.Should; found != test.fuzz {
				t.Errorf("findings %+v", got.Findings)
			}

			_, err := tree.Apply(t.Context(), k, patches(change), tree.Options{NoFuzz: true})
			if refused := fault.Of(err) == fault.Apply; refused != test.fuzz {
				t.Errorf("with NoFuzz: %v", err)
			}
			if data, _ := os.ReadFile(filepath.Join(k.Dir, "net/core.c")); string(data) != test.tree["net/core.c"] {
				t.Error("the pristine source was written to")
			}
		})
	}
}

func TestApplyFailureNamesPatchFileAndHunk(t *testing.T) {
	to := with(base(), replace("net/core.c", "line 10\n", "ten\n"), replace("net/core.c", "line 50\n", "fifty\n"))
	second := diff(t, base(), to)
	first := diff(t, base(), with(base(), replace("net/old.c", "line 3\n", "three\n")))
	broken := with(base(), replace("net/core.c", "line 49\nline 50\nline 51\n", "nothing like it\n"))

	_, err := tree.Apply(t.Context(), kernel(t, broken), patches(first, second), tree.Options{})
	if fault.Of(err) != fault.Apply {
		t.Fatalf("got %v", err)
	}
	want := `patch 2/2 "net: change 2": does not apply, not even with fuzz: net/core.c, hunk 2 (line 47)`
	if err.Error() != want {
		t.Errorf("got  %s\nwant %s", err, want)
	}
	classed, _ := errors.AsType[*fault.Error](err)
	for _, words := range []string{"error: patch failed: net/core.c:47", "error: net/core.c: patch does not apply", "Hunk #2 FAILED"} {
		if !strings.Contains(classed.Output, words) {
			t.Errorf("output lacks %q:\n%s", words, classed.Output)
		}
	}

	_, err = tree.Apply(t.Context(), kernel(t, broken), patches(first, second), tree.Options{NoFuzz: true})
	if want := `patch 2/2 "net: change 2": does not apply: net/core.c, hunk 2 (line 47)`; err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
}

func TestApplyFileOperations(t *testing.T) {
	moved := with(base(), func(f files) {
		delete(f, "net/old.c")
		f["net/sub/new.c"] = numbered(20)
		f["tools/test.sh"] = "#!/bin/sh\n"
		f["net/empty"] = ""
		delete(f, "scripts/run.sh")
	})
	later := with(moved, replace("net/sub/new.c", "line 5\n", "five\n"))
	k := kernel(t, base())
	got := apply(t, k, patches(diff(t, base(), moved), diff(t, moved, later)), tree.Options{})

	want := files{"net/sub/new.c": later["net/sub/new.c"], "tools/test.sh": "#!/bin/sh\n", "net/empty": ""}
	if d := cmp.Diff(want, overlay(got)); d != "" {
		t.Errorf("overlay: %s", d)
	}
	if d := cmp.Diff([]string{"net/old.c", "scripts/run.sh"}, got.Deleted); d != "" {
		t.Errorf("deleted: %s", d)
	}
	if got.Mode["tools/test.sh"] != 0o755 || got.Mode["net/sub/new.c"] != 0o644 {
		t.Errorf("modes %v", got.Mode)
	}

	// There and back again is the tree as it was.
	back := apply(t, k, patches(diff(t, base(), moved), diff(t, moved, base())), tree.Options{})
	if len(back.Overlay) != 0 || len(back.Deleted) != 0 || back.ID != k.ID {
		t.Errorf("after undoing: overlay %v, deleted %v, id %s", overlay(back), back.Deleted, back.ID)
	}
}

func TestApplyModeChange(t *testing.T) {
	d := []byte("diff --git a/scripts/run.sh b/scripts/run.sh\nold mode 100755\nnew mode 100644\n")
	got := apply(t, kernel(t, base()), patches(d), tree.Options{})
	if got.Mode["scripts/run.sh"] != 0o644 || len(got.Overlay) != 1 {
		t.Errorf("mode %v, overlay %v", got.Mode, overlay(got))
	}
}

func TestIDIsThatOfTheResult(t *testing.T) {
	k := kernel(t, base())
	half := with(base(), replace("net/core.c", "line 10\n", "ten\n"))
	whole := with(half, replace("net/core.c", "line 50\n", "fifty\n"))
	inOne := apply(t, k, patches(diff(t, base(), whole)), tree.Options{})
	inTwo := apply(t, k, patches(diff(t, base(), half), diff(t, half, whole)), tree.Options{})
	other := apply(t, k, patches(diff(t, base(), half)), tree.Options{})
	none := apply(t, k, &series.Series{}, tree.Options{})
	if inOne.ID != inTwo.ID {
		t.Errorf("the same tree has ids %s and %s", inOne.ID, inTwo.ID)
	}
	if other.ID == inOne.ID || none.ID != k.ID {
		t.Errorf("ids: half %s, whole %s, none %s", other.ID, inOne.ID, none.ID)
	}
}

func TestApplyRefuses(t *testing.T) {
	header := func(old, now string) string {
		return "diff --git a/" + old + " b/" + now + "\n--- a/" + old + "\n+++ b/" + now + "\n@@ -1 +1 @@\n-line 1\n+x\n"
	}
	for _, test := range []struct{ name, diff, want string }{
		{"path upwards", header("../evil", "../evil"), `the path "../evil" leaves the tree`},
		{"path upwards inside", header("net/../../evil", "net/../../evil"), `leaves the tree`},
		{"git's own data", header(".git/config", ".git/config"), `leaves the tree`},
		{"symbolic link", "diff --git a/link b/link\nnew file mode 120000\n--- /dev/null\n+++ b/link\n@@ -0,0 +1 @@\n+/etc/passwd\n\\ No newline at end of file\n", "mode 120000"},
		{"submodule", "diff --git a/sub b/sub\nnew file mode 160000\nindex 0000000..1111111\n--- /dev/null\n+++ b/sub\n@@ -0,0 +1 @@\n+Subproject commit 1111111\n", "mode 160000"},
		{"binary", "diff --git a/logo.png b/logo.png\nindex 1..2 100644\nBinary files a/logo.png and b/logo.png differ\n", "binary"},
		{"nothing", "just words\n", "changes no file"},
		{"truncated", "diff --git a/net/core.c b/net/core.c\n--- a/net/core.c\n+++ b/net/core.c\n@@ -1,3 +1,3 @@\n line 1\n", "malformed diff"},
		{"missing file", header("net/none.c", "net/none.c"), "net/none.c"},
		{"exists already", "diff --git a/net/core.c b/net/core.c\nnew file mode 100644\n--- /dev/null\n+++ b/net/core.c\n@@ -0,0 +1 @@\n+x\n", "net/core.c"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := tree.Apply(t.Context(), kernel(t, base()), patches([]byte(test.diff)), tree.Options{})
			if fault.Of(err) != fault.Apply || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), "patch 1/1") {
				t.Errorf("got %v, want an apply error with %q", err, test.want)
			}
		})
	}
}

func TestApplyThroughSymlinkOutOfTheSource(t *testing.T) {
	k := kernel(t, base())
	outside := t.TempDir()
	write(t, outside, files{"secret": "line 1\n"})
	if err := os.Symlink(outside, filepath.Join(k.Dir, "out")); err != nil {
		t.Fatal(err)
	}
	d := "diff --git a/out/secret b/out/secret\n--- a/out/secret\n+++ b/out/secret\n@@ -1 +1 @@\n-line 1\n+x\n"
	if _, err := tree.Apply(t.Context(), k, patches([]byte(d)), tree.Options{}); fault.Of(err) != fault.Apply {
		t.Errorf("got %v", err)
	}
}

func TestApplyToImage(t *testing.T) {
	image := &source.Kernel{Image: "/boot/vmlinuz", ID: "image"}
	if _, err := tree.Apply(t.Context(), image, patches([]byte("x")), tree.Options{}); fault.Of(err) != fault.Usage {
		t.Errorf("got %v", err)
	}
	if got, err := tree.Apply(t.Context(), image, &series.Series{}, tree.Options{}); err != nil || got.ID != "image" {
		t.Errorf("got %v, %v", got, err)
	}
}

func TestApplyCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	change := diff(t, base(), with(base(), replace("net/core.c", "line 30\n", "x\n")))
	if _, err := tree.Apply(ctx, kernel(t, base()), patches(change), tree.Options{}); !fault.IsCancelled(err) {
		t.Errorf("got %v", err)
	}
}

func TestBlame(t *testing.T) {
	one := with(base(), replace("net/core.c", "line 10\n", "ten\nten and a half\n"))
	two := with(one, replace("net/core.c", "line 1\n", "zero\nline 1\n"), replace("net/core.c", "line 20\n", "twenty\n"))
	three := with(two, func(f files) { f["net/moved.c"] = f["net/core.c"]; delete(f, "net/core.c") }, replace("net/moved.c", "ten\n", "TEN\n"))
	got := apply(t, kernel(t, base()), patches(diff(t, base(), one), diff(t, one, two), diff(t, two, three)), tree.Options{})

	want := map[string]int{"zero": 1, "TEN": 2, "ten and a half": 0, "twenty": 1}
	for i, text := range strings.Split(strings.TrimSuffix(three["net/moved.c"], "\n"), "\n") {
		patch, ok := got.Blame("net/moved.c", i+1)
		if wanted, touched := want[text]; ok != touched || ok && patch != wanted {
			t.Errorf("line %d %q: patch %d, %v", i+1, text, patch, ok)
		}
	}
	for _, place := range []struct {
		file string
		line int
	}{{"net/moved.c", 0}, {"net/moved.c", 1000}, {"net/core.c", 1}, {"Makefile", 1}} {
		if _, ok := got.Blame(place.file, place.line); ok {
			t.Errorf("%v is blamed on a patch", place)
		}
	}
	if d := cmp.Diff([]int{0, 1, 2}, got.Touched("net/core.c")); d != "" {
		t.Error(d)
	}
}

func TestCollision(t *testing.T) {
	const generic, tools = "include/uapi/asm-generic/socket.h", "tools/include/uapi/asm-generic/socket.h"
	add := func(text string) func(files) {
		return replace(generic, "#if !defined", text+"\n#if !defined")
	}
	for _, test := range []struct {
		name   string
		edit   func(files)
		titles []string
	}{
		{"free number", add("#define SCM_ZC_NOTIFICATION 79\n"), nil},
		{"taken number", add("#define SCM_ZC_NOTIFICATION 78\n"), []string{"SCM_ZC_NOTIFICATION and SO_DEVMEM_LINEAR are both 78 in " + generic}},
		{"taken in hexadecimal", add("#define SCM_ZC_NOTIFICATION 0x4E\n"), []string{"SCM_ZC_NOTIFICATION and SO_DEVMEM_LINEAR are both 0x4E in " + generic}},
		{"alias of its own feature", add("#define SO_ZC 79\n#define SCM_ZC SO_ZC\n"), nil},
		{"same number for its own feature", add("#define SO_ZC 79\n#define SCM_ZC 79\n"), nil},
		{"two new ones", add("#define SO_ONE 79\n#define SO_TWO 79\n"), []string{"SO_TWO and SO_ONE are both 79 in " + generic}},
		{"in a comment", add("/* #define SCM_ZC 78 */\n"), nil},
		{"another family", add("#define SOL_ZC 78\n"), nil},
		{"renumbered", replace(generic, "SO_PEERPIDFD\t\t77", "SO_PEERPIDFD\t\t76"), []string{"SO_PEERPIDFD and SO_PASSPIDFD are both 76 in " + generic}},
		{"only the copy in tools", replace(tools, "#if !defined", "#define SCM_ZC 78\n#if !defined"), []string{"SCM_ZC and SO_DEVMEM_LINEAR are both 78 in " + tools}},
	} {
		t.Run(test.name, func(t *testing.T) {
			first := with(base(), replace("net/core.c", "line 30\n", "x\n"))
			got := apply(t, kernel(t, base()), patches(diff(t, base(), first), diff(t, first, with(first, test.edit))), tree.Options{})
			var titles []string
			for _, finding := range got.Findings {
				titles = append(titles, finding.Title)
				if finding.Kind != tree.KindCollision || finding.Level != verdict.Must || finding.Patch != "net: change 2" || finding.Line == 0 {
					t.Errorf("finding %+v", finding)
				}
			}
			if d := cmp.Diff(test.titles, titles); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestCollisionAlreadyInTheSource(t *testing.T) {
	from := with(base(), replace("include/uapi/asm-generic/socket.h", "#if !def", "#define SO_OLD_SIN 61\n#if !def"))
	to := with(from, replace("include/uapi/asm-generic/socket.h", "#if !def", "#define SO_NEW 79\n#if !def"))
	if got := apply(t, kernel(t, from), patches(diff(t, from, to)), tree.Options{}); len(got.Findings) != 0 {
		t.Errorf("the series is blamed for what was there: %+v", got.Findings)
	}
}

func TestInterface(t *testing.T) {
	const generic = "include/uapi/asm-generic/socket.h"
	number := replace(generic, "#if !def", "#define SCM_ZC_NOTIFICATION\t81 /* next free */\n#if !def")
	element := "struct zc_info_elem {\n\t__u32 lo;\n};\n"
	info := element + "struct zc_info {\n\t__u32 size;\n};\n"
	header := func(text string) func(files) {
		return func(f files) { f["include/uapi/linux/socket.h"] = text }
	}
	for _, test := range []struct {
		name     string
		manifest string
		edits    []func(files)
		abi      string
		constant int
	}{
		{"nothing", "", nil, "", 0},
		{"v8", "", []func(files){number, header(info + "#define ZC_NOTIFICATION_MAX 16\n")}, "v8", 81},
		{"v7", "", []func(files){number, header(info)}, "v7", 81},
		{"v7, limit in a comment", "", []func(files){number, header(info + "/* ZC_NOTIFICATION_MAX */\n")}, "v7", 81},
		{"v6", "", []func(files){number, header(element)}, "v6", 81},
		{"v5 says the manifest", "v5", []func(files){number, header(element)}, "v5", 81},
		{"v1", "", []func(files){func(f files) { f["include/linux/socket.h"] = "#define MSG_ZEROCOPY_UARG 0x2000000\n" }}, "v1", 0},
		{"alias", "", []func(files){replace(generic, "#if !def", "#define SO_ZC 82\n#define SCM_ZC_NOTIFICATION SO_ZC\n#if !def")}, "", 82},
	} {
		t.Run(test.name, func(t *testing.T) {
			patched := with(base(), test.edits...)
			s := &series.Series{}
			if len(test.edits) > 0 {
				s = patches(diff(t, base(), patched))
			}
			s.ABI = test.manifest
			got := apply(t, kernel(t, base()), s, tree.Options{})
			if got.ABI != test.abi || got.Constant != test.constant {
				t.Errorf("ABI %q, constant %d; want %q, %d", got.ABI, got.Constant, test.abi, test.constant)
			}
			// A source that has the series merged offers the same.
			merged := apply(t, kernel(t, patched), &series.Series{ABI: test.manifest}, tree.Options{})
			if merged.ABI != test.abi || merged.Constant != test.constant {
				t.Errorf("merged: ABI %q, constant %d; want %q, %d", merged.ABI, merged.Constant, test.abi, test.constant)
			}
		})
	}
}

func TestFirstRevisionsFlagIsTakenSince612(t *testing.T) {
	from := with(base(), func(f files) {
		f["include/linux/socket.h"] = "#define MSG_SOCK_DEVMEM 0x2000000\n#define MSG_ZEROCOPY 0x4000000\n"
	})
	to := with(from, replace("include/linux/socket.h", "#define MSG_ZEROCOPY 0", "#define MSG_ZEROCOPY_UARG 0x2000000\n#define MSG_ZEROCOPY 0"))
	got := apply(t, kernel(t, from), patches(diff(t, from, to)), tree.Options{})
	if len(got.Findings) != 1 || !strings.Contains(got.Findings[0].Title, "MSG_ZEROCOPY_UARG and MSG_SOCK_DEVMEM") {
		t.Errorf("findings %+v", got.Findings)
	}
}

// TestHeaderHunkOf2024 is the trap that the published revisions fall into on
// 6.12: the number they took was free when they were written. Git refuses the
// hunk, GNU patch places it beside the constant that has the number now.
func TestHeaderHunkOf2024(t *testing.T) {
	const generic = "include/uapi/asm-generic/socket.h"
	from := with(base(), replace(generic, "#define SO_DEVMEM_LINEAR	78\n#define SCM_DEVMEM_LINEAR	SO_DEVMEM_LINEAR\n\n", ""))
	to := with(from, replace(generic, "#define SO_PEERPIDFD		77\n\n", "#define SO_PEERPIDFD		77\n\n#define SCM_ZC_NOTIFICATION	78\n\n"))
	hunk := diff(t, from, to)
	k := kernel(t, base())

	got := apply(t, k, patches(hunk), tree.Options{})
	if !got.Applied[0].Fuzz || got.Constant != 78 {
		t.Errorf("fuzz %v, constant %d\n%s", got.Applied[0].Fuzz, got.Constant, got.Applied[0].Output)
	}
	var kinds []string
	for _, finding := range got.Findings {
		kinds = append(kinds, finding.Kind+" "+string(finding.Level))
		if finding.File != generic || finding.Patch != "net: change 1" || finding.Line == 0 {
			t.Errorf("finding %+v", finding)
		}
	}
	if d := cmp.Diff([]string{"fuzz SHOULD", "uapi-collision MUST"}, kinds); d != "" {
		t.Error(d)
	}
	if report := got.Verdict(); len(report.Findings) != 2 || !report.Patches[0].Fuzz || report.Constant != 78 {
		t.Errorf("verdict %+v", report)
	}
	if _, err := tree.Apply(t.Context(), k, patches(hunk), tree.Options{NoFuzz: true}); fault.Of(err) != fault.Apply {
		t.Errorf("with NoFuzz: %v", err)
	}
}
