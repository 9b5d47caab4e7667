// SPDX-License-Identifier: BSD-3-Clause

package reproducer_test

import (
	"errors"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/zcvet/zcvet/guest/notify"
	"github.com/zcvet/zcvet/guest/sys"
	"github.com/zcvet/zcvet/guest/trace"
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
