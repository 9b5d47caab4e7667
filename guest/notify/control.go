// SPDX-License-Identifier: BSD-3-Clause

package notify

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// ErrControl is returned for a control buffer that a correct kernel does not
// write: a message shorter than its header or longer than the buffer.
var ErrControl = errors.New("malformed control buffer")

// ControlMessage is one message of a control buffer.
type ControlMessage struct {
	Level, Type int32
	Data        []byte
	// Offset is where the message's header begins in the buffer. Only parsing
	// sets it.
	Offset int
}

// sizeofLength is the size of cmsg_len, a size_t: 8 bytes, or 4 in a 32-bit task.
const sizeofLength = unix.SizeofCmsghdr - 8

// AppendControl appends a message, padded to the alignment the next one needs,
// and returns the longer buffer.
func AppendControl(buffer []byte, level, kind int32, data []byte) []byte {
	message := make([]byte, unix.CmsgSpace(len(data)))
	if sizeofLength == 8 {
		binary.NativeEndian.PutUint64(message, uint64(unix.CmsgLen(len(data))))
	} else {
		binary.NativeEndian.PutUint32(message, uint32(unix.CmsgLen(len(data))))
	}
	binary.NativeEndian.PutUint32(message[sizeofLength:], uint32(level))
	binary.NativeEndian.PutUint32(message[sizeofLength+4:], uint32(kind))
	copy(message[unix.CmsgLen(0):], data)
	return append(buffer, message...)
}

// ParseControl splits a control buffer into its messages. Data aliases the
// buffer. A rest too short for another header is padding, as CMSG_NXTHDR says.
func ParseControl(buffer []byte) ([]ControlMessage, error) {
	var messages []ControlMessage
	for offset := 0; len(buffer)-offset >= unix.SizeofCmsghdr; {
		header := buffer[offset:]
		var length uint64
		if sizeofLength == 8 {
			length = binary.NativeEndian.Uint64(header)
		} else {
			length = uint64(binary.NativeEndian.Uint32(header))
		}
		if length < uint64(unix.CmsgLen(0)) {
			return messages, fmt.Errorf("%w: message at %d claims %d bytes, its header alone has %d",
				ErrControl, offset, length, unix.CmsgLen(0))
		}
		if length > uint64(len(header)) {
			return messages, fmt.Errorf("%w: message at %d claims %d bytes, %d are left",
				ErrControl, offset, length, len(header))
		}
		messages = append(messages, ControlMessage{
			Level:  int32(binary.NativeEndian.Uint32(header[sizeofLength:])),
			Type:   int32(binary.NativeEndian.Uint32(header[sizeofLength+4:])),
			Data:   header[unix.CmsgLen(0):length],
			Offset: offset,
		})
		offset += unix.CmsgSpace(int(length) - unix.CmsgLen(0))
	}
	return messages, nil
}
