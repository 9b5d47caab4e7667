// SPDX-License-Identifier: BSD-3-Clause

package agent

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// system is what PID 1 asks of the kernel. It is narrow so that a test can stand
// in for the kernel: nothing else in this package may need to be PID 1.
type system interface {
	// Mount makes the directory target and mounts on it.
	Mount(source, target, kind string) error
	// SetSysctl writes a file below /proc/sys unless it holds the value.
	SetSysctl(name, value string) error
	// KernelLog opens the kernel's log, for writing.
	KernelLog() (*os.File, error)
	// StartWorker starts this program again as a worker. The files become its
	// descriptors 0, 1, 2 and so on; no other is passed on.
	StartWorker(files []int) (pid int, err error)
	// Wait waits for any child to end. The error is unix.ECHILD when there is
	// none.
	Wait() (pid int, status unix.WaitStatus, err error)
	// Signal sends a signal to a child.
	Signal(pid int, signal unix.Signal) error
	// Stacks describes where the kernel has the threads of a process.
	Stacks(pid int) []string
	// Tainted returns the kernel's taint flags.
	Tainted() (uint64, error)
	// PowerOff ends the machine; it returns only with an error.
	PowerOff() error
}

// kernel is the real system.
type kernel struct{}

func (kernel) Mount(source, target, kind string) error {
	if err := os.MkdirAll(target, 0o755); err != nil {
		return err
	}
	err := unix.Mount(source, target, kind, 0, "")
	if err != nil && !errors.Is(err, unix.EBUSY) { // busy: mounted already
		return fmt.Errorf("mount %s: %w", target, err)
	}
	return nil
}

func (kernel) SetSysctl(name, value string) error {
	path := filepath.Join("/proc/sys", name)
	// A setting from the command line may refuse to be written again.
	if before, err := os.ReadFile(path); err == nil && strings.TrimSpace(string(before)) == strings.TrimSpace(value) {
		return nil
	}
	return os.WriteFile(path, []byte(value), 0)
}

// KernelLog keeps the file from Go's poller, which every line that the kernel prints
// would wake.
func (kernel) KernelLog() (*os.File, error) {
	const name = "/dev/kmsg"
	fd, err := unix.Open(name, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}

func (kernel) StartWorker(files []int) (int, error) {
	inherited := make([]uintptr, len(files))
	for i, fd := range files {
		inherited[i] = uintptr(fd)
	}
	return syscall.ForkExec("/proc/self/exe", []string{"agent", WorkerMode}, &syscall.ProcAttr{
		// A preempting signal would interrupt a system call a case is
		// waiting in, and the kernel's answer would then depend on timing.
		Env:   []string{"GODEBUG=asyncpreemptoff=1"},
		Files: inherited,
	})
}

func (kernel) Wait() (int, unix.WaitStatus, error) {
	var status unix.WaitStatus
	for {
		pid, err := unix.Wait4(-1, &status, unix.WALL, nil)
		if !errors.Is(err, unix.EINTR) {
			return pid, status, err
		}
	}
}

func (kernel) Signal(pid int, signal unix.Signal) error { return unix.Kill(pid, signal) }

func (kernel) Stacks(pid int) []string {
	threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
	var lines []string
	for _, thread := range threads {
		call, _ := os.ReadFile(filepath.Join(thread, "syscall"))
		lines = append(lines, fmt.Sprintf("thread %s: system call %s", filepath.Base(thread), strings.TrimSpace(string(call))))
		// Empty without CONFIG_STACKTRACE.
		stack, _ := os.ReadFile(filepath.Join(thread, "stack"))
		for frame := range strings.Lines(string(stack)) {
			lines = append(lines, "    "+strings.TrimSpace(frame))
		}
	}
	return lines
}

func (kernel) Tainted() (uint64, error) {
	text, err := os.ReadFile("/proc/sys/kernel/tainted")
	if err != nil {
		return 0, err
	}
	return strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
}

// PowerOff restarts: a machine without ACPI cannot switch itself off, it would
// only halt, while QEMU ends with -no-reboot on the restart of any machine.
func (kernel) PowerOff() error {
	return unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
}
