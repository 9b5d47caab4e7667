// SPDX-License-Identifier: BSD-3-Clause

// Package leak counts from user space what the kernel keeps for sockets and
// zero-copy sends, so that what is left behind can be told by comparing before
// and after.
//
// Counted are
//
//   - sockets: one leaves the count of its namespace when its last reference
//     goes (__sk_free). A socket buffer or a notification that is never freed
//     holds its socket, so the number of sockets tells of those too.
//   - pages that were given to the kernel. MSG_ZEROCOPY takes plain references
//     and pins nothing (iov_iter_get_pages2), so the pin counters of vmstat do
//     not see them, and /proc/kpagecount counts mappings only. But a page that is
//     anonymous although nobody maps it is held by somebody: freeing it makes it
//     anonymous no more.
//   - pins, which the registered buffers of io_uring are.
package leak

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/zcvet/zcvet/guest/network"
	"github.com/zcvet/zcvet/guest/notify"
)

// Counters are open files of /proc, each read from its beginning again and
// again. What a kernel does not offer is not counted; Missing tells why. They
// must not be used from several goroutines.
type Counters struct {
	sockstat map[string]*os.File // by the name of the namespace
	flags    *os.File            // kpageflags
	pagemap  *os.File
	vmstat   *os.File
	refresh  *os.File // stat_refresh
	missing  map[string]error
}

// What can be counted, as [Counters.Missing] names it.
const (
	Sockets = "sockets"
	Pages   = "pages"
	Pins    = "pins"
)

// Kinds lists what can be counted.
var Kinds = []string{Sockets, Pages, Pins}

// Open opens the counters, those of sockets for each of the namespaces.
func Open(namespaces map[string]*network.Namespace) *Counters {
	c := &Counters{sockstat: make(map[string]*os.File), missing: make(map[string]error)}
	open := func(kind, path string) *os.File {
		file, err := os.Open(path)
		if err != nil {
			c.missing[kind] = err
		}
		return file
	}
	for name, namespace := range namespaces {
		err := namespace.Do(func() error {
			// The file belongs to the namespace it was opened in.
			c.sockstat[name] = open(Sockets, "/proc/thread-self/net/sockstat")
			return nil
		})
		if err != nil {
			c.missing[Sockets] = err
		}
	}
	c.flags = open(Pages, "/proc/kpageflags")
	c.pagemap = open(Pages, notify.Pagemap)
	c.vmstat = open(Pins, "/proc/vmstat")
	c.refresh = open(Pins, "/proc/sys/vm/stat_refresh")
	return c
}

// Close closes the counters.
func (c *Counters) Close() {
	for _, file := range c.sockstat {
		_ = file.Close()
	}
	for _, file := range []*os.File{c.flags, c.pagemap, c.vmstat, c.refresh} {
		_ = file.Close()
	}
}

// Missing returns why a kind is not counted, or nil when it is.
func (c *Counters) Missing(kind string) error { return c.missing[kind] }

// Count is the state of the counters at one moment.
type Count struct {
	// Sockets counts the sockets of each namespace, closed ones that somebody
	// still refers to included.
	Sockets map[string]int
	// Details is the whole of sockstat, for messages.
	Details map[string]string
	// Pinned and Unpinned count pages since boot, both 0 if not asked for.
	Pinned, Unpinned uint64
}

// Take reads the counters, those of pins only with pins: to count exactly makes
// every processor work, milliseconds on a busy machine.
func (c *Counters) Take(pins bool) (Count, error) {
	count := Count{Sockets: make(map[string]int), Details: make(map[string]string)}
	if c.missing[Sockets] == nil {
		for name, file := range c.sockstat {
			text, err := whole(file)
			if err != nil {
				return count, err
			}
			used, err := field(text, "sockets: used ")
			if err != nil {
				return count, err
			}
			count.Sockets[name] = int(used)
			count.Details[name] = strings.Join(strings.FieldsFunc(text, func(r rune) bool { return r == '\n' }), ", ")
		}
	}
	if pins && c.missing[Pins] == nil {
		// Reading it brings the counts of every processor into vmstat.
		if _, err := whole(c.refresh); err != nil {
			return count, err
		}
		text, err := whole(c.vmstat)
		if err != nil {
			return count, err
		}
		if count.Pinned, err = field(text, "nr_foll_pin_acquired "); err != nil {
			return count, err
		}
		if count.Unpinned, err = field(text, "nr_foll_pin_released "); err != nil {
			return count, err
		}
	}
	return count, nil
}

// Since lists what there is more of than before, one line each.
func (count Count) Since(before Count) []string {
	var more []string
	for name, now := range count.Sockets {
		if then := before.Sockets[name]; now > then {
			more = append(more, fmt.Sprintf("%d sockets are in use in the %s's namespace, %d were before (%s)",
				now, name, then, count.Details[name]))
		}
	}
	slices.Sort(more)
	pinned, unpinned := count.Pinned-before.Pinned, count.Unpinned-before.Unpinned
	if pinned > unpinned {
		more = append(more, fmt.Sprintf("%d pages were pinned, %d of them unpinned", pinned, unpinned))
	}
	return more
}

// whole reads a file of /proc from its beginning; what is read here has some
// kilobytes at most.
func whole(file *os.File) (string, error) {
	text := make([]byte, 32<<10)
	length, err := file.ReadAt(text, 0)
	if !errors.Is(err, io.EOF) {
		return "", fmt.Errorf("read all of %s: %w", file.Name(), err)
	}
	return string(text[:length]), nil
}

// field returns the number behind a label at the beginning of a line.
func field(text, label string) (uint64, error) {
	for line := range strings.Lines(text) {
		if number, ok := strings.CutPrefix(line, label); ok {
			value, err := strconv.ParseUint(strings.TrimSpace(number), 10, 64)
			if err != nil {
				return 0, fmt.Errorf("%q: %w", strings.TrimSpace(line), err)
			}
			return value, nil
		}
	}
	return 0, fmt.Errorf("no line begins with %q", label)
}

// Bits of a /proc/kpageflags entry (uapi/linux/kernel-page-flags.h).
const (
	pageMapped    = 1 << 11
	pageAnonymous = 1 << 12
)

// Frames returns the physical addresses of memory, for Held.
func (c *Counters) Frames(memory *notify.Memory) ([]uint64, error) {
	if err := c.missing[Pages]; err != nil {
		return nil, err
	}
	return memory.PhysicalIn(c.pagemap)
}

// Held returns those of the pages, given by their physical addresses, that have
// been unmapped everywhere and are not free: somebody holds a reference. Pages
// of a file and pages of hugetlbfs are never among them.
func (c *Counters) Held(pages []uint64) ([]uint64, error) {
	if err := c.missing[Pages]; err != nil || len(pages) == 0 {
		return nil, err
	}
	size := uint64(notify.PageSize)
	sorted := slices.Sorted(slices.Values(pages))
	var held []uint64
	// Neighbours are read with one call.
	for first := 0; first < len(sorted); {
		end := first + 1
		for end < len(sorted) && sorted[end] == sorted[end-1]+size {
			end++
		}
		entries := make([]byte, 8*(end-first))
		if _, err := c.flags.ReadAt(entries, int64(sorted[first]/size*8)); err != nil {
			return nil, fmt.Errorf("read kpageflags: %w", err)
		}
		for i := first; i < end; i++ {
			entry := binary.NativeEndian.Uint64(entries[8*(i-first):])
			if entry&pageAnonymous != 0 && entry&pageMapped == 0 {
				held = append(held, sorted[i])
			}
		}
		first = end
	}
	return held, nil
}

// FlushBatches makes every processor, by a visit to each, let go of the pages that
// it keeps a reference to only because it has not put them on a list yet. Before
// that a page that was mapped a moment ago can seem to be held.
func FlushBatches() error {
	var allowed unix.CPUSet
	if err := unix.SchedGetaffinity(0, &allowed); err != nil {
		return fmt.Errorf("sched_getaffinity: %w", err)
	}
	if allowed.Count() == 1 {
		return flushBatch()
	}
	defer func() { _ = unix.SchedSetaffinity(0, &allowed) }()
	for number := range int(unsafe.Sizeof(allowed)) * 8 {
		if !allowed.IsSet(number) {
			continue
		}
		var one unix.CPUSet
		one.Set(number)
		if err := unix.SchedSetaffinity(0, &one); err != nil {
			return fmt.Errorf("visit processor %d: %w", number, err)
		}
		if err := flushBatch(); err != nil {
			return err
		}
	}
	return nil
}

// flushBatch is FlushBatches for the processor that the caller's thread runs on.
func flushBatch() error {
	page, err := unix.Mmap(-1, 0, notify.PageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return fmt.Errorf("mmap: %w", err)
	}
	defer func() { _ = unix.Munmap(page) }()
	// Locking memory flushes the batches of the processor it runs on
	// (mlock_vma_pages_range), in every kernel since 5.18.
	if err := errors.Join(unix.Mlock(page), unix.Munlock(page)); err != nil {
		return fmt.Errorf("flush the batch of a processor: %w", err)
	}
	return nil
}
