// SPDX-License-Identifier: BSD-3-Clause

package vnet_test

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/gopacket/gopacket/pcapgo"
	"golang.org/x/sys/unix"

	"github.com/zcvet/zcvet/guest/nic"
	"github.com/zcvet/zcvet/harness/vnet"
	"github.com/zcvet/zcvet/harness/vnet/frame"
	"github.com/zcvet/zcvet/harness/vnet/internal/fakeguest"
	"github.com/zcvet/zcvet/harness/vnet/memory"
	"github.com/zcvet/zcvet/harness/vnet/vhost"
	"github.com/zcvet/zcvet/harness/vnet/virtqueue"
)

// Stop, restore, reconnect.

func TestRestoreGoesOnWhereTheSnapshotWas(t *testing.T) {
	w := newWire(t)
	for i := range 300 { // more than once round the ring
		w.send(udp(string(rune('0' + i%10))))
		w.receive()
	}
	bases := func(g *fakeguest.Guest) (bases [2]int) {
		for i := range bases {
			var err error
			if bases[i], err = g.StopRing(i); err != nil {
				t.Fatal(err)
			}
		}
		return bases
	}
	sender, receiver := bases(w.a), bases(w.b)
	if sender[fakeguest.TransmitRing] != 300 || receiver[fakeguest.ReceiveRing] != 300 {
		t.Fatalf("sender stopped at %v, receiver at %v", sender, receiver)
	}

	// Another QEMU, another network, the same memory.
	restored := newNetwork(t, vnet.Config{})
	restore := func(port nic.Port, old *fakeguest.Guest, bases [2]int) *fakeguest.Guest {
		file, err := unix.Dup(old.File)
		if err != nil {
			t.Fatal(err)
		}
		return connect(t, restored, port, fakeguest.Options{Base: bases, KeepRunning: true, Memory: file, Buffers: -1})
	}
	again := &wire{
		T: t, network: restored,
		a: restore(nic.NIC0, w.a, sender), b: restore(nic.NIC1, w.b, receiver),
	}
	again.send(udp("!"))
	head, written, err := again.b.Rings[fakeguest.ReceiveRing].WaitUsed()
	if err != nil {
		t.Fatal(err)
	}
	// The buffer that the driver refilled longest ago, not one of the first.
	if want := uint32(frame.HeaderSize + len(udp("!"))); written != want || head >= 256 {
		t.Errorf("buffer %d with %d bytes, want %d", head, written, want)
	}
}

func TestStoppingRingHoldsNothing(t *testing.T) {
	w := newWire(t)
	w.call(nic.MethodHold, nic.Hold{Port: nic.NIC0, On: true})
	w.call(nic.MethodLateDMA, nic.LateDMA{Port: nic.NIC0, On: true})
	head, _ := w.transmit(udp("x"))
	w.logged(1)
	base, err := w.a.StopRing(fakeguest.TransmitRing)
	if err != nil {
		t.Fatal(err)
	}
	if got := w.completed(); base != 1 || !slices.Equal(got, []uint16{head}) {
		t.Errorf("stopped at %d, chains %v came back", base, got)
	}
	if got := w.arrived(); got != "x" {
		t.Errorf("%q arrived", got)
	}
}

func TestStoppedRingStartsAgain(t *testing.T) {
	w := newWire(t)
	w.send(udp("0"))
	base, err := w.a.StopRing(fakeguest.TransmitRing)
	if err != nil {
		t.Fatal(err)
	}
	w.transmit(udp("1"))
	ring := w.a.Rings[fakeguest.TransmitRing]
	if err := errors.Join(
		w.a.Send(vhost.SetVringBase, fakeguest.State(fakeguest.TransmitRing, base)),
		w.a.Send(vhost.SetVringKick, fakeguest.Numbers(fakeguest.TransmitRing), ring.Kick),
	); err != nil {
		t.Fatal(err)
	}
	w.send(udp("2"))
	w.logged(3)
	if got := w.arrived(); got != "012" {
		t.Errorf("%q arrived", got)
	}
}

func TestDisabledRingWaits(t *testing.T) {
	w := newWire(t)
	enable := func(on int) {
		if err := errors.Join(w.a.Send(vhost.SetVringEnable, fakeguest.State(fakeguest.TransmitRing, on)), w.a.Barrier()); err != nil {
			t.Fatal(err)
		}
	}
	enable(0)
	w.transmit(udp("0"))
	if got := w.call(nic.MethodFrames, nic.FramesQuery{Port: nic.NIC0}).(nic.Frames); got.Next != 0 {
		t.Errorf("%d frames were taken", got.Next)
	}
	enable(1)
	w.logged(1)
	if got := w.arrived(); got != "0" {
		t.Errorf("%q arrived", got)
	}
}

func TestFrontEndReconnects(t *testing.T) {
	w := newWire(t)
	w.a.Close()
	w.a = connect(t, w.network, nic.NIC0, fakeguest.Options{})
	w.send(udp("x"))
	if got := w.arrived(); got != "x" {
		t.Errorf("%q arrived", got)
	}
}

func TestMemoryTableOfRunningRings(t *testing.T) {
	w := newWire(t)
	w.send(udp("0"))
	for _, g := range []*fakeguest.Guest{w.a, w.b} {
		if err := g.SendMemTable(); err != nil {
			t.Fatal(err)
		}
	}
	w.send(udp("1"))
	if got := w.arrived(); got != "01" {
		t.Errorf("%q arrived", got)
	}
}

func TestDirtyLog(t *testing.T) {
	w := newWire(t)
	const pages = (fakeguest.GuestBase + fakeguest.MemorySize) / 4096
	log, err := unix.MemfdCreate("log", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(log)
	if err := unix.Ftruncate(log, pages/8); err != nil {
		t.Fatal(err)
	}
	bits, err := unix.Mmap(log, 0, pages/8, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(bits)

	reply, err := w.b.Ask(vhost.SetLogBase, fakeguest.Numbers(pages/8, 0), log)
	if err != nil || len(reply) != 0 {
		t.Fatalf("SET_LOG_BASE was answered by %x, %v", reply, err)
	}
	w.send(udp("not logged yet"))
	if i := bytes.IndexFunc(bits, func(r rune) bool { return r != 0 }); i >= 0 {
		t.Errorf("page %d is logged before logging started", 8*i)
	}
	// As QEMU does: features with LOG_ALL, then the ring addresses again with
	// their log flag.
	addresses := w.b.Rings[fakeguest.ReceiveRing].Addresses()
	addresses[4] = 1
	if err := errors.Join(
		w.b.Send(vhost.SetFeatures, fakeguest.Numbers(w.b.Features|vhost.FeatureLogAll)),
		w.b.Send(vhost.SetVringAddr, addresses),
		w.b.Barrier(),
	); err != nil {
		t.Fatal(err)
	}
	w.receive()
	w.send(udp("logged"))
	head, _, err := w.b.Rings[fakeguest.ReceiveRing].WaitUsed()
	if err != nil {
		t.Fatal(err)
	}
	buffer := uint64(fakeguest.GuestBase) + 2*64<<10 + uint64(head)*2048
	used := uint64(fakeguest.GuestBase) + 48<<10
	var want, got []uint64
	for _, address := range []uint64{used, buffer} {
		want = append(want, address/4096)
	}
	for page := range uint64(pages) {
		if bits[page/8]>>(page%8)&1 != 0 {
			got = append(got, page)
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("dirty pages: %s", diff)
	}
}

// Capture.

func TestPcap(t *testing.T) {
	w := newWire(t)
	w.call(nic.MethodPcapComment, nic.PcapComment{Text: "case 1"})
	w.send(udp(string(pattern(1000))))
	w.call(nic.MethodAddRule, nic.Rule{Port: nic.NIC0, Action: nic.Drop})
	w.send(udp("dropped"))
	w.call(nic.MethodPcapComment, nic.PcapComment{Text: "the end"})

	var file bytes.Buffer
	if err := w.network.WritePcap(&file); err != nil {
		t.Fatal(err)
	}
	reader, err := pcapgo.NewNgReader(&file, pcapgo.DefaultNgReaderOptions)
	if err != nil {
		t.Fatal(err)
	}
	type packet struct {
		Interface, Length int
		Outbound          bool
		Comments          string
	}
	var got []packet
	for {
		_, info, options, err := reader.ReadPacketDataWithOptions()
		if err != nil {
			break
		}
		got = append(got, packet{
			info.InterfaceIndex, info.Length,
			options.Flags.Direction == pcapgo.NgEpbFlagDirectionOutbound, strings.Join(options.Comments, ","),
		})
	}
	want := []packet{
		{0, 1042, true, "case 1"},
		{1, 1042, false, ""},
		{0, 49, true, "rule 1: drop"},
		{0, 0, false, "the end"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if first, err := reader.Interface(0); err != nil || first.Name != "nic0" {
		t.Errorf("interface %+v, %v", first, err)
	}
}

func TestPcapWithoutFrames(t *testing.T) {
	var file bytes.Buffer
	if err := newNetwork(t, vnet.Config{}).WritePcap(&file); err != nil {
		t.Fatal(err)
	}
	if _, err := pcapgo.NewNgReader(&file, pcapgo.DefaultNgReaderOptions); err != nil {
		t.Error(err)
	}
}

// Hostile drivers.

// ended waits for the end of a network and returns its error.
func ended(t *testing.T, n *vnet.Network) error {
	t.Helper()
	select {
	case <-n.Done():
	case <-time.After(fakeguest.Patience):
		t.Fatal("the network goes on")
	}
	return n.Err()
}

func TestBrokenTransmitRing(t *testing.T) {
	const inMemory = fakeguest.GuestBase + 4<<20
	for _, test := range []struct {
		name    string
		options fakeguest.Options
		breakIt func(g *fakeguest.Guest, r *fakeguest.Ring)
		want    string
	}{
		{"available index jumps", fakeguest.Options{}, func(_ *fakeguest.Guest, r *fakeguest.Ring) {
			r.SetIndex(257)
		}, "available index jumped from 0 to 257"},
		{"available index goes back", fakeguest.Options{Base: [2]int{0, 5}}, func(_ *fakeguest.Guest, r *fakeguest.Ring) {
			r.SetIndex(4)
		}, "available index jumped from 5 to 4"},
		{"head outside the ring", fakeguest.Options{}, func(_ *fakeguest.Guest, r *fakeguest.Ring) {
			r.Offer(256)
		}, "descriptor 256 in a table of 256"},
		{"next outside the ring", fakeguest.Options{}, func(_ *fakeguest.Guest, r *fakeguest.Ring) {
			r.Describe(0, inMemory, 100, fakeguest.Next, 60000)
			r.Offer(0)
		}, "descriptor 60000 in a table of 256"},
		{"loop", fakeguest.Options{}, func(_ *fakeguest.Guest, r *fakeguest.Ring) {
			r.Describe(0, inMemory, 1, fakeguest.Next, 1)
			r.Describe(1, inMemory, 1, fakeguest.Next, 0)
			r.Offer(0)
		}, "form a loop"},
		{"indirect not negotiated", fakeguest.Options{Features: mergeable}, func(_ *fakeguest.Guest, r *fakeguest.Ring) {
			r.Describe(0, inMemory, 16, fakeguest.Indirect, 0)
			r.Offer(0)
		}, "not negotiated"},
		{"indirect table outside", fakeguest.Options{}, func(_ *fakeguest.Guest, r *fakeguest.Ring) {
			r.Describe(0, 0x1000, 16, fakeguest.Indirect, 0)
			r.Offer(0)
		}, "outside the guest's memory"},
		{"indirect table of odd size", fakeguest.Options{}, func(_ *fakeguest.Guest, r *fakeguest.Ring) {
			r.Describe(0, inMemory, 17, fakeguest.Indirect, 0)
			r.Offer(0)
		}, "indirect table of 17 bytes"},
		{"indirect table too large", fakeguest.Options{}, func(_ *fakeguest.Guest, r *fakeguest.Ring) {
			r.Describe(0, inMemory, 0xffff_fff0, fakeguest.Indirect, 0)
			r.Offer(0)
		}, "indirect table of"},
		{"indirect in indirect", fakeguest.Options{}, func(g *fakeguest.Guest, r *fakeguest.Ring) {
			r.Describe(1, inMemory, 16, fakeguest.Indirect, 0)
			r.Describe(0, fakeguest.GuestBase+64<<10, 32, fakeguest.Indirect, 0) // the ring's own table
			g.Bytes[64<<10+12] = fakeguest.Indirect
			r.Offer(0)
		}, "in an indirect table"},
		{"loop in an indirect table", fakeguest.Options{}, func(g *fakeguest.Guest, r *fakeguest.Ring) {
			table := bytes.Repeat([]byte{0}, 32)
			table[12], table[12+16] = fakeguest.Next, fakeguest.Next
			r.Describe(0, g.Place(table), 32, fakeguest.Indirect, 0)
			r.Offer(0)
		}, "form a loop"},
		{"address outside", fakeguest.Options{}, func(_ *fakeguest.Guest, r *fakeguest.Ring) {
			r.Describe(0, 0x1000, 100, 0, 0)
			r.Offer(0)
		}, "outside the guest's memory"},
		{"address runs over the end", fakeguest.Options{}, func(_ *fakeguest.Guest, r *fakeguest.Ring) {
			r.Describe(0, fakeguest.GuestBase+fakeguest.MemorySize-50, 100, 0, 0)
			r.Offer(0)
		}, "outside the guest's memory"},
		{"address wraps around", fakeguest.Options{}, func(_ *fakeguest.Guest, r *fakeguest.Ring) {
			r.Describe(0, ^uint64(0)-50, 100, 0, 0)
			r.Offer(0)
		}, "outside the guest's memory"},
		{"huge length", fakeguest.Options{}, func(_ *fakeguest.Guest, r *fakeguest.Ring) {
			r.Describe(0, inMemory, 0xffff_ffff, 0, 0)
			r.Offer(0)
		}, "a frame of 4294967295 bytes"},
		{"lengths add up over 32 bits", fakeguest.Options{}, func(_ *fakeguest.Guest, r *fakeguest.Ring) {
			r.Describe(0, inMemory, 0xffff_ffff, fakeguest.Next, 1)
			r.Describe(1, inMemory, 101, 0, 0)
			r.Offer(0)
		}, "a frame of 4294967396 bytes"},
		{"no header", fakeguest.Options{}, func(_ *fakeguest.Guest, r *fakeguest.Ring) {
			r.Describe(0, inMemory, 11, 0, 0)
			r.Offer(0)
		}, "a frame of 11 bytes"},
		{"writable", fakeguest.Options{}, func(_ *fakeguest.Guest, r *fakeguest.Ring) {
			r.Describe(0, inMemory, 100, fakeguest.Write, 0)
			r.Offer(0)
		}, "writable descriptor in a frame to transmit"},
		{"readable after writable", fakeguest.Options{}, func(_ *fakeguest.Guest, r *fakeguest.Ring) {
			r.Describe(0, inMemory, 100, fakeguest.Write|fakeguest.Next, 1)
			r.Describe(1, inMemory, 100, 0, 0)
			r.Offer(0)
		}, "readable descriptor after a writable one"},
		{"checksum outside the frame", fakeguest.Options{}, func(g *fakeguest.Guest, _ *fakeguest.Ring) {
			_, _, _ = g.Transmit(frame.Header{Flags: frame.NeedsChecksum, ChecksumStart: 40, ChecksumOffset: 16}, make([]byte, 57))
		}, "checksum at 40+16 in a frame of 57 bytes"},
		{"segmentation without a checksum", fakeguest.Options{}, func(g *fakeguest.Guest, _ *fakeguest.Ring) {
			_, _, _ = g.Transmit(frame.Header{GSOType: frame.GSOTCPv4, GSOSize: 1000}, make([]byte, 57))
		}, "without a checksum"},
		{"segments of nothing", fakeguest.Options{}, func(g *fakeguest.Guest, _ *fakeguest.Ring) {
			_, _, _ = g.Transmit(frame.Header{Flags: frame.NeedsChecksum, GSOType: frame.GSOTCPv4}, make([]byte, 57))
		}, "segments of 0 bytes"},
		{"unknown segmentation", fakeguest.Options{}, func(g *fakeguest.Guest, _ *fakeguest.Ring) {
			_, _, _ = g.Transmit(frame.Header{Flags: frame.NeedsChecksum, GSOType: 77, GSOSize: 1}, make([]byte, 57))
		}, "not negotiated"},
		{"checksum not negotiated", fakeguest.Options{Features: mergeable}, func(g *fakeguest.Guest, _ *fakeguest.Ring) {
			_, _, _ = g.Transmit(frame.Header{Flags: frame.NeedsChecksum}, make([]byte, 57))
		}, "not negotiated"},
	} {
		t.Run(test.name, func(t *testing.T) {
			n := newNetwork(t, vnet.Config{})
			g := connect(t, n, nic.NIC0, test.options)
			ring := g.Rings[fakeguest.TransmitRing]
			test.breakIt(g, ring)
			ring.Notify()
			wantRingError(t, ended(t, n), nic.NIC0, "transmit", test.want)
		})
	}
}

func wantRingError(t *testing.T, err error, port nic.Port, queue, text string) {
	t.Helper()
	broken, ok := errors.AsType[*vnet.RingError](err)
	if !ok || broken.Port != port || broken.Queue != queue || !strings.Contains(err.Error(), text) {
		t.Errorf("the network ended with %v, want an error of the %s ring of %s about %q", err, queue, port, text)
	}
}

func TestSameChainOfferedTooOften(t *testing.T) {
	n := newNetwork(t, vnet.Config{})
	g := connect(t, n, nic.NIC0, fakeguest.Options{RingSize: 4})
	call(t, n, nic.MethodHold, nic.Hold{On: true})
	r := g.Rings[fakeguest.TransmitRing]
	r.Describe(0, g.Place(make([]byte, 100)), 100, 0, 0)
	for range 4 {
		r.Offer(0)
	}
	r.Notify()
	w := &wire{T: t, network: n}
	w.logged(4)
	r.Offer(0)
	r.Notify()
	wantRingError(t, ended(t, n), nic.NIC0, "transmit", "5 chains in flight in a queue of 4")
}

func TestBrokenReceiveRing(t *testing.T) {
	for _, test := range []struct {
		name    string
		breakIt func(r *fakeguest.Ring)
		want    string
	}{
		{"readable buffer", func(r *fakeguest.Ring) {
			r.Describe(0, fakeguest.GuestBase+4<<20, 2000, 0, 0)
			r.Offer(0)
		}, "readable descriptor in a receive buffer"},
		{"buffer outside", func(r *fakeguest.Ring) {
			r.Describe(0, fakeguest.GuestBase-1, 2000, fakeguest.Write, 0)
			r.Offer(0)
		}, "outside the guest's memory"},
		{"buffer without room for the header", func(r *fakeguest.Ring) {
			r.Describe(0, fakeguest.GuestBase+4<<20, 11, fakeguest.Write, 0)
			r.Offer(0)
		}, "receive buffer of 11 bytes"},
		{"available index jumps", func(r *fakeguest.Ring) { r.SetIndex(0x8000) }, "available index jumped"},
	} {
		t.Run(test.name, func(t *testing.T) {
			n := newNetwork(t, vnet.Config{})
			a := connect(t, n, nic.NIC0, fakeguest.Options{})
			b := connect(t, n, nic.NIC1, fakeguest.Options{Buffers: -1})
			test.breakIt(b.Rings[fakeguest.ReceiveRing])
			if _, _, err := a.Transmit(frame.Header{}, udp("x")); err != nil {
				t.Fatal(err)
			}
			wantRingError(t, ended(t, n), nic.NIC1, "receive", test.want)
		})
	}
}

func TestSegmentationOfNoSegment(t *testing.T) {
	// A frame that is no TCP, though the header says so, is the sender's own
	// loss: the header alone makes sense.
	n := newNetwork(t, vnet.Config{})
	w := &wire{
		T: t, network: n,
		a: connect(t, n, nic.NIC0, fakeguest.Options{}),
		b: connect(t, n, nic.NIC1, fakeguest.Options{Features: mergeable}),
	}
	h := frame.Header{Flags: frame.NeedsChecksum, GSOType: frame.GSOTCPv4, GSOSize: 1000}
	if _, _, err := w.a.Transmit(h, udp(string(pattern(3000)))); err != nil {
		t.Fatal(err)
	}
	if _, err := w.a.Completed(); err != nil {
		t.Fatal(err)
	}
	if got := n.Stats(nic.NIC1); got.Malformed != 1 || got.Received != 0 {
		t.Errorf("%+v", got)
	}
}

func TestMemoryThatVanishes(t *testing.T) {
	w := newWire(t)
	if err := unix.Ftruncate(w.a.File, 0); err != nil {
		t.Fatal(err)
	}
	w.a.Rings[fakeguest.TransmitRing].Notify()
	err := ended(t, w.network)
	broken, ok := errors.AsType[*vnet.ProtocolError](err)
	if _, gone := errors.AsType[*memory.GoneError](err); !ok || !gone || broken.Port != nic.NIC0 {
		t.Errorf("the network ended with %v", err)
	}
}

func TestMemoryThatVanishesUnderACall(t *testing.T) {
	w := newWire(t)
	w.call(nic.MethodHold, nic.Hold{On: true})
	w.transmit(udp("x"))
	w.logged(1)
	if err := unix.Ftruncate(w.a.File, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := tryCall(w.network, nic.MethodRelease, nic.Release{}); err == nil {
		t.Error("released into nothing")
	}
	ended(t, w.network)
}

// Hostile front ends.

func TestBrokenProtocol(t *testing.T) {
	device, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer device.Close()
	null := int(device.Fd())
	eventfd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(eventfd)
	region := func(numbers ...uint64) []byte {
		return append([]byte{byte(len(numbers) / 4), 0, 0, 0, 0, 0, 0, 0}, fakeguest.Numbers(numbers...)...)
	}
	for _, test := range []struct {
		name string
		say  func(g *fakeguest.Guest) error
		want string
	}{
		{"unknown request", func(g *fakeguest.Guest) error { return g.Send(99, nil) }, "request 99: vhost-user protocol violated"},
		{"wrong version", func(g *fakeguest.Guest) error { return g.SendFlags(vhost.SetOwner, 2, nil) }, "flags 0x2"},
		{"a reply", func(g *fakeguest.Guest) error { return g.SendFlags(vhost.SetOwner, 5, nil) }, "flags 0x5"},
		{"huge payload", func(g *fakeguest.Guest) error {
			return g.SendRaw([]byte{3, 0, 0, 0, 1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff})
		}, "4294967295 bytes of payload"},
		{"header cut off", func(g *fakeguest.Guest) error {
			return errors.Join(g.SendRaw([]byte{3, 0, 0, 0, 1}), g.Conn.CloseWrite())
		}, "cut off after 5 of 12"},
		{"payload cut off", func(g *fakeguest.Guest) error {
			return errors.Join(g.SendRaw([]byte{2, 0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0, 1}), g.Conn.CloseWrite())
		}, "cut off"},
		{"payload missing", func(g *fakeguest.Guest) error {
			return errors.Join(g.SendRaw([]byte{2, 0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0}), g.Conn.CloseWrite())
		}, "cut off"},
		{"number too short", func(g *fakeguest.Guest) error { return g.Send(vhost.SetFeatures, make([]byte, 7)) }, "7 bytes"},
		{"feature not offered", func(g *fakeguest.Guest) error { return g.Send(vhost.SetFeatures, fakeguest.Numbers(1<<29)) }, "not offered"},
		{"protocol feature not offered", func(g *fakeguest.Guest) error {
			return g.Send(vhost.SetProtocolFeatures, fakeguest.Numbers(1))
		}, "not offered"},
		{"too many descriptors", func(g *fakeguest.Guest) error {
			return g.Send(vhost.SetMemTable, region(0, 4096, 0, 0), null, null, null, null, null, null, null, null, null)
		}, "more than 8 file descriptors"},
		{"uninvited descriptor", func(g *fakeguest.Guest) error { return g.Send(vhost.SetOwner, nil, null) }, "1 file descriptors where 0"},
		{"memory without descriptor", func(g *fakeguest.Guest) error {
			return g.Send(vhost.SetMemTable, region(0, 4096, 0, 0))
		}, "0 file descriptors where 1"},
		{"no memory", func(g *fakeguest.Guest) error { return g.Send(vhost.SetMemTable, region()) }, "with 0 regions"},
		{"memory table cut off", func(g *fakeguest.Guest) error {
			return g.Send(vhost.SetMemTable, region(0, 4096, 0, 0)[:39], g.File)
		}, "39 bytes with 1 regions"},
		{"memory that is no file", func(g *fakeguest.Guest) error {
			return g.Send(vhost.SetMemTable, region(0, 4096, 0, 0), null)
		}, "not a regular file"},
		{"memory longer than its file", func(g *fakeguest.Guest) error {
			return g.Send(vhost.SetMemTable, region(0, fakeguest.MemorySize+4096, 0, 0), g.File)
		}, "the region ends at"},
		{"memory at an odd offset", func(g *fakeguest.Guest) error {
			return g.Send(vhost.SetMemTable, region(0, 4096, 0, 1), g.File)
		}, "offset 0x1"},
		{"memory of no size", func(g *fakeguest.Guest) error {
			return g.Send(vhost.SetMemTable, region(0, 0, 0, 0), g.File)
		}, "size 0x0"},
		{"memory past the address space", func(g *fakeguest.Guest) error {
			return g.Send(vhost.SetMemTable, region(^uint64(0)-10, 4096, 0, 0), g.File)
		}, "end of the address space"},
		{"memory that overlaps", func(g *fakeguest.Guest) error {
			return g.Send(vhost.SetMemTable, region(0, 8192, 0, 0, 4096, 4096, 0x10000, 0), g.File, g.File)
		}, "overlap"},
		{"ring that is not there", func(g *fakeguest.Guest) error { return g.Send(vhost.SetVringNum, fakeguest.State(2, 256)) }, "ring 2 of a device with 2"},
		{"ring of no size", func(g *fakeguest.Guest) error { return g.Send(vhost.SetVringNum, fakeguest.State(0, 0)) }, "0 descriptors"},
		{"ring too large", func(g *fakeguest.Guest) error { return g.Send(vhost.SetVringNum, fakeguest.State(0, 65536)) }, "65536 descriptors"},
		{"base too large", func(g *fakeguest.Guest) error { return g.Send(vhost.SetVringBase, fakeguest.State(0, 65536)) }, "index 65536"},
		{"addresses cut off", func(g *fakeguest.Guest) error { return g.Send(vhost.SetVringAddr, make([]byte, 39)) }, "39 bytes"},
		{"kick to be polled", func(g *fakeguest.Guest) error { return g.Send(vhost.SetVringKick, fakeguest.Numbers(0x100)) }, "polled"},
		{"kick without descriptor", func(g *fakeguest.Guest) error { return g.Send(vhost.SetVringKick, fakeguest.Numbers(0)) }, "0 file descriptors where 1"},
		{"kick that is no eventfd", func(g *fakeguest.Guest) error { return g.Send(vhost.SetVringKick, fakeguest.Numbers(0), g.File) }, "no eventfd"},
		{"call that is no eventfd", func(g *fakeguest.Guest) error { return g.Send(vhost.SetVringCall, fakeguest.Numbers(0), null) }, "no eventfd"},
		{"kick with unknown bits", func(g *fakeguest.Guest) error {
			return g.Send(vhost.SetVringKick, fakeguest.Numbers(0x200), eventfd)
		}, "payload 0x200"},
		{"log without descriptor", func(g *fakeguest.Guest) error { return g.Send(vhost.SetLogBase, fakeguest.Numbers(4096, 0)) }, "0 file descriptors where 1"},
		{"log too long", func(g *fakeguest.Guest) error {
			return g.Send(vhost.SetLogBase, fakeguest.Numbers(1<<40, 0), g.File)
		}, "dirty log"},
	} {
		t.Run(test.name, func(t *testing.T) {
			n := newNetwork(t, vnet.Config{})
			g, err := fakeguest.Dial(n.Socket(nic.NIC1), fakeguest.Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer g.Close()
			if err := test.say(g); err != nil {
				t.Fatal(err)
			}
			wantProtocolError(t, ended(t, n), nic.NIC1, test.want)
		})
	}
}

func wantProtocolError(t *testing.T, err error, port nic.Port, text string) {
	t.Helper()
	broken, ok := errors.AsType[*vnet.ProtocolError](err)
	if !ok || broken.Port != port || !errors.Is(err, vhost.ErrProtocol) || !strings.Contains(err.Error(), text) {
		t.Errorf("the network ended with %v, want a protocol error of %s about %q", err, port, text)
	}
}

func TestBrokenProtocolOfRunningRing(t *testing.T) {
	for _, test := range []struct {
		name string
		say  func(g *fakeguest.Guest) error
		want string
	}{
		{"size", func(g *fakeguest.Guest) error { return g.Send(vhost.SetVringNum, fakeguest.State(0, 128)) }, "ring 0 runs"},
		{"base", func(g *fakeguest.Guest) error { return g.Send(vhost.SetVringBase, fakeguest.State(0, 1)) }, "ring 0 runs"},
		{"kick", func(g *fakeguest.Guest) error {
			return g.Send(vhost.SetVringKick, fakeguest.Numbers(0), g.Rings[0].Kick)
		}, "ring 0 runs"},
		{"features", func(g *fakeguest.Guest) error {
			return g.Send(vhost.SetFeatures, fakeguest.Numbers(g.Features&^mergeable))
		}, "features changed"},
	} {
		t.Run(test.name, func(t *testing.T) {
			n := newNetwork(t, vnet.Config{})
			g := connect(t, n, nic.NIC0, fakeguest.Options{})
			if err := test.say(g); err != nil {
				t.Fatal(err)
			}
			wantProtocolError(t, ended(t, n), nic.NIC0, test.want)
		})
	}
}

func TestRingWhereNoMemoryIs(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(addresses []byte)
		want   string
	}{
		{"descriptors outside", func(a []byte) { copy(a[8:], fakeguest.Numbers(fakeguest.GuestBase)) }, "descriptor table"},
		{"used ring over the end", func(a []byte) {
			copy(a[16:], fakeguest.Numbers(fakeguest.UserBase+fakeguest.MemorySize-8))
		}, "used ring"},
		{"available ring at an odd address", func(a []byte) { a[24]++ }, "not aligned"},
		{"used ring at an odd address", func(a []byte) { a[16] += 2 }, "not aligned"},
	} {
		for _, running := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/running=%v", test.name, running), func(t *testing.T) {
				n := newNetwork(t, vnet.Config{})
				g := connect(t, n, nic.NIC0, fakeguest.Options{})
				if !running {
					if _, err := g.StopRing(0); err != nil {
						t.Fatal(err)
					}
				}
				addresses := g.Rings[0].Addresses()
				test.change(addresses)
				if err := errors.Join(
					g.Send(vhost.SetVringAddr, addresses),
					g.Send(vhost.SetVringKick, fakeguest.Numbers(0), g.Rings[0].Kick),
				); err != nil && running == false {
					t.Fatal(err)
				}
				err := ended(t, n)
				wantRingError(t, err, nic.NIC0, "receive", test.want)
				if _, ok := errors.AsType[*virtqueue.Error](err); !ok {
					t.Errorf("%v is not a *virtqueue.Error", err)
				}
			})
		}
	}
}

func TestCloseLeavesNothing(t *testing.T) {
	files := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	maps := func() int {
		content, err := os.ReadFile("/proc/self/maps")
		if err != nil {
			t.Fatal(err)
		}
		return strings.Count(string(content), "memfd:fakeguest")
	}
	run := func() {
		n, err := vnet.New(vnet.Config{})
		if err != nil {
			t.Fatal(err)
		}
		guests := map[nic.Port]*fakeguest.Guest{}
		for _, port := range nic.Ports {
			if guests[port], err = fakeguest.Connect(n.Socket(port), fakeguest.Options{}); err != nil {
				t.Fatal(err)
			}
		}
		call(t, n, nic.MethodHold, nic.Hold{On: true})
		if _, _, err := guests[nic.NIC0].Transmit(frame.Header{}, udp("x")); err != nil {
			t.Fatal(err)
		}
		(&wire{T: t, network: n}).logged(1)
		if err := n.Close(); err != nil {
			t.Fatal(err)
		}
		for _, g := range guests {
			g.Close()
		}
	}
	run() // opens what the runtime keeps, its poller for one
	filesBefore, mapsBefore := files(), maps()
	run()
	if files := files(); files != filesBefore {
		t.Errorf("%d files are open, %d were", files, filesBefore)
	}
	if maps := maps(); maps != mapsBefore {
		t.Errorf("%d pieces of guest memory are mapped, %d were", maps, mapsBefore)
	}
}

func TestFrontEndThatLeavesEarly(t *testing.T) {
	n := newNetwork(t, vnet.Config{})
	connection, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: "@" + n.Socket(nic.NIC0), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	if err := connection.Close(); err != nil {
		t.Fatal(err)
	}
	connect(t, n, nic.NIC0, fakeguest.Options{})
	if err := n.Err(); err != nil {
		t.Error(err)
	}
}

// FuzzGuest lets the fuzzer write the rings and descriptors of both ends.
func FuzzGuest(f *testing.F) {
	f.Add([]byte{}, uint16(1), uint16(1))
	f.Add(bytes.Repeat([]byte{0, 0, 0x40, 0x40, 0, 0, 0, 0, 100, 0, 0, 0, 0, 0, 0, 0}, 8), uint16(3), uint16(8))
	f.Fuzz(func(t *testing.T, content []byte, transmit, receive uint16) {
		n, err := vnet.New(vnet.Config{Ports: []nic.Port{nic.NIC0, nic.NIC1}})
		if err != nil {
			t.Fatal(err)
		}
		defer n.Close()
		a, err := fakeguest.Connect(n.Socket(nic.NIC0), fakeguest.Options{RingSize: 8})
		if err != nil {
			t.Fatal(err)
		}
		defer a.Close()
		b, err := fakeguest.Connect(n.Socket(nic.NIC1), fakeguest.Options{RingSize: 8, Buffers: -1})
		if err != nil {
			t.Fatal(err)
		}
		defer b.Close()
		for _, g := range []*fakeguest.Guest{a, b} {
			for i := range g.Rings {
				copy(g.Bytes[i*64<<10:], content[:min(len(content), 200)])
			}
			if len(content) > 200 {
				copy(g.Bytes[4<<20:], content[200:])
			}
		}
		b.Rings[0].SetIndex(receive)
		a.Rings[1].SetIndex(transmit)
		a.Rings[1].Notify()
		if a.Barrier() == nil {
			_, _ = tryCall(n, nic.MethodFrames, nic.FramesQuery{Port: nic.NIC0})
		}
		if err := n.Err(); err != nil {
			if _, ok := errors.AsType[*vnet.RingError](err); !ok {
				t.Errorf("the network ended with %v", err)
			}
		}
	})
}
