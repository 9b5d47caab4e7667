// SPDX-License-Identifier: BSD-3-Clause

package cases

import (
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/zcvet/zcvet/guest/leak"
	"github.com/zcvet/zcvet/guest/link"
	"github.com/zcvet/zcvet/guest/notify"
)

// TestLeaksFailTheCase works on the kernel of this machine.
func TestLeaksFailTheCase(t *testing.T) {
	laid := layNetwork(t)
	var opened []int // by the case that runs
	closeOpened := func() error {
		for _, fd := range opened {
			_ = unix.Close(fd)
		}
		opened = nil
		return nil
	}
	socket := func(t *T) {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		t.Check(err, "socket")
		opened = append(opened, fd)
	}
	page := func(t *T) {
		var pipe [2]int
		t.Check(unix.Pipe2(pipe[:], unix.O_CLOEXEC), "pipe")
		opened = append(opened, pipe[:]...)
		memory := t.Memory(2)
		_, err := unix.Vmsplice(pipe[1], []unix.Iovec{{Base: &memory.Bytes()[0], Len: 10}}, 0)
		t.Check(err, "vmsplice")
	}
	charge := func(t *T) {
		// A datagram that nobody takes stays charged to whom it was sent to.
		to := t.SocketOf(SenderEnd, unix.AF_INET, unix.SOCK_DGRAM, 0)
		t.Check(unix.Bind(to.FD, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), "bind")
		from := t.SocketOf(SenderEnd, unix.AF_INET, unix.SOCK_DGRAM, 0)
		from.Connect(to)
		from.MustSend([]byte("x"), 0)
		t.Eventually("the datagram is there", func() bool {
			charged, err := to.memory()
			return err == nil && charged.receive > 0
		})
	}
	for _, test := range []struct {
		name   string
		run    func(*T)
		leaks  string
		sweep  func() error
		needs  string
		status Status
		detail string
	}{
		{name: "nothing", run: func(*T) {}, status: Pass},
		{name: "a socket", run: socket, needs: leak.Sockets, status: Fail, detail: "sockets are in use in the sender's namespace"},
		{name: "a socket in vain", run: socket, leaks: "because", status: Pass},
		{name: "a socket that is swept", run: socket, sweep: closeOpened, status: Pass},
		{name: "a page", run: page, needs: leak.Pages, status: Fail, detail: "1 of the case's 2 pages are unmapped and not free"},
		{name: "a page that is swept", run: page, sweep: closeOpened, status: Pass},
		{name: "unread data is no leak", run: charge, status: Pass},
	} {
		t.Run(test.name, func(t *testing.T) {
			e := &Environment{Network: laid, Counters: OpenCounters(laid), Sweep: test.sweep}
			t.Cleanup(e.Counters.Close)
			t.Cleanup(func() { _ = closeOpened() })
			if test.needs != "" {
				if err := e.Counters.Missing(test.needs); err != nil {
					t.Skip(err)
				}
			}
			awaitNoSockets(t, e.Counters)
			instance := Instance{Case: &Case{Name: "test/case", Leaks: test.leaks, run: test.run}}
			result := e.Run(instance, link.Parameters{CaseTimeout: time.Second}, func(line string) { t.Log(line) })
			if result.Status != test.status || !strings.Contains(result.Detail, test.detail) {
				t.Errorf("%s: %s, want %s: %s", result.Status, result.Detail, test.status, test.detail)
			}
		})
	}
}

// awaitNoSockets waits until the sockets that laid the network, which the kernel
// frees when it gets to it, are gone.
func awaitNoSockets(t *testing.T, counters *leak.Counters) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		count, err := counters.Take(false)
		if err != nil {
			t.Fatal(err)
		}
		if count.Sockets["sender"] == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("sockets of others: %v", count.Details)
		}
		time.Sleep(time.Millisecond)
	}
}

func TestMemoryOfASocket(t *testing.T) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = unix.Close(fds[0]), unix.Close(fds[1]) }()
	s := &Socket{FD: fds[0]}
	if charged, err := s.memory(); err != nil || charged != (memory{}) {
		t.Errorf("of a fresh socket: %+v, %v", charged, err)
	}
	if _, err := notify.Send(fds[0], &notify.Message{Buffers: [][]byte{make([]byte, 100)}}); err != nil {
		t.Fatal(err)
	}
	// Until its peer reads it, a datagram is charged to the sender.
	if charged, err := s.memory(); err != nil || charged.send < 100 || charged.option != 0 {
		t.Errorf("after a send of 100 bytes: %+v, %v", charged, err)
	}
}
