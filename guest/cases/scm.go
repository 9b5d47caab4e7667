// SPDX-License-Identifier: BSD-3-Clause

package cases

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/zcvet/zcvet/guest/network"
	"github.com/zcvet/zcvet/guest/notify"
	"github.com/zcvet/zcvet/guest/sys"
)

// scm is what every case of SCM_ZC_NOTIFICATION needs.
var scm = []string{SCMNotification}

// Profile returns the notification interface of the series under test. It skips
// the case when there is none, and ends it.
func (t *T) Profile() notify.Profile {
	t.Helper()
	t.Require(SCMNotification)
	profile, err := notify.NewProfile(t.Parameters.ABI, t.Parameters.Constant)
	t.Check(err, "profile of the series")
	return profile
}

// Carry sends a byte with a request for capacity notifications, has it received,
// and returns what the kernel wrote. Flags are those of the send. It ends the
// case when the send fails or the answer makes no sense.
func (q *Queue) Carry(capacity, flags int) []notify.Notification {
	q.t.Helper()
	profile := q.t.Profile()
	entries, err := profile.Decode(q.CarryControl(profile.Encode(capacity), flags))
	q.t.Check(err, fmt.Sprintf("answer to a request for %d notifications", capacity))
	return entries
}

// CarryControl sends a byte with a control buffer and returns the buffer. It
// ends the case when the send fails.
func (q *Queue) CarryControl(control []byte, flags int) []byte {
	q.t.Helper()
	data := q.data[:1]
	count, err := notify.Send(q.Sender.FD, &notify.Message{
		Buffers: [][]byte{data}, Control: control, Flags: flags | unix.MSG_NOSIGNAL,
	})
	q.t.Check(err, "send with SCM_ZC_NOTIFICATION")
	if count != len(data) {
		q.t.Fatalf("a send of %d bytes with SCM_ZC_NOTIFICATION took %d", len(data), count)
	}
	if flags&unix.MSG_ZEROCOPY != 0 {
		q.Sends++
	}
	q.Receiver.MustReceive(data)
	q.Receiver.Acknowledge()
	return control
}

// most is the largest capacity a case asks for: the profile's own, or for a
// profile without a bound a little more than the others have.
func most(profile notify.Profile) int {
	if profile.Max() == 0 {
		return 20
	}
	return profile.Max()
}

var _ = add(Case{
	Name:    "scm/fifo",
	Doc:     "notifications come in the order of the queue, up to the capacity, on sends with and without MSG_ZEROCOPY, and the rest stays",
	Covers:  []string{"N01", "N08"},
	Axes:    Everywhere,
	Needs:   scm,
	In32Bit: true,
}, func(t *T) {
	queue := t.NewQueue()
	queue.Fill(5)
	var ledger notify.Ledger

	first := queue.Carry(2, 0)
	expectRanges(t, first, "[0,0] [1,1]", "the two oldest fit")
	ledger.Add(first...)

	// The carrying send is the sixth; its own notification cannot be in it.
	rest := queue.Carry(4, unix.MSG_ZEROCOPY)
	expectRanges(t, rest, "[2,2] [3,3] [4,4]", "what was left came before this send")
	ledger.Add(rest...)
	queue.Finish(&ledger)
})

var _ = add(Case{
	Name:   "scm/merged-range",
	Doc:    "a range of merged notifications takes one element",
	Covers: []string{"N01"},
	Axes:   Everywhere,
	Needs:  scm,
}, func(t *T) {
	queue := t.NewQueue()
	for range 4 {
		queue.Send()
	}
	expectRanges(t, queue.Carry(1, 0), "[0,3]", "the sends completed one after the other")
	queue.Sender.ExpectNothing("what a control message returned must be off the error queue, or a buffer is handed out twice")
})

var _ = add(Case{
	Name:    "scm/full-capacity",
	Doc:     "the largest capacity is filled, and one entry more than that stays in the queue",
	Covers:  []string{"N01"},
	Axes:    CopiedAndNot.Over(network.IPv4),
	Needs:   scm,
	In32Bit: true,
}, func(t *T) {
	capacity := most(t.Profile())
	queue := t.NewQueue()
	queue.Fill(capacity + 1)
	var ledger notify.Ledger
	entries := queue.Carry(capacity, 0)
	if len(entries) != capacity {
		t.Errorf("%d entries were queued, capacity is %d, came %d", capacity+1, capacity, len(entries))
	}
	ledger.Add(entries...)
	last := queue.Carry(capacity, 0)
	expectRanges(t, last, fmt.Sprintf("[%d,%d]", capacity, capacity), "one was left")
	ledger.Add(last...)
	queue.Finish(&ledger)
})

var _ = add(Case{
	Name:    "scm/nothing-pending",
	Doc:     "with nothing pending the send succeeds and reports no notification",
	Covers:  []string{"N02"},
	Axes:    Everywhere,
	Needs:   scm,
	In32Bit: true,
}, func(t *T) {
	queue := t.NewQueue()
	for _, capacity := range []int{1, most(t.Profile())} {
		if entries := queue.Carry(capacity, 0); len(entries) != 0 {
			t.Errorf("no zero-copy send was made yet, capacity %d returned %v", capacity, entries)
		}
	}
	if entries := queue.Carry(2, unix.MSG_ZEROCOPY); len(entries) != 0 {
		t.Errorf("the first zero-copy send returned %v: a call's own notification cannot be in its control message", entries)
	}
	var ledger notify.Ledger
	queue.Finish(&ledger)
})

var _ = add(Case{
	Name:    "scm/empty-send",
	Doc:     "a send without data reads notifications too: a stream sends nothing, a datagram socket an empty datagram",
	Covers:  []string{"N01", "N02"},
	Axes:    CopiedAndNot,
	Needs:   scm,
	In32Bit: true,
}, func(t *T) {
	queue := t.NewQueue()
	queue.Fill(2)
	profile := t.Profile()
	control := profile.Encode(4)
	count, err := notify.Send(queue.Sender.FD, &notify.Message{Control: control})
	t.Check(err, "empty send with SCM_ZC_NOTIFICATION")
	if count != 0 {
		t.Fatalf("an empty send took %d bytes", count)
	}
	entries, err := profile.Decode(control)
	t.Check(err, "answer to an empty send")
	expectRanges(t, entries, "[0,0] [1,1]", "both were in the queue")
	if t.Proto == UDP {
		queue.Receiver.MustReceive(nil)
	}
	var ledger notify.Ledger
	ledger.Add(entries...)
	queue.Finish(&ledger)
})

var _ = add(Case{
	Name:    "scm/refused-requests",
	Doc:     "a malformed request is EINVAL, sends nothing and reads nothing",
	Covers:  []string{"N03"},
	Axes:    CopiedAndNot,
	Needs:   scm,
	In32Bit: true,
}, func(t *T) {
	queue := t.NewQueue()
	queue.Send()
	profile := t.Profile()
	for _, request := range profile.Refused() {
		control := notify.AppendControl(nil, unix.SOL_SOCKET, profile.Constant(), request.Data)
		before := bytes.Clone(control)
		_, err := notify.Send(queue.Sender.FD, &notify.Message{Buffers: [][]byte{[]byte("refused")}, Control: control})
		if !errors.Is(err, unix.EINVAL) {
			t.Errorf("request with %s: EINVAL was expected, came %v: the kernel would read or write past what the caller described", request.Name, err)
		}
		if !bytes.Equal(control, before) {
			t.Errorf("request with %s: refused, yet the control buffer was written to", request.Name)
		}
	}
	queue.ExpectNothingSent()
	var ledger notify.Ledger
	queue.Finish(&ledger)
})

// ExpectNothingSent fails the case if anything but what the queue's own methods
// sent has reached the receiver. It ends the case.
func (q *Queue) ExpectNothingSent() {
	q.t.Helper()
	marker := []byte("marker")
	q.Sender.MustSend(marker, 0)
	got := q.Receiver.Receive(len(marker))
	if !bytes.Equal(got, marker) {
		q.t.Errorf("a send that failed has sent data all the same: the receiver got %q", got)
	}
	q.Receiver.Acknowledge()
}

var _ = add(Case{
	Name:    "scm/option-off",
	Doc:     "without SO_ZEROCOPY on the socket the control message is EINVAL",
	Covers:  []string{"N03"},
	Axes:    OnLoopback,
	Needs:   scm,
	In32Bit: true,
}, func(t *T) {
	pair := t.Pair(WithoutZerocopy)
	_, err := notify.Send(pair.Sender.FD, &notify.Message{Buffers: [][]byte{[]byte("x")}, Control: t.Profile().Encode(1)})
	if !errors.Is(err, unix.EINVAL) {
		t.Errorf("EINVAL was expected, came %v: the socket can never have a notification, the caller made a mistake", err)
	}
})

var _ = add(Case{
	Name:    "scm/size-zero",
	Doc:     "room for no notification is refused or returns none, and reads nothing",
	Covers:  []string{"N03", "N02"},
	Axes:    OnLoopback,
	Needs:   scm,
	In32Bit: true,
}, func(t *T) {
	queue := t.NewQueue()
	queue.Send()
	profile := t.Profile()
	control := profile.Encode(0)
	_, err := notify.Send(queue.Sender.FD, &notify.Message{Buffers: [][]byte{queue.data[:1]}, Control: control})
	switch {
	case err == nil:
		queue.Receiver.MustReceive(queue.data[:1])
		if entries, err := profile.Decode(control); err != nil || len(entries) != 0 {
			t.Errorf("room for none, came %v, %v", entries, err)
		}
	case !errors.Is(err, unix.EINVAL):
		t.Errorf("success or EINVAL was expected, came %v", err)
	}
	var ledger notify.Ledger
	queue.Finish(&ledger)
})

var _ = add(Case{
	Name:   "scm/beside-error-queue",
	Doc:    "both ways of reading, in turn, return every notification exactly once",
	Covers: []string{"N04", "Z30"},
	Axes:   Everywhere,
	Needs:  scm,
}, func(t *T) {
	queue := t.NewQueue()
	queue.Fill(6)
	var ledger notify.Ledger
	ledger.Add(queue.Carry(1, 0)...)
	for range 3 { // a notification, a timestamp, a notification or the other way round
		entry, err := notify.Next(queue.Sender.FD)
		t.Check(err, "read the error queue")
		queue.Account(&ledger, entry)
	}
	ledger.Add(queue.Carry(2, 0)...)
	queue.Finish(&ledger)
})

var _ = add(Case{
	Name:       "scm/two-threads",
	Concurrent: true,
	Doc:        "a thread that reads by control messages and one that reads the error queue together get every notification exactly once",
	Covers:     []string{"N04", "Z17", "Z30"},
	Axes:       CopiedAndNot,
	Needs:      scm,
	In32Bit:    true,
}, func(t *T) {
	const sends, burst = 300, 10
	pair := t.Pair(noDelay)
	profile := t.Profile()
	data := t.Payload(100, 1)
	var ledger notify.Ledger
	stop := make(chan struct{})
	finish := sync.OnceFunc(func() { close(stop) })
	t.Unblock(finish) // the case may end early
	t.Go(func() { pair.Sender.drainUntil(stop, &ledger) })
	sent := 0
	for range sends {
		control := profile.Encode(most(profile))
		count, err := notify.Send(pair.Sender.FD, &notify.Message{
			Buffers: [][]byte{data}, Control: control, Flags: unix.MSG_ZEROCOPY | unix.MSG_NOSIGNAL,
		})
		if err != nil || count != len(data) {
			t.Errorf("send %d: %d, %v", sent, count, err)
			break
		}
		sent++
		entries, err := profile.Decode(control)
		if err != nil {
			t.Errorf("send %d: %v", sent, err)
			break
		}
		ledger.Add(entries...)
		if sent%burst == 0 {
			for range burst {
				pair.Receiver.MustReceive(data)
			}
		}
	}
	finish()
	t.group.Wait()
	pair.Sender.CollectInto(&ledger, sent)
})

var _ = add(Case{
	Name:    "scm/timestamps-stay",
	Doc:     "timestamps between notifications are passed over, stay in the queue in their order, and stay announced",
	Covers:  []string{"N05"},
	Axes:    Everywhere,
	Needs:   scm,
	In32Bit: true,
}, func(t *T) {
	queue := t.NewQueue()
	queue.Separate()
	queue.Fill(3)
	queue.Separate()
	var ledger notify.Ledger
	entries := queue.Carry(8, 0)
	expectRanges(t, entries, "[0,0] [1,1] [2,2]", "three notifications among four timestamps")
	ledger.Add(entries...)
	pending, err := notify.Pending(queue.Sender.FD)
	t.Check(err, "poll")
	if !pending {
		t.Errorf("four timestamps are in the error queue, poll does not report EPOLLERR: whoever waits for them sleeps")
	}
	queue.Finish(&ledger)
})

var _ = add(Case{
	Name:   "scm/network-errors-stay",
	Doc:    "an ICMP error between notifications is passed over and stays in the queue, and is announced when it gets to its head",
	Covers: []string{"N05"},
	Axes:   Everywhere.For(UDP),
	Needs:  scm,
}, func(t *T) {
	sender, edges := t.requestAcrossNetworkError()
	if !edges.Take() {
		t.Errorf("an ICMP error became the head of the queue without an EPOLLERR edge: whoever waits for it sleeps")
	}
	left := sender.Drain()
	if len(left) != 1 || left[0].Errno != uint32(unix.ECONNREFUSED) {
		t.Errorf("the ICMP error was expected to stay in the queue, left is %v", left)
	}
})

var _ = add(Case{
	Name:   "scm/network-error-is-due",
	Doc:    "an ICMP error that gets to the head of the queue is the socket's pending error, as it is when the error queue is read",
	Covers: []string{"N05"},
	Level:  Should,
	Axes:   Everywhere.For(UDP),
	Needs:  scm,
}, func(t *T) {
	sender, _ := t.requestAcrossNetworkError()
	value, err := sys.GetsockoptInt(sender.FD, unix.SOL_SOCKET, unix.SO_ERROR)
	t.Check(err, "SO_ERROR")
	if unix.Errno(value) != unix.ECONNREFUSED {
		t.Errorf("SO_ERROR was expected to be ECONNREFUSED, it is %d: an application that sees errors in its sends, and reads the queue for notifications only, misses the ICMP error now that sendmsg reads them", value)
	}
	sender.Drain()
})

// requestAcrossNetworkError sends a request with an ICMP error between the two
// notifications that answer it, so that the error becomes the head of the queue.
// It returns the sender and the edges of its queue since. It ends the case.
func (t *T) requestAcrossNetworkError() (*Socket, *ErrorEdges) {
	t.Helper()
	profile := t.Profile()
	receiver := t.Bound(ReceiverEnd)
	unused := t.Bound(ReceiverEnd)
	closed := unused.Local()
	unused.Close()
	sender := t.Socket(SenderEnd)
	sender.SetZerocopy(true)
	receiveErrors(sender)
	edges := sender.WatchErrors()
	data := t.Payload(64, 1)
	to := notify.Address(receiver.Local())
	send := func() {
		t.Helper()
		_, err := notify.Send(sender.FD, &notify.Message{Name: to, Buffers: [][]byte{data}, Flags: unix.MSG_ZEROCOPY})
		t.Check(err, "zerocopy send")
		receiver.MustReceive(data)
		edges.Wait("the notification of a zero-copy send")
	}

	send()
	_, err := notify.Send(sender.FD, &notify.Message{Name: notify.Address(closed), Buffers: [][]byte{data}})
	t.Check(err, "send to a closed port")
	edges.Wait("the ICMP error of a send to a closed port")
	takePendingError(t, sender)
	// What arrives later than the ICMP error shows that it was dealt with to
	// the end, with the second edge that it may cause.
	back := netip.AddrPortFrom(t.Address(SenderEnd), sender.Local().Port())
	_, err = notify.Send(receiver.FD, &notify.Message{Name: notify.Address(back), Buffers: [][]byte{[]byte("echo")}})
	t.Check(err, "send back")
	sender.MustReceive([]byte("echo"))
	edges.Take()
	send()

	control := profile.Encode(4)
	_, err = notify.Send(sender.FD, &notify.Message{Name: to, Buffers: [][]byte{data}, Control: control})
	t.Check(err, "send with SCM_ZC_NOTIFICATION")
	receiver.MustReceive(data)
	entries, err := profile.Decode(control)
	t.Check(err, "answer to a request")
	expectRanges(t, entries, "[0,0] [1,1]", "one on each side of the ICMP error")
	return sender, edges
}

// takePendingError waits until SO_ERROR holds ECONNREFUSED and takes it, so that
// the next send does not report it. It ends the case.
func takePendingError(t *T, s *Socket) {
	t.Helper()
	t.Eventually("SO_ERROR is ECONNREFUSED after an ICMP port unreachable", func() bool {
		value, err := sys.GetsockoptInt(s.FD, unix.SOL_SOCKET, unix.SO_ERROR)
		t.Check(err, "SO_ERROR")
		return unix.Errno(value) == unix.ECONNREFUSED
	})
}

var _ = add(Case{
	Name:   "scm/zerocopy-flag",
	Doc:    "the flag of an element is the inverse of COPIED in the error queue",
	Covers: []string{"N06", "Z50", "Z51"},
	Axes:   Everywhere,
	Needs:  scm,
}, func(t *T) {
	queue := t.NewQueue()
	queue.Send()
	byQueue := queue.Sender.Drain()
	queue.Send()
	byControl := queue.Carry(1, 0)
	if len(byQueue) != 1 || len(byControl) != 1 {
		t.Fatalf("one notification each was expected, came %v and %v", byQueue, byControl)
	}
	if byQueue[0].Copied != byControl[0].Copied {
		t.Errorf("two equal sends: the error queue says copied %v, the control message copied %v", byQueue[0].Copied, byControl[0].Copied)
	}
	if want := t.Link != network.NIC; byControl[0].Copied != want {
		t.Errorf("copied %v was expected on link %s, came %v", want, t.Link, byControl[0].Copied)
	}
})

var _ = add(Case{
	Name:   "scm/poll-clears",
	Doc:    "EPOLLERR goes away with the last notification",
	Covers: []string{"N07"},
	Axes:   Everywhere,
	Needs:  scm,
}, func(t *T) {
	queue := t.NewQueue()
	queue.Send()
	if pending, err := notify.Pending(queue.Sender.FD); !pending || err != nil {
		t.Fatalf("a notification is pending, poll says %v, %v", pending, err)
	}
	expectRanges(t, queue.Carry(1, 0), "[0,0]", "it is the only one")
	if pending, err := notify.Pending(queue.Sender.FD); pending || err != nil {
		t.Errorf("the last notification was read, poll still reports EPOLLERR (%v): the application spins", err)
	}
	queue.Sender.ExpectNoError()
	queue.Edges.Take() // a kernel may report an edge for what is left, which is nothing
	queue.Send()       // waits for an edge
	if pending, err := notify.Pending(queue.Sender.FD); !pending || err != nil {
		t.Errorf("another notification came, poll says %v, %v: the application sleeps", pending, err)
	}
	expectRanges(t, queue.Carry(1, 0), "[1,1]", "it is the only one")
})

var _ = add(Case{
	Name:   "scm/edge-for-the-rest",
	Doc:    "with entries left an edge-triggered waiter is woken again, as after a read of the error queue",
	Covers: []string{"N07", "N05"},
	Axes:   Everywhere,
	Needs:  scm,
}, func(t *T) {
	queue := t.NewQueue()
	queue.Fill(3)
	if queue.Edges.Take() {
		t.Fatalf("an edge that nothing in the queue explains")
	}
	expectRanges(t, queue.Carry(1, 0), "[0,0]", "capacity is 1")
	if !queue.Edges.Take() {
		t.Errorf("entries are left and no edge came: a waiter that leaves the rest to the next event never gets one")
	}
	var ledger notify.Ledger
	entries := queue.Carry(4, 0)
	expectRanges(t, entries, "[1,1] [2,2]", "these were left")
	ledger.Add(notify.Notification{Origin: notify.OriginZerocopy, Way: notify.Control})
	ledger.Add(entries...)
	queue.Finish(&ledger)
})

var _ = add(Case{
	Name:    "scm/sendmmsg",
	Doc:     "each message of one sendmmsg call gets its own notifications",
	Covers:  []string{"N08"},
	Axes:    CopiedAndNot,
	Needs:   scm,
	In32Bit: true,
}, func(t *T) {
	queue := t.NewQueue()
	queue.Fill(3)
	profile := t.Profile()
	var name []byte
	if t.Proto == UDP {
		// The kernel takes a shortcut for messages to the address of the one before.
		name = notify.Address(queue.Receiver.Local())
	}
	var messages []*notify.Message
	for range 2 {
		messages = append(messages, &notify.Message{Name: name, Buffers: [][]byte{queue.data}, Control: profile.Encode(1)})
	}
	counts, err := notify.SendMany(queue.Sender.FD, messages, 0)
	t.Check(err, "sendmmsg")
	if len(counts) != len(messages) {
		t.Fatalf("sendmmsg sent %d of %d messages", len(counts), len(messages))
	}
	var ledger notify.Ledger
	for i, message := range messages {
		queue.Receiver.MustReceive(queue.data)
		entries, err := profile.Decode(message.Control)
		t.Check(err, "answer to a message of sendmmsg")
		expectRanges(t, entries, fmt.Sprintf("[%d,%d]", i, i), "each message asked for one")
		ledger.Add(entries...)
	}
	queue.Finish(&ledger)
})

var _ = add(Case{
	Name:   "scm/smap",
	Doc:    "with SMAP and SMEP on, the kernel reaches the caller's memory through its accessors only",
	Covers: []string{"N09"},
	Axes:   CopiedAndNot,
	Needs:  scm,
}, func(t *T) {
	requireCPU(t, "smap", "smep")
	queue := t.NewQueue()
	queue.Fill(3)
	profile := t.Profile()
	memory := t.Memory(2)
	// Over a page boundary, so that no part of the answer fits by luck.
	encoded := profile.Encode(4)
	control := memory.Bytes()[notify.PageSize-len(encoded)/2/8*8:][:len(encoded)]
	copy(control, encoded)
	entries, err := profile.Decode(queue.CarryControl(control, 0))
	t.Check(err, "answer to a request")
	expectRanges(t, entries, "[0,0] [1,1] [2,2]", "all were in the queue")
	var ledger notify.Ledger
	ledger.Add(entries...)
	queue.Finish(&ledger)
})

// requireCPU skips the case unless the processor shows these flags. It ends the
// case.
func requireCPU(t *T, flags ...string) {
	t.Helper()
	info, err := os.ReadFile("/proc/cpuinfo")
	t.Check(err, "cpuinfo")
	for _, flag := range flags {
		if !strings.Contains(string(info), " "+flag+" ") && !strings.Contains(string(info), " "+flag+"\n") {
			t.Skipf("the processor has no %s, so a direct access to user memory would go unnoticed", flag)
		}
	}
}

var _ = add(Case{
	Name:    "scm/no-kernel-memory",
	Doc:     "padding and unused elements hold the caller's bytes afterwards, or zeros, never kernel memory",
	Covers:  []string{"N16"},
	Axes:    CopiedAndNot,
	Needs:   scm,
	In32Bit: true,
}, func(t *T) {
	queue := t.NewQueue()
	queue.Fill(2)
	profile := t.Profile()
	control := profile.Encode(6)
	// What lies behind the message is the caller's too.
	beyond := bytes.Repeat([]byte{notify.Sentinel}, 64)
	whole := append(control, beyond...)
	queue.CarryControl(whole[:len(control)], 0)
	for _, byteFound := range profile.Foreign(whole[:len(control)]) {
		t.Errorf("the kernel wrote where nothing was due: %s; it may be kernel memory", byteFound)
	}
	if !bytes.Equal(whole[len(control):], beyond) {
		t.Errorf("the kernel wrote behind the control buffer: % x", whole[len(control):])
	}
})

var _ = add(Case{
	Name:    "scm/msghdr-is-const",
	Doc:     "a send without the control message writes neither msghdr nor control buffer: both may lie in read-only memory",
	Covers:  []string{"N17"},
	Axes:    Everywhere,
	In32Bit: true,
}, func(t *T) {
	queue := t.NewQueue()
	queue.Send() // something the kernel could be tempted to return
	memory := t.Memory(2)
	const controlAt = 1024
	for _, control := range [][]byte{nil, timestampRequest(nil)} {
		place := memory.Bytes()[:notify.PageSize]
		inPlace := place[controlAt:][:copy(place[controlAt:], control)]
		message := &notify.Message{Buffers: [][]byte{queue.data}, Control: inPlace, HeaderFlags: 0x5a5a}
		prepared := message.PrepareAt(place)
		before := bytes.Clone(place)
		t.Check(memory.Protect(0, 1, notify.ReadOnly), "take away write access")
		count, err := prepared.Send(queue.Sender.FD)
		if err != nil || count != len(queue.data) {
			t.Errorf("send with %d control bytes and everything in read-only memory: %d, %v; programs keep constant messages there", len(control), count, err)
		} else {
			queue.Receiver.MustReceive(queue.data)
			queue.Receiver.Acknowledge()
		}
		if control != nil && err == nil {
			queue.Edges.Wait("the timestamp that the control message asked for")
			queue.Timestamps++
		}
		t.Check(memory.Protect(0, 1, notify.ReadWrite), "give write access back")

		if _, err := prepared.Send(queue.Sender.FD); err == nil {
			queue.Receiver.MustReceive(queue.data)
			queue.Receiver.Acknowledge()
			if control != nil {
				queue.Edges.Wait("the timestamp that the control message asked for")
				queue.Timestamps++
			}
		}
		if !bytes.Equal(place, before) {
			t.Errorf("a send with %d control bytes wrote into the caller's msghdr or control buffer", len(control))
		}
	}
	var ledger notify.Ledger
	queue.Finish(&ledger)
})

var _ = add(Case{
	Name:    "scm/unknown-is-refused",
	Doc:     "a kernel without the series answers EINVAL to the control message, which is how applications probe for it",
	Covers:  []string{"N17"},
	Axes:    OnLoopback,
	In32Bit: true,
}, func(t *T) {
	if t.environment.feature(SCMNotification) == nil {
		t.Skipf("this kernel has SCM_ZC_NOTIFICATION")
	}
	queue := t.NewQueue()
	queue.Send()
	// The number of another kernel's headers, and one that is nobody's.
	for _, constant := range []int32{81, 0x7fff} {
		control := notify.AppendControl(nil, unix.SOL_SOCKET, constant, make([]byte, 16))
		_, err := notify.Send(queue.Sender.FD, &notify.Message{Buffers: [][]byte{[]byte("x")}, Control: control})
		if !errors.Is(err, unix.EINVAL) {
			t.Errorf("control message %d: EINVAL was expected, came %v", constant, err)
		}
	}
	queue.ExpectNothingSent()
	var ledger notify.Ledger
	queue.Finish(&ledger)
})
