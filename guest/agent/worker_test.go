// SPDX-License-Identifier: BSD-3-Clause

package agent

import (
	"net"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/zcvet/zcvet/guest/link"
	"github.com/zcvet/zcvet/guest/network"
)

// TestMain lets the test binary be the worker that kernel.StartWorker starts,
// and the child that a case in it starts.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && !strings.HasPrefix(os.Args[1], "-") {
		os.Exit(Main(os.Args))
	}
	os.Exit(m.Run())
}

// processes starts real workers; the rest of the kernel stays fake.
type processes struct{ *fakeSystem }

func (processes) StartWorker(files []int) (int, error)     { return kernel{}.StartWorker(files) }
func (processes) Wait() (int, unix.WaitStatus, error)      { return kernel{}.Wait() }
func (processes) Signal(pid int, signal unix.Signal) error { return kernel{}.Signal(pid, signal) }
func (processes) Stacks(pid int) []string                  { return kernel{}.Stacks(pid) }
func realAgent(t *testing.T, here *network.Namespace) *host {
	t.Helper()
	missing := map[network.Link]string{network.NIC: "no NIC in this test", network.NICNoSG: "nor this one", network.Veth: "nor a veth"}
	ours, theirs := net.Pipe()
	t.Cleanup(func() { ours.Close(); theirs.Close() })
	a := newAgent(processes{newFakeSystem(nil)}, &network.Network{Sender: here, Receiver: here, Missing: missing}, link.NewConn(theirs))
	a.debugfs = t.TempDir()
	go a.reaper.run()
	h := &host{t: t, agent: a, conn: link.NewConn(ours), served: make(chan error, 1)}
	go func() { h.served <- a.serve() }()
	return h
}

// TestRealWorker goes the whole way from PID 1 to a case in a process of its own
// and back.
func TestRealWorker(t *testing.T) {
	here, err := network.Current()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = here.Close() })
	h := realAgent(t, here)
	hello := decode[link.Hello](t, h.next(link.KindHello))
	if hello.Version != link.Version || hello.Release == "" || len(hello.Features) == 0 || len(hello.Instances) == 0 {
		t.Errorf("hello lacks something: version %d, release %q, %d features, %d instances",
			hello.Version, hello.Release, len(hello.Features), len(hello.Instances))
	}

	const here4, veth = "counter/shared-by-descriptors/udp/ipv4/lo", "counter/consecutive-ids/tcp/ipv4/veth"
	h.send(link.KindRun, link.Run{Instances: []string{here4, veth, "no/such-case"}})
	h.expectEnd(here4, "pass", "")
	h.expectEnd(veth, "skip", "nor a veth")
	h.expectEnd("no/such-case", "fail", "no case is called that")
	h.next(link.KindDone)

	// As the kernel does it in an oops.
	pid := h.agent.worker.pid
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	h.awaitReaped(pid)
	h.send(link.KindRun, link.Run{Instances: []string{here4}})
	h.expectEnd(here4, "pass", "")
	h.next(link.KindDone)

	pid = h.agent.worker.pid
	h.shutdown()
	h.awaitReaped(pid) // a worker without PID 1 ends by itself
}
