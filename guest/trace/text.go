// SPDX-License-Identifier: BSD-3-Clause

package trace

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"

	"golang.org/x/sys/unix"
)

// Style says what only the tree under test knows.
type Style struct {
	// Constant is SCM_ZC_NOTIFICATION, 0 for none.
	Constant int
	// ABI is the profile of the interface, "v8".
	ABI string
}

// Text writes the call in one line, as strace does:
//
//	sendmsg(5, {iov=[1000], control=[SCM_ZC_NOTIFICATION 52 bytes]}, MSG_ZEROCOPY) = 1000
func (s Style) Text(c *Call) string {
	switch c.Name {
	case Failure:
		return "-- expectation failed: " + firstLine(c.Text(0))
	case Expectation:
		return fmt.Sprintf("-- expected: each of the %d zero-copy sends of %d notified exactly once", c.Argument(2), c.Argument(1))
	case Host:
		return fmt.Sprintf("-- NIC: %s %s", c.Text(0), c.Text(1))
	case Task:
		return "-- the calls that follow are those of a 32-bit task"
	case Child:
		return "-- child process " + c.Text(0) + ", whose calls are not recorded"
	case Beyond:
		return "-- not in this record: " + firstLine(c.Text(0))
	}
	return fmt.Sprintf("%s(%s) = %s", c.Name, strings.Join(s.arguments(c), ", "), s.outcome(c))
}

func firstLine(text string) string {
	line, _, _ := strings.Cut(text, "\n")
	return line
}

func (s Style) arguments(c *Call) []string {
	a := c.Argument
	fd := fmt.Sprint(a(0))
	switch c.Name {
	case "socket":
		return []string{Domain(a(0)), Kind(a(1)), fmt.Sprint(a(2))}
	case "bind", "connect":
		return []string{fd, address(c.In)}
	case "shutdown":
		return []string{fd, How(a(1))}
	case "accept4":
		return []string{fd}
	case "setsockopt":
		value := "?"
		if len(c.In) > 0 {
			value = plain(c.In[0].Bytes)
		}
		return []string{fd, OptionLevel(a(1)), Option(a(1), a(2)), value}
	case "getsockopt":
		return []string{fd, OptionLevel(a(1)), Option(a(1), a(2))}
	case "poll":
		var entries []string
		for i := 1; i+1 < len(c.Arguments); i += 2 {
			entries = append(entries, fmt.Sprintf("{%d, %s}", a(i), PollEvents(a(i+1))))
		}
		return []string{"[" + strings.Join(entries, ", ") + "]", fmt.Sprintf("%d ms", a(0))}
	case "epoll_create1":
		return nil
	case "epoll_ctl":
		return []string{fd, EpollOperation(a(1)), fmt.Sprint(a(2)), EpollEvents(a(3))}
	case "epoll_wait":
		return []string{fd, fmt.Sprintf("%d ms", a(2))}
	case "read":
		return []string{fd, fmt.Sprint(length(c.In, 0))}
	case "recvfrom":
		return []string{fd, fmt.Sprint(a(2)), MessageFlags(a(1))}
	case "sendto":
		arguments := []string{fd, fmt.Sprint(length(c.In, 1)), MessageFlags(a(1))}
		if length(c.In, 0) > 0 {
			arguments = append(arguments, address(c.In))
		}
		return arguments
	case "sendmsg", "recvmsg":
		return []string{fd, s.message(c), MessageFlags(a(1))}
	case "sendmmsg", "recvmmsg":
		return []string{fd, fmt.Sprintf("%d messages", len(c.Arguments)-2), MessageFlags(a(1))}
	case Request:
		return s.request(c)
	case Wait:
		return []string{fd, fmt.Sprintf("%d ms", a(1))}
	case "mmap":
		return []string{fmt.Sprint(a(0)), Protection(a(1)), Mapping(a(2))}
	case "munmap":
		return []string{fmt.Sprintf("%#x", a(0)), fmt.Sprint(a(1))}
	case "mprotect":
		return []string{fmt.Sprintf("%#x", a(0)), fmt.Sprint(a(1)), Protection(a(2))}
	case "setrlimit":
		return []string{Resource(a(0)), fmt.Sprint(a(1)), fmt.Sprint(a(2))}
	case "writefile":
		return []string{c.Text(0), fmt.Sprintf("%q", strings.TrimSpace(c.Text(1)))}
	}
	var list []string
	for _, argument := range c.Arguments {
		list = append(list, fmt.Sprint(argument))
	}
	return list
}

func (s Style) message(c *Call) string {
	var parts []string
	sends := c.Name == "sendmsg" || c.Name == Request
	if length(c.In, 0) > 0 && sends {
		parts = append(parts, "name="+address(c.In))
	}
	var vectors []string
	for i := 2; i < len(c.In); i++ {
		text := fmt.Sprint(c.In[i].Length)
		if c.In[i].Bytes == nil && sends && c.In[i].Length > 0 {
			text += " unreadable"
		}
		vectors = append(vectors, text)
	}
	if len(vectors) > 8 {
		vectors = append(vectors[:8], fmt.Sprintf("… %d in all", len(c.In)-2))
	}
	parts = append(parts, "iov=["+strings.Join(vectors, ", ")+"]")
	if length(c.In, 1) > 0 {
		control := fmt.Sprintf("room for %d", c.In[1].Length)
		if sends {
			control = s.control(c, c.In[1].Bytes, true)
		}
		parts = append(parts, "control=["+control+"]")
	}
	flags := c.Argument(2)
	if c.Name == Request {
		flags = c.Argument(RequestHeaderFlags)
	}
	if flags != 0 {
		parts = append(parts, "msg_flags="+MessageFlags(flags))
	}
	return "{" + strings.Join(parts, ", ") + "}"
}

func (s Style) outcome(c *Call) string {
	switch {
	case !c.Returned:
		return "? (never returned)"
	case c.Name == Wait:
		return s.completion(c)
	case c.Errno != 0:
		name := unix.ErrnoName(c.Errno)
		if name == "" {
			name = fmt.Sprint(int(c.Errno))
		}
		return "-1 " + name
	}
	text := fmt.Sprint(c.Result)
	var more []string
	switch c.Name {
	case "mmap":
		return fmt.Sprintf("%#x", uint64(c.Result))
	case "getsockname":
		more = append(more, address(c.Out))
	case "getsockopt":
		if len(c.Outcome) > 0 {
			more = append(more, fmt.Sprint(c.Outcome[0]))
		}
	case "poll", "epoll_wait":
		for _, events := range c.Outcome {
			if c.Name == "poll" {
				more = append(more, PollEvents(events))
			} else {
				more = append(more, EpollEvents(events))
			}
		}
	case "sendmsg":
		if control := c.Written(); control != nil {
			more = append(more, "returned ["+s.control(c, control, false)+"]")
		}
	case "recvmsg":
		if len(c.Out) > 1 && c.Out[1].Length > 0 {
			more = append(more, "control=["+s.control(c, c.Out[1].Bytes, false)+"]")
		}
		if flags, ok := c.MessageFlagsAfter(); ok && flags != 0 {
			more = append(more, MessageFlags(flags))
		}
	case "sendmmsg", "recvmmsg":
		more = append(more, fmt.Sprintf("lengths %v", c.Outcome))
	}
	if len(more) > 0 {
		text += " (" + strings.Join(more, ", ") + ")"
	}
	return text
}

// Written is the control buffer of a sendmsg after the call, if the kernel
// changed it; nil otherwise.
func (c *Call) Written() []byte {
	if c.Name != "sendmsg" || len(c.Out) < 2 || len(c.In) < 2 || c.Out[1].Bytes == nil || c.In[1].Bytes == nil {
		return nil
	}
	if string(c.Out[1].Bytes) == string(c.In[1].Bytes) {
		return nil
	}
	return c.Out[1].Bytes
}

const (
	sizeofExtendedError   = 16
	extendedErrorZerocopy = 5
)

// Word is the size of a pointer and of a size_t of the task that made the call, in
// bytes: 4 or 8.
func (c *Call) Word() int {
	if c.Narrow {
		return 4
	}
	return 8
}

// size reads a size_t.
func (c *Call) size(raw []byte) uint64 {
	if c.Narrow {
		return uint64(binary.NativeEndian.Uint32(raw))
	}
	return binary.NativeEndian.Uint64(raw)
}

// HeaderSize is the size of struct msghdr in the task that made the call, in bytes:
// seven words.
func (c *Call) HeaderSize() int { return 7 * c.Word() }

// MessageFlagsAfter is msg_flags after the call, if the msghdr could be read.
func (c *Call) MessageFlagsAfter() (int64, bool) {
	if len(c.Out) == 0 || len(c.Out[0].Bytes) < c.HeaderSize() {
		return 0, false
	}
	return int64(int32(binary.NativeEndian.Uint32(c.Out[0].Bytes[6*c.Word():]))), true
}

// ControlLengthAfter is msg_controllen after the call, if the msghdr could be read.
func (c *Call) ControlLengthAfter() (uint64, bool) {
	if len(c.Out) == 0 || len(c.Out[0].Bytes) < c.HeaderSize() {
		return 0, false
	}
	return c.size(c.Out[0].Bytes[5*c.Word():]), true
}

// ControlMessage is one message of a control buffer.
type ControlMessage struct {
	Level, Type int64
	Data        []byte
}

// ControlMessages splits a control buffer of the call, struct cmsghdr by struct
// cmsghdr; it ends at the first message that makes no sense.
func (c *Call) ControlMessages(buffer []byte) []ControlMessage {
	word := c.Word()
	header := uint64(word + 8)
	var messages []ControlMessage
	for uint64(len(buffer)) >= header {
		size := c.size(buffer)
		if size < header || size > uint64(len(buffer)) {
			break
		}
		messages = append(messages, ControlMessage{
			Level: int64(int32(binary.NativeEndian.Uint32(buffer[word:]))),
			Type:  int64(int32(binary.NativeEndian.Uint32(buffer[word+4:]))),
			Data:  buffer[header:size],
		})
		aligned := uint64(c.ControlSpace(int(size - header)))
		if aligned >= uint64(len(buffer)) {
			break
		}
		buffer = buffer[aligned:]
	}
	return messages
}

// ControlSpace is the room that a control message with so many bytes of data takes
// (CMSG_SPACE), in bytes.
func (c *Call) ControlSpace(data int) int {
	return (c.Word() + 8 + data + c.Word() - 1) &^ (c.Word() - 1)
}

// control describes a control buffer; request tells that the caller made it.
func (s Style) control(c *Call, buffer []byte, request bool) string {
	if buffer == nil {
		return "unreadable"
	}
	var list []string
	for _, message := range c.ControlMessages(buffer) {
		switch {
		case message.Level == unix.SOL_SOCKET && s.Constant != 0 && message.Type == int64(s.Constant):
			list = append(list, s.notifications(message.Data, request))
		case isExtendedError(message):
			list = append(list, extendedError(message))
		default:
			list = append(list, fmt.Sprintf("%s %s %d bytes", OptionLevel(message.Level), Option(message.Level, message.Type), len(message.Data)))
		}
	}
	if len(list) == 0 && len(buffer) > 0 {
		return fmt.Sprintf("%d bytes", len(buffer))
	}
	return strings.Join(list, ", ")
}

func isExtendedError(m ControlMessage) bool {
	return (m.Level == unix.SOL_IP && m.Type == unix.IP_RECVERR || m.Level == unix.SOL_IPV6 && m.Type == unix.IPV6_RECVERR ||
		m.Level == 287 && m.Type == 1) && len(m.Data) >= sizeofExtendedError
}

func extendedError(m ControlMessage) string {
	errno := binary.NativeEndian.Uint32(m.Data)
	origin, kind, code := m.Data[4], m.Data[5], m.Data[6]
	info, data := binary.NativeEndian.Uint32(m.Data[8:]), binary.NativeEndian.Uint32(m.Data[12:])
	if origin == extendedErrorZerocopy && errno == 0 {
		text := fmt.Sprintf("zerocopy %d-%d", info, data)
		if code&1 != 0 {
			text += " COPIED"
		}
		return text
	}
	return fmt.Sprintf("errno %d origin %d type %d code %d info %d data %d", errno, origin, kind, code, info, data)
}

// notifications describes the data of an SCM_ZC_NOTIFICATION message.
func (s Style) notifications(data []byte, request bool) string {
	const element = 12
	counted := s.ABI == "v7" || s.ABI == "v8"
	if request || len(data) < 4 && counted {
		text := fmt.Sprintf("SCM_ZC_NOTIFICATION %d bytes", len(data))
		if counted && len(data) >= 4 {
			text += fmt.Sprintf(", size %d", binary.NativeEndian.Uint32(data))
		}
		return text
	}
	count := len(data) / element
	if counted {
		count = int(min(binary.NativeEndian.Uint32(data), 1<<16))
		data = data[4:]
	}
	text := "SCM_ZC_NOTIFICATION"
	if counted {
		text += fmt.Sprintf(" size %d", count)
	}
	for i := 0; i < count && len(data) >= element; i, data = i+1, data[element:] {
		low, high := binary.NativeEndian.Uint32(data), binary.NativeEndian.Uint32(data[4:])
		if !counted && low == 0xa5a5a5a5 {
			break
		}
		text += fmt.Sprintf(" %d-%d", low, high)
		if data[8] == 0 {
			text += " COPIED"
		}
	}
	return text
}

func length(pieces []Memory, i int) int {
	if i >= len(pieces) {
		return 0
	}
	return pieces[i].Length
}

// Address reads a raw socket address of the families IPv4 and IPv6.
func Address(raw []byte) (netip.AddrPort, bool) {
	if len(raw) < 2 {
		return netip.AddrPort{}, false
	}
	switch family := binary.NativeEndian.Uint16(raw); {
	case family == unix.AF_INET && len(raw) >= unix.SizeofSockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(raw[4:8])), binary.BigEndian.Uint16(raw[2:])), true
	case family == unix.AF_INET6 && len(raw) >= unix.SizeofSockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16([16]byte(raw[8:24])), binary.BigEndian.Uint16(raw[2:])), true
	}
	return netip.AddrPort{}, false
}

// VSOCKAddress reads a raw socket address of the family VSOCK.
func VSOCKAddress(raw []byte) (context, port uint32, ok bool) {
	if len(raw) < unix.SizeofSockaddrVM || binary.NativeEndian.Uint16(raw) != unix.AF_VSOCK {
		return 0, 0, false
	}
	return binary.NativeEndian.Uint32(raw[8:]), binary.NativeEndian.Uint32(raw[4:]), true
}

func address(pieces []Memory) string {
	if len(pieces) == 0 {
		return "NULL"
	}
	if parsed, ok := Address(pieces[0].Bytes); ok {
		return parsed.String()
	}
	if context, port, ok := VSOCKAddress(pieces[0].Bytes); ok {
		return fmt.Sprintf("VSOCK %d:%d", context, port)
	}
	return fmt.Sprintf("address of %d bytes", pieces[0].Length)
}

// plain writes an option's value: an int as a number, another as bytes.
func plain(value []byte) string {
	if len(value) == 4 {
		return fmt.Sprint(int32(binary.NativeEndian.Uint32(value)))
	}
	if len(value) == 16 {
		return fmt.Sprintf("{%d, %d}", binary.NativeEndian.Uint64(value), binary.NativeEndian.Uint64(value[8:]))
	}
	return fmt.Sprintf("% x", value)
}

// Text writes the calls of the record, each with its time and, if there are
// several, its thread.
func (r *Record) Text(style Style) []string {
	threads := make(map[int]int)
	for _, call := range r.Calls {
		if _, known := threads[call.Thread]; !known {
			threads[call.Thread] = len(threads) + 1
		}
	}
	var lines []string
	for i := range r.Calls {
		call := &r.Calls[i]
		if i > 0 && call.Number > r.Calls[i-1].Number+1 {
			lines = append(lines, fmt.Sprintf("… %d calls that are not kept", call.Number-r.Calls[i-1].Number-1))
		}
		line := fmt.Sprintf("%9.6f ", call.Began.Seconds())
		if len(threads) > 1 {
			line += fmt.Sprintf("[%d] ", threads[call.Thread])
		}
		line += style.Text(call)
		if took := call.Ended - call.Began; call.Returned && took.Milliseconds() >= 100 {
			line += fmt.Sprintf("  after %.1f s", took.Seconds())
		}
		lines = append(lines, line)
	}
	return lines
}
