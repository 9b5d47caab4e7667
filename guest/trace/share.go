// SPDX-License-Identifier: BSD-3-Clause

package trace

import (
	"encoding/binary"
	"fmt"
	"os"

	"github.com/zcvet/zcvet/guest/shared"
)

// NewFile returns a file in memory that has room for a record and can be handed
// on to other processes.
func NewFile() (*os.File, error) {
	file, err := shared.New("trace", Size)
	if err != nil {
		return nil, fmt.Errorf("memory for the record of system calls: %w", err)
	}
	return file, nil
}

// Map maps the file of a record, for NewRecorder. It stays mapped.
func Map(fd int) ([]byte, error) {
	region, err := shared.Map(fd, Size)
	if err != nil {
		return nil, fmt.Errorf("map the record of system calls: %w", err)
	}
	return region, nil
}

// PageSize is the size of the pages whose places Pages returns, in bytes.
const PageSize = 4096

// Pages returns the guest-physical address of each page of a record, so that the
// host can find it. It needs CAP_SYS_ADMIN; without it, and on a machine with
// larger pages, there are none.
func Pages(region []byte) []uint64 {
	if os.Getpagesize() != PageSize {
		return nil
	}
	file, err := os.Open("/proc/self/pagemap")
	if err != nil {
		return nil
	}
	defer func() { _ = file.Close() }()
	raw := make([]byte, 8*(len(region)/PageSize))
	if _, err := file.ReadAt(raw, int64(Of(region).Address/PageSize)*8); err != nil {
		return nil
	}
	// Bits of an entry: Documentation/admin-guide/mm/pagemap.rst.
	const present, frame = 1 << 63, 1<<55 - 1
	var pages []uint64
	for ; len(raw) > 0; raw = raw[8:] {
		entry := binary.NativeEndian.Uint64(raw)
		if entry&present == 0 || entry&frame == 0 {
			return nil
		}
		pages = append(pages, entry&frame*PageSize)
	}
	return pages
}
