// SPDX-License-Identifier: BSD-3-Clause

package cases

import (
	"flag"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"syscall"
	"testing"

	"github.com/zcvet/zcvet/guest/link"
	"github.com/zcvet/zcvet/guest/network"
)

var seed = flag.Int64("seed", 1, "seed of the cases that run on this machine")

// ownNamespaces marks the process that TestMain started.
const ownNamespaces = "ZCVET_TEST_OWN_NAMESPACES"

// TestMain starts the test binary again in namespaces of its own when it may: a
// thread that enters one is not enough, because the runtime starts new threads
// from others.
func TestMain(m *testing.M) {
	if len(os.Args) == 4 && os.Args[1] == ChildMode {
		files, err := strconv.Atoi(os.Args[3])
		if err != nil {
			panic(err)
		}
		os.Exit(ChildMain(os.Args[2], files))
	}
	if len(os.Args) > 1 && os.Args[1] == TaskMode {
		os.Exit(TaskMain(slices.Contains(os.Args, TaskRecorded), os.Stdin, os.Stdout))
	}
	if os.Geteuid() != 0 || os.Getenv(ownNamespaces) != "" {
		os.Exit(m.Run())
	}
	again := exec.Command("/proc/self/exe", os.Args[1:]...)
	again.Env = append(os.Environ(), ownNamespaces+"=1")
	again.Stdin, again.Stdout, again.Stderr = os.Stdin, os.Stdout, os.Stderr
	again.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	runtime.LockOSThread() // Pdeathsig is about the thread
	if err := again.Start(); err != nil {
		// No namespaces here: the tests that need them say so.
		os.Exit(m.Run())
	}
	if err := again.Wait(); err != nil {
		os.Exit(1)
	}
}

// layNetwork lays the network in the namespaces of this test, or skips it.
func layNetwork(t *testing.T) *network.Network {
	t.Helper()
	if os.Getenv(ownNamespaces) == "" {
		t.Skip("needs root and namespaces of its own")
	}
	laid, err := network.Setup()
	if err != nil {
		t.Skipf("no network in namespaces on this machine: %v", err)
	}
	t.Cleanup(laid.Close)
	return laid
}

// TestOnThisKernel runs the cases on the kernel of this machine, on loopback and
// a veth pair in namespaces of their own. It is how a case is written in
// seconds; what counts is the run in the virtual machine.
func TestOnThisKernel(t *testing.T) {
	laid := layNetwork(t)
	environment := &Environment{Network: laid, Counters: OpenCounters(laid)}
	for _, instance := range Instances() {
		t.Run(instance.ID(), func(t *testing.T) {
			result := environment.Run(instance, link.Parameters{Seed: *seed, TimeScale: 1}, func(line string) { t.Log(line) })
			switch result.Status {
			case Fail:
				t.Errorf("%s", result.Detail)
			case Skip:
				t.Skip(result.Detail)
			}
		})
	}
}
