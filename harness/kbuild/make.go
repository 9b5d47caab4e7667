// SPDX-License-Identifier: BSD-3-Clause

package kbuild

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"syscall"
	"time"
)

// gracePeriod is how long make may take to put its targets away when it is told
// to stop, before it is killed.
const gracePeriod = 5 * time.Second

// maxKept bounds the output that is kept for the diagnosis, in lines. A series
// that warns in a common header prints tens of thousands.
const maxKept = 20000

// makeRun is one call of make.
type makeRun struct {
	dir    string // where it runs
	args   []string
	env    []string
	log    io.Writer         // gets everything that make prints; may be nil
	object func(file string) // called for each file that is compiled; may be nil
}

// makeError is a make that ran and failed.
type makeError struct {
	lines  []string // what it printed, progress lines left out
	status error
}

func (e *makeError) Error() string { return "make: " + e.status.Error() }
func (e *makeError) Unwrap() error { return e.status }

// errKilled means that make had to be killed and may have left half-written files.
var errKilled = errors.New("make was killed")

// step is one of make's progress lines: "  CC      net/core/skbuff.o".
var step = regexp.MustCompile(`^  ([A-Z0-9_]+) +(?:\[[A-Z]\] +)?(\S+)$`)

// run runs make and returns when it and all it started are gone. When ctx ends,
// make is told to stop, and killed if it does not.
func (m *makeRun) run(ctx context.Context) error {
	result := make(chan error, 1)
	go func() {
		// The kernel sends the parent-death signal when the *thread* that started
		// the child ends, so this one must last as long as make. Make passes the
		// signal on and removes the targets it was making.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		result <- m.runHere(ctx)
	}()
	return <-result
}

func (m *makeRun) runHere(ctx context.Context) error {
	reader, writer, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("make: %w", err)
	}
	defer reader.Close()
	command := exec.Command("make", m.args...)
	command.Dir = m.dir
	command.Env = m.env
	// One pipe for both, so that a message stays with the lines around it.
	command.Stdout, command.Stderr = writer, writer
	command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	if err := ctx.Err(); err != nil {
		_ = writer.Close()
		return err
	}
	err = command.Start()
	_ = writer.Close()
	if err != nil {
		return fmt.Errorf("make: %w", err)
	}
	group := -command.Process.Pid
	exited := make(chan struct{})
	killed := make(chan bool, 1)
	go func() {
		select {
		case <-exited:
			killed <- false
			return
		case <-ctx.Done():
		}
		_ = syscall.Kill(group, syscall.SIGTERM)
		select {
		case <-exited:
			killed <- false
		case <-time.After(gracePeriod):
			_ = syscall.Kill(group, syscall.SIGKILL)
			killed <- true
		}
	}()
	// Reading ends when the last process that can write has ended, not only make.
	lines := m.read(reader)
	err = command.Wait()
	close(exited)
	forced := <-killed
	if ctx.Err() != nil {
		if forced {
			return errors.Join(ctx.Err(), errKilled)
		}
		return ctx.Err()
	}
	if err != nil {
		return &makeError{lines: lines, status: err}
	}
	return nil
}

// read follows the output to its end.
func (m *makeRun) read(output io.Reader) []string {
	var kept []string
	reader := bufio.NewReader(output)
	for {
		line, err := reader.ReadString('\n')
		if line != "" {
			if m.log != nil {
				_, _ = io.WriteString(m.log, line) // a full disk must not stop the build's end
			}
			line = trimNewline(line)
			if match := step.FindStringSubmatch(line); match != nil {
				if m.object != nil && (match[1] == "CC" || match[1] == "AS") {
					m.object(match[2])
				}
			} else if len(kept) < maxKept {
				kept = append(kept, line)
			}
		}
		if err != nil {
			return kept
		}
	}
}

func trimNewline(line string) string {
	for len(line) > 0 && (line[len(line)-1] == '\n' || line[len(line)-1] == '\r') {
		line = line[:len(line)-1]
	}
	return line
}
