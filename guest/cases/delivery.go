// SPDX-License-Identifier: BSD-3-Clause

package cases

import (
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

// exchange makes sends of many sizes from one region of memory that never
// changes, and checks what arrives and what is notified.
func exchange(t *T, pair *Pair, sends int) {
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
		pair.Receiver.Acknowledge()
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
	Name:   "delivery/merged-entry-keeps-first-code",
	Doc:    "a merged range is COPIED if its first send was",
	Covers: []string{"Z33"},
	Level:  Should,
	Axes:   OnNIC,
}, func(t *T) {
	queue := t.NewQueue()
	sniffer := openSniffer(t)
	queue.Send()
	sniffer.Close()
	queue.Send()
	entries := queue.Sender.Collect(2)
	expectRanges(t, entries, "[0,1]", "the two sends completed one after the other")
	if !entries[0].Copied {
		t.Errorf("the first send was copied for a packet socket, the merged entry %v does not say so", entries[0])
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
	pair.Receiver.Acknowledge()
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
	pair.Receiver.Acknowledge()
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
		pair.Receiver.Acknowledge()
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

var _ = add(Case{
	Name:   "delivery/close-with-sends-pending",
	Doc:    "a socket closed while the device still holds its sends loses no data and troubles nobody when they complete",
	Covers: []string{"Z37"},
	Axes:   OnNIC,
}, func(t *T) {
	pair := t.Pair(noDelay)
	t.NIC().Hold(true)
	data := t.Payload(900, 1)
	pair.Sender.MustSend(data, unix.MSG_ZEROCOPY)
	pair.Sender.Close()
	pair.Receiver.MustReceive(data)
	t.NIC().Hold(false)
	// Comes back after every buffer that was held, so a splat is of this case.
	t.DeviceBarrier()
})

var _ = add(Case{
	Name:   "delivery/recverr-off-keeps-notifications",
	Doc:    "switching IP_RECVERR off throws away network errors, not notifications",
	Covers: []string{"Z38"},
	Axes:   Everywhere,
}, func(t *T) {
	level, option := unix.SOL_IP, unix.IP_RECVERR
	if t.Family == network.IPv6 {
		level, option = unix.SOL_IPV6, unix.IPV6_RECVERR
	}
	queue := t.NewQueue()
	SetOption(level, option, 1)(queue.Sender)
	queue.Fill(2)
	SetOption(level, option, 0)(queue.Sender)
	expectRanges(t, notify.OnlyZerocopy(queue.Sender.Drain()), "[0,0] [1,1]",
		"nobody will ever say again that these buffers are free")
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
