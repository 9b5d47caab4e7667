// SPDX-License-Identifier: BSD-3-Clause

package link

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"sync"
)

// MaxFrame bounds the body of a frame in bytes. The longest honest message, a
// Hello with every instance, is a tenth of it.
const MaxFrame = 4 << 20

// header is magic, body length, sequence number and CRC of the body, all
// little-endian 32-bit.
const headerSize = 16

const magic = 0x5445565a // "ZVET"

// ErrCorrupt is returned for a frame that no honest peer sends. The stream has
// no resynchronisation: after a corrupt frame the link is dead.
var ErrCorrupt = errors.New("guest link: corrupt frame")

// Conn is one end of the link. Send may be called from several goroutines,
// Receive from one.
type Conn struct {
	stream io.ReadWriter

	sendLock sync.Mutex
	sent     uint32
	received uint32
	// adopt is true until the first frame of a resumed link has come.
	adopt bool
}

// NewConn returns the end of a fresh link.
func NewConn(stream io.ReadWriter) *Conn { return &Conn{stream: stream} }

// ResumeConn returns the host's end of a link whose agent was restored from a
// snapshot. The agent goes on with the numbers of the moment of the snapshot, so
// the first number received is taken as it comes. The host has to have been
// silent until the snapshot: what it sends is numbered from 0.
func ResumeConn(stream io.ReadWriter) *Conn { return &Conn{stream: stream, adopt: true} }

// Send writes one message. Body may be nil. A json.RawMessage is sent as it is,
// so it has to be well-formed, like the body of a received Message.
func (c *Conn) Send(kind Kind, body any) error {
	payload, err := encode(kind, body)
	if err != nil {
		return fmt.Errorf("guest link: encode %s: %w", kind, err)
	}
	if len(payload) > MaxFrame {
		return fmt.Errorf("guest link: %s message of %d bytes is over the limit of %d", kind, len(payload), MaxFrame)
	}

	c.sendLock.Lock()
	defer c.sendLock.Unlock()
	frame := make([]byte, headerSize, headerSize+len(payload))
	binary.LittleEndian.PutUint32(frame[0:], magic)
	binary.LittleEndian.PutUint32(frame[4:], uint32(len(payload)))
	binary.LittleEndian.PutUint32(frame[8:], c.sent)
	binary.LittleEndian.PutUint32(frame[12:], crc32.ChecksumIEEE(payload))
	// One write per frame: a reader that dies in between must not leave half
	// a frame of one sender in front of another's.
	if _, err := c.stream.Write(append(frame, payload...)); err != nil {
		return fmt.Errorf("guest link: send %s: %w", kind, err)
	}
	c.sent++
	return nil
}

// encode returns the JSON of a Message. It is put together by hand because
// encoding/json checks and copies every byte of a RawMessage, and in an emulated
// guest the Hello of a thousand instances would take long enough to notice.
func encode(kind Kind, body any) ([]byte, error) {
	payload, err := json.Marshal(struct {
		Kind Kind `json:"kind"`
	}{kind})
	if err != nil || body == nil {
		return payload, err
	}
	encoded, isEncoded := body.(json.RawMessage)
	if !isEncoded {
		if encoded, err = json.Marshal(body); err != nil {
			return nil, err
		}
	}
	if len(encoded) == 0 {
		return payload, nil // the body of a message that had none
	}
	payload = append(payload[:len(payload)-1], `,"body":`...)
	return append(append(payload, encoded...), '}'), nil
}

// Receive reads the next message. It returns io.EOF when the peer closed the
// link between two frames, io.ErrUnexpectedEOF inside one, and an error that
// wraps ErrCorrupt for bytes that are no frame or not the next one.
func (c *Conn) Receive() (*Message, error) {
	var header [headerSize]byte
	if _, err := io.ReadFull(c.stream, header[:]); err != nil {
		return nil, err
	}
	if got := binary.LittleEndian.Uint32(header[0:]); got != magic {
		return nil, fmt.Errorf("%w: magic %#x", ErrCorrupt, got)
	}
	length := binary.LittleEndian.Uint32(header[4:])
	if length > MaxFrame {
		return nil, fmt.Errorf("%w: %d bytes, over the limit of %d", ErrCorrupt, length, MaxFrame)
	}
	number := binary.LittleEndian.Uint32(header[8:])
	if c.adopt {
		c.received, c.adopt = number, false
	}
	if number != c.received {
		return nil, fmt.Errorf("%w: sequence number %d where %d was due", ErrCorrupt, number, c.received)
	}
	payload := make([]byte, length)
	if _, err := io.ReadFull(c.stream, payload); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	if crc32.ChecksumIEEE(payload) != binary.LittleEndian.Uint32(header[12:]) {
		return nil, fmt.Errorf("%w: checksum", ErrCorrupt)
	}
	var message Message
	if err := json.Unmarshal(payload, &message); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	message.Number = number
	c.received++
	return &message, nil
}

// Decode unpacks a message's body.
func Decode[T any](message *Message) (T, error) {
	var body T
	if err := json.Unmarshal(message.Body, &body); err != nil {
		return body, fmt.Errorf("guest link: %s body: %w", message.Kind, err)
	}
	return body, nil
}
