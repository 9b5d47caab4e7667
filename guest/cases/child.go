// SPDX-License-Identifier: BSD-3-Clause

package cases

import (
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/zcvet/zcvet/guest/notify"
	"github.com/zcvet/zcvet/guest/sys"
	"github.com/zcvet/zcvet/guest/trace"
)

// ChildMode is the argument that makes the agent run a child of a case: a
// process of its own with descriptors that the case hands on. The name of the
// child follows.
const ChildMode = "child"

// firstChildFile is the number of the first descriptor a child inherits.
const firstChildFile = 3

// Child is a function that runs in a process of its own.
type Child struct {
	name    string
	run     func(files []int) error
	program string
}

// In32Bit returns the child as a 32-bit task. The case must need ThirtyTwoBit.
func (c Child) In32Bit() Child {
	c.program = Agent32
	return c
}

var children []Child

// child registers a function that a case can run in another process. Files are
// the descriptors of the sockets it was given, in order.
func child(name string, run func(files []int) error) Child {
	c := Child{name: name, run: run, program: "/proc/self/exe"}
	children = append(children, c)
	return c
}

// ChildMain is the main function of a child process; it returns the exit code.
func ChildMain(name string, files int) int {
	for _, c := range children {
		if c.name != name {
			continue
		}
		inherited := make([]int, files)
		for i := range inherited {
			inherited[i] = firstChildFile + i
		}
		if err := c.run(inherited); err != nil {
			fmt.Fprintf(os.Stderr, "child %s: %v\n", name, err)
			return 1
		}
		return 0
	}
	fmt.Fprintf(os.Stderr, "no child is called %q\n", name)
	return 2
}

// RunChild runs a child with the sockets and waits until it has ended. What it
// prints becomes part of the log of the case. It ends the case when the child
// fails.
func (t *T) RunChild(c Child, sockets ...*Socket) {
	t.Helper()
	t.StartChild(c, sockets...)()
}

// StartChild starts a child with the sockets, and returns the function that waits
// for its end, which has to be called. Both end the case when they fail, as does
// a child that fails.
func (t *T) StartChild(c Child, sockets ...*Socket) (wait func()) {
	t.Helper()
	sys.Recorder().Mark(trace.Child, nil, c.name)
	files := []uintptr{0, 1, 2}
	for _, socket := range sockets {
		files = append(files, uintptr(socket.FD))
	}
	pid, err := syscall.ForkExec(c.program, []string{"agent", ChildMode, c.name, fmt.Sprint(len(sockets))},
		&syscall.ProcAttr{Files: files, Env: os.Environ()})
	t.Check(err, "start a child")
	return func() {
		t.Helper()
		var status unix.WaitStatus
		t.Check(again(func() error {
			_, err := unix.Wait4(pid, &status, 0, nil)
			return err
		}), "wait for a child")
		if !status.Exited() || status.ExitStatus() != 0 {
			t.Fatalf("the child %s failed: status %#x", c.name, uint32(status))
		}
	}
}

// Fork makes a process that shares nothing with this one but what a fork leaves
// it: the same descriptors, and the same memory until one of the two writes. It
// makes the calls in turn and ends. The returned function waits for it and ends
// the case when a call has failed.
func (t *T) Fork(calls ...notify.Call) (wait func()) {
	t.Helper()
	sys.Beyond("the calls of a forked process")
	child, errno := forkAndCall(calls)
	if errno != 0 {
		t.Fatalf("fork: %v", errno)
	}
	return func() {
		t.Helper()
		var status unix.WaitStatus
		t.Check(again(func() error {
			_, err := unix.Wait4(child, &status, 0, nil)
			return err
		}), "wait for the forked process")
		if !status.Exited() || status.ExitStatus() != 0 {
			t.Fatalf("the forked process: status %#x; it exits with the errno of the call that fails", uint32(status))
		}
	}
}

// forkAndCall forks. The child has one thread, whatever locks the others held,
// and no runtime: it must neither allocate nor grow its stack nor be preempted,
// so nothing here calls anything but system calls.
//
//go:norace
//go:nosplit
func forkAndCall(calls []notify.Call) (pid int, errno unix.Errno) {
	child, _, errno := unix.RawSyscall6(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
	if child != 0 || errno != 0 {
		return int(child), errno
	}
	for i := range calls {
		call := &calls[i]
		_, _, errno := unix.RawSyscall6(call.Number, call.Arguments[0], call.Arguments[1], call.Arguments[2],
			call.Arguments[3], call.Arguments[4], call.Arguments[5])
		if errno != 0 {
			unix.RawSyscall6(unix.SYS_EXIT_GROUP, uintptr(errno), 0, 0, 0, 0, 0)
		}
	}
	unix.RawSyscall6(unix.SYS_EXIT_GROUP, 0, 0, 0, 0, 0, 0)
	return 0, 0
}
