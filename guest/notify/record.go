// SPDX-License-Identifier: BSD-3-Clause

package notify

import (
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/zcvet/zcvet/guest/sys"
	"github.com/zcvet/zcvet/guest/trace"
)

// How a message is recorded. The arguments of sendmsg and recvmsg are the
// descriptor, the flags, msg_flags before the call and the place of the msghdr;
// the memory is the name, the control buffer and the buffers. Afterwards the
// memory is the msghdr, the control buffer and, of a receive, the buffers as far
// as they were filled. What lies in the buffers of a receive before it is not
// kept.
//
// The arguments of sendmmsg and recvmmsg are the descriptor, the flags and the
// number of buffers of each message; the memory is that of all messages in turn.
// Afterwards the outcome is msg_len of each.

var recordedNames = map[uintptr]string{
	unix.SYS_SENDMSG: "sendmsg", unix.SYS_RECVMSG: "recvmsg",
	unix.SYS_SENDMMSG: "sendmmsg", unix.SYS_RECVMMSG: "recvmmsg",
}

func receives(number uintptr) bool {
	return number == unix.SYS_RECVMSG || number == unix.SYS_RECVMMSG
}

// before describes the memory of a message that is about to be passed.
func (m *Message) before(receive bool) []trace.Memory {
	pieces := []trace.Memory{trace.Of(m.Name), trace.Of(m.Control)}
	for _, buffer := range m.Buffers {
		pieces = append(pieces, trace.Of(buffer))
	}
	if receive {
		for i := range pieces {
			pieces[i].Bytes = []byte{}
		}
	}
	return pieces
}

func (m *Message) recordBegin(number uintptr, fd int, header *unix.Msghdr) uint64 {
	place := uintptr(unsafe.Pointer(header))
	return sys.Recorder().Begin(recordedNames[number],
		[]int64{int64(fd), int64(m.Flags), int64(m.HeaderFlags), int64(place)}, m.before(receives(number)), 2)
}

func (m *Message) recordEnd(r uint64, number uintptr, count int, errno unix.Errno, header *unix.Msghdr) {
	out := []trace.Memory{
		trace.Of(unsafe.Slice((*byte)(unsafe.Pointer(header)), HeaderSize)), // perhaps out of reach
		trace.Of(m.Control),
	}
	result := int64(count)
	if errno != 0 {
		result = -1
	}
	if receives(number) {
		// A receive has written to the header, or failed.
		if errno != 0 {
			out = out[:0]
		} else {
			out[1] = trace.Of(m.Control[:min(int(header.Controllen), len(m.Control))])
			out = append(out, filled(m.Buffers, count)...)
		}
	}
	sys.Recorder().End(r, result, errno, nil, out, 2)
}

// filled are the buffers as far as count bytes fill them.
func filled(buffers [][]byte, count int) []trace.Memory {
	var pieces []trace.Memory
	for _, buffer := range buffers {
		length := min(count, len(buffer))
		if length > 0 {
			pieces = append(pieces, trace.Of(buffer[:length]))
		}
		count -= length
	}
	return pieces
}

func recordManyBegin(number uintptr, fd int, messages []*Message, flags int) uint64 {
	arguments := []int64{int64(fd), int64(flags)}
	var in []trace.Memory
	for _, m := range messages {
		arguments = append(arguments, int64(len(m.Buffers)))
		in = append(in, m.before(receives(number))...)
	}
	return sys.Recorder().Begin(recordedNames[number], arguments, in, len(in))
}

func recordManyEnd(r uint64, number uintptr, headers []multiple, messages []*Message, count int, errno unix.Errno) {
	result := int64(count)
	if errno != 0 {
		result, count = -1, 0
	}
	var lengths []int64
	var out []trace.Memory
	for i, header := range headers[:count] {
		lengths = append(lengths, int64(header.length))
		control := messages[i].Control
		if receives(number) {
			control = control[:min(int(header.header.Controllen), len(control))]
		}
		out = append(out, trace.Of(control))
	}
	sys.Recorder().End(r, result, errno, lengths, out, len(out))
}
