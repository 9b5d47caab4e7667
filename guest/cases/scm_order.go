// SPDX-License-Identifier: BSD-3-Clause

package cases

import (
	"bytes"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/zcvet/zcvet/guest/notify"
)

// expectInOrder reads the whole error queue and fails the case unless it holds
// what Fill put there, in that order. It ends the case.
func (q *Queue) expectInOrder(entries int, why string) {
	q.t.Helper()
	want := ""
	for id := range entries {
		if id > 0 {
			want += " timestamp "
		}
		want += fmt.Sprintf("[%d,%d]", id, id)
	}
	got := ""
	for i, entry := range q.Sender.Drain() {
		if i > 0 {
			got += " "
		}
		if entry.Zerocopy() {
			got += fmt.Sprintf("[%d,%d]", entry.Low, entry.High)
		} else {
			got += "timestamp"
		}
	}
	if got != want {
		q.t.Errorf("the error queue was %q before the call and is %q after it: %s", want, got, why)
	}
}

var _ = add(Case{
	Name:   "scm/failed-send-keeps-order",
	Doc:    "after a send that fails the error queue is as it was, entry by entry",
	Covers: []string{"N10", "N01", "N05"},
	Axes:   CopiedAndNot,
	Needs:  scm,
}, func(t *T) {
	queue := t.NewQueue()
	queue.Fill(3)
	memory := t.Memory(1)
	t.Check(memory.Protect(0, 1, notify.NoAccess), "take away access")
	control := t.Profile().Encode(2)
	before := bytes.Clone(control)
	_, err := notify.Send(queue.Sender.FD, &notify.Message{Buffers: [][]byte{memory.Bytes()[:100]}, Control: control})
	if !errors.Is(err, unix.EFAULT) {
		t.Fatalf("the send was to fail with EFAULT, came %v", err)
	}
	if !bytes.Equal(control, before) {
		t.Skipf("this kernel answers a send that fails, so something left the queue")
	}
	queue.expectInOrder(3, "what was put back has to go where it was, whoever reads timestamps and notifications relies on their order")
})

var _ = add(Case{
	Name:   "scm/fault-keeps-order",
	Doc:    "after an answer that could not be written the error queue is as it was, entry by entry",
	Covers: []string{"N11", "N01", "N05"},
	Axes:   CopiedAndNot,
	Needs:  scm,
}, func(t *T) {
	queue := t.NewQueue()
	queue.Fill(3)
	memory := t.Memory(1)
	encoded := t.Profile().Encode(4)
	control := memory.Bytes()[:copy(memory.Bytes(), encoded)]
	prepared := (&notify.Message{Buffers: [][]byte{queue.data}, Control: control, Flags: unix.MSG_NOSIGNAL}).Prepare()
	t.Check(memory.Protect(0, 1, notify.ReadOnly), "take away write access")
	_, err := prepared.Send(queue.Sender.FD)
	if err == nil {
		queue.Receiver.MustReceive(queue.data)
		queue.Receiver.Acknowledge()
	}
	queue.expectInOrder(3, "nothing can have been returned, so everything has to be where it was")
})

var _ = add(Case{
	Name:   "scm/memory-is-returned",
	Doc:    "any number of requests leaves the option memory of the socket as it was",
	Covers: []string{"Z60", "N01"},
	Axes:   CopiedAndNot,
	Needs:  scm,
}, func(t *T) {
	queue := t.NewQueue()
	profile := t.Profile()
	// Each notification and each large control buffer is charged to it.
	limitOptmem(t, tightOptmem)
	var ledger notify.Ledger
	for range mostSends {
		queue.Send()
		ledger.Add(queue.Carry(most(profile), 0)...)
	}
	queue.Finish(&ledger)
})
