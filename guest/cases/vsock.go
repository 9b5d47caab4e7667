// SPDX-License-Identifier: BSD-3-Clause

package cases

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/zcvet/zcvet/guest/notify"
	"github.com/zcvet/zcvet/guest/sys"
)

// vsockKind is a kind of VSOCK sockets.
type vsockKind struct {
	name string
	kind int
}

var vsockKinds = []vsockKind{{"stream", unix.SOCK_STREAM}, {"seqpacket", unix.SOCK_SEQPACKET}}

// vsockPair connects two VSOCK sockets over the loopback transport, the sender's
// with SO_ZEROCOPY set. It ends the case.
func vsockPair(t *T, kind vsockKind) *Pair {
	t.Helper()
	listener := t.SocketOf(ReceiverEnd, unix.AF_VSOCK, kind.kind, 0)
	t.Check(sys.Bind(listener.FD, &unix.SockaddrVM{CID: unix.VMADDR_CID_LOCAL, Port: unix.VMADDR_PORT_ANY}), "bind")
	sender := t.SocketOf(SenderEnd, unix.AF_VSOCK, kind.kind, 0)
	// Room for all that a case sends, whether or not it has been read: a send that
	// has to wait for room goes on with another id, because the transport gets each
	// piece for itself (vsock_connectible_sendmsg). What may be on its way is bounded
	// by the sender's size too.
	for _, socket := range []*Socket{listener, sender} {
		for _, option := range []int{unix.SO_VM_SOCKETS_BUFFER_MAX_SIZE, unix.SO_VM_SOCKETS_BUFFER_SIZE} {
			size := binary.NativeEndian.AppendUint64(nil, 4<<20)
			t.Check(sys.SetsockoptBytes(socket.FD, unix.AF_VSOCK, option, size), "make room for what is sent")
		}
	}
	listener.Listen()
	sender.SetZerocopy(true)
	sender.Connect(listener)
	receiver := listener.Accept()
	listener.Close()
	return &Pair{Sender: sender, Receiver: receiver}
}

// mustReceiveVSOCK receives what was sent by one call, as one message where the
// kind of socket keeps messages apart. It ends the case.
func (s *Socket) mustReceiveVSOCK(kind vsockKind, want []byte) {
	s.t.Helper()
	if kind.kind == unix.SOCK_STREAM {
		s.MustReceive(want)
		return
	}
	// A byte more, so that a longer message is seen.
	buffer := make([]byte, len(want)+1)
	count := 0
	s.t.Check(again(func() (err error) {
		count, _, err = sys.Recvfrom(s.FD, buffer, 0)
		return err
	}), "receive a message")
	if !bytes.Equal(buffer[:count], want) {
		s.t.Errorf("the peer received a message of %d bytes that is not the one of %d bytes that was sent", count, len(want))
	}
}

// shape lays out the data of a send: the length of each buffer and where it
// begins in its first page.
type shape struct {
	name    string
	buffers []placed
}

// placed is a buffer that begins at an offset of its first page.
type placed struct{ offset, length int }

// shapes are those of the kernel's own tests of VSOCK, and some around the limits
// of a packet, 64 KiB or 17 pages.
var shapes = []shape{
	{"one byte", []placed{{0, 1}}},
	{"aligned buffers", []placed{{0, 4096}, {0, 2 * 4096}, {0, 3 * 4096}}},
	{"an odd tail", []placed{{0, 4096}, {0, 4096}, {0, 200}}},
	{"an unaligned buffer in the middle", []placed{{0, 4096}, {1, 100}, {0, 4096}}},
	{"unaligned from start to end", []placed{{3, 5000}}},
	{"exactly 64 KiB", []placed{{0, 64 << 10}}},
	{"a byte more than 64 KiB", []placed{{0, 64<<10 + 1}}},
	{"192 KiB in three buffers", []placed{{0, 64 << 10}, {0, 64 << 10}, {0, 64 << 10}}},
	{"17 buffers of a byte", slices.Repeat([]placed{{7, 1}}, mostFragments)},
	{"18 buffers of a byte", slices.Repeat([]placed{{7, 1}}, mostFragments+1)},
	{"one byte more", []placed{{0, 1}}},
}

// mostFragments is MAX_SKB_FRAGS, pieces of memory that one packet can have.
const mostFragments = 17

// lay makes the buffers of the shape, and returns their contents one after the
// other, too. It ends the case.
func (s shape) lay(t *T) (buffers [][]byte, whole []byte) {
	t.Helper()
	for i, part := range s.buffers {
		buffer := t.Payload(part.offset+part.length, byte(i))[part.offset:]
		buffers = append(buffers, buffer)
		whole = append(whole, buffer...)
	}
	return buffers, whole
}

var _ = add(Case{
	Name:   "vsock/shapes",
	Doc:    "VSOCK sends of every shape, stream and seqpacket, arrive byte for byte, take one id each and are notified exactly once",
	Covers: []string{"Z85", "Z10", "Z30", "Z70"},
	Axes:   Axes{Protos: []Proto{VSOCK}},
}, func(t *T) {
	for _, kind := range vsockKinds {
		pair := vsockPair(t, kind)
		sends := 0
		for _, shape := range shapes {
			t.Logf("%s, %s", kind.name, shape.name)
			buffers, whole := shape.lay(t)
			count, err := notify.SendZerocopy(pair.Sender.FD, unix.MSG_NOSIGNAL, buffers...)
			if errors.Is(err, unix.ENOMEM) && len(buffers) > mostFragments {
				// Its refusal must not take an id.
				continue
			}
			t.Check(err, "zero-copy send: "+kind.name+", "+shape.name)
			if count != len(whole) {
				t.Fatalf("%s, %s: a send of %d bytes took %d", kind.name, shape.name, len(whole), count)
			}
			pair.Receiver.mustReceiveVSOCK(kind, whole)
			if t.Failed() {
				return
			}
			sends++
		}
		for _, entry := range pair.Sender.Collect(sends) {
			if entry.Level != solVsock || entry.CmsgType != vsockRecverr {
				t.Errorf("%s: the notification %v came as level %d, type %d and not as SOL_VSOCK, VSOCK_RECVERR", kind.name, entry, entry.Level, entry.CmsgType)
			}
		}
		pair.Sender.ExpectNoError()
	}
})

var _ = add(Case{
	Name:   "vsock/not-copied",
	Doc:    "the loopback transport of VSOCK hands on the sender's pages, and says so",
	Covers: []string{"Z85", "Z51"},
	Level:  Should,
	Axes:   Axes{Protos: []Proto{VSOCK}},
}, func(t *T) {
	for _, kind := range vsockKinds {
		pair := vsockPair(t, kind)
		data := t.Payload(3*notify.PageSize, 1)
		_, err := notify.SendZerocopy(pair.Sender.FD, unix.MSG_NOSIGNAL, data[:notify.PageSize], data[notify.PageSize:])
		t.Check(err, "zero-copy send")
		pair.Receiver.mustReceiveVSOCK(kind, data)
		if entry := pair.Sender.Collect(1)[0]; entry.Copied {
			t.Errorf("%s: whole pages were copied: %v", kind.name, entry)
		}
	}
})

var _ = add(Case{
	Name:   "vsock/not-before-read",
	Doc:    "a VSOCK buffer that was notified can be overwritten: the peer receives what was sent, although it reads later",
	Covers: []string{"Z85", "Z72", "Z3A"},
	Axes:   Axes{Protos: []Proto{VSOCK}},
}, func(t *T) {
	for _, kind := range vsockKinds {
		pair := vsockPair(t, kind)
		var sent, buffers [][]byte
		for i := range 4 {
			buffer := t.Payload((i+1)*5000, byte(i))
			buffers = append(buffers, buffer)
			sent = append(sent, bytes.Clone(buffer))
			pair.Sender.MustSend(buffer, unix.MSG_ZEROCOPY)
		}
		var ledger notify.Ledger
		overwrite := func() {
			t.Helper()
			entries := pair.Sender.Drain()
			ledger.Add(entries...)
			for _, entry := range entries {
				for id := entry.Low; id <= entry.High && int(id) < len(buffers); id++ {
					notify.Pattern(buffers[id], 0xee)
				}
			}
		}
		for i, want := range sent {
			// The kernel has handed the data on; whoever notified it then, or
			// sooner, promised not to look at the buffer again.
			t.Eventually("data for the peer", func() bool {
				polled := []unix.PollFd{{Fd: int32(pair.Receiver.FD), Events: unix.POLLIN}}
				_, err := sys.Poll(polled, 0)
				return err == nil && polled[0].Revents&unix.POLLIN != 0
			})
			overwrite()
			pair.Receiver.mustReceiveVSOCK(kind, want)
			if t.Failed() {
				t.Fatalf("%s: message %d was overwritten after its notification, and the peer sees it", kind.name, i)
			}
		}
		pair.Sender.CollectInto(&ledger, len(sent))
	}
})

var _ = add(Case{
	Name:   "vsock/unmapped-middle",
	Doc:    "a VSOCK send with a buffer that cannot be read in its middle fails or is short, takes an id only if it sent something, and leaves the connection usable",
	Covers: []string{"Z85", "Z11", "Z62"},
	Axes:   Axes{Protos: []Proto{VSOCK}},
}, func(t *T) {
	hole := t.Memory(1)
	t.Check(hole.Protect(0, 1, notify.NoAccess), "mprotect")
	for _, kind := range vsockKinds {
		for _, before := range []int{notify.PageSize, 100 << 10} {
			if kind.kind == unix.SOCK_SEQPACKET && before > 64<<10 {
				continue // what is left of a message that fails half-way is nobody's contract
			}
			pair := vsockPair(t, kind)
			first, tail := t.Payload(before, 1), t.Payload(notify.PageSize, 2)
			sends := 0
			for range 2 {
				count, err := notify.SendZerocopy(pair.Sender.FD, unix.MSG_NOSIGNAL, first, hole.Bytes(), tail)
				switch {
				// The kernel has answered either.
				case errors.Is(err, unix.ENOMEM) || errors.Is(err, unix.EFAULT):
				case err != nil:
					t.Errorf("%s, %d bytes before the hole: EFAULT or ENOMEM was expected, came %v", kind.name, before, err)
				case count > before:
					t.Fatalf("%s: a send claims %d bytes, only %d of them can be read", kind.name, count, before)
				default:
					sends++
					pair.Receiver.mustReceiveVSOCK(kind, first[:count])
				}
			}
			whole := t.Payload(3000, 3)
			pair.Sender.MustSend(whole, unix.MSG_ZEROCOPY)
			pair.Receiver.mustReceiveVSOCK(kind, whole)
			pair.Sender.Collect(sends + 1)
		}
	}
})

var _ = add(Case{
	Name:   "vsock/beside-copied-sends",
	Doc:    "copied VSOCK sends, and zero-copy sends while SO_ZEROCOPY is off, take no id and keep their place",
	Covers: []string{"Z85", "Z15", "Z01"},
	Axes:   Axes{Protos: []Proto{VSOCK}},
}, func(t *T) {
	for _, kind := range vsockKinds {
		pair := vsockPair(t, kind)
		pattern := "zczzcoz" // o: zero-copy send with the option off
		for i, letter := range pattern {
			data := t.Payload(1000+i, byte(i))
			flags := unix.MSG_ZEROCOPY
			if letter == 'c' {
				flags = 0
			}
			pair.Sender.SetZerocopy(letter != 'o')
			pair.Sender.MustSend(data, flags)
			pair.Receiver.mustReceiveVSOCK(kind, data)
		}
		pair.Sender.Collect(strings.Count(pattern, "z"))
		pair.Sender.ExpectNothing("copied sends are not notified")
	}
})

var _ = add(Case{
	Name:   "vsock/close-before-read",
	Doc:    "a VSOCK socket closed with zero-copy sends that the peer has not read loses no data",
	Covers: []string{"Z85", "Z37"},
	Axes:   Axes{Protos: []Proto{VSOCK}},
}, func(t *T) {
	for _, kind := range vsockKinds {
		pair := vsockPair(t, kind)
		data := t.Payload(70<<10, 1)
		pair.Sender.MustSend(data, unix.MSG_ZEROCOPY)
		pair.Sender.Close()
		pair.Receiver.mustReceiveVSOCK(kind, data)
	}
})
