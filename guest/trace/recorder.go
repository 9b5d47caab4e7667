// SPDX-License-Identifier: BSD-3-Clause

package trace

import (
	"encoding/binary"
	"runtime/debug"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Size is the size of the memory that a record needs, in bytes.
const Size = 128 << 10

// The record begins with a header: the magic, the length of the case's id and
// the id, and at its end the number of calls so far and when the case started, in
// nanoseconds since 1970, for a process that goes on with it. Behind it are three
// segments. The first is filled once, with how the case began; when it is full, the
// other two are filled by turns, each emptied before it is used again, so that the
// last calls are always there. A segment begins with the number of its bytes in use
// and the number of times it was begun.
const (
	magic         = "zcvetrc1"
	headerSize    = 512
	offsetNumber  = headerSize - 16
	offsetStarted = headerSize - 8
	maxID         = offsetNumber - len(magic) - 4
	segmentHeader = 8
	headSize      = 64<<10 - headerSize
	turnSize      = 32 << 10
)

// segments are the places of the segments in the record.
var segments = [3]struct{ start, size int }{
	{headerSize, headSize},
	{headerSize + headSize, turnSize},
	{headerSize + headSize + turnSize, turnSize},
}

// Limits of what is kept of one call, which keep every entry well below the size
// of a segment.
const (
	// KeptData is how much of a piece of data is kept, in bytes.
	KeptData = 64
	// KeptControl is how much of everything else is kept: addresses, options,
	// control buffers, messages.
	KeptControl = 2048
	maxScalars  = 256
	maxPieces   = 128
	maxEntry    = 16 << 10
)

// The kinds of entry.
const (
	entryBegin byte = 1 + iota
	entryEnd
	entryBegin32 // the beginning of a call of a 32-bit task
)

// entryBeginHere is for the calls of this program.
var entryBeginHere = map[uintptr]byte{4: entryBegin32, 8: entryBegin}[unsafe.Sizeof(uintptr(0))]

// Recorder writes the record of one case at a time. A nil *Recorder records
// nothing. It may be used from several goroutines.
type Recorder struct {
	lock    sync.Mutex
	region  []byte
	segment int
	turns   uint32
	number  uint64
	started time.Time
	scratch []byte
}

// NewRecorder returns a recorder that writes to region, Size bytes that somebody
// else can read.
func NewRecorder(region []byte) *Recorder {
	if len(region) != Size {
		panic("trace: the record needs exactly Size bytes")
	}
	return &Recorder{region: region}
}

// Start begins the record of a case.
func (r *Recorder) Start(id string) {
	if r == nil {
		return
	}
	r.lock.Lock()
	defer r.lock.Unlock()
	id = id[:min(len(id), maxID)]
	// Without a magic there is no record: a crash in the middle leaves none.
	clear(r.region[:len(magic)])
	for _, s := range segments {
		clear(r.region[s.start:][:segmentHeader])
	}
	binary.LittleEndian.PutUint32(r.region[len(magic):], uint32(len(id)))
	copy(r.region[len(magic)+4:], id)
	copy(r.region, magic)
	r.segment, r.turns, r.number, r.started = 0, 0, 0, time.Now()
	r.setNumber(0)
	binary.LittleEndian.PutUint64(r.region[offsetStarted:], uint64(r.started.UnixNano()))
}

// Continue goes on with a record to which another process may have added calls. Two
// processes must not write to one at the same time.
func (r *Recorder) Continue() {
	if r == nil {
		return
	}
	r.lock.Lock()
	defer r.lock.Unlock()
	r.segment, r.turns = 0, 0
	for i, s := range segments {
		if turn := binary.LittleEndian.Uint32(r.region[s.start+4:]); turn > r.turns {
			r.segment, r.turns = i, turn
		}
	}
	r.number = binary.LittleEndian.Uint64(r.region[offsetNumber:])
	r.started = time.Unix(0, int64(binary.LittleEndian.Uint64(r.region[offsetStarted:])))
}

func (r *Recorder) setNumber(number uint64) {
	r.number = number
	binary.LittleEndian.PutUint64(r.region[offsetNumber:], number)
}

// Begin records that a call begins, and returns its number for End. Data tells
// which piece of in is the first that is data, of which less is kept than of
// what comes before.
func (r *Recorder) Begin(name string, arguments []int64, in []Memory, data int) uint64 {
	if r == nil {
		return 0
	}
	r.lock.Lock()
	defer r.lock.Unlock()
	number := r.number
	r.setNumber(number + 1)
	e := r.entry(entryBeginHere, number)
	e = binary.AppendUvarint(e, uint64(unix.Gettid()))
	e = appendBytes(e, []byte(name))
	r.append(appendMemory(appendScalars(e, arguments), in, data))
	return number
}

// End records how a call has ended.
func (r *Recorder) End(number uint64, result int64, errno unix.Errno, outcome []int64, out []Memory, data int) {
	if r == nil {
		return
	}
	r.lock.Lock()
	defer r.lock.Unlock()
	e := r.entry(entryEnd, number)
	e = binary.AppendVarint(e, result)
	e = binary.AppendUvarint(e, uint64(errno))
	r.append(appendMemory(appendScalars(e, outcome), out, data))
}

// Mark records something that is no system call.
func (r *Recorder) Mark(name string, arguments []int64, texts ...string) {
	if r == nil {
		return
	}
	var in []Memory
	for _, text := range texts {
		in = append(in, Memory{Length: len(text), Bytes: []byte(text)})
	}
	r.End(r.Begin(name, arguments, in, len(in)), 0, 0, nil, nil, 0)
}

// Of describes memory, for Begin and End. It is not touched before that.
func Of(source []byte) Memory {
	address := uint64(uintptr(unsafe.Pointer(unsafe.SliceData(source))))
	return Memory{Address: address, Length: len(source), source: source}
}

func (r *Recorder) entry(kind byte, number uint64) []byte {
	e := append(r.scratch[:0], kind)
	e = binary.AppendUvarint(e, number)
	return binary.AppendUvarint(e, uint64(max(time.Since(r.started), 0)))
}

// append writes an entry behind the last one, and only then counts it in: who
// reads the record of a dead machine sees whole entries.
func (r *Recorder) append(entry []byte) {
	r.scratch = entry
	if len(entry) > maxEntry {
		return
	}
	prefixed := len(entry) + 2
	s := segments[r.segment]
	used := int(binary.LittleEndian.Uint32(r.region[s.start:]))
	if used+prefixed > s.size-segmentHeader {
		r.segment = 1 + (r.segment % 2) // 0 to 1, 1 to 2, 2 to 1
		r.turns++
		s, used = segments[r.segment], 0
		binary.LittleEndian.PutUint32(r.region[s.start:], 0)
		binary.LittleEndian.PutUint32(r.region[s.start+4:], r.turns)
	}
	to := r.region[s.start+segmentHeader+used:]
	binary.LittleEndian.PutUint16(to, uint16(len(entry)))
	copy(to[2:], entry)
	binary.LittleEndian.PutUint32(r.region[s.start:], uint32(used+prefixed))
}

func appendBytes(e, bytes []byte) []byte {
	return append(binary.AppendUvarint(e, uint64(len(bytes))), bytes...)
}

func appendScalars(e []byte, scalars []int64) []byte {
	scalars = scalars[:min(len(scalars), maxScalars)]
	e = binary.AppendUvarint(e, uint64(len(scalars)))
	for _, scalar := range scalars {
		e = binary.AppendVarint(e, scalar)
	}
	return e
}

func appendMemory(e []byte, pieces []Memory, data int) []byte {
	pieces = pieces[:min(len(pieces), maxPieces)]
	e = binary.AppendUvarint(e, uint64(len(pieces)))
	for i, piece := range pieces {
		e = binary.AppendUvarint(e, piece.Address)
		e = binary.AppendUvarint(e, uint64(piece.Length))
		kept := KeptControl
		if i >= data {
			kept = KeptData
		}
		bytes, readable := piece.Bytes, true
		if bytes == nil {
			bytes, readable = peek(piece.source[:min(len(piece.source), kept)])
		}
		if !readable {
			e = append(e, 0)
			continue
		}
		e = append(e, 1)
		e = appendBytes(e, bytes[:min(len(bytes), kept)])
	}
	return e
}

// peek copies memory of this process that it may have no access to.
func peek(source []byte) (bytes []byte, readable bool) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if recover() != nil {
			bytes, readable = nil, false
		}
	}()
	bytes = make([]byte, len(source))
	copy(bytes, source)
	return bytes, true
}
