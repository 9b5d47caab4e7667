// SPDX-License-Identifier: BSD-3-Clause

package notify_test

import (
	"bytes"
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/zcvet/zcvet/guest/notify"
)

// stalled returns a page that is removed, and the channel that delivers what a
// read system call into it answers, which waits for the page by then.
func stalled(t *testing.T) (*notify.Memory, *notify.Stall, <-chan error) {
	t.Helper()
	memory := pages(t, 2)
	stall, err := memory.Stall()
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = stall.Close() })
	if err := stall.Remove(1); err != nil {
		t.Fatal(err)
	}
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(pipe[0]); _ = unix.Close(pipe[1]) })
	if _, err := unix.Write(pipe[1], []byte("read")); err != nil {
		t.Fatal(err)
	}
	answer := make(chan error, 1)
	go func() {
		_, err := unix.Read(pipe[0], memory.Bytes()[notify.PageSize:][:4])
		answer <- err
	}()
	if page, err := stall.Wait(patience); err != nil || page != 1 {
		t.Fatalf("waited for a touch of page 1: page %d, %v", page, err)
	}
	select {
	case err := <-answer:
		t.Fatalf("the call did not wait for the page: %v", err)
	default:
	}
	return memory, stall, answer
}

func TestStallPutsPageBack(t *testing.T) {
	memory, stall, answer := stalled(t)
	if err := stall.PutBack(1, []byte("....content")); err != nil {
		t.Fatal(err)
	}
	if err := <-answer; err != nil {
		t.Fatal(err)
	}
	if got := memory.Bytes()[notify.PageSize:][:11]; !bytes.Equal(got, []byte("readcontent")) {
		t.Errorf("the page holds %q", got)
	}
}

func TestStallEndsInFault(t *testing.T) {
	memory, stall, answer := stalled(t)
	if err := memory.Protect(1, 1, notify.NoAccess); err != nil {
		t.Fatal(err)
	}
	if err := stall.Release(); err != nil {
		t.Fatal(err)
	}
	if err := <-answer; !errors.Is(err, unix.EFAULT) {
		t.Errorf("the call ended with %v, want EFAULT", err)
	}
}

func TestStallWaitsInVain(t *testing.T) {
	memory := pages(t, 1)
	stall, err := memory.Stall()
	if err != nil {
		t.Skip(err)
	}
	defer func() { _ = stall.Close() }()
	if _, err := stall.Wait(0); !errors.Is(err, unix.ETIMEDOUT) {
		t.Errorf("nobody touched a page: %v, want ETIMEDOUT", err)
	}
}
