// SPDX-License-Identifier: BSD-3-Clause

// Package vhost speaks the back end's side of the vhost-user protocol, as QEMU's
// interop document describes it: Conn reads and writes messages, Session keeps
// what the front end has configured and starts and stops virtqueues.
package vhost

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"

	"golang.org/x/sys/unix"

	"github.com/zcvet/zcvet/harness/vnet/memory"
	"github.com/zcvet/zcvet/harness/vnet/virtqueue"
)

// Request is the type of a message.
type Request uint32

// The requests that a front end for one network queue pair sends. Others end the
// session: they belong to protocol features that were not offered.
const (
	GetFeatures         Request = 1
	SetFeatures         Request = 2
	SetOwner            Request = 3
	ResetOwner          Request = 4
	SetMemTable         Request = 5
	SetLogBase          Request = 6
	SetLogFD            Request = 7
	SetVringNum         Request = 8
	SetVringAddr        Request = 9
	SetVringBase        Request = 10
	GetVringBase        Request = 11
	SetVringKick        Request = 12
	SetVringCall        Request = 13
	SetVringErr         Request = 14
	GetProtocolFeatures Request = 15
	SetProtocolFeatures Request = 16
	SetVringEnable      Request = 18
	SendRARP            Request = 19
)

var requestNames = map[Request]string{
	GetFeatures:         "GET_FEATURES",
	SetFeatures:         "SET_FEATURES",
	SetOwner:            "SET_OWNER",
	ResetOwner:          "RESET_OWNER",
	SetMemTable:         "SET_MEM_TABLE",
	SetLogBase:          "SET_LOG_BASE",
	SetLogFD:            "SET_LOG_FD",
	SetVringNum:         "SET_VRING_NUM",
	SetVringAddr:        "SET_VRING_ADDR",
	SetVringBase:        "SET_VRING_BASE",
	GetVringBase:        "GET_VRING_BASE",
	SetVringKick:        "SET_VRING_KICK",
	SetVringCall:        "SET_VRING_CALL",
	SetVringErr:         "SET_VRING_ERR",
	GetProtocolFeatures: "GET_PROTOCOL_FEATURES",
	SetProtocolFeatures: "SET_PROTOCOL_FEATURES",
	SetVringEnable:      "SET_VRING_ENABLE",
	SendRARP:            "SEND_RARP",
}

// String returns the name of the protocol document.
func (r Request) String() string {
	if name, ok := requestNames[r]; ok {
		return name
	}
	return fmt.Sprintf("request %d", uint32(r))
}

const (
	headerSize = 12
	// maxPayload is the largest payload of any request here, a full memory
	// table, rounded up generously.
	maxPayload = 512
	maxFiles   = memory.MaxRegions

	versionMask   = 0x3
	version       = 0x1
	flagReply     = 0x4
	flagNeedReply = 0x8
)

// ErrProtocol is wrapped by the error for a message that no correct front end
// sends.
var ErrProtocol = errors.New("vhost-user protocol violated")

func violated(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrProtocol, fmt.Errorf(format, args...))
}

// Message is a request of the front end. Whoever holds it owns the file
// descriptors that are still in Files.
type Message struct {
	Request   Request
	NeedReply bool
	Payload   []byte
	Files     []int
}

// Close closes the file descriptors that nobody took.
func (m *Message) Close() {
	closeFiles(m.Files)
	m.Files = nil
}

// take moves the only file descriptor to the caller.
func (m *Message) take() int {
	file := m.Files[0]
	m.Files = nil
	return file
}

func closeFiles(files []int) {
	for _, file := range files {
		_ = unix.Close(file)
	}
}

// Stream is the part of *net.UnixConn that a Conn needs.
type Stream interface {
	ReadMsgUnix(b, oob []byte) (n, oobn, flags int, addr *net.UnixAddr, err error)
	Write(b []byte) (int, error)
}

// Conn carries messages over a stream socket. One goroutine may use it.
type Conn struct {
	stream Stream
	oob    []byte
}

// NewConn returns a Conn over stream, whose deadlines and end stay with the
// caller.
func NewConn(stream Stream) *Conn {
	return &Conn{stream: stream, oob: make([]byte, unix.CmsgSpace(4*maxFiles))}
}

// Receive reads the next message. The error is io.EOF when the front end hung
// up between messages, and wraps ErrProtocol for anything that is no request;
// then no file descriptor is left open.
func (c *Conn) Receive() (*Message, error) {
	message := &Message{}
	if err := c.receive(message); err != nil {
		message.Close()
		return nil, err
	}
	return message, nil
}

func (c *Conn) receive(message *Message) error {
	var header [headerSize]byte
	if err := c.fill(header[:], message); err != nil {
		return err
	}
	message.Request = Request(binary.LittleEndian.Uint32(header[0:]))
	flags := binary.LittleEndian.Uint32(header[4:])
	size := binary.LittleEndian.Uint32(header[8:])
	if flags&versionMask != version || flags&flagReply != 0 {
		return violated("%s with flags %#x", message.Request, flags)
	}
	message.NeedReply = flags&flagNeedReply != 0
	if size > maxPayload {
		return violated("%s with %d bytes of payload", message.Request, size)
	}
	message.Payload = make([]byte, size)
	if err := c.fill(message.Payload, message); err != nil {
		if errors.Is(err, io.EOF) {
			err = violated("%s: the payload of %d bytes is cut off", message.Request, size)
		}
		return err
	}
	return nil
}

// fill reads exactly len(b) bytes and collects the file descriptors that come
// with them. The error is io.EOF if not even one byte came.
func (c *Conn) fill(b []byte, message *Message) error {
	for got := 0; got < len(b); {
		n, oobn, flags, _, err := c.stream.ReadMsgUnix(b[got:], c.oob)
		// Descriptors are collected before anything else is looked at, so
		// that none leaks.
		files, parseErr := parseFiles(c.oob[:oobn])
		message.Files = append(message.Files, files...)
		switch {
		case err != nil && !errors.Is(err, io.EOF):
			return fmt.Errorf("vhost-user: %w", err)
		case parseErr != nil:
			return parseErr
		case flags&unix.MSG_CTRUNC != 0 || len(message.Files) > maxFiles:
			return violated("more than %d file descriptors in one message", maxFiles)
		case n == 0 && got == 0:
			return io.EOF
		case n == 0:
			return violated("a message is cut off after %d of %d bytes", got, len(b))
		}
		got += n
	}
	return nil
}

func parseFiles(oob []byte) ([]int, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	controls, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, violated("control data: %w", err)
	}
	var files []int
	for _, control := range controls {
		if control.Header.Level != unix.SOL_SOCKET || control.Header.Type != unix.SCM_RIGHTS {
			continue
		}
		rights, err := unix.ParseUnixRights(&control)
		if err != nil {
			return files, violated("control data: %w", err)
		}
		files = append(files, rights...)
	}
	return files, nil
}

// Reply answers a request.
func (c *Conn) Reply(request Request, payload []byte) error {
	reply := make([]byte, headerSize, headerSize+len(payload))
	binary.LittleEndian.PutUint32(reply[0:], uint32(request))
	binary.LittleEndian.PutUint32(reply[4:], version|flagReply)
	binary.LittleEndian.PutUint32(reply[8:], uint32(len(payload)))
	if _, err := c.stream.Write(append(reply, payload...)); err != nil {
		return fmt.Errorf("vhost-user: reply to %s: %w", request, err)
	}
	return nil
}

// The payloads.

func encodeNumber(n uint64) []byte { return binary.LittleEndian.AppendUint64(nil, n) }

func decodeNumber(payload []byte) (uint64, error) {
	if len(payload) != 8 {
		return 0, violated("payload of %d bytes where a number was due", len(payload))
	}
	return binary.LittleEndian.Uint64(payload), nil
}

// vringState is a number for a ring.
type vringState struct{ index, number uint32 }

func (s vringState) encode() []byte {
	return binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint32(nil, s.index), s.number)
}

func decodeVringState(payload []byte) (vringState, error) {
	if len(payload) != 8 {
		return vringState{}, violated("payload of %d bytes where a ring state was due", len(payload))
	}
	return vringState{
		index:  binary.LittleEndian.Uint32(payload[0:]),
		number: binary.LittleEndian.Uint32(payload[4:]),
	}, nil
}

const vringAddrLog = 1

func decodeVringAddr(payload []byte) (index uint32, layout virtqueue.Layout, err error) {
	if len(payload) != 40 {
		return 0, layout, violated("payload of %d bytes where ring addresses were due", len(payload))
	}
	return binary.LittleEndian.Uint32(payload[0:]), virtqueue.Layout{
		Log:         binary.LittleEndian.Uint32(payload[4:])&vringAddrLog != 0,
		Descriptors: binary.LittleEndian.Uint64(payload[8:]),
		Used:        binary.LittleEndian.Uint64(payload[16:]),
		Available:   binary.LittleEndian.Uint64(payload[24:]),
		LogAddress:  binary.LittleEndian.Uint64(payload[32:]),
	}, nil
}

func decodeMemTable(payload []byte) ([]memory.Region, error) {
	if len(payload) < 8 {
		return nil, violated("a memory table of %d bytes", len(payload))
	}
	count := binary.LittleEndian.Uint32(payload)
	if count == 0 || count > memory.MaxRegions || len(payload) < 8+32*int(count) {
		return nil, violated("a memory table of %d bytes with %d regions", len(payload), count)
	}
	regions := make([]memory.Region, count)
	for i := range regions {
		entry := payload[8+32*i:]
		regions[i] = memory.Region{
			Guest:  binary.LittleEndian.Uint64(entry[0:]),
			Size:   binary.LittleEndian.Uint64(entry[8:]),
			User:   binary.LittleEndian.Uint64(entry[16:]),
			Offset: binary.LittleEndian.Uint64(entry[24:]),
		}
	}
	return regions, nil
}

// decodeLog returns size and offset of the dirty log in its file.
func decodeLog(payload []byte) (size, offset uint64, err error) {
	if len(payload) != 16 {
		return 0, 0, violated("payload of %d bytes where a dirty log was due", len(payload))
	}
	return binary.LittleEndian.Uint64(payload[0:]), binary.LittleEndian.Uint64(payload[8:]), nil
}
