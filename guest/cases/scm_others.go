// SPDX-License-Identifier: BSD-3-Clause

package cases

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/zcvet/zcvet/guest/network"
	"github.com/zcvet/zcvet/guest/notify"
	"github.com/zcvet/zcvet/guest/sys"
)

// order describes entries of the error queue by kind, in their order: "time
// [1,1] time". It tells nothing about a time but that it is one.
func order(entries []notify.Notification) string {
	var kinds []string
	for _, entry := range entries {
		switch {
		case entry.Zerocopy():
			kinds = append(kinds, ranges([]notify.Notification{entry}))
		case entry.Origin == notify.OriginTimestamping:
			kinds = append(kinds, "time")
		default:
			kinds = append(kinds, fmt.Sprintf("error %d of origin %d", entry.Errno, entry.Origin))
		}
	}
	if kinds == nil {
		return "nothing"
	}
	return strings.Join(kinds, " ")
}

var _ = add(Case{
	Name:   "scm/rest-keeps-places",
	Doc:    "what a request leaves in the queue, notifications beyond the capacity and everything else, keeps its order",
	Covers: []string{"N05", "N01"},
	Axes:   Everywhere,
	Needs:  scm,
}, func(t *T) {
	queue := t.NewQueue()
	queue.Separate()
	queue.Fill(4)
	queue.Separate()
	var ledger notify.Ledger
	entries := queue.Carry(2, 0)
	expectRanges(t, entries, "[0,0] [1,1]", "capacity is 2")
	ledger.Add(entries...)
	left := queue.Sender.Drain()
	const want = "time time time [2,2] time [3,3] time"
	if got := order(left); got != want {
		t.Errorf("in the queue were expected %s, were %s: whoever reads it takes one send for another", want, got)
	}
	queue.Account(&ledger, left...)
	queue.Finish(&ledger)
})

var _ = add(Case{
	Name:   "scm/local-errors-stay",
	Doc:    "an error of the sender's own host in the queue is passed over and stays",
	Covers: []string{"N05"},
	Axes:   Everywhere.For(UDP).On(network.NIC, network.NICNoSG, network.Veth),
	Needs:  scm,
}, func(t *T) {
	queue := t.NewQueue()
	receiveErrors(queue.Sender)
	dontFragment(t, queue.Sender)
	tooLong := func() {
		t.Helper()
		if _, err := queue.Sender.Send(make([]byte, 3000), 0); !errors.Is(err, unix.EMSGSIZE) {
			t.Fatalf("a datagram longer than the path allows: EMSGSIZE was expected, came %v", err)
		}
		queue.Edges.Wait("the local error of a datagram that is too long")
		takeError(t, queue.Sender, unix.EMSGSIZE)
	}
	queue.Send()
	tooLong()
	queue.Send()
	tooLong()
	expectRanges(t, queue.Carry(4, 0), "[0,0] [1,1]", "one in front of each error")
	want := fmt.Sprintf("error %d of origin 1 error %[1]d of origin 1", unix.EMSGSIZE)
	if got := order(queue.Sender.Drain()); got != want {
		t.Errorf("in the queue were expected %s, were %s: the application never hears why its datagram was lost", want, got)
	}
})

// dontFragment makes a datagram that is longer than the path allows an error. It
// ends the case.
func dontFragment(t *T, s *Socket) {
	t.Helper()
	if t.Family == network.IPv6 {
		SetOption(unix.SOL_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DO)(s)
		SetOption(unix.SOL_IPV6, unix.IPV6_DONTFRAG, 1)(s)
		return
	}
	SetOption(unix.SOL_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO)(s)
}

// takeError takes the error that the socket would report next, if it is this
// one. It ends the case.
func takeError(t *T, s *Socket, want unix.Errno) {
	t.Helper()
	value, err := sys.GetsockoptInt(s.FD, unix.SOL_SOCKET, unix.SO_ERROR)
	t.Check(err, "SO_ERROR")
	if value != 0 && unix.Errno(value) != want {
		t.Errorf("SO_ERROR is %v where %v or nothing was expected", unix.Errno(value), want)
	}
}

// walkBound is how many entries of the error queue one call may look at. The
// walk holds the queue's lock, with interrupts off, and what is in the queue is
// the application's choice: so there must be some bound. This one is generous,
// some ten times what a queue of an ordinary socket has room for.
const walkBound = 4096

// bury puts so many timestamps into the queue. It ends the case.
func (q *Queue) bury(timestamps int) {
	q.t.Helper()
	// Entries are charged to the receive buffer, of 768 bytes and more each.
	SetOption(unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, timestamps*2048)(q.Sender)
	data := make([]byte, 1)
	for sent := 0; sent < timestamps; {
		// Few enough to fit into the buffers of the receiver and of the link.
		batch := make([]*notify.Message, min(64, timestamps-sent))
		for i := range batch {
			batch[i] = &notify.Message{Buffers: [][]byte{data}, Control: timestampRequest(nil)}
		}
		counts, err := notify.SendMany(q.Sender.FD, batch, 0)
		q.t.Check(err, "send with timestamps")
		for range counts {
			q.Receiver.MustReceive(data)
		}
		sent += len(counts)
	}
	q.Timestamps += timestamps
}

var _ = add(Case{
	Name:   "scm/behind-many-timestamps",
	Doc:    "a request does not walk over thousands of other entries, and loses nothing among them",
	Covers: []string{"N22", "N05"},
	Axes:   OnLoopback.For(UDP),
	Needs:  scm,
}, func(t *T) {
	queue := t.NewQueue()
	queue.Send()
	queue.bury(walkBound)
	queue.Send()
	var ledger notify.Ledger
	entries := queue.Carry(most(t.Profile()), 0)
	ledger.Add(entries...)
	switch got := ranges(entries); got {
	case "[0,0]":
	case "[0,0] [1,1]":
		t.Errorf("a notification came from behind %d timestamps: the call has looked at all of them, with interrupts off unless it lets the lock of the queue go in between, which this case cannot see; how many there are is up to the application", walkBound)
	default:
		t.Errorf("notification [0,0] was expected, which is the first of the queue, came %s", got)
	}
	queue.Finish(&ledger)
})

var _ = add(Case{
	Name:   "scm/among-some-timestamps",
	Doc:    "notifications are found behind as many other entries as a busy application leaves unread",
	Covers: []string{"N05"},
	Level:  Should,
	Axes:   OnLoopback.For(UDP),
	Needs:  scm,
}, func(t *T) {
	queue := t.NewQueue()
	queue.bury(100)
	queue.Send()
	entries := queue.Carry(4, 0)
	expectRanges(t, entries, "[0,0]", "100 timestamps are in front of it; an application that reads them late waits for its buffers as long")
	var ledger notify.Ledger
	ledger.Add(entries...)
	queue.Finish(&ledger)
})

var _ = add(Case{
	Name:   "scm/huge-capacity",
	Doc:    "room for thousands of notifications is refused, or not all of it is used in one call",
	Covers: []string{"N22", "N03"},
	Axes:   OnLoopback.For(UDP),
	Needs:  scm,
}, func(t *T) {
	profile := t.Profile()
	// Control data is charged to the option memory, and so is every
	// notification.
	limitOptmem(t, 64<<20)
	queue := t.NewQueue()
	control := profile.Encode(2 * walkBound)
	message := &notify.Message{Buffers: [][]byte{queue.data[:1]}, Control: control}
	if profile.Max() > 0 {
		if _, err := notify.Send(queue.Sender.FD, message); !errors.Is(err, unix.EINVAL) {
			t.Errorf("room for %d, the most is %d: EINVAL was expected, came %v", 2*walkBound, profile.Max(), err)
		}
		return
	}
	queue.alternate(walkBound + 1)
	if _, err := notify.Send(queue.Sender.FD, message); err != nil {
		t.Logf("refused: %v", err)
		queue.Finish(new(notify.Ledger))
		return
	}
	queue.Receiver.MustReceive(queue.data[:1])
	entries, err := profile.Decode(control)
	t.Check(err, "answer to a request")
	if len(entries) > walkBound {
		t.Errorf("one call returned %d notifications: all of them were taken off the queue with interrupts off unless the kernel lets its lock go in between, which this case cannot see; how many is up to the application", len(entries))
	}
	var ledger notify.Ledger
	ledger.Add(entries...)
	queue.Finish(&ledger)
})

// alternate fills the queue with so many notifications, each an entry of its own
// as there is a timestamp next to it. It ends the case.
func (q *Queue) alternate(notifications int) {
	q.t.Helper()
	SetOption(unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, notifications*2048)(q.Sender)
	for sent := 0; sent < notifications; {
		batch := make([]*notify.Message, min(64, notifications-sent))
		for i := range batch {
			batch[i] = &notify.Message{Buffers: [][]byte{q.data}, Control: timestampRequest(nil)}
		}
		counts, err := notify.SendMany(q.Sender.FD, batch, unix.MSG_ZEROCOPY)
		q.t.Check(err, "zero-copy sends with timestamps")
		for range counts {
			q.Receiver.MustReceive(q.data)
		}
		sent += len(counts)
	}
	q.Sends += notifications
	q.Timestamps += notifications
}

var _ = add(Case{
	Name:   "scm/long-range",
	Doc:    "a range of hundreds of merged notifications is one element, and one that begins late too",
	Covers: []string{"N01"},
	Axes:   OnLoopback,
	Needs:  scm,
}, func(t *T) {
	const first, second = 300, 260
	queue := t.NewQueue()
	for range first {
		queue.Send()
	}
	entries := queue.Carry(1, unix.MSG_ZEROCOPY) // takes id 300
	expectRanges(t, entries, fmt.Sprintf("[0,%d]", first-1), "all completed in a row")
	for range second {
		queue.Send()
	}
	more := queue.Carry(2, 0)
	expectRanges(t, more, fmt.Sprintf("[%d,%d]", first, first+second), "the carrying send and those after it")
	queue.Sender.ExpectNothing("a range belongs to one reader alone")
	var ledger notify.Ledger
	ledger.Add(slices.Concat(entries, more)...)
	queue.Finish(&ledger)
})
