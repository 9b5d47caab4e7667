// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/zcvet/zcvet/harness/checkout"
	"github.com/zcvet/zcvet/harness/series/loretest"
	"github.com/zcvet/zcvet/harness/verdict"
)

// The tests in this file run the command as its users do, with real sources, real
// kernels and real machines, as a process of its own (TestMain provides it). They share the user's cache, so that a kernel is built
// once on a machine; the first of them takes as long as a first run does.

// outcome is what a run left behind.
type outcome struct {
	code   int
	output string // everything a person sees
	stdout string
	dir    string
	run    *verdict.Run // nil when the run left no verdict
}

// zcvet runs the command in an empty directory and returns how it ended.
func zcvet(t *testing.T, arguments ...string) outcome {
	t.Helper()
	if testing.Short() {
		t.Skip("needs kernels and virtual machines, which -short leaves out")
	}
	command, dir := start(t, arguments...)
	var screen screen
	command.Stdout, command.Stderr = screen.stream(&screen.stdout), screen.stream(nil)
	err := command.Run()
	if failed := (*exec.ExitError)(nil); err != nil && !errors.As(err, &failed) {
		t.Fatal(err)
	}
	got := outcome{code: command.ProcessState.ExitCode(), output: screen.all.String(), stdout: screen.stdout.String(), dir: filepath.Join(dir, "results", "latest")}
	if file, err := os.Open(filepath.Join(got.dir, "run.json")); err == nil {
		defer file.Close()
		if got.run, err = verdict.Read(file); err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("zcvet %s: exit %d\n%s", strings.Join(arguments, " "), got.code, got.output)
		}
	})
	return got
}

// screen takes both output streams of a command, which come at the same time.
type screen struct {
	lock        sync.Mutex
	all, stdout bytes.Buffer
}

// stream returns a writer to the screen that also keeps what it gets in a buffer
// of its own, unless that is nil.
func (s *screen) stream(own *bytes.Buffer) io.Writer {
	return writerFunc(func(p []byte) (int, error) {
		s.lock.Lock()
		defer s.lock.Unlock()
		if own != nil {
			own.Write(p)
		}
		return s.all.Write(p)
	})
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func start(t *testing.T, arguments ...string) (command *exec.Cmd, dir string) {
	t.Helper()
	root, err := checkout.Find()
	if err != nil {
		t.Fatal(err)
	}
	dir = t.TempDir()
	command = exec.CommandContext(t.Context(), "zcvet", arguments...)
	command.Dir = dir
	command.Env = append(os.Environ(), checkout.Variable+"="+root, "GITHUB_ACTIONS=")
	return command, dir
}

func (o outcome) requireCode(t *testing.T, code int) {
	t.Helper()
	if o.code != code {
		t.Fatalf("exit code %d, want %d", o.code, code)
	}
}

// requireSaid checks what a person gets to read.
func (o outcome) requireSaid(t *testing.T, phrases ...string) {
	t.Helper()
	for _, phrase := range phrases {
		if !strings.Contains(o.output, phrase) {
			t.Errorf("the output does not say %q", phrase)
		}
	}
}

func (o outcome) find(t *testing.T, id string) *verdict.Case {
	t.Helper()
	for i := range o.run.Cases {
		if o.run.Cases[i].ID == id {
			return &o.run.Cases[i]
		}
	}
	t.Fatalf("case %s is not in run.json", id)
	return nil
}

func testdata(name string) string { return filepath.Join("patches", "testdata", name) }

// narrow is the only case that meets the condition of the broken series.
const narrow = "counter/one-id-for-many-pieces/udp/ipv4/lo"

func TestStockKernelPassesAndSkipsWhatItLacks(t *testing.T) {
	got := zcvet(t, "run", "--kernel", "6.12", "--series", "none")
	got.requireCode(t, 0)
	for _, c := range got.run.Cases {
		switch {
		case c.Status == verdict.Pass:
		case c.Status == verdict.Skip && c.Detail == "":
			t.Errorf("%s is skipped without a reason", c.ID)
		case c.Status != verdict.Skip:
			t.Errorf("%s: %s: %s", c.ID, c.Status, c.Detail)
		}
		if strings.HasPrefix(c.Name, "scm/") && c.Status == verdict.Skip && !strings.Contains(c.Detail, "SCM_ZC_NOTIFICATION") {
			t.Errorf("%s is skipped because %q", c.ID, c.Detail)
		}
	}
	if got.run.Totals.Pass == 0 || got.run.Totals.Skip == 0 {
		t.Errorf("totals %+v", got.run.Totals)
	}
	got.requireSaid(t, "PASS")
	for _, name := range []string{"run.json", "results.ktap", "junit.xml", "report.md", "console.log", "kernel.config"} {
		if info, err := os.Stat(filepath.Join(got.dir, name)); err != nil || info.Size() == 0 {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestEveryRoadLeadsToTheSameKernel(t *testing.T) {
	if testing.Short() {
		t.Skip("needs kernel sources, which -short leaves out")
	}
	root, err := checkout.Find()
	if err != nil {
		t.Fatal(err)
	}
	mails, ids := loretest.Mails(t, filepath.Join(root, "patches", "6.12"))
	t.Setenv("ZCVET_LORE", loretest.Serve(t, mails))
	mailbox := filepath.Join(t.TempDir(), "series.mbox")
	if err := os.WriteFile(mailbox, loretest.Mbox(mails), 0o666); err != nil {
		t.Fatal(err)
	}
	want := ""
	for _, spec := range []string{"patches/6.12", "reference", "mbox:" + mailbox, ids[0]} {
		got := zcvet(t, "run", "--kernel", "6.12", "--series", spec, "--kernel-id")
		got.requireCode(t, 0)
		if want == "" {
			want = got.stdout
		}
		if got.stdout != want || len(strings.Fields(got.stdout)) != 1 {
			t.Errorf("--series %s gives kernel id %q, the directory %q", spec, got.stdout, want)
		}
	}
}

func TestBrokenSeries(t *testing.T) {
	for _, test := range []struct {
		series string
		code   int
		say    []string
		check  func(*testing.T, outcome)
	}{
		{
			"does-not-apply", 3,
			[]string{"udp: tidy udp_sendmsg", "net/ipv4/udp.c, hunk 3", "error: patch failed"},
			nil,
		},
		{
			"compile-error", 4,
			[]string{"net/core/sock.c:", "error:", "net: look at the error queue before parsing control messages"},
			nil,
		},
		{"no-init", 5, []string{"Kernel panic", "init"}, nil},
		{"panic-at-boot", 5, []string{"Kernel panic", "net:"}, nil},
		{"null-dereference", 6, []string{"NULL pointer dereference", "udp_sendmsg", narrow}, func(t *testing.T, got outcome) {
			crashed(t, got)
			s := got.run.Splats[0]
			if s.Kind != "oops" || s.Function != "udp_sendmsg" {
				t.Errorf("splat %s in %s", s.Kind, s.Function)
			}
		}},
		{"endless-loop", 6, []string{"udp_sendmsg", narrow}, func(t *testing.T, got outcome) {
			crashed(t, got)
			s := got.run.Splats[0]
			// Who notices first depends on which processor PID 1 is on: we, by
			// its silence, or the kernel's own detectors on the other one.
			kinds := []string{"hang", "rcu-stall", "lockup"}
			if !slices.Contains(kinds, s.Kind) || !strings.Contains(s.Text, "udp_sendmsg") {
				t.Errorf("splat %s, no backtrace of the loop:\n%s", s.Kind, s.Text)
			}
		}},
		{"warning", 6, []string{"WARNING", "udp_sendmsg", narrow}, func(t *testing.T, got outcome) {
			if c := got.find(t, narrow); c.Status != verdict.Fail {
				t.Errorf("the case during which the kernel warned is %s", c.Status)
			}
			blamed(t, got)
		}},
	} {
		t.Run(test.series, func(t *testing.T) {
			got := zcvet(t, "run", "--kernel", "6.12", "--series", testdata(test.series), "--suite", "counter", "--parallel", "1")
			got.requireCode(t, test.code)
			got.requireSaid(t, test.say...)
			if got.run == nil || got.run.Exit.Code != test.code {
				t.Fatalf("run.json does not say exit code %d", test.code)
			}
			if test.check != nil {
				test.check(t, got)
			}
		})
	}
}

// TestUserAccess has a series that touches user memory without the helpers: the
// cases crash, and again without SMAP they show what else there is to see.
func TestUserAccess(t *testing.T) {
	const suite = "limits/optmem-unread"
	got := zcvet(t, "run", "--kernel", "6.12", "--series", testdata("user-access"), "--suite", suite+",!nic-nosg,!veth")
	got.requireCode(t, 6)
	got.requireSaid(t, "supervisor write access of user address", "2 that crashed on touching user memory, again with SMAP off: 2 passed")
	for _, c := range got.run.Cases {
		if c.Proto != "udp" || c.Family != "ipv4" {
			if c.Status != verdict.Pass || c.Second != nil {
				t.Errorf("%s, which the series leaves alone, is %s: %s; second %+v", c.ID, c.Status, c.Detail, c.Second)
			}
			continue
		}
		if c.Status != verdict.Crash {
			t.Errorf("%s is %s: %s", c.ID, c.Status, c.Detail)
		}
		if c.Second == nil || c.Second.Leg != verdict.SMAPOff || c.Second.Status != verdict.Pass {
			t.Errorf("%s without SMAP: %+v", c.ID, c.Second)
		}
	}
	if len(got.run.Splats) != 2 {
		t.Errorf("%d splats", len(got.run.Splats))
	}
	for _, s := range got.run.Splats {
		if s.File != "net/socket.c" || s.Patch != got.run.Series.Patches[0].Subject || s.Leg != "" {
			t.Errorf("%s at %s:%d by patch %q, leg %q", s.Title, s.File, s.Line, s.Patch, s.Leg)
		}
	}

	off := zcvet(t, "run", "--kernel", "6.12", "--series", testdata("user-access"), "--suite", suite+",!nic-nosg,!veth", "--smap", "off")
	off.requireCode(t, 0)
	if !strings.HasSuffix(off.run.Machine.CPU, ",smap=off") || !strings.Contains(off.run.Command, "--smap off") {
		t.Errorf("cpu %q, command %q", off.run.Machine.CPU, off.run.Command)
	}
}

// configurations skips a test that needs kernels of other configurations or
// interfaces, each of which takes as long to build as the default one and more.
func configurations(t *testing.T) {
	t.Helper()
	if os.Getenv("ZCVET_TEST_CONFIGS") == "" {
		t.Skip("builds kernels that only make test-configs has time for")
	}
}

// TestCoverage has a series whose added lines one case executes, and another does
// not.
func TestCoverage(t *testing.T) {
	configurations(t)
	for _, test := range []struct {
		suite string
		code  int
		ran   bool // the lines of the condition
	}{
		{"counter/one-id-for-many-pieces,!veth,!nic*", 6, true},
		{"Z02", 0, false},
	} {
		got := zcvet(t, "run", "--kernel", "6.12", "--series", testdata("warning"), "--suite", test.suite, "--config", "coverage")
		got.requireCode(t, test.code)
		coverage := got.run.Coverage
		if coverage == nil || len(coverage.Lines) == 0 || len(coverage.Missing) > 0 {
			t.Fatalf("coverage %+v", coverage)
		}
		executed := 0
		for _, line := range coverage.Lines {
			if line.File != "net/ipv4/udp.c" || line.Patch != got.run.Series.Patches[0].Subject || line.Text == "" {
				t.Errorf("%+v", line)
			}
			if strings.Contains(line.Text, "WARN_ON_ONCE") && (line.Count > 0) != test.ran {
				t.Errorf("%s: %q was executed %d times", test.suite, line.Text, line.Count)
			}
			if line.Count > 0 {
				executed++
			}
		}
		if executed != coverage.Executed || len(coverage.Lines) != coverage.Executable {
			t.Errorf("%d of %d lines, %d of %d listed", coverage.Executed, coverage.Executable, executed, len(coverage.Lines))
		}
		if report, err := os.ReadFile(filepath.Join(got.dir, "report.md")); err != nil || !bytes.Contains(report, []byte("### Coverage")) {
			t.Errorf("report.md, %v, does not tell of the coverage", err)
		}
	}
}

// TestLeak has a series that forgets memory in one case.
func TestLeak(t *testing.T) {
	configurations(t)
	got := zcvet(t, "run", "--kernel", "6.12", "--series", testdata("memory-leak"), "--suite", "counter/one-id*,counter/consecutive-ids", "--config", "debug")
	got.requireCode(t, 6)
	got.requireSaid(t, "memory leak in udp_note_pieces", narrow)
	if len(got.run.Splats) != 1 {
		t.Fatalf("%d splats", len(got.run.Splats))
	}
	if s := got.run.Splats[0]; s.Kind != "leak" || s.Case != narrow || s.File != "net/ipv4/udp.c" || s.Patch != got.run.Series.Patches[0].Subject {
		t.Errorf("%s of case %q at %s:%d by patch %q", s.Kind, s.Case, s.File, s.Line, s.Patch)
	}
	for _, c := range got.run.Cases {
		if want := map[bool]verdict.Status{true: verdict.Fail, false: verdict.Pass}[c.ID == narrow]; c.Status != want {
			t.Errorf("%s is %s, want %s: %s", c.ID, c.Status, want, c.Detail)
		}
	}
}

// TestReferencePassesOnTheDebugKernel is the whole suite under KASAN and lockdep.
func TestReferencePassesOnTheDebugKernel(t *testing.T) {
	configurations(t)
	got := zcvet(t, "run", "--kernel", "6.12", "--series", "reference", "--config", "debug")
	got.requireCode(t, 0)
	for _, name := range []string{"kmemleak", "fault-injection"} {
		if !slices.ContainsFunc(got.run.Machine.Features, func(f verdict.Feature) bool { return f.Name == name && f.Here }) {
			t.Errorf("the debug kernel lacks %s", name)
		}
	}
}

// TestOlderInterfaces runs the whole suite on sound series that have the interfaces
// of v6 and v7.
func TestOlderInterfaces(t *testing.T) {
	configurations(t)
	root, err := checkout.Find()
	if err != nil {
		t.Fatal(err)
	}
	for _, abi := range []string{"v6", "v7"} {
		t.Run(abi, func(t *testing.T) {
			series := t.TempDir()
			for _, pattern := range []string{filepath.Join("patches", "6.12", "000[1-4]-*.patch"), filepath.Join(testdata(abi), "*.patch")} {
				patches, err := filepath.Glob(filepath.Join(root, pattern))
				if err != nil || len(patches) == 0 {
					t.Fatalf("%d patches match %s: %v", len(patches), pattern, err)
				}
				for _, patch := range patches {
					data, err := os.ReadFile(patch)
					if err != nil {
						t.Fatal(err)
					}
					if err := os.WriteFile(filepath.Join(series, filepath.Base(patch)), data, 0o644); err != nil {
						t.Fatal(err)
					}
				}
			}
			got := zcvet(t, "run", "--kernel", "6.12", "--series", series)
			got.requireCode(t, 0)
			if got.run.Series.ABI != abi {
				t.Errorf("the interface is taken for %q", got.run.Series.ABI)
			}
			for _, c := range got.run.Cases {
				if strings.HasPrefix(c.Name, "scm/") && c.Status == verdict.Skip {
					t.Logf("%s is skipped: %s", c.ID, c.Detail)
				}
			}
		})
	}
}

// crashed checks that one case crashed, that the splat names the line and the
// patch, and that every other case still got its turn.
func crashed(t *testing.T, got outcome) {
	t.Helper()
	for _, c := range got.run.Cases {
		switch {
		case c.ID == narrow && c.Status != verdict.Crash:
			t.Errorf("%s is %s, want crash", c.ID, c.Status)
		case c.ID != narrow && c.Status != verdict.Pass:
			t.Errorf("%s is %s: %s", c.ID, c.Status, c.Detail)
		}
	}
	if got.run.Machine.Restores != 1 {
		t.Errorf("%d restores, want 1", got.run.Machine.Restores)
	}
	blamed(t, got)
}

// blamed checks that every splat is put down to the case, the line and the patch.
func blamed(t *testing.T, got outcome) {
	t.Helper()
	if len(got.run.Splats) == 0 {
		t.Fatal("no splat in run.json")
	}
	for _, s := range got.run.Splats {
		if s.Case != narrow || s.File != "net/ipv4/udp.c" || s.Line == 0 || s.Patch != got.run.Series.Patches[0].Subject {
			t.Errorf("%s of case %q at %s:%d by patch %q", s.Kind, s.Case, s.File, s.Line, s.Patch)
		}
	}
}

// TestFuzzIsLoudAndCanBeRefused builds nothing: the series changes a header that
// half the kernel includes, and what matters is said before.
func TestFuzzIsLoudAndCanBeRefused(t *testing.T) {
	got := zcvet(t, "run", "--kernel", "6.12", "--series", testdata("fuzzy"), "--kernel-id")
	got.requireCode(t, 0)
	got.requireSaid(t, "WARNING", "FUZZ", "uapi-collision", "SO_DEVMEM_LINEAR")
	refused := zcvet(t, "run", "--kernel", "6.12", "--series", testdata("fuzzy"), "--no-fuzz")
	refused.requireCode(t, 3)
	refused.requireSaid(t, "fuzz")
	if refused.run.Exit.Class != "apply" {
		t.Errorf("exit %+v", refused.run.Exit)
	}
}

// TestKilledRunLeavesNothing kills the command with a signal it cannot handle, in
// the middle of its cases.
func TestKilledRunLeavesNothing(t *testing.T) {
	if testing.Short() {
		t.Skip("needs kernels and virtual machines, which -short leaves out")
	}
	zcvet(t, "run", "--kernel", "6.12", "--series", "none", "--suite", "Z02") // so that nothing has to be built
	command, dir := start(t, "run", "--kernel", "6.12", "--series", "none")
	temporary := t.TempDir()
	mark := "ZCVET_TEST_MARK=" + filepath.Base(temporary)
	command.Env = append(command.Env, "TMPDIR="+temporary, mark)
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	for !casesRun(filepath.Join(dir, "results", "latest", "console.log")) {
		select {
		case <-ctx.Done():
			_ = command.Process.Kill()
			t.Fatal("no case ever ran")
		case <-time.After(50 * time.Millisecond):
		}
	}
	if len(descendants(t, mark)) < 2 {
		t.Error("no QEMU runs: the test would prove nothing")
	}
	if err := command.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	_ = command.Wait()

	var left []string
	for range 50 { // five seconds, as promised
		if left = append(descendants(t, mark), sockets(t, command.Process.Pid)...); len(left) == 0 {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	if len(left) > 0 {
		t.Errorf("left behind: %s", strings.Join(left, ", "))
	}
	files, err := os.ReadDir(temporary)
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if file.Name() == "goimports" {
			continue // x/tools makes it in every test binary, which this zcvet is
		}
		t.Errorf("left behind: temporary file %s", file.Name())
	}
}

func casesRun(console string) bool {
	text, err := os.ReadFile(console)
	return err == nil && bytes.Count(text, []byte("zcvet: case ")) > 3
}

// descendants lists the processes that have mark in their environment.
func descendants(t *testing.T, mark string) []string {
	t.Helper()
	environments, err := filepath.Glob("/proc/[0-9]*/environ")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, path := range environments {
		environment, err := os.ReadFile(path)
		if err != nil || !bytes.Contains(environment, []byte(mark)) {
			continue
		}
		name, _ := os.ReadFile(filepath.Join(filepath.Dir(path), "comm"))
		found = append(found, strings.TrimSpace(string(name)))
	}
	return found
}

// sockets lists the abstract sockets that a process made for its machines.
func sockets(t *testing.T, pid int) []string {
	t.Helper()
	table, err := os.ReadFile("/proc/net/unix")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for line := range strings.Lines(string(table)) {
		if i := strings.Index(line, fmt.Sprintf("@zcvet-%d-", pid)); i >= 0 {
			found = append(found, strings.TrimSpace(line[i:]))
		}
	}
	return found
}
