// SPDX-License-Identifier: BSD-3-Clause

package kbuild

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/zcvet/zcvet/harness/progress"
	"github.com/zcvet/zcvet/harness/source"
	"github.com/zcvet/zcvet/harness/tree"
)

// put writes files below dir, by slash-separated name.
func put(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, content := range files {
		file := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// contents reads all files below dir; a symbolic link reads as "-> target".
func contents(t *testing.T, dir string) map[string]string {
	t.Helper()
	found := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		if entry.Type()&fs.ModeSymlink != 0 {
			target, err := os.Readlink(path)
			found[name] = "-> " + target
			return err
		}
		text, err := os.ReadFile(path)
		found[name] = string(text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// pristineFiles is a small kernel.
var pristineFiles = map[string]string{
	"Makefile":          "all:\n",
	"net/core/skbuff.c": "int skb;\n",
	"net/core/sock.c":   "int sock;\n",
	"net/Kconfig":       "config NET\n\tbool\n",
	".git/HEAD":         "not part of the source\n",
}

func newWorkspace(t *testing.T) *workspace {
	t.Helper()
	pristine := t.TempDir()
	put(t, pristine, pristineFiles)
	if err := os.Symlink("core/sock.c", filepath.Join(pristine, "net", "link.c")); err != nil {
		t.Fatal(err)
	}
	old := time.Now().Add(-time.Hour)
	for name := range pristineFiles {
		if err := os.Chtimes(filepath.Join(pristine, name), old, old); err != nil {
			t.Fatal(err)
		}
	}
	return &workspace{dir: t.TempDir(), pristine: pristine}
}

func patched(overlay map[string]string, deleted ...string) *tree.Tree {
	t := &tree.Tree{Kernel: &source.Kernel{}, Overlay: map[string][]byte{}, Deleted: deleted}
	for name, content := range overlay {
		t.Overlay[name] = []byte(content)
	}
	return t
}

func TestPrepareSwitchesBetweenSeries(t *testing.T) {
	w := newWorkspace(t)
	before := contents(t, w.pristine)
	plain := map[string]string{"net/link.c": "-> core/sock.c"}
	for name, content := range pristineFiles {
		if name != ".git/HEAD" {
			plain[name] = content
		}
	}
	with := func(changes map[string]string, gone ...string) map[string]string {
		all := map[string]string{}
		for name, content := range plain {
			all[name] = content
		}
		for name, content := range changes {
			all[name] = content
		}
		for _, name := range gone {
			delete(all, name)
		}
		return all
	}
	first := map[string]string{"net/core/skbuff.c": "int skb1;\n", "net/zc/zc.c": "int zc;\n"}
	second := map[string]string{"net/core/skbuff.c": "int skb2;\n", "net/core/sock.c": "int sock2;\n"}
	for _, step := range []struct {
		name string
		tree *tree.Tree
		want map[string]string
	}{
		{"no series", patched(nil), plain},
		{"a series that adds a file", patched(first), with(first)},
		{"another one that deletes", patched(second, "net/Kconfig"), with(second, "net/Kconfig")},
		{"the first again", patched(first), with(first)},
		{"a series that makes a deleted path anew", patched(map[string]string{"net/Kconfig": "new\n"}, "net/core/sock.c"), with(map[string]string{"net/Kconfig": "new\n"}, "net/core/sock.c")},
		{"no series again", patched(nil), plain},
	} {
		if err := w.prepare(t.Context(), step.tree, nil); err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		if diff := cmp.Diff(step.want, contents(t, w.source())); diff != "" {
			t.Errorf("%s (-want +got):\n%s", step.name, diff)
		}
		if diff := cmp.Diff(before, contents(t, w.pristine)); diff != "" {
			t.Fatalf("%s: the pristine source was written (-before +after):\n%s", step.name, diff)
		}
	}
}

// Make compiles what is newer than its object. So what did not change must keep
// its time, and what goes back to pristine must not go back to the pristine time.
func TestSyncMovesModificationTimes(t *testing.T) {
	w := newWorkspace(t)
	modified := func(name string) time.Time {
		t.Helper()
		info, err := os.Stat(filepath.Join(w.source(), name))
		if err != nil {
			t.Fatal(err)
		}
		return info.ModTime()
	}
	series := patched(map[string]string{"net/core/skbuff.c": "int patched;\n"})
	if err := w.prepare(t.Context(), series, nil); err != nil {
		t.Fatal(err)
	}
	first, untouched := modified("net/core/skbuff.c"), modified("net/core/sock.c")
	if err := w.prepare(t.Context(), series, nil); err != nil {
		t.Fatal(err)
	}
	if !modified("net/core/skbuff.c").Equal(first) {
		t.Error("a file that is as it should be was written again")
	}
	if err := w.prepare(t.Context(), patched(nil), nil); err != nil {
		t.Fatal(err)
	}
	if modified("net/core/skbuff.c").Before(first) {
		t.Error("a file went back to pristine and looks older than what was compiled from it")
	}
	if !modified("net/core/sock.c").Equal(untouched) {
		t.Error("a file of no series was touched")
	}
}

func TestPrepareLinks(t *testing.T) {
	w := newWorkspace(t)
	if err := w.prepare(t.Context(), patched(map[string]string{"net/core/skbuff.c": "x\n"}), nil); err != nil {
		t.Fatal(err)
	}
	same := func(name string) bool {
		t.Helper()
		a, err := os.Stat(filepath.Join(w.pristine, name))
		if err != nil {
			t.Fatal(err)
		}
		b, err := os.Stat(filepath.Join(w.source(), name))
		if err != nil {
			t.Fatal(err)
		}
		return os.SameFile(a, b)
	}
	if !same("net/core/sock.c") {
		t.Error("a pristine file was copied, not linked")
	}
	if same("net/core/skbuff.c") {
		t.Error("a patched file is still a link into the pristine source")
	}
}

func TestSyncAfterOneThatDied(t *testing.T) {
	w := newWorkspace(t)
	if err := w.prepare(t.Context(), patched(nil), nil); err != nil {
		t.Fatal(err)
	}
	// A sync announces the paths before it writes them; this one got no further
	// than the first, and left its temporary file.
	if err := w.setTouched(map[string]bool{"net/core/skbuff.c": true, "net/new.c": true}); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(w.source(), "net/core/skbuff.c")); err != nil {
		t.Fatal(err)
	}
	put(t, w.source(), map[string]string{"net/core/skbuff.c": "half", "net/new.c": "half", "net/core/sock.c.zcvet-new": "half"})
	series := patched(map[string]string{"net/core/sock.c": "whole\n"})
	if err := w.prepare(t.Context(), series, nil); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"Makefile": pristineFiles["Makefile"], "net/Kconfig": pristineFiles["net/Kconfig"],
		"net/core/skbuff.c": pristineFiles["net/core/skbuff.c"], "net/core/sock.c": "whole\n", "net/link.c": "-> core/sock.c",
	}
	if diff := cmp.Diff(want, contents(t, w.source())); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestPrepareInterrupted(t *testing.T) {
	w := newWorkspace(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := w.prepare(ctx, patched(nil), nil); !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
	if _, err := os.Stat(w.source()); !errors.Is(err, fs.ErrNotExist) {
		t.Fatal("a copy that was interrupted counts as complete")
	}
	var files int64
	err := w.prepare(t.Context(), patched(nil), func(u progress.Update) { files = u.Done })
	if err != nil {
		t.Fatal(err)
	}
	if want := int64(len(pristineFiles)); files != want { // without .git, with the link
		t.Errorf("progress ended at %d files, want %d", files, want)
	}
}

func TestSyncStaysInside(t *testing.T) {
	outside := t.TempDir()
	for _, test := range []struct{ name, path string }{
		{"dots", "../../escaped"},
		{"absolute", filepath.Join(outside, "escaped")},
		{"through a link", "out/escaped"},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorkspace(t)
			if err := os.Symlink(outside, filepath.Join(w.pristine, "out")); err != nil {
				t.Fatal(err)
			}
			if err := w.prepare(t.Context(), patched(map[string]string{test.path: "x"}), nil); err == nil {
				t.Error("no error")
			}
			if left, _ := os.ReadDir(outside); len(left) != 0 {
				t.Errorf("wrote %v outside the build tree", left)
			}
		})
	}
}

func TestRecoverRemovesWhatTheKilledBuildWrote(t *testing.T) {
	w := newWorkspace(t)
	if err := w.prepare(t.Context(), patched(nil), nil); err != nil {
		t.Fatal(err)
	}
	put(t, w.build(), map[string]string{"old.o": "good"})
	old := time.Now().Add(-time.Hour)
	if err := os.Chtimes(filepath.Join(w.build(), "old.o"), old, old); err != nil {
		t.Fatal(err)
	}
	if err := w.begin(); err != nil {
		t.Fatal(err)
	}
	put(t, w.build(), map[string]string{"net/new.o": "cut sho"})
	if err := w.recover(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]string{"old.o": "good"}, contents(t, w.build())); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	// Once is enough: what is made from now on stays.
	put(t, w.build(), map[string]string{"net/new.o": "whole"})
	if err := w.recover(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(w.build(), "net/new.o")); err != nil {
		t.Error(err)
	}
}
