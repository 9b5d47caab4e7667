// SPDX-License-Identifier: BSD-3-Clause

package notify_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/zcvet/zcvet/guest/notify"
)

// patience bounds waits for something that must come; no test waits this long
// unless it fails.
const patience = 10 * time.Second

// udpPair returns two connected UDP sockets on loopback, the first armed for
// zero copy. The test is skipped where the kernel has no zero copy for UDP.
func udpPair(t *testing.T) (sender, receiver int) {
	t.Helper()
	receiver = udpSocket(t)
	sender = udpSocket(t)
	if err := notify.EnableZerocopy(sender, true); err != nil {
		t.Skipf("this kernel has no SO_ZEROCOPY for UDP: %v", err)
	}
	for _, pair := range [][2]int{{sender, receiver}, {receiver, sender}} {
		to, err := unix.Getsockname(pair[1])
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.Connect(pair[0], to); err != nil {
			t.Fatal(err)
		}
	}
	return sender, receiver
}

func udpSocket(t *testing.T) int {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	return fd
}

func pages(t *testing.T, count int) *notify.Memory {
	t.Helper()
	memory, err := notify.Pages(count)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = memory.Close() })
	return memory
}

func TestSendAndCollect(t *testing.T) {
	sender, receiver := udpPair(t)
	memory := pages(t, 1)
	memory.Fill(1)
	const sends = 4
	for i := range sends {
		part := memory.Bytes()[i*100:][:100]
		// Two buffers, to see that the iovec array is laid out right.
		if n, err := notify.SendZerocopy(sender, 0, part[:30], part[30:]); err != nil || n != 100 {
			t.Fatalf("send %d: %d, %v", i, n, err)
		}
		got := notify.Message{Buffers: [][]byte{make([]byte, 10), make([]byte, 200)}, Flags: unix.MSG_DONTWAIT}
		n, err := notify.Receive(receiver, &got)
		if err != nil || !bytes.Equal(append(got.Buffers[0], got.Buffers[1][:n-10]...), part) {
			t.Fatalf("receive %d: %d bytes, %v", i, n, err)
		}
	}
	var ledger notify.Ledger
	others, err := notify.Collect(sender, &ledger, sends, patience)
	if err != nil || len(others) > 0 {
		t.Fatalf("collect: %v, others %v", err, others)
	}
	if err := ledger.Check(sends); err != nil {
		t.Error(err)
	}
	for _, entry := range ledger.Entries() {
		if !entry.Copied || entry.Level != unix.SOL_IP || entry.MessageFlags&unix.MSG_ERRQUEUE == 0 {
			t.Errorf("on loopback: %+v", entry)
		}
	}
	if _, err := notify.Next(sender); !errors.Is(err, unix.EAGAIN) {
		t.Errorf("empty queue: %v, want EAGAIN", err)
	}
	if pending, err := notify.Pending(sender); pending || err != nil {
		t.Errorf("drained, yet pending: %v, %v", pending, err)
	}
}

func TestSendMany(t *testing.T) {
	sender, receiver := udpPair(t)
	memory := pages(t, 1)
	var out, in []*notify.Message
	for i := range 3 {
		out = append(out, &notify.Message{Buffers: [][]byte{memory.Bytes()[:10+i]}})
		in = append(in, &notify.Message{Buffers: [][]byte{make([]byte, 100)}})
	}
	want := []int{10, 11, 12}
	if got, err := notify.SendMany(sender, out, unix.MSG_ZEROCOPY); err != nil || !equal(got, want) {
		t.Fatalf("sendmmsg: %v, %v", got, err)
	}
	if got, err := notify.ReceiveMany(receiver, in, unix.MSG_DONTWAIT); err != nil || !equal(got, want) {
		t.Fatalf("recvmmsg: %v, %v", got, err)
	}
}

func equal(a, b []int) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

func TestUnconnectedSend(t *testing.T) {
	sender, receiver := udpSocket(t), udpSocket(t)
	to, err := unix.Getsockname(receiver)
	if err != nil {
		t.Fatal(err)
	}
	address := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(to.(*unix.SockaddrInet4).Port))
	m := notify.Message{Name: notify.Address(address), Buffers: [][]byte{[]byte("x")}}
	if n, err := notify.Send(sender, &m); n != 1 || err != nil {
		t.Fatalf("sendmsg: %d, %v", n, err)
	}
	if n, err := notify.Receive(receiver, &notify.Message{Buffers: [][]byte{make([]byte, 9)}}); n != 1 || err != nil {
		t.Errorf("recvmsg: %d, %v", n, err)
	}
}

func TestAddressOfIPv6(t *testing.T) {
	raw := notify.Address(netip.MustParseAddrPort("[fd00::2]:258"))
	if len(raw) != unix.SizeofSockaddrInet6 || binary.NativeEndian.Uint16(raw) != unix.AF_INET6 ||
		!bytes.Equal(raw[2:4], []byte{1, 2}) || raw[8] != 0xfd || raw[23] != 2 {
		t.Errorf("% x", raw)
	}
}

func TestHeaderInReadOnlyMemory(t *testing.T) {
	sender, _ := udpPair(t)
	place := pages(t, 1)
	m := notify.Message{Buffers: [][]byte{[]byte("x")}}
	prepared := m.PrepareAt(place.Bytes())
	if err := place.Protect(0, 1, notify.ReadOnly); err != nil {
		t.Fatal(err)
	}
	if n, err := prepared.Send(sender); n != 1 || err != nil {
		t.Errorf("read-only header: %d, %v", n, err)
	}
	if prepared.Header().Iovlen != 1 {
		t.Errorf("header %+v", prepared.Header())
	}
	if err := place.Protect(0, 1, notify.NoAccess); err != nil {
		t.Fatal(err)
	}
	if _, err := prepared.Send(sender); !errors.Is(err, unix.EFAULT) {
		t.Errorf("header without access: %v, want EFAULT", err)
	}
}

func TestPhysical(t *testing.T) {
	memory := pages(t, 3)
	addresses, err := memory.Physical()
	if err != nil {
		t.Skipf("pagemap does not show frames here: %v", err)
	}
	seen := map[uint64]bool{}
	for _, address := range addresses {
		if address%uint64(notify.PageSize) != 0 || seen[address] {
			t.Errorf("addresses %#x", addresses)
		}
		seen[address] = true
	}
	if len(addresses) != 3 {
		t.Errorf("%d addresses for 3 pages", len(addresses))
	}
}

func TestWaitEndsWithItsPatience(t *testing.T) {
	if pending, err := notify.Wait(udpSocket(t), time.Millisecond); pending || err != nil {
		t.Errorf("idle socket: %v, %v", pending, err)
	}
}
