// SPDX-License-Identifier: BSD-3-Clause

package vnet

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"

	"github.com/zcvet/zcvet/guest/nic"
	"github.com/zcvet/zcvet/harness/vnet/frame"
	"github.com/zcvet/zcvet/harness/vnet/vhost"
	"github.com/zcvet/zcvet/harness/vnet/virtqueue"
)

// The feature bits of virtio-net that matter to a back end. MAC, STATUS and the
// control queue are QEMU's own business.
const (
	featureChecksum      = 1 << 0  // VIRTIO_NET_F_CSUM
	featureGuestChecksum = 1 << 1  // VIRTIO_NET_F_GUEST_CSUM
	featureGuestTSO4     = 1 << 7  // VIRTIO_NET_F_GUEST_TSO4
	featureGuestTSO6     = 1 << 8  // VIRTIO_NET_F_GUEST_TSO6
	featureHostTSO4      = 1 << 11 // VIRTIO_NET_F_HOST_TSO4
	featureHostTSO6      = 1 << 12 // VIRTIO_NET_F_HOST_TSO6
	featureMergeable     = 1 << 15 // VIRTIO_NET_F_MRG_RXBUF
	featureGuestUSO4     = 1 << 54 // VIRTIO_NET_F_GUEST_USO4
	featureGuestUSO6     = 1 << 55 // VIRTIO_NET_F_GUEST_USO6
	featureHostUSO       = 1 << 56 // VIRTIO_NET_F_HOST_USO
)

// features returns what a port offers. The Linux driver grants itself
// scatter-gather only together with checksum offload, and so the ports without
// one are without the other. VIRTIO_RING_F_EVENT_IDX is not offered: with it the
// driver asks for interrupts late, and completions would come in clumps.
func features(name nic.Port) uint64 {
	offered := uint64(featureMergeable)
	if !strings.HasPrefix(string(name), "nosg") {
		offered |= featureChecksum | featureGuestChecksum |
			featureHostTSO4 | featureHostTSO6 | featureHostUSO |
			featureGuestTSO4 | featureGuestTSO6 | featureGuestUSO4 | featureGuestUSO6
	}
	return offered
}

const (
	receiveRing  = 0
	transmitRing = 1
)

// batchBytes is how much a port transmits before it lets others at the mutex and
// the receiver at the frames. A small frame counts for frameCost, which is about
// the time it takes.
const (
	batchBytes = 256 << 10
	frameCost  = 4 << 10
)

// Bounds of what waits for receive buffers of a port.
const (
	backlogFrames = 1024
	backlogBytes  = 16 << 20
)

// ring is a running virtqueue and what stops the goroutine that waits for its
// kicks. The zero value is a ring that is stopped.
type ring struct {
	queue *virtqueue.Queue
	kick  *os.File
}

func (r *ring) stop() {
	if r.kick != nil {
		_ = r.kick.Close() // ends a Read
	}
	r.queue, r.kick = nil, nil
}

// Stats counts the frames of a port since the Network was made. Frames that were
// cut into segments for the receiver count once per segment on its side.
type Stats struct {
	Transmitted uint64 // taken from the driver
	Received    uint64 // given to the driver
	// Why frames for this port's driver were not given to it.
	NoDriver  uint64 // there was no running ring
	NoBuffers uint64 // the driver gave too few buffers for too long
	LinkDown  uint64 // the wire was down
	ByRule    uint64 // a rule dropped the frame, or had no more room to hold it
	Malformed uint64 // offloads were asked for that make no sense for the frame
}

type port struct {
	network  *Network
	name     nic.Port
	index    int
	peer     *port
	socket   string
	listener *net.UnixListener

	// The rest is guarded by network.mutex.
	session           *vhost.Session // nil without a front end
	connection        *net.UnixConn
	features          uint64
	receive, transmit ring

	linkUp  bool
	hold    bool
	late    bool
	held    []heldFrame
	log     frameLog
	backlog backlog
	stats   Stats

	chain     virtqueue.Chain // being transmitted
	buffers   virtqueue.Chain // being filled
	filled    []filledChain
	pieces    [][]byte
	dropLines uint64 // dropped frames that were worth a line in the log
}

// Features implements vhost.Device.
func (p *port) Features() uint64 { return features(p.name) }

// SetFeatures implements vhost.Device.
func (p *port) SetFeatures(features uint64) { p.features = features }

// StartRing implements vhost.Device.
func (p *port) StartRing(index int, queue *virtqueue.Queue, kick *os.File) {
	r, work := &p.receive, p.drainBacklog
	if index == transmitRing {
		r, work = &p.transmit, p.transmitBatch
	}
	r.queue, r.kick = queue, kick
	// An untouched receive ring is not worth a kick per refill.
	queue.SetKicks(index == transmitRing)
	p.network.owned.Go(func() { p.work(r, queue, kick, work) })
}

// StopRing implements vhost.Device.
func (p *port) StopRing(index int) {
	if index == receiveRing {
		p.publishRing(&p.receive, receiveRing)
		p.receive.stop()
		p.backlog.clear()
		return
	}
	if p.transmit.queue == nil {
		return
	}
	if _, err := p.release(p.allHeld()); err != nil {
		p.network.end(err)
		return
	}
	p.publishRing(&p.transmit, transmitRing)
	p.transmit.stop()
}

// work does the work of one ring whenever the driver kicks, until the ring is
// stopped.
func (p *port) work(r *ring, queue *virtqueue.Queue, kick *os.File, batch func() (more bool, err error)) {
	defer kick.Close()
	var counter [8]byte
	for {
		for more := true; more; {
			if p.network.locked(func() error {
				if r.queue != queue {
					more = false
					return nil
				}
				var err error
				more, err = batch()
				return err
			}) != nil {
				return
			}
		}
		if _, err := kick.Read(counter[:]); err != nil {
			if !errors.Is(err, os.ErrClosed) {
				p.network.fail(&ProtocolError{Port: p.name, Err: err})
			}
			return
		}
	}
}

func (p *port) publishRing(r *ring, index int) {
	if r.queue != nil && r.queue.Publish() {
		p.session.Interrupt(index)
	}
}

func (p *port) ringError(index int, err error) error {
	queue := "receive"
	if index == transmitRing {
		queue = "transmit"
	}
	return &RingError{Port: p.name, Queue: queue, Err: err}
}

// sessionError tells the driver's faults from those of the front end.
func (p *port) sessionError(err error) error {
	if err == nil {
		return nil
	}
	if broken, ok := errors.AsType[*vhost.RingError](err); ok {
		return p.ringError(broken.Ring, broken.Err)
	}
	return &ProtocolError{Port: p.name, Err: err}
}

// transmitBatch takes frames from the driver. It tells whether there may be more.
func (p *port) transmitBatch() (more bool, err error) {
	queue := p.transmit.queue
	queue.SetKicks(false)
	for budget := batchBytes; budget > 0; budget -= max(frameCost, int(p.chain.ReadableLength)) {
		ok, err := queue.Next(&p.chain)
		if err != nil {
			return false, p.ringError(transmitRing, err)
		}
		if !ok {
			queue.SetKicks(true)
			// The driver may have looked at the flag before it changed.
			pending, err := queue.Pending()
			if err != nil {
				return false, p.ringError(transmitRing, err)
			}
			return pending > 0, nil
		}
		if err := p.transmitChain(); err != nil {
			return false, err
		}
	}
	return true, nil
}

// transmitChain takes the frame of p.chain.
func (p *port) transmitChain() error {
	if len(p.chain.Writable) > 0 {
		return p.ringError(transmitRing, errors.New("a writable descriptor in a frame to transmit"))
	}
	gathered, err := p.gather(p.chain.Readable, p.chain.ReadableLength)
	if err != nil {
		return err
	}
	header, err := p.header(gathered)
	if err != nil {
		return err
	}
	data := gathered[frame.HeaderSize:]
	info := frame.Parse(data)
	number := p.log.add(p.chain.Readable, header, len(data), info)
	p.stats.Transmitted++
	if !p.hold {
		p.transmit.queue.Complete(p.chain.Head, 0)
		return p.send(header, data, info.Class)
	}

	held := heldFrame{head: p.chain.Head, number: number}
	if p.late && info.PayloadLength > 0 {
		held.late = p.readLater(header, data, info)
	}
	p.held = append(p.held, held)
	if held.late != nil {
		return nil
	}
	return p.send(header, data, info.Class)
}

// gather copies a frame with its header out of the guest's reach, into the
// scratch buffer.
func (p *port) gather(segments []virtqueue.Segment, length uint64) ([]byte, error) {
	buffer := p.network.scratch
	if length < frame.HeaderSize || length > uint64(len(buffer)) {
		return nil, p.ringError(transmitRing, fmt.Errorf("a frame of %d bytes with its header", length))
	}
	at := 0
	for _, segment := range segments {
		var err error
		p.pieces, err = p.session.Memory().AppendGuest(p.pieces[:0], segment.Address, uint64(segment.Length))
		if err != nil {
			return nil, p.ringError(transmitRing, err)
		}
		for _, piece := range p.pieces {
			at += copy(buffer[at:], piece)
		}
	}
	return buffer[:at:at], nil
}

// header reads and checks the virtio-net header of a frame.
func (p *port) header(gathered []byte) (frame.Header, error) {
	header := frame.DecodeHeader(gathered)
	if err := header.Check(len(gathered) - frame.HeaderSize); err != nil {
		return header, p.ringError(transmitRing, fmt.Errorf("virtio-net header: %w", err))
	}
	if !p.mayAsk(header) {
		return header, p.ringError(transmitRing,
			fmt.Errorf("virtio-net header: flags %#x and segmentation type %#x were not negotiated", header.Flags, header.GSOType))
	}
	// Only this flag travels; the others speak to devices and drivers.
	header.Flags &= frame.NeedsChecksum
	return header, nil
}

// mayAsk tells whether the driver negotiated the offloads it asks for.
func (p *port) mayAsk(h frame.Header) bool {
	need := uint64(0)
	if h.Flags&frame.NeedsChecksum != 0 {
		need = featureChecksum
	}
	switch h.GSOType {
	case frame.GSONone:
	case frame.GSOTCPv4:
		need |= featureHostTSO4
	case frame.GSOTCPv6:
		need |= featureHostTSO6
	case frame.GSOUDP:
		need |= featureHostUSO
	default:
		return false
	}
	return p.features&need == need
}

// accepts tells whether the driver takes the frame with these offloads undone.
func (p *port) accepts(h frame.Header) bool {
	need := uint64(featureGuestChecksum)
	switch h.GSOType {
	case frame.GSONone:
	case frame.GSOTCPv4:
		need |= featureGuestTSO4
	case frame.GSOTCPv6:
		need |= featureGuestTSO6
	case frame.GSOUDP:
		need |= featureGuestUSO4 | featureGuestUSO6
	}
	return h.Flags&frame.NeedsChecksum == 0 || p.features&need == need
}

// deliver gives a frame from the wire to the port's driver. Data is only read.
func (p *port) deliver(h frame.Header, data []byte) error {
	n := p.network
	switch {
	case p.receive.queue == nil:
		p.dropped(&p.stats.NoDriver, "no driver")
		return nil
	case p.accepts(h):
		return p.enqueue(h, data)
	case h.GSOType == frame.GSONone:
		completed := n.mangled[:copy(n.mangled, data)]
		frame.CompleteChecksum(completed, h)
		return p.enqueue(frame.Header{}, completed)
	}
	var err error
	malformed := frame.Segment(n.mangled, data, h, func(segment []byte, _, _ int) {
		if err == nil {
			err = p.enqueue(frame.Header{}, segment)
		}
	})
	if malformed != nil {
		p.dropped(&p.stats.Malformed, malformed.Error())
	}
	return err
}

// enqueue puts a frame into the receive ring, or behind those that wait for room
// in it.
func (p *port) enqueue(h frame.Header, data []byte) error {
	p.network.capture.add(p.index, inbound, data, "")
	if p.backlog.empty() {
		done, err := p.fill(h, data)
		if done || err != nil {
			return err
		}
		// From now on the driver's refills matter. Those it made before it
		// could see that are looked for once more.
		p.receive.queue.SetKicks(true)
		if done, err = p.fill(h, data); done || err != nil {
			p.receive.queue.SetKicks(false)
			return err
		}
	}
	if !p.backlog.add(h, data) {
		p.dropped(&p.stats.NoBuffers, "no receive buffers")
	}
	return nil
}

// drainBacklog gives the driver what waited for its buffers.
func (p *port) drainBacklog() (more bool, err error) {
	for !p.backlog.empty() {
		waiting := p.backlog.first()
		done, err := p.fill(waiting.header, waiting.data)
		if !done || err != nil {
			return false, err
		}
		p.backlog.removeFirst()
	}
	p.receive.queue.SetKicks(false)
	return false, nil
}

// filledChain is a receive buffer with a part of a frame in it.
type filledChain struct {
	head    uint16
	written uint32
}

// fill copies a frame into receive buffers. It returns false, and takes none, if
// there are too few.
func (p *port) fill(h frame.Header, data []byte) (bool, error) {
	queue := p.receive.queue
	need := uint64(frame.HeaderSize + len(data))
	p.filled, p.pieces = p.filled[:0], p.pieces[:0]
	for room := uint64(0); room < need; {
		ok, err := queue.Next(&p.buffers)
		if err != nil {
			return false, p.ringError(receiveRing, err)
		}
		if !ok {
			queue.Rewind(len(p.filled))
			if len(p.filled) == queue.Size() {
				p.dropped(&p.stats.NoBuffers, "the whole receive ring is too small")
				return true, nil
			}
			return false, nil
		}
		part := min(need-room, p.buffers.WritableLength)
		switch {
		case len(p.buffers.Readable) > 0:
			return false, p.ringError(receiveRing, errors.New("a readable descriptor in a receive buffer"))
		case p.buffers.WritableLength < frame.HeaderSize:
			return false, p.ringError(receiveRing, fmt.Errorf("a receive buffer of %d bytes", p.buffers.WritableLength))
		case part < need-room && p.features&featureMergeable == 0:
			queue.Rewind(1)
			p.dropped(&p.stats.NoBuffers, "the receive buffer is too small")
			return true, nil
		}
		if err := p.appendRoom(part); err != nil {
			return false, p.ringError(receiveRing, err)
		}
		p.filled = append(p.filled, filledChain{head: p.buffers.Head, written: uint32(part)})
		room += part
	}

	var header [frame.HeaderSize]byte
	h.Encode(header[:], uint16(len(p.filled)))
	p.scatter(header[:], data)
	for _, chain := range p.filled {
		queue.Complete(chain.head, chain.written)
	}
	p.stats.Received++
	return true, nil
}

// appendRoom adds the first length bytes of the buffer in p.buffers to p.pieces.
func (p *port) appendRoom(length uint64) error {
	memory := p.session.Memory()
	for _, segment := range p.buffers.Writable {
		part := min(length, uint64(segment.Length))
		var err error
		if p.pieces, err = memory.AppendGuest(p.pieces, segment.Address, part); err != nil {
			return err
		}
		memory.MarkDirty(segment.Address, part)
		if length -= part; length == 0 {
			break
		}
	}
	return nil
}

// scatter writes header and data to p.pieces, which have room for both.
func (p *port) scatter(header, data []byte) {
	source, rest := header, data
	for _, piece := range p.pieces {
		for len(piece) > 0 {
			copied := copy(piece, source)
			piece, source = piece[copied:], source[copied:]
			if len(source) == 0 {
				if rest == nil {
					return
				}
				source, rest = rest, nil
			}
		}
	}
}

// dropped counts a frame that was lost on its way to the port. The log gets a
// line for the first, the second, the fourth and so on.
func (p *port) dropped(counter *uint64, why string) {
	*counter++
	if p.dropLines++; p.dropLines&(p.dropLines-1) == 0 {
		p.network.log.Info("frames dropped", "to", p.name, "why", why, "so far", p.dropLines)
	}
}

// waitingFrame is a copy of a frame that does not go on yet.
type waitingFrame struct {
	header frame.Header
	data   []byte
}

// backlog is a bounded queue of frames.
type backlog struct {
	frames []waitingFrame
	bytes  int
}

func (b *backlog) empty() bool { return len(b.frames) == 0 }

func (b *backlog) add(h frame.Header, data []byte) bool {
	if len(b.frames) >= backlogFrames || b.bytes+len(data) > backlogBytes {
		return false
	}
	b.frames = append(b.frames, waitingFrame{header: h, data: append([]byte(nil), data...)})
	b.bytes += len(data)
	return true
}

func (b *backlog) first() waitingFrame { return b.frames[0] }

func (b *backlog) removeFirst() {
	b.bytes -= len(b.frames[0].data)
	b.frames[0] = waitingFrame{}
	b.frames = b.frames[1:]
}

func (b *backlog) clear() { *b = backlog{} }
