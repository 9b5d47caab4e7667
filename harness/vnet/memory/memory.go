// SPDX-License-Identifier: BSD-3-Clause

// Package memory maps the memory of a guest, as a vhost-user front end passes
// it, and translates the two kinds of address that occur in the protocol.
//
// The memory is shared with a guest that may do anything to it at any time.
// Every byte taken from it is to be copied once and then checked, never checked
// in place. Every address is checked against the regions. What cannot be checked
// once for all, that the file behind a region keeps its size, is left to Guard.
package memory

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"math/bits"
	"runtime"
	"runtime/debug"
	"slices"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// MaxRegions is how many regions a front end without configurable memory slots
// may pass (VHOST_MEMORY_BASELINE_NREGIONS of the protocol).
const MaxRegions = 8

// ErrOutside is wrapped by the error for an address range that no region holds.
var ErrOutside = errors.New("outside the guest's memory")

// Region is a contiguous piece of guest-physical memory.
type Region struct {
	Guest  uint64 // guest-physical address of the first byte
	Size   uint64 // in bytes, not 0
	User   uint64 // address of the first byte in the front end's own address space
	Offset uint64 // of the first byte in the file, a multiple of the page size
}

type region struct {
	Region
	bytes  []byte
	mapped bool
}

// Map is the memory of one guest. It is not safe for concurrent use with Close;
// the translations themselves only read.
type Map struct {
	regions []region // by Guest
	log     *DirtyLog
}

// New maps regions[i] from the file descriptor files[i], which it does not
// close. A descriptor has to be a regular file (a memfd is one) that is long
// enough for its region now.
func New(regions []Region, files []int) (*Map, error) {
	if len(regions) == 0 || len(regions) > MaxRegions {
		return nil, fmt.Errorf("%d memory regions, the protocol allows 1 to %d", len(regions), MaxRegions)
	}
	if len(files) != len(regions) {
		return nil, fmt.Errorf("%d file descriptors for %d memory regions", len(files), len(regions))
	}
	m := &Map{}
	for i, r := range regions {
		bytes, err := mapRegion(r, files[i])
		if err != nil {
			return nil, errors.Join(fmt.Errorf("memory region %d: %w", i, err), m.Close())
		}
		m.regions = append(m.regions, region{Region: r, bytes: bytes, mapped: true})
	}
	if err := m.sort(); err != nil {
		return nil, errors.Join(err, m.Close())
	}
	return m, nil
}

// FromBytes builds a Map over memory of this process, for tests and fuzzing.
// Region sizes are taken from the slices.
func FromBytes(regions []Region, contents [][]byte) (*Map, error) {
	m := &Map{}
	for i, r := range regions {
		r.Size = uint64(len(contents[i]))
		if err := r.check(); err != nil {
			return nil, fmt.Errorf("memory region %d: %w", i, err)
		}
		m.regions = append(m.regions, region{Region: r, bytes: contents[i]})
	}
	return m, m.sort()
}

func (r Region) check() error {
	if r.Size == 0 || r.Size > math.MaxInt {
		return fmt.Errorf("size %#x", r.Size)
	}
	for _, start := range []uint64{r.Guest, r.User, r.Offset} {
		if _, carry := bits.Add64(start, r.Size-1, 0); carry != 0 {
			return fmt.Errorf("start %#x and size %#x run over the end of the address space", start, r.Size)
		}
	}
	return nil
}

func mapRegion(r Region, file int) ([]byte, error) {
	if err := r.check(); err != nil {
		return nil, err
	}
	if r.Offset+r.Size > math.MaxInt64 || r.Offset%uint64(unix.Getpagesize()) != 0 {
		return nil, fmt.Errorf("offset %#x", r.Offset)
	}
	var stat unix.Stat_t
	if err := unix.Fstat(file, &stat); err != nil {
		return nil, fmt.Errorf("fstat: %w", err)
	}
	if stat.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, errors.New("not a regular file")
	}
	if uint64(stat.Size) < r.Offset+r.Size {
		return nil, fmt.Errorf("the file has %#x bytes, the region ends at %#x", stat.Size, r.Offset+r.Size)
	}
	bytes, err := unix.Mmap(file, int64(r.Offset), int(r.Size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("mmap: %w", err)
	}
	return bytes, nil
}

func (m *Map) sort() error {
	slices.SortFunc(m.regions, func(a, b region) int { return cmp.Compare(a.Guest, b.Guest) })
	for i := 1; i < len(m.regions); i++ {
		if last := m.regions[i-1]; m.regions[i].Guest-last.Guest < last.Size {
			return fmt.Errorf("memory regions at %#x and %#x overlap", last.Guest, m.regions[i].Guest)
		}
	}
	return nil
}

// Close unmaps the regions. Every slice that came from the Map is invalid after
// it.
func (m *Map) Close() error {
	var err error
	for _, r := range m.regions {
		if r.mapped {
			err = errors.Join(err, unix.Munmap(r.bytes))
		}
	}
	m.regions = nil
	return err
}

// Guest returns the memory at a guest-physical address. The range has to lie in
// one region.
func (m *Map) Guest(address, length uint64) ([]byte, error) {
	for i := range m.regions {
		r := &m.regions[i]
		if within(r.Guest, r.Size, address, length) {
			start := address - r.Guest
			return r.bytes[start : start+length : start+length], nil
		}
	}
	return nil, fmt.Errorf("guest address %#x with length %#x is %w", address, length, ErrOutside)
}

// AppendGuest appends the pieces of a guest-physical range to pieces: one piece,
// unless the range runs over the border of two adjacent regions. A range of
// length 0 has no piece and may be anywhere.
func (m *Map) AppendGuest(pieces [][]byte, address, length uint64) ([][]byte, error) {
	for remaining := length; remaining > 0; {
		r := m.holding(address)
		if r == nil {
			return pieces, fmt.Errorf("guest address %#x with length %#x is %w", address, remaining, ErrOutside)
		}
		start := address - r.Guest
		part := min(remaining, r.Size-start)
		pieces = append(pieces, r.bytes[start:start+part:start+part])
		remaining -= part
		if remaining > 0 && address > math.MaxUint64-part {
			return pieces, fmt.Errorf("a range of length %#x that ends past the address space is %w", length, ErrOutside)
		}
		address += part
	}
	return pieces, nil
}

func (m *Map) holding(address uint64) *region {
	for i := range m.regions {
		if r := &m.regions[i]; address >= r.Guest && address-r.Guest < r.Size {
			return r
		}
	}
	return nil
}

// User returns the memory at an address of the front end's address space, and
// the guest-physical address it has. The range has to lie in one region.
func (m *Map) User(address, length uint64) (bytes []byte, guest uint64, err error) {
	for i := range m.regions {
		r := &m.regions[i]
		if within(r.User, r.Size, address, length) {
			start := address - r.User
			return r.bytes[start : start+length : start+length], r.Guest + start, nil
		}
	}
	return nil, 0, fmt.Errorf("front-end address %#x with length %#x is %w", address, length, ErrOutside)
}

func within(start, size, address, length uint64) bool {
	return address >= start && address-start <= size && length <= size-(address-start)
}

// GoneError says that a page of a guest's memory vanished while it was used.
type GoneError struct {
	Map     *Map
	Address uintptr // in this process
}

func (e *GoneError) Error() string {
	return fmt.Sprintf("guest memory vanished at %#x: the file behind it was truncated", e.Address)
}

// Guard runs f, during which touching a vanished page of one of the maps makes
// Guard return a *GoneError instead of killing the process with SIGBUS. F is then
// left at once, as by a panic: deferred functions run, nothing else. Any other
// panic goes on. Maps is called only after a fault; it may return nil maps.
func Guard(maps func() []*Map, f func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		failure := recover()
		if failure == nil {
			return
		}
		if fault, ok := failure.(interface {
			runtime.Error
			Addr() uintptr
		}); ok {
			for _, m := range maps() {
				if m != nil && m.contains(fault.Addr()) {
					err = &GoneError{Map: m, Address: fault.Addr()}
					return
				}
			}
		}
		panic(failure)
	}()
	return f()
}

func (m *Map) contains(address uintptr) bool {
	for _, r := range m.regions {
		if holds(r.bytes, address) {
			return true
		}
	}
	return m.log != nil && holds(m.log.bytes, address)
}

func holds(bytes []byte, address uintptr) bool {
	start := uintptr(unsafe.Pointer(unsafe.SliceData(bytes)))
	return address >= start && address-start < uintptr(len(bytes))
}

// SetDirtyLog makes MarkDirty write to log; nil stops it.
func (m *Map) SetDirtyLog(log *DirtyLog) { m.log = log }

// MarkDirty notes that the range of guest-physical memory was written to, if a
// migration wants to know.
func (m *Map) MarkDirty(address, length uint64) {
	if m.log != nil {
		m.log.mark(address, length)
	}
}

// logPage is the granularity of the dirty log, whatever the guest's page size
// (VHOST_LOG_PAGE).
const logPage = 4096

// DirtyLog is the bitmap by which a migrating front end learns what the back end
// wrote: one bit per page of guest-physical memory, least significant bit first.
type DirtyLog struct {
	bytes []byte
}

// NewDirtyLog maps a dirty log from a file descriptor, which it does not close.
func NewDirtyLog(file int, size, offset uint64) (*DirtyLog, error) {
	bytes, err := mapRegion(Region{Size: size, Offset: offset}, file)
	if err != nil {
		return nil, fmt.Errorf("dirty log: %w", err)
	}
	return &DirtyLog{bytes: bytes}, nil
}

// Close unmaps the log.
func (l *DirtyLog) Close() error { return unix.Munmap(l.bytes) }

// mark sets bits by atomic operations: the front end clears them at the same
// time. Pages past the end of the log are ignored, as the front end made the log
// as long as the memory it cares for.
func (l *DirtyLog) mark(address, length uint64) {
	if length == 0 {
		return
	}
	words := uint64(len(l.bytes) / 4)
	for page := address / logPage; page <= (address+length-1)/logPage; page++ {
		if page/32 >= words {
			return
		}
		atomic.OrUint32((*uint32)(unsafe.Pointer(&l.bytes[page/32*4])), 1<<(page%32))
	}
}
