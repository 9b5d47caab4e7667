// SPDX-License-Identifier: BSD-3-Clause

package cases

import (
	"bytes"
	"errors"

	"golang.org/x/sys/unix"

	"github.com/zcvet/zcvet/guest/network"
	"github.com/zcvet/zcvet/guest/nic"
	"github.com/zcvet/zcvet/guest/notify"
)

var _ = add(Case{
	Name:   "data/byte-for-byte",
	Doc:    "the peer receives exactly what was sent, for every size and alignment, in one buffer and scattered over many",
	Covers: []string{"Z70", "Z52"},
	Axes:   Everywhere,
}, func(t *T) {
	pair := t.Pair()
	sizes := []int{1, 2, 63, 1000, 1448, 4095, 4096, 4097, 12289}
	if t.Proto == UDP {
		sizes = append(sizes, 30000)
	} else {
		sizes = append(sizes, 65536)
	}
	memory := t.Payload(100000, 5)
	sends := 0
	var ledger notify.Ledger
	for i, size := range sizes {
		for _, offset := range []int{0, 1, notify.PageSize - 1} {
			part := memory[offset+i*3:][:size]
			// Uneven pieces, an empty one among them.
			pieces := [][]byte{part[:size/3], {}, part[size/3 : size/2], part[size/2:]}
			if offset == 0 {
				pieces = [][]byte{part}
			}
			count, err := notify.SendZerocopy(pair.Sender.FD, unix.MSG_NOSIGNAL, pieces...)
			t.Check(err, "zerocopy send")
			if count != size {
				t.Fatalf("a send of %d bytes to a peer with room for them took %d", size, count)
			}
			sends++
			pair.Receiver.MustReceive(part)
			pair.Sender.CollectInto(&ledger, sends)
		}
	}
})

var _ = add(Case{
	Name:   "data/reuse-after-notification",
	Doc:    "what an application writes into a buffer after its notification never reaches the peer",
	Covers: []string{"Z72"},
	Axes:   Everywhere,
}, func(t *T) { reuse(t, t.Pair(noDelay), 24) })

var _ = add(Case{
	Name:   "data/reuse-under-loss",
	Doc:    "nor when segments are lost, doubled and reordered, and so sent again",
	Covers: []string{"Z72", "Z35"},
	Axes:   OnNICs.For(TCP),
}, func(t *T) {
	pair := t.Pair(noDelay)
	expectDisturbed := t.disturb(
		nic.Rule{Match: nic.TCPData, Action: nic.Drop, Skip: 3, Count: 1},
		nic.Rule{Match: nic.TCPData, Action: nic.Duplicate, Skip: 2, Count: 2},
		nic.Rule{Match: nic.TCPData, Action: nic.Delay, By: 1, Skip: 1, Count: 2},
		nic.Rule{Match: nic.TCPData, Action: nic.Drop, Skip: 2, Count: 2},
	)
	reuse(t, pair, 24)
	expectDisturbed()
})

// reuse sends from a few buffers over and over, as fast as notifications come,
// and overwrites each the moment its notification is read.
func reuse(t *T, pair *Pair, sends int) {
	t.Helper()
	size := 6000
	if t.Proto == UDP {
		size = 1200
	}
	// A stream keeps several sends in flight; a datagram goes in step, because
	// it may be lost when nobody takes it.
	buffers := make([][]byte, 3)
	if t.Proto == UDP {
		buffers = buffers[:1]
	}
	for i := range buffers {
		buffers[i] = t.Payload(size, 0)
	}
	expected := func(send int) []byte {
		data := make([]byte, size)
		notify.Pattern(data, byte(send))
		return data
	}
	var ledger notify.Ledger
	type span struct{ first, last uint32 }
	var calls []span // the numbers of the calls each send took
	next := 0
	send := func(i int) bool {
		buffer := buffers[i%len(buffers)]
		if i >= len(buffers) {
			// The buffer is free when every call that sent from it is notified.
			for last := calls[i-len(buffers)]; !ledger.Has(last.first, last.last); {
				covered := ledger.Covered()
				if _, err := notify.Collect(pair.Sender.FD, &ledger, covered+1, t.Patience()); err != nil {
					t.Errorf("read the error queue: %v", err)
					return false
				}
				if ledger.Covered() == covered {
					t.Errorf("send %d was not notified in %v", i-len(buffers), t.Patience())
					return false
				}
			}
		}
		notify.Pattern(buffer, byte(i))
		first := next
		for data := buffer; len(data) > 0; {
			count, err := pair.Sender.Send(data, unix.MSG_ZEROCOPY)
			if err != nil {
				t.Errorf("send %d: %v", i, err)
				return false
			}
			data = data[count:]
			next++
		}
		calls = append(calls, span{uint32(first), uint32(next - 1)})
		return true
	}
	if t.Proto == UDP {
		for i := range sends {
			if !send(i) {
				return
			}
			pair.Receiver.MustReceive(expected(i))
		}
	} else {
		t.Go(func() {
			for i := range sends {
				if !send(i) {
					return
				}
			}
		})
		for i := range sends {
			pair.Receiver.MustReceive(expected(i))
		}
		t.group.Wait()
	}
	pair.Sender.CollectInto(&ledger, next)
}

var _ = add(Case{
	Name:   "data/memory-goes-away",
	Doc:    "memory that is write-protected, made inaccessible or unmapped right after the send still reaches the peer as it was",
	Covers: []string{"Z63", "Z71"},
	Axes:   Everywhere,
}, func(t *T) {
	pair := t.Pair(noDelay)
	if t.Link == network.NIC {
		t.NIC().Hold(true) // so that the device holds the pages meanwhile
	}
	takings := []struct {
		name   string
		before func(*notify.Memory) error
		after  func(*notify.Memory) error
	}{
		{name: "read-only before", before: func(m *notify.Memory) error { return m.Protect(0, 2, notify.ReadOnly) }},
		{name: "read-only after", after: func(m *notify.Memory) error { return m.Protect(0, 2, notify.ReadOnly) }},
		{name: "no access after", after: func(m *notify.Memory) error { return m.Protect(0, 2, notify.NoAccess) }},
		{name: "unmapped after", after: (*notify.Memory).Close},
	}
	for i, taking := range takings {
		memory := t.Memory(2)
		memory.Fill(byte(i))
		part := memory.Bytes()[notify.PageSize-600:][:1200]
		want := bytes.Clone(part)
		if taking.before != nil {
			t.Check(taking.before(memory), taking.name)
		}
		pair.Sender.MustSend(part, unix.MSG_ZEROCOPY)
		if taking.after != nil {
			t.Check(taking.after(memory), taking.name)
		}
		t.Logf("memory %s", taking.name)
		pair.Receiver.MustReceive(want)
	}
	if t.Link == network.NIC {
		t.NIC().Hold(false)
	}
	pair.Sender.Collect(len(takings))
})

var _ = add(Case{
	Name:   "data/partly-unmapped",
	Doc:    "of a buffer that ends in memory that cannot be read nothing is sent but what a short count says, and a failed send takes no id",
	Covers: []string{"Z62", "Z11"},
	Axes:   Everywhere,
}, func(t *T) {
	pair := t.Pair(noDelay)
	sends := 0
	for _, hole := range []struct {
		name string
		make func(*notify.Memory) error
	}{
		{"no access", func(m *notify.Memory) error { return m.Protect(2, 1, notify.NoAccess) }},
		{"not mapped", func(m *notify.Memory) error { return m.Unmap(2, 1) }},
	} {
		memory := t.Memory(4)
		memory.Fill(4)
		t.Check(hole.make(memory), hole.name)
		const readable = 700 // bytes in front of the hole
		part := memory.Bytes()[2*notify.PageSize-readable:][:2*readable]
		behind := memory.Bytes()[3*notify.PageSize:][:readable]
		for _, buffers := range [][][]byte{
			{part},                             // one piece with the hole in it
			{part[:readable], part[readable:]}, // the hole begins with a piece
			{part[:readable], part[readable:], behind}, // and there is more behind it
		} {
			count, err := notify.SendZerocopy(pair.Sender.FD, unix.MSG_NOSIGNAL, buffers...)
			switch {
			case err == nil && t.Proto == TCP && count <= readable:
				sends++
				pair.Receiver.MustReceive(part[:count])
			case err == nil:
				t.Fatalf("%s: the send of %d pieces took %d bytes, of which %d at most can be read", hole.name, len(buffers), count, readable)
			case !errors.Is(err, unix.EFAULT):
				t.Errorf("%s: EFAULT or a short send was expected, came %v", hole.name, err)
			}
		}
		pair.Sender.MustSend(part[:readable], unix.MSG_ZEROCOPY)
		sends++
		pair.Receiver.MustReceive(part[:readable])
	}
	pair.Sender.Collect(sends)
})

var _ = add(Case{
	Name:   "data/late-dma",
	Doc:    "a device that reads the payload late still reads what was sent: the application overwrites its buffer as soon as it is notified, and not before",
	Covers: []string{"Z72", "Z3A"},
	Axes:   OnNIC,
}, func(t *T) {
	pair := t.Pair(noDelay)
	t.NIC().LateDMA(true)
	buffer := t.Payload(1200, 0)
	var ledger notify.Ledger
	for send := range 4 {
		t.NIC().Hold(true)
		want := make([]byte, len(buffer))
		notify.Pattern(want, byte(send))
		copy(buffer, want)
		pair.Sender.MustSend(buffer, unix.MSG_ZEROCOPY)
		t.Eventually("the device has the frame and has not read it", func() bool { return heldFrames(t) > 0 })
		if entries := pair.Sender.Drain(); len(entries) > 0 {
			// As an application would, which makes the damage visible to the peer.
			notify.Pattern(buffer, 0xee)
			t.Errorf("%v came before the device read the payload: the application would overwrite data not yet sent", entries)
		}
		// For good: on a slow machine TCP may send again what it thinks is
		// lost, and that frame must not stay in the device either.
		t.NIC().Hold(false)
		pair.Receiver.MustReceive(want)
		pair.Sender.CollectInto(&ledger, send+1)
		notify.Pattern(buffer, 0xee)
	}
	pair.Sender.ExpectNoError()
})

// heldFrames counts the frames with payload that the sender's device holds.
func heldFrames(t *T) int {
	held := 0
	for _, frame := range t.NIC().Frames(t.NIC().Sender, 0, nic.AnyFrame).Frames {
		if frame.Held && frame.Payload > 0 {
			held++
		}
	}
	return held
}

var _ = add(Case{
	Name:   "data/late-dma-after-loss",
	Doc:    "nor does a buffer change under a retransmission that the device reads late",
	Covers: []string{"Z72", "Z36", "Z3A"},
	Axes:   OnNIC.For(TCP),
}, func(t *T) {
	t.probeForLoss()
	pair := t.Pair(noDelay)
	lost := t.NIC().AddRule(nic.Rule{Port: t.NIC().Sender, Match: nic.TCPData, Action: nic.Drop})
	buffer := t.Payload(1200, 1)
	want := make([]byte, len(buffer))
	copy(want, buffer)
	pair.Sender.MustSend(buffer, unix.MSG_ZEROCOPY)
	t.DeviceBarrier() // a first transmission is done and lost
	t.NIC().Hold(true)
	t.NIC().LateDMA(true)
	t.NIC().RemoveRule(lost)
	t.Eventually("the device holds the retransmission", func() bool { return heldFrames(t) > 0 })
	if entries := pair.Sender.Drain(); len(entries) > 0 {
		notify.Pattern(buffer, 0xee)
		t.Errorf("%v came before the retransmission was read and acknowledged", entries)
	}
	t.NIC().Hold(false)
	pair.Receiver.MustReceive(want)
	pair.Sender.Collect(1)
})
