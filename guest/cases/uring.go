// SPDX-License-Identifier: BSD-3-Clause

package cases

import (
	"errors"
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/zcvet/zcvet/guest/network"
	"github.com/zcvet/zcvet/guest/notify"
	"github.com/zcvet/zcvet/guest/uring"
)

// ringRequests is how many requests a case can have under way.
const ringRequests = 32

// Ring is an io_uring instance of the case's thread, closed after the case.
type Ring struct {
	*uring.Ring

	t *T
	// completions by request, in the order in which they came.
	completions map[uint64][]uring.Completion
	requests    uint64
}

// NewRing makes a ring. It ends the case.
func (t *T) NewRing() *Ring {
	t.Helper()
	ring, err := uring.New(ringRequests)
	t.Check(err, "io_uring")
	t.Cleanup(func() { _ = ring.Close() })
	return &Ring{Ring: ring, t: t, completions: make(map[uint64][]uring.Completion)}
}

// Ask submits requests with one call, gives them numbers in their order, and
// returns the numbers. It ends the case.
func (r *Ring) Ask(requests ...uring.Request) []uint64 {
	r.t.Helper()
	var numbers []uint64
	for i := range requests {
		r.requests++
		requests[i].UserData = r.requests
		numbers = append(numbers, r.requests)
	}
	r.t.Check(r.Submit(requests...), "submit to io_uring")
	return numbers
}

// take enters a completion and fails the case if its request had no further one
// to come.
func (r *Ring) take(completion uring.Completion) {
	r.t.Helper()
	before := r.completions[completion.UserData]
	r.completions[completion.UserData] = append(before, completion)
	if completion.UserData == 0 || completion.UserData > r.requests {
		r.t.Errorf("a completion of a request that was never made: %v", completion)
	}
	if len(before) > 0 && !before[len(before)-1].More() {
		r.t.Errorf("request %d was completed already: %v, then %v; the application has given its buffers to another request", completion.UserData, before, completion)
	}
}

// Result waits for the first completion of a request. It ends the case when none
// comes.
func (r *Ring) Result(number uint64) uring.Completion {
	r.t.Helper()
	r.await(number, 1, "the result of a request")
	first := r.completions[number][0]
	if first.Notification() {
		r.t.Fatalf("the notification of request %d came before its result: %v", number, first)
	}
	return first
}

func (r *Ring) await(number uint64, count int, what string) {
	r.t.Helper()
	for len(r.completions[number]) < count {
		completion, err := r.Wait(r.t.Patience())
		r.t.Check(err, what)
		r.take(completion)
	}
}

// ExpectSent waits for the result of a request and fails the case unless it sent
// length bytes. It ends the case.
func (r *Ring) ExpectSent(number uint64, length int) {
	r.t.Helper()
	if got := r.Result(number); int(got.Result) != length {
		r.t.Fatalf("a request to send %d bytes completed as %v", length, got)
	}
}

// Notification waits for the notification of a zero-copy send whose result is
// known. It ends the case.
func (r *Ring) Notification(number uint64) uring.Completion {
	r.t.Helper()
	if first := r.Result(number); !first.More() {
		r.t.Fatalf("the result of request %d announces no notification: %v; the application does not know when its buffer is free", number, first)
	}
	r.await(number, 2, "the notification of a zero-copy send through io_uring")
	second := r.completions[number][1]
	if !second.Notification() || second.More() {
		r.t.Fatalf("the notification of request %d was expected and nothing after it, came %v", number, second)
	}
	return second
}

// ExpectNoNotification fails the case if one of the requests has been notified.
// Whatever must have happened before has to be waited for by the caller. It ends
// the case.
func (r *Ring) ExpectNoNotification(why string, numbers ...uint64) {
	r.t.Helper()
	r.settle()
	for _, number := range numbers {
		for _, completion := range r.completions[number] {
			if completion.Notification() {
				r.t.Fatalf("no notification was due, came %v: %s", completion, why)
			}
		}
	}
}

// settle takes all completions the kernel has by now. It ends the case.
func (r *Ring) settle() {
	r.t.Helper()
	for {
		completion, err := r.Wait(0)
		if errors.Is(err, uring.ErrNoCompletion) {
			return
		}
		r.t.Check(err, "io_uring")
		r.take(completion)
	}
}

// ExpectQuiet fails the case unless every request so far has completed, each as
// often as its results announced. It ends the case.
func (r *Ring) ExpectQuiet() {
	r.t.Helper()
	// What was to come twice comes before the completion of a later request.
	r.Result(r.Ask(uring.Request{Op: uring.OpNop})[0])
	r.settle()
	for number := uint64(1); number <= r.requests; number++ {
		all := r.completions[number]
		if len(all) == 0 || all[len(all)-1].More() {
			r.t.Errorf("request %d is not complete: %v", number, all)
		}
	}
}

// sendZC is a request for a zero-copy send of data.
func sendZC(s *Socket, data []byte, flags int) uring.Request {
	return uring.Request{
		Op: uring.OpSendZC, FD: int32(s.FD), Address: uring.Address(data), Length: uint32(len(data)), OpFlags: uint32(flags),
	}
}

// sendmsg is a request to send a message, whose msghdr is in memory that stays.
// It ends the case.
func (r *Ring) sendmsg(op uint8, s *Socket, message *notify.Message) uring.Request {
	r.t.Helper()
	place := r.t.Memory(1).Bytes()
	prepared := message.PrepareAt(place)
	// The kernel reads the msghdr and the array it points at when the request is
	// submitted, or never: until the case is over is long enough.
	r.t.Cleanup(func() { runtime.KeepAlive(prepared) })
	return uring.Request{Op: op, FD: int32(s.FD), Address: uring.Address(place), Length: 1, OpFlags: uint32(message.Flags)}
}

var sendZCNeeds = []string{FeatureIOURing, SendZC}

var _ = add(Case{
	Name:   "uring/send-zc",
	Doc:    "a SEND_ZC has one result, announcing one notification that comes after it, and takes no id of the socket's",
	Covers: []string{"Z84", "Z70"},
	Axes:   Everywhere,
	Needs:  sendZCNeeds,
}, func(t *T) {
	pair := t.Pair(noDelay)
	ring := t.NewRing()
	for _, flags := range []uint8{0, uring.Async} {
		for i := range 4 {
			data := t.Payload(300+400*i, byte(i))
			request := sendZC(pair.Sender, data, 0)
			request.Flags = flags
			number := ring.Ask(request)[0]
			ring.ExpectSent(number, len(data))
			pair.Receiver.MustReceive(data)
			pair.Receiver.Acknowledge()
			ring.Notification(number)
		}
	}
	ring.ExpectQuiet()
	pair.Sender.ExpectNothing("io_uring has notified its sends already")
	// The socket's own count begins at 0 all the same.
	data := t.Payload(500, 9)
	pair.Sender.MustSend(data, unix.MSG_ZEROCOPY)
	pair.Receiver.MustReceive(data)
	pair.Receiver.Acknowledge()
	pair.Sender.Collect(1)
})

var _ = add(Case{
	Name:   "uring/reports-copies",
	Doc:    "the notification of a SEND_ZC that asked for it says whether the data was copied",
	Covers: []string{"Z84", "Z50", "Z51"},
	Axes:   CopiedAndNot,
	Needs:  sendZCNeeds,
}, func(t *T) {
	pair := t.Pair(noDelay)
	ring := t.NewRing()
	for i := range 2 {
		data := t.Payload(1000, byte(i))
		request := sendZC(pair.Sender, data, 0)
		request.IOPriority = uring.ReportUsage
		number := ring.Ask(request)[0]
		if i == 0 && errors.Is(ring.Result(number).Err(), unix.EINVAL) {
			t.Skipf("no IORING_SEND_ZC_REPORT_USAGE (in kernels since 6.2)")
		}
		ring.ExpectSent(number, len(data))
		pair.Receiver.MustReceive(data)
		pair.Receiver.Acknowledge()
		got := ring.Notification(number)
		copied := uint32(got.Result)&uring.NotificationCopied != 0
		if want := t.Link != network.NIC; copied != want {
			t.Errorf("copied %v was expected on link %s, came %v (%v)", want, t.Link, copied, got)
		}
	}
})

var _ = add(Case{
	Name:   "uring/not-before-device-is-done",
	Doc:    "a SEND_ZC, from a registered buffer or not, and a SENDMSG_ZC, are notified when the device gives the buffers back, not before",
	Covers: []string{"Z84", "Z3A"},
	Axes:   OnNIC,
	Needs:  sendZCNeeds,
}, func(t *T) {
	pair := t.Pair(noDelay)
	ring := t.NewRing()
	registered := t.Payload(4096, 5)
	t.Check(ring.RegisterBuffers(registered), "register a buffer")
	fixed := sendZC(pair.Sender, registered[100:][:900], 0)
	fixed.IOPriority = uring.FixedBuffer
	data := t.Payload(700, 1)
	requests := []uring.Request{sendZC(pair.Sender, data, 0), fixed, sendZC(pair.Sender, data, 0)}
	sent := [][]byte{data, registered[100:][:900], data}
	if t.environment.feature(SendmsgZC) == nil {
		requests = append(requests, ring.sendmsg(uring.OpSendmsgZC, pair.Sender, &notify.Message{Buffers: [][]byte{data[:200], data[200:]}}))
		sent = append(sent, data)
	}
	t.NIC().Hold(true)
	var numbers []uint64
	for i, request := range requests {
		number := ring.Ask(request)[0]
		ring.ExpectSent(number, len(sent[i]))
		pair.Receiver.MustReceive(sent[i])
		pair.Receiver.Acknowledge()
		pair.Sender.AwaitAcknowledged()
		numbers = append(numbers, number)
	}
	for i, number := range numbers {
		ring.ExpectNoNotification(fmt.Sprintf("the device has given back the buffers of %d of %d sends, it may still read the next", i, len(numbers)), numbers[i:]...)
		t.NIC().Release(1)
		ring.Notification(number)
	}
	t.NIC().Hold(false)
	ring.ExpectQuiet()
	t.Check(ring.UnregisterBuffers(), "unregister the buffer")
})

var _ = add(Case{
	Name:   "uring/not-before-acknowledged",
	Doc:    "while the peer's acknowledgement is withheld a SEND_ZC on a stream is not notified",
	Covers: []string{"Z84", "Z36"},
	Axes:   OnNIC.For(TCP),
	Needs:  sendZCNeeds,
}, func(t *T) {
	pair := t.Pair(noDelay)
	ring := t.NewRing()
	release := withholdCompletions(t)
	data := t.Payload(3000, 1)
	number := ring.Ask(sendZC(pair.Sender, data, 0))[0]
	ring.ExpectSent(number, len(data))
	pair.Receiver.MustReceive(data)
	t.DeviceBarrier()
	ring.ExpectNoNotification("TCP may have to send the pages again", number)
	release()
	pair.Receiver.Acknowledge()
	ring.Notification(number)
	ring.ExpectQuiet()
})

// sender is a way to send, by its name.
type sender struct {
	name string
	// takesID tells that the socket notifies the send on its error queue.
	takesID bool
	// notifies tells that io_uring notifies it.
	notifies bool
	request  func(r *Ring, s *Socket, data []byte) uring.Request // nil for a plain system call
	flags    int
}

var senders = []sender{
	{name: "send", flags: 0},
	{name: "send with MSG_ZEROCOPY", flags: unix.MSG_ZEROCOPY, takesID: true},
	{name: "SEND_ZC", notifies: true, request: func(_ *Ring, s *Socket, data []byte) uring.Request { return sendZC(s, data, 0) }},
	{name: "SENDMSG with MSG_ZEROCOPY", takesID: true, request: func(r *Ring, s *Socket, data []byte) uring.Request {
		return r.sendmsg(uring.OpSendmsg, s, &notify.Message{Buffers: [][]byte{data}, Flags: unix.MSG_ZEROCOPY | unix.MSG_NOSIGNAL})
	}},
	{name: "SENDMSG", request: func(r *Ring, s *Socket, data []byte) uring.Request {
		return r.sendmsg(uring.OpSendmsg, s, &notify.Message{Buffers: [][]byte{data}, Flags: unix.MSG_NOSIGNAL})
	}},
}

// try sends data, and returns the number of the request whose notification is to
// come, or 0, and what the kernel answered. It ends the case when only a part was
// taken.
func (w sender) try(r *Ring, s *Socket, data []byte) (uint64, error) {
	r.t.Helper()
	if w.request == nil {
		count, err := s.Send(data, w.flags)
		if err == nil && count != len(data) {
			r.t.Fatalf("%s of %d bytes took %d", w.name, len(data), count)
		}
		return 0, err
	}
	number := r.Ask(w.request(r, s, data))[0]
	if err := r.Result(number).Err(); err != nil {
		return 0, err
	}
	r.ExpectSent(number, len(data))
	if w.notifies {
		return number, nil
	}
	return 0, nil
}

var _ = add(Case{
	Name:   "uring/beside-msg-zerocopy",
	Doc:    "SEND_ZC, SENDMSG and system calls, with MSG_ZEROCOPY and without, in any order on one socket: the data keeps its order, and each send is notified once and where it belongs",
	Covers: []string{"Z84", "Z15", "Z30"},
	Axes:   Everywhere,
	Needs:  sendZCNeeds,
}, func(t *T) {
	// Without noDelay, so that small sends of a stream share segments.
	pair := t.Pair()
	ring := t.NewRing()
	const sends = 40
	ids := 0
	var numbers []uint64
	var sent [][]byte
	for i := range sends {
		// Each way behind each other way at least once, then as it comes.
		way := senders[i/2%len(senders)]
		if i%2 == 1 {
			way = senders[t.Rand.IntN(len(senders))]
		}
		data := t.Payload(200+i, byte(i))
		number, err := way.try(ring, pair.Sender, data)
		if errors.Is(err, unix.ENOBUFS) && way.takesID && t.Proto == TCP {
			// A segment has one kind of notification. While the last one is of
			// SEND_ZC and not sent, the kernel has no room for MSG_ZEROCOPY.
			pair.Receiver.Acknowledge()
			pair.Sender.AwaitAcknowledged()
			number, err = way.try(ring, pair.Sender, data)
		}
		t.Check(err, fmt.Sprintf("send %d, by %s", i, way.name))
		if number != 0 {
			numbers = append(numbers, number)
		}
		if way.takesID {
			ids++
		}
		if t.Proto == UDP {
			pair.Receiver.MustReceive(data)
		}
		sent = append(sent, data)
	}
	if t.Proto == TCP {
		for _, data := range sent {
			pair.Receiver.MustReceive(data)
		}
		pair.Receiver.Acknowledge()
	}
	for _, number := range numbers {
		ring.Notification(number)
	}
	pair.Sender.Collect(ids)
	ring.ExpectQuiet()
})

var _ = add(Case{
	Name:   "uring/held-back-pieces",
	Doc:    "a datagram or segment of pieces by SEND_ZC, from a registered buffer or not, by MSG_ZEROCOPY and by copying: a piece is refused, or its notification comes when the device gives the buffers back and not before",
	Covers: []string{"Z84", "Z81", "Z3A"},
	Axes:   OnNIC,
	Needs:  sendZCNeeds,
}, func(t *T) {
	ring := t.NewRing()
	registered := t.Payload(4096, 5)
	t.Check(ring.RegisterBuffers(registered), "register a buffer")
	cork := holdsInPlace(t.Proto)[0]
	// u: SEND_ZC, r: the same from the registered buffer, z: MSG_ZEROCOPY, c: copied.
	for _, pattern := range []string{"uu", "rr", "ru", "ur", "uc", "rc", "cu", "cr", "rcr", "uz", "rz", "zu", "zr", "zuc"} {
		t.Logf("pieces %s", pattern)
		pair := t.Pair()
		t.NIC().Hold(true)
		cork.set(pair.Sender, 1)
		var want []byte
		var numbers []uint64
		ids := 0
		var refused error
		for i, letter := range pattern {
			data := t.Payload(250+i, byte(i))
			var request uring.Request
			switch letter {
			case 'c', 'z':
				flags := 0
				if letter == 'z' {
					flags = unix.MSG_ZEROCOPY
				}
				if _, refused = pair.Sender.Send(data, flags); refused != nil {
					break
				}
				if letter == 'z' {
					ids++
				}
				want = append(want, data...)
				continue
			case 'u':
				request = sendZC(pair.Sender, data, 0)
			case 'r':
				data = registered[i*300:][:250+i]
				request = sendZC(pair.Sender, data, 0)
				request.IOPriority = uring.FixedBuffer
			}
			if refused != nil {
				break
			}
			number := ring.Ask(request)[0]
			result := ring.Result(number)
			if refused = result.Err(); refused != nil {
				if result.More() {
					ring.Notification(number)
				}
				break
			}
			if int(result.Result) != len(data) {
				t.Fatalf("pieces %s: piece %d of %d bytes completed as %v", pattern, i, len(data), result)
			}
			numbers = append(numbers, number)
			want = append(want, data...)
		}
		if refused != nil {
			t.Logf("pieces %s: one was refused: %v", pattern, refused)
		}
		// A segment has one kind of notification, and the kernel begins no other
		// for the sake of MSG_ZEROCOPY.
		if refused != nil && t.Proto == TCP && !errors.Is(refused, unix.ENOBUFS) {
			t.Errorf("pieces %s: a stream refused one with %v", pattern, refused)
		}
		cork.set(pair.Sender, 0)
		if refused != nil && t.Proto == TCP {
			pair.Receiver.MustReceive(want)
			pair.Receiver.Acknowledge()
			t.NIC().Hold(false)
		} else if refused != nil {
			// A datagram that lost a piece is thrown away with the others, and
			// nobody reads their pages any more.
			t.NIC().Hold(false)
		} else {
			pair.Receiver.MustReceive(want)
			pair.Receiver.Acknowledge()
			pair.Sender.AwaitAcknowledged()
			pair.Sender.ExpectNothing("the device still reads the pages of the pieces")
			if pages := ring.inPlace(t, pattern, numbers); len(pages) > 0 {
				ring.ExpectNoNotification(fmt.Sprintf("pieces %s: the device still reads the pages of the pieces", pattern), pages...)
			}
			t.NIC().Hold(false)
		}
		for _, number := range numbers {
			ring.Notification(number)
		}
		if ids > 0 {
			pair.Sender.Collect(ids)
		}
		ring.ExpectQuiet()
	}
	t.Check(ring.UnregisterBuffers(), "unregister the buffer")
})

// inPlace returns those of a pattern's SEND_ZC requests whose pages the device
// reads: all of a stream's, and of a datagram's only the first piece, because the
// kernel copies what is added to one.
func (r *Ring) inPlace(t *T, pattern string, numbers []uint64) []uint64 {
	if t.Proto == TCP {
		return numbers
	}
	if pattern[0] == 'u' || pattern[0] == 'r' {
		return numbers[:1]
	}
	return nil
}

var _ = add(Case{
	Name:   "uring/failed-send",
	Doc:    "a SEND_ZC that fails has its notification if its result announces one, and disturbs nothing",
	Covers: []string{"Z84", "Z11", "Z62"},
	Axes:   CopiedAndNot,
	Needs:  sendZCNeeds,
}, func(t *T) {
	pair := t.Pair(noDelay)
	ring := t.NewRing()
	hole := t.Memory(1)
	t.Check(hole.Protect(0, 1, notify.NoAccess), "mprotect")
	for _, flags := range []uint8{0, uring.Async} {
		request := sendZC(pair.Sender, hole.Bytes()[:500], 0)
		request.Flags = flags
		failed := ring.Ask(request)[0]
		result := ring.Result(failed)
		if !errors.Is(result.Err(), unix.EFAULT) {
			t.Errorf("a SEND_ZC from memory that cannot be read: EFAULT was expected, came %v", result)
		}
		if result.More() {
			ring.Notification(failed)
		}
		data := t.Payload(600, 1)
		good := ring.Ask(sendZC(pair.Sender, data, 0))[0]
		ring.ExpectSent(good, len(data))
		pair.Receiver.MustReceive(data)
		pair.Receiver.Acknowledge()
		ring.Notification(good)
	}
	ring.ExpectQuiet()
	data := t.Payload(700, 2)
	pair.Sender.MustSend(data, unix.MSG_ZEROCOPY)
	pair.Receiver.MustReceive(data)
	pair.Receiver.Acknowledge()
	pair.Sender.Collect(1)
})
