// SPDX-License-Identifier: BSD-3-Clause

package uring

import (
	"bytes"
	"errors"
	"runtime"
	"slices"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/zcvet/zcvet/guest/notify"
)

// patience bounds waits for what must come.
const patience = 10 * time.Second

func TestLayout(t *testing.T) {
	for _, test := range []struct {
		name      string
		got, want uintptr
	}{
		{"struct io_uring_sqe", unsafe.Sizeof(Request{}), 64},
		{"sqe.addr", unsafe.Offsetof(Request{}.Address), 16},
		{"sqe.msg_flags", unsafe.Offsetof(Request{}.OpFlags), 28},
		{"sqe.user_data", unsafe.Offsetof(Request{}.UserData), 32},
		{"sqe.buf_index", unsafe.Offsetof(Request{}.BufferIndex), 40},
		{"sqe.addr_len", unsafe.Offsetof(Request{}.AddressLen), 44},
		{"sqe.addr3", unsafe.Offsetof(Request{}.Address3), 48},
		{"struct io_uring_cqe", unsafe.Sizeof(Completion{}), 16},
		{"struct io_uring_params", unsafe.Sizeof(parameters{}), 120},
		{"params.sq_off", unsafe.Offsetof(parameters{}.submission), 40},
		{"params.cq_off", unsafe.Offsetof(parameters{}.completion), 80},
		{"struct io_uring_getevents_arg", unsafe.Sizeof(extendedArgument{}), 24},
	} {
		if test.got != test.want {
			t.Errorf("%s: %d, want %d", test.name, test.got, test.want)
		}
	}
}

// newRing makes a ring on a thread that stays the test's.
func newRing(t *testing.T, requests int) *Ring {
	t.Helper()
	runtime.LockOSThread()
	t.Cleanup(runtime.UnlockOSThread)
	ring, err := New(requests)
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM) {
		t.Skipf("no io_uring on this machine: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ring.Close() })
	return ring
}

func wait(t *testing.T, ring *Ring) Completion {
	t.Helper()
	completion, err := ring.Wait(patience)
	if err != nil {
		t.Fatal(err)
	}
	return completion
}

func TestRequestsGoAroundTheRing(t *testing.T) {
	ring := newRing(t, 4)
	number := uint64(0)
	for range 10 {
		var requests []Request
		for range 3 {
			number++
			requests = append(requests, Request{Op: OpNop, UserData: number})
		}
		if err := ring.Submit(requests...); err != nil {
			t.Fatal(err)
		}
		for _, request := range requests {
			if got := wait(t, ring); got.UserData != request.UserData || got.Err() != nil || got.More() {
				t.Fatalf("request %d completed as %v", request.UserData, got)
			}
		}
	}
	if got, err := ring.Wait(0); !errors.Is(err, ErrNoCompletion) {
		t.Errorf("everything is completed, came %v, %v", got, err)
	}
	if err := ring.Submit(make([]Request, 5)...); err == nil {
		t.Error("five requests went into a ring of four")
	}
}

func TestWaitGivesUp(t *testing.T) {
	ring := newRing(t, 4)
	if got, err := ring.Wait(time.Millisecond); !errors.Is(err, ErrNoCompletion) {
		t.Errorf("nothing was asked, came %v, %v", got, err)
	}
}

func TestUnknownOperation(t *testing.T) {
	ring := newRing(t, 4)
	const unknown = 254
	if known, err := ring.Supports(unknown); err != nil || known {
		t.Errorf("operation %d is said to be known: %v, %v", unknown, known, err)
	}
	if known, err := ring.Supports(OpSendmsg); err != nil || !known {
		t.Errorf("OpSendmsg is said to be unknown: %v, %v", known, err)
	}
	if err := ring.Submit(Request{Op: unknown, UserData: 7}); err != nil {
		t.Fatal(err)
	}
	if got := wait(t, ring); got.UserData != 7 || !errors.Is(got.Err(), unix.EINVAL) {
		t.Errorf("an unknown operation completed as %v", got)
	}
}

// tcpPair returns the two ends of a connection on loopback.
func tcpPair(t *testing.T) (sender, receiver int) {
	t.Helper()
	fds := [3]int{}
	for i := range 2 {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		fds[i] = fd
		t.Cleanup(func() { _ = unix.Close(fd) })
	}
	if err := unix.Bind(fds[0], &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fds[0], 1); err != nil {
		t.Fatal(err)
	}
	name, err := unix.Getsockname(fds[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Connect(fds[1], name); err != nil {
		t.Fatal(err)
	}
	if fds[2], _, err = unix.Accept4(fds[0], unix.SOCK_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fds[2]) })
	return fds[1], fds[2]
}

func received(t *testing.T, fd, length int) []byte {
	t.Helper()
	data := make([]byte, length)
	for got := 0; got < length; {
		count, err := unix.Read(fd, data[got:])
		if err != nil || count == 0 {
			t.Fatalf("read: %d, %v", count, err)
		}
		got += count
	}
	return data
}

func TestSendmsg(t *testing.T) {
	ring := newRing(t, 4)
	sender, receiver := tcpPair(t)
	memory, err := notify.Pages(1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = memory.Close() })
	message := &notify.Message{Buffers: [][]byte{[]byte("hello, "), []byte("world")}}
	prepared := message.PrepareAt(memory.Bytes())
	// The second begins when the first is done, so the stream is in order.
	err = ring.Submit(
		Request{Op: OpSendmsg, Flags: Link, FD: int32(sender), Address: Address(memory.Bytes()), Length: 1, UserData: 1},
		Request{Op: OpSendmsg, Flags: Async, FD: int32(sender), Address: Address(memory.Bytes()), Length: 1, UserData: 2},
	)
	runtime.KeepAlive(prepared)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 2 {
		if got := wait(t, ring); got.UserData != uint64(i+1) || got.Result != 12 {
			t.Errorf("completion %d: %v", i, got)
		}
	}
	if got := received(t, receiver, 24); string(got) != "hello, worldhello, world" {
		t.Errorf("received %q", got)
	}
}

func TestSendZC(t *testing.T) {
	ring := newRing(t, 4)
	if known, err := ring.Supports(OpSendZC); err != nil || !known {
		t.Skipf("no zero-copy sends on this machine: %v", err)
	}
	sender, receiver := tcpPair(t)
	memory, err := notify.Pages(1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = memory.Close() })
	memory.Fill(3)
	if err := ring.RegisterBuffers(memory.Bytes()); err != nil {
		t.Fatal(err)
	}
	for _, priority := range []uint16{0, FixedBuffer} {
		err := ring.Submit(Request{
			Op: OpSendZC, IOPriority: priority, FD: int32(sender),
			Address: Address(memory.Bytes()), Length: 1000, UserData: 9,
		})
		if err != nil {
			t.Fatal(err)
		}
		if got := received(t, receiver, 1000); !bytes.Equal(got, memory.Bytes()[:1000]) {
			t.Error("the data changed on its way")
		}
		completions := []Completion{wait(t, ring), wait(t, ring)}
		notifications := slices.DeleteFunc(slices.Clone(completions), func(c Completion) bool { return !c.Notification() })
		if len(notifications) != 1 || completions[0].Result != 1000 || !completions[0].More() || completions[1].More() {
			t.Errorf("a zero-copy send completed as %v", completions)
		}
	}
	if err := ring.UnregisterBuffers(); err != nil {
		t.Error(err)
	}
}

func TestCloseTwice(t *testing.T) {
	ring := newRing(t, 4)
	for range 2 {
		if err := ring.Close(); err != nil {
			t.Error(err)
		}
	}
}
