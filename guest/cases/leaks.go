// SPDX-License-Identifier: BSD-3-Clause

package cases

import (
	"fmt"
	"slices"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/zcvet/zcvet/guest/leak"
	"github.com/zcvet/zcvet/guest/network"
	"github.com/zcvet/zcvet/guest/notify"
	"github.com/zcvet/zcvet/guest/sys"
)

// leakyPatience is how long a process waits for the leftovers of a case, at a
// TimeScale of 1, once it has met a leak.
const leakyPatience = 200 * time.Millisecond

// OpenCounters opens the counters for Environment.Counters. Their descriptors
// stay open as long as the process lives.
func OpenCounters(laid *network.Network) *leak.Counters {
	return leak.Open(map[string]*network.Namespace{"sender": laid.Sender, "receiver": laid.Receiver})
}

// countLeaks reads the counters before a case.
func (t *T) countLeaks() leak.Count {
	if t.environment.Counters == nil {
		return leak.Count{}
	}
	before, err := t.environment.Counters.Take(t.countsPins())
	if err != nil {
		t.Errorf("count what there is before the case: %v", err)
	}
	return before
}

// countsPins tells whether the case is one that could pin pages: MSG_ZEROCOPY does
// not, in any kernel so far, which cases of Z64 look at, but io_uring does.
func (t *T) countsPins() bool {
	return slices.Contains(t.Case.Needs, FeatureIOURing) || slices.Contains(t.Case.Covers, "Z64")
}

// watchPages makes the end of the case wait until nobody holds the pages any
// more.
func (t *T) watchPages(memory *notify.Memory) {
	if !t.environment.countsPages() {
		return
	}
	frames, err := t.environment.Counters.Frames(memory)
	if err != nil {
		t.Errorf("find out which pages the case has: %v", err)
		return
	}
	t.lock.Lock()
	defer t.lock.Unlock()
	t.pages = append(t.pages, frames...)
}

// expectNoLeaks fails the case unless everything is as before, which may take a
// moment: processors free memory and sockets when they get to it.
func (t *T) expectNoLeaks(before leak.Count) {
	if sweep := t.environment.Sweep; sweep != nil {
		if err := sweep(); err != nil {
			t.Errorf("close what the case left open: %v", err)
		}
	}
	if t.environment.Counters == nil {
		return
	}
	patience := t.Patience()
	if t.environment.leaky || t.Case.Leaks != "" {
		patience = min(patience, time.Duration(float64(leakyPatience)*max(t.Parameters.TimeScale, 1)))
	}
	deadline := time.Now().Add(patience)
	for pause := 20 * time.Microsecond; ; pause = min(2*pause, 5*time.Millisecond) {
		left, err := t.leftovers(before)
		if err != nil {
			t.Errorf("count what there is after the case: %v", err)
			return
		}
		if len(left) == 0 {
			return
		}
		if time.Now().After(deadline) {
			message := fmt.Sprintf("left behind %v after the case: %s", patience, strings.Join(left, "; "))
			if t.Case.Leaks != "" {
				t.Logf("%s; it is meant to: %s", message, t.Case.Leaks)
				return
			}
			t.environment.leaky = true
			sys.Beyond("what the kernel still holds once the sockets are closed, which zcvet counts from outside")
			t.Errorf("%s; what is never freed is memory lost until the machine restarts", message)
			return
		}
		time.Sleep(pause)
	}
}

// leftovers lists what there is more of than before the case.
func (t *T) leftovers(before leak.Count) ([]string, error) {
	now, err := t.environment.Counters.Take(t.countsPins())
	if err != nil {
		return nil, err
	}
	left := now.Since(before)
	held, err := t.heldPages()
	if err != nil {
		return nil, err
	}
	if held > 0 {
		left = append(left, fmt.Sprintf("%d of the case's %d pages are unmapped and not free", held, len(t.pages)))
	}
	return left, nil
}

// expectHeld fails the case unless somebody holds pages of the case that are
// unmapped. It shows that the end of the case would see it.
func (t *T) expectHeld(why string) {
	t.Helper()
	held, err := t.heldPages()
	t.Check(err, "look at the pages")
	if held == 0 && t.environment.countsPages() {
		sys.Beyond("who holds the pages of a send (/proc/kpagecount)")
		t.Errorf("nobody holds the pages of the send any more: %s", why)
	}
}

// expectReleased fails the case unless nobody holds unmapped pages of the case,
// which may take a moment.
func (t *T) expectReleased(why string) {
	t.Helper()
	t.Eventually("the pages of the send are free: "+why, func() bool {
		held, err := t.heldPages()
		t.Check(err, "look at the pages")
		return held == 0
	})
}

// heldPages counts the pages of the case that are unmapped and not free.
func (t *T) heldPages() (int, error) {
	if !t.environment.countsPages() {
		return 0, nil
	}
	held, err := t.environment.Counters.Held(t.pages)
	if err == nil && len(held) > 0 {
		// They may only be waiting in the batch of a processor.
		if err = leak.FlushBatches(); err == nil {
			held, err = t.environment.Counters.Held(t.pages)
		}
	}
	return len(held), err
}

func (e *Environment) countsPages() bool {
	return e.Counters != nil && e.Counters.Missing(leak.Pages) == nil
}

// memory is what a socket is charged for, in bytes.
type memory struct {
	receive int // unread data, and the entries of the error queue
	send    int // data that the device or the peer still needs
	option  int // notifications, those to come and those in the error queue
}

// chargedMemory is what no recorded call shows.
const chargedMemory = "the memory that a socket is charged for (SO_MEMINFO)"

// memory asks the kernel by SO_MEMINFO, which answers with an array of 32-bit
// numbers (uapi/linux/sock_diag.h).
func (s *Socket) memory() (memory, error) {
	const (
		receive = 0 // SK_MEMINFO_RMEM_ALLOC
		send    = 2 // SK_MEMINFO_WMEM_ALLOC
		option  = 6 // SK_MEMINFO_OPTMEM
	)
	var info [9]uint32
	size := uint32(unsafe.Sizeof(info))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(s.FD), unix.SOL_SOCKET, unix.SO_MEMINFO,
		uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return memory{}, errno
	}
	return memory{int(info[receive]), int(info[send]), int(info[option])}, nil
}

// expectSocketsEmpty fails a case that has passed unless every socket that it
// has still open gives back all memory, once the error queue is read and the peer
// has acknowledged everything.
func (t *T) expectSocketsEmpty() {
	if t.Failed() || t.Case.Leaks != "" {
		return
	}
	for _, socket := range t.sockets {
		if socket.FD >= 0 && (socket.kind == unix.SOCK_STREAM || socket.kind == unix.SOCK_DGRAM) &&
			(socket.domain == unix.AF_INET || socket.domain == unix.AF_INET6) {
			socket.expectEmpty()
		}
	}
}

func (s *Socket) expectEmpty() {
	if s.kind == unix.SOCK_DGRAM {
		// What is corked is not sent yet.
		for _, on := range []int{1, 0} {
			if err := sys.SetsockoptInt(s.FD, unix.IPPROTO_UDP, unix.UDP_CORK, on); err != nil {
				return // a socket of another protocol
			}
		}
	}
	deadline := time.Now().Add(s.t.Patience())
	for pause := 20 * time.Microsecond; ; pause = min(2*pause, 5*time.Millisecond) {
		if s.kind == unix.SOCK_STREAM {
			if unsent, err := unix.IoctlGetInt(s.FD, unix.TIOCOUTQ); err != nil || unsent > 0 {
				return // a listener, or a peer that has not got everything yet
			}
		}
		if _, err := notify.Drain(s.FD); err != nil {
			s.t.Errorf("drain the error queue after the case: %v", err)
			return
		}
		charged, err := s.memory()
		if err != nil {
			s.t.Errorf("SO_MEMINFO after the case: %v", err)
			return
		}
		if unread, err := unix.IoctlGetInt(s.FD, unix.TIOCINQ); err != nil || unread > 0 || s.received.Load() {
			charged.receive = 0 // data is uncharged in batches, so this tells nothing
		}
		if charged == (memory{}) {
			return
		}
		if time.Now().After(deadline) {
			sys.Beyond(chargedMemory)
			s.t.Errorf("a socket whose error queue is read and whose data is acknowledged is still charged %d bytes for sending, %d for notifications and %d for its queues: what is never uncharged blocks it in the end",
				charged.send, charged.option, charged.receive)
			return
		}
		time.Sleep(pause)
	}
}
