// SPDX-License-Identifier: BSD-3-Clause

package vhost

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/zcvet/zcvet/harness/vnet/memory"
	"github.com/zcvet/zcvet/harness/vnet/virtqueue"
)

// Feature bits that belong to the transport and the protocol. Those of a kind of
// device are the device's.
const (
	FeatureLogAll           = 1 << 26 // VHOST_F_LOG_ALL
	FeatureIndirect         = 1 << 28 // VIRTIO_RING_F_INDIRECT_DESC
	FeatureProtocolFeatures = 1 << 30 // VHOST_USER_F_PROTOCOL_FEATURES
	FeatureVersion1         = 1 << 32 // VIRTIO_F_VERSION_1
)

// Protocol features.
const (
	protocolLogShmFD = 1 << 1
	protocolRARP     = 1 << 2
	protocolReplyAck = 1 << 3

	// QEMU refuses to migrate, and so to take a snapshot, without the dirty
	// log. It complains on its standard error about a back end that cannot
	// announce the guest after a migration, unless RARP is offered.
	offeredProtocolFeatures = protocolLogShmFD | protocolRARP | protocolReplyAck
)

// kickMask and kickNoFile take apart the payload of the eventfd messages.
const (
	kickMask   = 0xff
	kickNoFile = 0x100
)

// Device is what a Session drives. Its methods are called from
// Session.Handle and Session.Close.
type Device interface {
	// Features returns the feature bits the device offers, besides those of
	// the protocol.
	Features() uint64
	// SetFeatures tells what the driver accepted, a subset of the above. It is
	// called before rings start, and again while they run when logging of dirty
	// pages starts or stops; only protocol bits change then.
	SetFeatures(features uint64)
	// StartRing hands over a queue: the device may use it until StopRing. Kick
	// is a non-blocking eventfd that becomes readable when the driver notifies;
	// the device closes it.
	StartRing(index int, queue *virtqueue.Queue, kick *os.File)
	// StopRing takes the queue back. The device completes what it has in
	// flight, and publishes it, before it returns: what comes after may be a
	// snapshot, and nobody would complete those chains in the restored guest.
	StopRing(index int)
}

// RingError says that a ring cannot be where the driver put it. That is the
// driver's fault, not the front end's.
type RingError struct {
	Ring int
	Err  error // *virtqueue.Error
}

func (e *RingError) Error() string { return fmt.Sprintf("ring %d: %v", e.Ring, e.Err) }

// Unwrap returns the cause.
func (e *RingError) Unwrap() error { return e.Err }

type ring struct {
	queue     *virtqueue.Queue // nil while stopped
	layout    virtqueue.Layout
	hasLayout bool
	size      uint16
	base      uint16
	enabled   bool
	kick      int // eventfd by which the driver notifies, -1 for none
	call      int // eventfd to interrupt the driver by, -1 for none
}

// Session is the state that one connection of a front end builds up. It is not
// safe for concurrent use.
type Session struct {
	device           Device
	memory           *memory.Map
	retired          *memory.Map // a table that a failed SET_MEM_TABLE left behind
	log              *memory.DirtyLog
	features         uint64
	protocolFeatures uint64
	rings            []ring
}

// NewSession returns a fresh session of a device with so many rings.
func NewSession(device Device, rings int) *Session {
	s := &Session{device: device, rings: make([]ring, rings)}
	for i := range s.rings {
		s.rings[i].kick, s.rings[i].call = -1, -1
	}
	return s
}

// Memory returns the guest's memory, nil before the front end passed it.
func (s *Session) Memory() *memory.Map { return s.memory }

// Interrupt notifies the driver of used buffers in a ring.
func (s *Session) Interrupt(index int) {
	if call := s.rings[index].call; call >= 0 {
		one := [8]byte{1}
		// The only failure of interest, a full counter, means that an
		// interrupt is already on its way.
		_, _ = unix.Write(call, one[:])
	}
}

// Close stops the rings and lets go of the memory.
func (s *Session) Close() error {
	for i := range s.rings {
		s.stop(i)
		r := &s.rings[i]
		replace(&r.call, -1)
		r.enabled, r.hasLayout = false, false
	}
	var err error
	for _, m := range []*memory.Map{s.memory, s.retired} {
		if m != nil {
			err = errors.Join(err, m.Close())
		}
	}
	s.memory, s.retired = nil, nil
	if s.log != nil {
		err = errors.Join(err, s.log.Close())
		s.log = nil
	}
	return err
}

// Handle does what a message asks. It returns the payload to reply with, or nil
// and false when there is no reply. Errors wrap ErrProtocol or, when it is the
// driver's ring that cannot be used, *RingError; the session is to be
// closed after one. Handle does not close the message.
func (s *Session) Handle(m *Message) (reply []byte, answered bool, err error) {
	reply, answered, err = s.handle(m)
	if err != nil {
		return nil, false, fmt.Errorf("%s: %w", m.Request, err)
	}
	if !answered && m.NeedReply && s.protocolFeatures&protocolReplyAck != 0 {
		return encodeNumber(0), true, nil
	}
	return reply, answered, nil
}

func (s *Session) handle(m *Message) (reply []byte, answered bool, err error) {
	if err := checkFiles(m); err != nil {
		return nil, false, err
	}
	switch m.Request {
	case GetFeatures:
		return encodeNumber(s.offered()), true, nil
	case GetProtocolFeatures:
		return encodeNumber(offeredProtocolFeatures), true, nil
	case GetVringBase:
		reply, err := s.getVringBase(m)
		return reply, true, err
	case SetLogBase:
		// The reply is due whether or not REPLY_ACK was negotiated.
		return nil, true, s.setLogBase(m)
	case SetFeatures:
		return nil, false, s.setFeatures(m)
	case SetProtocolFeatures:
		return nil, false, s.setProtocolFeatures(m)
	case SetMemTable:
		return nil, false, s.setMemTable(m)
	case SetVringNum, SetVringBase, SetVringEnable:
		return nil, false, s.setVringState(m)
	case SetVringAddr:
		return nil, false, s.setVringAddr(m)
	case SetVringKick, SetVringCall, SetVringErr:
		return nil, false, s.setVringFile(m)
	case SetOwner, ResetOwner, SetLogFD, SendRARP:
		// Owner: there is only ever one. Log eventfd: nobody polls it.
		// RARP: there are no switches on our wires that could learn.
		return nil, false, nil
	}
	return nil, false, violated("not supported")
}

// checkFiles lets only the requests that carry file descriptors carry them, and
// as many as they say.
func checkFiles(m *Message) error {
	want := 0
	switch m.Request {
	case SetLogBase, SetLogFD:
		want = 1
	case SetMemTable:
		regions, err := decodeMemTable(m.Payload)
		if err != nil {
			return err
		}
		want = len(regions)
	case SetVringKick, SetVringCall, SetVringErr:
		number, err := decodeNumber(m.Payload)
		if err != nil {
			return err
		}
		if number&kickNoFile == 0 {
			want = 1
		}
	}
	if len(m.Files) != want {
		return violated("%d file descriptors where %d were due", len(m.Files), want)
	}
	return nil
}

func (s *Session) offered() uint64 {
	return s.device.Features() | FeatureVersion1 | FeatureIndirect | FeatureLogAll | FeatureProtocolFeatures
}

func (s *Session) setFeatures(m *Message) error {
	features, err := decodeNumber(m.Payload)
	if err != nil {
		return err
	}
	if unknown := features &^ s.offered(); unknown != 0 {
		return violated("features %#x were not offered", unknown)
	}
	const protocolOnly = FeatureLogAll | FeatureProtocolFeatures
	for i := range s.rings {
		if s.rings[i].queue != nil && (features^s.features)&^protocolOnly != 0 {
			return violated("features changed from %#x to %#x while ring %d runs", s.features, features, i)
		}
	}
	s.features = features
	s.device.SetFeatures(features)
	s.updateLog()
	return s.startReady()
}

func (s *Session) setProtocolFeatures(m *Message) error {
	features, err := decodeNumber(m.Payload)
	if err != nil {
		return err
	}
	if unknown := features &^ uint64(offeredProtocolFeatures); unknown != 0 {
		return violated("protocol features %#x were not offered", unknown)
	}
	s.protocolFeatures = features
	return nil
}

func (s *Session) setMemTable(m *Message) error {
	regions, err := decodeMemTable(m.Payload)
	if err != nil {
		return err
	}
	table, err := memory.New(regions, m.Files)
	if err != nil {
		return violated("%w", err)
	}
	old := s.memory
	s.memory = table
	s.updateLog()
	for i := range s.rings {
		if r := &s.rings[i]; r.queue != nil {
			if err := r.queue.Move(table, r.layout); err != nil {
				// This ring still points into the old memory and an
				// earlier one into the new; both stay until Close.
				s.retired = old
				return &RingError{Ring: i, Err: err}
			}
		}
	}
	if old != nil {
		if err := old.Close(); err != nil {
			return err
		}
	}
	return s.startReady()
}

func (s *Session) setLogBase(m *Message) error {
	size, offset, err := decodeLog(m.Payload)
	if err != nil {
		return err
	}
	log, err := memory.NewDirtyLog(m.Files[0], size, offset)
	if err != nil {
		return violated("%w", err)
	}
	old := s.log
	s.log = log
	s.updateLog()
	if old != nil {
		return old.Close()
	}
	return nil
}

func (s *Session) updateLog() {
	if s.memory == nil {
		return
	}
	if s.features&FeatureLogAll != 0 {
		s.memory.SetDirtyLog(s.log)
	} else {
		s.memory.SetDirtyLog(nil)
	}
}

func (s *Session) ringAt(index uint32) (*ring, error) {
	if int64(index) >= int64(len(s.rings)) {
		return nil, violated("ring %d of a device with %d", index, len(s.rings))
	}
	return &s.rings[index], nil
}

func (s *Session) setVringState(m *Message) error {
	state, err := decodeVringState(m.Payload)
	if err != nil {
		return err
	}
	r, err := s.ringAt(state.index)
	if err != nil {
		return err
	}
	if m.Request == SetVringEnable {
		// May come before the ring is set up.
		r.enabled = state.number != 0
		if !r.enabled && r.queue != nil {
			s.pause(int(state.index))
			return nil
		}
		return s.startReady()
	}
	if r.queue != nil {
		return violated("ring %d runs", state.index)
	}
	switch m.Request {
	case SetVringNum:
		if state.number == 0 || state.number > virtqueue.MaxSize {
			return violated("ring %d with %d descriptors", state.index, state.number)
		}
		r.size = uint16(state.number)
	case SetVringBase:
		if state.number > 0xffff {
			return violated("ring %d at index %d", state.index, state.number)
		}
		r.base = uint16(state.number)
	}
	return nil
}

func (s *Session) setVringAddr(m *Message) error {
	index, layout, err := decodeVringAddr(m.Payload)
	if err != nil {
		return err
	}
	r, err := s.ringAt(index)
	if err != nil {
		return err
	}
	r.layout, r.hasLayout = layout, true
	if r.queue != nil {
		// QEMU repeats the addresses of a running ring to switch logging.
		if err := r.queue.Move(s.memory, layout); err != nil {
			return &RingError{Ring: int(index), Err: err}
		}
		return nil
	}
	return s.startReady()
}

func (s *Session) setVringFile(m *Message) error {
	number, err := decodeNumber(m.Payload)
	if err != nil {
		return err
	}
	if number&^uint64(kickMask|kickNoFile) != 0 {
		return violated("payload %#x", number)
	}
	index := uint32(number & kickMask)
	r, err := s.ringAt(index)
	if err != nil {
		return err
	}
	if m.Request == SetVringErr {
		// The error eventfd is of no use: an error ends the session.
		return nil
	}
	if len(m.Files) == 0 {
		if m.Request == SetVringKick {
			return violated("ring %d without a kick eventfd would have to be polled", index)
		}
		replace(&r.call, -1)
		return nil
	}
	if err := checkEventFD(m.Files[0]); err != nil {
		return violated("ring %d: %w", index, err)
	}
	// Kicks are waited for by Go's poller, and a call must never block us.
	if err := unix.SetNonblock(m.Files[0], true); err != nil {
		return violated("eventfd of ring %d: %w", index, err)
	}
	if m.Request == SetVringCall {
		replace(&r.call, m.take())
		if r.queue != nil {
			// An interrupt may have gone to the eventfd that is replaced.
			s.Interrupt(int(index))
		}
		return nil
	}
	if r.queue != nil {
		return violated("ring %d runs", index)
	}
	replace(&r.kick, m.take())
	return s.startReady()
}

// checkEventFD refuses anything but an eventfd: a regular file, say, would always
// be readable, and a kick never end.
func checkEventFD(file int) error {
	name, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", file))
	if err != nil {
		return err
	}
	if name != "anon_inode:[eventfd]" {
		return fmt.Errorf("%s is no eventfd", name)
	}
	return nil
}

func replace(held *int, file int) {
	if *held >= 0 {
		_ = unix.Close(*held)
	}
	*held = file
}

// getVringBase stops a ring and says where it stopped.
func (s *Session) getVringBase(m *Message) ([]byte, error) {
	state, err := decodeVringState(m.Payload)
	if err != nil {
		return nil, err
	}
	r, err := s.ringAt(state.index)
	if err != nil {
		return nil, err
	}
	s.stop(int(state.index))
	return vringState{index: state.index, number: uint32(r.base)}.encode(), nil
}

// stop ends the use of a ring until it gets a new kick eventfd.
func (s *Session) stop(index int) {
	s.pause(index)
	replace(&s.rings[index].kick, -1)
}

// pause ends the use of a ring until it is enabled again.
func (s *Session) pause(index int) {
	r := &s.rings[index]
	if r.queue != nil {
		s.device.StopRing(index)
		r.base = r.queue.Index()
		r.queue = nil
	}
}

// startReady starts every ring for which everything is known now, in whatever
// order the front end told it.
func (s *Session) startReady() error {
	for i := range s.rings {
		r := &s.rings[i]
		// Without protocol features there is no SET_VRING_ENABLE.
		enabled := r.enabled || s.features&FeatureProtocolFeatures == 0
		if r.queue != nil || r.kick < 0 || !enabled || !r.hasLayout || r.size == 0 || s.memory == nil {
			continue
		}
		queue, err := virtqueue.New(s.memory, r.layout, r.size, r.base, s.features&FeatureIndirect != 0)
		if err != nil {
			return &RingError{Ring: i, Err: err}
		}
		// The device's own descriptor: closing it must not lose the
		// eventfd of a ring that is only paused.
		kick, err := unix.FcntlInt(uintptr(r.kick), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("ring %d: kick eventfd: %w", i, err)
		}
		r.queue = queue
		s.device.StartRing(i, queue, os.NewFile(uintptr(kick), fmt.Sprintf("kick eventfd of ring %d", i)))
	}
	return nil
}
