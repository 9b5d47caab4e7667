// SPDX-License-Identifier: BSD-3-Clause

package machine

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// newMemoryFile returns an anonymous file in memory, close-on-exec. It is gone
// with its last descriptor.
func newMemoryFile(name string, size int64) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("%s: memfd: %w", name, err)
	}
	file := os.NewFile(uintptr(fd), name)
	if err := file.Truncate(size); err != nil {
		_ = file.Close()
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return file, nil
}

// reopen returns the file with an offset of its own, at the start.
func reopen(file *os.File) (*os.File, error) {
	return os.Open("/proc/self/fd/" + strconv.Itoa(int(file.Fd())))
}

// seal makes the file read-only for everybody, for good.
func seal(file *os.File) error {
	_, err := unix.FcntlInt(file.Fd(), unix.F_ADD_SEALS,
		unix.F_SEAL_WRITE|unix.F_SEAL_GROW|unix.F_SEAL_SHRINK|unix.F_SEAL_SEAL)
	if err != nil {
		return fmt.Errorf("%s: seal: %w", file.Name(), err)
	}
	return nil
}

// extent is a stretch of a sparse file that has data.
type extent struct{ start, end int64 }

// extents returns the parts of file that were ever written.
func extents(file *os.File) ([]extent, error) {
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	var list []extent
	for position := int64(0); position < info.Size(); {
		start, err := unix.Seek(int(file.Fd()), position, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file.Name(), err)
		}
		end, err := unix.Seek(int(file.Fd()), start, unix.SEEK_HOLE)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file.Name(), err)
		}
		list = append(list, extent{start, end})
		position = end
	}
	return list, nil
}

const (
	pageSize = 4096
	// copyChunk is what one worker copies at a time.
	copyChunk = 4 << 20
)

var zeroPage [pageSize]byte

// duplicate saves a file of guest memory into a new one. Holes and pages of zeros
// become holes: a snapshot is written once and read often. It returns the number
// of bytes that are left.
func duplicate(source *os.File, name string, size int64) (*os.File, int64, error) {
	target, err := newMemoryFile(name, size)
	if err != nil {
		return nil, 0, err
	}
	if err := copyMemory(target, source, true); err != nil {
		_ = target.Close()
		return nil, 0, err
	}
	list, err := extents(target)
	if err != nil {
		_ = target.Close()
		return nil, 0, err
	}
	total := int64(0)
	for _, e := range list {
		total += e.end - e.start
	}
	return target, total, nil
}

// copyMemory copies the data of source to the same places of target.
func copyMemory(target, source *os.File, skipZeros bool) error {
	list, err := extents(source)
	if err != nil {
		return err
	}
	if len(list) == 0 {
		return nil
	}
	size := list[len(list)-1].end
	memory, err := unix.Mmap(int(source.Fd()), 0, int(size), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("%s: mmap: %w", source.Name(), err)
	}
	defer func() { _ = unix.Munmap(memory) }()

	var workers errgroup.Group
	workers.SetLimit(runtime.GOMAXPROCS(0))
	for _, e := range list {
		for start := e.start; start < e.end; start += copyChunk {
			end := min(start+copyChunk, e.end)
			workers.Go(func() error { return copyPages(target, memory, start, end, skipZeros) })
		}
	}
	if err := workers.Wait(); err != nil {
		return fmt.Errorf("%s: %w", target.Name(), err)
	}
	return nil
}

// copyPages writes memory[start:end] to the same place of target. Writing beats
// copying between two mappings: the kernel fills the new pages without a fault
// for each.
func copyPages(target *os.File, memory []byte, start, end int64, skipZeros bool) error {
	if !skipZeros {
		_, err := target.WriteAt(memory[start:end], start)
		return err
	}
	isZero := func(page int64) bool {
		return string(memory[page:min(page+pageSize, end)]) == string(zeroPage[:min(pageSize, end-page)])
	}
	for start < end {
		for start < end && isZero(start) {
			start += pageSize
		}
		stop := start
		for stop < end && !isZero(stop) {
			stop += pageSize
		}
		if stop > start {
			if _, err := target.WriteAt(memory[start:min(stop, end)], start); err != nil {
				return err
			}
		}
		start = stop
	}
	return nil
}
