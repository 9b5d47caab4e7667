// SPDX-License-Identifier: BSD-3-Clause

package cases

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/zcvet/zcvet/guest/nic"
	"github.com/zcvet/zcvet/guest/notify"
	"github.com/zcvet/zcvet/guest/sys"
)

// piece is one of several sends whose data the kernel puts together.
type piece struct {
	data     []byte
	zerocopy bool
}

// pieces makes a piece of length bytes for each letter of pattern, "z" for a
// zero-copy send and "c" for a copied one.
func (t *T) pieces(pattern string, length int) []piece {
	t.Helper()
	var all []piece
	for i, letter := range pattern {
		// Lengths differ so that data out of place is seen.
		all = append(all, piece{t.Payload(length+i, byte(i)), letter == 'z'})
	}
	return all
}

// flags of the send of the piece.
func (p piece) flags() int {
	if p.zerocopy {
		return unix.MSG_ZEROCOPY
	}
	return 0
}

// joined is the data of the pieces one after the other.
func joined(pieces []piece) []byte {
	var whole []byte
	for _, p := range pieces {
		whole = append(whole, p.data...)
	}
	return whole
}

// zerocopySends counts the pieces that take an id.
func zerocopySends(pieces []piece) int {
	count := 0
	for _, p := range pieces {
		if p.zerocopy {
			count++
		}
	}
	return count
}

// hold is a way to make the kernel gather the data of several sends.
type hold struct {
	name string
	// flag is on each send but the last.
	flag int
	// level and option, unless 0, are set before the first send and reset after
	// the last.
	level, option int
	// segment, unless 0, is UDP_SEGMENT. The kernel gathers a datagram's pieces by
	// copying them, except for a first one of a send that may be cut into
	// segments: only then the checksum is left to the device.
	segment int
}

// holds are the ways there are for a protocol.
func holds(proto Proto) []hold {
	more := hold{name: "MSG_MORE", flag: unix.MSG_MORE}
	if proto == UDP {
		return []hold{more, {name: "UDP_CORK", level: unix.IPPROTO_UDP, option: unix.UDP_CORK}}
	}
	return []hold{more, {name: "TCP_CORK", level: unix.IPPROTO_TCP, option: unix.TCP_CORK}}
}

// holdsInPlace are the ways in which the kernel gathers pages, on a link that
// does zero copy: pages of every zero-copy piece of a stream, and of a datagram's
// first.
func holdsInPlace(proto Proto) []hold {
	if proto == UDP {
		// More than the datagram has, so that it stays one.
		return []hold{{name: "UDP_CORK and UDP_SEGMENT", level: unix.IPPROTO_UDP, option: unix.UDP_CORK, segment: 1400}}
	}
	return holds(proto)[1:]
}

// send sends the pieces while the kernel holds them back, and lets go. It ends
// the case.
func (h hold) send(s *Socket, pieces []piece) {
	s.t.Helper()
	h.set(s, 1)
	for i, p := range pieces {
		flags := p.flags() | h.flag
		if i == len(pieces)-1 {
			flags &^= h.flag
		}
		s.MustSend(p.data, flags)
	}
	h.set(s, 0)
}

// set switches the option of the hold, if it is one. It ends the case.
func (h hold) set(s *Socket, value int) {
	s.t.Helper()
	if h.segment != 0 {
		SetOption(unix.IPPROTO_UDP, unix.UDP_SEGMENT, h.segment)(s)
	}
	if h.option != 0 {
		SetOption(h.level, h.option, value)(s)
	}
}

// patterns of pieces: alike, and each kind first, last and between the others.
var patterns = []string{"zzzz", "zczc", "czcz", "zccz", "czzc"}

var _ = add(Case{
	Name:   "mixes/held-back",
	Doc:    "pieces that MSG_MORE or a cork holds back, zero-copy and copied ones mixed, arrive in order, and each zero-copy piece has its id and is notified exactly once",
	Covers: []string{"Z80", "Z81", "Z15", "Z30"},
	Axes:   Everywhere,
}, func(t *T) {
	for _, hold := range holds(t.Proto) {
		for _, pattern := range patterns {
			t.Logf("%s, pieces %s", hold.name, pattern)
			pair := t.Pair()
			// Two rounds, so that the count goes on behind a push.
			for range 2 {
				pieces := t.pieces(pattern, 200)
				hold.send(pair.Sender, pieces)
				pair.Receiver.MustReceive(joined(pieces))
			}
			pair.Receiver.Acknowledge()
			pair.Sender.Collect(2 * strings.Count(pattern, "z"))
		}
	}
})

var _ = add(Case{
	Name:   "mixes/held-back-not-before-device-is-done",
	Doc:    "a datagram or segment put together from zero-copy and copied pieces is notified when the device gives it back, not before, whichever piece came first",
	Covers: []string{"Z80", "Z81", "Z3A"},
	Axes:   OnNIC,
}, func(t *T) {
	for _, hold := range append(holds(t.Proto), holdsInPlace(t.Proto)...) {
		for _, pattern := range patterns {
			t.Logf("%s, pieces %s", hold.name, pattern)
			pair := t.Pair()
			pieces := t.pieces(pattern, 200)
			t.NIC().Hold(true)
			hold.send(pair.Sender, pieces)
			pair.Receiver.MustReceive(joined(pieces))
			pair.Receiver.Acknowledge()
			pair.Sender.AwaitAcknowledged()
			pair.Sender.ExpectNothing("the device still reads the pages of the zero-copy pieces")
			t.NIC().Hold(false)
			pair.Sender.Collect(zerocopySends(pieces))
		}
	}
})

var _ = add(Case{
	Name:   "mixes/held-back-pages-reach-device",
	Doc:    "the device reads the pages of a stream's zero-copy pieces, and of a datagram's if its first piece is zero copy, although copied pieces share the segment",
	Covers: []string{"Z80", "Z81", "Z54"},
	Level:  Should,
	Axes:   OnNIC,
	Needs:  []string{Pagemap},
}, func(t *T) {
	hold := holdsInPlace(t.Proto)[0]
	for _, pattern := range []string{"zzz", "zcz"} {
		pair := t.Pair()
		var pieces []piece
		var pages []extent // of the pieces that have to be read in place
		for i, letter := range pattern {
			memory := t.Memory(1)
			memory.Fill(byte(i + 1))
			frames, err := memory.Physical()
			t.Check(err, "pagemap")
			pieces = append(pieces, piece{memory.Bytes()[:300], letter == 'z'})
			if letter == 'z' && (t.Proto == TCP || i == 0) {
				pages = append(pages, extent{frames[0], frames[0] + 300})
			}
		}
		class := nic.TCPData
		if t.Proto == UDP {
			class = nic.UDP
		}
		first := t.NIC().Frames(t.NIC().Sender, 0, class).Next
		hold.send(pair.Sender, pieces)
		pair.Receiver.MustReceive(joined(pieces))
		pair.Receiver.Acknowledge()
		pair.Sender.Collect(zerocopySends(pieces))
		var payload []extent
		for _, frame := range t.NIC().Frames(t.NIC().Sender, first, class).Frames {
			payload = append(payload, payloadOf(frame)...)
		}
		if missing := total(pages) - covered(payload, pages); missing > 0 {
			t.Errorf("%s, pieces %s: the device never read %d bytes of the sender's pages %v, so they were copied: segments %v",
				hold.name, pattern, missing, pages, payload)
		}
	}
})

var _ = add(Case{
	Name:   "mixes/held-back-piece-fails",
	Doc:    "a piece that cannot be read takes no id, throws away a datagram's earlier pieces, which are notified all the same, and leaves a stream's alone",
	Covers: []string{"Z80", "Z81", "Z11", "Z62"},
	Axes:   Everywhere,
}, func(t *T) {
	memory := t.Memory(1)
	t.Check(memory.Protect(0, 1, notify.NoAccess), "mprotect")
	for _, hold := range holds(t.Proto) {
		for _, flags := range []int{0, unix.MSG_ZEROCOPY} {
			pair := t.Pair()
			first, last := t.Payload(300, 1), t.Payload(400, 2)
			hold.set(pair.Sender, 1)
			pair.Sender.MustSend(first, unix.MSG_ZEROCOPY|hold.flag)
			_, err := pair.Sender.Send(memory.Bytes()[:500], flags|hold.flag)
			if !errors.Is(err, unix.EFAULT) {
				t.Fatalf("%s, flags %#x: a piece from memory that cannot be read: %v, want EFAULT", hold.name, flags, err)
			}
			hold.set(pair.Sender, 0)
			pair.Sender.MustSend(last, unix.MSG_ZEROCOPY)
			if t.Proto == TCP {
				pair.Receiver.MustReceive(first)
			}
			pair.Receiver.MustReceive(last)
			pair.Receiver.Acknowledge()
			pair.Sender.Collect(2)
		}
	}
})

var _ = add(Case{
	Name:   "mixes/urgent-data",
	Doc:    "a zero-copy send of urgent data arrives as urgent data, takes an id and is notified like any other",
	Covers: []string{"Z80"},
	Axes:   Everywhere.For(TCP),
}, func(t *T) {
	pair := t.Pair(noDelay)
	before, urgent, behind := t.Payload(700, 1), t.Payload(300, 2), t.Payload(500, 3)
	pair.Sender.MustSend(before, unix.MSG_ZEROCOPY)
	pair.Sender.MustSend(urgent, unix.MSG_ZEROCOPY|unix.MSG_OOB)
	pair.Sender.MustSend(behind, unix.MSG_ZEROCOPY)

	// The last byte of an urgent send is the urgent one, out of the stream.
	stream, mark := urgent[:len(urgent)-1], urgent[len(urgent)-1]
	t.Eventually("urgent data is announced by POLLPRI", func() bool {
		polled := []unix.PollFd{{Fd: int32(pair.Receiver.FD), Events: unix.POLLPRI}}
		_, err := sys.Poll(polled, 0)
		return err == nil && polled[0].Revents&unix.POLLPRI != 0
	})
	var got [1]byte
	// Announced is not arrived: the byte may be in a later segment.
	t.Eventually("the urgent byte arrives", func() bool {
		_, _, err := sys.Recvfrom(pair.Receiver.FD, got[:], unix.MSG_OOB|unix.MSG_DONTWAIT)
		return err == nil
	})
	if got[0] != mark {
		t.Errorf("the urgent byte is %#x where %#x was sent", got[0], mark)
	}
	pair.Receiver.MustReceive(before)
	pair.Receiver.MustReceive(stream)
	pair.Receiver.MustReceive(behind)
	pair.Receiver.Acknowledge()
	pair.Sender.Collect(3)
})

// Bits of net.ipv4.tcp_fastopen (Documentation/networking/ip-sysctl.rst): both
// roles, and neither needs a cookie.
const fastOpenAlways = 0x1 | 0x2 | 0x4 | 0x200

// allowFastOpen switches TCP fast open on in the namespaces of both ends, for the
// case. It ends the case.
func allowFastOpen(t *T) {
	t.Helper()
	for _, end := range []End{SenderEnd, ReceiverEnd} {
		setSysctl(t, end, "net/ipv4/tcp_fastopen", fmt.Sprint(fastOpenAlways))
	}
}

// setSysctl sets a sysctl of the namespace of an end for the case, and skips it
// where the kernel has none of that name. It ends the case.
func setSysctl(t *T, end End, name, value string) {
	t.Helper()
	err := changeSysctl(t, end, name, value)
	if errors.Is(err, os.ErrNotExist) {
		t.Skipf("this kernel has no sysctl %s", name)
	}
	t.Check(err, "set "+name)
}

// changeSysctl sets a sysctl of the namespace of an end until the end of the case.
func changeSysctl(t *T, end End, name, value string) error {
	file := filepath.Join("/proc/sys", name)
	within := func(f func() error) error {
		if end == SenderEnd {
			return f() // the case already runs in the sender's namespace
		}
		return t.environment.Network.NamespaceOf(t.Link).Do(f)
	}
	var before []byte
	err := within(func() (err error) {
		if before, err = os.ReadFile(file); err != nil {
			return err
		}
		return sys.WriteFile(file, []byte(value))
	})
	if err != nil {
		return err
	}
	t.Cleanup(func() {
		restore := func() error { return sys.WriteFile(file, []byte(strings.TrimSpace(string(before)))) }
		if err := within(restore); err != nil {
			t.Errorf("restore %s: %v", name, err)
		}
	})
	return nil
}

// synDataAcknowledged is TCPI_OPT_SYN_DATA of tcpi_options (uapi/linux/tcp.h): the
// peer took the data of our SYN.
const synDataAcknowledged = 0x20

var _ = add(Case{
	Name:   "mixes/fast-open-by-client",
	Doc:    "a zero-copy send that opens the connection has one id, whether its data fits into the SYN or not; what goes with the SYN is a copy",
	Covers: []string{"Z80", "Z13"},
	Axes:   Everywhere.For(TCP),
}, func(t *T) {
	allowFastOpen(t)
	for _, length := range []int{500, 20000} {
		listener := t.Bound(ReceiverEnd)
		SetOption(unix.IPPROTO_TCP, unix.TCP_FASTOPEN, 5)(listener)
		listener.Listen()
		sender := t.Socket(SenderEnd)
		sender.SetZerocopy(true)
		data := t.Payload(length, byte(length))
		count, err := notify.Send(sender.FD, &notify.Message{
			Name: notify.Address(listener.Local()), Buffers: [][]byte{data},
			Flags: unix.MSG_FASTOPEN | unix.MSG_ZEROCOPY | unix.MSG_NOSIGNAL,
		})
		t.Check(err, "send with MSG_FASTOPEN")
		if count == 0 || count > length {
			t.Fatalf("a send of %d bytes with MSG_FASTOPEN took %d", length, count)
		}
		receiver := listener.Accept()
		receiver.MustReceive(data[:count])
		if sender.tcpInfo().Options&synDataAcknowledged == 0 {
			t.Fatalf("the SYN carried no data, so this was no fast open")
		}
		// The count goes on as on any other connection.
		more := t.Payload(700, 9)
		sender.MustSend(more, unix.MSG_ZEROCOPY)
		receiver.MustReceive(more)
		receiver.Acknowledge()
		entries := sender.Collect(2)
		if length == 500 && !entries[0].Copied {
			t.Errorf("the data of a SYN is copied, its notification %v does not say so", entries[0])
		}
	}
})

var _ = add(Case{
	Name:   "mixes/fast-open-by-server",
	Doc:    "what a server sends before the handshake is over is notified when it is acknowledged, not before",
	Covers: []string{"Z80", "Z36", "Z04"},
	Axes:   OnNIC.For(TCP),
}, func(t *T) {
	allowFastOpen(t)
	listener := t.Bound(SenderEnd)
	listener.SetZerocopy(true)
	SetOption(unix.IPPROTO_TCP, unix.TCP_FASTOPEN, 5)(listener)
	listener.Listen()
	// The client's SYN has data and so passes.
	withheld := t.NIC().AddRule(nic.Rule{Port: t.NIC().Receiver, Match: nic.TCPAck, Action: nic.Withhold})
	client := t.Socket(ReceiverEnd)
	request := t.Payload(100, 1)
	_, err := notify.Send(client.FD, &notify.Message{
		Name: notify.Address(listener.Local()), Buffers: [][]byte{request}, Flags: unix.MSG_FASTOPEN | unix.MSG_NOSIGNAL,
	})
	t.Check(err, "send with MSG_FASTOPEN")
	server := listener.Accept()
	server.MustReceive(request)
	if state := server.tcpInfo().State; state != tcpSynReceived {
		t.Fatalf("the handshake's last segment is withheld, yet the server's connection is in state %d and not in SYN_RECV", state)
	}
	answer := t.Payload(1000, 2)
	server.MustSend(answer, unix.MSG_ZEROCOPY)
	client.MustReceive(answer)
	client.Acknowledge()
	t.Eventually("an acknowledgement is withheld", func() bool { return t.NIC().RuleStatus(withheld).Held > 0 })
	t.DeviceBarrier()
	server.ExpectNothing("the peer has acknowledged nothing, TCP may have to send the pages again")
	t.NIC().RemoveRule(withheld)
	server.Collect(1)
})

// tcpSynReceived is TCP_SYN_RECV (include/net/tcp_states.h).
const tcpSynReceived = 3

var _ = add(Case{
	Name:   "mixes/sendfile-and-splice",
	Doc:    "sendfile and splice between zero-copy sends take no id, and everything arrives in order",
	Covers: []string{"Z83", "Z15"},
	Axes:   Everywhere,
}, func(t *T) {
	pair := t.Pair()
	sent := sendfileAndSplice(t, pair)
	if t.Proto == TCP {
		pair.Receiver.MustReceive(slices.Concat(sent...))
	}
	pair.Receiver.Acknowledge()
	pair.Sender.Collect(2)
})

// sendfileAndSplice makes two zero-copy sends, with one by sendfile and one by
// splice in between, and returns what was sent. Datagrams are received on the
// way. It ends the case.
func sendfileAndSplice(t *T, pair *Pair) [][]byte {
	t.Helper()
	sent := [][]byte{t.Payload(900, 1), t.Payload(1100, 2), t.Payload(1000, 3), t.Payload(800, 4)}
	for i, send := range []func(data []byte){
		func(data []byte) { pair.Sender.MustSend(data, unix.MSG_ZEROCOPY) },
		func(data []byte) { pair.Sender.sendFile(data) },
		func(data []byte) { pair.Sender.splice(data) },
		func(data []byte) { pair.Sender.MustSend(data, unix.MSG_ZEROCOPY) },
	} {
		send(sent[i])
		if t.Proto == UDP {
			pair.Receiver.MustReceive(sent[i])
		}
	}
	return sent
}

// sendFile sends data from a file, with one call of sendfile. It ends the case.
func (s *Socket) sendFile(data []byte) {
	s.t.Helper()
	file, err := unix.MemfdCreate("data", unix.MFD_CLOEXEC)
	s.t.Check(err, "memfd_create")
	defer func() { _ = sys.Close(file) }()
	_, err = unix.Write(file, data)
	s.t.Check(err, "write a file")
	var from int64
	count, err := sys.Sendfile(s.FD, file, &from, len(data))
	s.t.Check(err, "sendfile")
	if count != len(data) {
		s.t.Fatalf("sendfile took %d of %d bytes", count, len(data))
	}
}

// splice sends data from a pipe, with one call of splice. It ends the case.
func (s *Socket) splice(data []byte) {
	s.t.Helper()
	var pipe [2]int
	s.t.Check(unix.Pipe2(pipe[:], unix.O_CLOEXEC), "pipe")
	defer func() {
		_ = sys.Close(pipe[0])
		_ = sys.Close(pipe[1])
	}()
	_, err := unix.Write(pipe[1], data)
	s.t.Check(err, "write to a pipe")
	count, err := sys.Splice(pipe[0], nil, s.FD, nil, len(data), 0)
	s.t.Check(err, "splice")
	if int(count) != len(data) {
		s.t.Fatalf("splice took %d of %d bytes", count, len(data))
	}
}

var _ = add(Case{
	Name:   "mixes/sendfile-behind-a-held-back-piece",
	Doc:    "pages of a file and of a zero-copy send in one datagram or segment: one notification, when the device gives the buffers back and not before",
	Covers: []string{"Z83", "Z3A", "Z80", "Z81"},
	Axes:   OnNIC,
}, func(t *T) {
	for _, hold := range append(holds(t.Proto), holdsInPlace(t.Proto)...) {
		for _, fileFirst := range []bool{false, true} {
			pair := t.Pair()
			memory, file := t.Payload(400, 1), t.Payload(300, 2)
			if hold.option == 0 && fileFirst {
				continue // nothing tells sendfile to hold its data back
			}
			t.NIC().Hold(true)
			hold.set(pair.Sender, 1)
			want := slices.Concat(memory, file)
			if fileFirst {
				want = slices.Concat(file, memory)
				pair.Sender.sendFile(file)
				pair.Sender.MustSend(memory, unix.MSG_ZEROCOPY)
			} else {
				pair.Sender.MustSend(memory, unix.MSG_ZEROCOPY|hold.flag)
				pair.Sender.sendFile(file)
			}
			hold.set(pair.Sender, 0)
			pair.Receiver.MustReceive(want)
			pair.Receiver.Acknowledge()
			pair.Sender.AwaitAcknowledged()
			pair.Sender.ExpectNothing("the device still reads the pages of the zero-copy send")
			t.NIC().Hold(false)
			pair.Sender.Collect(1)
		}
	}
})
