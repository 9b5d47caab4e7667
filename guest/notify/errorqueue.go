// SPDX-License-Identifier: BSD-3-Clause

package notify

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/zcvet/zcvet/guest/sys"
)

const (
	// sizeofExtendedError is the size of struct sock_extended_err. Without an
	// offender's address behind it, nothing more is needed.
	sizeofExtendedError = 16
	// entryControl is room for everything an error queue entry brings: three
	// timestamps, the error and the offender's address, packet information.
	entryControl = 512
	// entryPayload is room for the packet that a timestamp or a network error
	// brings back, at most so much of it.
	entryPayload = 2048
	// solVsock and vsockRecverr are SOL_VSOCK and VSOCK_RECVERR
	// (uapi/linux/vm_sockets.h).
	solVsock     = 287
	vsockRecverr = 1
)

// ErrTruncated is returned for an entry whose control messages did not fit; it
// is off the queue and what it said is lost.
var ErrTruncated = errors.New("error queue entry truncated (MSG_CTRUNC)")

// Next takes one entry off the error queue. On an empty queue the error is
// unix.EAGAIN, on a blocking socket too.
func Next(fd int) (Notification, error) {
	m := Message{
		Buffers: [][]byte{make([]byte, entryPayload)},
		Control: make([]byte, entryControl),
		Flags:   unix.MSG_ERRQUEUE,
	}
	count, err := Receive(fd, &m)
	if err != nil {
		return Notification{}, err
	}
	entry, err := ParseEntry(m.Control[:m.After.Controllen], int(m.After.Flags))
	entry.Payload = m.Buffers[0][:count]
	return entry, err
}

// Drain takes every entry off the error queue, whatever it is about. It returns
// what it has read along with an error.
func Drain(fd int) ([]Notification, error) {
	var entries []Notification
	for {
		entry, err := Next(fd)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return entries, nil
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return entries, fmt.Errorf("read error queue: %w", err)
		}
		entries = append(entries, entry)
	}
}

// ParseEntry reads the control messages of one error queue entry. Flags is
// msg_flags after the call. An entry without sock_extended_err, which no socket
// of this suite produces, is an error.
func ParseEntry(control []byte, flags int) (Notification, error) {
	entry := Notification{Way: ErrorQueue, MessageFlags: flags}
	messages, err := ParseControl(control)
	if err != nil {
		return entry, err
	}
	found := false
	for _, message := range messages {
		if !carriesError(message) {
			entry.Others = append(entry.Others, message)
			continue
		}
		if found {
			return entry, fmt.Errorf("%w: two extended errors in one entry", ErrControl)
		}
		if len(message.Data) < sizeofExtendedError {
			return entry, fmt.Errorf("%w: extended error of %d bytes", ErrControl, len(message.Data))
		}
		found = true
		entry.Level, entry.CmsgType = message.Level, message.Type
		entry.Errno = binary.NativeEndian.Uint32(message.Data)
		entry.Origin, entry.Type, entry.Code = message.Data[4], message.Data[5], message.Data[6]
		entry.Low = binary.NativeEndian.Uint32(message.Data[8:])
		entry.High = binary.NativeEndian.Uint32(message.Data[12:])
		entry.Copied = entry.Zerocopy() && entry.Code&CodeCopied != 0
	}
	if flags&unix.MSG_CTRUNC != 0 {
		return entry, ErrTruncated
	}
	if !found {
		return entry, fmt.Errorf("%w: entry without an extended error", ErrControl)
	}
	return entry, nil
}

func carriesError(message ControlMessage) bool {
	switch message.Level {
	case unix.SOL_IP:
		return message.Type == unix.IP_RECVERR
	case unix.SOL_IPV6:
		return message.Type == unix.IPV6_RECVERR
	case solVsock:
		return message.Type == vsockRecverr
	}
	return false
}

// ErrNotWoken is returned when poll slept for all the time it was given and only
// then found that the error queue has an entry: nobody woke it.
var ErrNotWoken = errors.New("a notification came without waking poll")

// Pending tells whether poll reports POLLERR now, which it does while the error
// queue holds an entry.
func Pending(fd int) (bool, error) { return Wait(fd, 0) }

// Wait waits until poll reports POLLERR, at most for so long, and tells whether
// it did. The error is ErrNotWoken if it did so at the end of its time only.
func Wait(fd int, patience time.Duration) (bool, error) {
	deadline := time.Now().Add(patience)
	for {
		left := max(time.Until(deadline), 0)
		polled := []unix.PollFd{{Fd: int32(fd)}}
		// Rounded up, or the last millisecond would be spent spinning.
		limit := (left + time.Millisecond - 1).Truncate(time.Millisecond)
		began := time.Now()
		_, err := sys.Poll(polled, int(limit/time.Millisecond))
		if err != nil && !errors.Is(err, unix.EINTR) {
			return false, fmt.Errorf("poll: %w", err)
		}
		if polled[0].Revents&unix.POLLERR != 0 {
			// The kernel looks once more when the time is over.
			if limit > 0 && time.Since(began) >= limit {
				return true, fmt.Errorf("%w in %v", ErrNotWoken, limit)
			}
			return true, nil
		}
		if polled[0].Revents&unix.POLLNVAL != 0 {
			return false, fmt.Errorf("poll: %w", unix.EBADF)
		}
		if left == 0 {
			return false, nil
		}
		if polled[0].Revents&unix.POLLHUP != 0 {
			// A hung-up socket is always ready, yet late entries still come.
			time.Sleep(time.Millisecond)
		}
	}
}

// Collect reads the error queue into ledger until the notifications of sends
// have arrived, at most for so long. It is no error if they did not: that is for
// [Ledger.Check] to say. Entries that are no zero-copy notifications are
// returned.
func Collect(fd int, ledger *Ledger, sends int, patience time.Duration) ([]Notification, error) {
	return CollectUntil(fd, ledger, func() bool { return ledger.Covered() >= sends }, patience)
}

// CollectUntil is Collect for another idea of what is enough.
func CollectUntil(fd int, ledger *Ledger, enough func() bool, patience time.Duration) ([]Notification, error) {
	var others []Notification
	deadline := time.Now().Add(patience)
	for {
		entries, err := Drain(fd)
		for _, entry := range entries {
			if entry.Zerocopy() {
				ledger.Add(entry)
			} else {
				others = append(others, entry)
			}
		}
		if err != nil {
			return others, err
		}
		left := time.Until(deadline)
		if enough() || left <= 0 {
			return others, nil
		}
		if _, err := Wait(fd, left); err != nil {
			return others, err
		}
	}
}
