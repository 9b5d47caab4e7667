// SPDX-License-Identifier: BSD-3-Clause

package cases

import (
	"bytes"
	"errors"
	"net/netip"
	"os"
	"slices"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/zcvet/zcvet/guest/network"
	"github.com/zcvet/zcvet/guest/notify"
	"github.com/zcvet/zcvet/guest/sys"
)

var _ = add(Case{
	Name:   "counter/consecutive-ids",
	Doc:    "each successful zerocopy send takes one id, counted from 0 without a gap",
	Covers: []string{"Z10", "Z30"},
	Axes:   EveryProtocol,
}, func(t *T) {
	pair := t.Pair()
	const sends = 16
	for i := range sends {
		data := t.Payload(1000, byte(i))
		pair.Sender.MustSend(data, unix.MSG_ZEROCOPY)
		pair.Receiver.MustReceive(data)
	}
	pair.Sender.Collect(sends)
})

// aroundFailure makes a zerocopy send, one that must fail with want, and another,
// and expects that only the two have ids.
func aroundFailure(t *T, pair *Pair, want unix.Errno, fail func() error) {
	t.Helper()
	first, second := t.Payload(1000, 1), t.Payload(1000, 2)
	pair.Sender.MustSend(first, unix.MSG_ZEROCOPY)
	pair.Receiver.MustReceive(first)
	for range 3 {
		if err := fail(); !errors.Is(err, want) {
			t.Fatalf("the send that must fail: %v, want %v", err, want)
		}
	}
	pair.Sender.MustSend(second, unix.MSG_ZEROCOPY)
	pair.Receiver.MustReceive(second)
	pair.Sender.Collect(2)
}

var _ = add(Case{
	Name:   "counter/no-id-for-fault",
	Doc:    "a send from memory that cannot be read fails with EFAULT and takes no id",
	Covers: []string{"Z11", "Z62"},
	Axes:   Everywhere,
}, func(t *T) {
	memory := t.Memory(1)
	t.Check(memory.Protect(0, 1, notify.NoAccess), "mprotect")
	pair := t.Pair()
	aroundFailure(t, pair, unix.EFAULT, func() error {
		_, err := pair.Sender.Send(memory.Bytes()[:1000], unix.MSG_ZEROCOPY)
		return err
	})
})

var _ = add(Case{
	Name:   "counter/no-id-for-no-memory",
	Doc:    "a send that finds the socket's option memory used up fails with ENOBUFS and takes no id",
	Covers: []string{"Z11", "Z60"},
	Axes:   Everywhere,
}, func(t *T) {
	pair := t.Pair()
	data := t.Payload(1000, 7)
	aroundFailure(t, pair, unix.ENOBUFS, func() error {
		return withoutOptmem(t, func() error {
			_, err := pair.Sender.Send(data, unix.MSG_ZEROCOPY)
			return err
		})
	})
})

// withoutOptmem runs f while net.core.optmem_max has room for nothing.
func withoutOptmem(t *T, f func() error) error {
	t.Helper()
	before, err := os.ReadFile(optmemMax)
	t.Check(err, "read optmem_max")
	t.Check(sys.WriteFile(optmemMax, []byte("1")), "lower optmem_max")
	defer func() { t.Check(sys.WriteFile(optmemMax, bytes.TrimSpace(before)), "restore optmem_max") }()
	return f()
}

var _ = add(Case{
	Name:   "counter/no-id-without-destination",
	Doc:    "a send on a socket that is not connected, and one to a network that nothing leads to, fails and takes no id",
	Covers: []string{"Z11", "Z05"},
	Axes:   CopiedAndNot,
}, func(t *T) {
	data := t.Payload(1000, 7)
	pair := t.Pair(func(s *Socket) {
		want := unix.EPIPE
		if t.Proto == UDP {
			want = unix.EDESTADDRREQ
		}
		for range 3 {
			if _, err := s.Send(data, unix.MSG_ZEROCOPY); !errors.Is(err, want) {
				t.Fatalf("send before connect: %v, want %v", err, want)
			}
		}
		if t.Proto == TCP {
			return
		}
		nowhere := netip.AddrFrom4([4]byte{192, 88, 99, 1})
		if t.Family == network.IPv6 {
			nowhere = netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 0xff, 0xff, 15: 1})
		}
		message := &notify.Message{
			Name: notify.Address(netip.AddrPortFrom(nowhere, 9)), Buffers: [][]byte{data}, Flags: unix.MSG_ZEROCOPY,
		}
		if _, err := notify.Send(s.FD, message); !errors.Is(err, unix.ENETUNREACH) {
			t.Fatalf("send to a network without a route: %v, want ENETUNREACH", err)
		}
	})
	pair.Sender.MustSend(data, unix.MSG_ZEROCOPY)
	pair.Receiver.MustReceive(data)
	pair.Sender.Collect(1)
})

var _ = add(Case{
	Name:   "counter/no-id-for-refused-datagram",
	Doc:    "a datagram that is not sent because of what became of an earlier one takes no id",
	Covers: []string{"Z11"},
	Axes:   Everywhere.For(UDP),
}, func(t *T) {
	pair := t.Pair()
	data := t.Payload(1000, 7)
	var ledger notify.Ledger
	for sends := 1; sends <= 3; sends++ {
		pair.Sender.MustSend(data, unix.MSG_ZEROCOPY)
		pair.Receiver.MustReceive(data)
		pair.Sender.CollectInto(&ledger, sends)

		closed := t.Bound(ReceiverEnd)
		pair.Sender.Connect(closed)
		closed.Close()
		pair.Sender.MustSend(data, 0)
		// The answer of the peer becomes the error of the next send, which looks
		// at it after it has taken an id (sock_alloc_send_pskb).
		pair.Sender.AwaitPending()
		if _, err := pair.Sender.Send(data, unix.MSG_ZEROCOPY); !errors.Is(err, unix.ECONNREFUSED) {
			t.Fatalf("send after one to a closed port: %v, want ECONNREFUSED", err)
		}
		pair.Sender.Connect(pair.Receiver)
	}
})

var _ = add(Case{
	Name:   "counter/no-id-for-fault-behind-unsent-data",
	Doc:    "a failed send takes no id from the unsent one before it, with which a good send would share its notification",
	Covers: []string{"Z11", "Z30"},
	Axes:   Everywhere.For(TCP),
}, func(t *T) {
	memory := t.Memory(1)
	t.Check(memory.Protect(0, 1, notify.NoAccess), "mprotect")
	pair := t.Pair(noDelay)
	data := t.Payload(3000, 5)
	first, second, third := data[:1000], data[1000:2000], data[2000:]
	for i, part := range [][]byte{first, second} {
		pair.Sender.MustSend(part, unix.MSG_ZEROCOPY|unix.MSG_MORE)
		for range 2 {
			if _, err := pair.Sender.Send(memory.Bytes()[:500], unix.MSG_ZEROCOPY|unix.MSG_MORE); !errors.Is(err, unix.EFAULT) {
				t.Fatalf("send %d from memory that cannot be read: %v, want EFAULT", i, err)
			}
		}
	}
	pair.Sender.MustSend(third, unix.MSG_ZEROCOPY)
	pair.Receiver.MustReceive(data)
	pair.Sender.Collect(3)
})

var _ = add(Case{
	Name:   "counter/no-id-for-too-long",
	Doc:    "a datagram that does not fit the path fails with EMSGSIZE and takes no id",
	Covers: []string{"Z11"},
	Axes:   Everywhere.For(UDP),
}, func(t *T) {
	length := 2000 // over the link's MTU
	if t.Link == network.Loopback {
		length = 1<<16 + 1
	}
	data := t.Payload(length, 7)
	pair := t.Pair(func(s *Socket) {
		if t.Family == network.IPv6 {
			SetOption(unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DO)(s)
		} else {
			SetOption(unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO)(s)
		}
	})
	aroundFailure(t, pair, unix.EMSGSIZE, func() error {
		_, err := pair.Sender.Send(data, unix.MSG_ZEROCOPY)
		return err
	})
})

var _ = add(Case{
	Name:   "counter/no-id-after-shutdown",
	Doc:    "a send after shutdown fails with EPIPE and takes no id",
	Covers: []string{"Z11"},
	Axes:   Everywhere,
}, func(t *T) {
	pair := t.Pair()
	data := t.Payload(1000, 1)
	pair.Sender.MustSend(data, unix.MSG_ZEROCOPY)
	pair.Receiver.MustReceive(data)
	t.Check(sys.Shutdown(pair.Sender.FD, unix.SHUT_WR), "shutdown")
	for range 3 {
		if _, err := pair.Sender.Send(data, unix.MSG_ZEROCOPY); !errors.Is(err, unix.EPIPE) {
			t.Fatalf("send after shutdown: %v, want EPIPE", err)
		}
	}
	// A failed send that is notified all the same is so at once: its pages were
	// given to nobody.
	pair.Sender.Collect(1)
	pair.Sender.ExpectNothing("an application that counts its sends would free a buffer it does not have")
})

var _ = add(Case{
	Name:   "counter/no-id-for-full-buffer",
	Doc:    "a stream's send that would block fails with EAGAIN and takes no id",
	Covers: []string{"Z11", "Z13"},
	Axes:   Everywhere.For(TCP),
}, func(t *T) {
	pair := t.Pair(SetOption(unix.SOL_SOCKET, unix.SO_SNDBUF, 64<<10))
	data := t.Payload(1<<20, 5)
	var sent []byte
	sends := 0
	fill := func() {
		t.Helper()
		for refused := 0; refused < 3; {
			part := data[len(sent)%4096:]
			part = part[:min(len(part), 32<<10)]
			count, err := pair.Sender.Send(part, unix.MSG_ZEROCOPY|unix.MSG_DONTWAIT)
			switch {
			case errors.Is(err, unix.EAGAIN):
				refused++
				continue
			case err != nil:
				t.Fatalf("send: %v", err)
			}
			sends++
			sent = append(sent, part[:count]...)
			if len(sent) > 8<<20 {
				t.Fatalf("8 MiB were taken, and nobody reads them: the send buffer has no end")
			}
		}
	}
	fill()
	pair.Receiver.MustReceive(sent)
	sent = nil
	fill()
	pair.Receiver.MustReceive(sent)
	pair.Sender.Collect(sends)
})

var _ = add(Case{
	Name:   "counter/no-id-for-full-device",
	Doc:    "a datagram that would block behind those the device holds fails with EAGAIN and takes no id",
	Covers: []string{"Z11", "Z3A"},
	Axes:   OnNICs.For(UDP),
}, func(t *T) {
	pair := t.Pair(SetOption(unix.SOL_SOCKET, unix.SO_SNDBUF, 1)) // the kernel raises it to its least
	data := t.Payload(1000, 5)
	t.NIC().Hold(true)
	sends, refused := 0, 0
	for refused < 3 {
		_, err := pair.Sender.Send(data, unix.MSG_ZEROCOPY|unix.MSG_DONTWAIT)
		switch {
		case errors.Is(err, unix.EAGAIN):
			refused++
		case err != nil:
			t.Fatalf("send %d: %v", sends, err)
		default:
			sends++
			pair.Receiver.MustReceive(data)
		}
		if sends > 1000 {
			t.Fatalf("%d datagrams are in a device that returns none, and the socket takes more: they are not charged to it", sends)
		}
	}
	t.NIC().Hold(false)
	pair.Sender.Collect(sends)
})

var _ = add(Case{
	Name:   "counter/no-id-for-nothing",
	Doc:    "a stream's send of no bytes takes no id",
	Covers: []string{"Z12"},
	Axes:   Everywhere.For(TCP),
}, func(t *T) {
	pair := t.Pair()
	for i := range 2 {
		pair.Sender.MustSend(nil, unix.MSG_ZEROCOPY)
		data := t.Payload(1000, byte(i))
		pair.Sender.MustSend(data, unix.MSG_ZEROCOPY)
		pair.Receiver.MustReceive(data)
	}
	pair.Sender.Collect(2)
})

// The kernel's documentation says that an empty send takes no id. For datagrams
// that has never been so: __ip_append_data counts the UDP header, and an empty
// datagram is not empty there. Applications that count right today would count
// wrong if it changed.
var _ = add(Case{
	Name:   "counter/id-for-empty-datagram",
	Doc:    "an empty datagram is sent, takes an id and is notified like any other",
	Covers: []string{"Z12"},
	Axes:   Everywhere.For(UDP),
}, func(t *T) {
	pair := t.Pair()
	for i := range 2 {
		pair.Sender.MustSend(nil, unix.MSG_ZEROCOPY)
		pair.Receiver.MustReceive(nil)
		data := t.Payload(1000, byte(i))
		pair.Sender.MustSend(data, unix.MSG_ZEROCOPY)
		pair.Receiver.MustReceive(data)
	}
	pair.Sender.Collect(4)
})

var _ = add(Case{
	Name:   "counter/one-id-for-partial-send",
	Doc:    "a send of which only a part is taken has one id",
	Covers: []string{"Z13"},
	Axes:   Everywhere.For(TCP),
}, func(t *T) {
	pair := t.Pair(SetOption(unix.SOL_SOCKET, unix.SO_SNDBUF, 64<<10))
	data := t.Payload(2<<20, 3)
	count, err := pair.Sender.Send(data, unix.MSG_ZEROCOPY|unix.MSG_DONTWAIT)
	t.Check(err, "send")
	if count == len(data) {
		t.Fatalf("all of %d bytes were taken with a send buffer of 64 KiB: no partial send to look at", count)
	}
	t.Logf("%d of %d bytes were taken", count, len(data))
	pair.Receiver.MustReceive(data[:count])
	rest := data[count:][:1000]
	pair.Sender.MustSend(rest, unix.MSG_ZEROCOPY)
	pair.Receiver.MustReceive(rest)
	pair.Sender.Collect(2)
})

// scattered returns count buffers of one byte, each on a page of its own so that
// no two can become one fragment.
func scattered(t *T, count int) (buffers [][]byte, whole []byte) {
	t.Helper()
	memory := t.Memory(count)
	memory.Fill(11)
	for i := range count {
		// Another place on each page, so that other bytes than the pattern's
		// first are sent.
		at := i*notify.PageSize + i*13
		buffers = append(buffers, memory.Bytes()[at:at+1])
		whole = append(whole, memory.Bytes()[at])
	}
	return buffers, whole
}

var _ = add(Case{
	Name:   "counter/one-id-for-many-pieces",
	Doc:    "one call of so many pieces that the kernel needs several buffers for them has one id",
	Covers: []string{"Z13", "Z11"},
	Axes:   Everywhere,
}, func(t *T) {
	pair := t.Pair(noDelay)
	sends := 0
	for _, count := range []int{1, 17, 18, 64} {
		buffers, whole := scattered(t, count)
		sent, err := notify.SendZerocopy(pair.Sender.FD, 0, buffers...)
		if t.Proto == UDP && errors.Is(err, unix.EMSGSIZE) && count > 17 {
			// A datagram is one buffer of at most MAX_SKB_FRAGS pieces. Its
			// refusal must not take an id either.
			continue
		}
		t.Check(err, "send")
		if sent != count {
			t.Fatalf("the send of %d pieces of a byte took %d bytes", count, sent)
		}
		sends++
		pair.Receiver.MustReceive(whole)
	}
	pair.Sender.Collect(sends)
})

var _ = add(Case{
	Name:   "counter/every-call-counts-alike",
	Doc:    "send, sendto and sendmsg take one id each, sendmmsg one per message",
	Covers: []string{"Z14", "Z10"},
	Axes:   Everywhere,
}, func(t *T) {
	pair := t.Pair()
	data := t.Payload(900, 6)
	part := func(i int) []byte { return data[i*100:][:100] }
	flags := unix.MSG_ZEROCOPY | unix.MSG_NOSIGNAL

	_, err := sys.SendmsgN(pair.Sender.FD, part(0), nil, nil, flags)
	t.Check(err, "sendmsg")
	t.Check(sys.Send(pair.Sender.FD, part(1), flags), "send")
	to := Sockaddr(pair.Receiver.Local())
	if t.Proto == TCP {
		to = nil
	}
	if to == nil {
		t.Check(sys.Send(pair.Sender.FD, part(2), flags), "sendto without an address")
	} else {
		t.Check(sys.Sendto(pair.Sender.FD, part(2), flags, to), "sendto")
	}
	messages := []*notify.Message{
		{Buffers: [][]byte{part(3)}},
		{Buffers: [][]byte{part(4)[:50], part(4)[50:]}},
		{Buffers: [][]byte{part(5)}},
	}
	counts, err := notify.SendMany(pair.Sender.FD, messages, flags)
	t.Check(err, "sendmmsg")
	if !slices.Equal(counts, []int{100, 100, 100}) {
		t.Fatalf("sendmmsg took %v bytes of three messages of 100", counts)
	}
	if t.Proto == TCP {
		pair.Receiver.MustReceive(data[:600])
	} else {
		for i := range 6 {
			pair.Receiver.MustReceive(part(i))
		}
	}
	pair.Sender.Collect(6)
})

var _ = add(Case{
	Name:   "counter/no-id-for-copied-sends",
	Doc:    "sends without the flag in between take no id, and their data keeps its place",
	Covers: []string{"Z15"},
	Axes:   EveryProtocol,
}, func(t *T) {
	pair := t.Pair()
	var stream []byte
	for i := range 8 {
		flags := unix.MSG_ZEROCOPY
		if i%2 == 1 {
			flags = 0
		}
		data := t.Payload(700+i, byte(i))
		pair.Sender.MustSend(data, flags)
		if t.Proto == UDP {
			pair.Receiver.MustReceive(data)
		}
		stream = append(stream, data...)
	}
	if t.Proto != UDP {
		pair.Receiver.MustReceive(stream)
	}
	pair.Sender.Collect(4)
})

var _ = add(Case{
	Name:   "counter/shared-by-descriptors",
	Doc:    "a duplicated descriptor and another process that has the socket count on the same counter",
	Covers: []string{"Z17"},
	Axes:   Everywhere,
}, func(t *T) {
	pair := t.Pair()
	duplicate, err := sys.FcntlInt(uintptr(pair.Sender.FD), unix.F_DUPFD_CLOEXEC, 0)
	t.Check(err, "dup")
	t.Cleanup(func() { _ = sys.Close(duplicate) })
	data := t.Payload(1000, 8)
	for _, fd := range []int{pair.Sender.FD, duplicate, duplicate, pair.Sender.FD} {
		_, err := notify.SendZerocopy(fd, 0, data)
		t.Check(err, "send")
		pair.Receiver.MustReceive(data)
	}
	t.RunChild(childSends, pair.Sender)
	for range childSendCount {
		pair.Receiver.Receive(childSendLength)
	}
	pair.Sender.MustSend(data, unix.MSG_ZEROCOPY)
	pair.Receiver.MustReceive(data)
	pair.Sender.Collect(5 + childSendCount)
})

var _ = add(Case{
	Name:   "counter/shared-after-fork",
	Doc:    "a forked child counts on with the socket it inherited, from memory it inherited",
	Covers: []string{"Z17", "Z71"},
	Axes:   EveryProtocol,
}, func(t *T) {
	pair := t.Pair(noDelay)
	data := t.Payload(600, 4)
	pair.Sender.MustSend(data, unix.MSG_ZEROCOPY)
	pair.Receiver.MustReceive(data)
	message := (&notify.Message{Buffers: [][]byte{data}, Flags: unix.MSG_ZEROCOPY | unix.MSG_NOSIGNAL}).Prepare()
	t.Fork(message.Call(pair.Sender.FD), message.Call(pair.Sender.FD))()
	for range 2 {
		pair.Receiver.MustReceive(data)
	}
	pair.Sender.MustSend(data, unix.MSG_ZEROCOPY)
	pair.Receiver.MustReceive(data)
	pair.Sender.Collect(4)
})

const (
	childSendCount  = 3
	childSendLength = 500
)

// childSends makes zerocopy sends on the socket it inherits.
var childSends = child("counter-sends", func(files []int) error {
	memory, err := notify.Pages(1)
	if err != nil {
		return err
	}
	for range childSendCount {
		if _, err := notify.SendZerocopy(files[0], unix.MSG_NOSIGNAL, memory.Bytes()[:childSendLength]); err != nil {
			return err
		}
	}
	return nil
})

var _ = add(Case{
	Name:       "counter/shared-by-threads",
	Concurrent: true,
	Doc:        "threads that send on one socket get ids without gap or duplicate",
	Covers:     []string{"Z17", "Z30"},
	Axes:       EveryProtocol,
}, func(t *T) {
	// What the threads have in flight is more than older kernels give a socket.
	limitOptmem(t, 1<<20)
	pair := t.Pair()
	const threads, each, length = 4, 32, 512
	var running atomic.Int32
	running.Store(threads)
	for i := range threads {
		data := t.Payload(length, byte(i))
		t.Go(func() {
			defer running.Add(-1)
			for range each {
				if count, err := pair.Sender.Send(data, unix.MSG_ZEROCOPY); err != nil || count != length {
					t.Errorf("send: %d bytes, %v", count, err)
					return
				}
			}
		})
	}
	// Sends of one call stay together, so what arrives is made of whole
	// payloads, each of one thread.
	if t.Proto != UDP {
		received := pair.Receiver.Receive(threads * each * length)
		for at := 0; at < len(received); at += length {
			if unit := received[at : at+length]; !isPattern(unit, threads) {
				t.Errorf("bytes %d to %d are of no thread: sends of threads were mixed", at, at+length-1)
			}
		}
	}
	t.Eventually("the threads have sent", func() bool { return running.Load() == 0 })
	if t.Failed() {
		return
	}
	pair.Sender.Collect(threads * each)
})

// isPattern tells whether data is the pattern of one of the first seeds.
func isPattern(data []byte, seeds int) bool {
	want := make([]byte, len(data))
	for seed := range seeds {
		notify.Pattern(want, byte(seed))
		if bytes.Equal(data, want) {
			return true
		}
	}
	return false
}
