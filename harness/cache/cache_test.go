// SPDX-License-Identifier: BSD-3-Clause

package cache_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/zcvet/zcvet/harness/cache"
	"github.com/zcvet/zcvet/harness/fault"
)

// The test binary plays the second process: it takes what the variable asks for,
// says "ready", and keeps it until its standard input ends.
const roleVariable = "ZCVET_CACHE_TEST_ROLE"

func TestMain(m *testing.M) {
	role := os.Getenv(roleVariable)
	if role == "" {
		os.Exit(m.Run())
	}
	dir, err := cache.Open("")
	if err == nil {
		switch role {
		case "lock":
			_, err = dir.Lock(context.Background(), cache.Kernels, "k")
		case "hold":
			_, err = dir.Hold(context.Background(), cache.Kernels, "k")
		case "temporary":
			var path string
			path, _, err = dir.TempDir()
			fmt.Println(path)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println("ready")
	_, _ = bufio.NewReader(os.Stdin).ReadString('\n')
}

// other starts the second process and returns once it has what it is to take,
// with the lines it printed before.
func other(t *testing.T, root, role string) (process *exec.Cmd, printed []string) {
	t.Helper()
	process = exec.Command(os.Args[0])
	process.Env = append(os.Environ(), roleVariable+"="+role, cache.Environment+"="+root)
	process.Stderr = os.Stderr
	stdin, err := process.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := process.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := process.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = stdin.Close()
		_ = process.Process.Kill()
		_ = process.Wait()
	})
	lines := bufio.NewScanner(stdout)
	for lines.Scan() {
		if lines.Text() == "ready" {
			return process, printed
		}
		printed = append(printed, lines.Text())
	}
	t.Fatal("the second process ended early")
	return nil, nil
}

func kill(t *testing.T, process *exec.Cmd) {
	t.Helper()
	if err := process.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = process.Wait()
}

func open(t *testing.T) *cache.Dir {
	t.Helper()
	dir, err := cache.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// add makes an entry with one file of the given size, last used some time ago.
func add(t *testing.T, dir *cache.Dir, kind cache.Kind, key string, size int, age time.Duration) {
	t.Helper()
	stage, err := dir.Stage(kind, key)
	if err != nil {
		t.Fatal(err)
	}
	defer stage.Discard()
	if err := os.WriteFile(filepath.Join(stage.Dir, "data"), make([]byte, size), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := stage.Commit(); err != nil {
		t.Fatal(err)
	}
	used := time.Now().Add(-age)
	if err := os.Chtimes(dir.Path(kind, key), used, used); err != nil {
		t.Fatal(err)
	}
}

func TestOpenPlaces(t *testing.T) {
	home := t.TempDir()
	t.Setenv("XDG_CACHE_HOME", home)
	t.Setenv(cache.Environment, "")
	dir, err := cache.Open("")
	if err != nil {
		t.Fatal(err)
	}
	if want := filepath.Join(home, "zcvet"); dir.Root() != want {
		t.Errorf("root %q, want %q", dir.Root(), want)
	}
	moved := t.TempDir()
	t.Setenv(cache.Environment, moved)
	if dir, err = cache.Open(""); err != nil || dir.Root() != moved {
		t.Errorf("root %q, %v; want %q", dir.Root(), err, moved)
	}
}

func TestOpenUnwritable(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := cache.Open(filepath.Join(file, "cache")); fault.Of(err) != fault.Infrastructure {
		t.Errorf("got %v, want an infrastructure fault", err)
	}
}

func TestPathStaysInside(t *testing.T) {
	dir := open(t)
	seen := map[string]string{}
	for _, key := range []string{"a", "../a", "..", ".", "a/b", "/etc/passwd", "%2E", ".%2E", "", "a b", "linux-6.12.tar.xz"} {
		path := dir.Path(cache.Sources, key)
		if filepath.Dir(path) != filepath.Join(dir.Root(), "sources") || strings.HasPrefix(filepath.Base(path), ".") {
			t.Errorf("key %q leads to %q", key, path)
		}
		if first, taken := seen[path]; taken {
			t.Errorf("keys %q and %q share %q", first, key, path)
		}
		seen[path] = key
	}
}

func TestStageIsAllOrNothing(t *testing.T) {
	dir := open(t)
	stage, err := dir.Stage(cache.Kernels, "k")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(stage.Dir, "vmlinux"), []byte("first"), 0o644); err != nil {
		t.Fatal(err)
	}
	if dir.Has(cache.Kernels, "k") {
		t.Error("the entry is visible before Commit")
	}
	if err := stage.Commit(); err != nil {
		t.Fatal(err)
	}
	stage.Discard()
	content, err := os.ReadFile(filepath.Join(dir.Path(cache.Kernels, "k"), "vmlinux"))
	if err != nil || string(content) != "first" {
		t.Fatalf("after Commit: %q, %v", content, err)
	}

	// A second maker of the same content comes late and must not disturb it.
	late, err := dir.Stage(cache.Kernels, "k")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(late.Dir, "vmlinux"), []byte("second"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := late.Commit(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(late.Dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the late stage is still there: %v", err)
	}
	if content, _ := os.ReadFile(filepath.Join(dir.Path(cache.Kernels, "k"), "vmlinux")); string(content) != "first" {
		t.Errorf("the late maker changed the entry to %q", content)
	}
}

func TestCommitFile(t *testing.T) {
	dir := open(t)
	stage, err := dir.Stage(cache.Downloads, "linux.tar.xz")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(stage.Dir, "part"), []byte("tar"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := stage.CommitFile("part"); err != nil {
		t.Fatal(err)
	}
	if content, err := os.ReadFile(dir.Path(cache.Downloads, "linux.tar.xz")); err != nil || string(content) != "tar" {
		t.Errorf("got %q, %v", content, err)
	}
	if _, err := os.Stat(stage.Dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the stage is still there: %v", err)
	}
}

func TestPutReplaces(t *testing.T) {
	dir := open(t)
	if _, err := dir.Get(cache.Probe, "kvm"); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("Get of nothing: %v", err)
	}
	for _, want := range []string{"works", "hangs"} {
		if err := dir.Put(cache.Probe, "kvm", []byte(want)); err != nil {
			t.Fatal(err)
		}
		if got, err := dir.Get(cache.Probe, "kvm"); err != nil || string(got) != want {
			t.Errorf("got %q, %v; want %q", got, err, want)
		}
	}
}

func TestLockExcludesGoroutines(t *testing.T) {
	dir := open(t)
	var inside, worst atomic.Int32
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() {
			unlock, err := dir.Lock(t.Context(), cache.Kernels, "k")
			if err != nil {
				t.Error(err)
				return
			}
			defer unlock()
			worst.Store(max(worst.Load(), inside.Add(1)))
			time.Sleep(time.Millisecond)
			inside.Add(-1)
		})
	}
	group.Wait()
	if worst.Load() != 1 {
		t.Errorf("%d holders at once", worst.Load())
	}
}

func TestLockBetweenProcesses(t *testing.T) {
	dir := open(t)
	process, _ := other(t, dir.Root(), "lock")

	waited := make(chan int, 1)
	dir.Waiting = func(_ cache.Kind, _ string, owner int) { waited <- owner }
	ctx, cancel := context.WithCancel(t.Context())
	failed := make(chan error)
	go func() {
		_, err := dir.Lock(ctx, cache.Kernels, "k")
		failed <- err
	}()
	if owner := <-waited; owner != process.Process.Pid {
		t.Errorf("told to wait for process %d, want %d", owner, process.Process.Pid)
	}
	cancel()
	if err := <-failed; !errors.Is(err, context.Canceled) {
		t.Fatalf("a cancelled wait gave %v", err)
	}

	// kill -9 of the owner frees the lock.
	go func() {
		unlock, err := dir.Lock(t.Context(), cache.Kernels, "k")
		if err == nil {
			unlock()
		}
		failed <- err
	}()
	<-waited
	kill(t, process)
	if err := <-failed; err != nil {
		t.Errorf("after the owner's death: %v", err)
	}
}

func TestCancelledContextTakesNoLock(t *testing.T) {
	dir := open(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := dir.Lock(ctx, cache.Kernels, "k"); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// Neither another holder nor a maker waits for a holder.
func TestHoldIsShared(t *testing.T) {
	dir := open(t)
	dir.Waiting = func(cache.Kind, string, int) { t.Error("waits") }
	other(t, dir.Root(), "hold")
	for _, take := range []func(context.Context, cache.Kind, string) (func(), error){dir.Hold, dir.Lock} {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		release, err := take(ctx, cache.Kernels, "k")
		if err != nil {
			t.Fatal(err)
		}
		release()
	}
}

func TestTempDirSweep(t *testing.T) {
	dir := open(t)
	process, printed := other(t, dir.Root(), "temporary")
	path := printed[0]
	// Without write permission, as in a pristine source, the sweep must succeed too.
	if err := os.MkdirAll(filepath.Join(path, "a", "b"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(path, "a"), 0o555); err != nil {
		t.Fatal(err)
	}
	if _, err := cache.Open(dir.Root()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("swept while its owner lives: %v", err)
	}
	kill(t, process)
	if _, err := cache.Open(dir.Root()); err != nil {
		t.Fatal(err)
	}
	left, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(left) != 0 {
		t.Errorf("left after the sweep: %v, %v", left, err)
	}
}

func TestTempDirCleanup(t *testing.T) {
	dir := open(t)
	path, cleanup, err := dir.TempDir()
	if err != nil {
		t.Fatal(err)
	}
	cleanup()
	cleanup()
	if left, err := os.ReadDir(filepath.Dir(path)); err != nil || len(left) != 0 {
		t.Errorf("left after cleanup: %v, %v", left, err)
	}
}

func TestTempDirsWhileOthersSweep(t *testing.T) {
	dir := open(t)
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() {
			for range 25 {
				path, cleanup, err := dir.TempDir()
				if err != nil {
					t.Error(err)
					return
				}
				if err := os.WriteFile(filepath.Join(path, "file"), nil, 0o644); err != nil {
					t.Errorf("swept from under a living owner: %v", err)
				}
				cleanup()
			}
		})
		group.Go(func() {
			for range 25 {
				if _, err := cache.Open(dir.Root()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
}

func TestListSharesHardLinks(t *testing.T) {
	dir := open(t)
	add(t, dir, cache.Sources, "linux", 1<<20, 0)
	work := dir.Path(cache.Work, "tree")
	if err := os.MkdirAll(work, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(filepath.Join(dir.Path(cache.Sources, "linux"), "data"), filepath.Join(work, "data")); err != nil {
		t.Fatal(err)
	}
	entries, err := dir.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != 2 || entries[0].Key != "linux" || entries[1].Key != "tree" {
		t.Fatalf("entries %v", entries)
	}
	if entries[0].Size < 1<<20 || entries[1].Size >= 1<<20 {
		t.Errorf("sizes %d and %d: the shared file must count once, for the source", entries[0].Size, entries[1].Size)
	}
}

func TestPrune(t *testing.T) {
	const mebibyte = 1 << 20
	for _, test := range []struct {
		name   string
		filter cache.Filter
		want   []string // what goes, in order
	}{
		{"everything", cache.Filter{}, []string{"old", "older tar", "new"}},
		{"by age", cache.Filter{OlderThan: 2 * time.Hour}, []string{"old", "older tar"}},
		{"by kind", cache.Filter{Kinds: []cache.Kind{cache.Downloads}}, []string{"older tar"}},
		{"by size", cache.Filter{MaxSize: mebibyte + mebibyte/2}, []string{"old", "older tar"}},
		{"size of one kind", cache.Filter{Kinds: []cache.Kind{cache.Kernels}, MaxSize: mebibyte + mebibyte/2}, []string{"old"}},
		{"nothing to do", cache.Filter{MaxSize: 100 * mebibyte}, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := open(t)
			add(t, dir, cache.Kernels, "new", mebibyte, time.Hour)
			add(t, dir, cache.Kernels, "old", mebibyte, 4*time.Hour)
			add(t, dir, cache.Downloads, "older tar", mebibyte, 3*time.Hour)

			dry := test.filter
			dry.DryRun = true
			for _, filter := range []cache.Filter{dry, test.filter} {
				removed, err := dir.Prune(t.Context(), filter)
				if err != nil {
					t.Fatal(err)
				}
				var got []string
				for _, entry := range removed {
					got = append(got, entry.Key)
				}
				if diff := cmp.Diff(test.want, got); diff != "" {
					t.Errorf("dry run %v (-want +got):\n%s", filter.DryRun, diff)
				}
				entries, err := dir.List(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				left := 3
				if !filter.DryRun {
					left -= len(test.want)
				}
				if len(entries) != left {
					t.Errorf("dry run %v: %d entries left, want %d", filter.DryRun, len(entries), left)
				}
			}
		})
	}
}

func TestHasCountsAsUse(t *testing.T) {
	dir := open(t)
	add(t, dir, cache.Kernels, "k", 1, time.Hour)
	if !dir.Has(cache.Kernels, "k") || dir.Has(cache.Kernels, "other") {
		t.Fatal("Has is wrong")
	}
	removed, err := dir.Prune(t.Context(), cache.Filter{OlderThan: time.Minute})
	if err != nil || len(removed) != 0 {
		t.Errorf("pruned %v, %v", removed, err)
	}
}

func TestPruneSparesWhatIsInUse(t *testing.T) {
	for _, role := range []string{"hold", "lock"} {
		dir := open(t)
		add(t, dir, cache.Kernels, "k", 1, time.Hour)
		process, _ := other(t, dir.Root(), role)
		removed, err := dir.Prune(t.Context(), cache.Filter{})
		if err != nil || len(removed) != 0 {
			t.Errorf("%s: pruned %v, %v", role, removed, err)
		}
		kill(t, process)
		if removed, err = dir.Prune(t.Context(), cache.Filter{}); err != nil || len(removed) != 1 {
			t.Errorf("%s, after the process's death: pruned %v, %v", role, removed, err)
		}
	}
}

func TestExplainFullDisk(t *testing.T) {
	dir := open(t)
	err := dir.Explain("copy vmlinux", &fs.PathError{Op: "write", Path: "vmlinux", Err: syscall.ENOSPC})
	failure, ok := errors.AsType[*fault.Error](err)
	if !ok || failure.Class != fault.Infrastructure || !strings.Contains(failure.Advice, "zcvet cache prune") {
		t.Errorf("got %#v", err)
	}
	if again := dir.Explain("outer", err); again != err {
		t.Errorf("an explained error was explained again: %v", again)
	}
	if dir.Explain("nothing", nil) != nil {
		t.Error("an error out of nothing")
	}
}
