// SPDX-License-Identifier: BSD-3-Clause

package vnet

import (
	"fmt"
	"io"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"
)

const (
	// captureFrames is how many of the last frames are kept, 5 MB of them.
	captureFrames = 16 << 10
	// captureBytes is how much of each is kept: all headers, and enough of the
	// payload to recognise it.
	captureBytes = 256
	// captureComments bounds the comments that wait for a frame.
	captureComments = 64
)

type direction uint8

const (
	inbound direction = iota
	outbound
)

// capture is a ring of the last frames that ports sent and received.
type capture struct {
	frames   []capturedFrame
	next     int // slot of the oldest frame, once all are used
	comments []string
}

type capturedFrame struct {
	when      time.Time
	length    int
	kept      int
	port      int
	direction direction
	comments  []string // of which the case wrote those before the last
	data      [captureBytes]byte
}

// add notes a frame, with a comment of our own if there is one.
func (c *capture) add(port int, d direction, data []byte, comment string) {
	slot := c.slot()
	slot.when, slot.port, slot.direction = time.Now(), port, d
	slot.length, slot.kept = len(data), copy(slot.data[:], data)
	slot.comments, c.comments = c.comments, nil
	if comment != "" {
		slot.comments = append(slot.comments, comment)
	}
}

func (c *capture) slot() *capturedFrame {
	// Grown as needed: most networks carry a few hundred frames.
	if len(c.frames) < captureFrames {
		c.frames = append(c.frames, capturedFrame{})
		return &c.frames[len(c.frames)-1]
	}
	slot := &c.frames[c.next]
	c.next = (c.next + 1) % captureFrames
	return slot
}

// comment puts a text in front of the next frame.
func (c *capture) comment(text string) {
	if len(c.comments) == captureComments {
		c.comments = c.comments[1:]
	}
	c.comments = append(c.comments, text)
}

// copyInOrder returns the frames, the oldest first, and a last frame without data
// for comments that no frame has followed.
func (c *capture) copyInOrder() []capturedFrame {
	ordered := make([]capturedFrame, 0, len(c.frames)+1)
	ordered = append(ordered, c.frames[c.next:]...)
	ordered = append(ordered, c.frames[:c.next]...)
	if len(c.comments) > 0 {
		ordered = append(ordered, capturedFrame{when: time.Now(), comments: c.comments})
	}
	return ordered
}

// WritePcap writes the last frames of all wires as pcapng: one interface per
// port, outbound what its driver sent, before any rule, and inbound what it was
// given. Frames are cut after 256 bytes. Checksums that were left to a receiver
// look wrong, as in any capture on a host that offloads them. It works after the
// end of the Network.
func (n *Network) WritePcap(w io.Writer) error {
	n.mutex.Lock()
	frames := n.capture.copyInOrder()
	n.mutex.Unlock()
	if err := n.writePcap(w, frames); err != nil {
		return fmt.Errorf("pcap: %w", err)
	}
	return nil
}

func (n *Network) writePcap(w io.Writer, frames []capturedFrame) error {
	var writer *pcapgo.NgWriter
	for i, p := range n.ports {
		wire := pcapgo.NgInterface{
			Name:                string(p.name),
			Comment:             "wire to " + string(p.peer.name),
			LinkType:            layers.LinkTypeEthernet,
			TimestampResolution: 9,
			SnapLength:          captureBytes,
		}
		var err error
		if i == 0 {
			writer, err = pcapgo.NewNgWriterInterface(w, wire, pcapgo.NgWriterOptions{
				SectionInfo: pcapgo.NgSectionInfo{Application: "zcvet"},
			})
		} else {
			_, err = writer.AddInterface(wire)
		}
		if err != nil {
			return err
		}
	}
	flags := map[direction]*pcapgo.NgEpbFlags{
		inbound:  {Direction: pcapgo.NgEpbFlagDirectionInbound},
		outbound: {Direction: pcapgo.NgEpbFlagDirectionOutbound},
	}
	for i := range frames {
		f := &frames[i]
		if err := writer.WritePacketWithOptions(gopacket.CaptureInfo{
			Timestamp: f.when, CaptureLength: f.kept, Length: f.length, InterfaceIndex: f.port,
		}, f.data[:f.kept], pcapgo.NgPacketOptions{Comments: f.comments, Flags: flags[f.direction]}); err != nil {
			return err
		}
	}
	return writer.Flush()
}
