// SPDX-License-Identifier: BSD-3-Clause

package cases

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/zcvet/zcvet/guest/network"
	"github.com/zcvet/zcvet/guest/notify"
	"github.com/zcvet/zcvet/guest/sys"
	"github.com/zcvet/zcvet/guest/trace"
)

// End is a side of the instance's link.
type End int

// The ends.
const (
	SenderEnd End = iota
	ReceiverEnd
)

// Socket is a blocking socket of the instance's protocol and family, closed
// after the case. Its reads and writes give up with EAGAIN after the case's
// patience, so that a case that waits in vain says so itself.
type Socket struct {
	// FD is -1 after Close.
	FD  int
	End End

	t *T
	// domain and kind are the first two arguments of socket.
	domain, kind int
	// received is set once data was read from it.
	received atomic.Bool
}

// Pair is a connected pair of sockets over the instance's link.
type Pair struct {
	Sender, Receiver *Socket
}

// SocketOption prepares a sender's socket before it is connected.
type SocketOption func(*Socket)

// WithoutZerocopy leaves SO_ZEROCOPY off.
func WithoutZerocopy(s *Socket) { s.SetZerocopy(false) }

// SetOption sets an integer socket option.
func SetOption(level, name, value int) SocketOption {
	return func(s *Socket) {
		s.t.Helper()
		s.t.Check(sys.SetsockoptInt(s.FD, level, name, value), fmt.Sprintf("setsockopt level %d option %d", level, name))
	}
}

// Pair connects a sender, with SO_ZEROCOPY set, to a receiver over the
// instance's link. The options prepare the sender. It ends the case.
func (t *T) Pair(options ...SocketOption) *Pair {
	t.Helper()
	receiver := t.Bound(ReceiverEnd)
	sender := t.Socket(SenderEnd)
	sender.SetZerocopy(true)
	for _, option := range options {
		option(sender)
	}
	if t.Proto == UDP {
		sender.Connect(receiver)
		return &Pair{Sender: sender, Receiver: receiver}
	}
	receiver.Listen()
	sender.Connect(receiver)
	accepted := receiver.Accept()
	receiver.Close()
	return &Pair{Sender: sender, Receiver: accepted}
}

// Socket opens a socket in the namespace of an end. It ends the case.
func (t *T) Socket(end End) *Socket {
	t.Helper()
	domain := unix.AF_INET
	switch {
	case t.Proto == VSOCK:
		domain = unix.AF_VSOCK
	case t.Family == network.IPv6 || t.Family == network.Mapped:
		domain = unix.AF_INET6
	}
	kind := unix.SOCK_STREAM
	if t.Proto == UDP {
		kind = unix.SOCK_DGRAM
	}
	return t.SocketOf(end, domain, kind, 0)
}

// SocketOf opens a socket of any kind in the namespace of an end. It ends the
// case.
func (t *T) SocketOf(end End, domain, kind, protocol int) *Socket {
	t.Helper()
	s, err := t.TrySocketOf(end, domain, kind, protocol)
	t.Check(err, fmt.Sprintf("socket(%d, %d, %d)", domain, kind, protocol))
	return s
}

// TrySocketOf is SocketOf for kinds of sockets the kernel may not offer; the
// error wraps the unix.Errno.
func (t *T) TrySocketOf(end End, domain, kind, protocol int) (*Socket, error) {
	t.Helper()
	s := &Socket{FD: -1, End: end, t: t, domain: domain, kind: kind}
	open := func() (err error) {
		s.FD, err = sys.Socket(domain, kind|unix.SOCK_CLOEXEC, protocol)
		return err
	}
	var err error
	switch {
	case t.own != nil && end == SenderEnd:
		err = t.own.Sender.Do(open)
	case t.own != nil:
		err = t.own.NamespaceOf(t.Link).Do(open)
	case end == ReceiverEnd && t.Link != network.Loopback && t.Link != "":
		err = t.environment.Network.Receiver.Do(open)
	default:
		err = open() // the case already runs in the sender's namespace
	}
	if err != nil {
		return nil, err
	}
	s.adopt()
	return s, nil
}

// adopt makes the case the owner of a fresh socket.
func (s *Socket) adopt() {
	s.t.Cleanup(s.abort)
	s.t.OnFailure(s.dump)
	s.t.lock.Lock()
	s.t.sockets = append(s.t.sockets, s)
	s.t.lock.Unlock()
	limit := unix.NsecToTimeval(s.t.Patience().Nanoseconds())
	for _, option := range []int{unix.SO_RCVTIMEO, unix.SO_SNDTIMEO} {
		s.t.Check(sys.SetsockoptTimeval(s.FD, unix.SOL_SOCKET, option, &limit), "limit waits")
	}
}

// Bound opens a socket bound to the address of an end, on a port the kernel
// chooses. It ends the case.
func (t *T) Bound(end End) *Socket {
	t.Helper()
	s := t.Socket(end)
	var address unix.Sockaddr = &unix.SockaddrVM{CID: unix.VMADDR_CID_LOCAL, Port: unix.VMADDR_PORT_ANY}
	if t.Proto != VSOCK {
		address = Sockaddr(netip.AddrPortFrom(t.Address(end), 0))
	}
	t.Check(sys.Bind(s.FD, address), "bind")
	return s
}

// Address returns the address of an end of the instance's link.
func (t *T) Address(end End) netip.Addr {
	sender, receiver := t.Link.Addresses(t.Family)
	if end == ReceiverEnd {
		return receiver
	}
	return sender
}

// Sockaddr converts an address for the calls of package unix.
func Sockaddr(address netip.AddrPort) unix.Sockaddr {
	if address.Addr().Is4() {
		return &unix.SockaddrInet4{Addr: address.Addr().As4(), Port: int(address.Port())}
	}
	return &unix.SockaddrInet6{Addr: address.Addr().As16(), Port: int(address.Port())}
}

// Local returns the socket's own address. It ends the case.
func (s *Socket) Local() netip.AddrPort {
	s.t.Helper()
	name, err := sys.Getsockname(s.FD)
	s.t.Check(err, "getsockname")
	switch name := name.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(name.Addr), uint16(name.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(name.Addr), uint16(name.Port))
	}
	s.t.Fatalf("getsockname: unexpected %T", name)
	return netip.AddrPort{}
}

// Listen makes the socket a listener with room for a few connections. It ends
// the case.
func (s *Socket) Listen() {
	s.t.Helper()
	s.t.Check(sys.Listen(s.FD, 8), "listen")
}

// Connect connects to the address another socket is bound to. It ends the case.
func (s *Socket) Connect(to *Socket) {
	s.t.Helper()
	name, err := sys.Getsockname(to.FD)
	s.t.Check(err, "getsockname")
	s.t.Check(again(func() error { return sys.Connect(s.FD, name) }), "connect")
}

// Accept takes a connection from a listener. It ends the case.
func (s *Socket) Accept() *Socket {
	s.t.Helper()
	accepted := &Socket{FD: -1, End: s.End, t: s.t, domain: s.domain, kind: s.kind}
	err := again(func() (err error) {
		accepted.FD, _, err = sys.Accept4(s.FD, unix.SOCK_CLOEXEC)
		return err
	})
	s.t.Check(err, "accept")
	accepted.adopt()
	return accepted
}

// Close closes the socket; closing it again does nothing.
func (s *Socket) Close() {
	if s.FD >= 0 {
		_ = sys.Close(s.FD)
		s.FD = -1
	}
}

// abort closes the socket and takes its connection with it, whatever is still to
// be sent, so that nothing of it outlives the case.
func (s *Socket) abort() {
	if s.FD >= 0 && s.kind == unix.SOCK_STREAM {
		// No time to linger: the peer gets a reset, and nobody waits.
		_ = sys.SetsockoptLinger(s.FD, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	}
	s.Close()
}

// SetZerocopy sets SO_ZEROCOPY. It ends the case.
func (s *Socket) SetZerocopy(on bool) {
	s.t.Helper()
	s.t.Check(notify.EnableZerocopy(s.FD, on), "SO_ZEROCOPY")
}

// Send sends with one call and returns what the kernel answered; the error is a
// bare unix.Errno.
func (s *Socket) Send(data []byte, flags int) (int, error) {
	return notify.Send(s.FD, &notify.Message{Buffers: [][]byte{data}, Flags: flags | unix.MSG_NOSIGNAL})
}

// MustSend sends with one call and fails the case unless all of it was taken. It
// ends the case.
func (s *Socket) MustSend(data []byte, flags int) {
	s.t.Helper()
	count, err := s.Send(data, flags)
	if err != nil {
		s.t.Fatalf("send of %d bytes: %v", len(data), err)
	}
	if count != len(data) {
		s.t.Fatalf("send of %d bytes took only %d of them", len(data), count)
	}
}

// Receive receives length bytes of a stream, or one datagram of at most length
// bytes. What a stream has received it acknowledges at once: an acknowledgement
// delayed until there is data to send along, or 40 ms are over, only costs time.
// It ends the case.
func (s *Socket) Receive(length int) []byte {
	s.t.Helper()
	s.received.Store(true)
	// One byte more than a datagram may have, so that a longer one is seen.
	buffer := make([]byte, length+1)
	got := 0
	for {
		room := buffer[got:]
		if s.t.Proto != UDP {
			room = buffer[got:length]
		}
		var count int
		err := again(func() (err error) {
			count, _, err = sys.Recvfrom(s.FD, room, 0)
			return err
		})
		if errors.Is(err, unix.EAGAIN) {
			s.t.Fatalf("receive: %d of %d bytes came in %v", got, length, s.t.Patience())
		}
		s.t.Check(err, "receive")
		got += count
		if s.t.Proto == UDP || got == length {
			s.Acknowledge()
			return buffer[:got]
		}
		if count == 0 {
			s.t.Fatalf("receive: the stream ended after %d of %d bytes", got, length)
		}
	}
}

// MustReceive receives and compares with what was sent. It ends the case when
// nothing comes; other data than want is a failure that lets it go on.
func (s *Socket) MustReceive(want []byte) {
	s.t.Helper()
	got := s.Receive(len(want))
	if bytes.Equal(got, want) {
		return
	}
	if len(got) != len(want) {
		s.t.Errorf("the peer received %d bytes where %d were sent", len(got), len(want))
		return
	}
	at := 0
	for got[at] == want[at] {
		at++
	}
	if at >= trace.KeptData {
		sys.Beyond("the data of a receive behind its beginning")
	}
	s.t.Errorf("the peer received other data than was sent: from byte %d on %#x where %#x was sent",
		at, got[at:min(at+8, len(got))], want[at:min(at+8, len(want))])
}

// Drain takes everything off the error queue. It ends the case when the kernel
// refuses or the entries make no sense.
func (s *Socket) Drain() []notify.Notification {
	s.t.Helper()
	entries, err := notify.Drain(s.FD)
	s.t.Check(err, "drain the error queue")
	return entries
}

// drainUntil takes what comes into the error queue until stop is closed, and once
// at least. It does not end the case, so it can run on a goroutine of its own.
func (s *Socket) drainUntil(stop <-chan struct{}, ledger *notify.Ledger) {
	for {
		entries, err := notify.Drain(s.FD)
		ledger.Add(entries...)
		if err != nil {
			s.t.Errorf("read the error queue: %v", err)
			return
		}
		select {
		case <-stop:
			return
		default:
		}
	}
}

// Collect reads the error queue until the first sends zerocopy sends of the
// socket have been notified, and fails the case unless each was exactly once. It
// returns the entries in the order in which they came. It ends the case.
func (s *Socket) Collect(sends int) []notify.Notification {
	s.t.Helper()
	var ledger notify.Ledger
	s.CollectInto(&ledger, sends)
	return ledger.Entries()
}

// CollectInto is Collect for a socket some of whose notifications are already in
// the ledger.
func (s *Socket) CollectInto(ledger *notify.Ledger, sends int) {
	s.t.Helper()
	others, err := notify.Collect(s.FD, ledger, sends, s.t.Patience())
	s.t.Check(err, "read the error queue")
	for _, other := range others {
		s.t.Errorf("an entry in the error queue that is no zero-copy notification: %v", other)
	}
	s.expectOnce(sends)
	if err := ledger.Check(sends); err != nil {
		s.t.Fatalf("%v; a send that is never notified is a buffer lost to the application, one notified twice a buffer reused too early", err)
	}
}

// expectOnce notes in the record of system calls that the case is about to check
// that each of the first sends of a socket was notified exactly once.
func (s *Socket) expectOnce(sends int) {
	sys.Recorder().Mark(trace.Expectation, []int64{trace.ExactlyOnce, int64(s.FD), int64(sends)})
}

// ExpectNoError fails the case if SO_ERROR holds an error.
func (s *Socket) ExpectNoError() {
	s.t.Helper()
	value, err := sys.GetsockoptInt(s.FD, unix.SOL_SOCKET, unix.SO_ERROR)
	s.t.Check(err, "SO_ERROR")
	if value != 0 {
		s.t.Errorf("SO_ERROR is %v where 0 was expected: applications take it for a broken connection", unix.Errno(value))
	}
}

// dump notes what is left in the socket after a failure.
func (s *Socket) dump() {
	if s.FD < 0 {
		return
	}
	name := map[End]string{SenderEnd: "sender", ReceiverEnd: "receiver"}[s.End]
	entries, err := notify.Drain(s.FD)
	s.t.Logf("%s fd %d: left in the error queue: %v, then %v", name, s.FD, entries, err)
	if unsent, err := unix.IoctlGetInt(s.FD, unix.TIOCOUTQ); err == nil {
		s.t.Logf("%s fd %d: %d bytes not sent or not acknowledged", name, s.FD, unsent)
	}
}

// again repeats a call that a signal interrupted.
func again(call func() error) error {
	for {
		if err := call(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
