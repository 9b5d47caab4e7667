// SPDX-License-Identifier: BSD-3-Clause

package notify

import (
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/zcvet/zcvet/guest/sys"
)

// PageSize is the size of a page in bytes.
var PageSize = os.Getpagesize()

// Memory is a private mapping of whole pages outside Go's heap: the kernel may
// hold on to it, and a case may take its access rights away.
type Memory struct {
	data []byte
}

// Pages maps count pages of zeroed memory and touches each, so that every page
// has a frame behind it. Close gives them back.
func Pages(count int) (*Memory, error) {
	data, err := sys.Mmap(count*PageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, fmt.Errorf("map %d pages: %w", count, err)
	}
	for page := 0; page < count; page++ {
		data[page*PageSize] = 0 // a write, because reading alone maps the shared zero page
	}
	return &Memory{data: data}, nil
}

// Close unmaps the pages. The kernel keeps those it still needs; a slice taken
// from Bytes must not be touched any more.
func (m *Memory) Close() error {
	if m.data == nil {
		return nil
	}
	data := m.data
	m.data = nil
	return sys.Munmap(data)
}

// Bytes returns the whole mapping. Touching a page that Protect took away ends
// the process; handing it to the kernel does not.
func (m *Memory) Bytes() []byte { return m.data }

// Address is where the mapping begins.
func (m *Memory) Address() uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(m.data))) }

// Access is what the process may do with a page.
type Access int

// The access rights a case needs.
const (
	NoAccess  Access = unix.PROT_NONE
	ReadOnly  Access = unix.PROT_READ
	ReadWrite Access = unix.PROT_READ | unix.PROT_WRITE
)

// Protect sets the access rights of count pages, beginning with page first.
func (m *Memory) Protect(first, count int, access Access) error {
	return sys.Mprotect(m.data[first*PageSize:(first+count)*PageSize], int(access))
}

// Unmap makes a hole of count pages, beginning with page first. They must not be
// touched or protected any more.
func (m *Memory) Unmap(first, count int) error {
	return sys.MunmapPart(m.data[first*PageSize : (first+count)*PageSize])
}

// Fill writes a pattern that differs from byte to byte and from seed to seed, so
// that data out of place, from another send or from the page allocator is seen.
func (m *Memory) Fill(seed byte) { Pattern(m.data, seed) }

// Pattern fills data as [Memory.Fill] does.
func Pattern(data []byte, seed byte) {
	for i := range data {
		data[i] = PatternByte(seed*31, i)
	}
}

// PatternByte is the byte at an offset of a pattern that begins with first.
func PatternByte(first byte, offset int) byte {
	return first + byte(offset) + byte(offset>>8)*7 + byte(offset>>16)*13
}

// Bits of a /proc/PID/pagemap entry (Documentation/admin-guide/mm/pagemap.rst).
const (
	pagemapPresent = 1 << 63
	pagemapFrame   = 1<<55 - 1
)

// Pagemap is where a process finds the physical addresses of its memory.
const Pagemap = "/proc/self/pagemap"

// Physical returns the physical address of each page, in order. It needs
// CAP_SYS_ADMIN: without it the kernel shows frame 0 for every page, which is an
// error here.
func (m *Memory) Physical() ([]uint64, error) {
	file, err := os.Open(Pagemap)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return m.PhysicalIn(file)
}

// PhysicalIn is Physical for who has [Pagemap] open.
func (m *Memory) PhysicalIn(pagemap io.ReaderAt) ([]uint64, error) {
	raw := make([]byte, 8*(len(m.data)/PageSize))
	if _, err := pagemap.ReadAt(raw, int64(m.Address()/uintptr(PageSize))*8); err != nil {
		return nil, fmt.Errorf("read pagemap: %w", err)
	}
	addresses := make([]uint64, 0, len(raw)/8)
	for page := 0; page < len(raw)/8; page++ {
		entry := binary.NativeEndian.Uint64(raw[8*page:])
		frame := entry & pagemapFrame
		if entry&pagemapPresent == 0 || frame == 0 {
			return nil, fmt.Errorf("pagemap shows no frame for page %d (entry %#x)", page, entry)
		}
		addresses = append(addresses, frame*uint64(PageSize))
	}
	return addresses, nil
}
