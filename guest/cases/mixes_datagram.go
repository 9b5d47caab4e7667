// SPDX-License-Identifier: BSD-3-Clause

package cases

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/zcvet/zcvet/guest/network"
	"github.com/zcvet/zcvet/guest/nic"
	"github.com/zcvet/zcvet/guest/notify"
	"github.com/zcvet/zcvet/guest/sys"
)

// segmentSize is the payload of each datagram that UDP segmentation offload
// makes, but the last.
const segmentSize = 500

// segmented is a way to ask for UDP segmentation offload.
type segmented struct {
	name string
	// option asks for the socket, else a control message for the call.
	option bool
	// corked sends the data in two pieces.
	corked bool
}

var segmentedWays = []segmented{
	{name: "UDP_SEGMENT option", option: true},
	{name: "UDP_SEGMENT control message"},
	{name: "UDP_SEGMENT option and UDP_CORK", option: true, corked: true},
}

// send makes zero-copy sends of data that the kernel cuts into datagrams, and
// returns how many sends there were. It ends the case.
func (w segmented) send(t *T, s *Socket, data []byte) int {
	t.Helper()
	message := &notify.Message{Buffers: [][]byte{data}, Flags: unix.MSG_ZEROCOPY}
	if w.option {
		if err := sys.SetsockoptInt(s.FD, unix.IPPROTO_UDP, unix.UDP_SEGMENT, segmentSize); err != nil {
			t.Skipf("no UDP segmentation offload (in kernels since 4.18): %v", err)
		}
	} else {
		message.Control = notify.AppendControl(nil, unix.IPPROTO_UDP, unix.UDP_SEGMENT,
			binary.NativeEndian.AppendUint16(nil, segmentSize))
	}
	if w.corked {
		SetOption(unix.IPPROTO_UDP, unix.UDP_CORK, 1)(s)
		s.MustSend(data[:700], unix.MSG_ZEROCOPY)
		message.Buffers[0] = data[700:]
	}
	count, err := notify.Send(s.FD, message)
	t.Check(err, w.name)
	if count != len(message.Buffers[0]) {
		t.Fatalf("%s: a send of %d bytes took %d", w.name, len(message.Buffers[0]), count)
	}
	if w.corked {
		t.Check(sys.SetsockoptInt(s.FD, unix.IPPROTO_UDP, unix.UDP_CORK, 0), "UDP_CORK")
		return 2
	}
	return 1
}

var _ = add(Case{
	Name:   "mixes/segmentation-offload",
	Doc:    "a send that the kernel cuts into several datagrams has one id, and is notified exactly once",
	Covers: []string{"Z81", "Z13"},
	Axes:   Everywhere.For(UDP),
}, func(t *T) {
	for _, way := range segmentedWays {
		t.Logf("%s", way.name)
		pair := t.Pair()
		data := t.Payload(4*segmentSize+100, 1)
		sends := 0
		for range 2 {
			sends += way.send(t, pair.Sender, data)
			for part := range slices.Chunk(data, segmentSize) {
				pair.Receiver.MustReceive(part)
			}
		}
		pair.Sender.Collect(sends)
	}
})

var _ = add(Case{
	Name:   "mixes/segmentation-offload-not-before-device-is-done",
	Doc:    "a send cut into several datagrams is notified when the device has given back the last of them, and was not copied for it",
	Covers: []string{"Z81", "Z3A", "Z51"},
	Axes:   OnNIC.For(UDP),
}, func(t *T) {
	for _, way := range segmentedWays {
		t.Logf("%s", way.name)
		pair := t.Pair()
		data := t.Payload(4*segmentSize+100, 1)
		t.NIC().Hold(true)
		first := t.NIC().Frames(t.NIC().Sender, 0, nic.UDP).Next
		sends := way.send(t, pair.Sender, data)
		for part := range slices.Chunk(data, segmentSize) {
			pair.Receiver.MustReceive(part)
		}
		frames := len(t.NIC().Frames(t.NIC().Sender, first, nic.UDP).Frames)
		// For each frame a datagram of another socket, given back right after
		// it: when that is notified, the kernel has the frame back, too.
		markers := t.Pair()
		for i := range frames {
			marker := t.Payload(10, byte(i))
			markers.Sender.MustSend(marker, unix.MSG_ZEROCOPY)
			markers.Receiver.MustReceive(marker)
		}
		var marked notify.Ledger
		for i := range frames {
			pair.Sender.ExpectNothing(fmt.Sprintf("the device has given back %d of the %d frames of the send", i, frames))
			t.NIC().ReleaseBy(nic.Release{Port: t.NIC().Sender, Order: []int{0, frames - i}})
			markers.Sender.CollectInto(&marked, i+1)
		}
		t.NIC().Hold(false)
		entries := pair.Sender.Collect(sends)
		if !way.corked && entries[0].Copied {
			t.Errorf("%s: the send was copied: %v", way.name, entries[0])
		}
	}
})

var _ = add(Case{
	Name:   "mixes/refused-segmentation",
	Doc:    "a send that cannot be cut into segments fails, and whether it took an id or not, none is left without a notification",
	Covers: []string{"Z81", "Z11"},
	Axes:   Everywhere.For(UDP),
}, func(t *T) {
	pair := t.Pair()
	// A send has at most 64 segments, or 128 since 6.9.
	if err := sys.SetsockoptInt(pair.Sender.FD, unix.IPPROTO_UDP, unix.UDP_SEGMENT, 1); err != nil {
		t.Skipf("no UDP segmentation offload (in kernels since 4.18): %v", err)
	}
	data := t.Payload(1000, 1)
	for range 2 {
		if _, err := pair.Sender.Send(data, unix.MSG_ZEROCOPY); err == nil {
			t.Fatalf("a send of %d segments succeeded", len(data))
		}
	}
	// The kernel may notice only after the id was given, and then notifies it:
	// kernels do today. Its notification is there by now, as nobody has the data.
	var ledger notify.Ledger
	taken := 0
	for _, entry := range pair.Sender.Drain() {
		ledger.Add(entry)
		taken = max(taken, int(entry.High)+1)
	}
	SetOption(unix.IPPROTO_UDP, unix.UDP_SEGMENT, 0)(pair.Sender)
	pair.Sender.MustSend(data, unix.MSG_ZEROCOPY)
	pair.Receiver.MustReceive(data)
	pair.Sender.CollectInto(&ledger, taken+1)
})

// label is a control message that labels a datagram, and what the receiver sees
// of it.
type label struct {
	name  string
	level int32
	kind  int32
	value uint32
	// ask is the receiver's option for it.
	ask int
	// links on which the receiver can see it; nil for all.
	links []network.Link
}

func labels(family network.Family) []label {
	// What stays in the packet's metadata reaches a receiver on the same machine
	// and in the same namespace only.
	mark := label{"mark", unix.SOL_SOCKET, unix.SO_MARK, 0x7a63, unix.SO_RCVMARK, []network.Link{network.Loopback}}
	if family == network.IPv6 {
		return []label{
			{"hop limit", unix.SOL_IPV6, unix.IPV6_HOPLIMIT, 33, unix.IPV6_RECVHOPLIMIT, nil},
			{"traffic class", unix.SOL_IPV6, unix.IPV6_TCLASS, 0x28, unix.IPV6_RECVTCLASS, nil},
			mark,
		}
	}
	return []label{
		{"TTL", unix.SOL_IP, unix.IP_TTL, 33, unix.IP_RECVTTL, nil},
		{"TOS", unix.SOL_IP, unix.IP_TOS, 0x28, unix.IP_RECVTOS, nil},
		mark,
	}
}

var _ = add(Case{
	Name:   "mixes/labels",
	Doc:    "TTL or hop limit, TOS or traffic class and mark, given as control messages of a zero-copy send, reach the receiver, each alone and all together, and the send is notified",
	Covers: []string{"Z82"},
	Axes:   Everywhere.For(UDP),
}, func(t *T) {
	pair := t.Pair()
	var seen []label
	for _, label := range labels(t.Family) {
		if err := sys.SetsockoptInt(pair.Receiver.FD, int(label.level), label.ask, 1); err != nil {
			t.Logf("the receiver cannot ask for the %s: %v", label.name, err) // SO_RCVMARK came in 5.19
			label.links = []network.Link{}
		}
		seen = append(seen, label)
	}
	sets := [][]label{seen, {seen[0]}, {seen[1]}, {seen[2]}, nil}
	for i, set := range sets {
		var control []byte
		for _, label := range set {
			control = notify.AppendControl(control, label.level, label.kind, binary.NativeEndian.AppendUint32(nil, label.value))
		}
		data := t.Payload(600, byte(i))
		count, err := notify.Send(pair.Sender.FD, &notify.Message{
			Buffers: [][]byte{data}, Control: control, Flags: unix.MSG_ZEROCOPY,
		})
		t.Check(err, "zero-copy send with control messages")
		if count != len(data) {
			t.Fatalf("a send of %d bytes took %d", len(data), count)
		}
		got := receiveLabels(t, pair.Receiver, data)
		for _, label := range seen {
			if label.links != nil && !slices.Contains(label.links, t.Link) {
				continue
			}
			value, found := got[[2]int32{label.level, label.kind}]
			labelled := false
			for _, one := range set {
				labelled = labelled || one.name == label.name
			}
			switch {
			case !found:
				t.Errorf("the receiver asked for the %s and got none", label.name)
			case labelled && value != label.value:
				t.Errorf("the %s of the datagram is %#x where its control message said %#x", label.name, value, label.value)
			case !labelled && value == label.value:
				t.Errorf("a datagram without a control message for it has the %s %#x of another", label.name, value)
			}
		}
	}
	pair.Sender.Collect(len(sets))
})

// receiveLabels receives a datagram, which must be want, and returns the control
// messages with it by level and type, each as a number. It ends the case.
func receiveLabels(t *T, s *Socket, want []byte) map[[2]int32]uint32 {
	t.Helper()
	message := &notify.Message{Buffers: [][]byte{make([]byte, len(want)+1)}, Control: make([]byte, 256)}
	var count int
	t.Check(again(func() (err error) {
		count, err = notify.Receive(s.FD, message)
		return err
	}), "receive")
	if !bytes.Equal(message.Buffers[0][:count], want) {
		t.Errorf("the peer received other data than was sent")
	}
	messages, err := notify.ParseControl(message.Control[:message.After.Controllen])
	t.Check(err, "control messages of a datagram")
	got := make(map[[2]int32]uint32)
	for _, m := range messages {
		switch len(m.Data) {
		case 1: // IP_TOS
			got[[2]int32{m.Level, m.Type}] = uint32(m.Data[0])
		case 4:
			got[[2]int32{m.Level, m.Type}] = binary.NativeEndian.Uint32(m.Data)
		}
	}
	return got
}

var _ = add(Case{
	Name:   "mixes/transmit-time",
	Doc:    "a zero-copy send with a transmit time arrives and is notified; without SO_TXTIME on the socket it is EINVAL and takes no id",
	Covers: []string{"Z82", "Z11"},
	Axes:   Everywhere,
}, func(t *T) {
	pair := t.Pair(noDelay)
	send := func(data []byte) error {
		var now unix.Timespec
		t.Check(unix.ClockGettime(unix.CLOCK_MONOTONIC, &now), "clock_gettime")
		// Over by the time it is looked at, so that nothing waits.
		control := notify.AppendControl(nil, unix.SOL_SOCKET, unix.SCM_TXTIME, binary.NativeEndian.AppendUint64(nil, uint64(now.Nano())))
		_, err := notify.Send(pair.Sender.FD, &notify.Message{Buffers: [][]byte{data}, Control: control, Flags: unix.MSG_ZEROCOPY | unix.MSG_NOSIGNAL})
		return err
	}
	data := t.Payload(800, 1)
	aroundFailure(t, pair, unix.EINVAL, func() error { return send(data) })

	// struct sock_txtime: clock and flags.
	clock := binary.NativeEndian.AppendUint32(nil, unix.CLOCK_MONOTONIC)
	err := sys.SetsockoptString(pair.Sender.FD, unix.SOL_SOCKET, unix.SO_TXTIME, string(binary.NativeEndian.AppendUint32(clock, 0)))
	if errors.Is(err, unix.ENOPROTOOPT) {
		t.Skipf("no SO_TXTIME (in kernels since 4.19): %v", err)
	}
	t.Check(err, "SO_TXTIME")
	t.Check(send(data), "zero-copy send with SCM_TXTIME")
	pair.Receiver.MustReceive(data)
	pair.Receiver.Acknowledge()
	var ledger notify.Ledger
	_, err = notify.Collect(pair.Sender.FD, &ledger, 1, t.Patience())
	t.Check(err, "read the error queue")
	expectRanges(t, ledger.Entries(), "[2,2]", "the two sends before and this one have ids, the refused ones have none")
})
