// SPDX-License-Identifier: BSD-3-Clause

package trace

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// What a case does with an io_uring goes through memory that it shares with the
// kernel. These stand in the record beside io_uring_setup and io_uring_enter.
const (
	// Request is one that the next io_uring_enter submits. In has the name, the
	// control buffer and the buffers of its message.
	Request = "io_uring request"
	// Wait takes a completion, and waits for it as many milliseconds as
	// Arguments[1] of the ring Arguments[0]. The error is ETIME if none came. Out
	// has the control buffer of the request.
	Wait = "io_uring wait"
)

// The arguments of a Request.
const (
	RequestRing         = iota // descriptor
	RequestFD                  // of what it is about
	RequestOperation           // IORING_OP_*
	RequestUserData            // which its completions have, too
	RequestFlags               // IOSQE_*
	RequestPriority            // IORING_RECVSEND_* for sends
	RequestMessageFlags        // MSG_*
	RequestHeaderFlags         // msg_flags of its msghdr
	RequestAddress             // of the msghdr or the data, or user data
	RequestArguments           // their number
)

// The outcome of a Wait.
const (
	CompletionUserData = iota
	CompletionResult   // of the system call, or a negative errno
	CompletionFlags    // IORING_CQE_F_*
	CompletionValues   // their number
)

var (
	operations      = []flagName{{0, "IORING_OP_NOP"}, {9, "IORING_OP_SENDMSG"}, {14, "IORING_OP_ASYNC_CANCEL"}, {47, "IORING_OP_SEND_ZC"}, {48, "IORING_OP_SENDMSG_ZC"}}
	requestFlags    = []flagName{{1 << 0, "IOSQE_FIXED_FILE"}, {1 << 1, "IOSQE_IO_DRAIN"}, {1 << 2, "IOSQE_IO_LINK"}, {1 << 3, "IOSQE_IO_HARDLINK"}, {1 << 4, "IOSQE_ASYNC"}}
	completionFlags = []flagName{{1 << 1, "IORING_CQE_F_MORE"}, {1 << 3, "IORING_CQE_F_NOTIF"}}
)

// Operation names an operation of io_uring.
func Operation(value int64) string { return one(value, operations) }

// RequestFlagNames names the flags of a request.
func RequestFlagNames(value int64) string { return bits(value, requestFlags) }

func (s Style) request(c *Call) []string {
	a := c.Argument
	list := []string{fmt.Sprint(a(RequestRing)), fmt.Sprint("number ", a(RequestUserData)), Operation(a(RequestOperation))}
	if a(RequestOperation) != 0 {
		list = append(list, fmt.Sprint(a(RequestFD)))
	}
	if len(c.In) > 2 {
		list = append(list, s.message(c), MessageFlags(a(RequestMessageFlags)))
	}
	if flags := a(RequestFlags); flags != 0 {
		list = append(list, RequestFlagNames(flags))
	}
	return list
}

func (s Style) completion(c *Call) string {
	if c.Errno != 0 || len(c.Outcome) < CompletionValues {
		return "nothing"
	}
	text := fmt.Sprint(c.Outcome[CompletionResult])
	if result := c.Outcome[CompletionResult]; result < 0 && result > -4096 {
		if name := unix.ErrnoName(unix.Errno(-result)); name != "" {
			text = "-" + name
		}
	}
	more := []string{fmt.Sprint("number ", c.Outcome[CompletionUserData])}
	if flags := c.Outcome[CompletionFlags]; flags != 0 {
		more = append(more, bits(flags, completionFlags))
	}
	if len(c.Out) > 0 && c.Out[0].Length > 0 {
		more = append(more, "control=["+s.control(c, c.Out[0].Bytes, false)+"]")
	}
	return text + " (" + strings.Join(more, ", ") + ")"
}
