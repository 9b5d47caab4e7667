// SPDX-License-Identifier: BSD-3-Clause

package cases

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/zcvet/zcvet/guest/network"
	"github.com/zcvet/zcvet/guest/notify"
	"github.com/zcvet/zcvet/guest/sys"
)

// failure is a way to make a send fail after the kernel has parsed its control
// messages, when a notification taken off the queue too early is lost.
type failure struct {
	errno unix.Errno
	axes  Axes
	// waits drops the axes on which no send waits.
	waits bool
	// prepare brings the queue's sockets into the state in which the send of
	// message fails. It may end the case.
	prepare func(t *T, q *Queue, message *notify.Message)
	// during, if set, runs while the send waits, until stop is closed. It must
	// not end the case. Thread is the one that sends.
	during func(q *Queue, thread int, stop <-chan struct{})
}

var failures = map[string]failure{
	"data-unmapped": {
		errno: unix.EFAULT, axes: Everywhere,
		prepare: func(t *T, q *Queue, message *notify.Message) {
			memory := t.Memory(1)
			t.Check(memory.Protect(0, 1, notify.NoAccess), "take away access")
			message.Buffers = [][]byte{memory.Bytes()[:100]}
		},
	},
	"data-unmapped-zerocopy": {
		errno: unix.EFAULT, axes: OnNIC,
		prepare: func(t *T, q *Queue, message *notify.Message) {
			memory := t.Memory(1)
			t.Check(memory.Protect(0, 1, notify.NoAccess), "take away access")
			message.Buffers = [][]byte{memory.Bytes()[:100]}
			message.Flags |= unix.MSG_ZEROCOPY
		},
	},
	"shut-down": {
		errno: unix.EPIPE, axes: Everywhere,
		prepare: func(t *T, q *Queue, _ *notify.Message) {
			t.Check(sys.Shutdown(q.Sender.FD, unix.SHUT_WR), "shutdown")
		},
	},
	"send-buffer-full": {
		errno: unix.EAGAIN, axes: CopiedAndNot, waits: true,
		prepare: func(_ *T, q *Queue, message *notify.Message) {
			q.Block()
			message.Flags |= unix.MSG_DONTWAIT
		},
	},
	"interrupted": {
		errno: unix.EINTR, axes: CopiedAndNot, waits: true,
		prepare: func(_ *T, q *Queue, _ *notify.Message) { q.Block() },
		during: func(_ *Queue, thread int, stop <-chan struct{}) {
			sys.Beyond("signals")
			// A signal that comes before the send waits does nothing.
			for {
				_ = unix.Tgkill(unix.Getpid(), thread, unix.SIGURG)
				select {
				case <-stop:
					return
				case <-time.After(time.Millisecond):
				}
			}
		},
	},
	"reset-while-waiting": {
		errno: unix.ECONNRESET, axes: CopiedAndNot.For(TCP), waits: true,
		prepare: func(_ *T, q *Queue, _ *notify.Message) { q.Block() },
		during: func(q *Queue, thread int, stop <-chan struct{}) {
			for !waitsInSend(thread) {
				select {
				case <-stop:
					return
				case <-time.After(time.Millisecond):
				}
			}
			// Without lingering a close resets the connection.
			_ = sys.SetsockoptLinger(q.Receiver.FD, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
			q.Receiver.Close()
		},
	},
	"no-memory-for-notification": {
		errno: unix.ENOBUFS, axes: Everywhere,
		prepare: func(t *T, _ *Queue, message *notify.Message) {
			// Room for one is few enough bytes not to be charged itself.
			message.Control = t.Profile().Encode(1)
			message.Flags |= unix.MSG_ZEROCOPY
			limitOptmem(t, 1)
		},
	},
	"too-long-for-path": {
		errno: unix.EMSGSIZE, axes: Everywhere.For(UDP).On(network.NIC, network.NICNoSG, network.Veth),
		prepare: func(t *T, q *Queue, message *notify.Message) {
			dontFragment(t, q.Sender)
			message.Buffers = [][]byte{make([]byte, 3000)}
		},
	},
	"too-long-for-datagram": {
		errno: unix.EMSGSIZE, axes: OnLoopback.For(UDP),
		prepare: func(_ *T, _ *Queue, message *notify.Message) {
			message.Buffers = [][]byte{make([]byte, 70000)}
		},
	},
	"segments-too-many": {
		errno: unix.EINVAL, axes: CopiedAndNot.For(UDP),
		prepare: func(_ *T, _ *Queue, message *notify.Message) {
			// More segments of one byte than a datagram may be cut into,
			// which shows only when the datagram is complete.
			message.Control = notify.AppendControl(message.Control, unix.SOL_UDP, unix.UDP_SEGMENT,
				binary.NativeEndian.AppendUint16(nil, 1))
			message.Buffers = [][]byte{make([]byte, 1000)}
		},
	},
	"device-queue-full": {
		errno: unix.ENOBUFS, axes: OnNIC.For(UDP),
		prepare: func(t *T, q *Queue, message *notify.Message) {
			// With IP_RECVERR a datagram that the device's queue has no room
			// for is an error.
			receiveErrors(q.Sender)
			SetOption(unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 64<<20)(q.Sender)
			t.NIC().Hold(true)
			message.Buffers = [][]byte{message.Buffers[0][:1]}
			for range 10000 {
				_, err := q.Sender.Send(message.Buffers[0], unix.MSG_DONTWAIT)
				if errors.Is(err, unix.ENOBUFS) {
					return
				}
				t.Check(err, "fill the queue of the device")
			}
			t.Fatalf("the device's queue does not get full")
		},
	},
	"refused-before": {
		errno: unix.ECONNREFUSED, axes: Everywhere.For(UDP),
		prepare: func(t *T, q *Queue, _ *notify.Message) {
			q.Receiver.Close()
			q.Sender.MustSend([]byte("nobody there"), 0)
			q.Edges.Wait("the ICMP error of a send to a closed port")
		},
	},
	"no-route": {
		errno: unix.ENETUNREACH, axes: OnLoopback.For(UDP),
		prepare: func(t *T, _ *Queue, message *notify.Message) {
			nowhere := netip.MustParseAddrPort("10.255.255.1:9")
			if t.Family == network.IPv6 {
				nowhere = netip.MustParseAddrPort("[2001:db8:ffff::1]:9")
			}
			message.Name = notify.Address(nowhere)
		},
	},
	"broadcast": {
		errno: unix.EACCES, axes: OnNIC.For(UDP).Over(network.IPv4), // IPv6 has no broadcast
		prepare: func(_ *T, _ *Queue, message *notify.Message) {
			message.Name = notify.Address(netip.MustParseAddrPort("192.0.2.255:9"))
		},
	},
}

func init() {
	for name, failure := range failures {
		add(Case{
			Name:   "scm/failed-send/" + name,
			Doc:    fmt.Sprintf("a send that fails with %s reads no notification, or returns it: none is lost", unix.ErrnoName(failure.errno)),
			Covers: []string{"N10"},
			Axes:   failure.axes,
			Skip:   func(i Instance) bool { return failure.waits && !CanBlock(i) },
			Needs:  scm,
		}, func(t *T) {
			queue := t.NewQueue()
			queue.Fill(3)
			profile := t.Profile()
			message := &notify.Message{
				Buffers: [][]byte{queue.data}, Control: profile.Encode(2), Flags: unix.MSG_NOSIGNAL,
			}
			failure.prepare(t, queue, message)
			stop := make(chan struct{})
			if failure.during != nil {
				thread := unix.Gettid()
				t.Go(func() { failure.during(queue, thread, stop) })
			}
			_, err := notify.Send(queue.Sender.FD, message)
			close(stop)
			t.group.Wait()
			if !errors.Is(err, failure.errno) {
				t.Fatalf("the send was to fail with %v, came %v", failure.errno, err)
			}
			var ledger notify.Ledger
			// Reported all the same would be no loss, as long as the queue
			// does not report it again.
			if entries, err := profile.Decode(message.Control); err == nil {
				ledger.Add(entries...)
			}
			queue.finishAfterFailure(&ledger)
		})
	}
}

// finishAfterFailure is Finish for a queue that may hold a network error too. It
// ends the case.
func (q *Queue) finishAfterFailure(ledger *notify.Ledger) {
	q.t.Helper()
	others, err := notify.Collect(q.Sender.FD, ledger, q.Sends, q.t.Patience())
	q.t.Check(err, "read the error queue")
	q.Sender.expectOnce(q.Sends)
	if err := ledger.Check(q.Sends); err != nil {
		q.t.Fatalf("after a failed call: %v; the application can never reuse those buffers", err)
	}
	var timestamps []notify.Notification
	for _, other := range others {
		if other.Origin == notify.OriginTimestamping {
			timestamps = append(timestamps, other)
		}
	}
	q.ExpectTimestamps(timestamps)
}

// unwritable is a place for the control buffer or the msghdr where the kernel
// cannot write its answer.
type unwritable struct {
	control, header bool
	access          notify.Access
	// split leaves the first element writable and all that follows not.
	split bool
}

var unwritables = map[string]unwritable{
	"control-read-only":        {control: true, access: notify.ReadOnly},
	"control-unmapped":         {control: true, access: notify.NoAccess},
	"control-partly-read-only": {control: true, access: notify.ReadOnly, split: true},
	"control-partly-unmapped":  {control: true, access: notify.NoAccess, split: true},
	"msghdr-read-only":         {header: true, access: notify.ReadOnly},
	"msghdr-unmapped":          {header: true, access: notify.NoAccess},
}

func init() {
	for name, place := range unwritables {
		add(Case{
			Name:    "scm/fault/" + name,
			Doc:     "an answer that cannot be written loses no notification, and the call does not fail after the data went out",
			Covers:  []string{"N11", "N09"},
			Axes:    CopiedAndNot,
			Needs:   scm,
			In32Bit: true,
		}, func(t *T) { faultOnAnswer(t, place) })
	}
}

func faultOnAnswer(t *T, place unwritable) {
	queue := t.NewQueue()
	queue.Fill(3)
	profile := t.Profile()
	memory := t.Memory(2)
	encoded := profile.Encode(4)
	message := &notify.Message{Buffers: [][]byte{queue.data}, Control: encoded, Flags: unix.MSG_NOSIGNAL}
	locked, lockedPages := 0, 2
	if place.control {
		at := 0
		if place.split {
			// A size and one element are 4 and 12 bytes.
			at, locked, lockedPages = notify.PageSize-unix.CmsgLen(0)-16, 1, 1
		}
		message.Control = memory.Bytes()[at:][:copy(memory.Bytes()[at:], encoded)]
	}
	prepared := message.Prepare()
	if place.header {
		prepared = message.PrepareAt(memory.Bytes())
	}
	t.Check(memory.Protect(locked, lockedPages, place.access), "take away access")
	count, err := prepared.Send(queue.Sender.FD)
	t.Check(memory.Protect(0, 2, notify.ReadWrite), "give access back")

	var ledger notify.Ledger
	switch {
	case err == nil:
		if place.access == notify.NoAccess {
			t.Errorf("the kernel could not read the message, EFAULT was expected")
		}
		if count != len(queue.data) {
			t.Errorf("the send took %d of %d bytes", count, len(queue.data))
		}
		queue.Receiver.MustReceive(queue.data)
		queue.Receiver.Acknowledge()
		// Where the answer could not be written the request still stands.
		if entries, err := profile.Decode(message.Control); err == nil {
			ledger.Add(entries...)
		}
	case errors.Is(err, unix.EFAULT) || errors.Is(err, unix.EINVAL):
		// A stream turns every error of a control message into EINVAL.
		queue.ExpectNothingSent()
	default:
		t.Errorf("success or EFAULT was expected, came %v", err)
	}
	queue.Finish(&ledger)
}

var _ = add(Case{
	Name:    "scm/other-messages",
	Doc:     "other control messages of the call take effect and stay as and where they are, before, behind and around the request",
	Covers:  []string{"N12"},
	Axes:    CopiedAndNot,
	Needs:   scm,
	In32Bit: true,
}, func(t *T) {
	profile := t.Profile()
	queue := t.NewQueue()
	var ledger notify.Ledger
	for _, order := range []struct{ before, behind bool }{{true, false}, {false, true}, {true, true}} {
		queue.Fill(2)
		var control []byte
		if order.before {
			control = timestampRequest(control)
		}
		requested := len(control)
		control = append(control, profile.Encode(4)...)
		if order.behind {
			control = hopLimit(t, control)
			if !order.before {
				control = timestampRequest(control)
			}
		}
		sent := bytes.Clone(control)
		entries, err := profile.Decode(queue.CarryControl(control, 0))
		t.Check(err, "answer among other control messages")
		if len(entries) != 2 {
			t.Errorf("before %v, behind %v: two notifications were in the queue, came %v", order.before, order.behind, entries)
		}
		ledger.Add(entries...)
		queue.Edges.Wait("the timestamp that another control message of the call asked for")
		queue.Timestamps++
		end := requested + len(profile.Encode(4))
		if !bytes.Equal(control[:requested], sent[:requested]) || !bytes.Equal(control[end:], sent[end:]) {
			t.Errorf("before %v, behind %v: the kernel changed another control message: % x became % x", order.before, order.behind, sent, control)
		}
		queue.Finish(&ledger)
	}
})

var _ = add(Case{
	Name:    "scm/hop-limit-beside",
	Doc:     "a control message of the network layer, before or behind the request, acts on the datagram as ever",
	Covers:  []string{"N12"},
	Axes:    CopiedAndNot.For(UDP),
	Needs:   scm,
	In32Bit: true,
}, func(t *T) {
	profile := t.Profile()
	queue := t.NewQueue()
	level, option, report := unix.SOL_IP, unix.IP_RECVTTL, unix.IP_TTL
	if t.Family == network.IPv6 {
		level, option, report = unix.SOL_IPV6, unix.IPV6_RECVHOPLIMIT, unix.IPV6_HOPLIMIT
	}
	SetOption(level, option, 1)(queue.Receiver)
	for place, control := range map[string][]byte{
		"before": append(hopLimit(t, nil), profile.Encode(2)...),
		"behind": hopLimit(t, profile.Encode(2)),
	} {
		_, err := notify.Send(queue.Sender.FD, &notify.Message{Buffers: [][]byte{queue.data}, Control: control})
		t.Check(err, "send with two control messages")
		got := &notify.Message{Buffers: [][]byte{make([]byte, len(queue.data))}, Control: make([]byte, 256)}
		_, err = notify.Receive(queue.Receiver.FD, got)
		t.Check(err, "receive")
		messages, err := notify.ParseControl(got.Control[:got.After.Controllen])
		t.Check(err, "control messages of the receiver")
		i := slices.IndexFunc(messages, func(m notify.ControlMessage) bool {
			return m.Level == int32(level) && m.Type == int32(report)
		})
		if i < 0 {
			t.Fatalf("the receiver was not told the hop limit: %v", messages)
		}
		if limit := binary.NativeEndian.Uint32(messages[i].Data); limit != hopLimitSent {
			t.Errorf("%s: a hop limit of %d was asked for, the datagram came with %d", place, hopLimitSent, limit)
		}
	}
})

// hopLimitSent is no default of any kernel.
const hopLimitSent = 33

// hopLimit appends a control message that sets the hop limit of a datagram. On a
// stream, which does not know it, it is passed over.
func hopLimit(t *T, control []byte) []byte {
	data := binary.NativeEndian.AppendUint32(nil, hopLimitSent)
	if t.Family == network.IPv6 {
		return notify.AppendControl(control, unix.SOL_IPV6, unix.IPV6_HOPLIMIT, data)
	}
	return notify.AppendControl(control, unix.SOL_IP, unix.IP_TTL, data)
}

var _ = add(Case{
	Name:    "scm/invalid-neighbour",
	Doc:     "an invalid control message beside the request fails the call, which sends nothing and reads nothing",
	Covers:  []string{"N12", "N10"},
	Axes:    CopiedAndNot,
	Needs:   scm,
	In32Bit: true,
}, func(t *T) {
	profile := t.Profile()
	queue := t.NewQueue()
	queue.Fill(2)
	unknown := notify.AppendControl(nil, unix.SOL_SOCKET, 0x7fff, make([]byte, 4))
	for _, control := range [][]byte{
		append(profile.Encode(4), unknown...),
		append(bytes.Clone(unknown), profile.Encode(4)...),
	} {
		_, err := notify.Send(queue.Sender.FD, &notify.Message{Buffers: [][]byte{[]byte("refused")}, Control: control})
		if !errors.Is(err, unix.EINVAL) {
			t.Errorf("EINVAL was expected, came %v", err)
		}
	}
	queue.ExpectNothingSent()
	var ledger notify.Ledger
	queue.Finish(&ledger)
})

var _ = add(Case{
	Name:    "scm/two-requests",
	Doc:     "two requests in one call are refused, or answered without loss and without returning anything twice",
	Covers:  []string{"N14"},
	Axes:    CopiedAndNot,
	Needs:   scm,
	In32Bit: true,
}, func(t *T) {
	profile := t.Profile()
	queue := t.NewQueue()
	queue.Fill(3)
	first := profile.Encode(2)
	control := append(bytes.Clone(first), profile.Encode(2)...)
	_, err := notify.Send(queue.Sender.FD, &notify.Message{Buffers: [][]byte{queue.data}, Control: control})
	var ledger notify.Ledger
	switch {
	case errors.Is(err, unix.EINVAL):
		queue.ExpectNothingSent()
	case err != nil:
		t.Errorf("success or EINVAL was expected, came %v", err)
	default:
		queue.Receiver.MustReceive(queue.data)
		for i, answer := range [][]byte{control[:len(first)], control[len(first):]} {
			entries, err := profile.Decode(answer)
			if err != nil {
				t.Errorf("request %d of two: %v; the caller takes what it finds there for notifications", i, err)
				continue
			}
			ledger.Add(entries...)
		}
	}
	queue.Finish(&ledger)
})

var _ = add(Case{
	Name:    "scm/corked-chunk",
	Doc:     "with a later chunk of a corked datagram, whose control messages are not parsed, the caller can tell: an error, or an answer",
	Covers:  []string{"N15"},
	Level:   Should,
	Axes:    CopiedAndNot.For(UDP),
	Needs:   scm,
	In32Bit: true,
}, func(t *T) {
	profile := t.Profile()
	if !profile.ReportsCount() {
		t.Skipf("profile %s returns no count, so nothing tells an answer from none", profile.Name())
	}
	queue := t.NewQueue()
	queue.Fill(2)
	queue.Sender.MustSend(queue.data[:10], unix.MSG_MORE)
	control := profile.Encode(4)
	_, err := notify.Send(queue.Sender.FD, &notify.Message{Buffers: [][]byte{queue.data[10:20]}, Control: control})
	var ledger notify.Ledger
	if err == nil {
		queue.Receiver.MustReceive(queue.data[:20])
		entries, err := profile.Decode(control)
		if err != nil {
			t.Errorf("the send succeeded, yet: %v; the caller takes what it finds there for 4 notifications", err)
		}
		ledger.Add(entries...)
	} else {
		queue.Sender.MustSend(queue.data[10:20], 0)
		queue.Receiver.MustReceive(queue.data[:20])
	}
	queue.Finish(&ledger)
})

var _ = add(Case{
	Name:    "scm/foreign-level",
	Doc:     "a control message of the same type at another level reads nothing and is not written to",
	Covers:  []string{"N20"},
	Axes:    CopiedAndNot,
	Needs:   scm,
	In32Bit: true,
}, func(t *T) {
	profile := t.Profile()
	queue := t.NewQueue()
	queue.Fill(2)
	for _, level := range []int32{unix.SOL_IP, unix.SOL_IPV6, unix.SOL_TCP, unix.SOL_UDP, 0x7fff} {
		control := notify.AppendControl(nil, level, profile.Constant(), profile.Data(4))
		before := bytes.Clone(control)
		count, err := notify.Send(queue.Sender.FD, &notify.Message{
			Buffers: [][]byte{queue.data}, Control: control, Flags: unix.MSG_NOSIGNAL,
		})
		if err == nil && count > 0 {
			queue.Receiver.MustReceive(queue.data)
			queue.Receiver.Acknowledge()
		}
		if !bytes.Equal(control, before) {
			t.Errorf("level %d, type %d: the kernel wrote into a message that is not its own", level, profile.Constant())
		}
	}
	var ledger notify.Ledger
	queue.Finish(&ledger)
})

// internalFlags are bits of msg_flags that only the kernel may set: the
// uapi/linux/socket.h of several releases, and MSG_ZEROCOPY_UARG of the first
// revision.
const internalFlags = 0x10000 | 0x20000 | 0x80000 | 0x100000 | 0x2000000 | 0x8000000

var _ = add(Case{
	Name:   "scm/internal-flags",
	Doc:    "flags that only the kernel may set trigger nothing when the caller sets them, in the call or in the msghdr",
	Covers: []string{"N20"},
	Axes:   CopiedAndNot,
	Needs:  scm,
}, func(t *T) {
	queue := t.NewQueue()
	queue.Fill(2)
	control := timestampRequest(nil)
	before := bytes.Clone(control)
	for _, flags := range []struct{ call, header int }{{call: internalFlags}, {header: 0x7fffffff}} {
		count, err := notify.Send(queue.Sender.FD, &notify.Message{
			Buffers: [][]byte{queue.data}, Control: control,
			Flags: flags.call | unix.MSG_NOSIGNAL, HeaderFlags: flags.header,
		})
		if err != nil || count != len(queue.data) {
			t.Logf("flags %#x, msg_flags %#x: %d, %v", flags.call, flags.header, count, err)
			continue
		}
		queue.Receiver.MustReceive(queue.data)
		queue.Receiver.Acknowledge()
		queue.Edges.Wait("the timestamp that the control message asked for")
		queue.Timestamps++
	}
	if !bytes.Equal(control, before) {
		t.Errorf("the kernel wrote into the control buffer of a send that asked for nothing: % x became % x", before, control)
	}
	var ledger notify.Ledger
	queue.Finish(&ledger)
})
