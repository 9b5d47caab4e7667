// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/zcvet/zcvet/harness/report"
	"github.com/zcvet/zcvet/harness/reproducer/reproducertest"
	"github.com/zcvet/zcvet/patches/mutants"
)

// compileReproducer makes the program that a directory of results names. There is
// none if it is a 32-bit program and gcc makes none here.
func compileReproducer(t *testing.T, source string) (program string) {
	t.Helper()
	program = filepath.Join(t.TempDir(), strings.TrimSuffix(filepath.Base(source), ".c"))
	text, err := os.ReadFile(source)
	if err != nil {
		t.Fatal(err)
	}
	if !reproducertest.Compile(t, program, text, "-s") {
		return ""
	}
	return program
}

// inShell runs lines in the shell of a machine, one at a time, and returns the
// screen.
func inShell(t *testing.T, lines []string, arguments ...string) string {
	t.Helper()
	command, _ := start(t, append([]string{"shell"}, arguments...)...)
	keys, err := command.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := command.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	var screen []byte
	chunk := make([]byte, 4096)
	for {
		n, err := out.Read(chunk)
		screen = append(screen, chunk[:n]...)
		if bytes.HasSuffix(screen, []byte("$ ")) && len(lines) > 0 {
			if _, err := io.WriteString(keys, lines[0]+"\r"); err != nil {
				t.Error(err)
			}
			lines = lines[1:]
		}
		if err != nil {
			break
		}
	}
	if err := command.Wait(); err != nil {
		t.Errorf("zcvet shell: %v", err)
	}
	return strings.ReplaceAll(string(screen), "\r", "")
}

// The programs show the faults on kernels that have them, and on no other.
func TestReproducersOnMutants(t *testing.T) {
	type program struct{ fault, source string }
	var programs []program
	for _, shown := range []struct{ faults, by string }{
		{
			"capacity_minus_one,range_start_off_by_one,lost_on_epipe,poll_misses_queue",
			"scm/fifo,content/fields,poll/error-while-pending,scm/failed-send/shut-down,!nic,!nic-nosg,!veth",
		},
		{"range_end_off_by_one", "vsock/shapes"},
		// Threads that wait for one another, and threads that run freely.
		{"lost_on_econnreset", "scm/failed-send/reset-while-waiting,!nic,!nic-nosg,!veth"},
		// A 32-bit task.
		{"compat_native_offset,compat_native_alignment", "scm/in-32-bit/empty-send,scm/in-32-bit/other-messages"},
		{"uring_completions_lost", "scm/io-uring-chain,!nic"},
		{"not_dequeued", "scm/many-threads,!nic,!nic-nosg,!veth"},
	} {
		got := zcvet(t, "mutate", "--kernel", "6.12", "--mutant", shown.faults, "--kills", "1", "--suite", shown.by)
		if got.code != 0 {
			t.Fatalf("exit %d, want 0: every mutant shows in a case", got.code)
		}
		for fault := range strings.SplitSeq(shown.faults, ",") {
			of, err := filepath.Glob(filepath.Join(got.dir, "reproducers", fault+"_*.c"))
			if err != nil || len(of) == 0 {
				t.Fatalf("%s: no program (%v)", fault, err)
			}
			programs = append(programs, program{fault, of[0]})
		}
	}
	series := revisions(t)("mutants", mutants.None)

	arguments := []string{"--kernel", "6.12", "--series", series}
	var lines []string
	want := map[string]int{}
	for _, p := range programs {
		program := compileReproducer(t, p.source)
		if program == "" {
			continue
		}
		arguments = append(arguments, "--with", program)
		for _, mutant := range []string{p.fault, mutants.None} {
			mark := fmt.Sprintf("%s on %s exits with", p.fault, mutant)
			lines = append(lines,
				"echo "+mutant+" > /sys/module/zcvet/parameters/mutant",
				fmt.Sprintf("/with/%s; echo %s $?", filepath.Base(program), mark))
			want[mark] = map[bool]int{true: 1}[mutant == p.fault]
		}
	}
	screen := inShell(t, append(lines, "exit"), arguments...)
	for mark, code := range want {
		if !strings.Contains(screen, fmt.Sprintf("\n%s %d\n", mark, code)) {
			t.Errorf("%s something other than %d:\n%s", mark, code, about(screen, mark))
		}
	}
}

// about returns what is on a screen between the prompt before a mark and the one
// behind it, the end of the screen if the mark is not there.
func about(screen, mark string) string {
	const prompt = "\n$ "
	before, after, found := strings.Cut(screen, mark)
	if !found {
		return screen[max(0, len(screen)-4096):]
	}
	_, after, _ = strings.Cut(after, "\n")
	if end := strings.Index(after, prompt); end >= 0 {
		after = after[:end]
	}
	return before[strings.LastIndex(before, prompt)+1:] + mark + "\n" + after
}

// A run names the program in run.json and in the mail, which says what else there
// is where no program is possible.
func TestReproducerOfARun(t *testing.T) {
	got := zcvet(t, "run", "--kernel", "6.12", "--series", "patches/testdata/null-dereference", "--suite", "counter/one-id-for-many-pieces")
	if got.run == nil {
		t.Fatal("no verdict")
	}
	programs := 0
	for _, c := range got.run.Cases {
		if report.Failed(&c) && c.Evidence != nil && c.Evidence.Reproducer != "" {
			programs++
			compileReproducer(t, filepath.Join(got.dir, filepath.FromSlash(c.Evidence.Reproducer)))
		}
	}
	if programs != 1 {
		t.Errorf("%d programs for one kind of failure", programs)
	}
	if mail, err := os.ReadFile(filepath.Join(got.dir, "report.txt")); err != nil || !strings.Contains(string(mail), "A C program that does this is attached") {
		t.Errorf("report.txt does not name the program: %v", err)
	}
}
