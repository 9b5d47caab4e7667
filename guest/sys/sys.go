// SPDX-License-Identifier: BSD-3-Clause

// Package sys makes the system calls of the cases. Its functions are those of
// golang.org/x/sys/unix of the same names, but that each call is recorded, so
// that a failed case can be told call by call.
//
// A process runs one case at a time, so there is one record: SetRecorder gives
// it. Without one the functions only make the call.
package sys

import (
	"encoding/binary"
	"errors"
	"math"
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/zcvet/zcvet/guest/trace"
)

var recorder atomic.Pointer[trace.Recorder]

// SetRecorder makes r receive every call from now on; nil ends that.
func SetRecorder(r *trace.Recorder) { recorder.Store(r) }

// Recorder is where calls are recorded now. It may be nil, which records nothing.
func Recorder() *trace.Recorder { return recorder.Load() }

// Beyond notes something that a case does, or looks at, and that no recorded call
// shows.
func Beyond(what string) { Recorder().Mark(trace.Beyond, nil, what) }

// begin records the beginning of a call without data.
func begin(name string, arguments ...int64) uint64 {
	return Recorder().Begin(name, arguments, nil, 0)
}

// end records the end of a call that writes nothing.
func end(number uint64, result int64, err error) {
	Recorder().End(number, result, errnoOf(err), nil, nil, 0)
}

// errnoOf is the number of an error of this package, 0 for nil.
func errnoOf(err error) unix.Errno {
	if errno, ok := errors.AsType[unix.Errno](err); ok {
		return errno
	}
	if err != nil {
		return unix.EINVAL // package unix refused the arguments
	}
	return 0
}

// result is what a call returned: -1 with an error.
func result(value int, err error) int64 {
	if err != nil {
		return -1
	}
	return int64(value)
}

// Socket records domain, type and protocol.
func Socket(domain, kind, protocol int) (int, error) {
	n := begin("socket", int64(domain), int64(kind), int64(protocol))
	fd, err := unix.Socket(domain, kind, protocol)
	end(n, result(fd, err), err)
	return fd, err
}

// Close records the descriptor.
func Close(fd int) error {
	n := begin("close", int64(fd))
	err := unix.Close(fd)
	end(n, result(0, err), err)
	return err
}

// Bind records the descriptor and the address.
func Bind(fd int, address unix.Sockaddr) error {
	n := Recorder().Begin("bind", []int64{int64(fd)}, []trace.Memory{rawAddress(address)}, 1)
	err := unix.Bind(fd, address)
	end(n, result(0, err), err)
	return err
}

// Connect records the descriptor and the address.
func Connect(fd int, address unix.Sockaddr) error {
	n := Recorder().Begin("connect", []int64{int64(fd)}, []trace.Memory{rawAddress(address)}, 1)
	err := unix.Connect(fd, address)
	end(n, result(0, err), err)
	return err
}

// Listen records the descriptor and the backlog.
func Listen(fd, backlog int) error {
	n := begin("listen", int64(fd), int64(backlog))
	err := unix.Listen(fd, backlog)
	end(n, result(0, err), err)
	return err
}

// Accept4 records the descriptor and the flags.
func Accept4(fd, flags int) (int, unix.Sockaddr, error) {
	n := begin("accept4", int64(fd), int64(flags))
	accepted, address, err := unix.Accept4(fd, flags)
	end(n, result(accepted, err), err)
	return accepted, address, err
}

// Getsockname records the descriptor, and the address as outcome.
func Getsockname(fd int) (unix.Sockaddr, error) {
	n := begin("getsockname", int64(fd))
	address, err := unix.Getsockname(fd)
	var out []trace.Memory
	if err == nil {
		out = append(out, rawAddress(address))
	}
	Recorder().End(n, result(0, err), errnoOf(err), nil, out, 1)
	return address, err
}

// Shutdown records the descriptor and how.
func Shutdown(fd, how int) error {
	n := begin("shutdown", int64(fd), int64(how))
	err := unix.Shutdown(fd, how)
	end(n, result(0, err), err)
	return err
}

// setOption records descriptor, level and option, and the value as the kernel
// gets it.
func setOption(fd, level, option int, value []byte, set func() error) error {
	n := Recorder().Begin("setsockopt", []int64{int64(fd), int64(level), int64(option)}, []trace.Memory{{Length: len(value), Bytes: value}}, 1)
	err := set()
	end(n, result(0, err), err)
	return err
}

// SetsockoptInt is recorded as setsockopt.
func SetsockoptInt(fd, level, option, value int) error {
	raw := binary.NativeEndian.AppendUint32(nil, uint32(value))
	return setOption(fd, level, option, raw, func() error { return unix.SetsockoptInt(fd, level, option, value) })
}

// SetsockoptTimeval is recorded as setsockopt.
func SetsockoptTimeval(fd, level, option int, value *unix.Timeval) error {
	raw := binary.NativeEndian.AppendUint64(nil, uint64(value.Sec))
	raw = binary.NativeEndian.AppendUint64(raw, uint64(value.Usec))
	return setOption(fd, level, option, raw, func() error { return unix.SetsockoptTimeval(fd, level, option, value) })
}

// SetsockoptLinger is recorded as setsockopt.
func SetsockoptLinger(fd, level, option int, value *unix.Linger) error {
	raw := binary.NativeEndian.AppendUint32(nil, uint32(value.Onoff))
	raw = binary.NativeEndian.AppendUint32(raw, uint32(value.Linger))
	return setOption(fd, level, option, raw, func() error { return unix.SetsockoptLinger(fd, level, option, value) })
}

// SetsockoptString is recorded as setsockopt.
func SetsockoptString(fd, level, option int, value string) error {
	return setOption(fd, level, option, []byte(value), func() error { return unix.SetsockoptString(fd, level, option, value) })
}

// SetsockoptBytes is recorded as setsockopt. The kernel gets the value where it is.
func SetsockoptBytes(fd, level, option int, value []byte) error {
	return setOption(fd, level, option, value, func() error {
		_, _, errno := unix.Syscall6(unix.SYS_SETSOCKOPT, uintptr(fd), uintptr(level), uintptr(option),
			uintptr(unsafe.Pointer(unsafe.SliceData(value))), uintptr(len(value)), 0)
		if errno != 0 {
			return errno
		}
		return nil
	})
}

// GetsockoptInt is recorded as getsockopt, the value as outcome.
func GetsockoptInt(fd, level, option int) (int, error) {
	n := begin("getsockopt", int64(fd), int64(level), int64(option))
	value, err := unix.GetsockoptInt(fd, level, option)
	Recorder().End(n, result(0, err), errnoOf(err), []int64{int64(value)}, nil, 0)
	return value, err
}

// FcntlInt records descriptor, command and argument.
func FcntlInt(fd uintptr, command, argument int) (int, error) {
	n := begin("fcntl", int64(fd), int64(command), int64(argument))
	value, err := unix.FcntlInt(fd, command, argument)
	end(n, result(value, err), err)
	return value, err
}

// Poll records the time-out in milliseconds, and for each entry the descriptor
// and the events asked for; the events reported are the outcome.
func Poll(entries []unix.PollFd, timeout int) (int, error) {
	arguments, reported := []int64{int64(timeout)}, make([]int64, len(entries))
	for _, entry := range entries {
		arguments = append(arguments, int64(entry.Fd), int64(entry.Events))
	}
	n := begin("poll", arguments...)
	count, err := unix.Poll(entries, timeout)
	for i, entry := range entries {
		reported[i] = int64(entry.Revents)
	}
	Recorder().End(n, result(count, err), errnoOf(err), reported, nil, 0)
	return count, err
}

// EpollCreate1 records the flags.
func EpollCreate1(flags int) (int, error) {
	n := begin("epoll_create1", int64(flags))
	fd, err := unix.EpollCreate1(flags)
	end(n, result(fd, err), err)
	return fd, err
}

// EpollCtl records epoll's descriptor, the operation, the descriptor and the
// events.
func EpollCtl(epoll, operation, fd int, event *unix.EpollEvent) error {
	events := int64(0)
	if event != nil {
		events = int64(event.Events)
	}
	n := begin("epoll_ctl", int64(epoll), int64(operation), int64(fd), events)
	err := unix.EpollCtl(epoll, operation, fd, event)
	end(n, result(0, err), err)
	return err
}

// EpollWait records epoll's descriptor, the room for events and the time-out in
// milliseconds; the events reported are the outcome.
func EpollWait(epoll int, events []unix.EpollEvent, timeout int) (int, error) {
	n := begin("epoll_wait", int64(epoll), int64(len(events)), int64(timeout))
	count, err := unix.EpollWait(epoll, events, timeout)
	var reported []int64
	for _, event := range events[:max(count, 0)] {
		reported = append(reported, int64(event.Events))
	}
	Recorder().End(n, result(count, err), errnoOf(err), reported, nil, 0)
	return count, err
}

// Read records the descriptor and the room.
func Read(fd int, buffer []byte) (int, error) {
	n := Recorder().Begin("read", []int64{int64(fd)}, []trace.Memory{trace.Of(buffer)}, 0)
	count, err := unix.Read(fd, buffer)
	Recorder().End(n, result(count, err), errnoOf(err), nil, []trace.Memory{trace.Of(buffer[:max(count, 0)])}, 0)
	return count, err
}

// Recvfrom records the descriptor, the flags and the room.
func Recvfrom(fd int, buffer []byte, flags int) (int, unix.Sockaddr, error) {
	n := begin("recvfrom", int64(fd), int64(flags), int64(len(buffer)))
	count, from, err := unix.Recvfrom(fd, buffer, flags)
	Recorder().End(n, result(count, err), errnoOf(err), nil, []trace.Memory{trace.Of(buffer[:max(count, 0)])}, 0)
	return count, from, err
}

// Send is recorded as sendto.
func Send(fd int, data []byte, flags int) error {
	n := Recorder().Begin("sendto", []int64{int64(fd), int64(flags)}, []trace.Memory{{Bytes: []byte{}}, trace.Of(data)}, 1)
	err := unix.Send(fd, data, flags)
	end(n, result(len(data), err), err)
	return err
}

// Sendto records the descriptor, the flags, the address and the data.
func Sendto(fd int, data []byte, flags int, to unix.Sockaddr) error {
	n := Recorder().Begin("sendto", []int64{int64(fd), int64(flags)}, []trace.Memory{rawAddress(to), trace.Of(data)}, 1)
	err := unix.Sendto(fd, data, flags, to)
	end(n, result(len(data), err), err)
	return err
}

// SendmsgN is recorded as sendto: it is for messages without control data.
func SendmsgN(fd int, data, control []byte, to unix.Sockaddr, flags int) (int, error) {
	n := Recorder().Begin("sendto", []int64{int64(fd), int64(flags)}, []trace.Memory{rawAddress(to), trace.Of(data)}, 1)
	count, err := unix.SendmsgN(fd, data, control, to, flags)
	end(n, result(count, err), err)
	return count, err
}

// Mmap records length, protection and flags of an anonymous mapping; where it is
// is the result.
func Mmap(length, protection, flags int) ([]byte, error) {
	n := begin("mmap", int64(length), int64(protection), int64(flags))
	data, err := unix.Mmap(-1, 0, length, protection, flags)
	end(n, int64(trace.Of(data).Address), err)
	return data, err
}

// MmapFile is Mmap of a file from its beginning; it records the descriptor first.
func MmapFile(fd, length, protection, flags int) ([]byte, error) {
	n := begin("mmap-file", int64(fd), int64(length), int64(protection), int64(flags))
	data, err := unix.Mmap(fd, 0, length, protection, flags)
	end(n, int64(trace.Of(data).Address), err)
	return data, err
}

// MunmapPart unmaps whole pages of a mapping, of which Munmap then takes the
// rest. It records what Munmap does.
func MunmapPart(data []byte) error {
	n := begin("munmap", int64(trace.Of(data).Address), int64(len(data)))
	_, _, errno := unix.Syscall(unix.SYS_MUNMAP, uintptr(unsafe.Pointer(unsafe.SliceData(data))), uintptr(len(data)), 0)
	var err error
	if errno != 0 {
		err = errno
	}
	end(n, result(0, err), err)
	return err
}

// Munmap records the place and the length.
func Munmap(data []byte) error {
	n := begin("munmap", int64(trace.Of(data).Address), int64(len(data)))
	err := unix.Munmap(data)
	end(n, result(0, err), err)
	return err
}

// Mprotect records the place, the length and the protection.
func Mprotect(data []byte, protection int) error {
	n := begin("mprotect", int64(trace.Of(data).Address), int64(len(data)), int64(protection))
	err := unix.Mprotect(data, protection)
	end(n, result(0, err), err)
	return err
}

// Setrlimit records the resource and the soft and hard limit.
func Setrlimit(resource int, limit *unix.Rlimit) error {
	n := begin("setrlimit", int64(resource), clamp(limit.Cur), clamp(limit.Max))
	err := unix.Setrlimit(resource, limit)
	end(n, result(0, err), err)
	return err
}

func clamp(value uint64) int64 {
	if value > math.MaxInt64 {
		return -1 // RLIM_INFINITY
	}
	return int64(value)
}

// Capset records the low and the high half of the effective capabilities.
func Capset(header *unix.CapUserHeader, data *[2]unix.CapUserData) error {
	n := begin("capset", int64(data[0].Effective), int64(data[1].Effective))
	err := unix.Capset(header, &data[0])
	end(n, result(0, err), err)
	return err
}

// WriteFile writes to a file that exists, such as a sysctl, and records the path
// and what was written.
func WriteFile(path string, data []byte) error {
	n := Recorder().Begin("writefile", nil, []trace.Memory{{Length: len(path), Bytes: []byte(path)}, {Length: len(data), Bytes: data}}, 2)
	err := os.WriteFile(path, data, 0)
	end(n, result(len(data), err), err)
	return err
}

// rawAddress is a socket address as the kernel gets it; no bytes for a family
// that the cases do not use.
func rawAddress(address unix.Sockaddr) trace.Memory {
	raw := []byte{}
	switch address := address.(type) {
	case *unix.SockaddrInet4:
		raw = make([]byte, unix.SizeofSockaddrInet4)
		binary.NativeEndian.PutUint16(raw, unix.AF_INET)
		binary.BigEndian.PutUint16(raw[2:], uint16(address.Port))
		copy(raw[4:], address.Addr[:])
	case *unix.SockaddrInet6:
		raw = make([]byte, unix.SizeofSockaddrInet6)
		binary.NativeEndian.PutUint16(raw, unix.AF_INET6)
		binary.BigEndian.PutUint16(raw[2:], uint16(address.Port))
		copy(raw[8:], address.Addr[:])
		binary.NativeEndian.PutUint32(raw[24:], address.ZoneId)
	case *unix.SockaddrVM:
		raw = make([]byte, unix.SizeofSockaddrVM)
		binary.NativeEndian.PutUint16(raw, unix.AF_VSOCK)
		binary.NativeEndian.PutUint32(raw[4:], address.Port)
		binary.NativeEndian.PutUint32(raw[8:], address.CID)
	}
	return trace.Memory{Length: len(raw), Bytes: raw}
}

// Sendfile records both descriptors and the length.
func Sendfile(out, in int, offset *int64, count int) (int, error) {
	n := begin("sendfile", int64(out), int64(in), int64(count))
	sent, err := unix.Sendfile(out, in, offset, count)
	end(n, result(sent, err), err)
	return sent, err
}

// Splice records both descriptors, the length and the flags.
func Splice(in int, inOffset *int64, out int, outOffset *int64, length, flags int) (int64, error) {
	n := begin("splice", int64(in), int64(out), int64(length), int64(flags))
	moved, err := unix.Splice(in, inOffset, out, outOffset, length, flags)
	end(n, result(int(moved), err), err)
	return int64(moved), err // an int in a 32-bit build
}
