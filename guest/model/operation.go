// SPDX-License-Identifier: BSD-3-Clause

// Package model is a small model of a zero-copy sender and its error queue (R02),
// and the search for a sequence of operations on which a kernel departs from it.
//
// The model knows what a socket may show after each operation: which sends have
// taken ids, which notifications cannot be there yet, which must be there, and in
// what order they come by either way of reading. What the kernel is free to do,
// such as how far it merges notifications, the model leaves open. It neither
// sends nor receives; a [Socket] does, the kernel's in a case and an imitation of
// one with a known fault in the tests of this package.
//
// A sequence that fails is shrunk to one that still fails, be it by another rule,
// and from which no operation can be left out.
package model

import (
	"fmt"
	"strings"
)

// Kind is what an operation does.
type Kind string

// The kinds of operations.
const (
	// Send makes one sendmsg call, without waiting, of Size bytes.
	Send Kind = "send"
	// Stamp makes a copied send that asks for a timestamp. The timestamp is an
	// entry of the error queue that no notification may merge across.
	Stamp Kind = "stamp"
	// Read takes Count entries off the error queue, all there are for 0.
	Read Kind = "read"
	// Hold makes the device keep the buffers of what is sent from now on.
	Hold Kind = "hold"
	// Release makes it give back the buffers of the oldest Count frames.
	Release Kind = "release"
	// Unhold makes it give back all, and those to come at once.
	Unhold Kind = "unhold"
	// Withhold keeps the peer's acknowledgements from the sender.
	Withhold Kind = "withhold"
	// Acknowledge lets them through again.
	Acknowledge Kind = "acknowledge"
	// Uncork sends what MSG_MORE has kept back.
	Uncork Kind = "uncork"
	// Shutdown shuts the sender's own direction down.
	Shutdown Kind = "shutdown"
	// PeerClose closes the receiver's socket.
	PeerClose Kind = "peer-close"
)

// Fault is memory of a send that the process may not use as the call would have
// to.
type Fault string

// The faults.
const (
	NoFault Fault = ""
	// BadData leaves the last page of the data unmapped.
	BadData Fault = "data"
	// BadControl makes the control buffer read-only.
	BadControl Fault = "control"
)

// Operation is one step of a sequence.
type Operation struct {
	Kind Kind
	// Size is the bytes of a Send, 0 or more.
	Size int
	// Zerocopy and More are MSG_ZEROCOPY and MSG_MORE of a Send.
	Zerocopy, More bool
	// Request is how many notifications a Send asks for by SCM_ZC_NOTIFICATION;
	// it carries no such control message for 0.
	Request int
	// Fault is the memory fault of a Send.
	Fault Fault
	// Count is the number of entries to Read, of frames to Release.
	Count int
}

// String is the operation as a line of a failure message.
func (o Operation) String() string {
	switch o.Kind {
	case Send:
		return o.send()
	case Stamp:
		return "send a byte, copied, and ask for its timestamp"
	case Read:
		if o.Count == 0 {
			return "read the error queue until it is empty"
		}
		return fmt.Sprintf("read the error queue, %d at most", o.Count)
	case Hold:
		return "the device keeps the buffers of what is sent from now on"
	case Release:
		return fmt.Sprintf("the device gives back the oldest %d", o.Count)
	case Unhold:
		return "the device gives all buffers back"
	case Withhold:
		return "acknowledgements are withheld from now on"
	case Acknowledge:
		return "acknowledgements get through"
	case Uncork:
		return "send what MSG_MORE has kept back"
	case Shutdown:
		return "shutdown(SHUT_WR)"
	case PeerClose:
		return "the peer closes its socket"
	}
	return string(o.Kind)
}

func (o Operation) send() string {
	parts := []string{fmt.Sprintf("send %d bytes", o.Size)}
	if o.Zerocopy {
		parts = append(parts, "MSG_ZEROCOPY")
	}
	if o.More {
		parts = append(parts, "MSG_MORE")
	}
	if o.Request > 0 {
		parts = append(parts, fmt.Sprintf("SCM_ZC_NOTIFICATION with room for %d", o.Request))
	}
	switch o.Fault {
	case BadData:
		parts = append(parts, "the last page of the data unmapped")
	case BadControl:
		parts = append(parts, "the control buffer read-only")
	}
	return strings.Join(parts, ", ")
}
