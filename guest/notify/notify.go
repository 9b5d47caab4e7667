// SPDX-License-Identifier: BSD-3-Clause

// Package notify is the suite's way to the kernel's zero-copy notifications:
// sends with full control over every pointer the kernel is given, the error
// queue, and SCM_ZC_NOTIFICATION in the layout of each published revision.
//
// Nothing here retries, repairs or hides what the kernel answered. Cases judge
// the kernel by it, so an errno comes back as it is and every byte the kernel
// could have written can be looked at after the call.
//
// The kernel keeps reading pages of a zero-copy send long after the call has
// returned. Such pages must not belong to Go's heap, whose memory is reused, or
// to a stack, which moves: take them from [Pages].
package notify

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/zcvet/zcvet/guest/sys"
)

// Values of struct sock_extended_err for zero-copy notifications
// (uapi/linux/errqueue.h).
const (
	// OriginICMP and OriginICMP6 mark errors a router or the peer reported.
	OriginICMP  uint8 = 2
	OriginICMP6 uint8 = 3
	// OriginTimestamping marks a transmit timestamp.
	OriginTimestamping uint8 = 4
	// OriginZerocopy marks a zero-copy notification.
	OriginZerocopy uint8 = 5
	// CodeCopied is the bit of Code that says the data was copied after all.
	CodeCopied uint8 = 1
)

// Way tells by which of the two interfaces a notification reached the caller.
type Way string

// The two ways of reading.
const (
	ErrorQueue Way = "error queue"
	Control    Way = "SCM_ZC_NOTIFICATION"
)

// Notification is one entry of a socket's error queue, read by either way. It is
// a zero-copy notification only if Zerocopy says so: the error queue holds
// timestamps and network errors too.
type Notification struct {
	// Low and High are the first and the last send the entry is about,
	// inclusive; ee_info and ee_data.
	Low, High uint32
	// Copied tells that the kernel copied the data instead of sending the
	// caller's pages: bit CodeCopied, or the inverse of zc_info_elem.zerocopy.
	Copied bool
	Way    Way

	// The rest of struct sock_extended_err; zero when read by Control, except
	// Origin.
	Errno              uint32
	Origin, Type, Code uint8

	// Level and CmsgType are those of the control message that carried the
	// entry.
	Level, CmsgType int32
	// MessageFlags is msg_flags after recvmsg, 0 when read by Control.
	MessageFlags int
	// Payload is what recvmsg put into the data buffer. The kernel promises
	// nothing for zero-copy notifications, and a copy of the packet for
	// timestamps and network errors.
	Payload []byte
	// Others are the further control messages of the same recvmsg, such as
	// SCM_TIMESTAMPING.
	Others []ControlMessage
}

// Zerocopy tells a zero-copy notification from the other entries of the error
// queue, as applications do: by origin, and errno 0.
func (n Notification) Zerocopy() bool { return n.Origin == OriginZerocopy && n.Errno == 0 }

// Count is the number of sends the entry is about; 0 for a range that runs
// backwards.
func (n Notification) Count() int {
	if n.High < n.Low {
		return 0
	}
	return int(n.High-n.Low) + 1
}

// String shows the entry as failure messages print it: "[3,5] copied".
func (n Notification) String() string {
	if !n.Zerocopy() {
		return fmt.Sprintf("origin %d errno %d type %d code %d info %d data %d",
			n.Origin, n.Errno, n.Type, n.Code, n.Low, n.High)
	}
	how := "zero copy"
	if n.Copied {
		how = "copied"
	}
	return fmt.Sprintf("[%d,%d] %s", n.Low, n.High, how)
}

// OnlyZerocopy returns the zero-copy notifications among entries, in order.
func OnlyZerocopy(entries []Notification) []Notification {
	var out []Notification
	for _, entry := range entries {
		if entry.Zerocopy() {
			out = append(out, entry)
		}
	}
	return out
}

// EnableZerocopy sets SO_ZEROCOPY. Without it the kernel ignores MSG_ZEROCOPY.
func EnableZerocopy(fd int, on bool) error {
	value := 0
	if on {
		value = 1
	}
	return sys.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ZEROCOPY, value)
}
