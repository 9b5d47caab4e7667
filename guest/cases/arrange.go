// SPDX-License-Identifier: BSD-3-Clause

package cases

import (
	"encoding/binary"
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/zcvet/zcvet/guest/network"
	"github.com/zcvet/zcvet/guest/nic"
	"github.com/zcvet/zcvet/guest/notify"
	"github.com/zcvet/zcvet/guest/sys"
)

// ErrorEdges tells when the kernel adds to a socket's error queue, without
// reading it: each addition wakes an edge-triggered waiter, even one that the
// kernel merges into the entry before.
type ErrorEdges struct {
	epoll int
	t     *T
}

// WatchErrors begins to watch the socket, whose error queue must be empty. It
// ends the case.
func (s *Socket) WatchErrors() *ErrorEdges {
	s.t.Helper()
	epoll, err := sys.EpollCreate1(unix.EPOLL_CLOEXEC)
	s.t.Check(err, "epoll_create1")
	s.t.Cleanup(func() { _ = sys.Close(epoll) })
	// EPOLLERR needs no asking.
	event := unix.EpollEvent{Events: unix.EPOLLET, Fd: int32(s.FD)}
	s.t.Check(sys.EpollCtl(epoll, unix.EPOLL_CTL_ADD, s.FD, &event), "epoll_ctl")
	return &ErrorEdges{epoll: epoll, t: s.t}
}

// Wait waits for the next edge. It ends the case when none comes.
func (e *ErrorEdges) Wait(what string) {
	e.t.Helper()
	deadline := time.Now().Add(e.t.Patience())
	for {
		left := time.Until(deadline)
		if left <= 0 {
			e.t.Fatalf("waited %v in vain for an EPOLLERR edge: %s", e.t.Patience(), what)
		}
		if e.wait(int(left/time.Millisecond) + 1) {
			return
		}
	}
}

// Take tells whether there was an edge since the last one, and takes it.
func (e *ErrorEdges) Take() bool { return e.wait(0) }

func (e *ErrorEdges) wait(milliseconds int) bool {
	events := make([]unix.EpollEvent, 1)
	count, err := sys.EpollWait(e.epoll, events, milliseconds)
	return err == nil && count == 1 && events[0].Events&unix.EPOLLERR != 0
}

// Flags of SO_TIMESTAMPING (uapi/linux/net_tstamp.h).
const (
	timestampReport   = unix.SOF_TIMESTAMPING_SOFTWARE | unix.SOF_TIMESTAMPING_OPT_TSONLY | unix.SOF_TIMESTAMPING_OPT_ID
	timestampSchedule = unix.SOF_TIMESTAMPING_TX_SCHED
)

// WithTimestamps makes the socket report a transmit timestamp for every send
// that asks for one by [timestampRequest]. Such an entry of the error queue
// carries no data and numbers the sends, or the bytes of a stream.
func WithTimestamps(s *Socket) {
	SetOption(unix.SOL_SOCKET, unix.SO_TIMESTAMPING, timestampReport)(s)
}

// timestampRequest is a control message that asks for a timestamp of this send
// at the moment it reaches the device's queue, which every device has.
func timestampRequest(buffer []byte) []byte {
	return notify.AppendControl(buffer, unix.SOL_SOCKET, unix.SO_TIMESTAMPING,
		binary.NativeEndian.AppendUint32(nil, timestampSchedule))
}

// Queue is a pair whose sender's error queue is filled one entry at a time. The
// receiver takes all data at once, so nothing but the error queue has memory.
type Queue struct {
	*Pair
	Edges *ErrorEdges
	// Sends counts the zero-copy sends so far, all of them notified unless a
	// case sent some by itself.
	Sends int
	// Timestamps counts the timestamps in the error queue that nobody read.
	Timestamps int

	t    *T
	data []byte
}

// NewQueue connects a pair for filling. It ends the case.
func (t *T) NewQueue(options ...SocketOption) *Queue {
	t.Helper()
	// Without noDelay small sends wait for each other and share an entry.
	q := &Queue{Pair: t.Pair(append(options, noDelay)...), t: t, data: t.Payload(64, 1)}
	WithTimestamps(q.Sender) // a stream's bytes can be numbered only once it is connected
	q.Edges = q.Sender.WatchErrors()
	return q
}

// Send makes a zero-copy send and waits until its notification is in the queue,
// merged into the tail if that is the notification of the send before. It ends
// the case.
func (q *Queue) Send() {
	q.t.Helper()
	q.Sender.MustSend(q.data, unix.MSG_ZEROCOPY)
	q.Sends++
	q.Receiver.MustReceive(q.data)
	q.Edges.Wait("the notification of a zero-copy send")
}

// Separate puts a timestamp into the queue, with which no notification can
// merge. It ends the case.
func (q *Queue) Separate() {
	q.t.Helper()
	data := []byte("separator")
	count, err := notify.Send(q.Sender.FD, &notify.Message{
		Buffers: [][]byte{data}, Control: timestampRequest(nil), Flags: unix.MSG_NOSIGNAL,
	})
	q.t.Check(err, "send with a timestamp")
	if count != len(data) {
		q.t.Fatalf("send with a timestamp took %d of %d bytes", count, len(data))
	}
	q.Receiver.MustReceive(data)
	q.Edges.Wait("the timestamp of a send")
	q.Timestamps++
}

// Fill makes so many zero-copy sends, each notified by an entry of its own, with
// a timestamp between every two. It ends the case.
func (q *Queue) Fill(entries int) {
	q.t.Helper()
	for i := range entries {
		if i > 0 {
			q.Separate()
		}
		q.Send()
	}
}

// Account takes note of entries that were read from the error queue: notifications
// go into the ledger, the others are timestamps that Finish does not look for.
func (q *Queue) Account(ledger *notify.Ledger, entries ...notify.Notification) {
	for _, entry := range entries {
		if entry.Zerocopy() {
			ledger.Add(entry)
		} else {
			q.Timestamps--
		}
	}
}

// Finish reads the error queue and fails the case unless, together with what is
// in the ledger already, every zero-copy send was notified exactly once and every
// timestamp is there, in order. It ends the case.
func (q *Queue) Finish(ledger *notify.Ledger) {
	q.t.Helper()
	others, err := notify.Collect(q.Sender.FD, ledger, q.Sends, q.t.Patience())
	q.t.Check(err, "read the error queue")
	q.Sender.expectOnce(q.Sends)
	if err := ledger.Check(q.Sends); err != nil {
		q.t.Fatalf("%v; a send that is never notified is a buffer lost to the application, one notified twice a buffer reused too early", err)
	}
	q.ExpectTimestamps(others)
	q.Timestamps = 0
}

// ExpectTimestamps fails the case unless entries are the timestamps that the
// queue must hold, in the order of the sends.
func (q *Queue) ExpectTimestamps(entries []notify.Notification) {
	q.t.Helper()
	if len(entries) != q.Timestamps {
		q.t.Errorf("%d timestamps were in the error queue, %d came: %v", q.Timestamps, len(entries), entries)
	}
	for i, entry := range entries {
		if entry.Origin != notify.OriginTimestamping {
			q.t.Errorf("an entry that is neither notification nor timestamp: %v", entry)
		}
		if i > 0 && entry.High <= entries[i-1].High {
			q.t.Errorf("timestamp %d came after timestamp %d: the order of the error queue is lost", entry.High, entries[i-1].High)
		}
	}
}

// Acknowledge makes a stream's receiver acknowledge at once what it has.
func (s *Socket) Acknowledge() {
	if s.t.Proto == TCP {
		_ = sys.SetsockoptInt(s.FD, unix.IPPROTO_TCP, unix.TCP_QUICKACK, 1)
	}
}

// tcpInfo ends the case if the kernel has no answer.
func (s *Socket) tcpInfo() *unix.TCPInfo {
	s.t.Helper()
	info, err := unix.GetsockoptTCPInfo(s.FD, unix.IPPROTO_TCP, unix.TCP_INFO)
	s.t.Check(err, "TCP_INFO")
	return info
}

// AwaitAcknowledged waits until a stream's peer has acknowledged everything. The
// question takes the socket's lock, so the segments are released by then. It
// does nothing for datagrams. It ends the case.
func (s *Socket) AwaitAcknowledged() {
	s.t.Helper()
	if s.t.Proto != TCP {
		return
	}
	s.t.Eventually("everything is acknowledged", func() bool {
		info := s.tcpInfo()
		return info.Unacked == 0 && info.Notsent_bytes == 0
	})
}

// retransmitted tells whether a stream has sent anything twice so far. It ends the
// case.
func (s *Socket) retransmitted() bool {
	s.t.Helper()
	if s.t.Proto != TCP {
		return false
	}
	return s.tcpInfo().Total_retrans > 0
}

// ExpectNothing ends the case as failed if a notification has come; why says what
// the application would suffer. Whatever must have happened before has to be
// waited for by the caller.
func (s *Socket) ExpectNothing(why string) {
	s.t.Helper()
	entries, err := notify.Drain(s.FD)
	s.t.Check(err, "read the error queue")
	if len(entries) > 0 {
		s.t.Fatalf("no notification was due, came %v: %s", entries, why)
	}
}

// DeviceBarrier is a pair of datagram sockets of its own over the instance's
// link. It works on the link nic only, where a datagram is sent from the
// application's pages.
type DeviceBarrier struct {
	pair *Pair
	data []byte
	t    *T
}

// NewDeviceBarrier connects the pair. It ends the case.
func (t *T) NewDeviceBarrier() *DeviceBarrier {
	t.Helper()
	domain := unix.AF_INET
	if t.Family == network.IPv6 {
		domain = unix.AF_INET6
	}
	receiver := t.SocketOf(ReceiverEnd, domain, unix.SOCK_DGRAM, 0)
	t.Check(sys.Bind(receiver.FD, Sockaddr(netip.AddrPortFrom(t.Address(ReceiverEnd), 0))), "bind")
	sender := t.SocketOf(SenderEnd, domain, unix.SOCK_DGRAM, 0)
	sender.SetZerocopy(true)
	sender.Connect(receiver)
	return &DeviceBarrier{pair: &Pair{Sender: sender, Receiver: receiver}, data: t.Payload(64, 0), t: t}
}

// Pass sends a datagram and waits for its notification. The host completes
// frames in order, so the sender's kernel has got back every buffer that was sent
// before. It ends the case.
func (b *DeviceBarrier) Pass() {
	b.t.Helper()
	b.pair.Sender.MustSend(b.data, unix.MSG_ZEROCOPY)
	there, err := notify.Wait(b.pair.Sender.FD, b.t.Patience())
	b.t.Check(err, "wait for the barrier's datagram")
	entries := b.pair.Sender.Drain()
	if !there || len(entries) != 1 {
		b.t.Fatalf("waited %v for the notification of the barrier's datagram, came %v", b.t.Patience(), entries)
	}
	if entries[0].Copied {
		b.t.Fatalf("the barrier's datagram was copied on link %s: it proves nothing", b.t.Link)
	}
	// Or its buffer would be full some day; what is sent was received by then.
	got := make([]byte, len(b.data)+1)
	_, _, _ = sys.Recvfrom(b.pair.Receiver.FD, got, unix.MSG_DONTWAIT)
}

// DeviceBarrier waits until the sender's kernel has got back every buffer that
// was sent before. It works on the link nic only. It ends the case.
func (t *T) DeviceBarrier() {
	t.Helper()
	t.NewDeviceBarrier().Pass()
}

// transmitted counts the frames that the driver of the sender's device has got
// back from the device since the machine started: virtio_net counts them when it
// frees them (free_old_xmit), together with the socket buffers. It ends the case.
func (t *T) transmitted() uint64 {
	t.Helper()
	device, _ := t.Link.Devices()
	text, err := os.ReadFile("/sys/class/net/" + device + "/statistics/tx_packets")
	t.Check(err, "read the device's statistics")
	count, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
	t.Check(err, "read the device's statistics")
	return count
}

// probeForLoss switches tail loss probes on for the case, as the kernel has them by
// default: whoever loses frames would wait 200 ms for each otherwise. It ends the
// case.
func (t *T) probeForLoss() {
	t.Helper()
	t.Check(changeSysctl(t, SenderEnd, "net/ipv4/tcp_early_retrans", "3"), "switch tail loss probes on")
}

// resendLate has the streams of the case wait ten seconds for an acknowledgement
// before they send again, where the kernel has a setting for it (since 6.11): 200 ms
// are short for a machine that is busy elsewhere. It ends the case.
func (t *T) resendLate() {
	t.Helper()
	if t.Proto != TCP {
		return
	}
	err := changeSysctl(t, SenderEnd, "net/ipv4/tcp_rto_min_us", "10000000")
	if !errors.Is(err, fs.ErrNotExist) {
		t.Check(err, "raise the least retransmission time-out")
	}
}

// disturb adds rules for what the sender transmits, and returns the check that
// each of them has acted: without it a case could show nothing. A rule begins to
// count frames when the one before it is used up. It ends the case.
func (t *T) disturb(rules ...nic.Rule) (expectDisturbed func()) {
	t.Helper()
	t.probeForLoss()
	numbers := make([]int, len(rules))
	for i, rule := range rules {
		rule.Port = t.NIC().Sender
		numbers[i] = t.NIC().AddRule(rule)
	}
	return func() {
		t.Helper()
		for i, number := range numbers {
			if status := t.NIC().RuleStatus(number); status.Acted == 0 {
				t.Errorf("the NIC never did %q: %d frames were too few for rule %d of the case", rules[i].Action, status.Matched, i)
			}
		}
	}
}

// zerocopyStream makes zero-copy sends of one socket from a goroutine that must
// not end the case.
type zerocopyStream struct {
	socket *Socket
	ledger notify.Ledger
	sends  int
}

// send sends all of data, with as many calls as it takes.
func (z *zerocopyStream) send(data []byte) error {
	for len(data) > 0 {
		count, err := z.socket.Send(data, unix.MSG_ZEROCOPY)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.ENOBUFS):
			// The way out that the documentation names.
			covered := z.ledger.Covered()
			if err := z.collect(covered + 1); err != nil {
				return err
			}
			if z.ledger.Covered() == covered {
				return errors.New("ENOBUFS, and no notification to wait for")
			}
			continue
		case err != nil:
			return err
		}
		z.sends++
		data = data[count:]
	}
	return nil
}

func (z *zerocopyStream) collect(sends int) error {
	_, err := notify.Collect(z.socket.FD, &z.ledger, sends, z.socket.t.Patience())
	return err
}

// noDelay makes a stream send at once; datagrams know nothing else.
func noDelay(s *Socket) {
	if s.t.Proto == TCP {
		SetOption(unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)(s)
	}
}
