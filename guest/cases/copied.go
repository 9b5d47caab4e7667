// SPDX-License-Identifier: BSD-3-Clause

package cases

import (
	"fmt"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/zcvet/zcvet/guest/network"
	"github.com/zcvet/zcvet/guest/nic"
	"github.com/zcvet/zcvet/guest/notify"
	"github.com/zcvet/zcvet/guest/sys"
)

// copyingLinks deliver locally or have no scatter-gather, so that the kernel
// copies what a zero-copy send of one segment carries.
var copyingLinks = []network.Link{network.Loopback, network.NICNoSG, network.Veth}

var _ = add(Case{
	Name:   "copied/flag-set-where-data-is-copied",
	Doc:    "a send over a link that cannot send from the application's pages is notified as COPIED",
	Covers: []string{"Z50", "Z52"},
	Axes:   Everywhere.On(copyingLinks...),
}, func(t *T) {
	expectCopied(t, t.Pair(noDelay), true,
		"the application would go on paying for pinning pages without any gain, and not know")
})

var _ = add(Case{
	Name:   "copied/flag-set-with-packet-socket",
	Doc:    "while a packet socket listens on the device the same send is COPIED, and no longer when it is gone",
	Covers: []string{"Z50"},
	Axes:   OnNIC,
}, func(t *T) {
	pair := t.Pair(noDelay)
	sniffer := openSniffer(t)
	expectCopied(t, pair, true, "the listener got a copy of the data")
	sniffer.Close()
	another := t.Pair(noDelay)
	expectCopied(t, another, false, "nobody listens any more")
})

var _ = add(Case{
	Name:   "copied/flag-clear-on-nic",
	Doc:    "on a NIC with scatter-gather and checksum offload no send is COPIED, a single byte and unaligned data included",
	Covers: []string{"Z51", "Z52"},
	Axes:   OnNIC,
}, func(t *T) {
	expectCopied(t, t.Pair(noDelay), false, "this NIC sends from the application's pages; a copy here is a lost optimisation")
})

var _ = add(Case{
	Name:   "copied/follows-offloads",
	Doc:    "switching the device's scatter-gather or its transmit checksum off makes sends COPIED, switching it on again makes them zero copy",
	Covers: []string{"Z53"},
	Axes:   OnNIC,
	Needs:  []string{Ethtool},
}, func(t *T) {
	for _, offload := range []struct {
		name    string
		command uint32
	}{
		{"scatter-gather", ethtoolSetScatterGather},
		// Without it the kernel sums up the data itself, and scatter-gather goes
		// off with it (netdev_fix_features).
		{"transmit checksum", ethtoolSetTransmitChecksum},
	} {
		t.Cleanup(func() { _ = setOffload(t, offload.command, true) })
		for _, on := range []bool{false, true} {
			t.Check(setOffload(t, offload.command, on), "ethtool")
			expectCopied(t, t.Pair(noDelay), !on, fmt.Sprintf("%s of the device is %v", offload.name, on))
		}
	}
})

// Commands of uapi/linux/ethtool.h.
const (
	ethtoolSetTransmitChecksum = 0x17 // ETHTOOL_STXCSUM
	ethtoolSetScatterGather    = 0x19 // ETHTOOL_SSG
)

// setOffload switches an offload of the sender's device as ethtool -K does.
func setOffload(t *T, command uint32, on bool) error {
	value := struct{ command, data uint32 }{command: command}
	if on {
		value.data = 1
	}
	device, _ := t.Link.Devices()
	// struct ifreq, whose union is 24 bytes long at most.
	var request struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		rest [24]byte
	}
	copy(request.name[:unix.IFNAMSIZ-1], device)
	request.data = unsafe.Pointer(&value)
	fd, err := sys.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = sys.Close(fd) }()
	sys.Beyond("settings of the network device, by ethtool")
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request))); errno != 0 {
		return errno
	}
	return nil
}

// expectCopied makes sends of several sizes and alignments, one segment each, and
// compares the flag of every notification.
func expectCopied(t *T, pair *Pair, want bool, why string) {
	t.Helper()
	memory := t.Payload(2*notify.PageSize, 3)
	var ledger notify.Ledger
	for i, part := range [][]byte{
		memory[:1], memory[1:2], memory[:1200], memory[3:1200],
		memory[notify.PageSize-1:][:1], memory[notify.PageSize-100:][:200],
	} {
		pair.Sender.MustSend(part, unix.MSG_ZEROCOPY)
		pair.Receiver.MustReceive(part)
		pair.Sender.CollectInto(&ledger, i+1)
		entries := ledger.Entries()
		if last := entries[len(entries)-1]; last.Copied != want {
			t.Errorf("send of %d bytes: COPIED %v was expected on link %s, came %v: %s", len(part), want, t.Link, last.Copied, why)
		}
	}
}

var _ = add(Case{
	Name:   "copied/device-reads-senders-pages",
	Doc:    "the addresses in the device's descriptors are those of the sender's own pages, and of nothing else",
	Covers: []string{"Z54", "Z51"},
	Axes:   OnNIC,
	Needs:  []string{Pagemap},
}, func(t *T) {
	for _, size := range deviceSizes(t) {
		seen := sendAndLook(t, size, unix.MSG_ZEROCOPY)
		if strangers := seen.outside(seen.pages); strangers > 0 {
			t.Errorf("send of %d bytes: the device read %d payload bytes from outside the sender's pages %v, so the data was copied: segments %v",
				size, strangers, seen.pages, seen.payload)
		}
		if missing := size - covered(seen.payload, seen.pages); missing > 0 {
			t.Errorf("send of %d bytes: the device never read %d bytes of the sender's pages %v: segments %v", size, missing, seen.pages, seen.payload)
		}
	}
})

var _ = add(Case{
	Name:   "copied/device-reads-copies",
	Doc:    "where the data is copied the device does not see the sender's pages",
	Covers: []string{"Z54", "Z50"},
	Axes:   Everywhere.On(network.NICNoSG),
	Needs:  []string{Pagemap},
}, func(t *T) {
	for _, size := range deviceSizes(t) {
		seen := sendAndLook(t, size, unix.MSG_ZEROCOPY)
		if shared := total(seen.payload) - seen.outside(seen.pages); shared > 0 {
			t.Errorf("send of %d bytes: a device without scatter-gather was given %d bytes of the sender's own pages: segments %v, pages %v",
				size, shared, seen.payload, seen.pages)
		}
	}
})

var _ = add(Case{
	Name:   "copied/plain-sends-are-copied",
	Doc:    "of a send without the flag the device reads a copy, although it could read the sender's pages: the application may overwrite them at once",
	Covers: []string{"Z54", "Z15"},
	Axes:   OnNIC,
	Needs:  []string{Pagemap},
}, func(t *T) {
	for _, size := range deviceSizes(t) {
		seen := sendAndLook(t, size, 0)
		if shared := total(seen.payload) - seen.outside(seen.pages); shared > 0 {
			t.Errorf("plain send of %d bytes: the device was given %d bytes of the sender's own pages: segments %v, pages %v",
				size, shared, seen.payload, seen.pages)
		}
	}
})

// deviceSizes are one small send, one over page boundaries, and for a stream one
// that needs several segments.
func deviceSizes(t *T) []int {
	if t.Proto == UDP {
		return []int{100, 1400}
	}
	return []int{100, 3 * notify.PageSize, 40000}
}

// extent is a range of physical memory.
type extent struct{ start, end uint64 }

func (e extent) String() string { return fmt.Sprintf("[%#x,%#x)", e.start, e.end) }

// deviceView is what the device was given for a send.
type deviceView struct {
	pages   []extent // the sender's memory
	payload []extent // what the descriptors of the payload pointed at
}

// sendAndLook sends size bytes that begin in the middle of a page, with the flags,
// and reads the device's descriptor log.
func sendAndLook(t *T, size, flags int) deviceView {
	t.Helper()
	const start = 1000
	memory := t.Memory((start+size+notify.PageSize-1)/notify.PageSize + 1)
	memory.Fill(9)
	frames, err := memory.Physical()
	t.Check(err, "pagemap")
	var view deviceView
	for at := start; at < start+size; {
		length := min(notify.PageSize-at%notify.PageSize, start+size-at)
		from := frames[at/notify.PageSize] + uint64(at%notify.PageSize)
		view.pages = append(view.pages, extent{from, from + uint64(length)})
		at += length
	}

	pair := t.Pair(noDelay)
	class := nic.TCPData
	if t.Proto == UDP {
		class = nic.UDP
	}
	first := t.NIC().Frames(t.NIC().Sender, 0, class).Next
	part := memory.Bytes()[start:][:size]
	pair.Sender.MustSend(part, flags)
	pair.Receiver.MustReceive(part)
	if flags&unix.MSG_ZEROCOPY != 0 {
		pair.Sender.Collect(1)
	}
	if after, err := memory.Physical(); err != nil || !slices.Equal(frames, after) {
		t.Fatalf("the kernel moved the pages meanwhile, so their addresses prove nothing (%v)", err)
	}

	for _, frame := range t.NIC().Frames(t.NIC().Sender, first, class).Frames {
		view.payload = append(view.payload, payloadOf(frame)...)
	}
	if got := total(view.payload); got < size {
		t.Fatalf("the device's log has %d bytes of payload for a send of %d", got, size)
	}
	return view
}

// payloadOf returns where the descriptors of a frame keep its payload: all but
// what comes before it, the virtio-net header and those of the protocols.
func payloadOf(frame nic.Frame) []extent {
	length := uint64(0)
	for _, segment := range frame.Segments {
		length += uint64(segment.Length)
	}
	skip := length - min(uint64(frame.Payload), length)
	var payload []extent
	for _, segment := range frame.Segments {
		cut := min(skip, uint64(segment.Length))
		skip -= cut
		if cut < uint64(segment.Length) {
			payload = append(payload, extent{segment.Address + cut, segment.Address + uint64(segment.Length)})
		}
	}
	return payload
}

func total(extents []extent) int {
	sum := uint64(0)
	for _, e := range extents {
		sum += e.end - e.start
	}
	return int(sum)
}

// outside counts the bytes of the payload that lie in none of the pages.
func (v deviceView) outside(pages []extent) int {
	inside := 0
	for _, piece := range v.payload {
		for _, page := range pages {
			inside += overlap(piece, page)
		}
	}
	return total(v.payload) - inside
}

// covered counts the bytes of the pages that lie in at least one of the pieces;
// a retransmission may bring a piece twice.
func covered(pieces, pages []extent) int {
	sorted := slices.Clone(pieces)
	slices.SortFunc(sorted, func(a, b extent) int { return int(min(max(int64(a.start)-int64(b.start), -1), 1)) })
	count := 0
	for _, page := range pages {
		next := page.start
		for _, piece := range sorted {
			piece.start = max(piece.start, next)
			if shared := overlap(piece, page); shared > 0 {
				count += shared
				next = min(piece.end, page.end)
			}
		}
	}
	return count
}

func overlap(a, b extent) int {
	start, end := max(a.start, b.start), min(a.end, b.end)
	if start >= end {
		return 0
	}
	return int(end - start)
}
