// SPDX-License-Identifier: BSD-3-Clause

package reproducer_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os/exec"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/zcvet/zcvet/guest/notify"
	"github.com/zcvet/zcvet/guest/sys"
	"github.com/zcvet/zcvet/guest/trace"
	"github.com/zcvet/zcvet/guest/uring"
	"github.com/zcvet/zcvet/harness/reproducer"
	"github.com/zcvet/zcvet/harness/verdict"
)

// record makes calls on this machine, the last of which reads a notification, and
// returns what was recorded.
func record(t *testing.T, kind int) *trace.Record {
	t.Helper()
	s := newScript(t)
	sys.SetRecorder(s.Recorder)
	defer sys.SetRecorder(nil)
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	open := func() int {
		fd, err := sys.Socket(unix.AF_INET, kind|unix.SOCK_CLOEXEC, 0)
		check(err)
		t.Cleanup(func() { _ = unix.Close(fd) })
		return fd
	}
	rx, tx := open(), open()
	check(sys.Bind(rx, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
	if err := sys.SetsockoptInt(tx, unix.SOL_SOCKET, unix.SO_ZEROCOPY, 1); err != nil {
		t.Skipf("this kernel has no MSG_ZEROCOPY for that: %v", err)
	}
	if kind == unix.SOCK_STREAM {
		check(sys.Listen(rx, 8))
	}
	name, err := sys.Getsockname(rx)
	check(err)
	check(sys.Connect(tx, name))
	if kind == unix.SOCK_STREAM {
		rx, _, err = sys.Accept4(rx, unix.SOCK_CLOEXEC)
		check(err)
		t.Cleanup(func() { _ = unix.Close(rx) })
	}
	pages, err := notify.Pages(2)
	check(err)
	pages.Fill(7)
	data := pages.Bytes()[100:][:5000]
	_, err = notify.SendZerocopy(tx, 0, data)
	if errors.Is(err, unix.ENOBUFS) {
		t.Skip("this machine lets nobody lock memory")
	}
	check(err)
	got := make([]byte, len(data)+1)
	for room := got[:len(data)]; len(room) > 0; {
		if kind == unix.SOCK_DGRAM {
			room = got
		}
		count, _, err := sys.Recvfrom(rx, room, 0)
		check(err)
		if room = room[count:]; kind == unix.SOCK_DGRAM {
			break
		}
	}
	if _, err := notify.Wait(tx, 10e9); err != nil {
		t.Fatal(err)
	}
	entries, err := notify.Drain(tx)
	check(err)
	if len(entries) == 0 {
		t.Skip("this kernel does not notify")
	}
	s.Mark(trace.Failure, nil, "it did what it should")
	return s.record()
}

// recordThreads lets two threads send and one read the error queue, all on one
// socket, and returns what was recorded before an expectation about the sends.
func recordThreads(t *testing.T, sends int) *trace.Record {
	t.Helper()
	s := newScript(t)
	sys.SetRecorder(s.Recorder)
	defer sys.SetRecorder(nil)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	rx, err := sys.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(rx) }()
	tx, err := sys.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(tx) }()
	if err := sys.SetsockoptInt(tx, unix.SOL_SOCKET, unix.SO_ZEROCOPY, 1); err != nil {
		t.Skipf("this kernel has no MSG_ZEROCOPY for that: %v", err)
	}
	if err := sys.Bind(rx, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	name, err := sys.Getsockname(rx)
	if err != nil {
		t.Fatal(err)
	}
	if err := sys.Connect(tx, name); err != nil {
		t.Fatal(err)
	}
	var senders, reader sync.WaitGroup
	var refused atomic.Bool
	stop := make(chan struct{})
	reader.Go(func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		for {
			if _, err := notify.Drain(tx); err != nil {
				t.Error(err)
				return
			}
			select {
			case <-stop:
				return
			default:
			}
		}
	})
	for range 2 {
		data := make([]byte, 100)
		senders.Go(func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			for range sends / 2 {
				if _, err := notify.SendZerocopy(tx, 0, data); errors.Is(err, unix.ENOBUFS) {
					refused.Store(true)
					return
				} else if err != nil {
					t.Error(err)
				}
			}
		})
	}
	senders.Wait()
	close(stop)
	reader.Wait()
	if refused.Load() {
		t.Skip("this machine lets nobody lock memory")
	}
	s.Mark(trace.Expectation, []int64{trace.ExactlyOnce, int64(tx), int64(sends)})
	s.Mark(trace.Failure, nil, "it did what it should")
	record, err := trace.Parse(s.region)
	if err != nil {
		t.Fatal(err)
	}
	return record
}

// Threads that share a socket send and read, and this machine notifies each send
// once: the program finds no fault, however many calls it makes of the record.
func TestThisMachineThreads(t *testing.T) {
	for _, sends := range []int{4, 400} {
		t.Run(fmt.Sprint(sends), func(t *testing.T) {
			record := recordThreads(t, sends)
			for i := range record.Calls {
				c := &record.Calls[i]
				// So that the record has the fault; it may lack the end of a call.
				if c.Name == "recvmsg" && c.Errno == 0 && len(c.Out) > 1 {
					c.Out[1].Bytes[16+12]++ // the end of the range
				}
			}
			if code := exitCode(t, record); code != 0 {
				t.Errorf("the program exits with %d on a machine without the fault, want 0", code)
			}
		})
	}
}

// recordRing sends a message through an io_uring of this machine.
func recordRing(t *testing.T) *trace.Record {
	t.Helper()
	s := newScript(t)
	sys.SetRecorder(s.Recorder)
	defer sys.SetRecorder(nil)
	// The ring belongs to the thread that made it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	ring, err := uring.New(4)
	if err != nil {
		t.Skipf("this kernel has no io_uring for that: %v", err)
	}
	defer func() { _ = ring.Close() }()
	rx, err := sys.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	check(err)
	defer func() { _ = unix.Close(rx) }()
	tx, err := sys.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	check(err)
	defer func() { _ = unix.Close(tx) }()
	check(sys.Bind(rx, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
	name, err := sys.Getsockname(rx)
	check(err)
	check(sys.Connect(tx, name))
	pages, err := notify.Pages(3)
	check(err)
	defer func() { _ = pages.Close() }()
	data := pages.Bytes()[2*notify.PageSize:][:100]
	copy(data, "through a ring")
	// The peer is told the time to live, which a control message sets.
	ttl := notify.AppendControl(nil, unix.SOL_IP, unix.IP_TTL, binary.NativeEndian.AppendUint32(nil, 9))
	control := append(pages.Bytes()[notify.PageSize:][:0], ttl...)
	message := &notify.Message{Buffers: [][]byte{data}, Control: control}
	prepared := message.PrepareAt(pages.Bytes())
	check(ring.Submit(
		uring.Request{Op: uring.OpNop, Flags: uring.Link, UserData: 1},
		uring.Request{Op: uring.OpSendmsg, FD: int32(tx), Address: uring.Address(pages.Bytes()), Length: 1, UserData: 2},
	))
	for range 2 {
		_, err := ring.Wait(10e9)
		check(err)
	}
	runtime.KeepAlive(prepared)
	_, _, err = sys.Recvfrom(rx, make([]byte, 200), 0)
	check(err)
	s.Mark(trace.Failure, nil, "it did what it should")
	return s.record()
}

// What went through a ring of this machine goes through that of the program.
func TestThisMachineRing(t *testing.T) {
	calls := recordRing(t)
	if code := exitCode(t, calls); code != 1 {
		t.Errorf("the program exits with %d on the machine that was recorded, want 1", code)
	}
	for i := range calls.Calls {
		if c := &calls.Calls[i]; c.Name == trace.Wait {
			c.Outcome[trace.CompletionResult]++
		}
	}
	if code := exitCode(t, calls); code != 0 {
		t.Errorf("the program exits with %d where the results differ, want 0", code)
	}
}

// exitCode is how a program for the record ends on this machine.
func exitCode(t *testing.T, record *trace.Record) int {
	t.Helper()
	source, err := reproducer.C(about(verdict.Fail), record)
	if err != nil {
		t.Fatal(err)
	}
	command := exec.CommandContext(t.Context(), compile(t, source))
	output, err := command.CombinedOutput()
	if failed := (*exec.ExitError)(nil); err != nil && !errors.As(err, &failed) {
		t.Fatal(err)
	}
	t.Logf("%s", output)
	return command.ProcessState.ExitCode()
}

// The machine that was recorded has the fault, whatever that is. One that gives
// any other answer has not.
func TestThisMachine(t *testing.T) {
	for name, kind := range map[string]int{"stream": unix.SOCK_STREAM, "datagram": unix.SOCK_DGRAM} {
		t.Run(name, func(t *testing.T) {
			calls := record(t, kind)
			if code := exitCode(t, calls); code != 1 {
				t.Errorf("the program exits with %d on the machine that was recorded, want 1", code)
			}
			for i := range calls.Calls {
				c := &calls.Calls[i]
				if c.Name == "recvmsg" && c.Errno == 0 {
					c.Out[1].Bytes[16+12]++ // the end of the range
				}
			}
			if code := exitCode(t, calls); code != 0 {
				t.Errorf("the program exits with %d where the range differs, want 0", code)
			}
		})
	}
}

// Where sends were not notified exactly once, that is what counts, and not how the
// notifications are divided.
func TestThisMachineExactlyOnce(t *testing.T) {
	for name, test := range map[string]struct {
		sends int64 // that were expected
		other bool  // the record differs from what this machine does
		want  int
	}{
		"one of two":       {sends: 2, want: 1},
		"two of one, once": {sends: 1, other: true},
	} {
		t.Run(name, func(t *testing.T) {
			calls := record(t, unix.SOCK_DGRAM)
			fd := int64(-1)
			for i := range calls.Calls {
				if c := &calls.Calls[i]; c.Name == "recvmsg" && c.Errno == 0 {
					fd = c.Argument(0)
					if test.other {
						c.Out[1].Bytes[16+12]++ // the end of the range
					}
				}
			}
			last := len(calls.Calls) - 1
			failure := calls.Calls[last]
			failure.Number++
			calls.Calls[last].Name = trace.Expectation
			calls.Calls[last].Arguments = []int64{trace.ExactlyOnce, fd, test.sends}
			calls.Calls = append(calls.Calls, failure)
			if code := exitCode(t, calls); code != test.want {
				t.Errorf("one send is notified: the program exits with %d, want %d", code, test.want)
			}
		})
	}
}
