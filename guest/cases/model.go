// SPDX-License-Identifier: BSD-3-Clause

package cases

import (
	"bytes"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/zcvet/zcvet/guest/model"
	"github.com/zcvet/zcvet/guest/network"
	"github.com/zcvet/zcvet/guest/nic"
	"github.com/zcvet/zcvet/guest/notify"
	"github.com/zcvet/zcvet/guest/sys"
)

// What a search for a failing sequence does when the run does not say, see
// link.Parameters. The time is that at a TimeScale of 1.
const (
	searchSteps  = 400
	searchBudget = time.Second
)

var _ = add(Case{
	Name:   "model/random-operations",
	Doc:    "whatever sequence of sends, reads, faults, held buffers and withheld acknowledgements: the queue is as the model says, every send notified exactly once",
	Covers: []string{"R02"},
	Axes:   CopiedAndNot,
}, func(t *T) {
	config := t.modelConfig()
	var barrier *DeviceBarrier
	if config.Device {
		barrier = t.NewDeviceBarrier()
	}
	search := &model.Search{
		Config: config,
		Open: func(patience time.Duration) (model.Socket, error) {
			return t.openModelled(config, barrier, patience), nil
		},
		Random: t.Rand,
		Length: 40, Steps: searchSteps,
		Budget: time.Duration(float64(searchBudget) * max(t.Parameters.TimeScale, 1)), Patience: t.Patience(),
	}
	if t.Parameters.SearchSteps > 0 {
		search.Steps = t.Parameters.SearchSteps
	}
	if t.Parameters.SearchBudget > 0 {
		search.Budget = t.Parameters.SearchBudget
	}
	if limit := t.Parameters.CaseTimeout; limit > 0 {
		// Leaves time to shrink a failure.
		search.Budget = min(search.Budget, limit/4)
	}
	report, err := search.Run()
	t.Check(err, "carry out a sequence of operations")
	t.Logf("%d operations in %d sequences", report.Steps, report.Sequences)
	if report.Failure != nil {
		t.Fatalf("%v\nthe same again: zcvet run --seed %d --suite %s, with the kernel and the series of this run",
			report.Failure, t.Parameters.Seed, t.ID())
	}
})

func (t *T) modelConfig() model.Config {
	config := model.Config{Stream: t.Proto == TCP, Device: t.Link == network.NIC, LargestSend: 1 << 16}
	switch {
	case t.Proto == UDP && config.Device:
		config.LargestSend = 1400 // one frame
	case t.Proto == UDP:
		config.LargestSend = 16000
	}
	if t.environment.feature(SCMNotification) == nil {
		config.Requests = most(t.Profile())
	}
	return config
}

// modelled is a pair that package model compares with its model. Of every send it
// keeps the memory until the notification comes, and then overwrites it, as an
// application would reuse it: what the receiver gets shows whether that was right.
type modelled struct {
	*Pair
	t        *T
	patience time.Duration
	config   model.Config
	profile  notify.Profile // nil without requests

	// rule withholds acknowledgements; there is none while it is negative.
	rule    int
	barrier *DeviceBarrier // nil without a device

	memory map[uint32]*notify.Memory // by id
	sends  int                       // of any kind
	next   uint32                    // the id that the next zero-copy send takes

	// expected is what the receiver has yet to get: pieces of a stream, or
	// datagrams. The chunks of a datagram under way are apart.
	expected [][]byte
	chunks   []byte
	corked   bool
}

// openModelled connects a fresh pair. It ends the case.
func (t *T) openModelled(config model.Config, barrier *DeviceBarrier, patience time.Duration) *modelled {
	t.Helper()
	// The record of the case's calls is that of the last sequence.
	sys.Recorder().Start(t.ID())
	s := &modelled{t: t, patience: patience, config: config, barrier: barrier, rule: -1, memory: make(map[uint32]*notify.Memory)}
	if s.config.Requests > 0 {
		s.profile = t.Profile()
	}
	// So small that a few held sends fill it, and the next one is EAGAIN.
	buffer := 1 << 16
	if !config.Stream {
		buffer = 1 << 13
	}
	s.Pair = t.Pair(noDelay, SetOption(unix.SOL_SOCKET, unix.SO_SNDBUF, buffer))
	WithTimestamps(s.Sender)
	limit := unix.NsecToTimeval(patience.Nanoseconds())
	t.Check(sys.SetsockoptTimeval(s.Receiver.FD, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit), "limit waits")
	return s
}

// Close leaves nothing of the sequence behind, on the NIC or in memory.
func (s *modelled) Close() {
	if s.config.Device {
		s.t.NIC().Hold(false)
		s.letAcknowledge()
	}
	s.Sender.Close()
	s.Receiver.Close()
	for _, memory := range s.memory {
		_ = memory.Close()
	}
}

func (s *modelled) Do(op model.Operation) (model.Outcome, error) {
	switch op.Kind {
	case model.Send:
		return s.send(op)
	case model.Stamp:
		return s.stamp()
	case model.Read:
		return s.read(op.Count)
	case model.Hold:
		s.t.NIC().Hold(true)
	case model.Release:
		s.t.NIC().Release(op.Count)
	case model.Unhold:
		s.t.NIC().Hold(false)
	case model.Withhold:
		s.rule = s.t.NIC().AddRule(nic.Rule{Port: s.t.NIC().Receiver, Match: nic.TCPAck, Action: nic.Withhold})
	case model.Acknowledge:
		s.letAcknowledge()
	case model.Uncork:
		return model.Outcome{}, s.uncork()
	case model.Shutdown:
		return model.Outcome{}, sys.Shutdown(s.Sender.FD, unix.SHUT_WR)
	case model.PeerClose:
		s.Receiver.Close()
		s.expected = nil
	}
	return model.Outcome{}, nil
}

func (s *modelled) letAcknowledge() {
	if s.rule >= 0 {
		s.t.NIC().RemoveRule(s.rule)
		s.rule = -1
	}
}

// uncork uses options that send what waits, whether or not they were set.
func (s *modelled) uncork() error {
	if s.config.Stream {
		return sys.SetsockoptInt(s.Sender.FD, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	}
	s.sent(nil, false)
	return sys.SetsockoptInt(s.Sender.FD, unix.IPPROTO_UDP, unix.UDP_CORK, 0)
}

func (s *modelled) send(op model.Operation) (model.Outcome, error) {
	s.sends++
	pages := 2 + op.Size/notify.PageSize
	memory, err := notify.Pages(pages)
	if err != nil {
		return model.Outcome{}, err
	}
	memory.Fill(byte(s.sends))
	data := memory.Bytes()[:op.Size]
	if op.Fault == model.BadData {
		// The data ends in the last page.
		end := (pages-1)*notify.PageSize + min(op.Size, notify.PageSize/2)
		data = memory.Bytes()[end-op.Size : end]
	}
	message := notify.Message{Buffers: [][]byte{data}, Flags: unix.MSG_DONTWAIT | unix.MSG_NOSIGNAL}
	if op.Zerocopy {
		message.Flags |= unix.MSG_ZEROCOPY
	}
	if op.More {
		message.Flags |= unix.MSG_MORE
	}
	request, err := s.request(op)
	if err != nil {
		return model.Outcome{}, err
	}
	if request != nil {
		defer func() { _ = request.Close() }()
		message.Control = request.Bytes()[:len(s.profile.Encode(op.Request))]
	}

	want := bytes.Clone(data)
	if err := s.protect(op, memory, request, true); err != nil {
		return model.Outcome{}, err
	}
	outcome := model.Outcome{}
	outcome.Sent, outcome.Err = notify.Send(s.Sender.FD, &message)
	if err := s.protect(op, memory, request, false); err != nil {
		return model.Outcome{}, err
	}

	if s.config.TakesID(op, outcome) {
		s.memory[s.next] = memory
		s.next++
	} else {
		defer func() { _ = memory.Close() }()
	}
	switch {
	case outcome.Err == nil:
		s.sent(want[:min(outcome.Sent, len(want))], op.More)
	case s.corked && !s.config.Stream:
		s.chunks, s.corked = nil, false // the kernel drops the datagram
	}
	if request == nil || outcome.Err != nil {
		return outcome, nil
	}
	outcome.Answer, outcome.Unread, err = s.answer(op, message.Control)
	outcome.Resent = len(outcome.Answer) > 0 && s.Sender.retransmitted()
	return outcome, err
}

// request returns memory with the control buffer at its beginning, nil for a send
// without one.
func (s *modelled) request(op model.Operation) (*notify.Memory, error) {
	if op.Request == 0 {
		return nil, nil
	}
	memory, err := notify.Pages(1)
	if err != nil {
		return nil, err
	}
	copy(memory.Bytes(), s.profile.Encode(op.Request))
	return memory, nil
}

// protect takes away the access that the operation's fault is about, or gives it
// back.
func (s *modelled) protect(op model.Operation, data, request *notify.Memory, away bool) error {
	access := notify.ReadWrite
	switch op.Fault {
	case model.BadData:
		if away {
			access = notify.NoAccess
		}
		return data.Protect(len(data.Bytes())/notify.PageSize-1, 1, access)
	case model.BadControl:
		if away {
			access = notify.ReadOnly
		}
		return request.Protect(0, 1, access)
	}
	return nil
}

// answer reads what the kernel wrote. Unread tells that it could not write.
func (s *modelled) answer(op model.Operation, control []byte) (entries []notify.Notification, unread bool, err error) {
	entries, err = s.profile.Decode(control)
	switch {
	case op.Fault == model.BadControl && errors.Is(err, notify.ErrUntouched):
		return nil, true, nil
	case errors.Is(err, notify.ErrUntouched):
		return nil, false, &model.Violation{Rule: "N02", Text: fmt.Sprintf("%v: the kernel left the request as it was: its caller reads %d notifications that never were", op, op.Request)}
	case err != nil:
		return nil, false, &model.Violation{Rule: "N01", Text: fmt.Sprintf("%v: the answer makes no sense: %v", op, err)}
	}
	if foreign := s.profile.Foreign(control); len(foreign) > 0 {
		return nil, false, &model.Violation{Rule: "N16", Text: fmt.Sprintf("%v: the answer holds bytes that are neither the caller's nor part of a notification: %v", op, foreign)}
	}
	s.reuse(entries)
	return entries, op.Fault == model.BadControl, nil
}

// reuse overwrites the memory of sends that the kernel says it is done with.
func (s *modelled) reuse(entries []notify.Notification) {
	for _, entry := range notify.OnlyZerocopy(entries) {
		for id, memory := range s.memory {
			if entry.Low <= id && id <= entry.High {
				clear(memory.Bytes())
				_ = memory.Close()
				delete(s.memory, id)
			}
		}
	}
}

func (s *modelled) stamp() (model.Outcome, error) {
	data := []byte{0x55}
	count, err := notify.Send(s.Sender.FD, &notify.Message{
		Buffers: [][]byte{data}, Control: timestampRequest(nil), Flags: unix.MSG_DONTWAIT | unix.MSG_NOSIGNAL,
	})
	if err == nil {
		s.sent(data[:min(count, 1)], false)
	}
	return model.Outcome{Sent: count, Err: err}, nil
}

// sent notes data that the receiver will get, at once or with what comes later.
func (s *modelled) sent(data []byte, more bool) {
	if s.config.Stream {
		s.expected = append(s.expected, data)
		return
	}
	s.chunks, s.corked = append(s.chunks, data...), more
	if !more {
		s.expected = append(s.expected, s.chunks)
		s.chunks = nil
	}
}

func (s *modelled) read(count int) (model.Outcome, error) {
	var outcome model.Outcome
	for count == 0 || len(outcome.Entries) < count {
		entry, err := notify.Next(s.Sender.FD)
		if errors.Is(err, unix.EAGAIN) {
			break
		}
		if errno := unix.Errno(0); errors.As(err, &errno) {
			return outcome, fmt.Errorf("read the error queue: %w", err)
		}
		if err != nil {
			return outcome, &model.Violation{Rule: "Z20", Text: fmt.Sprintf("an entry of the error queue makes no sense: %v", err)}
		}
		outcome.Entries = append(outcome.Entries, entry)
	}
	s.reuse(outcome.Entries)
	outcome.Resent = len(outcome.Entries) > 0 && s.Sender.retransmitted()
	return outcome, nil
}

// Settle: see model.Socket. The device gives buffers back in the order in which
// it got them, so when it has passed the barrier, it has given back all.
func (s *modelled) Settle(received bool) error {
	if received {
		if err := s.receive(); err != nil {
			return err
		}
	}
	if s.config.Stream {
		s.Receiver.Acknowledge()
		s.Sender.AwaitAcknowledged()
	}
	if s.barrier != nil {
		s.barrier.Pass()
	}
	return nil
}

// receive takes what was sent and compares it.
func (s *modelled) receive() error {
	want := s.expected
	s.expected = nil
	if s.config.Stream {
		want = [][]byte{bytes.Join(want, nil)}
	}
	for _, want := range want {
		// Room for one byte more than a datagram may have.
		got := make([]byte, 0, len(want)+1)
		for !s.config.Stream || len(got) < len(want) {
			room := got[len(got):cap(got)]
			if s.config.Stream {
				room = got[len(got):len(want)]
			}
			count, _, err := sys.Recvfrom(s.Receiver.FD, room, 0)
			if errors.Is(err, unix.EINTR) {
				continue
			}
			if errors.Is(err, unix.EAGAIN) || s.config.Stream && err == nil && count == 0 {
				return &model.Violation{Rule: "Z70", Text: fmt.Sprintf("the receiver got %d of %d bytes: the rest is lost", len(got), len(want))}
			}
			if err != nil {
				return fmt.Errorf("receive: %w", err)
			}
			got = got[:len(got)+count]
			if !s.config.Stream {
				break
			}
		}
		if !bytes.Equal(got, want) {
			return &model.Violation{Rule: "Z72", Text: fmt.Sprintf("the receiver got other data than was sent, %d bytes where %d were sent; buffers were overwritten when their notification came", len(got), len(want))}
		}
	}
	return nil
}

func (s *modelled) Pending() (bool, error) { return notify.Pending(s.Sender.FD) }

func (s *modelled) Await() (bool, error) {
	// Reading SO_ERROR ends the POLLERR of an error of the connection.
	if _, err := sys.GetsockoptInt(s.Sender.FD, unix.SOL_SOCKET, unix.SO_ERROR); err != nil {
		return false, err
	}
	return notify.Wait(s.Sender.FD, s.patience)
}
