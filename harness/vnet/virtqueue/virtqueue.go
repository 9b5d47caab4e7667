// SPDX-License-Identifier: BSD-3-Clause

// Package virtqueue is the device's side of a split virtqueue (virtio 1.2,
// section 2.7) in the memory of an untrusted guest.
//
// The host has to be little-endian, as the rings of a modern device are.
package virtqueue

import (
	"encoding/binary"
	"fmt"
	"sync/atomic"
	"unsafe"

	"github.com/zcvet/zcvet/harness/vnet/memory"
)

const (
	// MaxSize is the largest queue the standard allows, in descriptors.
	MaxSize = 32768
	// MaxSegments bounds a chain, indirect descriptors included. It is what
	// Linux and QEMU agree on for any device (UIO_MAXIOV, VIRTQUEUE_MAX_SIZE).
	MaxSegments = 1024
)

const (
	descriptorSize = 16

	flagNext     = 1
	flagWrite    = 2
	flagIndirect = 4

	availNoInterrupt = 1
	usedNoNotify     = 1
)

// Error says how a driver broke the rules of the ring. The ring cannot be used
// after it.
type Error struct {
	// Reason is what is wrong, with the offending values.
	Reason string
	// Err is the cause where there is one: an address outside the memory.
	Err error
}

func (e *Error) Error() string {
	if e.Err != nil {
		return e.Reason + ": " + e.Err.Error()
	}
	return e.Reason
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

func broken(format string, args ...any) error {
	return &Error{Reason: fmt.Sprintf(format, args...)}
}

// Segment is a piece of guest-physical memory that a descriptor names.
type Segment struct {
	Address uint64
	Length  uint32
}

// Chain is what one entry of the available ring stands for. Its slices are
// reused by the next call of Queue.Next with the same Chain.
type Chain struct {
	Head     uint16
	Readable []Segment // in order, data from driver to device
	Writable []Segment // in order, data from device to driver
	// ReadableLength and WritableLength are the sums of the lengths in bytes.
	ReadableLength, WritableLength uint64
}

// Layout is where the parts of a ring are, as addresses of the front end.
type Layout struct {
	Descriptors, Available, Used uint64
	// Log makes writes to the used ring show up in the dirty log, at the
	// guest-physical address LogAddress of the used ring.
	Log        bool
	LogAddress uint64
}

// Queue is one virtqueue. It is not safe for concurrent use.
type Queue struct {
	memory      *memory.Map
	layout      Layout
	size        uint16
	indirect    bool
	descriptors []byte
	available   []byte
	used        []byte

	next     uint16 // index into the available ring of the next chain to take
	usedNext uint16 // index of the next used element to write
	usedSeen uint16 // used index the driver was last shown
	flags    uint16 // of the used ring
	inFlight int    // chains taken and not completed
}

// New starts a queue of size descriptors at next, the index in the available
// ring that the device reads first. Indirect says whether
// VIRTIO_RING_F_INDIRECT_DESC was negotiated.
func New(m *memory.Map, layout Layout, size, next uint16, indirect bool) (*Queue, error) {
	if size == 0 || size > MaxSize || size&(size-1) != 0 {
		return nil, broken("queue size %d is no power of two up to %d", size, MaxSize)
	}
	q := &Queue{size: size, indirect: indirect, next: next}
	if err := q.Move(m, layout); err != nil {
		return nil, err
	}
	// The used index belongs to the device, and the ring is where a device
	// that stopped has left it.
	word := q.usedWord().Load()
	q.usedNext, q.flags = uint16(word>>16), uint16(word)
	q.usedSeen = q.usedNext
	return q, nil
}

// Move makes the queue go on at other addresses or in another mapping of the
// memory, with its indices unchanged.
func (q *Queue) Move(m *memory.Map, layout Layout) error {
	n := uint64(q.size)
	descriptors, err := part(m, "descriptor table", layout.Descriptors, descriptorSize*n, 16)
	if err != nil {
		return err
	}
	available, err := part(m, "available ring", layout.Available, 4+2*n, 2)
	if err != nil {
		return err
	}
	used, err := part(m, "used ring", layout.Used, 4+8*n, 4)
	if err != nil {
		return err
	}
	q.memory, q.layout = m, layout
	q.descriptors, q.available, q.used = descriptors, available, used
	return nil
}

func part(m *memory.Map, name string, address, length, alignment uint64) ([]byte, error) {
	bytes, _, err := m.User(address, length)
	if err != nil {
		return nil, &Error{Reason: name, Err: err}
	}
	// The address as this process sees it counts: atomic operations on it
	// are what the alignment is for.
	if uintptr(unsafe.Pointer(unsafe.SliceData(bytes)))%uintptr(alignment) != 0 {
		return nil, broken("%s at %#x is not aligned to %d", name, address, alignment)
	}
	return bytes, nil
}

// Size returns the number of descriptors.
func (q *Queue) Size() int { return int(q.size) }

// Index returns the index in the available ring of the next chain to take: what
// a front end wants to know of a ring that stops.
func (q *Queue) Index() uint16 { return q.next }

// InFlight returns how many chains were taken and not completed.
func (q *Queue) InFlight() int { return q.inFlight }

// load reads a 16-bit field that the driver writes concurrently. There are no
// 16-bit atomic operations, so the aligned word around the field is read; it
// never leaves the page.
func load(field *byte) uint16 {
	address := uintptr(unsafe.Pointer(field))
	word := (*uint32)(unsafe.Add(unsafe.Pointer(field), -int(address%4)))
	return uint16(atomic.LoadUint32(word) >> (8 * (address % 4)))
}

// usedWord is the flags and the index of the used ring, both written only by the
// device.
func (q *Queue) usedWord() *atomic.Uint32 {
	return (*atomic.Uint32)(unsafe.Pointer(&q.used[0]))
}

// Pending returns how many chains the driver has made available and the device
// has not taken. It fails if there are more than the queue can hold.
func (q *Queue) Pending() (int, error) {
	index := load(&q.available[2])
	pending := index - q.next
	if pending > q.size {
		return 0, broken("available index jumped from %d to %d in a queue of %d", q.next, index, q.size)
	}
	return int(pending), nil
}

// Next takes the next available chain into chain. It returns false when there is
// none. After an error the queue must not be used.
func (q *Queue) Next(chain *Chain) (bool, error) {
	pending, err := q.Pending()
	if pending == 0 || err != nil {
		return false, err
	}
	if q.inFlight >= int(q.size) {
		return false, broken("%d chains in flight in a queue of %d", q.inFlight+1, q.size)
	}
	slot := 4 + 2*int(q.next&(q.size-1))
	head := binary.LittleEndian.Uint16(q.available[slot:])
	if err := q.walk(chain, head); err != nil {
		return false, err
	}
	q.next++
	q.inFlight++
	return true, nil
}

// Rewind puts the last count taken chains back, none of which may have been
// completed.
func (q *Queue) Rewind(count int) {
	q.next -= uint16(count)
	q.inFlight -= count
}

type descriptor struct {
	address uint64
	length  uint32
	flags   uint16
	next    uint16
}

// descriptorAt copies a descriptor out of the guest's reach.
func descriptorAt(table []byte, index int) descriptor {
	var copied [descriptorSize]byte
	copy(copied[:], table[index*descriptorSize:])
	return descriptor{
		address: binary.LittleEndian.Uint64(copied[0:]),
		length:  binary.LittleEndian.Uint32(copied[8:]),
		flags:   binary.LittleEndian.Uint16(copied[12:]),
		next:    binary.LittleEndian.Uint16(copied[14:]),
	}
}

func (q *Queue) walk(chain *Chain, head uint16) error {
	chain.Head = head
	chain.Readable, chain.Writable = chain.Readable[:0], chain.Writable[:0]
	chain.ReadableLength, chain.WritableLength = 0, 0

	table, entries, inTable := q.descriptors, int(q.size), false
	index := int(head)
	for steps := 0; ; steps++ {
		if index >= entries {
			return broken("chain %d: descriptor %d in a table of %d", head, index, entries)
		}
		if steps >= entries {
			return broken("chain %d: the descriptors form a loop", head)
		}
		d := descriptorAt(table, index)
		if d.flags&flagIndirect != 0 {
			switch {
			case !q.indirect:
				return broken("chain %d: an indirect descriptor, which was not negotiated", head)
			case inTable:
				return broken("chain %d: an indirect descriptor in an indirect table", head)
			case d.flags&(flagNext|flagWrite) != 0:
				return broken("chain %d: indirect descriptor with flags %#x", head, d.flags)
			case d.length == 0 || d.length%descriptorSize != 0 || d.length/descriptorSize > MaxSegments:
				return broken("chain %d: an indirect table of %d bytes", head, d.length)
			}
			var err error
			if table, err = q.memory.Guest(d.address, uint64(d.length)); err != nil {
				return &Error{Reason: fmt.Sprintf("chain %d: indirect table", head), Err: err}
			}
			// The table may follow direct descriptors, and its own
			// length bounds the rest of the walk.
			entries, inTable, index, steps = len(table)/descriptorSize, true, 0, -1
			continue
		}
		if err := chain.add(d); err != nil {
			return err
		}
		if d.flags&flagNext == 0 {
			return nil
		}
		index = int(d.next)
	}
}

func (c *Chain) add(d descriptor) error {
	if len(c.Readable)+len(c.Writable) >= MaxSegments {
		return broken("chain %d: more than %d segments", c.Head, MaxSegments)
	}
	segment := Segment{Address: d.address, Length: d.length}
	if d.flags&flagWrite != 0 {
		c.Writable = append(c.Writable, segment)
		c.WritableLength += uint64(d.length)
		return nil
	}
	if len(c.Writable) > 0 {
		return broken("chain %d: a readable descriptor after a writable one", c.Head)
	}
	c.Readable = append(c.Readable, segment)
	c.ReadableLength += uint64(d.length)
	return nil
}

// Complete gives a chain back to the driver, after written bytes were written to
// its writable part. The driver sees it with the next Publish.
func (q *Queue) Complete(head uint16, written uint32) {
	slot := 4 + 8*int(q.usedNext&(q.size-1))
	binary.LittleEndian.PutUint32(q.used[slot:], uint32(head))
	binary.LittleEndian.PutUint32(q.used[slot+4:], written)
	if q.layout.Log {
		q.memory.MarkDirty(q.layout.LogAddress+uint64(slot), 8)
	}
	q.usedNext++
	q.inFlight--
}

// Publish shows the driver what was completed and tells whether it wants an
// interrupt for it.
func (q *Queue) Publish() (interrupt bool) {
	if q.usedSeen == q.usedNext {
		return false
	}
	q.usedSeen = q.usedNext
	q.storeUsed()
	// The store above and this load are both sequentially consistent atomics,
	// which is the full barrier needed in between: a driver that enables
	// interrupts looks at the index afterwards.
	return load(&q.available[0])&availNoInterrupt == 0
}

// SetKicks tells the driver whether to notify the device of new chains. It is
// advice that the driver may ignore. After turning kicks on the caller has to
// look at Pending once more.
func (q *Queue) SetKicks(on bool) {
	flags := uint16(usedNoNotify)
	if on {
		flags = 0
	}
	if flags != q.flags {
		q.flags = flags
		q.storeUsed()
	}
}

func (q *Queue) storeUsed() {
	q.usedWord().Store(uint32(q.usedSeen)<<16 | uint32(q.flags))
	if q.layout.Log {
		q.memory.MarkDirty(q.layout.LogAddress, 4)
	}
}
