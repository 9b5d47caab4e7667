// SPDX-License-Identifier: BSD-3-Clause

package cases

import (
	"bytes"
	"errors"

	"golang.org/x/sys/unix"

	"github.com/zcvet/zcvet/guest/network"
	"github.com/zcvet/zcvet/guest/notify"
	"github.com/zcvet/zcvet/guest/sys"
)

// sendAndAwait makes one zerocopy send and waits, without reading it, until its
// notification is in the error queue.
func sendAndAwait(t *T, pair *Pair) {
	t.Helper()
	data := t.Payload(1000, 4)
	pair.Sender.MustSend(data, unix.MSG_ZEROCOPY)
	pair.Receiver.MustReceive(data)
	pair.Sender.AwaitPending()
}

// AwaitPending waits until poll reports POLLERR. It ends the case.
func (s *Socket) AwaitPending() {
	s.t.Helper()
	pending, err := notify.Wait(s.FD, s.t.Patience())
	s.t.Check(err, "poll")
	if !pending {
		s.t.Fatalf("no POLLERR in %v: the notification of a finished send does not come", s.t.Patience())
	}
}

var _ = add(Case{
	Name:   "content/fields",
	Doc:    "a notification is one control message of the socket's family with origin 5, errno 0, an inclusive range, and no other bit than COPIED",
	Covers: []string{"Z20", "Z21"},
	Axes:   EveryProtocol.Over(network.IPv4, network.IPv6, network.Mapped),
}, func(t *T) {
	pair := t.Pair()
	sendAndAwait(t, pair)
	entries := pair.Sender.Drain()
	if len(entries) != 1 {
		t.Fatalf("one send gave %d entries: %v", len(entries), entries)
	}
	got := entries[0]
	// The socket's family decides, not the packet's: an application asks for
	// what belongs to the socket it opened.
	level, kind := int32(unix.SOL_IPV6), int32(unix.IPV6_RECVERR)
	switch {
	case t.Proto == VSOCK:
		level, kind = solVsock, vsockRecverr
	case t.Family == network.IPv4:
		level, kind = unix.SOL_IP, unix.IP_RECVERR
	}
	if got.Level != level || got.CmsgType != kind {
		t.Errorf("the control message has level %d and type %d, want %d and %d", got.Level, got.CmsgType, level, kind)
	}
	if len(got.Others) > 0 {
		t.Errorf("there are control messages nobody asked for: %v", got.Others)
	}
	if got.Origin != notify.OriginZerocopy || got.Errno != 0 || got.Type != 0 {
		t.Errorf("origin %d, errno %d, type %d; want 5, 0, 0: that is how notifications are told from errors", got.Origin, got.Errno, got.Type)
	}
	if got.Code&^notify.CodeCopied != 0 {
		t.Errorf("code %#x has other bits than SO_EE_CODE_ZEROCOPY_COPIED", got.Code)
	}
	if got.Low != 0 || got.High != 0 {
		t.Errorf("the range of the first send is [%d,%d], want [0,0]: both ends are inclusive", got.Low, got.High)
	}
})

// solVsock and vsockRecverr are SOL_VSOCK and VSOCK_RECVERR
// (uapi/linux/vm_sockets.h).
const (
	solVsock     = 287
	vsockRecverr = 1
)

var _ = add(Case{
	Name:   "content/message",
	Doc:    "reading a notification gives 0 bytes, sets MSG_ERRQUEUE and neither MSG_CTRUNC nor MSG_TRUNC, and leaves the data buffer alone",
	Covers: []string{"Z22"},
	Axes:   EveryProtocol,
}, func(t *T) {
	pair := t.Pair()
	sendAndAwait(t, pair)
	buffer, untouched := make([]byte, 256), bytes.Repeat([]byte{0xc3}, 256)
	copy(buffer, untouched)
	message := &notify.Message{Buffers: [][]byte{buffer}, Control: make([]byte, 256), Flags: unix.MSG_ERRQUEUE}
	count, err := notify.Receive(pair.Sender.FD, message)
	t.Check(err, "read the error queue")
	if count != 0 {
		t.Errorf("reading a notification gave %d bytes, want 0: it carries no data", count)
	}
	if !bytes.Equal(buffer, untouched) {
		t.Errorf("the data buffer was written to")
	}
	flags := int(message.After.Flags)
	if flags&unix.MSG_ERRQUEUE == 0 {
		t.Errorf("msg_flags %#x lacks MSG_ERRQUEUE: applications tell by it that this is no data", flags)
	}
	if flags&(unix.MSG_CTRUNC|unix.MSG_TRUNC) != 0 {
		t.Errorf("msg_flags %#x claims that something was cut off, and there was room", flags)
	}
})

var _ = add(Case{
	Name:   "content/control-too-small",
	Doc:    "a control buffer without room for the notification is reported by MSG_CTRUNC, and nothing is written behind it",
	Covers: []string{"Z23"},
	Axes:   EveryProtocol,
}, func(t *T) {
	pair := t.Pair()
	for _, room := range []int{0, 8, unix.SizeofCmsghdr, unix.CmsgLen(8)} {
		sendAndAwait(t, pair)
		control := bytes.Repeat([]byte{0xc3}, 256)
		message := &notify.Message{Buffers: [][]byte{make([]byte, 64)}, Control: control[:room], Flags: unix.MSG_ERRQUEUE}
		_, err := notify.Receive(pair.Sender.FD, message)
		t.Check(err, "read the error queue")
		if flags := int(message.After.Flags); flags&unix.MSG_CTRUNC == 0 {
			t.Errorf("with %d bytes of control buffer msg_flags is %#x without MSG_CTRUNC: the application cannot know that a notification is lost", room, flags)
		}
		if rest := control[room:]; !bytes.Equal(rest, bytes.Repeat([]byte{0xc3}, len(rest))) {
			t.Errorf("with %d bytes of control buffer the kernel wrote behind its end", room)
		}
	}
})

var _ = add(Case{
	Name:   "content/empty-queue",
	Doc:    "reading an empty error queue fails with EAGAIN at once, on a blocking socket too",
	Covers: []string{"Z24"},
	Axes:   EveryProtocol,
}, func(t *T) {
	pair := t.Pair()
	// Without a limit a kernel that blocks here blocks for ever, and the case
	// ends by its time-out. With one it would answer EAGAIN in the end.
	t.Check(sys.SetsockoptTimeval(pair.Sender.FD, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{}), "SO_RCVTIMEO")
	expect := func(when string) {
		t.Helper()
		if entry, err := notify.Next(pair.Sender.FD); !errors.Is(err, unix.EAGAIN) {
			t.Errorf("reading the error queue %s: %v, %v; want EAGAIN", when, entry, err)
		}
	}
	expect("of a fresh connection")
	sendAndAwait(t, pair)
	pair.Sender.Collect(1)
	expect("after the last entry")
})

var _ = add(Case{
	Name:   "content/many-at-once",
	Doc:    "recvmmsg reads one entry per message",
	Covers: []string{"Z25"},
	Axes:   Everywhere,
}, func(t *T) {
	queue := t.NewQueue()
	queue.Fill(3)
	const entries = 5 // three notifications and the timestamps between them
	messages := make([]*notify.Message, entries+3)
	for i := range messages {
		messages[i] = &notify.Message{Buffers: [][]byte{make([]byte, 64)}, Control: make([]byte, 256)}
	}
	lengths, err := notify.ReceiveMany(queue.Sender.FD, messages, unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
	t.Check(err, "recvmmsg")
	if len(lengths) != entries {
		t.Fatalf("recvmmsg gave %d entries of a queue of %d", len(lengths), entries)
	}
	var ledger notify.Ledger
	var timestamps []notify.Notification
	for i, message := range messages[:entries] {
		entry, err := notify.ParseEntry(message.Control[:message.After.Controllen], int(message.After.Flags))
		t.Check(err, "parse an entry")
		if entry.Zerocopy() != (i%2 == 0) {
			t.Errorf("entry %d is %v: the order of the queue is lost", i, entry)
		}
		if entry.Zerocopy() {
			ledger.Add(entry)
		} else {
			timestamps = append(timestamps, entry)
		}
	}
	if err := ledger.Check(3); err != nil {
		t.Errorf("%v", err)
	}
	queue.ExpectTimestamps(timestamps)
})

var _ = add(Case{
	Name:   "content/io-undisturbed",
	Doc:    "pending notifications disturb neither reads nor writes and set no socket error",
	Covers: []string{"Z26"},
	Axes:   EveryProtocol,
}, func(t *T) {
	// The address lets the receiver of datagrams answer.
	pair := t.Pair(func(s *Socket) {
		if t.Proto == UDP {
			t.Check(sys.Bind(s.FD, Sockaddr(addressOnly(t.Address(SenderEnd)))), "bind")
		}
	})
	if t.Proto == UDP {
		pair.Receiver.Connect(pair.Sender)
	}
	sendAndAwait(t, pair)
	for i := range 3 {
		there, back := t.Payload(500, byte(2*i)), t.Payload(600, byte(2*i+1))
		pair.Sender.MustSend(there, 0)
		pair.Receiver.MustReceive(there)
		pair.Receiver.MustSend(back, 0)
		pair.Sender.MustReceive(back)
		pair.Sender.ExpectNoError()
	}
	if _, err := sys.Read(pair.Sender.FD, nil); err != nil {
		t.Errorf("a read of no bytes: %v", err)
	}
	pair.Sender.Collect(1)
})
