// SPDX-License-Identifier: BSD-3-Clause

package notify

import (
	"errors"
	"fmt"
	"runtime"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/zcvet/zcvet/guest/sys"
)

// Injector makes one allocation or copy fail in a call of the thread that opened
// it (Documentation/fault-injection/fault-injection.rst, fail-nth).
type Injector struct{ fd int }

// OpenInjector returns the injector of the calling thread, to which the goroutine
// must be locked for good. The error is unix.ENOENT in kernels without fault
// injection.
func OpenInjector() (*Injector, error) {
	fd, err := unix.Open("/proc/thread-self/fail-nth", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	sys.Beyond("fault injection")
	return &Injector{fd}, nil
}

// Close releases the injector.
func (i *Injector) Close() error { return unix.Close(i.fd) }

// SendFailing is Send with the nth allocation or copy of the call failing, from 1.
// Hit is false when the call made fewer of them. It must not block: Go's scheduler
// does not know of it. It is not recorded, as nothing may come between the
// injection and the call.
func (p *Prepared) SendFailing(fd int, with *Injector, nth int) (count int, hit bool, err error) {
	order := []byte(strconv.Itoa(nth))
	disarm := []byte("0")
	var left [16]byte
	flags := p.message.Flags | unix.MSG_DONTWAIT
	header := unsafe.Pointer(p.header)

	// From here to the disarming nothing but these calls may enter the kernel: an
	// allocation of the Go runtime would be the one that fails.
	_, _, armed := unix.RawSyscall(unix.SYS_PWRITE64, uintptr(with.fd), uintptr(unsafe.Pointer(&order[0])), uintptr(len(order)))
	result, _, errno := unix.RawSyscall(unix.SYS_SENDMSG, uintptr(fd), uintptr(header), uintptr(flags))
	length, _, unread := unix.RawSyscall(unix.SYS_PREAD64, uintptr(with.fd), uintptr(unsafe.Pointer(&left[0])), uintptr(len(left)))
	_, _, _ = unix.RawSyscall(unix.SYS_PWRITE64, uintptr(with.fd), uintptr(unsafe.Pointer(&disarm[0])), uintptr(len(disarm)))

	runtime.KeepAlive(p)
	switch {
	case armed != 0:
		return 0, false, fmt.Errorf("fail-nth: %w", armed)
	case unread == unix.EFAULT:
		// The read was the call to fail, so the send was not.
	case unread != 0:
		return 0, false, fmt.Errorf("fail-nth: %w", unread)
	default:
		hit = left[0] == '0' && length > 0
	}
	if errno != 0 {
		return 0, hit, errno
	}
	return int(result), hit, nil
}

// IsInjected tells whether an error can be that of an allocation or copy that
// failed.
func IsInjected(err error) bool {
	for _, possible := range []error{unix.ENOMEM, unix.ENOBUFS, unix.EFAULT, unix.EAGAIN} {
		if errors.Is(err, possible) {
			return true
		}
	}
	return false
}
