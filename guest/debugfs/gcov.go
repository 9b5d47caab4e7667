// SPDX-License-Identifier: BSD-3-Clause

// Package debugfs reads what a debugging kernel has found out while the cases
// ran: how often lines were executed, and which memory nobody points to any more.
package debugfs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/zcvet/zcvet/guest/link"
)

// Root is where debugfs is mounted.
const Root = "/sys/kernel/debug"

// maxCounters bounds what CountersOf reads, in bytes. In a message it takes a
// third more. The counters of a large file of the network stack are some 30 KiB.
const maxCounters = link.MaxFrame / 2

// errNoGCov tells a kernel without CONFIG_GCOV_KERNEL.
var errNoGCov = errors.New("the kernel was not built to count executed lines")

// HasGCov returns nil on a kernel that counts, and otherwise the reason.
func HasGCov(root string) error { return has(filepath.Join(root, "gcov", "reset"), errNoGCov) }

func has(name string, without error) error {
	_, err := os.Stat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return without
	}
	return err
}

// ResetCounters sets all counters to 0, so that what the kernel executed before
// does not show. It does nothing on a kernel that has none.
func ResetCounters(root string) error {
	err := os.WriteFile(filepath.Join(root, "gcov", "reset"), []byte("1"), 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// CountersOf reads the counters of every file that has some. What went wrong is in
// the answer, with the files read until then.
func CountersOf(root string) link.Counters {
	var counters link.Counters
	if err := HasGCov(root); err != nil {
		counters.Error = err.Error()
		return counters
	}
	left := maxCounters
	err := filepath.WalkDir(filepath.Join(root, "gcov"), func(path string, entry fs.DirEntry, err error) error {
		// Beside the counters lie links to the compiler's notes, which the
		// guest does not have.
		if err != nil || !entry.Type().IsRegular() || filepath.Ext(path) != ".gcda" {
			return err
		}
		data, err := readAtMost(path, left)
		if err != nil {
			return err
		}
		left -= len(data)
		counters.Files = append(counters.Files, link.CountersFile{Path: path, Data: data})
		return nil
	})
	if err != nil {
		counters.Error = err.Error()
	}
	return counters
}

// readAtMost reads a file, unless it is longer than limit.
func readAtMost(path string, limit int) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }()
	data, err := io.ReadAll(io.LimitReader(file, int64(limit)+1))
	if err != nil {
		return nil, err
	}
	if len(data) > limit {
		return nil, fmt.Errorf("%s: more counters than a message takes", path)
	}
	return data, nil
}
