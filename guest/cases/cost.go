// SPDX-License-Identifier: BSD-3-Clause

package cases

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/zcvet/zcvet/guest/link"
	"github.com/zcvet/zcvet/guest/notify"
	"github.com/zcvet/zcvet/guest/sys"
)

// The cost cases run where time is a count of instructions, and say what calls
// cost. They fail if a call fails; whether a cost is too high only the host can
// tell, which has the same figures of the kernel without the series.

// How often each figure is taken: the first rounds fill caches and grow buffers
// and do not count.
const (
	costWarmUp = 20
	costRounds = 51
)

var _ = add(Case{
	Name:   "cost/send-without-request",
	Doc:    "what a send costs that asks for no notifications, to be compared with the kernel without the series",
	Covers: []string{"N21"},
	Level:  Should,
	Axes:   OnLoopback,
	Needs:  []string{InstructionCount},
}, func(t *T) {
	mark := notify.AppendControl(nil, unix.SOL_SOCKET, unix.SO_MARK, binary.NativeEndian.AppendUint32(nil, 7))
	for _, send := range []struct {
		name     string
		zerocopy bool
		control  []byte
	}{
		{"plain", false, nil},
		{"with a control message", false, mark},
		{"with SO_ZEROCOPY", true, nil},
		{"with SO_ZEROCOPY and a control message", true, mark},
	} {
		pair := t.Pair(noDelay)
		pair.Sender.SetZerocopy(send.zerocopy)
		data := t.Payload(64, 1)
		message := (&notify.Message{Buffers: [][]byte{data}, Control: send.control}).Prepare()
		t.measure(send.name, func(stopwatch *stopwatch) {
			pair.Receiver.delayAcknowledgement()
			stopwatch.time(func() { mustCall(message.Send(pair.Sender.FD)) })
			pair.Receiver.MustReceive(data)
			pair.Receiver.Acknowledge()
			pair.Sender.AwaitAcknowledged()
		})
	}
})

// costlySend is the size of a zero-copy send in bytes: four pages, where it begins
// to pay.
var costlySend = 4 * notify.PageSize

var _ = add(Case{
	Name:   "cost/notifications",
	Doc:    "what a zero-copy send costs with its share of reading the notifications from the error queue, after every send or every 32",
	Covers: []string{"N21"},
	Level:  Should,
	Axes:   OnLoopback,
	Needs:  []string{InstructionCount},
}, func(t *T) {
	for _, every := range []int{1, 32} {
		t.measureZerocopy(fmt.Sprintf("error queue, every %d", every), every, nil)
	}
})

var _ = add(Case{
	Name:   "cost/notifications-by-request",
	Doc:    "the same with the notifications returned by sendmsg",
	Covers: []string{"N21"},
	Level:  Should,
	Axes:   OnLoopback,
	Needs:  []string{InstructionCount, SCMNotification},
}, func(t *T) {
	profile := t.Profile()
	for _, every := range []int{1, 32} {
		t.measureZerocopy(fmt.Sprintf("sendmsg, every %d", every), every, &profile)
	}
})

// measureZerocopy measures a zero-copy send when notifications are collected every
// so many sends: with a request on one of them, or from the error queue when the
// profile is nil. It ends the case.
func (t *T) measureZerocopy(name string, every int, profile *notify.Profile) {
	t.Helper()
	pair := t.Pair(noDelay)
	data := t.Payload(costlySend, 1)
	send := (&notify.Message{Buffers: [][]byte{data}, Flags: unix.MSG_ZEROCOPY}).Prepare()
	collect := send
	request, control := []byte(nil), []byte(nil)
	if profile != nil {
		request = (*profile).Encode(most(*profile))
		control = slices.Clone(request)
		collect = (&notify.Message{Buffers: [][]byte{data}, Control: control, Flags: unix.MSG_ZEROCOPY}).Prepare()
	}
	entry := (&notify.Message{Control: make([]byte, 128), Flags: unix.MSG_ERRQUEUE}).Prepare()
	poll := []unix.PollFd{{Fd: int32(pair.Sender.FD)}}

	t.measure(name, func(stopwatch *stopwatch) {
		for i := range every {
			next := send
			if i == 0 {
				next = collect
				copy(control, request)
			}
			pair.Receiver.delayAcknowledgement()
			stopwatch.time(func() { mustCall(next.Send(pair.Sender.FD)) })
			pair.Receiver.MustReceive(data)
			pair.Receiver.Acknowledge()
		}
		pair.Sender.AwaitAcknowledged()
		if profile == nil {
			stopwatch.time(func() { readErrorQueue(pair.Sender.FD, poll, entry) })
		}
		stopwatch.divide(every)
	})
	pair.Sender.Drain()
}

// delayAcknowledgement makes a stream's receiver keep its next acknowledgement until
// it has read. On loopback it would otherwise come, or not come, inside the send
// that is measured.
func (s *Socket) delayAcknowledgement() {
	if s.t.Proto == TCP {
		s.t.Check(sys.SetsockoptInt(s.FD, unix.IPPROTO_TCP, unix.TCP_QUICKACK, 0), "TCP_QUICKACK")
	}
}

// readErrorQueue waits for notifications and reads them all, as an application
// does that knows nothing else.
func readErrorQueue(fd int, poll []unix.PollFd, entry *notify.Prepared) {
	if _, err := sys.Poll(poll, -1); err != nil {
		panic(err)
	}
	for {
		// The call before has written there how much it used.
		entry.Reset()
		_, err := entry.Receive(fd)
		if errors.Is(err, unix.EAGAIN) {
			return
		}
		if err != nil {
			panic(err)
		}
	}
}

// mustCall is for calls inside a measurement; the framework makes a failure of the
// panic.
func mustCall(_ int, err error) {
	if err != nil {
		panic(err)
	}
}

// measure takes the median of many rounds of work, which times what counts. It
// ends the case.
func (t *T) measure(name string, work func(*stopwatch)) {
	t.Helper()
	// The recorder and the garbage collector have instructions of their own.
	recorder := sys.Recorder()
	sys.SetRecorder(nil)
	defer sys.SetRecorder(recorder)
	defer debug.SetGCPercent(debug.SetGCPercent(-1))

	empty := t.median(func(s *stopwatch) { s.time(func() {}) })
	figure := t.median(func(s *stopwatch) {
		s.overhead = empty
		work(s)
	})
	t.measurements = append(t.measurements, link.Measurement{Name: name, Instructions: figure.Nanoseconds()})
}

func (t *T) median(work func(*stopwatch)) time.Duration {
	var figures []time.Duration
	for round := range costWarmUp + costRounds {
		var s stopwatch
		work(&s)
		if round >= costWarmUp {
			figures = append(figures, s.total)
		}
	}
	slices.Sort(figures)
	return figures[len(figures)/2]
}

// stopwatch adds up the time of the parts of a round that count.
type stopwatch struct {
	total, overhead time.Duration
}

func (s *stopwatch) time(part func()) {
	began := time.Now()
	part()
	s.total += time.Since(began) - s.overhead
}

// divide makes the total that of one send.
func (s *stopwatch) divide(sends int) { s.total /= time.Duration(sends) }
