// SPDX-License-Identifier: BSD-3-Clause

package cases

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/zcvet/zcvet/guest/notify"
	"github.com/zcvet/zcvet/guest/sys"
)

// addressOnly is an address with a port for the kernel to choose.
func addressOnly(address netip.Addr) netip.AddrPort { return netip.AddrPortFrom(address, 0) }

// pollNow returns what poll reports at once when asked for nothing.
func (s *Socket) pollNow() int16 {
	s.t.Helper()
	polled := []unix.PollFd{{Fd: int32(s.FD)}}
	_, err := sys.Poll(polled, 0)
	s.t.Check(err, "poll")
	return polled[0].Revents
}

var _ = add(Case{
	Name:   "poll/error-while-pending",
	Doc:    "POLLERR is reported unasked while the error queue holds an entry, and no longer",
	Covers: []string{"Z40"},
	Axes:   Everywhere,
}, func(t *T) {
	queue := t.NewQueue()
	expect := func(want int16, when string) {
		t.Helper()
		if got := queue.Sender.pollNow(); got != want {
			t.Errorf("poll reports %#x %s, want %#x", got, when, want)
		}
	}
	expect(0, "with an empty queue")
	queue.Fill(2) // a notification, a timestamp, a notification
	for left := 3; left > 0; left-- {
		expect(unix.POLLERR, fmt.Sprintf("with %d entries left", left))
		expect(unix.POLLERR, "when asked again")
		_, err := notify.Next(queue.Sender.FD)
		t.Check(err, "read an entry")
	}
	expect(0, "after the last entry: an application would spin")
	queue.Sender.ExpectNoError()
})

// epollOn watches the sender for events and returns a function that waits at
// most so long for one, and gives its events or 0.
func epollOn(t *T, s *Socket, events uint32) (epoll int, wait func(time.Duration) uint32) {
	t.Helper()
	epoll, err := sys.EpollCreate1(unix.EPOLL_CLOEXEC)
	t.Check(err, "epoll_create1")
	t.Cleanup(func() { _ = sys.Close(epoll) })
	t.Check(sys.EpollCtl(epoll, unix.EPOLL_CTL_ADD, s.FD, &unix.EpollEvent{Events: events}), "epoll_ctl")
	return epoll, func(patience time.Duration) uint32 {
		t.Helper()
		var got [1]unix.EpollEvent
		var count int
		t.Check(again(func() (err error) {
			count, err = sys.EpollWait(epoll, got[:], int(patience/time.Millisecond))
			return err
		}), "epoll_wait")
		if count == 0 {
			return 0
		}
		return got[0].Events
	}
}

// declareEdges declares the case for one combination of epoll flags.
func declareEdges(name string, flags uint32) struct{} {
	return add(Case{
		Name:   "poll/" + name,
		Doc:    "each notification, even one merged into an entry nobody has read, wakes an edge-triggered waiter once",
		Covers: []string{"Z41"},
		Axes:   Everywhere,
	}, func(t *T) {
		queue := t.NewQueue()
		_, wait := epollOn(t, queue.Sender, flags)
		for round := range 3 {
			// Queue.Send returns when the notification is there.
			queue.Send()
			if got := wait(t.Patience()); got != unix.EPOLLERR {
				t.Fatalf("round %d: epoll reports %#x, want EPOLLERR alone", round, got)
			}
			if got := wait(0); got != 0 {
				t.Errorf("round %d: epoll reports %#x a second time: an edge is reported once", round, got)
			}
			if round == 1 {
				continue // the next one merges into what is unread
			}
			if entries := queue.Sender.Drain(); len(entries) != 1 {
				t.Errorf("round %d: the error queue held %v, want one entry", round, entries)
			}
			if got := wait(0); got != 0 {
				t.Errorf("round %d: epoll reports %#x for reading the queue", round, got)
			}
		}
	})
}

var (
	_ = declareEdges("edge-per-notification", unix.EPOLLET)
	_ = declareEdges("edge-per-notification-exclusive", unix.EPOLLET|unix.EPOLLEXCLUSIVE)
)

var _ = add(Case{
	Name:       "poll/sleepers-are-woken",
	Concurrent: true,
	Doc:        "a notification wakes those who sleep in poll and in epoll, and of exclusive waiters at least one",
	Covers:     []string{"Z40", "Z41"},
	Axes:       OnNIC,
}, func(t *T) {
	pair := t.Pair(noDelay)
	send := func() {
		t.Helper()
		t.NIC().Hold(true)
		data := t.Payload(500, 1)
		pair.Sender.MustSend(data, unix.MSG_ZEROCOPY)
		pair.Receiver.MustReceive(data)
		pair.Sender.AwaitAcknowledged()
	}
	send()
	t.sleep("poll", func() bool {
		pending, err := notify.Wait(pair.Sender.FD, t.Patience())
		return pending && err == nil
	})
	epollers := func(name string, flags uint32) <-chan struct{} {
		_, wait := epollOn(t, pair.Sender, flags)
		return t.sleep(name, func() bool { return wait(t.Patience()) == unix.EPOLLERR })
	}
	epollers("epoll", unix.EPOLLET)
	first := epollers("the first exclusive epoll", unix.EPOLLET|unix.EPOLLEXCLUSIVE)
	second := epollers("the second exclusive epoll", unix.EPOLLET|unix.EPOLLEXCLUSIVE)
	t.NIC().Hold(false)
	select { // whom of the two it wakes is the kernel's choice
	case <-first:
	case <-second:
	}
	pair.Sender.Collect(1)
	// Whoever still sleeps is next.
	send()
	t.NIC().Hold(false)
	<-first
	<-second
	pair.Sender.AwaitPending()
})

// sleep runs wait in a thread of its own and returns when that sleeps in the
// kernel. The channel is closed when it is awake. It fails the case if wait
// returns false. It ends the case.
func (t *T) sleep(name string, wait func() bool) (awake <-chan struct{}) {
	t.Helper()
	thread, done := make(chan int), make(chan struct{})
	t.Go(func() {
		defer close(done)
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		thread <- unix.Gettid()
		if !wait() {
			t.Errorf("%s was not woken by a notification, whose reader would sleep for ever", name)
		}
	})
	file := fmt.Sprintf("/proc/self/task/%d/syscall", <-thread)
	t.Eventually(name+" sleeps", func() bool {
		text, err := os.ReadFile(file)
		t.Check(err, "look at a thread")
		number, _, _ := strings.Cut(string(text), " ")
		return slices.Contains(sleepingCalls, number)
	})
	return done
}

// sleepingCalls are the numbers of the system calls a waiter sleeps in.
var sleepingCalls = []string{
	fmt.Sprint(unix.SYS_POLL), fmt.Sprint(unix.SYS_PPOLL), fmt.Sprint(unix.SYS_EPOLL_WAIT), fmt.Sprint(unix.SYS_EPOLL_PWAIT),
}

var _ = add(Case{
	Name:   "poll/one-shot",
	Doc:    "a one-shot waiter is woken once and stays silent until it is armed again, and then learns what is pending",
	Covers: []string{"Z41"},
	Axes:   Everywhere,
}, func(t *T) {
	queue := t.NewQueue()
	const flags = unix.EPOLLET | unix.EPOLLONESHOT
	epoll, wait := epollOn(t, queue.Sender, flags)
	queue.Send()
	if got := wait(t.Patience()); got != unix.EPOLLERR {
		t.Fatalf("epoll reports %#x, want EPOLLERR alone", got)
	}
	queue.Send()
	queue.Send()
	if got := wait(0); got != 0 {
		t.Errorf("epoll reports %#x before the waiter was armed again", got)
	}
	t.Check(sys.EpollCtl(epoll, unix.EPOLL_CTL_MOD, queue.Sender.FD, &unix.EpollEvent{Events: flags}), "epoll_ctl")
	if got := wait(t.Patience()); got != unix.EPOLLERR {
		t.Errorf("epoll reports %#x after the waiter was armed again, want EPOLLERR: three notifications are pending", got)
	}
	queue.Sender.Collect(3)
})

var _ = add(Case{
	Name:   "poll/real-error",
	Doc:    "a socket error and pending notifications both raise POLLERR, and each is told by its own means",
	Covers: []string{"Z42"},
	Axes:   Everywhere,
}, func(t *T) {
	pair := t.Pair(noDelay)
	sendAndAwait(t, pair)
	want := unix.ECONNREFUSED
	if t.Proto == TCP {
		want = unix.ECONNRESET
		// Closing with no time to linger resets the connection.
		t.Check(sys.SetsockoptLinger(pair.Receiver.FD, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}), "SO_LINGER")
		pair.Receiver.Close()
	} else {
		pair.Receiver.Close()
		// Nobody listens any more, which the peer reports by ICMP.
		pair.Sender.MustSend(t.Payload(100, 1), 0)
	}
	// A hang-up would be another way to learn of it; datagrams have none.
	pair.Sender.awaitError(want)
	if got := pair.Sender.pollNow(); got&unix.POLLERR == 0 {
		t.Errorf("poll reports %#x without POLLERR: reading the error took the notification with it", got)
	}
	pair.Sender.Collect(1)
	if got := pair.Sender.pollNow(); got&unix.POLLERR != 0 {
		t.Errorf("poll reports %#x with neither error nor notification left: an application would spin", got)
	}

	if t.Proto == UDP {
		// The other way round: an error with an empty queue.
		pair.Sender.MustSend(t.Payload(100, 1), 0)
		pair.Sender.AwaitPending()
		if entry, err := notify.Next(pair.Sender.FD); !errors.Is(err, unix.EAGAIN) {
			t.Errorf("the error queue gives %v, %v for an error that is none of its entries, want EAGAIN", entry, err)
		}
		if _, err := pair.Sender.Send(t.Payload(100, 1), 0); !errors.Is(err, want) {
			t.Errorf("the next send: %v, want %v: the error was lost by looking for notifications", err, want)
		}
	}
})
