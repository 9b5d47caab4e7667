// SPDX-License-Identifier: BSD-3-Clause

package suite_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/zcvet/zcvet/guest/link"
	"github.com/zcvet/zcvet/harness/suite"
)

// behaviour is what happens in the fake guest when a case runs.
type behaviour func(*fakeVM, *link.Conn, string)

// laboratory makes fake machines: an agent in a goroutine that talks the real
// guest link, and a console that a behaviour can write to.
type laboratory struct {
	t         *testing.T
	instances []string
	behaviour map[string]behaviour
	// concurrent names the instances that say so of themselves.
	concurrent map[string]bool
	// noHello keeps the agent from coming up; its console shows boot.
	noHello bool
	// features are what the agent says it has. Leaks and counters are what its
	// kernel has gathered.
	features []link.Feature
	leaks    link.Leaks
	counters link.Counters
	boot     []string

	// memory is the RAM of the guests; traced are pages of it for Hello.Trace.
	memory []byte
	traced []uint64

	lock     sync.Mutex
	boots    int
	restores int
	nmis     int
	evidence []string
	calls    []string
	mutants  []string // what the runs asked for
	// ran lists what ran in each machine that ran anything, by their age, and
	// processors what they had.
	ran        [][]string
	processors []int
	open       int
}

func (l *laboratory) count(counter *int, by int) {
	l.lock.Lock()
	defer l.lock.Unlock()
	*counter += by
}

func (l *laboratory) Boot(_ context.Context, processors int, console func(string)) (suite.VM, error) {
	l.count(&l.boots, 1)
	return l.start(console, processors, true), nil
}

func (l *laboratory) start(console func(string), processors int, hello bool) *fakeVM {
	host, guest := net.Pipe()
	hostOfCases, worker := net.Pipe()
	vm := &fakeVM{
		lab: l, processors: processors, console: console, done: make(chan struct{}),
		host: host, guest: guest, hostOfCases: hostOfCases, worker: worker,
	}
	l.count(&l.open, 1)
	vm.pid1 = link.NewConn(guest)
	vm.agent.Go(vm.serve)
	vm.agent.Go(func() {
		for _, line := range l.boot {
			console(line)
		}
		if l.noHello {
			_ = vm.pid1.Send(link.KindLog, link.Log{Lines: []string{"the worker waits in do_futex"}})
			return
		}
		conn := link.NewConn(worker)
		if hello {
			body := link.Hello{Version: link.Version, Features: l.features, Trace: l.traced}
			for _, id := range l.instances {
				body.Instances = append(body.Instances, link.Instance{ID: id, Name: id, Level: "MUST", Concurrent: l.concurrent[id]})
			}
			if conn.Send(link.KindHello, body) != nil {
				return
			}
		}
		vm.run(conn)
	})
	return vm
}

type fakeVM struct {
	lab         *laboratory
	processors  int
	host, guest net.Conn
	pid1        *link.Conn // on guest

	hostOfCases, worker net.Conn

	console func(string)
	agent   sync.WaitGroup
	once    sync.Once
	done    chan struct{}
	err     error
	onNMI   func()
	idle    bool // its worker runs no more cases
	ran     int  // its place in lab.ran, from 1; 0 before it ran anything
}

// serve does what the host asks of PID 1.
func (vm *fakeVM) serve() {
	conn := vm.pid1
	for {
		message, err := conn.Receive()
		if err != nil {
			return
		}
		switch message.Kind {
		case link.KindShutdown:
			vm.stop(nil)
			return
		case link.KindLeaks:
			if conn.Send(link.KindLeaks, vm.lab.leaks) != nil {
				return
			}
		case link.KindCounters:
			if conn.Send(link.KindHeartbeat, nil) != nil || conn.Send(link.KindCounters, vm.lab.counters) != nil {
				return
			}
		}
	}
}

// run does what the host asks of the worker.
func (vm *fakeVM) run(conn *link.Conn) {
	for at := time.Duration(1); ; {
		message, err := conn.Receive()
		if err != nil {
			return
		}
		if message.Kind != link.KindRun {
			continue // a Reply, which no case waits for
		}
		run, err := link.Decode[link.Run](message)
		if err != nil {
			vm.lab.t.Error(err)
			return
		}
		vm.lab.lock.Lock()
		vm.lab.mutants = append(vm.lab.mutants, run.Parameter.Mutant)
		vm.lab.lock.Unlock()
		vm.note(run.Instances)
		for _, id := range run.Instances {
			vm.console("[    1.000000] " + link.StartMark(id))
			if conn.Send(link.KindCaseStart, link.CaseStart{ID: id, At: at * time.Second}) != nil {
				return
			}
			at++
			act, ok := vm.lab.behaviour[id]
			if !ok {
				act = ends("pass", "")
			}
			act(vm, conn, id)
			select {
			case <-vm.done:
				return
			default:
			}
			if vm.idle {
				return
			}
		}
		if conn.Send(link.KindDone, link.Done{Ran: len(run.Instances)}) != nil {
			return
		}
	}
}

// note enters what a Run asks of this machine into the laboratory's list.
func (vm *fakeVM) note(instances []string) {
	vm.lab.lock.Lock()
	defer vm.lab.lock.Unlock()
	if vm.ran == 0 {
		vm.lab.ran = append(vm.lab.ran, nil)
		vm.lab.processors = append(vm.lab.processors, vm.processors)
		vm.ran = len(vm.lab.ran)
	}
	vm.lab.ran[vm.ran-1] = append(vm.lab.ran[vm.ran-1], instances...)
}

// stop is the end of the fake QEMU.
func (vm *fakeVM) stop(err error) {
	vm.once.Do(func() {
		vm.err = err
		close(vm.done)
		for _, end := range []net.Conn{vm.host, vm.guest, vm.hostOfCases, vm.worker} {
			end.Close()
		}
	})
}

func (vm *fakeVM) Link() io.ReadWriter   { return vm.host }
func (vm *fakeVM) Cases() io.ReadWriter  { return vm.hostOfCases }
func (vm *fakeVM) Done() <-chan struct{} { return vm.done }
func (vm *fakeVM) Err() error            { return vm.err }

func (vm *fakeVM) Call(_ context.Context, method string, _ json.RawMessage) (any, error) {
	vm.lab.lock.Lock()
	defer vm.lab.lock.Unlock()
	vm.lab.calls = append(vm.lab.calls, method)
	if method == "refused" {
		return nil, errors.New("no such method")
	}
	return map[string]int{"answer": 42}, nil
}

func (vm *fakeVM) ReadMemory(p []byte, physical uint64) error {
	if int(physical)+len(p) > len(vm.lab.memory) {
		return errors.New("no such memory")
	}
	copy(p, vm.lab.memory[physical:])
	return nil
}

func (vm *fakeVM) InjectNMI(context.Context) error {
	vm.lab.count(&vm.lab.nmis, 1)
	if vm.onNMI != nil {
		vm.onNMI()
	}
	return nil
}

func (vm *fakeVM) Snapshot(context.Context) (suite.Snapshot, error) {
	return fakeSnapshot{vm.lab, vm.processors}, nil
}

func (vm *fakeVM) SaveEvidence(name string) error {
	vm.lab.lock.Lock()
	defer vm.lab.lock.Unlock()
	vm.lab.evidence = append(vm.lab.evidence, name)
	return nil
}

func (vm *fakeVM) Close() error {
	vm.stop(nil)
	vm.agent.Wait()
	vm.lab.count(&vm.lab.open, -1)
	return nil
}

type fakeSnapshot struct {
	lab        *laboratory
	processors int
}

func (s fakeSnapshot) Restore(_ context.Context, console func(string)) (suite.VM, error) {
	s.lab.count(&s.lab.restores, 1)
	return s.lab.start(console, s.processors, false), nil
}

func (fakeSnapshot) Close() error { return nil }

// end is what the agent does at the end of a case.
func (vm *fakeVM) end(conn *link.Conn, result link.CaseEnd) {
	vm.console("[    4.000000] " + link.EndMark)
	_ = conn.Send(link.KindCaseEnd, result)
}

// ends is a case that ends with a status.
func ends(status, detail string) behaviour {
	return func(vm *fakeVM, conn *link.Conn, id string) {
		_ = conn.Send(link.KindLog, link.Log{ID: id, Lines: []string{"noted by " + id}})
		vm.end(conn, link.CaseEnd{ID: id, Status: status, Detail: detail, Took: time.Millisecond})
	}
}

// spends is a case that fails because it cannot put back what it took away.
func spends(detail string) behaviour {
	return func(vm *fakeVM, conn *link.Conn, id string) {
		vm.idle = true
		vm.end(conn, link.CaseEnd{ID: id, Status: "fail", Detail: detail, Spent: true})
	}
}

// kills is a case that takes its worker along, which has sent so many frames in all;
// PID 1 says so before the last of them.
func kills(lost link.Lost, last ...string) behaviour {
	return func(vm *fakeVM, conn *link.Conn, id string) {
		vm.idle = true
		vm.console("[    4.000000] " + link.EndMark)
		_ = vm.pid1.Send(link.KindLog, link.Log{ID: id, Lines: []string{"SIGQUIT: quit"}})
		_ = vm.pid1.Send(link.KindLost, lost)
		for _, line := range last {
			_ = conn.Send(link.KindLog, link.Log{ID: id, Lines: []string{line}})
		}
	}
}

// prints is a case whose kernel prints lines before it goes on as next says.
func prints(next behaviour, lines ...string) behaviour {
	return func(vm *fakeVM, conn *link.Conn, id string) {
		for _, line := range lines {
			vm.console(line)
		}
		next(vm, conn, id)
	}
}

// dies is a case in which QEMU ends.
func dies(err error) behaviour {
	return func(vm *fakeVM, _ *link.Conn, _ string) { vm.stop(err) }
}

// hangs is a case that never ends; an NMI prints trace.
func hangs(trace ...string) behaviour {
	return func(vm *fakeVM, _ *link.Conn, _ string) {
		vm.lab.lock.Lock()
		vm.onNMI = func() {
			for _, line := range trace {
				vm.console(line)
			}
		}
		vm.lab.lock.Unlock()
		<-vm.done
	}
}
