// SPDX-License-Identifier: BSD-3-Clause

package vnet

import (
	"encoding/json"
	"fmt"
	"io"

	"github.com/zcvet/zcvet/guest/nic"
	"github.com/zcvet/zcvet/harness/vnet/frame"
	"github.com/zcvet/zcvet/harness/vnet/virtqueue"
)

// Bounds of the descriptor log of a port. It holds at least so many of the last
// frames, and of their segments, and at most twice as many.
const (
	logFrames   = 16 << 10
	logSegments = 256 << 10
)

// replyBytes is about how long an answer to nic.MethodFrames may get as JSON.
const replyBytes = 1 << 20

// frameLog is the TX descriptor log of a port: two growing slices that lose their
// older half from time to time, so that a frame costs no allocation.
type frameLog struct {
	next     uint64 // number of the next frame
	frames   []loggedFrame
	segments []virtqueue.Segment
	dropped  int // segments that came before segments[0]
}

type loggedFrame struct {
	header       frame.Header
	class        nic.Class
	length       int
	payload      int
	first, count int // segments
}

// add notes a frame and returns its number.
func (l *frameLog) add(segments []virtqueue.Segment, h frame.Header, length int, info frame.Info) uint64 {
	if len(l.frames) >= 2*logFrames || len(l.segments)+len(segments) > 2*logSegments {
		l.forget()
	}
	l.frames = append(l.frames, loggedFrame{
		header: h, class: info.Class, length: length, payload: info.PayloadLength,
		first: l.dropped + len(l.segments), count: len(segments),
	})
	l.segments = append(l.segments, segments...)
	l.next++
	return l.next - 1
}

// forget drops the older half of the frames.
func (l *frameLog) forget() {
	keep := l.frames[(len(l.frames)+1)/2:]
	kept := 0
	if len(keep) > 0 {
		kept = keep[0].first - l.dropped
	} else {
		kept = len(l.segments)
	}
	l.dropped += kept
	l.segments = l.segments[:copy(l.segments, l.segments[kept:])]
	l.frames = l.frames[:copy(l.frames, keep)]
}

// query returns the frames from number since on, of a class, until the answer
// would get too long; limit 0 is none.
func (p *port) query(since uint64, class nic.Class, limit int) nic.Frames {
	held := make(map[uint64]bool, len(p.held))
	for _, h := range p.held {
		held[h.number] = true
	}
	l := &p.log
	result := nic.Frames{Frames: []nic.Frame{}, Next: l.next}
	number := l.next - uint64(len(l.frames))
	size := 0
	for i := range l.frames {
		f := &l.frames[i]
		this := number + uint64(i)
		if this < since || class != nic.AnyFrame && f.class != class {
			continue
		}
		if size += 160 + 48*f.count; limit > 0 && size > limit {
			result.More = true
			break
		}
		segments := make([]nic.Segment, f.count)
		for j, s := range l.segments[f.first-l.dropped:][:f.count] {
			segments[j] = nic.Segment{Address: s.Address, Length: s.Length}
		}
		result.Frames = append(result.Frames, nic.Frame{
			Number: this, Class: f.class, Length: f.length, Payload: f.payload, Segments: segments,
			GSO: f.header.GSOType, GSOSize: int(f.header.GSOSize),
			Checksum: f.header.Flags&frame.NeedsChecksum != 0, Held: held[this],
		})
	}
	return result
}

// WriteDescriptorLog writes the TX descriptor logs of all ports, one JSON object
// per line: a nic.Frame with its port. Each log holds the last frames only, at
// least 16384 unless they have very many segments, since the Network was made or
// reset. It works after the end of the Network.
func (n *Network) WriteDescriptorLog(w io.Writer) error {
	type line struct {
		Port nic.Port `json:"port"`
		nic.Frame
	}
	encoder := json.NewEncoder(w)
	for _, p := range n.ports {
		n.mutex.Lock()
		logged := p.query(0, nic.AnyFrame, 0)
		n.mutex.Unlock()
		for _, f := range logged.Frames {
			if err := encoder.Encode(line{p.name, f}); err != nil {
				return fmt.Errorf("descriptor log: %w", err)
			}
		}
	}
	return nil
}
