// SPDX-License-Identifier: BSD-3-Clause

package cases

import (
	"bytes"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/zcvet/zcvet/guest/network"
	"github.com/zcvet/zcvet/guest/nic"
	"github.com/zcvet/zcvet/guest/notify"
	"github.com/zcvet/zcvet/guest/sys"
)

var _ = add(Case{
	Name:   "delivery/exactly-once",
	Doc:    "at quiescence every send has been notified exactly once, whatever the sizes",
	Covers: []string{"Z30", "Z70"},
	Axes:   Everywhere,
}, func(t *T) { exchange(t, t.Pair(), 60) })

var _ = add(Case{
	Name:   "delivery/exactly-once-under-loss",
	Doc:    "lost, doubled and reordered segments change the order of notifications at most, never their number",
	Covers: []string{"Z30", "Z35", "Z70"},
	Axes:   OnNICs.For(TCP),
}, func(t *T) {
	pair := t.Pair()
	expectDisturbed := t.disturb(
		nic.Rule{Match: nic.TCPData, Action: nic.Drop, Skip: 2, Count: 2},
		nic.Rule{Match: nic.TCPData, Action: nic.Duplicate, Skip: 1, Count: 2},
		nic.Rule{Match: nic.TCPData, Action: nic.Delay, By: 2, Skip: 1, Count: 3},
	)
	exchange(t, pair, 40)
	expectDisturbed()
})

var _ = add(Case{
	Name:   "delivery/in-order",
	Doc:    "without loss notifications come in the order of the sends",
	Covers: []string{"Z35", "Z30"},
	Axes:   Everywhere,
}, func(t *T) {
	for range 3 {
		pair := t.Pair()
		entries := exchange(t, pair, 24)
		if pair.Sender.retransmitted() {
			// On a machine that is busy elsewhere a stream takes for lost what
			// only takes long; its device then has the data twice.
			continue
		}
		for i := 1; i < len(entries); i++ {
			if entries[i].Low != entries[i-1].High+1 {
				t.Errorf("%v came after %v: nothing was lost, so an application that frees its buffers in order keeps some for too long", entries[i], entries[i-1])
			}
		}
		return
	}
	t.Skipf("TCP retransmits on this machine although nothing is lost")
})

var _ = add(Case{
	Name:   "delivery/exactly-once-under-random-loss",
	Doc:    "a NIC that loses, doubles, delays and reorders at random, in both directions, loses no notification",
	Covers: []string{"Z30", "Z35", "Z70"},
	Axes:   OnNICs.For(TCP),
}, func(t *T) {
	t.probeForLoss()
	pair := t.Pair(noDelay)
	// Counted in frames and drawn from the seed of the run. Few are lost in a
	// row, because TCP doubles its patience with each.
	for range 6 {
		rule := nic.Rule{
			Port: t.NIC().Sender, Match: nic.TCPData, Skip: t.Rand.IntN(4), Count: 1 + t.Rand.IntN(2), By: 1 + t.Rand.IntN(3),
			Action: []nic.Action{nic.Drop, nic.Duplicate, nic.Delay, nic.Reorder}[t.Rand.IntN(4)],
		}
		if t.Rand.IntN(3) == 0 {
			rule.Port, rule.Match = t.NIC().Receiver, nic.TCPAck
		}
		if rule.Action == nic.Drop {
			rule.Count = 1
		}
		if rule.Action == nic.Reorder {
			// A heap that never fills up would stay there.
			rule.Action, rule.By = nic.Delay, 2
		}
		t.Logf("rule %+v", rule)
		t.NIC().AddRule(rule)
	}
	exchange(t, pair, 40)
})

// exchange makes sends of many sizes from one region of memory that never
// changes, and checks what arrives and what is notified. It returns the entries
// of the error queue in the order in which they came.
func exchange(t *T, pair *Pair, sends int) []notify.Notification {
	t.Helper()
	sizes := []int{1, 17, 512, 1400, 4000, 9000, 20000, 40000}
	if t.Proto == UDP {
		// The last one is sent in fragments where the link's MTU is 1500.
		sizes = []int{1, 17, 512, 1000, 1400, 4000}
	}
	memory := t.Payload(slices.Max(sizes)+notify.PageSize, 7)
	parts := make([][]byte, sends)
	for i := range parts {
		// Each size once at least, then as it comes.
		size := sizes[i%len(sizes)]
		if i >= len(sizes) {
			size = sizes[t.Rand.IntN(len(sizes))]
		}
		parts[i] = memory[t.Rand.IntN(notify.PageSize):][:size]
	}
	stream := &zerocopyStream{socket: pair.Sender}
	if t.Proto == UDP {
		// In step: a datagram may be lost when nobody takes it.
		for _, part := range parts {
			t.Check(stream.send(part), "zerocopy send")
			pair.Receiver.MustReceive(part)
		}
	} else {
		t.Go(func() {
			for i, part := range parts {
				if err := stream.send(part); err != nil {
					t.Errorf("zerocopy send %d of %d bytes: %v", i, len(part), err)
					return
				}
			}
		})
		for _, part := range parts {
			pair.Receiver.MustReceive(part)
		}
		// The stream's goroutine is done: it sent what was received.
		t.group.Wait()
	}
	pair.Sender.CollectInto(&stream.ledger, stream.sends)
	return stream.ledger.Entries()
}

var _ = add(Case{
	Name:   "delivery/adjacent-notifications-merge",
	Doc:    "notifications of consecutive sends, completed in order, come as one range",
	Covers: []string{"Z31"},
	Level:  Should,
	Axes:   Everywhere,
}, func(t *T) {
	queue := t.NewQueue()
	for range 5 {
		queue.Send()
	}
	expectRanges(t, queue.Sender.Collect(5), "[0,4]",
		"an application that reads one entry per send would pay a system call for each")
})

var _ = add(Case{
	Name:   "delivery/only-adjacent-notifications-merge",
	Doc:    "when the device gives buffers back out of order, a notification is merged only with the send right before it",
	Covers: []string{"Z31", "Z35", "Z3A"},
	Axes:   OnNIC,
}, func(t *T) {
	pair := t.Pair(noDelay)
	edges := pair.Sender.WatchErrors()
	t.NIC().Hold(true)
	for i := range 4 {
		data := t.Payload(500, byte(i))
		pair.Sender.MustSend(data, unix.MSG_ZEROCOPY)
		pair.Receiver.MustReceive(data)
		pair.Sender.AwaitAcknowledged()
	}
	pair.Sender.ExpectNothing("the device still holds the buffers of every send")

	// Of frames 0 1 2 3 give back 0, then 2, then 3, then 1.
	for _, position := range []int{0, 1, 1, 0} {
		t.NIC().ReleaseBy(nic.Release{Port: t.NIC().Sender, Order: []int{position}})
		edges.Wait(fmt.Sprintf("the notification of the send whose frame was held at position %d", position))
	}
	expectRanges(t, pair.Sender.Collect(4), "[0,0] [2,3] [1,1]",
		"a range must not take in a send that was not completed")
})

var _ = add(Case{
	Name:   "delivery/no-merging-across-timestamps",
	Doc:    "a timestamp between two notifications keeps them apart and in their order",
	Covers: []string{"Z32", "Z39"},
	Axes:   Everywhere,
}, func(t *T) {
	queue := t.NewQueue()
	queue.Send()
	queue.Send()
	queue.Separate()
	queue.Send()
	entries := queue.Sender.Drain()
	expectRanges(t, notify.OnlyZerocopy(entries), "[0,1] [2,2]", "each was queued on its own side of a timestamp")
	if len(entries) != 3 || entries[1].Origin != notify.OriginTimestamping {
		t.Errorf("the timestamp was expected between two notifications, came %v", entries)
	}
})

var _ = add(Case{
	Name:   "delivery/timestamps-of-zerocopy-sends",
	Doc:    "zero-copy sends that ask for timestamps get both, each told by its origin, none lost",
	Covers: []string{"Z39", "Z30"},
	Axes:   Everywhere,
}, func(t *T) {
	queue := t.NewQueue()
	const sends = 5
	for range sends {
		count, err := notify.Send(queue.Sender.FD, &notify.Message{
			Buffers: [][]byte{queue.data}, Control: timestampRequest(nil), Flags: unix.MSG_ZEROCOPY | unix.MSG_NOSIGNAL,
		})
		t.Check(err, "zero-copy send with a timestamp")
		if count != len(queue.data) {
			t.Fatalf("a send of %d bytes took %d", len(queue.data), count)
		}
		queue.Sends++
		queue.Timestamps++
		queue.Receiver.MustReceive(queue.data)
	}
	// The timestamp comes before its send is done, so all are there by then.
	queue.Finish(new(notify.Ledger))
})

var _ = add(Case{
	Name:   "delivery/no-merging-across-network-errors",
	Doc:    "an ICMP error between two notifications keeps them apart and in their order",
	Covers: []string{"Z32"},
	Axes:   Everywhere.For(UDP),
}, func(t *T) {
	queue := t.NewQueue(receiveErrors)
	queue.Send()
	queue.Send()
	provokeError(t, queue.Sender, queue.Receiver)
	queue.Edges.Take() // the error's
	queue.Send()
	entries := queue.Sender.Drain()
	expectRanges(t, notify.OnlyZerocopy(entries), "[0,1] [2,2]", "each was queued on its own side of a network error")
	origin := notify.OriginICMP
	if t.Family == network.IPv6 {
		origin = notify.OriginICMP6
	}
	if len(entries) != 3 || entries[1].Origin != origin || entries[1].Errno != uint32(unix.ECONNREFUSED) {
		t.Errorf("ECONNREFUSED, reported by ICMP, was expected between two notifications, came %v", entries)
	}
})

// receiveErrors makes the error queue hold network errors too.
func receiveErrors(s *Socket) { setReceiveErrors(s, 1) }

func setReceiveErrors(s *Socket, value int) {
	s.t.Helper()
	if s.t.Family == network.IPv6 {
		SetOption(unix.SOL_IPV6, unix.IPV6_RECVERR, value)(s)
	} else {
		SetOption(unix.SOL_IP, unix.IP_RECVERR, value)(s)
	}
}

// provokeError has a datagram of the sender answered by an ICMP error, which is
// then the newest entry of its error queue; the socket error that goes with it is
// taken. The sender is connected to the receiver before and afterwards. It ends
// the case.
func provokeError(t *T, sender, receiver *Socket) {
	t.Helper()
	closed := t.Bound(ReceiverEnd)
	sender.Connect(closed)
	closed.Close()
	sender.MustSend([]byte("to nobody"), 0)
	sender.awaitError(unix.ECONNREFUSED)
	sender.Connect(receiver)
}

// awaitError waits until SO_ERROR has one of the errors, and so takes it. It ends
// the case.
func (s *Socket) awaitError(wanted ...unix.Errno) {
	s.t.Helper()
	s.t.Eventually(fmt.Sprintf("SO_ERROR is one of %v", wanted), func() bool {
		value, err := sys.GetsockoptInt(s.FD, unix.SOL_SOCKET, unix.SO_ERROR)
		s.t.Check(err, "SO_ERROR")
		if value != 0 && !slices.Contains(wanted, unix.Errno(value)) {
			s.t.Fatalf("SO_ERROR is %v, want one of %v", unix.Errno(value), wanted)
		}
		return value != 0
	})
}

var _ = add(Case{
	Name:   "delivery/merging-hides-no-copy",
	Doc:    "a send that was copied is reported so, also when the next one, which was not, is merged with it",
	Covers: []string{"Z33", "Z50"},
	Axes:   OnNIC,
}, func(t *T) {
	queue := t.NewQueue()
	sniffer := openSniffer(t)
	queue.Send()
	sniffer.Close()
	queue.Send()
	entries := queue.Sender.Collect(2)
	if !entries[0].Copied {
		t.Errorf("the first send was copied for a packet socket, its entry of %v does not say so: the application goes on paying for pinned pages", entries)
	}
})

var _ = add(Case{
	Name:   "delivery/merged-entry-keeps-first-code",
	Doc:    "a merged range has the code of its first send",
	Covers: []string{"Z33"},
	Level:  Should,
	Axes:   OnNIC,
}, func(t *T) {
	queue := t.NewQueue()
	sniffer := openSniffer(t)
	queue.Send()
	sniffer.Close()
	queue.Send()
	expectRanges(t, queue.Sender.Collect(2), "[0,1]", "the two sends completed one after the other")

	queue.Send()
	sniffer = openSniffer(t)
	queue.Send()
	sniffer.Close()
	entries := queue.Sender.Drain()
	expectRanges(t, entries, "[2,3]", "the two sends completed one after the other")
	if len(entries) > 0 && entries[0].Copied {
		t.Errorf("the first send of %v was not copied", entries[0])
	}
})

var _ = add(Case{
	Name:   "delivery/not-before-acknowledged",
	Doc:    "while the peer's acknowledgement is withheld a TCP send is not notified, because its pages may have to be sent again",
	Covers: []string{"Z36"},
	Axes:   OnNIC.For(TCP),
}, func(t *T) {
	pair := t.Pair(noDelay)
	withheld := t.NIC().AddRule(nic.Rule{Port: t.NIC().Receiver, Match: nic.TCPAck, Action: nic.Withhold})
	data := t.Payload(3000, 1)
	pair.Sender.MustSend(data, unix.MSG_ZEROCOPY)
	pair.Receiver.MustReceive(data)
	t.Eventually("an acknowledgement is withheld", func() bool { return t.NIC().RuleStatus(withheld).Held > 0 })

	// From here on the pages are held for a retransmission only.
	t.DeviceBarrier()
	pair.Sender.ExpectNothing("the application would overwrite pages that TCP may have to send again")

	t.NIC().RemoveRule(withheld)
	pair.Sender.Collect(1)
})

var _ = add(Case{
	Name:   "delivery/retransmission-keeps-pages",
	Doc:    "a send whose segment was lost is not notified before its retransmission is acknowledged",
	Covers: []string{"Z36", "Z72"},
	Axes:   OnNIC.For(TCP),
}, func(t *T) {
	pair := t.Pair(noDelay)
	lost := t.NIC().AddRule(nic.Rule{Port: t.NIC().Sender, Match: nic.TCPData, Action: nic.Withhold})
	data := t.Payload(1000, 1)
	pair.Sender.MustSend(data, unix.MSG_ZEROCOPY)
	t.Eventually("the segment is on the wire", func() bool { return t.NIC().RuleStatus(lost).Held > 0 })
	t.DeviceBarrier()
	pair.Sender.ExpectNothing("the device is done with the pages, but nobody has the data yet")
	t.NIC().RemoveRule(lost)
	pair.Receiver.MustReceive(data)
	pair.Sender.Collect(1)
})

var _ = add(Case{
	Name:   "delivery/not-before-device-is-done",
	Doc:    "a send is notified when the device gives its buffers back, not before",
	Covers: []string{"Z3A"},
	Axes:   OnNIC,
}, func(t *T) {
	pair := t.Pair(noDelay)
	t.NIC().Hold(true)
	for i := range 3 {
		data := t.Payload(700, byte(i))
		pair.Sender.MustSend(data, unix.MSG_ZEROCOPY)
		pair.Receiver.MustReceive(data)
		pair.Sender.AwaitAcknowledged()
	}
	var ledger notify.Ledger
	for i := range 3 {
		pair.Sender.ExpectNothing(fmt.Sprintf("the device has given back the buffers of %d of 3 sends, it may still read the next", i))
		t.NIC().Release(1)
		pair.Sender.CollectInto(&ledger, i+1)
	}
})

var _ = add(Case{
	Name:   "delivery/not-before-the-last-frame",
	Doc:    "a send that takes several frames is notified when the device has given back the last of them, in whatever order",
	Covers: []string{"Z3A", "Z13"},
	Axes:   OnNIC,
}, func(t *T) {
	pair := t.Pair(noDelay)
	size := 5000 // a datagram in fragments
	if t.Proto == TCP {
		size = 60_000 // more than the initial window
	}
	data := t.Payload(size, 2)
	t.NIC().Hold(true)
	first := t.NIC().Frames(t.NIC().Sender, 0, nic.AnyFrame).Next
	pair.Sender.MustSend(data, unix.MSG_ZEROCOPY)
	pair.Receiver.MustReceive(data)
	pair.Sender.AwaitAcknowledged()
	held := 0
	for _, frame := range t.NIC().Frames(t.NIC().Sender, first, nic.AnyFrame).Frames {
		if frame.Held {
			held++
		}
	}
	if held < 2 {
		t.Fatalf("a send of %d bytes took %d frames: nothing to look at", size, held)
	}
	for left := held; left > 0; left-- {
		pair.Sender.ExpectNothing(fmt.Sprintf("the device still holds %d of the %d frames of the send", left, held))
		finished := t.transmitted()
		t.NIC().ReleaseBy(nic.Release{Port: t.NIC().Sender, Order: []int{t.Rand.IntN(left)}})
		t.Eventually("the driver has got a frame back", func() bool { return t.transmitted() > finished })
	}
	pair.Sender.Collect(1)
})

var _ = add(Case{
	Name:   "delivery/after-shutdown",
	Doc:    "sends are notified although the socket was shut down for writing meanwhile",
	Covers: []string{"Z37"},
	Axes:   Everywhere,
}, func(t *T) {
	pair := t.Pair(noDelay)
	var sent [][]byte
	for i := range 3 {
		sent = append(sent, t.Payload(800, byte(i)))
		pair.Sender.MustSend(sent[i], unix.MSG_ZEROCOPY)
	}
	t.Check(sys.Shutdown(pair.Sender.FD, unix.SHUT_WR), "shutdown")
	for _, data := range sent {
		pair.Receiver.MustReceive(data)
	}
	pair.Sender.Collect(len(sent))
})

// closings are the ways to close a socket.
var closings = []struct {
	name  string
	close func(*Socket)
}{
	{"closed", (*Socket).Close},
	{"closed without lingering", (*Socket).abort}, // which throws away what a stream has still to send
}

var _ = add(Case{
	Name:   "delivery/close-with-sends-in-device",
	Doc:    "a socket closed while the device still holds its sends loses no data, and its pages are held until the device gives them back and no longer",
	Covers: []string{"Z37", "Z3A", "Z64"},
	Axes:   OnNIC,
}, func(t *T) {
	for i, way := range closings {
		t.Logf("%s", way.name)
		pair := t.Pair(noDelay)
		t.NIC().Hold(true)
		memory := t.Memory(1)
		memory.Fill(byte(i))
		data := memory.Bytes()[:900]
		pair.Sender.MustSend(data, unix.MSG_ZEROCOPY)
		pair.Receiver.MustReceive(data)
		pair.Sender.AwaitAcknowledged()
		way.close(pair.Sender)
		t.Check(memory.Close(), "munmap")
		t.expectHeld("the device may still read them")
		t.NIC().Hold(false)
		// Comes back after every buffer that was held, so a splat is of this case.
		t.DeviceBarrier()
		t.expectReleased("the device has given them back, and the socket is closed")
	}
})

var _ = add(Case{
	Name:   "delivery/close-with-sends-unacknowledged",
	Doc:    "a closed stream goes on sending what is not acknowledged and then gives back the pages; one that does not linger gives them back at once",
	Covers: []string{"Z37", "Z36", "Z64"},
	Axes:   OnNIC.For(TCP),
}, func(t *T) {
	for i, way := range closings {
		t.Logf("%s", way.name)
		pair := t.Pair(noDelay)
		lingers := i == 0
		withheld := t.NIC().AddRule(nic.Rule{Port: t.NIC().Sender, Match: nic.TCPData, Action: nic.Withhold})
		memory := t.Memory(1)
		memory.Fill(byte(i))
		data := memory.Bytes()[:900]
		want := bytes.Clone(data)
		pair.Sender.MustSend(data, unix.MSG_ZEROCOPY)
		t.Eventually("the segment is on the wire", func() bool { return t.NIC().RuleStatus(withheld).Held > 0 })
		t.DeviceBarrier()
		way.close(pair.Sender)
		t.Check(memory.Close(), "munmap")
		if lingers {
			t.expectHeld("the peer may need them again")
		} else {
			t.expectReleased("nobody will ever send them")
		}
		t.NIC().RemoveRule(withheld)
		if lingers {
			pair.Receiver.MustReceive(want)
			t.expectReleased("the peer has them")
		}
	}
})

var _ = add(Case{
	Name:   "delivery/close-with-notifications-unread",
	Doc:    "a socket closed with notifications in its error queue leaves nothing behind",
	Covers: []string{"Z37", "Z64"},
	Axes:   Everywhere,
}, func(t *T) {
	for _, way := range closings {
		queue := t.NewQueue()
		queue.Fill(3)
		way.close(queue.Sender)
	}
})

var _ = add(Case{
	Name:   "delivery/recverr-off-keeps-notifications",
	Doc:    "switching IP_RECVERR off throws away network errors, not notifications",
	Covers: []string{"Z38"},
	Axes:   Everywhere,
}, func(t *T) {
	queue := t.NewQueue(receiveErrors)
	queue.Send()
	if t.Proto == UDP {
		provokeError(t, queue.Sender, queue.Receiver)
		queue.Edges.Take() // the error's
	} else {
		queue.Separate() // an established connection has its errors elsewhere
	}
	queue.Send()
	setReceiveErrors(queue.Sender, 0)
	entries := queue.Sender.Drain()
	expectRanges(t, notify.OnlyZerocopy(entries), "[0,0] [1,1]", "nobody will ever say again that these buffers are free")
	for _, entry := range entries {
		if entry.Origin == notify.OriginICMP || entry.Origin == notify.OriginICMP6 {
			t.Errorf("%v is left in the error queue of a socket that wants no network errors", entry)
		}
	}
})

// openSniffer opens a packet socket on the sender's device, which makes the
// kernel copy what it would else send from the application's pages.
func openSniffer(t *T) *Socket {
	t.Helper()
	const everyProtocol = unix.ETH_P_ALL<<8 | unix.ETH_P_ALL>>8 // in network order
	sniffer, err := t.TrySocketOf(SenderEnd, unix.AF_PACKET, unix.SOCK_RAW, everyProtocol)
	if err != nil {
		t.Skipf("no packet sockets: %v", err)
	}
	return sniffer
}

// expectRanges fails the case unless the entries are about these ranges in this
// order, written "[0,1] [2,2]".
func expectRanges(t *T, entries []notify.Notification, want, why string) {
	t.Helper()
	if got := ranges(entries); got != want {
		t.Errorf("notifications %s were expected, came %s: %s", want, got, why)
	}
}

func ranges(entries []notify.Notification) string {
	text := ""
	for i, entry := range entries {
		if i > 0 {
			text += " "
		}
		text += fmt.Sprintf("[%d,%d]", entry.Low, entry.High)
	}
	if text == "" {
		return "none"
	}
	return text
}
