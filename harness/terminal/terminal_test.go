// SPDX-License-Identifier: BSD-3-Clause

package terminal_test

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/zcvet/zcvet/harness/fault"
	"github.com/zcvet/zcvet/harness/progress"
	"github.com/zcvet/zcvet/harness/terminal"
	"github.com/zcvet/zcvet/harness/verdict"
)

var update = flag.Bool("update", false, "write the golden files anew")

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// screen is what a terminal shows after the bytes were printed: it knows
// carriage return, newline and "erase to the end of the line".
func screen(output string) string {
	var lines []string
	var line []rune
	column := 0
	runes := []rune(output)
	for i := 0; i < len(runes); i++ {
		switch {
		case runes[i] == '\n':
			lines, line, column = append(lines, string(line)), nil, 0
		case runes[i] == '\r':
			column = 0
		case strings.HasPrefix(string(runes[i:min(i+3, len(runes))]), "\x1b[K"):
			line = line[:min(column, len(line))]
			i += 2
		default:
			line = append(line[:min(column, len(line))], runes[i])
			column++
		}
	}
	return strings.Join(append(lines, string(line)), "\n")
}

// play is a whole run, as the command makes it. The clock is that of a synctest
// bubble: sleeping costs nothing and takes exactly as long as it says.
func play(ui *terminal.UI, run *verdict.Run, err error) {
	step := ui.Step("source")
	time.Sleep(3100 * time.Millisecond)
	step.Done("linux %s from %s", run.Kernel.Version, run.Kernel.Source)

	step = ui.Step("series")
	ui.Warn("patch 1 of 2 applied with fuzz:\nsock: support MSG_ZEROCOPY notifications\nlook at what became of it")
	step.Done("2 patches")

	step = ui.Step("build")
	// Between two ticks of the log, so that it is certain which comes first.
	time.Sleep(500 * time.Millisecond)
	for i := range 25 {
		step.Progress(progress.Update{Done: int64(i * 30), Total: 790, Unit: progress.Objects, What: "net/core/sock.c"})
		time.Sleep(time.Second)
	}
	if err != nil {
		step.Fail(err)
		ui.Error(err)
		ui.Summary(run)
		return
	}
	step.Done("790 objects")
	ui.Note("KVM is there but does not run guests; using TCG")

	step = ui.Step("cases")
	for i, c := range run.Cases {
		step.Progress(progress.Update{Done: int64(i), Total: int64(len(run.Cases)), Unit: progress.Cases, What: c.ID})
		time.Sleep(40 * time.Millisecond)
		ui.Case(c)
	}
	step.Done("%d cases", len(run.Cases))
	ui.Summary(run)
}

func theRun() *verdict.Run {
	run := &verdict.Run{
		Command: "zcvet run --kernel 6.12 --series patches/6.12 --seed 7", Seconds: 28.44,
		Kernel:  verdict.Kernel{Version: "6.12.95", Source: "debian linux-source-6.12"},
		Machine: verdict.Machine{Accel: "tcg"},
	}
	for _, link := range []string{"lo", "nic"} {
		run.Cases = append(run.Cases,
			verdict.Case{ID: "option/ignored/tcp/ipv4/" + link, Name: "option/ignored", Proto: "tcp", Family: "ipv4", Link: link, Level: verdict.Must, Status: verdict.Pass},
			verdict.Case{
				ID: "notify/capacity/tcp/ipv4/" + link, Name: "notify/capacity", Proto: "tcp", Family: "ipv4", Link: link, Level: verdict.Must,
				Status: verdict.Skip, Detail: "the kernel has no SCM_ZC_NOTIFICATION",
			})
	}
	return run
}

func passing() *verdict.Run {
	run := theRun()
	run.Decide(verdict.Policy{}, nil)
	return run
}

func failing() *verdict.Run {
	run := theRun()
	for i, link := range []string{"lo", "nic"} {
		run.Cases = append(run.Cases, verdict.Case{
			ID: "counter/failed-send/tcp/ipv4/" + link, Name: "counter/failed-send", Covers: []string{"Z11"}, Proto: "tcp", Family: "ipv4", Link: link,
			Level: verdict.Must, Status: verdict.Fail,
			Detail: fmt.Sprintf("after EFAULT the next send took id %d, want %d:\na failed send must not take an id", 4+i, 3+i),
			Log:    []string{"1", "2", "3", "4", "5", "6", "7", "8", "9", "10 \x1b[2J"},
		})
	}
	run.Cases = append(run.Cases,
		verdict.Case{
			ID: "poll/edge", Name: "poll/edge", Covers: []string{"Z41"}, Level: verdict.Should, Status: verdict.Timeout, Detail: "no edge within 5 s",
		},
		verdict.Case{
			ID: "notify/copy-out/tcp/ipv4/nic", Name: "notify/copy-out", Covers: []string{"N09"}, Proto: "tcp", Family: "ipv4", Link: "nic",
			Level: verdict.Must, Status: verdict.Crash, Detail: "the kernel oopsed",
		})
	run.Splats = []verdict.Splat{{
		Title: "BUG: supervisor write access of user address in __sock_cmsg_send", Kind: "oops", Case: "notify/copy-out/tcp/ipv4/nic",
		Function: "__sock_cmsg_send", File: "net/core/sock.c", Line: 2911, Patch: "sock: support notifications",
		Frames: []verdict.Frame{
			{Function: "zc_copy", File: "include/net/sock.h", Line: 3, Inlined: true},
			{Function: "__sock_cmsg_send", File: "net/core/sock.c", Line: 2911, Patch: "sock: support notifications"},
			{Function: "entry_SYSCALL_64_after_hwframe"},
		},
	}}
	run.Series.Findings = []verdict.Finding{{
		Kind: "uapi-collision", Title: "SCM_ZC_NOTIFICATION is 78, which SCM_DEVMEM_LINEAR has", Patch: "sock: support notifications",
		File: "include/uapi/asm-generic/socket.h", Line: 139, Level: verdict.Must,
	}}
	run.Decide(verdict.Policy{}, nil)
	return run
}

func broken() (*verdict.Run, error) {
	err := fmt.Errorf("build: %w", fault.New(fault.Build, "net/core/sock.c:12: 'x' undeclared").
		WithAdvice("the line is from patch 1, \"sock: support notifications\"").
		WithOutput("  CC net/core/sock.o\nnet/core/sock.c:12:2: error: 'x' undeclared\n"))
	run := &verdict.Run{Seconds: 28.1, Command: "zcvet run --kernel 6.12", Kernel: verdict.Kernel{Version: "6.12.95", Source: "debian linux-source-6.12"}}
	run.Decide(verdict.Policy{}, err)
	return run, err
}

func TestGolden(t *testing.T) {
	brokenRun, brokenErr := broken()
	for _, test := range []struct {
		name    string
		options terminal.Options
		run     *verdict.Run
		err     error
	}{
		{"pass-plain", terminal.Options{}, passing(), nil},
		{"pass-quiet", terminal.Options{Quiet: true}, passing(), nil},
		{"pass-tty", terminal.Options{TTY: true, Width: 60}, passing(), nil},
		{"fail-plain", terminal.Options{}, failing(), nil},
		{"fail-verbose", terminal.Options{Verbose: true}, failing(), nil},
		{"fail-tty", terminal.Options{TTY: true, Width: 100}, failing(), nil},
		{"fail-color", terminal.Options{Color: true}, failing(), nil},
		{"broken-plain", terminal.Options{}, brokenRun, brokenErr},
		{"broken-tty", terminal.Options{TTY: true}, brokenRun, brokenErr},
	} {
		t.Run(test.name, func(t *testing.T) {
			var out bytes.Buffer
			synctest.Test(t, func(*testing.T) {
				play(terminal.New(&out, test.options), test.run, test.err)
			})
			got := out.String()
			if test.options.TTY {
				got = screen(got)
			} else if strings.ContainsRune(got, '\r') {
				t.Error("carriage return in plain output")
			}
			if !test.options.Color && strings.ContainsRune(got, 0x1b) {
				t.Error("escape sequence in output without colour")
			}
			golden(t, test.name, got)
		})
	}
}

// The line of a running step is rewritten, never longer than the terminal, and
// a warning in between does not tear it.
func TestLiveLine(t *testing.T) {
	var out bytes.Buffer
	synctest.Test(t, func(t *testing.T) {
		ui := terminal.New(&out, terminal.Options{TTY: true, Width: 50})
		step := ui.Step("build")
		step.Progress(progress.Update{Done: 395, Total: 790, Unit: progress.Objects, What: "drivers/net/ethernet/something/very/long.c"})
		time.Sleep(250 * time.Millisecond)
		ui.Warn("careful")
		time.Sleep(150 * time.Millisecond)
		synctest.Wait()
		shown := screen(out.String())
		want := "WARNING: careful\nbuild    [============>           ] 395 of 790 o…"
		if shown != want {
			t.Errorf("got\n%s\nwant\n%s", shown, want)
		}
		step.Fail(errors.New("stop"))
	})
}

func TestUnknownTotal(t *testing.T) {
	var out bytes.Buffer
	synctest.Test(t, func(t *testing.T) {
		ui := terminal.New(&out, terminal.Options{})
		step := ui.Step("source")
		step.Progress(progress.Update{Done: 12_000_000, Unit: progress.Bytes, What: "linux-6.12.tar.xz"})
		time.Sleep(31 * time.Second)
		step.Done("fetched")
	})
	want := `source   12 MB  10.0 s  linux-6.12.tar.xz
source   12 MB  20.0 s  linux-6.12.tar.xz
source   12 MB  30.0 s  linux-6.12.tar.xz
source   fetched  31.0 s
`
	if got := out.String(); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

// Ending twice, and beginning a step while one is open, must be harmless: error
// paths do both.
func TestCarelessUse(t *testing.T) {
	var out bytes.Buffer
	synctest.Test(t, func(*testing.T) {
		ui := terminal.New(&out, terminal.Options{})
		first := ui.Step("one")
		second := ui.Step("two")
		first.Done("late")
		first.Progress(progress.Update{Done: 1})
		second.Done("in time")
		second.Fail(errors.New("too late"))
		ui.Error(nil)
	})
	if got, want := out.String(), "two      in time  0.0 s\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestErrorShowsTheTail(t *testing.T) {
	var out bytes.Buffer
	ui := terminal.New(&out, terminal.Options{})
	ui.Error(fault.New(fault.Boot, "no agent").WithOutput(strings.Repeat("line\n", 50) + "last \x1b[31mwords\n"))
	got := out.String()
	if !strings.Contains(got, "… 21 lines before") || !strings.Contains(got, "| last [31mwords") || strings.Count(got, "\n") > 36 {
		t.Errorf("got\n%s", got)
	}
}
