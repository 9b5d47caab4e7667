// SPDX-License-Identifier: BSD-3-Clause

package cases

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/zcvet/zcvet/guest/network"
	"github.com/zcvet/zcvet/guest/notify"
)

// Backlog is what fills a sender's buffer, so that the next send has to wait.
type Backlog struct {
	queue *Queue
	sends [][]byte // what was taken, send by send
}

// CanBlock tells whether [Queue.Block] works on an instance: datagrams wait in
// the host's NIC only.
func CanBlock(i Instance) bool { return i.Proto == TCP || i.Link == network.NIC }

// Block fills the sender's buffer: a stream's receiver reads nothing, datagrams
// are kept by the device. It stays full until Receive. It ends the case.
func (q *Queue) Block() *Backlog {
	q.t.Helper()
	b := &Backlog{queue: q}
	if q.t.Proto == UDP {
		// Room for all that the sender's buffer holds.
		SetOption(unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 4<<20)(q.Receiver)
		q.t.NIC().Hold(true)
	}
	filling := make([]byte, 1000)
	if q.t.Proto == TCP {
		SetOption(unix.SOL_SOCKET, unix.SO_SNDBUF, 64<<10)(q.Sender)
		b.fillWindow()
		filling = make([]byte, 16<<10)
	}
	settled := q.t.Proto == UDP
	for {
		count, err := q.Sender.Send(filling, unix.MSG_DONTWAIT)
		if errors.Is(err, unix.EAGAIN) {
			if settled {
				return b
			}
			// What is on its way makes room when it is acknowledged, so a
			// full buffer says something only after that.
			if settled = q.Sender.atZeroWindow(); !settled {
				time.Sleep(time.Millisecond)
			}
			continue
		}
		q.t.Check(err, "fill the send buffer")
		b.sends = append(b.sends, filling[:count])
		settled = q.t.Proto == UDP
	}
}

// fillWindow sends as much as the peer of a stream takes without reading. What is
// a little too long for the window would be kept back until a timer of a fifth of
// a second probes the peer (tcp_probe_timer), so that each send is as long as the
// window is at that moment. It ends the case.
func (b *Backlog) fillWindow() {
	b.queue.t.Helper()
	sender := b.queue.Sender
	b.queue.t.Eventually("the peer's window is full", func() bool {
		info := sender.tcpInfo()
		if info.Unacked > 0 || info.Notsent_bytes > 0 {
			b.queue.Receiver.Acknowledge()
			return false
		}
		if info.Snd_wnd == 0 {
			return true
		}
		sent := make([]byte, info.Snd_wnd)
		count, err := sender.Send(sent, unix.MSG_DONTWAIT)
		b.queue.t.Check(err, "fill the peer's window")
		b.sends = append(b.sends, sent[:count])
		return false
	})
}

// atZeroWindow tells whether the peer of a stream takes no more and nothing is on
// its way, so that the buffer stays as it is until the peer reads. It ends the
// case.
func (s *Socket) atZeroWindow() bool {
	s.t.Helper()
	info := s.tcpInfo()
	return info.Unacked == 0 && info.Notsent_bytes > 0 && info.Snd_wnd == 0
}

// Receive lets everything through, the send that waits included, and receives
// what filled the buffer. It ends the case.
func (b *Backlog) Receive() {
	b.queue.t.Helper()
	if b.queue.t.Proto == UDP {
		b.queue.t.NIC().Hold(false)
	}
	for _, sent := range b.sends {
		b.queue.Receiver.MustReceive(sent)
	}
	b.queue.Receiver.Acknowledge()
}

// Sending is a send on a thread of its own.
type Sending struct {
	t      *T
	thread int
	done   chan struct{}
	count  int
	err    error
}

// StartSend sends a message on another thread.
func (s *Socket) StartSend(message *notify.Prepared) *Sending {
	sending := &Sending{t: s.t, done: make(chan struct{})}
	started := make(chan struct{})
	fd := s.FD
	s.t.Go(func() {
		defer close(sending.done)
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		sending.thread = unix.Gettid()
		close(started)
		sending.err = again(func() (err error) {
			sending.count, err = message.Send(fd)
			return err
		})
	})
	<-started
	return sending
}

// Await waits for the end of the send and returns what the kernel answered. It
// ends the case.
func (s *Sending) Await() (count int, err error) {
	s.t.Helper()
	s.t.Eventually("a send on another thread ends", s.ended)
	return s.count, s.err
}

func (s *Sending) ended() bool {
	select {
	case <-s.done:
		return true
	default:
		return false
	}
}

// AwaitWaiting waits until the send waits for something. It ends the case, also
// when the send has ended instead.
func (s *Sending) AwaitWaiting() {
	s.t.Helper()
	s.t.Eventually("a send waits", func() bool { return s.ended() || waitsInSend(s.thread) })
	if s.ended() {
		s.t.Fatalf("a send was to wait, it has ended: %d, %v", s.count, s.err)
	}
}

// waitsInSend tells whether a thread of this process is asleep in sendmsg: the
// number of the call is shown for a thread that sleeps only.
func waitsInSend(thread int) bool {
	call, err := os.ReadFile(fmt.Sprintf("/proc/self/task/%d/syscall", thread))
	return err == nil && strings.HasPrefix(string(call), fmt.Sprintf("%d ", unix.SYS_SENDMSG))
}
