// SPDX-License-Identifier: BSD-3-Clause

package cases

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/zcvet/zcvet/guest/network"
	"github.com/zcvet/zcvet/guest/notify"
	"github.com/zcvet/zcvet/guest/sys"
)

// HugePageReserve is how many huge pages the machine sets aside at boot.
const HugePageReserve = "2"

// hugePage is the size of a huge page in bytes, on the architectures there are.
const hugePage = 2 << 20

func mapHugePage() ([]byte, error) {
	page, err := sys.Mmap(hugePage, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_HUGETLB)
	if err != nil {
		return nil, fmt.Errorf("map a huge page: %w", err)
	}
	return page, nil
}

// freeHugePages returns how many huge pages nobody uses. It ends the case.
func (t *T) freeHugePages() int {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/sys/kernel/mm/hugepages/hugepages-%dkB/free_hugepages", hugePage>>10))
	t.Check(err, "count the huge pages")
	free, err := strconv.Atoi(strings.TrimSpace(string(text)))
	t.Check(err, "count the huge pages")
	return free
}

var _ = add(Case{
	Name:   "memory/huge-pages",
	Doc:    "pieces of a huge page are sent like any others, also when it is unmapped meanwhile, and the page is free when the last is notified",
	Covers: []string{"Z63", "Z71", "Z64"},
	Axes:   CopiedAndNot,
	Needs:  []string{HugePages},
}, func(t *T) {
	pair := t.Pair(noDelay)
	free := t.freeHugePages()
	page, err := mapHugePage()
	t.Check(err, "huge page")
	mapped := true
	unmap := func() {
		if mapped {
			mapped = false
			t.Check(sys.Munmap(page), "munmap")
		}
	}
	t.Cleanup(unmap)
	notify.Pattern(page, 3)

	// Within a small page, over the border of two, at both ends.
	sizes := []int{1, 1000, 1400}
	if t.Proto == TCP {
		sizes = append(sizes, 3*notify.PageSize, 100_000)
	}
	sends := 0
	for _, size := range sizes {
		for _, start := range []int{0, 5*notify.PageSize - 100, hugePage / 2, hugePage - size} {
			stream := &zerocopyStream{socket: pair.Sender}
			part := page[start:][:size]
			t.Check(stream.send(part), "zero-copy send")
			sends += stream.sends
			pair.Receiver.MustReceive(part)
		}
	}
	if t.Link == network.NIC {
		t.NIC().Hold(true)
	}
	part := page[7*notify.PageSize-700:][:1400]
	want := bytes.Clone(part)
	pair.Sender.MustSend(part, unix.MSG_ZEROCOPY)
	sends++
	unmap()
	pair.Receiver.MustReceive(want)
	if t.Link == network.NIC {
		if got := t.freeHugePages(); got != free-1 {
			t.Errorf("%d huge pages are free while the device still holds a piece of one, %d were before it was mapped: the page may be given to somebody else", got, free)
		}
		t.NIC().Hold(false)
	}
	pair.Sender.Collect(sends)
	t.Eventually("the huge page is free", func() bool { return t.freeHugePages() == free })
})

// file returns an open file in memory that holds so many bytes of a pattern. It
// ends the case.
func (t *T) file(size int, seed byte) (fd int) {
	t.Helper()
	fd, err := unix.MemfdCreate("zero-copy", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	t.Check(err, "memfd_create")
	t.Cleanup(func() { _ = sys.Close(fd) })
	data := make([]byte, size)
	notify.Pattern(data, seed)
	_, err = unix.Pwrite(fd, data, 0)
	t.Check(err, "write the file")
	return fd
}

var _ = add(Case{
	Name:   "memory/file-pages",
	Doc:    "pages of a file, mapped shared or private and for reading only, are sent as they were, also when the file is cut off meanwhile",
	Covers: []string{"Z63", "Z70"},
	Axes:   CopiedAndNot,
}, func(t *T) {
	pair := t.Pair(noDelay)
	if t.Link == network.NIC {
		t.NIC().Hold(true) // so that the device holds the pages when they leave the file
	}
	sends := 0
	for i, way := range []struct {
		name       string
		protection int
		flags      int
	}{
		{"shared", unix.PROT_READ | unix.PROT_WRITE, unix.MAP_SHARED},
		{"shared for reading", unix.PROT_READ, unix.MAP_SHARED},
		{"private for reading", unix.PROT_READ, unix.MAP_PRIVATE},
	} {
		size := 3 * notify.PageSize
		fd := t.file(size, byte(i))
		mapping, err := sys.MmapFile(fd, size, way.protection, way.flags)
		t.Check(err, "map the file "+way.name)
		part := mapping[notify.PageSize-600:][:1200]
		want := bytes.Clone(part)
		pair.Sender.MustSend(part, unix.MSG_ZEROCOPY)
		sends++
		t.Check(unix.Ftruncate(fd, 0), "cut the file off")
		t.Check(sys.Munmap(mapping), "munmap")
		t.Logf("file mapped %s", way.name)
		pair.Receiver.MustReceive(want)
	}
	if t.Link == network.NIC {
		t.NIC().Hold(false)
	}
	pair.Sender.Collect(sends)
})

var _ = add(Case{
	Name:   "memory/pages-given-back",
	Doc:    "once a send is notified the kernel holds its pages no longer, and not before",
	Covers: []string{"Z64", "Z3A"},
	Axes:   Everywhere,
}, func(t *T) {
	pair := t.Pair(noDelay)
	size := 2 * notify.PageSize
	fd := t.file(size, 1)
	mapping, err := sys.MmapFile(fd, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	t.Check(err, "map the file")
	part := mapping[notify.PageSize-600:][:1200]
	want := bytes.Clone(part)
	if t.Link == network.NIC {
		t.NIC().Hold(true)
	}
	pair.Sender.MustSend(part, unix.MSG_ZEROCOPY)
	pair.Receiver.MustReceive(want)
	pair.Sender.AwaitAcknowledged()
	t.Check(sys.Munmap(mapping), "munmap")
	// The kernel seals a file against writing only if nobody but the file holds
	// its pages (memfd_wait_for_pins).
	seal := func() error {
		_, err := sys.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_WRITE)
		return err
	}
	if t.Link == network.NIC {
		if err := seal(); err != unix.EBUSY {
			t.Errorf("sealing a file whose pages the device still reads: %v, want EBUSY: nobody holds them", err)
		}
		t.NIC().Hold(false)
	}
	pair.Sender.Collect(1)
	t.Eventually("the pages are the file's alone", func() bool {
		err := seal()
		if err != nil && err != unix.EBUSY {
			t.Check(err, "seal")
		}
		return err == nil
	})
})

var _ = add(Case{
	Name:   "memory/socket-memory-given-back",
	Doc:    "what a socket is charged for its sends and notifications is back at nothing when they are done and read",
	Covers: []string{"Z64", "Z60"},
	Axes:   Everywhere,
}, func(t *T) {
	pair := t.Pair(noDelay)
	sys.Beyond(chargedMemory)
	charged := func() memory {
		t.Helper()
		charged, err := pair.Sender.memory()
		t.Check(err, "SO_MEMINFO")
		return charged
	}
	// The device may not have given back the end of the handshake yet.
	t.Eventually("a fresh socket is charged nothing", func() bool { return charged() == memory{} })
	if t.Link == network.NIC {
		t.NIC().Hold(true)
	}
	const sends = 4
	for i := range sends {
		data := t.Payload(1200, byte(i))
		pair.Sender.MustSend(data, unix.MSG_ZEROCOPY)
		pair.Receiver.MustReceive(data)
		pair.Sender.AwaitAcknowledged()
	}
	if t.Link == network.NIC {
		if got := charged(); got.send == 0 || got.option == 0 || got.receive != 0 {
			t.Errorf("with %d sends in the device the socket is charged %+v: a limit that nothing counts for is none", sends, got)
		}
		t.NIC().Hold(false)
	}
	pair.Sender.AwaitPending()
	t.Eventually("what is done is charged as pending only", func() bool { return charged().send == 0 })
	if got := charged(); got.option == 0 {
		t.Errorf("with notifications unread the socket is charged %+v, nothing for them: their number has no limit", got)
	}
	pair.Sender.Collect(sends)
	if got := charged(); got != (memory{}) {
		t.Errorf("with everything done and read the socket is still charged %+v: in the end it gets no more memory", got)
	}
})

// fillByCall returns the system call that overwrites memory with random bytes.
func fillByCall(data []byte) notify.Call {
	return notify.Call{Number: unix.SYS_GETRANDOM, Arguments: [6]uintptr{uintptr(unsafe.Pointer(unsafe.SliceData(data))), uintptr(len(data))}}
}

var _ = add(Case{
	Name:   "memory/fork-after-send",
	Doc:    "a child forked right after the send, which overwrites its copy of the buffer and ends, changes nothing of what is sent",
	Covers: []string{"Z71", "Z72"},
	Axes:   Everywhere,
}, func(t *T) {
	pair := t.Pair(noDelay)
	data := t.Payload(1200, 1)
	want := bytes.Clone(data)
	if t.Link == network.NIC {
		t.NIC().LateDMA(true) // the device reads the pages when the child is gone
		t.NIC().Hold(true)
	}
	pair.Sender.MustSend(data, unix.MSG_ZEROCOPY)
	t.Fork(fillByCall(data), fillByCall(data))()
	if t.Link == network.NIC {
		t.Eventually("the device has the frame and has not read it", func() bool { return heldFrames(t) > 0 })
		t.NIC().Hold(false)
	}
	pair.Receiver.MustReceive(want)
	pair.Sender.Collect(1)
	if !bytes.Equal(data, want) {
		t.Errorf("the parent's buffer has changed")
	}
	// The parent's page is shared with nobody any more, and its own again.
	notify.Pattern(data, 2)
	pair.Sender.MustSend(data, unix.MSG_ZEROCOPY)
	want = bytes.Clone(data)
	pair.Receiver.MustReceive(want)
})

var _ = add(Case{
	Name:   "memory/sender-exits",
	Doc:    "what a process sends from memory of its own arrives although it ends right after the call, and who has the socket too is notified",
	Covers: []string{"Z71", "Z17", "Z37"},
	Axes:   Everywhere,
}, func(t *T) {
	pair := t.Pair(noDelay)
	memory := t.Memory(2)
	memory.Fill(6)
	data := memory.Bytes()[notify.PageSize-600:][:1200]
	want := bytes.Clone(data)
	if t.Link == network.NIC {
		t.NIC().LateDMA(true)
		t.NIC().Hold(true)
	}
	var pipe [2]int
	t.Check(unix.Pipe2(pipe[:], unix.O_CLOEXEC), "pipe")
	t.Cleanup(func() { _, _ = sys.Close(pipe[0]), sys.Close(pipe[1]) })
	message := (&notify.Message{Buffers: [][]byte{data}, Flags: unix.MSG_ZEROCOPY | unix.MSG_NOSIGNAL}).Prepare()
	gate := make([]byte, 1)
	wait := t.Fork(
		// Waits until the parent has given the memory up, so that it is the
		// child's alone.
		notify.Call{Number: unix.SYS_READ, Arguments: [6]uintptr{uintptr(pipe[0]), uintptr(unsafe.Pointer(&gate[0])), 1}, Keep: gate},
		message.Call(pair.Sender.FD),
	)
	t.Check(memory.Close(), "munmap")
	_, err := unix.Write(pipe[1], []byte{1})
	t.Check(err, "write to the pipe")
	wait()
	if t.Link == network.NIC {
		t.Eventually("the device has the frame and has not read it", func() bool { return heldFrames(t) > 0 })
		pair.Sender.ExpectNothing("the device has not read the pages")
		t.NIC().Hold(false)
	}
	pair.Receiver.MustReceive(want)
	pair.Sender.Collect(1)
})
