// SPDX-License-Identifier: BSD-3-Clause

package reproducer_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/zcvet/zcvet/guest/notify"
	"github.com/zcvet/zcvet/guest/trace"
	"github.com/zcvet/zcvet/harness/reproducer"
	"github.com/zcvet/zcvet/harness/reproducer/reproducertest"
	"github.com/zcvet/zcvet/harness/verdict"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// script records calls that nobody made.
type script struct {
	t      *testing.T
	region []byte
	*trace.Recorder
	calls int
}

func newScript(t *testing.T) *script {
	t.Helper()
	region := make([]byte, trace.Size)
	s := &script{t: t, region: region, Recorder: trace.NewRecorder(region)}
	s.Start("made/up")
	return s
}

// Begin counts the calls and marks.
func (s *script) Begin(name string, arguments []int64, in []trace.Memory, data int) uint64 {
	s.calls++
	return s.Recorder.Begin(name, arguments, in, data)
}

func (s *script) record() *trace.Record {
	s.t.Helper()
	record, err := trace.Parse(s.region)
	if err != nil {
		s.t.Fatal(err)
	}
	for i := range record.Calls { // the test took its time, the case did not
		c := &record.Calls[i]
		c.Began = time.Duration(i) * time.Microsecond
		c.Ended = c.Began
		c.Thread = 1 // whatever Go made of it
	}
	return record
}

func memory(address uint64, bytes []byte) trace.Memory {
	return trace.Memory{Address: address, Length: len(bytes), Bytes: bytes}
}

func (s *script) call(name string, result int64, errno unix.Errno, arguments ...int64) {
	s.End(s.Begin(name, arguments, nil, 0), result, errno, nil, nil, 0)
}

// socket is the beginning of all cases: a datagram socket 4 sends to 3.
func (s *script) pair() {
	name := notify.Address(addrPort("127.0.0.1:0"))
	bound := notify.Address(addrPort("127.0.0.1:40000"))
	s.call("socket", 3, 0, unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	s.limits(3)
	s.End(s.Begin("bind", []int64{3}, []trace.Memory{memory(0, name)}, 1), 0, 0, nil, nil, 0)
	s.call("socket", 4, 0, unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	s.option(4, unix.SOL_SOCKET, unix.SO_ZEROCOPY, 1, 0)
	s.End(s.Begin("getsockname", []int64{3}, nil, 0), 0, 0, nil, []trace.Memory{memory(0, bound)}, 1)
	s.End(s.Begin("connect", []int64{4}, []trace.Memory{memory(0, bound)}, 1), 0, 0, nil, nil, 0)
}

func (s *script) limits(fd int64) {
	value := binary.NativeEndian.AppendUint64(make([]byte, 0, 16), 5)
	value = binary.NativeEndian.AppendUint64(value, 0)
	for _, option := range []int64{unix.SO_RCVTIMEO, unix.SO_SNDTIMEO} {
		s.End(s.Begin("setsockopt", []int64{fd, unix.SOL_SOCKET, option}, []trace.Memory{memory(0, value)}, 1), 0, 0, nil, nil, 0)
	}
}

func (s *script) option(fd, level, option int64, value int32, errno unix.Errno) {
	raw := binary.NativeEndian.AppendUint32(nil, uint32(value))
	result := int64(0)
	if errno != 0 {
		result = -1
	}
	s.End(s.Begin("setsockopt", []int64{fd, level, option}, []trace.Memory{memory(0, raw)}, 1), result, errno, nil, nil, 0)
}

// sendmsg is a send of one buffer whose control buffer is control before and after
// afterwards.
func (s *script) sendmsg(fd, flags int64, data trace.Memory, control, after []byte, result int64, errno unix.Errno) {
	header := make([]byte, 56)
	binary.NativeEndian.PutUint64(header[40:], uint64(len(control)))
	n := s.Begin("sendmsg", []int64{fd, flags, 0, 0}, []trace.Memory{{Bytes: []byte{}}, memory(0xc000, control), data}, 2)
	s.End(n, result, errno, nil, []trace.Memory{memory(0, header), memory(0xc000, after)}, 2)
}

// errqueue is a read of the error queue that gives a notification, or EAGAIN.
func (s *script) errqueue(fd int64, ranges ...uint32) {
	n := s.Begin("recvmsg", []int64{fd, unix.MSG_ERRQUEUE, 0, 0}, []trace.Memory{{Bytes: []byte{}}, {Length: 512, Bytes: []byte{}}, {Length: 2048, Bytes: []byte{}}}, 2)
	if ranges == nil {
		s.End(n, -1, unix.EAGAIN, nil, nil, 0)
		return
	}
	data := make([]byte, 16)
	data[4], data[6] = 5, 1
	binary.NativeEndian.PutUint32(data[8:], ranges[0])
	binary.NativeEndian.PutUint32(data[12:], ranges[1])
	control := notify.AppendControl(nil, unix.SOL_IP, unix.IP_RECVERR, data)
	header := make([]byte, 56)
	binary.NativeEndian.PutUint32(header[48:], unix.MSG_ERRQUEUE)
	s.End(n, 0, 0, nil, []trace.Memory{memory(0, header), memory(0, control)}, 2)
}

// ringOfTwo sends two messages through an io_uring, of which the first has a
// notification for an answer, and waits for a completion that does not come.
func (s *script) ringOfTwo(request []byte) {
	const ring, length = 7, 4096
	for _, place := range []int64{0x7000, 0x8000, 0x9000, 0xa000, 0xb000} {
		s.call("mmap", place, 0, length, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	}
	s.call("io_uring_setup", ring, 0, 32)
	for i := range int64(2) {
		arguments := make([]int64, trace.RequestArguments)
		arguments[trace.RequestRing], arguments[trace.RequestFD] = ring, 4
		arguments[trace.RequestOperation], arguments[trace.RequestUserData] = 9, i+1
		arguments[trace.RequestFlags] = 4 * (1 - i)
		arguments[trace.RequestMessageFlags] = unix.MSG_ZEROCOPY
		arguments[trace.RequestAddress] = 0x8000 + i*0x1000
		in := []trace.Memory{{Bytes: []byte{}}, memory(uint64(0xa000+i*0x1000), request), memory(0x7000, make([]byte, 100))}
		s.End(s.Begin(trace.Request, arguments, in, 2), 0, 0, nil, nil, 0)
	}
	s.call("io_uring_enter", 2, 0, ring, 2)
	for i, after := range [][]byte{answer(request, 1, [3]uint32{0, 0, 1}), request} {
		outcome := make([]int64, trace.CompletionValues)
		outcome[trace.CompletionUserData], outcome[trace.CompletionResult] = int64(i+1), 100
		s.End(s.Begin(trace.Wait, []int64{ring, 6000}, nil, 0), 0, 0, outcome, []trace.Memory{memory(uint64(0xa000+i*0x1000), after)}, 1)
	}
	s.call(trace.Wait, -1, unix.ETIME, ring, 0)
}

// answer is the control buffer that a request for elements comes back as.
func answer(request []byte, size uint32, elements ...[3]uint32) []byte {
	after := bytes.Clone(request)
	data := after[16:]
	binary.NativeEndian.PutUint32(data, size)
	for i, e := range elements {
		binary.NativeEndian.PutUint32(data[4+12*i:], e[0])
		binary.NativeEndian.PutUint32(data[8+12*i:], e[1])
		data[12+12*i] = byte(e[2])
		clear(data[13+12*i:][:3])
	}
	return after
}

// narrow is a control message of a 32-bit task.
func narrow(level, kind int, data []byte) []byte {
	message := binary.NativeEndian.AppendUint32(nil, uint32(12+len(data)))
	message = binary.NativeEndian.AppendUint32(message, uint32(level))
	message = append(binary.NativeEndian.AppendUint32(message, uint32(kind)), data...)
	return append(message, make([]byte, (4-len(data)%4)%4)...)
}

func profile(t testing.TB, abi string) notify.Profile {
	t.Helper()
	p, err := notify.NewProfile(abi, 81)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func about(status verdict.Status) reproducer.About {
	return reproducer.About{
		Case: &verdict.Case{
			ID: "scm/fifo/udp/ipv4/lo", Name: "scm/fifo", Covers: []string{"N01", "Z30"}, Proto: "udp", Family: "ipv4", Link: "lo", Status: status,
		},
		Kernel: "6.12.117", Series: "net: return completions", Command: "zcvet run --kernel 6.12 --series mine --suite scm/fifo/udp/ipv4/lo",
		Style: trace.Style{Constant: 81, ABI: "v8"},
	}
}

// overlap is a case whose threads make 90 sends together; of those 3 are recorded for
// each of turns, and 3 that do not return. missing is how many calls are not recorded.
func overlap(t *testing.T, turns uint32, missing int) (reproducer.About, *trace.Record) {
	s := newScript(t)
	s.pair()
	begin := s.calls
	request := profile(t, "v8").Encode(1)
	for i := range turns {
		for range 3 {
			s.sendmsg(4, unix.MSG_ZEROCOPY, memory(0x9000, make([]byte, 100)), request, answer(request, 1, [3]uint32{i, i, 0}), 100, 0)
		}
		s.errqueue(4, i, i)
		s.errqueue(4)
		s.End(s.Begin("recvfrom", []int64{3, 0, 101}, nil, 0), 100, 0, nil, []trace.Memory{memory(0, make([]byte, 64))}, 0)
	}
	// Of the last send of each thread the end is not recorded.
	for range 3 {
		s.Begin("sendmsg", []int64{4, unix.MSG_ZEROCOPY, 0, 0},
			[]trace.Memory{{Bytes: []byte{}}, memory(0xc000, request), memory(0x9000, make([]byte, 100))}, 2)
	}
	end := s.calls
	s.errqueue(4)
	s.Mark(trace.Expectation, []int64{trace.ExactlyOnce, 4, 90})
	s.Mark(trace.Failure, nil, "90 sends, each to be notified exactly once: 7 twice")
	record := s.record()
	for i := begin; i < end; i++ {
		c := &record.Calls[i]
		if c.Returned {
			c.Ended = c.Began + 3*time.Microsecond
		}
		c.Thread += []int{1, 2, 3, 4, 4, 0}[(i-begin)%6]
	}
	for i := end; i < len(record.Calls); i++ {
		record.Calls[i].Began += 5 * time.Microsecond
		record.Calls[i].Ended += 5 * time.Microsecond
		record.Calls[i].Number += missing
	}
	return about(verdict.Fail), record
}

// programs are records that a program can be made of, by the name of the golden
// file.
var programs = map[string]func(t *testing.T) (reproducer.About, *trace.Record){
	"request": func(t *testing.T) (reproducer.About, *trace.Record) {
		s := newScript(t)
		s.pair()
		data := make([]byte, 64)
		notify.Pattern(data, 1)
		s.call("mmap", 0x7000, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
		for range 3 {
			s.sendmsg(4, unix.MSG_ZEROCOPY|unix.MSG_NOSIGNAL, memory(0x7000, data), nil, nil, 64, 0)
		}
		request := profile(t, "v8").Encode(2)
		s.sendmsg(4, 0, memory(0x9000, []byte("x")), request, answer(request, 1, [3]uint32{0, 2, 0}), 1, 0)
		s.Mark(trace.Failure, nil, "scm.go:87: [0,1] was expected, came [0,2]")
		s.call("close", 0, 0, 4)
		return about(verdict.Fail), s.record()
	},
	"vsock": func(t *testing.T) (reproducer.About, *trace.Record) {
		s := newScript(t)
		at := func(port uint32) trace.Memory { // the local context
			raw := binary.NativeEndian.AppendUint16(nil, unix.AF_VSOCK)
			raw = binary.NativeEndian.AppendUint32(append(raw, 0, 0), port)
			raw = binary.NativeEndian.AppendUint32(raw, unix.VMADDR_CID_LOCAL)
			return memory(0, append(raw, 0, 0, 0, 0))
		}
		s.call("socket", 3, 0, unix.AF_VSOCK, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
		s.End(s.Begin("bind", []int64{3}, []trace.Memory{at(unix.VMADDR_PORT_ANY)}, 1), 0, 0, nil, nil, 0)
		s.call("listen", 0, 0, 3, 8)
		s.call("socket", 4, 0, unix.AF_VSOCK, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
		s.option(4, unix.SOL_SOCKET, unix.SO_ZEROCOPY, 1, 0)
		s.End(s.Begin("getsockname", []int64{3}, nil, 0), 0, 0, nil, []trace.Memory{at(3_000_000_000)}, 1)
		s.End(s.Begin("connect", []int64{4}, []trace.Memory{at(3_000_000_000)}, 1), 0, 0, nil, nil, 0)
		s.call("accept4", 5, 0, 3, unix.SOCK_CLOEXEC)
		s.sendmsg(4, unix.MSG_ZEROCOPY, memory(0x9000, make([]byte, 1000)), nil, nil, 1000, 0)
		s.sendmsg(4, 0, memory(0x9000, []byte("x")), profile(t, "v8").Encode(1), profile(t, "v8").Encode(1), 1, 0)
		s.Mark(trace.Failure, nil, "the request was not answered")
		return about(verdict.Fail), s.record()
	},
	"msghdr": func(t *testing.T) (reproducer.About, *trace.Record) {
		s := newScript(t)
		s.pair()
		n := s.Begin("sendmsg", []int64{4, 0, 0, 0}, []trace.Memory{{Bytes: []byte{}}, {Bytes: []byte{}}, memory(9, []byte("x"))}, 2)
		header := make([]byte, 56)
		binary.NativeEndian.PutUint32(header[48:], unix.MSG_EOR)
		s.End(n, 1, 0, nil, []trace.Memory{memory(0, header)}, 2)
		s.Mark(trace.Failure, nil, "the kernel wrote to a const msghdr")
		return about(verdict.Fail), s.record()
	},
	"array": func(t *testing.T) (reproducer.About, *trace.Record) {
		s := newScript(t)
		s.pair()
		request := profile(t, "v6").Encode(3)
		after := bytes.Clone(request)
		copy(after[16:], make([]byte, 12))
		after[16+12+3] = 0x17 // in the second element: the kernel wrote something
		s.sendmsg(4, 0, memory(0x9000, []byte("x")), request, after, 1, 0)
		s.Mark(trace.Failure, nil, "bytes of the kernel")
		of := about(verdict.Fail)
		of.Style.ABI = "v6"
		return of, s.record()
	},
	"exactly-once": func(t *testing.T) (reproducer.About, *trace.Record) {
		s := newScript(t)
		s.pair()
		for range 3 {
			s.sendmsg(4, unix.MSG_ZEROCOPY, memory(0x9000, make([]byte, 1000)), nil, nil, 1000, 0)
		}
		request := profile(t, "v8").Encode(1)
		s.sendmsg(4, unix.MSG_DONTWAIT, memory(0x9000, []byte("x")), request, request, -1, unix.EAGAIN)
		s.errqueue(4, 1, 2)
		s.errqueue(4)
		s.End(s.Begin("poll", []int64{10000, 4, 0}, nil, 0), 0, 0, []int64{0}, nil, 0)
		s.errqueue(4)
		s.Mark(trace.Expectation, []int64{trace.ExactlyOnce, 4, 3})
		s.Mark(trace.Failure, nil, "3 sends, each to be notified exactly once: 0 missing")
		return about(verdict.Fail), s.record()
	},
	"order": func(t *testing.T) (reproducer.About, *trace.Record) {
		s := newScript(t)
		s.pair()
		for range 2 {
			s.sendmsg(4, unix.MSG_ZEROCOPY, memory(0x9000, make([]byte, 1000)), nil, nil, 1000, 0)
		}
		s.errqueue(4, 1, 1)
		s.errqueue(4, 0, 0)
		s.errqueue(4)
		s.Mark(trace.Expectation, []int64{trace.ExactlyOnce, 4, 2})
		s.Mark(trace.Failure, nil, "the second came first")
		return about(verdict.Fail), s.record()
	},
	"memory": func(t *testing.T) (reproducer.About, *trace.Record) {
		s := newScript(t)
		s.pair()
		pages, err := unix.Mmap(-1, 0, 3*4096, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Munmap(pages)
		at := int64(trace.Of(pages).Address)
		s.call("mmap", at, 0, 3*4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
		s.call("mprotect", 0, 0, at+4096, 4096, unix.PROT_NONE)
		data := make([]byte, 4096)
		notify.Pattern(data, 3)
		n := s.Begin("sendmsg", []int64{4, unix.MSG_ZEROCOPY, 0, 0},
			[]trace.Memory{{Bytes: []byte{}}, {Bytes: []byte{}}, memory(uint64(at), data), trace.Of(pages[4096:][:100])}, 2)
		s.End(n, -1, unix.EFAULT, nil, nil, 2)
		s.call("munmap", 0, 0, at, 3*4096)
		s.option(4, unix.SOL_SOCKET, unix.SO_ZEROCOPY, 2, unix.EINVAL)
		s.End(s.Begin("getsockopt", []int64{4, unix.SOL_SOCKET, unix.SO_ZEROCOPY}, nil, 0), 0, 0, []int64{1}, nil, 0)
		pieces := []trace.Memory{{Bytes: []byte{}}, {Bytes: []byte{}}}
		for i := range 18 {
			pieces = append(pieces, memory(uint64(0x9000+i), []byte{byte(i)}))
		}
		s.End(s.Begin("sendmsg", []int64{4, 0, 0, 0}, pieces, 2), 18, 0, nil, nil, 2)
		s.Mark(trace.Failure, nil, "EFAULT took an id")
		return about(verdict.Fail), s.record()
	},
	"fault": func(t *testing.T) (reproducer.About, *trace.Record) {
		s := newScript(t)
		s.pair()
		const controls, headers = 0x20000, 0x30000
		for _, at := range []int64{controls, headers} {
			s.call("mmap", at, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
			s.call("mprotect", 0, 0, at, 4096, unix.PROT_READ)
		}
		request := profile(t, "v8").Encode(1)
		n := s.Begin("sendmsg", []int64{4, 0, 0, headers + 8}, []trace.Memory{{Bytes: []byte{}}, memory(controls, request), memory(0x9000, []byte("x"))}, 2)
		s.End(n, -1, unix.EFAULT, nil, []trace.Memory{memory(headers+8, binary.NativeEndian.AppendUint64(make([]byte, 40), 32)), memory(controls, request)}, 2)
		s.call("mprotect", 0, 0, controls, 4096, unix.PROT_READ|unix.PROT_WRITE)
		s.sendmsg(4, 0, memory(0x9000, []byte("x")), request, answer(request, 0), 1, 0)
		s.Mark(trace.Failure, nil, "the notification is lost")
		return about(verdict.Fail), s.record()
	},
	"several": func(t *testing.T) (reproducer.About, *trace.Record) {
		s := newScript(t)
		s.pair()
		request := profile(t, "v8").Encode(1)
		n := s.Begin("sendmmsg", []int64{4, unix.MSG_ZEROCOPY, 1, 2}, []trace.Memory{
			{Bytes: []byte{}},
			memory(0xc000, request), memory(0x9000, []byte("one")),
			{Bytes: []byte{}},
			memory(0xc100, request), memory(0x9000, []byte("t")), memory(0x9001, []byte("wo")),
		}, 7)
		s.End(n, 2, 0, []int64{3, 3}, []trace.Memory{memory(0xc000, answer(request, 0)), memory(0xc100, answer(request, 1, [3]uint32{0, 0, 1}))}, 2)
		s.Mark(trace.Failure, nil, "the second message has the notification of the first")
		return about(verdict.Fail), s.record()
	},
	"readiness": func(t *testing.T) (reproducer.About, *trace.Record) {
		s := newScript(t)
		s.End(s.Begin("writefile", nil, []trace.Memory{memory(0, []byte("/proc/sys/net/core/optmem_max")), memory(0, []byte("20480"))}, 2), 5, 0, nil, nil, 0)
		s.pair()
		s.call("mmap", 0x7000, 0, 4096, unix.PROT_READ, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS) // for nothing
		s.call("epoll_create1", 7, 0, unix.EPOLL_CLOEXEC)
		s.call("epoll_ctl", 0, 0, 7, unix.EPOLL_CTL_ADD, 4, unix.EPOLLET)
		s.sendmsg(4, unix.MSG_ZEROCOPY, memory(0x9000, []byte("abc")), nil, nil, 3, 0)
		s.End(s.Begin("recvfrom", []int64{3, 0, 4}, nil, 0), 3, 0, nil, []trace.Memory{memory(0, []byte("abc"))}, 0)
		for range 5 {
			s.End(s.Begin("epoll_wait", []int64{7, 1, 0}, nil, 0), 0, 0, nil, nil, 0)
		}
		s.End(s.Begin("epoll_wait", []int64{7, 1, 0}, nil, 0), 1, 0, []int64{unix.EPOLLERR}, nil, 0)
		s.errqueue(4)
		s.errqueue(4, 0, 0)
		s.End(s.Begin("poll", []int64{0, 4, unix.POLLOUT}, nil, 0), 1, 0, []int64{unix.POLLERR | unix.POLLOUT}, nil, 0)
		s.Mark(trace.Failure, nil, "POLLERR with an empty queue")
		s.End(s.Begin("writefile", nil, []trace.Memory{memory(0, []byte("/proc/sys/net/core/optmem_max")), memory(0, []byte("131072\n"))}, 2), 7, 0, nil, nil, 0)
		return about(verdict.Fail), s.record()
	},
	"narrow": func(t *testing.T) (reproducer.About, *trace.Record) {
		s := newScript(t)
		s.Mark(trace.Task, nil)
		s.pair()
		value := binary.NativeEndian.AppendUint64(binary.NativeEndian.AppendUint64(nil, 1), 500)
		s.End(s.Begin("setsockopt", []int64{4, unix.SOL_SOCKET, unix.SO_SNDTIMEO}, []trace.Memory{memory(0, value)}, 1), 0, 0, nil, nil, 0)
		s.sendmsg(4, unix.MSG_ZEROCOPY, memory(0x9000, make([]byte, 100)), nil, nil, 100, 0)
		header := make([]byte, 28) // struct msghdr of a 32-bit task
		request := narrow(unix.SOL_IP, unix.IP_TOS, []byte{1})
		request = append(request, narrow(unix.SOL_SOCKET, 81, append([]byte{1, 0, 0, 0}, bytes.Repeat([]byte{0xa5}, 12)...))...)
		after := bytes.Clone(request)
		copy(after[16+12+4:], []byte{0, 0, 0, 0, 0, 0, 0, 0, 0})
		binary.NativeEndian.PutUint32(header[20:], uint32(len(request)))
		n := s.Begin("sendmsg", []int64{4, 0, 0, 0}, []trace.Memory{{Bytes: []byte{}}, memory(0xc000, request), memory(0x9000, []byte("x"))}, 2)
		s.End(n, 1, 0, nil, []trace.Memory{memory(0, header), memory(0xc000, after)}, 2)
		s.Mark(trace.Failure, nil, "the answer is at another place")
		record := s.record()
		for i := range record.Calls {
			record.Calls[i].Narrow = true
		}
		record.Calls[0].Narrow, record.Calls[0].Thread = false, 2 // of the case that started the task
		return about(verdict.Fail), record
	},
	"ring": func(t *testing.T) (reproducer.About, *trace.Record) {
		s := newScript(t)
		s.pair()
		s.ringOfTwo(profile(t, "v8").Encode(1))
		s.Mark(trace.Failure, nil, "the second answer was lost")
		return about(verdict.Fail), s.record()
	},
	"ring-once": func(t *testing.T) (reproducer.About, *trace.Record) {
		s := newScript(t)
		s.pair()
		s.ringOfTwo(profile(t, "v8").Encode(1))
		s.errqueue(4)
		s.Mark(trace.Expectation, []int64{trace.ExactlyOnce, 4, 2})
		s.Mark(trace.Failure, nil, "2 sends, each to be notified exactly once: 1 missing")
		return about(verdict.Fail), s.record()
	},
	"blocked": func(t *testing.T) (reproducer.About, *trace.Record) {
		s := newScript(t)
		s.pair()
		for range 2 {
			s.sendmsg(4, unix.MSG_ZEROCOPY, memory(0x9000, make([]byte, 1000)), nil, nil, 1000, 0)
		}
		waiting := s.calls
		request := profile(t, "v8").Encode(1)
		s.sendmsg(4, 0, memory(0x9000, []byte("x")), request, request, -1, unix.ECONNRESET)
		s.call("shutdown", 0, 0, 3, unix.SHUT_RDWR)
		s.call("close", 0, 0, 3)
		s.errqueue(4)
		s.Mark(trace.Expectation, []int64{trace.ExactlyOnce, 4, 2})
		s.Mark(trace.Failure, nil, "2 sends, each to be notified exactly once: 0-1 missing")
		record := s.record()
		record.Calls[waiting].Ended = record.Calls[waiting+2].Ended + 1
		record.Calls[waiting+1].Thread++
		record.Calls[waiting+2].Thread++
		for i := waiting + 3; i < len(record.Calls); i++ {
			record.Calls[i].Began += 2
		}
		return about(verdict.Fail), record
	},
	"overlap": func(t *testing.T) (reproducer.About, *trace.Record) { return overlap(t, 30, 100) },
	"sparse":  func(t *testing.T) (reproducer.About, *trace.Record) { return overlap(t, 2, 500) },
	"both": func(t *testing.T) (reproducer.About, *trace.Record) {
		s := newScript(t)
		s.pair()
		begin := s.calls
		s.sendmsg(4, unix.MSG_ZEROCOPY, memory(0x9000, make([]byte, 100)), nil, nil, 100, 0)
		s.sendmsg(4, unix.MSG_ZEROCOPY, memory(0x9000, make([]byte, 200)), nil, nil, -1, unix.EFAULT)
		s.Mark(trace.Failure, nil, "send: EFAULT")
		record := s.record()
		record.Calls[begin].Ended += 10
		record.Calls[begin+1].Began = record.Calls[begin].Began
		record.Calls[begin+1].Thread++
		return about(verdict.Fail), record
	},
	"race": func(t *testing.T) (reproducer.About, *trace.Record) {
		s := newScript(t)
		s.pair()
		for range 100 {
			s.errqueue(4)
		}
		for range 5 {
			s.Begin("sendmsg", []int64{4, 0, 0, 0}, []trace.Memory{{Bytes: []byte{}}, memory(0xc000, []byte("nonsense")), memory(0x9000, []byte("x"))}, 2)
		}
		record := s.record()
		for i := range record.Calls {
			if c := &record.Calls[i]; !c.Returned {
				c.Thread += i
			}
		}
		of := about(verdict.Crash)
		of.Complaint = "BUG: kernel NULL pointer dereference in sock_dequeue_err_skb"
		return of, record
	},
	"crash": func(t *testing.T) (reproducer.About, *trace.Record) {
		s := newScript(t)
		s.pair()
		s.Begin("sendmsg", []int64{4, 0, 0, 0}, []trace.Memory{{Bytes: []byte{}}, memory(0xc000, []byte("nonsense")), memory(0x9000, []byte("x"))}, 2)
		of := about(verdict.Crash)
		of.Complaint = "BUG: kernel NULL pointer dereference in __sock_cmsg_send"
		return of, s.record()
	},
	"hang": func(t *testing.T) (reproducer.About, *trace.Record) {
		s := newScript(t)
		s.pair()
		s.Begin("sendmsg", []int64{4, unix.MSG_ZEROCOPY, 0, 0}, []trace.Memory{{Bytes: []byte{}}, {Bytes: []byte{}}, memory(0x9000, []byte("x"))}, 2)
		return about(verdict.Timeout), s.record()
	},
	"hostile": func(t *testing.T) (reproducer.About, *trace.Record) {
		s := newScript(t)
		s.pair()
		s.sendmsg(4, -1, memory(0x9000, []byte("\"); system(\"x\"); /* ??/\n\\\x00\xff")), []byte("*/\" control"), []byte("*/\" control"), 3, 0)
		s.Mark(trace.Failure, nil, "*/ int main(void) { return system(\"x\"); } /* \n\r\\ ??/ \" \x00 \xff \u202e")
		of := about(verdict.Fail)
		of.Series, of.Command = "*/ \\\n#include \"x\"", "zcvet '*/'"
		return of, s.record()
	},
}

func TestGolden(t *testing.T) {
	for name, make := range programs {
		t.Run(name, func(t *testing.T) {
			got, err := reproducer.C(make(t))
			if err != nil {
				t.Fatal(err)
			}
			golden := filepath.Join("testdata", name+".c")
			if *update {
				if err := os.WriteFile(golden, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(string(want), string(got)); d != "" {
				t.Errorf("-want +got:\n%s", d)
			}
			compile(t, got)
		})
	}
}

// compile makes a program, if there is a compiler.
func compile(t *testing.T, source []byte) (program string) {
	t.Helper()
	if _, err := exec.LookPath("gcc"); err != nil {
		t.Skip("there is no gcc")
	}
	program = filepath.Join(t.TempDir(), "reproducer")
	if !reproducertest.Compile(t, program, source, "-O2") {
		t.Skip("gcc makes no 32-bit programs here")
	}
	return program
}

// What a program cannot do is refused, and the reason says what.
func TestImpossible(t *testing.T) {
	fails := func(s *script) (reproducer.About, *trace.Record) {
		s.Mark(trace.Failure, nil, "it failed")
		return about(verdict.Fail), s.record()
	}
	for reason, make := range map[string]func(s *script) (reproducer.About, *trace.Record){
		"link nic": func(s *script) (reproducer.About, *trace.Record) {
			of, record := fails(s)
			of.Case.Link = "nic"
			return of, record
		},
		"not recorded": func(*script) (reproducer.About, *trace.Record) { return about(verdict.Fail), nil },
		"NIC (hold)": func(s *script) (reproducer.About, *trace.Record) {
			s.pair()
			s.Mark(trace.Host, nil, "hold", "{}")
			return fails(s)
		},
		"needs fault injection": func(s *script) (reproducer.About, *trace.Record) {
			s.Mark(trace.Beyond, nil, "fault injection")
			return fails(s)
		},
		"second process (forked)": func(s *script) (reproducer.About, *trace.Record) {
			s.Mark(trace.Child, nil, "forked")
			return fails(s)
		},
		"calls of a 32-bit task and others": func(s *script) (reproducer.About, *trace.Record) {
			s.pair()
			of, record := fails(s)
			record.Calls[2].Narrow = true
			return of, record
		},
		"registered files or buffers": func(s *script) (reproducer.About, *trace.Record) {
			s.pair()
			s.call("io_uring_setup", 7, 0, 32)
			arguments := make([]int64, trace.RequestArguments)
			arguments[trace.RequestRing], arguments[trace.RequestPriority] = 7, 4
			s.End(s.Begin(trace.Request, arguments, []trace.Memory{{}, {}}, 2), 0, 0, nil, nil, 0)
			return fails(s)
		},
		"io_uring operation 77": func(s *script) (reproducer.About, *trace.Record) {
			s.pair()
			s.call("io_uring_setup", 7, 0, 32)
			arguments := make([]int64, trace.RequestArguments)
			arguments[trace.RequestRing], arguments[trace.RequestOperation] = 7, 77
			s.End(s.Begin(trace.Request, arguments, []trace.Memory{{}, {}}, 2), 0, 0, nil, nil, 0)
			return fails(s)
		},
		"an io_uring that was not opened": func(s *script) (reproducer.About, *trace.Record) {
			s.pair()
			s.call("io_uring_enter", 1, 0, 7, 1)
			return fails(s)
		},
		"descriptor": func(s *script) (reproducer.About, *trace.Record) {
			s.call("listen", 0, 0, 9, 8)
			return fails(s)
		},
		"the call sendfile": func(s *script) (reproducer.About, *trace.Record) {
			s.pair()
			s.call("sendfile", 8, 0, 4, 3, 8)
			return fails(s)
		},
		"before its first system call": fails,
		"the record does not have the expectation that failed": func(s *script) (reproducer.About, *trace.Record) {
			s.pair()
			return about(verdict.Fail), s.record()
		},
		"waited for something": func(s *script) (reproducer.About, *trace.Record) {
			s.pair()
			of, record := fails(s)
			record.Calls[len(record.Calls)-1].Began += 5 * time.Second
			return of, record
		},
		"more calls than are recorded": func(s *script) (reproducer.About, *trace.Record) {
			s.pair()
			of, record := fails(s)
			for i := 3; i < len(record.Calls); i++ {
				record.Calls[i].Number += 1000
			}
			return of, record
		},
		"make many calls at the same time": func(s *script) (reproducer.About, *trace.Record) {
			s.pair()
			begin := s.calls
			for i := range uint32(60) {
				s.errqueue(4, i, i)
			}
			of, record := fails(s)
			for i := begin; i < s.calls; i++ {
				record.Calls[i].Thread += i % 2
				record.Calls[i].Ended += 2 * time.Microsecond
			}
			return of, record
		},
		"none of the sends": func(s *script) (reproducer.About, *trace.Record) {
			s.pair()
			begin := s.calls
			for i := range uint32(60) {
				s.errqueue(4, i, i)
			}
			s.Mark(trace.Expectation, []int64{trace.ExactlyOnce, 4, 90})
			of, record := fails(s)
			for i := begin; i < begin+60; i++ {
				record.Calls[i].Thread += 1 + i%2
				record.Calls[i].Ended += 2 * time.Microsecond
				record.Calls[i].Number += 100
			}
			record.Calls[begin+60].Number += 100
			record.Calls[begin+61].Number += 100
			return of, record
		},
		"more than 64 threads": func(s *script) (reproducer.About, *trace.Record) {
			s.pair()
			for range 70 {
				s.errqueue(4)
			}
			of, record := fails(s)
			for i := range record.Calls {
				record.Calls[i].Thread += i
			}
			return of, record
		},
		"bytes at once": func(s *script) (reproducer.About, *trace.Record) {
			s.pair()
			begin := s.calls
			for range 2 {
				s.sendmsg(4, 0, memory(0x9000, make([]byte, 2<<20)), nil, nil, 2<<20, 0)
			}
			of, record := fails(s)
			record.Calls[begin].Ended = record.Calls[begin+1].Began + 1
			record.Calls[begin+1].Thread++
			return of, record
		},
		"different steps": func(s *script) (reproducer.About, *trace.Record) {
			s.pair()
			for i := range 300 {
				s.sendmsg(4, 0, memory(uint64(i), bytes.Repeat([]byte{'x'}, i*i%97+1)), nil, nil, int64(i*i%97+1), 0)
			}
			return fails(s)
		},
	} {
		t.Run(reason, func(t *testing.T) {
			_, err := reproducer.C(make(newScript(t)))
			if impossible, ok := errors.AsType[reproducer.Impossible](err); !ok || !strings.Contains(string(impossible), reason) {
				t.Errorf("got %v", err)
			}
		})
	}
}
