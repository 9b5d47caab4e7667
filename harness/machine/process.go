// SPDX-License-Identifier: BSD-3-Clause

package machine

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// parent runs functions on one operating-system thread that lives as long as
// the process. The kernel delivers Pdeathsig when the *thread* that forked ends,
// so a child started from an ordinary goroutine could be killed because the Go
// runtime retired a thread.
var parent = sync.OnceValue(func() chan<- func() {
	work := make(chan func())
	go func() {
		runtime.LockOSThread()
		for f := range work {
			f()
		}
	}()
	return work
})

// process is a child that never outlives this process, however either dies.
type process struct {
	command *exec.Cmd
	stderr  *boundedBuffer
	done    chan struct{}
	waitErr error // valid once done is closed
}

// startProcess runs path. The files become descriptors 3, 4, … of the child;
// the caller keeps its own.
func startProcess(path string, arguments []string, files []*os.File) (*process, error) {
	p := &process{
		command: exec.Command(path, arguments...),
		stderr:  &boundedBuffer{limit: 64 << 10},
		done:    make(chan struct{}),
	}
	p.command.Stderr = p.stderr
	p.command.Stdout = p.stderr
	p.command.ExtraFiles = files
	p.command.WaitDelay = time.Second
	p.command.SysProcAttr = &syscall.SysProcAttr{
		Pdeathsig: unix.SIGKILL,
		// Control-C on the terminal is for us; we end the child in order.
		Setpgid: true,
	}
	started := make(chan error)
	parent() <- func() { started <- p.command.Start() }
	if err := <-started; err != nil {
		return nil, err
	}
	go func() {
		defer close(p.done)
		p.waitErr = p.command.Wait()
	}()
	return p, nil
}

// kill ends the child and waits until it is gone.
func (p *process) kill() {
	// An error means that it is gone already.
	_ = p.command.Process.Kill()
	<-p.done
}

// output is what the child wrote to its standard streams.
func (p *process) output() string { return strings.TrimSpace(p.stderr.String()) }

// status describes the end of the child; only after done.
func (p *process) status() string {
	if exit, ok := errors.AsType[*exec.ExitError](p.waitErr); ok {
		return exit.String()
	}
	if p.waitErr != nil {
		return p.waitErr.Error()
	}
	return "exit status 0"
}

// signal is the signal that ended the child, 0 if it exited; only after done.
func (p *process) signal() syscall.Signal {
	if status, ok := p.command.ProcessState.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return status.Signal()
	}
	return 0
}

// boundedBuffer keeps the first bytes written to it.
type boundedBuffer struct {
	lock   sync.Mutex
	limit  int
	buffer bytes.Buffer
}

func (b *boundedBuffer) Write(p []byte) (int, error) {
	b.lock.Lock()
	defer b.lock.Unlock()
	if room := b.limit - b.buffer.Len(); room > 0 {
		b.buffer.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}

func (b *boundedBuffer) String() string {
	b.lock.Lock()
	defer b.lock.Unlock()
	return b.buffer.String()
}

// socketPair returns two connected stream sockets, close-on-exec: ours, ready
// for Go's poller, and the one for the child.
func socketPair(name string) (ours *os.File, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: socketpair: %w", name, err)
	}
	if err := unix.SetNonblock(fds[0], true); err != nil {
		_ = unix.Close(fds[0])
		_ = unix.Close(fds[1])
		return nil, nil, fmt.Errorf("%s: %w", name, err)
	}
	return os.NewFile(uintptr(fds[0]), name), os.NewFile(uintptr(fds[1]), name+" of QEMU"), nil
}
