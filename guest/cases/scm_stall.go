// SPDX-License-Identifier: BSD-3-Clause

package cases

import (
	"bytes"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/zcvet/zcvet/guest/notify"
)

// The cases below change the memory of a message while its send waits for room:
// after the kernel has looked at the message, before it writes the answer.

// needsWait drops the instances on which no send can be made to wait.
func needsWait(i Instance) bool { return !CanBlock(i) }

// waitingRequest is a send with a request that waits in the kernel.
type waitingRequest struct {
	queue   *Queue
	profile notify.Profile
	backlog *Backlog
	// Memory holds the control buffer at the end of its first page and the
	// msghdr in its third. A second page behind the control buffer is there to
	// be written past it.
	memory  *notify.Memory
	control []byte
	encoded []byte // the request as it was sent
	sending *Sending
}

// The pages of waitingRequest.memory.
const (
	controlPage = iota
	behindPage
	headerPage
)

// newWaitingRequest fills the queue with so many notifications, and starts a send
// that asks for more. It ends the case.
func newWaitingRequest(t *T, entries int) *waitingRequest {
	t.Helper()
	w := &waitingRequest{queue: t.NewQueue(), profile: t.Profile(), memory: t.Memory(3)}
	w.queue.Fill(entries)
	w.backlog = w.queue.Block()
	w.encoded = w.profile.Encode(entries + 1)
	w.control = w.memory.Bytes()[notify.PageSize-len(w.encoded):][:len(w.encoded)]
	copy(w.control, w.encoded)
	return w
}

// start starts the send and waits until it waits. It ends the case.
func (w *waitingRequest) start() {
	w.queue.t.Helper()
	message := &notify.Message{Buffers: [][]byte{w.queue.data}, Control: w.control, Flags: unix.MSG_NOSIGNAL}
	header := w.memory.Bytes()[headerPage*notify.PageSize:]
	w.sending = w.queue.Sender.StartSend(message.PrepareAt(header))
	w.sending.AwaitWaiting()
}

// finish judges the end of the call: it must have told what became of the data,
// and every notification is in the answer or in the queue. The answer is read
// from the control buffer only if readAnswer, and memory must be accessible. It
// ends the case.
func (w *waitingRequest) finish(ledger *notify.Ledger, readAnswer bool) {
	t := w.queue.t
	t.Helper()
	count, err := w.sending.Await()
	t.Check(w.memory.Protect(0, 3, notify.ReadWrite), "give access back")
	switch {
	case err == nil:
		if count != len(w.queue.data) {
			t.Errorf("the send took %d of %d bytes", count, len(w.queue.data))
		}
		w.queue.Receiver.MustReceive(w.queue.data)
		w.queue.Receiver.Acknowledge()
	case errors.Is(err, unix.EFAULT):
		// Allowed, as long as it is true: nothing was sent.
		w.queue.ExpectNothingSent()
	default:
		t.Errorf("success or EFAULT was expected, came %v", err)
	}
	if readAnswer && err == nil {
		entries, err := w.profile.Decode(w.control)
		if err != nil {
			t.Errorf("the send succeeded, yet: %v; the caller takes what it finds there for notifications", err)
		}
		ledger.Add(entries...)
	}
	w.queue.Finish(ledger)
}

// takenAway is what happens to a page while the send waits.
var takenAway = map[string]struct {
	page   int
	access notify.Access
}{
	"control-read-only": {controlPage, notify.ReadOnly},
	"control-unmapped":  {controlPage, notify.NoAccess},
	"msghdr-read-only":  {headerPage, notify.ReadOnly},
	"msghdr-unmapped":   {headerPage, notify.NoAccess},
}

func init() {
	for name, away := range takenAway {
		add(Case{
			Name:    "scm/fault-during-send/" + name,
			Doc:     "memory that is taken away while the call runs costs no notification, and the call tells what became of the data",
			Covers:  []string{"N11", "N09"},
			Axes:    CopiedAndNot,
			Skip:    needsWait,
			Needs:   scm,
			In32Bit: true,
		}, func(t *T) {
			waiting := newWaitingRequest(t, 3)
			waiting.start()
			t.Check(waiting.memory.Protect(away.page, 1, away.access), "take away access")
			waiting.backlog.Receive()
			if away.page == headerPage {
				// The answer itself can be written.
				var ledger notify.Ledger
				waiting.finish(&ledger, true)
				return
			}
			// The caller finds its own request there, and no count.
			_, _ = waiting.sending.Await()
			t.Check(waiting.memory.Protect(0, 3, notify.ReadWrite), "give access back")
			if !bytes.Equal(waiting.control, waiting.encoded) {
				t.Errorf("the control buffer could not be written, yet it changed")
			}
			var ledger notify.Ledger
			waiting.finish(&ledger, false)
		})
	}
}

var _ = add(Case{
	Name:    "scm/fault-during-send/control-partly-read-only",
	Doc:     "an answer of which only the beginning can be written costs no notification, and none is in the answer and in the queue",
	Covers:  []string{"N11"},
	Axes:    CopiedAndNot,
	Skip:    needsWait,
	Needs:   scm,
	In32Bit: true,
}, func(t *T) {
	waiting := newWaitingRequest(t, 3)
	// The header, a size and one element are in front of the page boundary.
	at := notify.PageSize - unix.CmsgLen(0) - 16
	waiting.control = waiting.memory.Bytes()[at:][:copy(waiting.memory.Bytes()[at:], waiting.encoded)]
	waiting.start()
	t.Check(waiting.memory.Protect(behindPage, 1, notify.ReadOnly), "take away access")
	waiting.backlog.Receive()
	count, err := waiting.sending.Await()
	t.Logf("the send answered %d, %v", count, err)
	var ledger notify.Ledger
	if entries, err := waiting.profile.Decode(waiting.control); err == nil {
		ledger.Add(entries...)
	}
	waiting.finish(&ledger, false)
})

// stalledAnswer starts a send with a request for entries+1 notifications of as
// many as entries, and takes the page of the control buffer away once the kernel
// has looked at it. It returns when the kernel waits for the page, to write its
// answer there. It ends the case.
func stalledAnswer(t *T, entries int) (*waitingRequest, *notify.Stall) {
	t.Helper()
	waiting := newWaitingRequest(t, entries)
	stall, err := waiting.memory.Stall()
	if errors.Is(err, unix.ENOSYS) {
		t.Skipf("%v", err)
	}
	t.Check(err, "stall")
	t.Unblock(func() { _ = stall.Close() })
	waiting.start()
	t.Check(stall.Remove(controlPage), "remove the page of the control buffer")
	waiting.backlog.Receive()
	page, err := stall.Wait(t.Patience())
	if errors.Is(err, unix.ETIMEDOUT) {
		t.Fatalf("the kernel never came to write an answer; the send ended: %v", waiting.sending.ended())
	}
	t.Check(err, "wait for the kernel")
	if page != controlPage {
		t.Fatalf("page %d was touched, the control buffer is in page %d", page, controlPage)
	}
	return waiting, stall
}

// putBack restores the page of the control buffer with the request in it. It
// ends the case.
func (w *waitingRequest) putBack(stall *notify.Stall) {
	w.queue.t.Helper()
	page := make([]byte, notify.PageSize)
	copy(page[notify.PageSize-len(w.encoded):], w.encoded)
	w.queue.t.Check(stall.PutBack(controlPage, page), "put the page of the control buffer back")
}

var _ = add(Case{
	Name:    "scm/stalled-answer/written-late",
	Doc:     "an answer that waits for a page of the caller is written when the page is there",
	Covers:  []string{"N11", "N01"},
	Axes:    CopiedAndNot,
	Skip:    needsWait,
	Needs:   scm,
	In32Bit: true,
}, func(t *T) {
	waiting, stall := stalledAnswer(t, 3)
	waiting.putBack(stall)
	var ledger notify.Ledger
	waiting.finish(&ledger, true)
})

var _ = add(Case{
	Name:    "scm/stalled-answer/never-written",
	Doc:     "an answer that waits for a page of the caller which then never comes costs no notification, and the call tells what became of the data",
	Covers:  []string{"N11", "N10"},
	Axes:    CopiedAndNot,
	Skip:    needsWait,
	Needs:   scm,
	In32Bit: true,
}, func(t *T) {
	waiting, stall := stalledAnswer(t, 3)
	t.Check(waiting.memory.Protect(controlPage, 1, notify.NoAccess), "take away access")
	t.Check(stall.Release(), "end the stall")
	var ledger notify.Ledger
	waiting.finish(&ledger, false)
})

var _ = add(Case{
	Name:   "scm/stalled-answer/queue-read-meanwhile",
	Doc:    "while an answer is being written another reader of the error queue gets a notification or the answer does, never both",
	Covers: []string{"N04", "N11"},
	Axes:   CopiedAndNot,
	Skip:   needsWait,
	Needs:  scm,
}, func(t *T) {
	waiting, stall := stalledAnswer(t, 3)
	var ledger notify.Ledger
	waiting.queue.Account(&ledger, waiting.queue.Sender.Drain()...)
	waiting.putBack(stall)
	waiting.finish(&ledger, true)
})

var _ = add(Case{
	Name:   "scm/stalled-answer/one-read-meanwhile",
	Doc:    "while an answer is being written another reader takes the oldest notification only: the rest is reported once",
	Covers: []string{"N04", "N11"},
	Axes:   CopiedAndNot,
	Skip:   needsWait,
	Needs:  scm,
}, func(t *T) {
	waiting, stall := stalledAnswer(t, 3)
	var ledger notify.Ledger
	switch entry, err := notify.Next(waiting.queue.Sender.FD); {
	case errors.Is(err, unix.EAGAIN):
	case err != nil:
		t.Fatalf("read the error queue: %v", err)
	default:
		waiting.queue.Account(&ledger, entry)
	}
	waiting.putBack(stall)
	waiting.finish(&ledger, true)
})

var _ = add(Case{
	Name:   "scm/stalled-answer/request-meanwhile",
	Doc:    "while an answer is being written another thread's request gets a notification or the answer does, never both",
	Covers: []string{"N04", "N11"},
	Axes:   CopiedAndNot,
	Skip:   needsWait,
	Needs:  scm,
}, func(t *T) {
	waiting, stall := stalledAnswer(t, 3)
	control := waiting.profile.Encode(2)
	other := waiting.queue.Sender.StartSend((&notify.Message{
		Buffers: [][]byte{waiting.queue.data}, Control: control, Flags: unix.MSG_NOSIGNAL,
	}).Prepare())
	// A kernel may make the other one wait for the socket.
	t.Eventually("the other send ends or waits", func() bool { return other.ended() || waitsInSend(other.thread) })
	waiting.putBack(stall)
	count, err := other.Await()
	if err != nil || count != len(waiting.queue.data) {
		t.Errorf("the other send: %d, %v", count, err)
	}
	var ledger notify.Ledger
	entries, err := waiting.profile.Decode(control)
	t.Check(err, "answer to the other send")
	ledger.Add(entries...)
	// Both sent the same data, so their order does not matter.
	waiting.queue.Receiver.MustReceive(waiting.queue.data)
	waiting.finish(&ledger, true)
})

var _ = add(Case{
	Name:   "scm/stalled-answer/more-meanwhile",
	Doc:    "what is notified while an answer is being written, and merges into an entry of that answer, is reported once",
	Covers: []string{"N04", "N01"},
	Axes:   CopiedAndNot,
	Skip:   needsWait,
	Needs:  scm,
}, func(t *T) {
	const more = 3
	waiting, stall := stalledAnswer(t, 2)
	data := waiting.queue.data
	var others []*Sending
	for range more {
		other := waiting.queue.Sender.StartSend((&notify.Message{
			Buffers: [][]byte{data}, Flags: unix.MSG_NOSIGNAL | unix.MSG_ZEROCOPY,
		}).Prepare())
		t.Eventually("the other send ends or waits", func() bool { return other.ended() || waitsInSend(other.thread) })
		others = append(others, other)
		if !other.ended() {
			break // the answer has the socket: nothing can happen meanwhile
		}
		waiting.queue.Sends++
		// The notification may come only now, when the data has arrived. One
		// byte block is like another, whichever send it is from.
		waiting.queue.Receiver.MustReceive(data)
		waiting.queue.Receiver.Acknowledge()
		waiting.queue.Edges.Wait(fmt.Sprintf("the notification of send %d", waiting.queue.Sends))
	}
	waiting.putBack(stall)
	for _, other := range others {
		if _, err := other.Await(); err != nil {
			t.Errorf("the other send: %v", err)
		}
	}
	if last := len(others); last > waiting.queue.Sends-2 {
		waiting.queue.Sends++
		waiting.queue.Receiver.MustReceive(data)
	}
	var ledger notify.Ledger
	waiting.finish(&ledger, true)
})
