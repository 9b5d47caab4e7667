// SPDX-License-Identifier: BSD-3-Clause

package agent

import (
	"encoding/json"
	"errors"
	"fmt"
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

// processes starts a real worker; the rest of the kernel stays fake.
type processes struct {
	*fakeSystem
	worker int
}

func (p *processes) StartWorker(files []int) (pid int, err error) {
	p.worker, err = kernel{}.StartWorker(files)
	return p.worker, err
}

// Wait waits for the worker only: other tests have children as well.
func (p *processes) Wait() (int, unix.WaitStatus, error) {
	var status unix.WaitStatus
	pid, err := unix.Wait4(p.worker, &status, unix.WALL, nil)
	return pid, status, err
}

func (*processes) Signal(pid int, signal unix.Signal) error { return kernel{}.Signal(pid, signal) }
func (*processes) Stacks(pid int) []string                  { return kernel{}.Stacks(pid) }

// workerHost is the test's end of the link to a worker.
type workerHost struct {
	*host
	cases *link.Conn
}

// quietNetwork returns a network where nobody else has sockets, which a case would
// take for its own; without the right to make one, that of the test.
func quietNetwork(t *testing.T) *network.Namespace {
	t.Helper()
	namespace, err := network.NewNamespace()
	if errors.Is(err, unix.EPERM) {
		namespace, err = network.Current()
	} else if err == nil {
		err = namespace.SetUp("lo", true)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = namespace.Close() })
	return namespace
}

// serveWorker runs an agent whose worker is a process, without links but loopback.
func serveWorker(t *testing.T) *workerHost {
	t.Helper()
	return serveWorkerWithout(t, map[network.Link]string{network.NIC: "no NIC in this test", network.NICNoSG: "nor this one", network.Veth: "nor a veth"})
}

func serveWorkerWithout(t *testing.T, missing map[network.Link]string) *workerHost {
	t.Helper()
	here := quietNetwork(t)
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours := os.NewFile(uintptr(pair[0]), "cases")
	t.Cleanup(func() { ours.Close(); unix.Close(pair[1]) })
	system := newFakeSystem(t, nil)
	h := serveWith(t, system, func(a *Agent) {
		a.system, a.network, a.cases = &processes{fakeSystem: system}, &network.Network{Sender: here, Receiver: here, Missing: missing}, pair[1]
	})
	return &workerHost{host: h, cases: link.NewConn(ours)}
}

// next returns the next message of the worker, which has to be of that kind.
func (h *workerHost) next(kind link.Kind) *link.Message {
	h.t.Helper()
	for {
		message, err := h.cases.Receive()
		if err != nil {
			h.t.Fatalf("waiting for %s: %v", kind, err)
		}
		switch message.Kind {
		case kind:
			return message
		case link.KindLog:
		default:
			h.t.Fatalf("%s message %s where %s was due", message.Kind, message.Body, kind)
		}
	}
}

func (h *workerHost) run(run link.Run) {
	h.t.Helper()
	if err := h.cases.Send(link.KindRun, run); err != nil {
		h.t.Fatal(err)
	}
}

func (h *workerHost) expectCase(id, status, detail string) {
	h.t.Helper()
	if start := decode[link.CaseStart](h.t, h.next(link.KindCaseStart)); start.ID != id || start.At <= 0 {
		h.t.Errorf("%+v began where %s was due", start, id)
	}
	end := decode[link.CaseEnd](h.t, h.next(link.KindCaseEnd))
	if end.ID != id || end.Status != status || !strings.Contains(end.Detail, detail) {
		h.t.Errorf("case ended as %+v, want %s %s with %q", end, id, status, detail)
	}
}

const (
	byDescriptors = "counter/shared-by-descriptors/udp/ipv4/lo"
	onVeth        = "counter/consecutive-ids/tcp/ipv4/veth"
)

// TestRealWorker goes the whole way from the host to a case in a process of its own
// and back.
func TestRealWorker(t *testing.T) {
	h := serveWorker(t)
	go h.drain()
	hello := decode[link.Hello](t, h.next(link.KindHello))
	if hello.Version != link.Version || hello.Release == "" || len(hello.Features) == 0 || len(hello.Instances) == 0 {
		t.Errorf("hello lacks something: version %d, release %q, %d features, %d instances",
			hello.Version, hello.Release, len(hello.Features), len(hello.Instances))
	}
	h.run(link.Run{Instances: []string{byDescriptors, onVeth, "no/such-case"}})
	h.expectCase(byDescriptors, "pass", "")
	h.expectCase(onVeth, "skip", "nor a veth")
	h.expectCase("no/such-case", "fail", "no case is called that")
	if done := decode[link.Done](t, h.next(link.KindDone)); done.Ran != 3 {
		t.Errorf("%d cases ran", done.Ran)
	}
	h.run(link.Run{Instances: []string{byDescriptors}})
	h.expectCase(byDescriptors, "pass", "")
	h.next(link.KindDone)
	var marks strings.Builder
	for _, id := range []string{byDescriptors, onVeth, "no/such-case", byDescriptors} {
		fmt.Fprintf(&marks, "<4>%s\n<4>%s\n", link.StartMark(id), link.EndMark)
	}
	if got := h.system.printed(t); got != marks.String() {
		t.Errorf("console %q, want %q", got, marks.String())
	}
	h.shutdown()
}

// TestRealWorkerInASpentMachine has a case take down a device that it cannot raise,
// because it never was there. The worker runs nothing after that unless it is asked.
func TestRealWorkerInASpentMachine(t *testing.T) {
	const id = "removal/device-down/udp/ipv4/nic"
	h := serveWorkerWithout(t, nil)
	go h.drain()
	h.next(link.KindHello)
	h.run(link.Run{Instances: []string{id, byDescriptors}})
	h.next(link.KindCaseStart)
	end := decode[link.CaseEnd](t, h.next(link.KindCaseEnd))
	if end.ID != id || end.Status != "fail" || !end.Spent || !strings.Contains(end.Detail, "not as it was") {
		t.Errorf("case ended as %+v", end)
	}
	// The rest of that Run is not done, and has no end.
	h.run(link.Run{Instances: []string{byDescriptors}})
	h.expectCase(byDescriptors, "pass", "")
	if done := decode[link.Done](t, h.next(link.KindDone)); done.Ran != 1 {
		t.Errorf("the end of a Run of %d cases, want that of the second, which has one", done.Ran)
	}
	h.shutdown()
}

// TestRealWorkerThatIsLost has the worker end in ways that PID 1 has to report.
func TestRealWorkerThatIsLost(t *testing.T) {
	for _, test := range []struct {
		name    string
		message link.Kind
		body    any
		detail  string
	}{
		{"a mutant the kernel does not have", link.KindRun, link.Run{Instances: []string{byDescriptors}, Parameter: link.Parameters{Mutant: "unheard_of"}}, `"unheard_of"`},
		{"a run that is none", link.KindRun, 5, "run body"},
		{"an unexpected message", link.KindHello, nil, "unexpected hello message"},
		{"a reply nobody waits for", link.KindReply, link.Reply{Number: 4711}, "nobody waits for"},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := serveWorker(t)
			h.next(link.KindHello)
			if err := h.cases.Send(test.message, test.body); err != nil {
				t.Fatal(err)
			}
			lost := decode[link.Lost](t, h.host.next(link.KindLost))
			if lost.ID != "" || lost.Frames != 1 || !strings.Contains(lost.Detail, test.detail) {
				t.Errorf("lost as %+v, want %q", lost, test.detail)
			}
			h.shutdown()
		})
	}
}

// TestCallsAndReplies has calls of a case answered, in another order.
func TestCallsAndReplies(t *testing.T) {
	ours, theirs := net.Pipe()
	t.Cleanup(func() { ours.Close(); theirs.Close() })
	w := &worker{conn: link.NewConn(theirs), waiting: make(map[uint64]chan link.Reply)}
	obeyed := make(chan error, 1)
	go func() { obeyed <- w.obey() }()
	results := make(chan string, 3)
	call := func(method string) {
		var result string
		if err := w.Call(method, nil, &result); err != nil {
			result = "error: " + err.Error()
		}
		results <- method + " " + result
	}
	host := link.NewConn(ours)
	numbers := map[string]uint64{}
	for _, method := range []string{"first", "second", "third"} {
		go call(method)
		message, err := host.Receive()
		if err != nil {
			t.Fatal(err)
		}
		body := decode[link.Call](t, message)
		numbers[body.Method] = body.Number
	}
	for _, answer := range []struct {
		reply link.Reply
		want  string
	}{
		{link.Reply{Number: numbers["third"], Result: json.RawMessage(`"yes"`)}, "third yes"},
		{link.Reply{Number: numbers["first"], Error: "no such method"}, "first error: no such method"},
		{link.Reply{Number: numbers["second"], Result: json.RawMessage(`5`)}, "second error: decode the answer"},
	} {
		if err := host.Send(link.KindReply, answer.reply); err != nil {
			t.Fatal(err)
		}
		if got := <-results; !strings.HasPrefix(got, answer.want) {
			t.Errorf("got %q, want %q", got, answer.want)
		}
	}
	ours.Close()
	if err := <-obeyed; err == nil {
		t.Error("the end of the link was taken for success")
	}
}
