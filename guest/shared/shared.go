// SPDX-License-Identifier: BSD-3-Clause

// Package shared is memory that several processes of the guest have, and that
// outlives each of them.
package shared

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// New returns a file in memory of so many bytes, all 0, that can be handed on to
// other processes.
func New(name string, size int) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	file := os.NewFile(uintptr(fd), name)
	if err := file.Truncate(int64(size)); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return file, nil
}

// Map maps the bytes of such a file. They stay mapped.
func Map(fd, size int) ([]byte, error) {
	return unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
}
