// SPDX-License-Identifier: BSD-3-Clause

package cases

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/zcvet/zcvet/guest/nic"
	"github.com/zcvet/zcvet/guest/notify"
	"github.com/zcvet/zcvet/guest/sys"
)

const optmemMax = "/proc/sys/net/core/optmem_max"

// tightOptmem leaves room for a few notifications: each is charged the size of
// an empty socket buffer, some 600 to 1300 bytes.
const tightOptmem = 4096

// mostSends is more sends than tightOptmem has room for, by far.
const mostSends = 64

// limitOptmem sets net.core.optmem_max for the case. It ends the case.
func limitOptmem(t *T, bytes int) {
	t.Helper()
	before, err := os.ReadFile(optmemMax)
	t.Check(err, "read optmem_max")
	t.Check(sys.WriteFile(optmemMax, fmt.Appendf(nil, "%d", bytes)), "lower optmem_max")
	t.Cleanup(func() {
		if err := sys.WriteFile(optmemMax, []byte(strings.TrimSpace(string(before)))); err != nil {
			t.Errorf("restore optmem_max: %v", err)
		}
	})
}

var _ = add(Case{
	Name:   "limits/optmem-in-flight",
	Doc:    "with optmem_max used up by sends in flight a send is refused with ENOBUFS, takes no id, and works again when they are done",
	Covers: []string{"Z60", "Z11"},
	Axes:   OnNIC,
}, func(t *T) {
	pair := t.Pair(noDelay)
	limitOptmem(t, tightOptmem)
	release := withholdCompletions(t)

	sends := sendUntilRefused(t, pair)
	if sends == 0 {
		t.Fatalf("the first send was refused with nothing outstanding: an application that waits for a notification would wait for ever")
	}
	release()
	pair.Sender.Collect(sends)

	data := t.Payload(32, 1)
	if _, err := pair.Sender.Send(data, unix.MSG_ZEROCOPY); err != nil {
		t.Fatalf("everything is notified and read, yet the next send is refused: %v; the application has nothing left to wait for", err)
	}
	var ledger notify.Ledger
	if _, err := notify.Collect(pair.Sender.FD, &ledger, 1, t.Patience()); err != nil {
		t.Fatalf("read the error queue: %v", err)
	}
	expectRanges(t, ledger.Entries(), fmt.Sprintf("[%d,%d]", sends, sends), "a refused send takes no id")
})

// withholdCompletions keeps the sends of the case from being notified until the
// returned function is called: datagrams by keeping their buffers in the device,
// segments by keeping back the acknowledgements.
func withholdCompletions(t *T) (release func()) {
	t.Helper()
	if t.Proto == UDP {
		t.NIC().Hold(true)
		return func() { t.NIC().Hold(false) }
	}
	rule := t.NIC().AddRule(nic.Rule{Port: t.NIC().Receiver, Match: nic.TCPAck, Action: nic.Withhold})
	return func() { t.NIC().RemoveRule(rule) }
}

// sendUntilRefused makes small zero-copy sends until one is refused with
// ENOBUFS, and returns how many were not. It ends the case when none is.
func sendUntilRefused(t *T, pair *Pair) int {
	t.Helper()
	for sends := range mostSends {
		data := t.Payload(32, byte(sends))
		_, err := pair.Sender.Send(data, unix.MSG_ZEROCOPY|unix.MSG_DONTWAIT)
		if errors.Is(err, unix.ENOBUFS) {
			return sends
		}
		t.Check(err, fmt.Sprintf("send %d", sends))
		pair.Receiver.MustReceive(data)
	}
	t.Fatalf("%d sends are outstanding with optmem_max at %d, none was refused: the limit does not hold", mostSends, tightOptmem)
	return 0
}

var _ = add(Case{
	Name:   "limits/optmem-unread",
	Doc:    "with optmem_max used up by unread notifications a send is refused with ENOBUFS and works again after draining",
	Covers: []string{"Z60", "Z11"},
	Axes:   Everywhere,
}, func(t *T) {
	queue := t.NewQueue()
	limitOptmem(t, tightOptmem)
	var ledger notify.Ledger
	for round := range 2 {
		for fresh := 0; ; fresh++ {
			if fresh == mostSends {
				t.Fatalf("%d notifications are unread with optmem_max at %d, no send was refused: the limit does not hold", mostSends, tightOptmem)
			}
			_, err := queue.Sender.Send(queue.data, unix.MSG_ZEROCOPY)
			if errors.Is(err, unix.ENOBUFS) {
				if fresh == 0 {
					t.Fatalf("round %d: refused with nothing outstanding: an application that waits for a notification would wait for ever", round)
				}
				break
			}
			t.Check(err, "zerocopy send")
			queue.Sends++
			queue.Receiver.MustReceive(queue.data)
			queue.Receiver.Acknowledge()
			queue.Edges.Wait("the notification of a zero-copy send")
			queue.Separate() // or it would merge with the next one
		}
		queue.Finish(&ledger)
	}
})

var _ = add(Case{
	Name:   "limits/memlock",
	Doc:    "without CAP_IPC_LOCK RLIMIT_MEMLOCK bounds the pinned pages: ENOBUFS beyond it, and all of it is free again after the notification",
	Covers: []string{"Z61", "Z11"},
	Axes:   Everywhere,
}, func(t *T) {
	pair := t.Pair(noDelay)
	data := t.Payload(1000, 1)
	const capability = unix.CAP_IPC_LOCK
	dropCapability(t, capability)

	limitMemlock(t, 0)
	if _, err := pair.Sender.Send(data, unix.MSG_ZEROCOPY); !errors.Is(err, unix.ENOBUFS) {
		t.Fatalf("with RLIMIT_MEMLOCK at 0 ENOBUFS was expected, came %v: an unprivileged process could pin memory without bound", err)
	}
	// A send of less than a page is charged the size in pages, plus 2.
	limitMemlock(t, 4*notify.PageSize)
	var ledger notify.Ledger
	for sends := range 8 {
		if _, err := pair.Sender.Send(data, unix.MSG_ZEROCOPY); err != nil {
			t.Fatalf("send %d with nothing outstanding: %v; pages of notified sends stay charged", sends, err)
		}
		pair.Receiver.MustReceive(data)
		pair.Receiver.Acknowledge()
		pair.Sender.CollectInto(&ledger, sends+1)
	}
})

// dropCapability takes a capability from the case's thread, which ends with the
// case. It ends the case.
func dropCapability(t *T, capability int) {
	t.Helper()
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	t.Check(unix.Capget(&header, &data[0]), "capget")
	data[capability/32].Effective &^= 1 << (capability % 32)
	t.Check(sys.Capset(&header, &data), "capset")
}

// limitMemlock sets the soft RLIMIT_MEMLOCK of the process for the case. It ends
// the case.
func limitMemlock(t *T, bytes int) {
	t.Helper()
	var before unix.Rlimit
	t.Check(unix.Getrlimit(unix.RLIMIT_MEMLOCK, &before), "RLIMIT_MEMLOCK")
	t.Check(sys.Setrlimit(unix.RLIMIT_MEMLOCK, &unix.Rlimit{Cur: uint64(bytes), Max: before.Max}), "RLIMIT_MEMLOCK")
	t.Cleanup(func() {
		if err := sys.Setrlimit(unix.RLIMIT_MEMLOCK, &before); err != nil {
			t.Errorf("restore RLIMIT_MEMLOCK: %v", err)
		}
	})
}
