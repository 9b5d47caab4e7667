// SPDX-License-Identifier: BSD-3-Clause

package agent

import (
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/zcvet/zcvet/guest/cases"
	"github.com/zcvet/zcvet/guest/debugfs"
	"github.com/zcvet/zcvet/guest/link"
	"github.com/zcvet/zcvet/guest/network"
	"github.com/zcvet/zcvet/guest/processor"
)

// ShellMode is the argument with which PID 1 starts an interactive shell instead
// of serving the host; the kernel passes what follows "--" on its command line.
const ShellMode = "shell"

// exitUsage is the exit code of an agent that was started the wrong way.
const exitUsage = 2

// garbagePercent lets the heap grow to five times of what is in use, which is a
// few megabytes, before memory is collected: the guest has memory, and little time.
const garbagePercent = 400

// Main is the agent's main function: it returns the exit code, if it returns.
func Main(arguments []string) int {
	debug.SetGCPercent(garbagePercent)
	mode := ""
	if len(arguments) > 1 {
		mode = arguments[1]
	}
	if mode == WorkerMode {
		return workerFailed(Worker())
	}
	if mode == cases.ChildMode && len(arguments) == 4 {
		files, err := strconv.Atoi(arguments[3])
		if err != nil {
			fmt.Fprintf(os.Stderr, "zcvet agent: %v\n", err)
			return exitUsage
		}
		return cases.ChildMain(arguments[2], files)
	}
	if mode == cases.TaskMode {
		recorded := len(arguments) == 3 && arguments[2] == cases.TaskRecorded
		return cases.TaskMain(recorded, os.Stdin, os.Stdout)
	}
	if err := mayBeInit(os.Getpid()); err != nil {
		fmt.Fprintf(os.Stderr, "zcvet agent: %v\n", err)
		return exitUsage
	}
	if mode == ShellMode {
		report(Shell(kernel{}))
	} else {
		report(initialise(kernel{}))
	}
	// An init that returns would panic the kernel, which the host would take
	// for a crash of the kernel under test.
	report(kernel{}.PowerOff())
	select {}
}

// report prints what went wrong on the console, for the case that the guest link
// cannot carry it.
func report(err error) {
	if err != nil {
		fmt.Fprintf(os.Stderr, "zcvet agent: %v\n", err)
	}
}

// mayBeInit refuses what would fail later with a stranger message.
func mayBeInit(pid int) error {
	if pid != 1 {
		return fmt.Errorf("runs only as PID 1 of the guest, here it is PID %d; it is started by the initramfs that zcvet builds", pid)
	}
	if loader, err := dynamicLoader(); err != nil {
		return err
	} else if loader {
		return errors.New("is linked dynamically, and an initramfs has no libraries; build it with CGO_ENABLED=0")
	}
	return nil
}

// atBase is AT_BASE of the auxiliary vector: where the dynamic loader is mapped,
// 0 for a static program.
const atBase = 7

func dynamicLoader() (bool, error) {
	vector, err := unix.Auxv()
	if err != nil {
		return false, fmt.Errorf("read the auxiliary vector: %w", err)
	}
	for _, entry := range vector {
		if entry[0] == atBase {
			return entry[1] != 0, nil
		}
	}
	return false, nil
}

// initialise is the life of PID 1 between start and power-off.
func initialise(s system) error {
	if err := boot(s); err != nil {
		return err
	}
	if err := processor.Share(); err != nil {
		return err
	}
	fd, err := openPort(portClass, link.PortName, portPatience)
	if err != nil {
		return err
	}
	host := link.NewConn(newPort(fd))
	// The host hears of errors here, as there is no agent yet.
	refuse := func(err error) error {
		_ = host.Send(link.KindFatal, link.Fatal{Error: err.Error()})
		return err
	}
	cases, err := openPort(portClass, link.CasesPortName, portPatience)
	if err != nil {
		return refuse(err)
	}
	namespaces, err := network.New()
	if err != nil {
		return refuse(err)
	}
	a := newAgent(s, namespaces, host, cases)
	a.lay = namespaces.Lay
	return a.serve()
}

func newAgent(s system, namespaces *network.Network, host *link.Conn, cases int) *Agent {
	return &Agent{
		system: s, network: namespaces, lay: func() error { return nil }, host: host, cases: cases,
		debugfs:      debugfs.Root,
		killPatience: killPatience, readyPatience: readyPatience, lookInterval: lookInterval,
		fromHost: make(chan received),
	}
}
