// SPDX-License-Identifier: BSD-3-Clause

package virtqueue_test

import (
	"encoding/binary"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/zcvet/zcvet/harness/vnet/memory"
	"github.com/zcvet/zcvet/harness/vnet/virtqueue"
)

// A queue of 8 descriptors at fixed places in 8 KiB of memory. Addresses of
// guest and front end differ, so that a mix-up is noticed.
const (
	size        = 8
	guestBase   = 0x10_0000
	userBase    = 0x7000_0000
	descriptors = 0x000
	available   = 0x100
	used        = 0x200
	tableAt     = 0x400
	length      = 0x2000
)

var layout = virtqueue.Layout{
	Descriptors: userBase + descriptors, Available: userBase + available, Used: userBase + used,
}

type driver struct {
	testing.TB
	bytes []byte
	queue *virtqueue.Queue
}

func newDriver(t testing.TB, next uint16) *driver {
	t.Helper()
	d := &driver{TB: t, bytes: make([]byte, length)}
	m, err := memory.FromBytes([]memory.Region{{Guest: guestBase, User: userBase}}, [][]byte{d.bytes})
	if err != nil {
		t.Fatal(err)
	}
	d.put16(available+2, next)
	d.put16(used+2, next)
	if d.queue, err = virtqueue.New(m, layout, size, next, true); err != nil {
		t.Fatal(err)
	}
	return d
}

func (d *driver) put16(at int, v uint16) { binary.LittleEndian.PutUint16(d.bytes[at:], v) }

func (d *driver) describe(at int, address uint64, length uint32, flags, next uint16) {
	binary.LittleEndian.PutUint64(d.bytes[at:], address)
	binary.LittleEndian.PutUint32(d.bytes[at+8:], length)
	d.put16(at+12, flags)
	d.put16(at+14, next)
}

func (d *driver) offer(head uint16) {
	index := binary.LittleEndian.Uint16(d.bytes[available+2:])
	d.put16(available+4+2*int(index%size), head)
	d.put16(available+2, index+1)
}

func (d *driver) next(chain *virtqueue.Chain) bool {
	d.Helper()
	ok, err := d.queue.Next(chain)
	if err != nil {
		d.Fatal(err)
	}
	return ok
}

func TestChainOfDirectAndIndirectDescriptors(t *testing.T) {
	d := newDriver(t, 0)
	d.describe(16*3, 0x1, 10, 1, 5) // readable, goes on at 5
	d.describe(16*5, guestBase+tableAt, 3*16, 4, 0)
	d.describe(tableAt, 0x2, 20, 1, 2)
	d.describe(tableAt+32, 0x3, 30, 1|2, 1)
	d.describe(tableAt+16, 0x4, 40, 2, 0)
	d.offer(3)
	var chain virtqueue.Chain
	if !d.next(&chain) {
		t.Fatal("no chain")
	}
	want := virtqueue.Chain{
		Head:           3,
		Readable:       []virtqueue.Segment{{Address: 1, Length: 10}, {Address: 2, Length: 20}},
		Writable:       []virtqueue.Segment{{Address: 3, Length: 30}, {Address: 4, Length: 40}},
		ReadableLength: 30, WritableLength: 70,
	}
	if diff := cmp.Diff(want, chain); diff != "" {
		t.Error(diff)
	}
	if d.next(&chain) {
		t.Error("a second chain")
	}
}

func TestIndicesWrapAround(t *testing.T) {
	d := newDriver(t, 0xfffd)
	var chain virtqueue.Chain
	for i := range uint16(6) {
		d.describe(16*int(i), guestBase, 1, 0, 0)
		d.offer(i)
		if !d.next(&chain) || chain.Head != i {
			t.Fatalf("chain %d is %d", i, chain.Head)
		}
		d.queue.Complete(i, uint32(i))
		if !d.queue.Publish() {
			t.Error("no interrupt wanted")
		}
	}
	if got := d.queue.Index(); got != 3 {
		t.Errorf("stopped at %d", got)
	}
	if got := binary.LittleEndian.Uint16(d.bytes[used+2:]); got != 3 {
		t.Errorf("used index %d", got)
	}
	// The last element went to slot 2.
	if got := binary.LittleEndian.Uint32(d.bytes[used+4+8*2:]); got != 5 {
		t.Errorf("slot 2 has chain %d", got)
	}
}

func TestNothingIsUsedBeforePublish(t *testing.T) {
	d := newDriver(t, 0)
	var chain virtqueue.Chain
	for i := range uint16(2) {
		d.offer(i)
		d.next(&chain)
	}
	if d.queue.Publish() {
		t.Error("an interrupt for nothing")
	}
	d.queue.Complete(1, 0)
	if got := binary.LittleEndian.Uint16(d.bytes[used+2:]); got != 0 {
		t.Errorf("used index %d before Publish", got)
	}
	d.put16(available, 1) // no interrupts, please
	if d.queue.Publish() {
		t.Error("an interrupt that nobody wants")
	}
	if got := binary.LittleEndian.Uint16(d.bytes[used+2:]); got != 1 {
		t.Errorf("used index %d after Publish", got)
	}
	if got := d.queue.InFlight(); got != 1 {
		t.Errorf("%d in flight", got)
	}
}

func TestRewind(t *testing.T) {
	d := newDriver(t, 0)
	var chain virtqueue.Chain
	d.offer(6)
	d.offer(7)
	d.next(&chain)
	d.next(&chain)
	d.queue.Rewind(2)
	if !d.next(&chain) || chain.Head != 6 || d.queue.InFlight() != 1 {
		t.Errorf("chain %d after Rewind, %d in flight", chain.Head, d.queue.InFlight())
	}
}

func TestKicks(t *testing.T) {
	d := newDriver(t, 0)
	for _, on := range []bool{false, true, false} {
		d.queue.SetKicks(on)
		if got := binary.LittleEndian.Uint16(d.bytes[used:]) == 0; got != on {
			t.Errorf("kicks wanted: %v, want %v", got, on)
		}
	}
}

func TestRestoredQueueGoesOn(t *testing.T) {
	d := newDriver(t, 0)
	d.put16(used, 1) // as the device had left it
	d.put16(used+2, 77)
	m, err := memory.FromBytes([]memory.Region{{Guest: guestBase, User: userBase}}, [][]byte{d.bytes})
	if err != nil {
		t.Fatal(err)
	}
	q, err := virtqueue.New(m, layout, size, 77, true)
	if err != nil {
		t.Fatal(err)
	}
	q.SetKicks(true)
	if got := binary.LittleEndian.Uint32(d.bytes[used:]); got != 77<<16 {
		t.Errorf("flags and index of the used ring %#x", got)
	}
}

func TestImpossibleQueues(t *testing.T) {
	m, err := memory.FromBytes([]memory.Region{{Guest: guestBase, User: userBase}}, [][]byte{make([]byte, length)})
	if err != nil {
		t.Fatal(err)
	}
	for _, size := range []uint16{0, 3, 255, 32769} {
		if _, err := virtqueue.New(m, layout, size, 0, true); err == nil {
			t.Errorf("a queue of %d descriptors", size)
		}
	}
	for _, change := range []func(*virtqueue.Layout){
		func(l *virtqueue.Layout) { l.Descriptors++ },
		func(l *virtqueue.Layout) { l.Available++ },
		func(l *virtqueue.Layout) { l.Used += 2 },
		func(l *virtqueue.Layout) { l.Used = userBase + length - 8 },
		func(l *virtqueue.Layout) { l.Descriptors = guestBase },
		func(l *virtqueue.Layout) { l.Available = ^uint64(0) - 1 },
	} {
		changed := layout
		change(&changed)
		_, err := virtqueue.New(m, changed, size, 0, true)
		if _, ok := errors.AsType[*virtqueue.Error](err); !ok {
			t.Errorf("layout %+v: %v", changed, err)
		}
	}
}

// FuzzQueue gives the device a ring of any content: it has to end with a chain,
// with none or with an error, never with more than the standard allows.
func FuzzQueue(f *testing.F) {
	d := newDriver(f, 0)
	d.describe(0, guestBase, 10, 1, 1)
	d.describe(16, guestBase+tableAt, 32, 4, 0)
	d.describe(tableAt, guestBase, 100, 1, 1)
	d.describe(tableAt+16, guestBase, 100, 2, 0)
	d.offer(0)
	f.Add(d.bytes[:tableAt+64], uint16(0), true)
	f.Add([]byte{}, uint16(0xffff), false)
	f.Fuzz(func(t *testing.T, content []byte, next uint16, indirect bool) {
		bytes := make([]byte, length)
		copy(bytes, content)
		m, err := memory.FromBytes([]memory.Region{{Guest: guestBase, User: userBase}}, [][]byte{bytes})
		if err != nil {
			t.Fatal(err)
		}
		q, err := virtqueue.New(m, layout, size, next, indirect)
		if err != nil {
			t.Fatal(err)
		}
		var chain virtqueue.Chain
		for taken := 0; ; taken++ {
			ok, err := q.Next(&chain)
			if err != nil {
				if _, is := errors.AsType[*virtqueue.Error](err); !is {
					t.Errorf("%v is no *Error", err)
				}
				return
			}
			if !ok {
				return
			}
			if taken >= size {
				t.Fatalf("%d chains from a queue of %d", taken+1, size)
			}
			if n := len(chain.Readable) + len(chain.Writable); n == 0 || n > virtqueue.MaxSegments {
				t.Fatalf("a chain of %d segments", n)
			}
			var sum uint64
			for _, s := range chain.Readable {
				sum += uint64(s.Length)
			}
			if sum != chain.ReadableLength {
				t.Fatalf("length %d of segments that add up to %d", chain.ReadableLength, sum)
			}
			if taken%2 == 0 {
				q.Complete(chain.Head, 1)
				q.Publish()
			}
		}
	})
}
