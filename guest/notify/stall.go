// SPDX-License-Identifier: BSD-3-Clause

package notify

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/zcvet/zcvet/guest/sys"
)

// The requests of userfaultfd (uapi/linux/userfaultfd.h).
const (
	uffdAPI             = 0xaa
	uffdioAPI           = 0xc018aa3f
	uffdioRegister      = 0xc020aa00
	uffdioUnregister    = 0x8010aa01
	uffdioCopy          = 0xc028aa03
	uffdRegisterMissing = 1
	uffdEventPagefault  = 0x12
	sizeofUffdMessage   = 32
	uffdMessageAddress  = 16 // offset of arg.pagefault.address
)

// Stall makes whoever touches a removed page wait, the kernel in the midst of a
// system call included, until the page is put back or the stall is over. So the
// moment between the kernel's look at user memory and its use lasts as long as a
// case likes.
type Stall struct {
	memory *Memory
	fd     int
}

// Stall registers the memory with userfaultfd. Without userfaultfd the error
// wraps unix.ENOSYS. Close the stall before the memory.
func (m *Memory) Stall() (*Stall, error) {
	fd, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC|unix.O_NONBLOCK, 0, 0)
	if errno != 0 {
		return nil, fmt.Errorf("userfaultfd: %w", errno)
	}
	s := &Stall{memory: m, fd: int(fd)}
	err := s.ioctl(uffdioAPI, uffdAPI, 0, 0) // version, features, and the answer
	if err == nil {
		err = s.ioctl(uffdioRegister, s.at(0), uint64(len(m.data)), uffdRegisterMissing, 0)
	}
	if err != nil {
		_ = unix.Close(s.fd)
		return nil, fmt.Errorf("register memory with userfaultfd: %w", err)
	}
	sys.Beyond("userfaultfd")
	return s, nil
}

// ioctl makes a request, whose structures consist of 64-bit numbers only.
func (s *Stall) ioctl(request uint32, structure ...uint64) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(s.fd), uintptr(request), uintptr(unsafe.Pointer(unsafe.SliceData(structure))))
	runtime.KeepAlive(structure)
	if errno != 0 {
		return errno
	}
	return nil
}

// at is the address of a page.
func (s *Stall) at(page int) uint64 {
	return uint64(s.memory.Address()) + uint64(page)*uint64(PageSize)
}

// Remove takes a page away, with what is in it: the next touch waits.
func (s *Stall) Remove(page int) error {
	return unix.Madvise(s.memory.data[page*PageSize:(page+1)*PageSize], unix.MADV_DONTNEED)
}

// Wait waits until a removed page is touched, at most for so long, and returns
// which. The error wraps unix.ETIMEDOUT when none was.
func (s *Stall) Wait(patience time.Duration) (page int, err error) {
	deadline := time.Now().Add(patience)
	for {
		var message [sizeofUffdMessage]byte
		_, err := unix.Read(s.fd, message[:])
		switch {
		case err == nil && message[0] == uffdEventPagefault:
			address := binary.NativeEndian.Uint64(message[uffdMessageAddress:])
			return int((address - s.at(0)) / uint64(PageSize)), nil
		case err == nil:
			return 0, fmt.Errorf("userfaultfd: event %#x", message[0])
		case errors.Is(err, unix.EINTR):
			continue
		case !errors.Is(err, unix.EAGAIN):
			return 0, fmt.Errorf("userfaultfd: %w", err)
		}
		left := time.Until(deadline)
		if left <= 0 {
			return 0, fmt.Errorf("no removed page was touched in %v: %w", patience, unix.ETIMEDOUT)
		}
		polled := []unix.PollFd{{Fd: int32(s.fd), Events: unix.POLLIN}}
		if _, err := unix.Poll(polled, int(left/time.Millisecond)+1); err != nil && !errors.Is(err, unix.EINTR) {
			return 0, fmt.Errorf("poll: %w", err)
		}
	}
}

// PutBack gives a removed page new content, at most a page, and lets whoever
// waits for it go on.
func (s *Stall) PutBack(page int, content []byte) error {
	whole, err := Pages(1)
	if err != nil {
		return err
	}
	defer func() { _ = whole.Close() }()
	copy(whole.data, content)
	// destination, source, length, mode, and the answer
	if err := s.ioctl(uffdioCopy, s.at(page), uint64(whole.Address()), uint64(PageSize), 0, 0); err != nil {
		return fmt.Errorf("put a page back: %w", err)
	}
	return nil
}

// Release ends the stall of all pages: whoever waits goes on and finds what the
// access rights of the memory allow now. A page that is still removed is zero.
func (s *Stall) Release() error {
	return s.ioctl(uffdioUnregister, s.at(0), uint64(len(s.memory.data)))
}

// Close ends the stall and gives up the descriptor. Closing again does nothing.
func (s *Stall) Close() error {
	if s.fd < 0 {
		return nil
	}
	fd := s.fd
	s.fd = -1
	return unix.Close(fd)
}
