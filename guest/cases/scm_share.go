// SPDX-License-Identifier: BSD-3-Clause

package cases

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/zcvet/zcvet/guest/network"
	"github.com/zcvet/zcvet/guest/notify"
	"github.com/zcvet/zcvet/guest/sys"
)

var _ = add(Case{
	Name:       "scm/many-threads",
	Concurrent: true,
	Doc:        "threads that send with requests and threads that read the error queue, all on one socket, get every notification exactly once",
	Covers:     []string{"N04", "Z17", "Z30"},
	Axes:       CopiedAndNot,
	Needs:      scm,
}, func(t *T) {
	const threads, sends = 3, 60
	pair := t.Pair(noDelay)
	SetOption(unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 4<<20)(pair.Receiver)
	profile := t.Profile()
	data := t.Payload(100, 1)
	var ledger notify.Ledger
	stop := make(chan struct{})
	finish := sync.OnceFunc(func() { close(stop) })
	t.Unblock(finish)
	for range 2 {
		t.Go(func() { pair.Sender.drainUntil(stop, &ledger) })
	}
	var senders sync.WaitGroup
	for range threads {
		senders.Add(1)
		t.Go(func() {
			defer senders.Done()
			for range sends {
				control := profile.Encode(2)
				count, err := sendWhenThereIsMemory(pair.Sender, &notify.Message{
					Buffers: [][]byte{data}, Control: control, Flags: unix.MSG_ZEROCOPY | unix.MSG_NOSIGNAL,
				})
				if err != nil || count != len(data) {
					t.Errorf("send: %d, %v", count, err)
					return
				}
				entries, err := profile.Decode(control)
				if err != nil {
					t.Errorf("answer to a send: %v", err)
					return
				}
				ledger.Add(entries...)
			}
		})
	}
	for range threads * sends {
		if t.Failed() {
			break
		}
		pair.Receiver.MustReceive(data)
	}
	senders.Wait()
	finish()
	t.group.Wait()
	pair.Sender.CollectInto(&ledger, threads*sends)
})

// sendWhenThereIsMemory repeats a send while the notifications that other threads
// have not read yet take all option memory.
func sendWhenThereIsMemory(s *Socket, message *notify.Message) (count int, err error) {
	deadline := time.Now().Add(s.t.Patience())
	for {
		count, err = notify.Send(s.FD, message)
		if !errors.Is(err, unix.ENOBUFS) || time.Now().After(deadline) {
			return count, err
		}
		time.Sleep(time.Millisecond)
	}
}

// childReads is a process that reads the error queue of its first file, the
// sender's socket, until the second is at its end; it writes what it got there.
var childReads = child("scm-reads-error-queue", func(files []int) error {
	sender, report := files[0], os.NewFile(uintptr(files[1]), "report")
	stop := make(chan struct{})
	go func() {
		defer close(stop)
		_, _ = report.Read(make([]byte, 1))
	}()
	got := []notify.Notification{}
	for {
		entries, err := notify.Drain(sender)
		got = append(got, entries...)
		if err != nil {
			return err
		}
		select {
		case <-stop:
			return json.NewEncoder(report).Encode(got)
		default:
		}
	}
})

var _ = add(Case{
	Name:       "scm/two-processes",
	Concurrent: true,
	Doc:        "a process that reads by control messages and another that reads the error queue of the same socket get every notification exactly once",
	Covers:     []string{"N04", "Z17", "Z30"},
	Axes:       CopiedAndNot,
	Needs:      scm,
}, func(t *T) {
	const sends, burst = 200, 10
	pair := t.Pair(noDelay)
	profile := t.Profile()
	data := t.Payload(100, 1)
	mine, theirs := t.socketPair()
	wait := t.StartChild(childReads, pair.Sender, theirs)
	theirs.Close()
	t.Unblock(func() { _ = sys.Shutdown(mine.FD, unix.SHUT_WR) }) // the case may end early

	var ledger notify.Ledger
	for sent := range sends {
		control := profile.Encode(most(profile))
		count, err := notify.Send(pair.Sender.FD, &notify.Message{
			Buffers: [][]byte{data}, Control: control, Flags: unix.MSG_ZEROCOPY | unix.MSG_NOSIGNAL,
		})
		t.Check(err, "send with SCM_ZC_NOTIFICATION")
		if count != len(data) {
			t.Fatalf("the send took %d of %d bytes", count, len(data))
		}
		entries, err := profile.Decode(control)
		t.Check(err, "answer to a send")
		ledger.Add(entries...)
		if sent%burst == burst-1 {
			for range burst {
				pair.Receiver.MustReceive(data)
			}
			pair.Receiver.Acknowledge()
		}
	}
	t.Check(sys.Shutdown(mine.FD, unix.SHUT_WR), "shutdown")
	var theirEntries []notify.Notification
	file := mine.file()
	defer func() { _ = file.Close() }()
	t.Check(json.NewDecoder(file).Decode(&theirEntries), "what the other process got")
	wait()
	t.Logf("the other process got %d entries", len(theirEntries))
	ledger.Add(theirEntries...)
	pair.Sender.CollectInto(&ledger, sends)
})

// socketPair returns two connected unix sockets, to talk to a child. It ends the
// case.
func (t *T) socketPair() (mine, theirs *Socket) {
	t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	t.Check(err, "socketpair")
	mine, theirs = &Socket{FD: pair[0], t: t}, &Socket{FD: pair[1], t: t}
	mine.adopt()
	theirs.adopt()
	return mine, theirs
}

// file makes the socket a file, which the caller closes instead.
func (s *Socket) file() *os.File {
	fd := s.FD
	s.FD = -1
	return os.NewFile(uintptr(fd), "socket")
}

var _ = add(Case{
	Name:   "scm/own-send",
	Doc:    "the notification of the send that carries a request is never in its own answer, even when the data is done with before the call returns",
	Covers: []string{"N01", "N02"},
	Axes:   Everywhere,
	Needs:  scm,
}, func(t *T) {
	queue := t.NewQueue()
	queue.Receiver.Acknowledge()
	var ledger notify.Ledger
	for send := range 20 {
		entries := queue.Carry(4, unix.MSG_ZEROCOPY)
		for _, entry := range entries {
			if entry.High >= uint32(send) {
				t.Errorf("send %d returned %v: a program that keeps books after the call does not know that send yet", send, entry)
			}
		}
		ledger.Add(entries...)
	}
	queue.Finish(&ledger)
})

var _ = add(Case{
	Name:    "scm/every-capacity",
	Doc:     "with one entry fewer than the capacity, as many, and one more, exactly what fits is returned",
	Covers:  []string{"N01"},
	Axes:    OnLoopback,
	Needs:   scm,
	In32Bit: true,
}, func(t *T) {
	profile := t.Profile()
	queue := t.NewQueue()
	var ledger notify.Ledger
	for _, capacity := range []int{1, 2, 3, most(profile) - 1, most(profile)} {
		for _, pending := range []int{capacity - 1, capacity, capacity + 1} {
			// An entry that was read separates as little as one that merged.
			queue.Separate()
			queue.Fill(pending)
			control := profile.Encode(capacity)
			header := string(control[:unix.CmsgLen(0)])
			entries, err := profile.Decode(queue.CarryControl(control, 0))
			t.Check(err, fmt.Sprintf("capacity %d, %d pending", capacity, pending))
			if want := min(capacity, pending); len(entries) != want {
				t.Errorf("capacity %d, %d pending: %d notifications were expected, came %v", capacity, pending, want, entries)
			}
			if string(control[:unix.CmsgLen(0)]) != header {
				t.Errorf("capacity %d, %d pending: the header of the control message changed: its next use fails", capacity, pending)
			}
			for _, found := range profile.Foreign(control) {
				t.Errorf("capacity %d, %d pending: the kernel wrote where nothing was due: %s", capacity, pending, found)
			}
			ledger.Add(entries...)
			queue.Finish(&ledger)
		}
	}
})

var _ = add(Case{
	Name:   "scm/flag-per-element",
	Doc:    "each element has the flag of its own range: one that was copied between two that were not",
	Covers: []string{"N06"},
	Axes:   OnNIC,
	Needs:  scm,
}, func(t *T) {
	queue := t.NewQueue()
	queue.Send()
	queue.Separate()
	sniffer := openSniffer(t)
	queue.Send()
	sniffer.Close()
	queue.Separate()
	queue.Send()
	entries := queue.Carry(4, 0)
	expectRanges(t, entries, "[0,0] [1,1] [2,2]", "three sends, none next to another")
	for i, entry := range entries {
		if want := i == 1; entry.Copied != want {
			t.Errorf("send %d: copied %v was expected, came %v: a packet socket was open during send 1 only", i, want, entry.Copied)
		}
	}
	var ledger notify.Ledger
	ledger.Add(entries...)
	queue.Finish(&ledger)
})

var _ = add(Case{
	Name:   "scm/mapped-address",
	Doc:    "an IPv6 socket that sends to an IPv4 address answers requests like any other",
	Covers: []string{"N08", "N01"},
	Axes:   CopiedAndNot.Over(network.Mapped),
	Needs:  scm,
}, func(t *T) {
	queue := t.NewQueue()
	queue.Fill(3)
	var ledger notify.Ledger
	entries := queue.Carry(2, unix.MSG_ZEROCOPY)
	expectRanges(t, entries, "[0,0] [1,1]", "capacity is 2")
	ledger.Add(entries...)
	queue.Finish(&ledger)
})

var _ = add(Case{
	Name:   "scm/unconnected",
	Doc:    "a request on a datagram with an address of its own is answered, whomever the notifications are about",
	Covers: []string{"N08"},
	Axes:   CopiedAndNot.For(UDP),
	Needs:  scm,
}, func(t *T) {
	profile := t.Profile()
	first, second := t.Bound(ReceiverEnd), t.Bound(ReceiverEnd)
	sender := t.Socket(SenderEnd)
	sender.SetZerocopy(true)
	edges := sender.WatchErrors()
	data := t.Payload(64, 1)
	send := func(to *Socket, control []byte) {
		t.Helper()
		_, err := notify.Send(sender.FD, &notify.Message{
			Name: notify.Address(to.Local()), Buffers: [][]byte{data}, Control: control, Flags: unix.MSG_ZEROCOPY,
		})
		t.Check(err, "zero-copy send")
		to.MustReceive(data)
		edges.Wait("the notification of a zero-copy send")
	}
	send(first, nil)
	control := profile.Encode(2)
	send(second, control)
	entries, err := profile.Decode(control)
	t.Check(err, "answer to a request")
	expectRanges(t, entries, "[0,0]", "a send to another address came before")
	var ledger notify.Ledger
	ledger.Add(entries...)
	sender.CollectInto(&ledger, 2)
})

var _ = add(Case{
	Name:    "scm/sendmmsg-stops",
	Doc:     "where sendmmsg stops at a message that fails, those before it have their notifications, and that one and those behind it read none",
	Covers:  []string{"N08", "N10"},
	Axes:    CopiedAndNot,
	Needs:   scm,
	In32Bit: true,
}, func(t *T) {
	queue := t.NewQueue()
	queue.Fill(4)
	profile := t.Profile()
	unreadable := t.Memory(1)
	t.Check(unreadable.Protect(0, 1, notify.NoAccess), "take away access")
	var messages []*notify.Message
	for _, data := range [][]byte{queue.data, unreadable.Bytes()[:len(queue.data)], queue.data} {
		messages = append(messages, &notify.Message{Buffers: [][]byte{data}, Control: profile.Encode(1)})
	}
	counts, err := notify.SendMany(queue.Sender.FD, messages, 0)
	t.Check(err, "sendmmsg")
	if len(counts) != 1 {
		t.Fatalf("one message can be sent and the next not, sendmmsg says it sent %d", len(counts))
	}
	queue.Receiver.MustReceive(queue.data)
	queue.Receiver.Acknowledge()
	entries, err := profile.Decode(messages[0].Control)
	t.Check(err, "answer to the message that was sent")
	expectRanges(t, entries, "[0,0]", "the message asked for one")
	queue.ExpectNothingSent()
	var ledger notify.Ledger
	ledger.Add(entries...)
	queue.Finish(&ledger)
})
