// SPDX-License-Identifier: BSD-3-Clause

package cases

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/zcvet/zcvet/guest/debugfs"
	"github.com/zcvet/zcvet/guest/notify"
	"github.com/zcvet/zcvet/guest/sys"
)

// The cases in this file make the kernel's allocations and copies fail. What they
// look for is mostly seen by the kernel itself, with the debug configuration.

// armFailures lets injectors act on allocations that may wait, too, which are
// nearly all of a system call's. It skips the case on a kernel that cannot inject
// failures, and ends it.
func armFailures(t *T) {
	t.Helper()
	t.Require(FaultInjection)
	set := func(name, value string) error {
		return os.WriteFile(filepath.Join(debugfs.Root, name), []byte(value), 0)
	}
	for _, knob := range []string{"failslab/verbose", "fail_usercopy/verbose"} {
		// Each failure would be told on the console, stack and all.
		t.Check(set(knob, "0"), "keep quiet about injected failures")
	}
	t.Check(set("failslab/ignore-gfp-wait", "N"), "let waiting allocations fail")
	t.Cleanup(func() {
		if err := set("failslab/ignore-gfp-wait", "Y"); err != nil {
			t.Errorf("fault injection: %v", err)
		}
	})
}

// mostFailures bounds the search for the last allocation of a send, which has some
// thirty with everything a debug kernel adds.
const mostFailures = 300

var _ = add(Case{
	Name:       "stress/each-failure",
	Concurrent: true,
	Doc:        "whichever allocation or copy of a send fails, a failed send takes no id and leaves every notification queued, and one that succeeds all the same is notified",
	Covers:     []string{"R03", "N10", "N11", "Z11", "Z30"},
	Axes:       CopiedAndNot,
	Needs:      []string{FaultInjection},
}, func(t *T) {
	armFailures(t)
	injector, err := notify.OpenInjector()
	t.Check(err, "fail-nth")
	t.Cleanup(func() { _ = injector.Close() })

	queue := t.NewQueue()
	var ledger notify.Ledger
	failed, passed, full := 0, 0, 0
	for nth := 1; ; nth++ {
		if nth == mostFailures {
			t.Fatalf("a send makes more than %d allocations and copies", mostFailures)
		}
		sendAndSkip(queue) // so that there is something to lose
		queue.Sender.AwaitAcknowledged()
		if pending, err := notify.Wait(queue.Sender.FD, t.Patience()); err != nil || !pending {
			t.Fatalf("no notification came of a send, poll: %v", err)
		}
		control := requestOf(t, 4)
		before := bytes.Clone(control)
		message := &notify.Message{
			Buffers: [][]byte{queue.data[:1]}, Control: control, Flags: unix.MSG_ZEROCOPY | unix.MSG_NOSIGNAL,
		}
		count, hit, err := message.Prepare().SendFailing(queue.Sender.FD, injector, nth)
		switch {
		case errors.Is(err, unix.EAGAIN) && !hit && full < mostFailures:
			// The failures before have made a stream's send buffer small
			// (sk_stream_moderate_sndbuf), and what is sent again fills it.
			full++
			nth--
			continue
		case err != nil && !hit:
			t.Fatalf("a send in which nothing failed: %v", err)
		case err != nil:
			failed++
			t.Logf("failure %d: %v", nth, err)
			if !notify.IsInjected(err) {
				t.Errorf("failure %d made the send fail with %v: an application takes it for a broken connection", nth, err)
			}
			if !bytes.Equal(control, before) {
				t.Errorf("failure %d made the send fail with %v, and its control message was written: what it says is lost when the application does not look", nth, err)
			}
		default:
			if count != 1 {
				t.Fatalf("a send of 1 byte took %d", count)
			}
			if hit {
				passed++
			}
			queue.Sends++
			ledger.Add(answerTo(t, control)...)
			if t.Proto == TCP {
				queue.Receiver.MustReceive(queue.data[:1])
				queue.Receiver.Acknowledge()
			}
		}
		if !hit {
			break
		}
	}
	t.Logf("%d sends failed, %d succeeded in spite of a failure", failed, passed)
	if failed == 0 {
		t.Errorf("no failure reached a send: the case shows nothing")
	}
	queue.Finish(&ledger)
})

// sendAndSkip is Queue.Send for a receiver to which datagrams of one byte may be on
// the way, or lost, without the sender being told. It ends the case.
func sendAndSkip(q *Queue) {
	q.t.Helper()
	q.Sender.MustSend(q.data, unix.MSG_ZEROCOPY)
	q.Sends++
	got := q.Receiver.Receive(len(q.data))
	for q.t.Proto == UDP && len(got) == 1 {
		got = q.Receiver.Receive(len(q.data))
	}
	if !bytes.Equal(got, q.data) {
		q.t.Errorf("the peer received %d bytes, not the %d that were sent", len(got), len(q.data))
	}
	q.Receiver.Acknowledge()
}

// requestOf returns a control buffer that asks for notifications, or nil without
// a series under test.
func requestOf(t *T, capacity int) []byte {
	if t.environment.feature(SCMNotification) != nil {
		return nil
	}
	return t.Profile().Encode(capacity)
}

// answerTo returns the notifications in a control buffer of requestOf. An answer
// that could not be written has none.
func answerTo(t *T, control []byte) []notify.Notification {
	if control == nil {
		return nil
	}
	entries, err := t.Profile().Decode(control)
	if err != nil && !errors.Is(err, notify.ErrUntouched) {
		t.Errorf("answer to a request for notifications: %v", err)
	}
	return entries
}

// Discard takes everything that has arrived, without looking at it, and returns
// the number of bytes.
func (s *Socket) Discard() int {
	buffer := make([]byte, 64<<10)
	total := 0
	for {
		count, _, err := sys.Recvfrom(s.FD, buffer, unix.MSG_DONTWAIT)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil || count == 0 && s.t.Proto == TCP:
			return total
		}
		total += count
	}
}

// The size of stress/threads: pairs of sockets, with two sending threads, one
// that reads the error queue and one that receives for each.
const (
	stressPairs   = 4
	stressSenders = 2
	stressSends   = 150 // of each thread
)

var _ = add(Case{
	Name:       "stress/threads",
	Concurrent: true,
	Doc:        "threads that send on shared sockets and read notifications both ways, with failures in their calls where the kernel can inject them: each send is notified exactly once",
	Covers:     []string{"R03", "N04", "Z17", "Z30"},
	Axes:       CopiedAndNot,
}, func(t *T) {
	inject := t.environment.feature(FaultInjection) == nil
	if inject {
		armFailures(t)
	} else {
		t.Logf("this kernel cannot inject failures: the threads run without")
	}
	var running sync.WaitGroup
	streams := make([]*stressed, stressPairs)
	for i := range streams {
		s := &stressed{Pair: t.Pair(noDelay), t: t, inject: inject}
		streams[i] = s
		s.begin(&running)
	}
	running.Wait()
	for _, s := range streams {
		s.stop.Store(true)
		s.readers.Wait()
	}
	if t.Failed() {
		return
	}
	for i, s := range streams {
		sends := int(s.sends.Load())
		if sends == 0 {
			t.Errorf("pair %d: no send succeeded: the case shows nothing", i)
		}
		if t.Proto == TCP {
			// Nothing is notified before it is acknowledged.
			t.Eventually("the data of all sends arrives", func() bool {
				s.received += s.Receiver.Discard()
				s.Receiver.Acknowledge()
				return s.received >= int(s.sent.Load())
			})
		}
		if t.Proto == UDP && s.failed.Load() > 0 {
			s.expectAsManyAs(sends)
			continue
		}
		_, err := notify.Collect(s.Sender.FD, &s.ledger, sends, t.Patience())
		t.Check(err, "read the error queue")
		s.Sender.expectOnce(sends)
		if err := s.ledger.Check(sends); err != nil {
			t.Errorf("pair %d: %v; a send that is never notified is a buffer lost to the application, one notified twice a buffer reused too early", i, err)
		}
	}
})

// stressed is a pair that several threads use.
type stressed struct {
	*Pair
	t      *T
	inject bool

	ledger   notify.Ledger
	sends    atomic.Int64 // without copying, that succeeded
	failed   atomic.Int64 // without copying, that did not
	sent     atomic.Int64 // bytes
	received int          // bytes, of the receiving thread
	stop     atomic.Bool
	readers  sync.WaitGroup
}

// expectAsManyAs expects one notification for each of the sends, whatever its id. A
// datagram takes its id without the lock of the socket, and gives the last one back
// when it fails (msg_zerocopy_put_abort): if another thread has taken one meanwhile,
// that one comes twice, and the one of the failed send never. Linux 6.12 does so.
func (s *stressed) expectAsManyAs(sends int) {
	s.t.Helper()
	_, err := notify.CollectUntil(s.Sender.FD, &s.ledger, func() bool { return s.ledger.Total() >= sends }, s.t.Patience())
	s.t.Check(err, "read the error queue")
	if total := s.ledger.Total(); total != sends {
		s.t.Errorf("%d sends succeeded, %d notifications came: a buffer is lost to the application, or reused too early", sends, total)
	}
}

// begin starts the threads; running counts those that end by themselves.
func (s *stressed) begin(running *sync.WaitGroup) {
	for range stressSenders {
		// The threads must not share a source of random numbers.
		random := rand.New(rand.NewPCG(s.t.Rand.Uint64(), s.t.Rand.Uint64()))
		data := s.t.Payload(3*notify.PageSize, byte(random.Uint32()))
		running.Add(1)
		s.t.Go(func() {
			defer running.Done()
			if err := s.send(random, data); err != nil {
				s.t.Errorf("%v", err)
			}
		})
	}
	s.readers.Add(2)
	s.t.Go(func() {
		defer s.readers.Done()
		for !s.stop.Load() {
			entries, err := notify.Drain(s.Sender.FD)
			if err != nil {
				s.t.Errorf("%v", err)
				return
			}
			s.ledger.Add(entries...)
			runtime.Gosched()
		}
	})
	s.t.Go(func() {
		defer s.readers.Done()
		for !s.stop.Load() {
			s.received += s.Receiver.Discard()
			s.Receiver.Acknowledge()
			runtime.Gosched()
		}
	})
}

// send makes the sends of one thread: of random length, most of them without
// copying, half with a request for notifications, and half with a failure
// somewhere.
func (s *stressed) send(random *rand.Rand, data []byte) error {
	var injector *notify.Injector
	if s.inject {
		// Not unlocked: the thread ends with the goroutine.
		runtime.LockOSThread()
		var err error
		if injector, err = notify.OpenInjector(); err != nil {
			return fmt.Errorf("fail-nth: %w", err)
		}
		defer func() { _ = injector.Close() }()
	}
	for range stressSends {
		length := 1 + random.IntN(len(data))
		if s.t.Proto == UDP {
			length = 1 + random.IntN(1200) // below every link's MTU
		}
		message := &notify.Message{Buffers: [][]byte{data[:length]}, Flags: unix.MSG_NOSIGNAL | unix.MSG_DONTWAIT}
		if random.IntN(8) > 0 {
			message.Flags |= unix.MSG_ZEROCOPY
		}
		if random.IntN(2) > 0 {
			message.Control = requestOf(s.t, 1+random.IntN(8))
		}
		prepared := message.Prepare()
		count, err := 0, error(nil)
		if nth := random.IntN(60) - 30; injector != nil && nth > 0 {
			count, _, err = prepared.SendFailing(s.Sender.FD, injector, nth)
		} else {
			count, err = prepared.Send(s.Sender.FD)
		}
		switch {
		case err == nil:
			s.sent.Add(int64(count))
			if message.Flags&unix.MSG_ZEROCOPY != 0 && count > 0 {
				s.sends.Add(1)
			}
			s.ledger.Add(answerTo(s.t, message.Control)...)
		case notify.IsInjected(err): // full, or made to fail
			if message.Flags&unix.MSG_ZEROCOPY != 0 {
				s.failed.Add(1)
			}
			runtime.Gosched()
		default:
			return fmt.Errorf("send: %w", err)
		}
	}
	return nil
}
