// SPDX-License-Identifier: BSD-3-Clause

package trace

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// ErrNone is returned for memory that holds no record.
var ErrNone = errors.New("no record of system calls")

// Record is what was recorded about a case.
type Record struct {
	Case  string
	Calls []Call
	// Missing is how many calls were made between the first ones and the last
	// ones and are not in Calls.
	Missing int
}

// Parse reads a record. The memory comes from a guest that may have crashed while
// it wrote: an entry that makes no sense ends its segment, and the error then
// says so beside what could be read.
func Parse(region []byte) (*Record, error) {
	if len(region) != Size || string(region[:len(magic)]) != magic {
		return nil, ErrNone
	}
	length := binary.LittleEndian.Uint32(region[len(magic):])
	if length > uint32(maxID) {
		return nil, fmt.Errorf("%w: the id of the case has %d bytes", ErrNone, length)
	}
	record := &Record{Case: string(region[len(magic)+4:][:length])}
	order := []int{0, 1, 2}
	turn := func(i int) uint32 { return binary.LittleEndian.Uint32(region[segments[i].start+4:]) }
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(turn(a), turn(b)) })

	calls := make(map[uint64]*Call)
	var faults []error
	for _, i := range order {
		s := segments[i]
		segment := region[s.start:][:s.size]
		used := binary.LittleEndian.Uint32(segment)
		if int64(used) > int64(s.size-segmentHeader) {
			faults = append(faults, fmt.Errorf("segment %d claims %d bytes", i, used))
			continue
		}
		if err := entries(segment[segmentHeader:][:used], calls); err != nil {
			faults = append(faults, fmt.Errorf("segment %d: %w", i, err))
		}
	}
	highest := -1
	for _, call := range calls {
		highest = max(highest, call.Number)
		if call.Name != "" { // the end of a call whose beginning is gone
			record.Calls = append(record.Calls, *call)
		}
	}
	slices.SortFunc(record.Calls, func(a, b Call) int { return cmp.Compare(a.Number, b.Number) })
	record.Missing = highest + 1 - len(record.Calls)
	return record, errors.Join(faults...)
}

// errEntry is returned for an entry that makes no sense.
var errEntry = errors.New("malformed entry")

func entries(data []byte, calls map[uint64]*Call) error {
	for len(data) > 0 {
		if len(data) < 2 {
			return errEntry
		}
		length := int(binary.LittleEndian.Uint16(data))
		if length > len(data)-2 {
			return errEntry
		}
		d := decoder{data: data[2:][:length]}
		d.entry(calls)
		if d.failed || len(d.data) > 0 {
			return errEntry
		}
		data = data[2+length:]
	}
	return nil
}

// decoder takes values from the front of data; after the first that is not there
// it only returns zeros.
type decoder struct {
	data   []byte
	failed bool
}

// maxCalls bounds the numbers of calls that are believed.
const maxCalls = 1 << 40

func (d *decoder) entry(calls map[uint64]*Call) {
	kind, number := d.byte(), d.unsigned()
	at := time.Duration(d.unsigned())
	if d.failed || number > maxCalls {
		d.failed = true
		return
	}
	call := calls[number]
	if call == nil {
		call = &Call{Number: int(number)}
	}
	switch kind {
	case entryBegin, entryBegin32:
		call.Began, call.Narrow = at, kind == entryBegin32
		call.Thread = int(d.unsigned())
		call.Name = string(d.bytes())
		call.Arguments, call.In = d.scalars(), d.memory()
	case entryEnd:
		call.Ended, call.Returned = at, true
		call.Result = d.signed()
		call.Errno = unix.Errno(d.unsigned())
		call.Outcome, call.Out = d.scalars(), d.memory()
	default:
		d.failed = true
	}
	if !d.failed {
		calls[number] = call
	}
}

func (d *decoder) byte() byte {
	if len(d.data) == 0 {
		d.failed = true
		return 0
	}
	value := d.data[0]
	d.data = d.data[1:]
	return value
}

func (d *decoder) unsigned() uint64 {
	value, length := binary.Uvarint(d.data)
	if length <= 0 {
		d.failed, d.data = true, nil
		return 0
	}
	d.data = d.data[length:]
	return value
}

func (d *decoder) signed() int64 {
	value, length := binary.Varint(d.data)
	if length <= 0 {
		d.failed, d.data = true, nil
		return 0
	}
	d.data = d.data[length:]
	return value
}

func (d *decoder) bytes() []byte {
	length := d.unsigned()
	if length > uint64(len(d.data)) {
		d.failed, d.data = true, nil
		return nil
	}
	value := slices.Clone(d.data[:length])
	d.data = d.data[length:]
	if value == nil {
		value = []byte{}
	}
	return value
}

func (d *decoder) scalars() []int64 {
	count := d.unsigned()
	if count > maxScalars {
		d.failed = true
		return nil
	}
	var list []int64
	for range count {
		list = append(list, d.signed())
	}
	return list
}

func (d *decoder) memory() []Memory {
	count := d.unsigned()
	if count > maxPieces {
		d.failed = true
		return nil
	}
	var list []Memory
	for range count {
		piece := Memory{Address: d.unsigned(), Length: int(min(d.unsigned(), 1<<40))}
		if d.byte() != 0 {
			piece.Bytes = d.bytes()
		}
		list = append(list, piece)
	}
	return list
}
