// SPDX-License-Identifier: BSD-3-Clause

package model

import (
	"golang.org/x/sys/unix"

	"github.com/zcvet/zcvet/guest/notify"
)

// fakeSocket is a sender and its error queue as a kernel has them, in which
// everything that can happen has happened when a call returns. The fields of
// faults are the ways in which it can be wrong.
type fakeSocket struct {
	config Config
	faults faults

	queue  []notify.Notification
	next   uint32 // the id that the next send takes
	stamps uint32

	// parts is what waits for something before it is notified.
	held, withheld, shut, gone bool
	corked                     []uint32
	waiting                    []part
	closed                     bool
}

// part is what completes at once: a datagram, or a send of a stream.
type part struct{ ids []uint32 }

type faults struct {
	lossOnFailedSend   bool // what a request took is gone when the send fails
	lossOnBadControl   bool // or when the control buffer cannot be written
	idOnFailedSend     bool // a failed send takes an id
	ownCompletion      bool // a request returns the notification of its own send
	rangeOffByOne      bool // a request returns one send more than a range of several has
	inverted           bool // zc_info_elem.zerocopy the wrong way round
	mergeAcross        bool // a notification merges with one before a timestamp
	stampLost          bool // a request of two takes a timestamp it passes over away
	stillQueued        bool // a request leaves what it returned in the queue
	early              bool // notified though the device has the buffer
	earlyUnacked       bool // notified though nothing was acknowledged
	lifo               bool // a request begins at the tail
	overCapacity       bool // a request returns one more than it has room for
	stingy             bool // a request returns one only
	lostOnThirdRelease bool // the third buffer given back by itself is not notified
	epollStuck         bool // poll reports an empty queue
}

func (s *fakeSocket) Do(op Operation) (Outcome, error) {
	switch op.Kind {
	case Send:
		return s.send(op), nil
	case Stamp:
		s.stamps++
		s.queue = append(s.queue, notify.Notification{Origin: notify.OriginTimestamping, High: s.stamps, Way: notify.ErrorQueue})
		return Outcome{Sent: 1}, nil
	case Read:
		count := len(s.queue)
		if op.Count > 0 {
			count = min(count, op.Count)
		}
		entries := s.queue[:count]
		s.queue = s.queue[count:]
		return Outcome{Entries: entries}, nil
	case Hold:
		s.held = true
	case Release:
		s.release(min(op.Count, len(s.waiting)))
	case Unhold:
		s.held = false
	case Withhold:
		s.withheld = true
	case Acknowledge:
		s.withheld = false
	case Uncork:
		s.uncork()
	case Shutdown:
		s.shut = true
	case PeerClose:
		s.gone = true
	}
	s.progress()
	return Outcome{}, nil
}

func (s *fakeSocket) send(op Operation) Outcome {
	var taken []notify.Notification
	if op.Request > 0 && (s.faults.lossOnFailedSend || s.faults.lossOnBadControl && op.Fault == BadControl) {
		taken = s.take(op)
	}
	if err := s.refuse(op); err != nil {
		if s.faults.idOnFailedSend && op.Zerocopy {
			s.next++
		}
		return Outcome{Err: err}
	}
	before := s.next
	if s.config.TakesID(op, Outcome{Sent: op.Size}) {
		s.corked = append(s.corked, s.next)
		s.next++
	}
	if !op.More && (op.Size > 0 || !s.config.Stream) {
		s.uncork()
	}
	s.progress()
	if op.Request == 0 {
		return Outcome{Sent: op.Size}
	}
	if op.Fault == BadControl {
		return Outcome{Sent: op.Size, Unread: true}
	}
	if taken == nil {
		taken = s.takeBefore(op, before)
	}
	return Outcome{Sent: op.Size, Answer: taken}
}

func (s *fakeSocket) refuse(op Operation) error {
	switch {
	case s.shut:
		return unix.EPIPE
	case s.gone && s.config.Stream:
		return unix.ECONNRESET
	case op.Fault == BadData:
		return unix.EFAULT
	}
	return nil
}

// uncork sends what MSG_MORE kept back.
func (s *fakeSocket) uncork() {
	s.waiting = append(s.waiting, part{ids: s.corked})
	s.corked = nil
}

// progress notifies what nothing is in the way of.
func (s *fakeSocket) progress() {
	held, withheld := s.held && !s.faults.early, s.withheld && !s.faults.earlyUnacked
	if !held && !withheld || s.gone && s.config.Stream {
		for _, part := range s.waiting {
			s.notify(part)
		}
		s.waiting = nil
	}
}

func (s *fakeSocket) release(count int) {
	for i, part := range s.waiting[:count] {
		if s.faults.lostOnThirdRelease && i == 2 {
			continue
		}
		s.notify(part)
	}
	s.waiting = s.waiting[count:]
}

func (s *fakeSocket) notify(part part) {
	for _, id := range part.ids {
		for at := len(s.queue) - 1; ; at-- {
			if at >= 0 && s.queue[at].Zerocopy() && s.queue[at].High+1 == id {
				s.queue[at].High = id
				break
			}
			if at >= 0 && s.faults.mergeAcross && !s.queue[at].Zerocopy() {
				continue
			}
			s.queue = append(s.queue, notify.Notification{
				Low: id, High: id, Copied: !s.config.Device, Origin: notify.OriginZerocopy, Way: notify.ErrorQueue,
			})
			break
		}
	}
}

// take answers a request with everything in the queue.
func (s *fakeSocket) take(op Operation) []notify.Notification { return s.takeBefore(op, s.next) }

// takeBefore answers a request with what is about sends before end.
func (s *fakeSocket) takeBefore(op Operation, end uint32) []notify.Notification {
	room := op.Request
	if s.faults.overCapacity {
		room++
	}
	if s.faults.stingy {
		room = 1
	}
	taken, left := []notify.Notification{}, []notify.Notification{}
	stampDropped := !s.faults.stampLost || op.Request < 2
	for _, entry := range s.queue {
		switch {
		case !entry.Zerocopy():
			if stampDropped {
				left = append(left, entry)
			}
			stampDropped = true
			continue
		case len(taken) == room, entry.Low >= end && !s.faults.ownCompletion:
			left = append(left, entry)
			continue
		case entry.High >= end && !s.faults.ownCompletion:
			rest := entry
			entry.High, rest.Low = end-1, end
			left = append(left, rest)
		}
		if s.faults.stillQueued {
			left = append(left, entry)
		}
		if s.faults.rangeOffByOne && entry.High > entry.Low {
			entry.High--
		}
		entry.Way = notify.Control
		entry.Copied = entry.Copied != s.faults.inverted
		taken = append(taken, entry)
	}
	s.queue = left
	if s.faults.lifo && len(taken) > 1 {
		taken[0], taken[len(taken)-1] = taken[len(taken)-1], taken[0]
	}
	return taken
}

func (s *fakeSocket) Settle(bool) error { return nil }

func (s *fakeSocket) Pending() (bool, error) { return len(s.queue) > 0 || s.faults.epollStuck, nil }

func (s *fakeSocket) Await() (bool, error) { return len(s.queue) > 0, nil }

func (s *fakeSocket) Close() { s.closed = true }
