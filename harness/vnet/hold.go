// SPDX-License-Identifier: BSD-3-Clause

package vnet

import (
	"fmt"
	"slices"

	"github.com/zcvet/zcvet/guest/nic"
	"github.com/zcvet/zcvet/harness/vnet/frame"
	"github.com/zcvet/zcvet/harness/vnet/virtqueue"
)

// heldFrame is a transmitted chain that the driver has not got back.
type heldFrame struct {
	head   uint16
	number uint64     // in the descriptor log
	late   *lateFrame // nil for a frame that has gone on
}

// lateFrame is a frame whose payload is read again, and which goes on, when its
// chain is released.
type lateFrame struct {
	segments []virtqueue.Segment
	length   uint64
	parts    []latePart
}

// latePart is a frame for the wire: the whole frame, or a segment of a large one.
// Its headers, with the checksums, stay as they were when the driver sent it.
type latePart struct {
	data    []byte
	headers int // length of the headers in data
	payload int // offset of this part's payload in the driver's frame
}

// readLater takes the frame of p.chain apart for a later reading. Everything the
// driver left to the device, checksums and segmentation, is done now: a frame
// that would ask for a checksum at the receiver would always arrive with a good
// one. It returns nil for a frame that cannot be segmented, which goes on at once
// and is dropped at the receiver.
func (p *port) readLater(h frame.Header, data []byte, info frame.Info) *lateFrame {
	late := &lateFrame{
		segments: slices.Clone(p.chain.Readable),
		length:   p.chain.ReadableLength,
	}
	if h.GSOType == frame.GSONone {
		part := latePart{data: slices.Clone(data), headers: info.Payload, payload: info.Payload}
		if h.Flags&frame.NeedsChecksum != 0 {
			frame.CompleteChecksum(part.data, h)
		}
		late.parts = []latePart{part}
		return late
	}
	if err := frame.Segment(p.network.mangled, data, h, func(segment []byte, headers, payload int) {
		late.parts = append(late.parts, latePart{data: slices.Clone(segment), headers: headers, payload: payload})
	}); err != nil {
		return nil
	}
	return late
}

// sendLate reads the payload of a late frame as it is now and sends it on.
func (p *port) sendLate(late *lateFrame) error {
	gathered, err := p.gather(late.segments, late.length)
	if err != nil {
		return err
	}
	now := gathered[frame.HeaderSize:]
	for _, part := range late.parts {
		copy(part.data[part.headers:], now[part.payload:])
		if err := p.send(frame.Header{}, part.data, frame.Parse(part.data).Class); err != nil {
			return err
		}
	}
	return nil
}

// release gives the held chains at these positions back to the driver, in this
// order.
func (p *port) release(positions []int) (int, error) {
	released := make(map[int]bool, len(positions))
	for _, position := range positions {
		held := p.held[position]
		if held.late != nil {
			if err := p.sendLate(held.late); err != nil {
				return 0, err
			}
		}
		p.transmit.queue.Complete(held.head, 0)
		released[position] = true
	}
	kept := p.held[:0]
	for position, held := range p.held {
		if !released[position] {
			kept = append(kept, held)
		}
	}
	clear(p.held[len(kept):])
	p.held = kept
	return len(positions), nil
}

func (p *port) allHeld() []int { return p.oldestHeld(len(p.held)) }

func (p *port) oldestHeld(count int) []int {
	positions := make([]int, min(count, len(p.held)))
	for i := range positions {
		positions[i] = i
	}
	return positions
}

// wantedHeld returns the positions that a nic.Release names.
func (p *port) wantedHeld(wanted nic.Release) ([]int, error) {
	switch {
	case len(wanted.Order) > 0:
		seen := make(map[int]bool)
		for _, position := range wanted.Order {
			if position < 0 || position >= len(p.held) || seen[position] {
				return nil, fmt.Errorf("release %v of %d held frames", wanted.Order, len(p.held))
			}
			seen[position] = true
		}
		return wanted.Order, nil
	case wanted.Count < 0:
		return nil, fmt.Errorf("release %d frames", wanted.Count)
	case wanted.Count == 0:
		return p.allHeld(), nil
	}
	return p.oldestHeld(wanted.Count), nil
}
