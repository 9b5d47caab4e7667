// SPDX-License-Identifier: BSD-3-Clause

package cases

import (
	"errors"

	"golang.org/x/sys/unix"

	"github.com/zcvet/zcvet/guest/sys"
)

var _ = add(Case{
	Name:   "option/off-flag-ignored",
	Doc:    "without SO_ZEROCOPY the flag is ignored: the data is sent, no id is taken, no notification comes",
	Covers: []string{"Z01"},
	Axes:   EveryProtocol,
}, func(t *T) {
	pair := t.Pair(WithoutZerocopy)
	for i := range 3 {
		data := t.Payload(1000, byte(i))
		pair.Sender.MustSend(data, unix.MSG_ZEROCOPY)
		pair.Receiver.MustReceive(data)
	}
	// The notification of a send that is made later shows that nothing is still
	// on its way, and its id that the sends before took none.
	pair.Sender.SetZerocopy(true)
	data := t.Payload(1000, 9)
	pair.Sender.MustSend(data, unix.MSG_ZEROCOPY)
	pair.Receiver.MustReceive(data)
	pair.Sender.Collect(1)
})

var _ = add(Case{
	Name:   "option/values",
	Doc:    "SO_ZEROCOPY takes 0 and 1, getsockopt returns it, anything else is EINVAL and changes nothing",
	Covers: []string{"Z02"},
	Axes:   EveryProtocol.On(),
}, func(t *T) {
	s := t.Socket(SenderEnd)
	expect := func(want int, when string) {
		t.Helper()
		got, err := sys.GetsockoptInt(s.FD, unix.SOL_SOCKET, unix.SO_ZEROCOPY)
		t.Check(err, "getsockopt(SO_ZEROCOPY)")
		if got != want {
			t.Errorf("getsockopt(SO_ZEROCOPY) is %d %s, want %d", got, when, want)
		}
	}
	expect(0, "on a fresh socket")
	for _, value := range []int{1, 1, 0, 0, 1} {
		t.Check(sys.SetsockoptInt(s.FD, unix.SOL_SOCKET, unix.SO_ZEROCOPY, value), "setsockopt(SO_ZEROCOPY)")
		expect(value, "after it was set")
	}
	for _, value := range []int{-1, 2, 1<<31 - 1, -1 << 31} {
		err := sys.SetsockoptInt(s.FD, unix.SOL_SOCKET, unix.SO_ZEROCOPY, value)
		if !errors.Is(err, unix.EINVAL) {
			t.Errorf("setsockopt(SO_ZEROCOPY, %d) = %v, want EINVAL: the other values are kept for extensions", value, err)
		}
		expect(1, "after a refused value")
	}
})

// errNotSupported is ENOTSUPP. It is internal to the kernel, which has answered
// some socket options with it all the same.
const errNotSupported = unix.Errno(524)

var _ = add(Case{
	Name:   "option/other-sockets",
	Doc:    "a socket that does not know zero copy refuses the option, so that nobody waits for notifications",
	Covers: []string{"Z03"},
}, func(t *T) {
	asked := 0
	for _, kind := range []struct {
		name                   string
		domain, kind, protocol int
	}{
		{"raw IPv4", unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP},
		{"raw IPv6", unix.AF_INET6, unix.SOCK_RAW, unix.IPPROTO_ICMPV6},
		{"raw TCP", unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_TCP},
		{"raw UDP", unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_UDP},
		{"ping IPv4", unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_ICMP},
		{"ping IPv6", unix.AF_INET6, unix.SOCK_DGRAM, unix.IPPROTO_ICMPV6},
		{"packet", unix.AF_PACKET, unix.SOCK_RAW, 0},
		{"unix stream", unix.AF_UNIX, unix.SOCK_STREAM, 0},
		{"unix datagram", unix.AF_UNIX, unix.SOCK_DGRAM, 0},
		{"unix seqpacket", unix.AF_UNIX, unix.SOCK_SEQPACKET, 0},
		{"netlink", unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE},
	} {
		s, err := t.TrySocketOf(SenderEnd, kind.domain, kind.kind, kind.protocol)
		if err != nil {
			t.Logf("no %s sockets here: %v", kind.name, err)
			continue
		}
		asked++
		err = sys.SetsockoptInt(s.FD, unix.SOL_SOCKET, unix.SO_ZEROCOPY, 1)
		if !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, errNotSupported) {
			t.Errorf("SO_ZEROCOPY on a %s socket: %v, want EOPNOTSUPP", kind.name, err)
		}
		s.Close()
	}
	if asked == 0 {
		t.Skipf("none of the other kinds of sockets is here")
	}
})

var _ = add(Case{
	Name:   "option/inherited-by-accept",
	Doc:    "an accepted socket has the listener's setting, and its own ids from 0",
	Covers: []string{"Z04", "Z05"},
	Axes:   Everywhere.For(TCP),
}, func(t *T) {
	for _, on := range []bool{true, false} {
		// The listener is the sender's, so that the accepted socket sends over
		// the link in the usual direction.
		listener := t.Bound(SenderEnd)
		listener.SetZerocopy(on)
		listener.Listen()
		client := t.Socket(ReceiverEnd)
		client.Connect(listener)
		accepted := listener.Accept()
		got, err := sys.GetsockoptInt(accepted.FD, unix.SOL_SOCKET, unix.SO_ZEROCOPY)
		t.Check(err, "getsockopt(SO_ZEROCOPY)")
		if (got == 1) != on {
			t.Fatalf("SO_ZEROCOPY is %d on a socket accepted from a listener with %v: servers set it once, on the listener", got, on)
		}
		accepted.SetZerocopy(true) // no change, or the barrier of the second round
		data := t.Payload(1000, 3)
		accepted.MustSend(data, unix.MSG_ZEROCOPY)
		client.MustReceive(data)
		accepted.Collect(1)
	}
})

var _ = add(Case{
	Name:   "option/set-at-any-time",
	Doc:    "the option can be set before and after connecting; while it is off no ids are taken, and the count goes on when it is on again",
	Covers: []string{"Z01", "Z05", "Z10"},
	Axes:   EveryProtocol,
}, func(t *T) {
	pair := t.Pair(WithoutZerocopy)
	seed := byte(0)
	send := func() {
		t.Helper()
		seed++
		data := t.Payload(1000, seed)
		pair.Sender.MustSend(data, unix.MSG_ZEROCOPY)
		pair.Receiver.MustReceive(data)
	}
	pair.Sender.SetZerocopy(true)
	send() // 0
	send() // 1
	pair.Sender.SetZerocopy(false)
	send()
	pair.Sender.SetZerocopy(true)
	send() // 2
	pair.Sender.Collect(3)
})
