// SPDX-License-Identifier: BSD-3-Clause

package cases

import (
	"errors"
	"fmt"

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
	t.Check(changeSysctl(t, SenderEnd, "net/core/optmem_max", fmt.Sprint(bytes)), "set optmem_max")
}

var _ = add(Case{
	Name:   "limits/optmem-in-flight",
	Doc:    "with optmem_max used up by sends in flight a send is refused with ENOBUFS, takes no id, and works again when they are done",
	Covers: []string{"Z60", "Z11"},
	Axes:   OnNIC,
}, func(t *T) {
	t.resendLate()
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
// ENOBUFS, and returns how many were not. It ends the case when none is. Each send
// has arrived before the next one: what a stream has not yet sent goes into one
// segment, which is charged once.
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
			queue.Edges.Wait("the notification of a zero-copy send")
			queue.Separate() // or it would merge with the next one
		}
		queue.Finish(&ledger)
	}
})

var _ = add(Case{
	Name:   "limits/optmem-with-nothing-outstanding",
	Doc:    "a send refused with ENOBUFS while nothing is outstanding is refused at once, raises no EPOLLERR, and works when there is memory again",
	Covers: []string{"Z60", "Z11"},
	Axes:   Everywhere,
}, func(t *T) {
	pair := t.Pair(noDelay)
	_, wait := epollOn(t, pair.Sender, unix.EPOLLET)
	data := t.Payload(1000, 1)
	for range 2 {
		// A blocking send, which has nothing to wait for.
		err := withoutOptmem(t, func() error {
			_, err := pair.Sender.Send(data, unix.MSG_ZEROCOPY)
			return err
		})
		if !errors.Is(err, unix.ENOBUFS) {
			t.Fatalf("without memory for notifications ENOBUFS was expected, came %v", err)
		}
		if got := wait(0); got != 0 {
			t.Errorf("epoll reports %#x for a send that was refused: there is nothing to read", got)
		}
		pair.Sender.ExpectNothing("no send was taken")
	}
	pair.Sender.MustSend(data, unix.MSG_ZEROCOPY)
	pair.Receiver.MustReceive(data)
	pair.Sender.Collect(1)
})

var _ = add(Case{
	Name:   "limits/memlock",
	Doc:    "without CAP_IPC_LOCK RLIMIT_MEMLOCK bounds the pinned pages: ENOBUFS beyond it, and all of it is free again after the notification",
	Covers: []string{"Z61", "Z11"},
	Axes:   Everywhere,
}, func(t *T) {
	pair := t.Pair(noDelay)
	data := t.Payload(1000, 1)
	dropCapability(t, unix.CAP_IPC_LOCK)
	limitMemlock(t, leastMemlock(t, pair, data))
	ledger := new(notify.Ledger)
	// The limit is what a single send takes, so nothing may stay charged.
	for sends := 1; sends <= 8; sends++ {
		pair.Receiver.MustReceive(data)
		pair.Sender.CollectInto(ledger, sends)
		if _, err := pair.Sender.Send(data, unix.MSG_ZEROCOPY); err != nil {
			t.Fatalf("send %d with nothing outstanding: %v; pages of notified sends stay charged", sends, err)
		}
	}
	pair.Receiver.MustReceive(data)
	pair.Sender.CollectInto(ledger, 9)
})

// leastMemlock makes a zero-copy send with ever more RLIMIT_MEMLOCK until one is
// taken, and returns that limit in bytes. It ends the case.
func leastMemlock(t *T, pair *Pair, data []byte) int {
	t.Helper()
	for pages := range 16 {
		limitMemlock(t, pages*notify.PageSize)
		_, err := pair.Sender.Send(data, unix.MSG_ZEROCOPY)
		switch {
		case err == nil && pages == 0:
			t.Fatalf("with RLIMIT_MEMLOCK at 0 a send was taken: an unprivileged process can pin memory without bound")
		case err == nil:
			return pages * notify.PageSize
		case !errors.Is(err, unix.ENOBUFS):
			t.Fatalf("with RLIMIT_MEMLOCK at %d pages ENOBUFS was expected, came %v", pages, err)
		}
	}
	t.Fatalf("a send of %d bytes is refused with 15 pages of RLIMIT_MEMLOCK", len(data))
	return 0
}

var _ = add(Case{
	Name:   "limits/memlock-in-flight",
	Doc:    "pages stay charged while the device has them, and are uncharged too when the socket is closed meanwhile",
	Covers: []string{"Z61", "Z37", "Z11"},
	Axes:   OnNIC,
}, func(t *T) {
	pair := t.Pair(noDelay)
	data := t.Payload(1000, 1)
	dropCapability(t, unix.CAP_IPC_LOCK)
	t.NIC().Hold(true)
	limitMemlock(t, leastMemlock(t, pair, data))
	pair.Receiver.MustReceive(data)
	pair.Sender.AwaitAcknowledged()
	other := t.Pair(noDelay)
	for _, socket := range []*Socket{pair.Sender, other.Sender} {
		if _, err := socket.Send(data, unix.MSG_ZEROCOPY); !errors.Is(err, unix.ENOBUFS) {
			t.Errorf("while the device has the pages of another send ENOBUFS was expected, came %v", err)
		}
	}
	if t.Failed() {
		return
	}
	pair.Sender.Close()
	t.NIC().Hold(false)
	t.Eventually("the pages of the closed socket's send are uncharged", func() bool {
		_, err := other.Sender.Send(data, unix.MSG_ZEROCOPY)
		if err != nil && !errors.Is(err, unix.ENOBUFS) {
			t.Check(err, "send on another socket")
		}
		return err == nil
	})
	other.Receiver.MustReceive(data)
	other.Sender.Collect(1)
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
