// SPDX-License-Identifier: BSD-3-Clause

package cases

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/zcvet/zcvet/guest/nic"
	"github.com/zcvet/zcvet/guest/notify"
	"github.com/zcvet/zcvet/guest/sys"
	"github.com/zcvet/zcvet/guest/uring"
)

// carrier is a way to hand a message to io_uring.
type carrier struct {
	name string
	op   uint8
	// flags and priority are those of the request.
	flags    uint8
	priority uint16
	// behind is what the request is linked to, submitted with it.
	behind []uring.Request
}

var carriers = []carrier{
	{name: "sendmsg", op: uring.OpSendmsg},
	{name: "sendmsg-async", op: uring.OpSendmsg, flags: uring.Async},
	{name: "sendmsg-linked", op: uring.OpSendmsg, behind: []uring.Request{{Op: uring.OpNop, Flags: uring.Link}}},
	{name: "sendmsg-linked-async", op: uring.OpSendmsg, flags: uring.Async, behind: []uring.Request{{Op: uring.OpNop, Flags: uring.Link}}},
	{name: "sendmsg-drained", op: uring.OpSendmsg, flags: uring.Drain, behind: []uring.Request{{Op: uring.OpNop, Flags: uring.Async}}},
	{name: "sendmsg-polled-first", op: uring.OpSendmsg, priority: uring.PollFirst},
	{name: "sendmsg-zc", op: uring.OpSendmsgZC},
	{name: "sendmsg-zc-async", op: uring.OpSendmsgZC, flags: uring.Async},
	{name: "sendmsg-zc-polled-first", op: uring.OpSendmsgZC, priority: uring.PollFirst},
}

// needs are the features that the way needs for a request.
func (c carrier) needs() []string {
	needs := []string{SCMNotification, FeatureIOURing}
	if c.op == uring.OpSendmsgZC {
		needs = append(needs, SendmsgZC)
	}
	return needs
}

// submit hands a message to io_uring and returns the number of its request. It
// ends the case.
func (c carrier) submit(r *Ring, s *Socket, message *notify.Message) uint64 {
	r.t.Helper()
	request := r.sendmsg(c.op, s, message)
	request.Flags |= c.flags
	request.IOPriority |= c.priority
	numbers := r.Ask(append(slices.Clone(c.behind), request)...) // Ask numbers them
	return numbers[len(numbers)-1]
}

// complete waits until a request of this way is over, its notification included.
// It ends the case.
func (c carrier) complete(r *Ring, number uint64) uring.Completion {
	r.t.Helper()
	result := r.Result(number)
	if result.More() {
		r.Notification(number)
	}
	return result
}

// requestInPages is a request for capacity notifications in memory that the
// kernel may write to for as long as the case runs, whoever does it and when.
func requestInPages(t *T, profile notify.Profile, capacity int) []byte {
	t.Helper()
	encoded := profile.Encode(capacity)
	return append(t.Memory(1).Bytes()[:0], encoded...)
}

// expectAnswer fails the case unless a request for notifications that was carried
// by io_uring was answered with want, or was refused, and then left the control
// buffer as it was and sent nothing. What was returned goes into the ledger. It
// ends the case.
func (q *Queue) expectAnswer(result uring.Completion, control []byte, capacity, length int, want string, ledger *notify.Ledger) {
	q.t.Helper()
	profile := q.t.Profile()
	if err := result.Err(); err != nil {
		q.t.Logf("refused: %v", err)
		if !bytes.Equal(control, profile.Encode(capacity)) {
			q.t.Errorf("the request was refused with %v, yet the control buffer was written to: % x", err, control)
		}
		q.ExpectNothingSent()
		return
	}
	if int(result.Result) != length {
		q.t.Errorf("a request to send %d bytes completed as %v", length, result)
	}
	q.Receiver.MustReceive(q.data[:length])
	q.Receiver.Acknowledge()
	entries, err := profile.Decode(control)
	if err != nil {
		q.t.Errorf("the send succeeded, yet: %v; the caller takes what it finds there for notifications", err)
		return
	}
	expectRanges(q.t, entries, want, "the send succeeded, so the request is answered")
	for _, found := range profile.Foreign(control) {
		q.t.Errorf("the kernel wrote where nothing was due: %s", found)
	}
	ledger.Add(entries...)
}

func init() {
	for _, carrier := range carriers {
		add(Case{
			Name:       "scm/io-uring/" + carrier.name,
			Concurrent: true,
			Doc:        "a request for notifications that io_uring carries is answered in the caller's control buffer, or refused with nothing read",
			Covers:     []string{"N13", "N16"},
			Axes:       CopiedAndNot,
			Needs:      carrier.needs(),
		}, func(t *T) {
			queue := t.NewQueue()
			queue.Fill(3)
			ring := t.NewRing()
			const capacity = 4
			control := requestInPages(t, t.Profile(), capacity)
			number := carrier.submit(ring, queue.Sender, &notify.Message{
				Buffers: [][]byte{queue.data}, Control: control, Flags: unix.MSG_NOSIGNAL,
			})
			var ledger notify.Ledger
			queue.expectAnswer(ring.Result(number), control, capacity, len(queue.data), "[0,0] [1,1] [2,2]", &ledger)
			carrier.complete(ring, number)
			queue.Finish(&ledger)
			ring.ExpectQuiet()
		})

		add(Case{
			Name:       "scm/io-uring-waits/" + carrier.name,
			Concurrent: true,
			Doc:        "a request for notifications whose send has to wait is answered when it goes on, in its own control buffer, and none is lost",
			Covers:     []string{"N13", "N10"},
			Axes:       OnNIC,
			Needs:      carrier.needs(),
		}, func(t *T) {
			queue := t.NewQueue()
			queue.Fill(3)
			ring := t.NewRing()
			const capacity = 4
			control := requestInPages(t, t.Profile(), capacity)
			backlog := queue.Block()
			number := carrier.submit(ring, queue.Sender, &notify.Message{
				Buffers: [][]byte{queue.data}, Control: control, Flags: unix.MSG_NOSIGNAL,
			})
			ring.settle()
			backlog.Receive()
			var ledger notify.Ledger
			queue.expectAnswer(ring.Result(number), control, capacity, len(queue.data), "[0,0] [1,1] [2,2]", &ledger)
			carrier.complete(ring, number)
			queue.Finish(&ledger)
			ring.ExpectQuiet()
		})
	}
}

var _ = add(Case{
	Name:       "scm/io-uring-chain",
	Concurrent: true,
	Doc:        "linked requests for notifications are answered one after the other, each in its own control buffer, none twice",
	Covers:     []string{"N13"},
	Axes:       CopiedAndNot,
	Needs:      []string{SCMNotification, FeatureIOURing},
}, func(t *T) {
	queue := t.NewQueue()
	queue.Fill(4)
	ring := t.NewRing()
	profile := t.Profile()
	var controls [][]byte
	var requests []uring.Request
	for i := range 3 {
		control := requestInPages(t, profile, 1)
		request := ring.sendmsg(uring.OpSendmsg, queue.Sender, &notify.Message{
			Buffers: [][]byte{queue.data}, Control: control, Flags: unix.MSG_NOSIGNAL,
		})
		if i < 2 {
			request.Flags |= uring.Link
		}
		controls, requests = append(controls, control), append(requests, request)
	}
	var ledger notify.Ledger
	for i, number := range ring.Ask(requests...) {
		result := ring.Result(number)
		if i > 0 && errors.Is(result.Err(), unix.ECANCELED) {
			continue // the one before was refused
		}
		queue.expectAnswer(result, controls[i], 1, len(queue.data), fmt.Sprintf("[%d,%d]", i, i), &ledger)
	}
	queue.Finish(&ledger)
	ring.ExpectQuiet()
})

func init() {
	for _, carrier := range carriers {
		if carrier.flags != 0 || carrier.priority != 0 || carrier.behind != nil {
			continue
		}
		add(Case{
			Name:       "scm/io-uring-in-parts/" + carrier.name,
			Concurrent: true,
			Doc:        "a request for notifications whose data goes out in several parts (MSG_WAITALL) returns each notification once, however often the kernel comes back to it",
			Covers:     []string{"N13", "N10"},
			Axes:       OnNIC.For(TCP),
			Needs:      carrier.needs(),
		}, func(t *T) {
			queue := t.NewQueue(SetOption(unix.SOL_SOCKET, unix.SO_SNDBUF, 64<<10))
			queue.Fill(4)
			ring := t.NewRing()
			profile := t.Profile()
			withheld := t.NIC().AddRule(nic.Rule{Port: t.NIC().Receiver, Match: nic.TCPAck, Action: nic.Withhold})
			// One fewer than there are, so that there is a rest to be lost.
			const capacity = 3
			control := requestInPages(t, profile, capacity)
			data := t.Payload(2<<20, 3)
			number := carrier.submit(ring, queue.Sender, &notify.Message{
				Buffers: [][]byte{data}, Control: control, Flags: unix.MSG_NOSIGNAL | unix.MSG_WAITALL,
			})
			ring.settle()
			t.NIC().RemoveRule(withheld)
			// The thread that receives is not the one that io_uring works for,
			// and the rest is sent by the latter.
			received := make(chan struct{})
			t.Go(func() {
				defer close(received)
				queue.Receiver.expectStream(data)
			})
			result := carrier.complete(ring, number)
			if result.Err() != nil {
				t.Logf("refused: %v", result)
				if !bytes.Equal(control, profile.Encode(capacity)) {
					t.Errorf("the request was refused with %v, yet the control buffer was written to", result)
				}
				_ = sys.Shutdown(queue.Sender.FD, unix.SHUT_WR)
			} else {
				// A part of it is an answer, too: applications send the rest.
				if int(result.Result) < len(data) {
					_ = sys.Shutdown(queue.Sender.FD, unix.SHUT_WR)
				}
				var ledger notify.Ledger
				entries, err := profile.Decode(control)
				if err != nil {
					t.Errorf("the send succeeded, yet: %v", err)
				}
				ledger.Add(entries...)
				queue.Finish(&ledger)
			}
			<-received
			ring.ExpectQuiet()
		})
	}
}

// expectStream receives want, or the beginning of it if the stream ends there.
func (s *Socket) expectStream(want []byte) {
	buffer := make([]byte, 64<<10)
	for len(want) > 0 {
		var count int
		err := again(func() (err error) {
			count, _, err = sys.Recvfrom(s.FD, buffer[:min(len(buffer), len(want))], 0)
			return err
		})
		if err != nil {
			s.t.Errorf("receive, with %d bytes to come: %v", len(want), err)
			return
		}
		if count == 0 {
			return
		}
		if !bytes.Equal(buffer[:count], want[:count]) {
			s.t.Errorf("the peer received other data than was sent, with %d bytes to come", len(want))
			return
		}
		want = want[count:]
	}
}

var _ = add(Case{
	Name:       "scm/io-uring-cancelled",
	Concurrent: true,
	Doc:        "a request for notifications that is cancelled while its send waits loses none",
	Covers:     []string{"N13", "N10"},
	Axes:       OnNIC,
	Needs:      []string{SCMNotification, FeatureIOURing},
}, func(t *T) {
	queue := t.NewQueue()
	queue.Fill(3)
	ring := t.NewRing()
	const capacity = 2
	control := requestInPages(t, t.Profile(), capacity)
	queue.Block()
	number := carriers[0].submit(ring, queue.Sender, &notify.Message{
		Buffers: [][]byte{queue.data}, Control: control, Flags: unix.MSG_NOSIGNAL,
	})
	// The request to cancel is named by the number of the other.
	ring.Ask(uring.Request{Op: uring.OpAsyncCancel, FD: -1, Address: number})
	t.Logf("%v", ring.Result(number))
	var ledger notify.Ledger
	// Reported all the same would be no loss, as long as the queue does not
	// report it again.
	if entries, err := t.Profile().Decode(control); err == nil {
		ledger.Add(entries...)
	}
	queue.finishAfterFailure(&ledger)
})

var _ = add(Case{
	Name:       "scm/io-uring-fault",
	Concurrent: true,
	Doc:        "an answer that io_uring cannot write loses no notification, and the request does not fail after the data went out",
	Covers:     []string{"N13", "N11"},
	Axes:       CopiedAndNot,
	Needs:      []string{SCMNotification, FeatureIOURing},
}, func(t *T) {
	for _, carrier := range carriers[:2] {
		queue := t.NewQueue()
		queue.Fill(3)
		ring := t.NewRing()
		profile := t.Profile()
		memory := t.Memory(1)
		control := append(memory.Bytes()[:0], profile.Encode(4)...)
		t.Check(memory.Protect(0, 1, notify.ReadOnly), "take away write access")
		number := carrier.submit(ring, queue.Sender, &notify.Message{
			Buffers: [][]byte{queue.data}, Control: control, Flags: unix.MSG_NOSIGNAL,
		})
		result := ring.Result(number)
		t.Check(memory.Protect(0, 1, notify.ReadWrite), "give write access back")
		var ledger notify.Ledger
		if result.Err() != nil {
			queue.ExpectNothingSent()
		} else {
			queue.Receiver.MustReceive(queue.data)
			queue.Receiver.Acknowledge()
		}
		if !bytes.Equal(control, profile.Encode(4)) {
			t.Errorf("%s: the kernel wrote into read-only memory", carrier.name)
		}
		queue.Finish(&ledger)
		ring.ExpectQuiet()
	}
})
