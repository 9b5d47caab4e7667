// SPDX-License-Identifier: BSD-3-Clause

package vnet_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/zcvet/zcvet/guest/nic"
	"github.com/zcvet/zcvet/harness/vnet"
	"github.com/zcvet/zcvet/harness/vnet/frame"
	"github.com/zcvet/zcvet/harness/vnet/internal/fakeguest"
)

// Feature bits of the standard, written out again so that a wrong bit in the
// code is noticed.
const (
	mergeable     = 1 << 15
	guestChecksum = 1<<0 | 1<<1
	guestTSO      = guestChecksum | 1<<7 | 1<<8 | 1<<11 | 1<<12
	version1      = 1 << 32
)

func newNetwork(t *testing.T, config vnet.Config) *vnet.Network {
	t.Helper()
	n, err := vnet.New(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	return n
}

func connect(t *testing.T, n *vnet.Network, port nic.Port, options fakeguest.Options) *fakeguest.Guest {
	t.Helper()
	g, err := fakeguest.Connect(n.Socket(port), options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(g.Close)
	if err := g.Barrier(); err != nil {
		t.Fatal(err)
	}
	return g
}

// wire is a network with an honest guest at both ends of nic0–nic1.
type wire struct {
	*testing.T
	network *vnet.Network
	a, b    *fakeguest.Guest
}

func newWire(t *testing.T) *wire {
	n := newNetwork(t, vnet.Config{})
	return &wire{
		T: t, network: n,
		a: connect(t, n, nic.NIC0, fakeguest.Options{}),
		b: connect(t, n, nic.NIC1, fakeguest.Options{}),
	}
}

func (w *wire) call(method string, args any) any {
	w.Helper()
	return call(w.T, w.network, method, args)
}

func call(t *testing.T, n *vnet.Network, method string, args any) any {
	t.Helper()
	result, err := tryCall(n, method, args)
	if err != nil {
		t.Fatal(err)
	}
	return result
}

func tryCall(n *vnet.Network, method string, args any) (any, error) {
	encoded, err := json.Marshal(args)
	if err != nil {
		return nil, err
	}
	return n.Call(context.Background(), method, encoded)
}

// transmit sends a frame without offloads.
func (w *wire) transmit(segments ...[]byte) (head uint16, addresses []uint64) {
	w.Helper()
	head, addresses, err := w.a.Transmit(frame.Header{}, segments...)
	if err != nil {
		w.Fatal(err)
	}
	return head, addresses
}

// send transmits a frame and waits until the device gave it back, after which
// the receiver has it if nothing holds it up.
func (w *wire) send(segments ...[]byte) {
	w.Helper()
	w.transmit(segments...)
	if _, err := w.a.Completed(); err != nil {
		w.Fatal(err)
	}
}

func (w *wire) receive() fakeguest.Frame {
	w.Helper()
	f, err := w.b.Receive()
	if err != nil {
		w.Fatal(err)
	}
	return f
}

// arrived returns the last payload byte of every frame that has arrived.
func (w *wire) arrived() string {
	w.Helper()
	var got []byte
	for {
		f, ok, err := w.b.TryReceive()
		if err != nil {
			w.Fatal(err)
		}
		if !ok {
			return string(got)
		}
		got = append(got, f.Data[len(f.Data)-1])
	}
}

// logged waits until the device has seen count frames of nic0.
func (w *wire) logged(count uint64) nic.Frames {
	w.Helper()
	deadline := time.Now().Add(fakeguest.Patience)
	for {
		frames := w.call(nic.MethodFrames, nic.FramesQuery{Port: nic.NIC0}).(nic.Frames)
		if frames.Next >= count {
			return frames
		}
		if time.Now().After(deadline) {
			w.Fatalf("%d frames seen, want %d", frames.Next, count)
		}
		time.Sleep(100 * time.Microsecond)
	}
}

func (w *wire) completed() []uint16 {
	var heads []uint16
	for {
		head, ok := w.a.TryCompleted()
		if !ok {
			return heads
		}
		heads = append(heads, head)
	}
}

func udp(payload string) []byte {
	data, _ := fakeguest.Build(fakeguest.Packet{UDP: true, Payload: []byte(payload)})
	return data
}

func tcp(payload string, flags fakeguest.TCPFlags) []byte {
	data, _ := fakeguest.Build(fakeguest.Packet{Payload: []byte(payload), Flags: flags})
	return data
}

func pattern(length int) []byte {
	b := make([]byte, length)
	for i := range b {
		b[i] = byte(i*7 + i>>8)
	}
	return b
}

func TestFrameCrossesTheWire(t *testing.T) {
	for _, test := range []struct {
		name   string
		sender fakeguest.Options
		length int
		pieces int
	}{
		{"small", fakeguest.Options{}, 1, 1},
		{"odd pieces", fakeguest.Options{}, 1399, 7},
		{"indirect", fakeguest.Options{Indirect: true}, 1400, 17},
		{"several receive buffers", fakeguest.Options{}, 9000, 3},
	} {
		t.Run(test.name, func(t *testing.T) {
			n := newNetwork(t, vnet.Config{})
			w := &wire{
				T: t, network: n,
				a: connect(t, n, nic.NIC0, test.sender), b: connect(t, n, nic.NIC1, fakeguest.Options{}),
			}
			data := udp(string(pattern(test.length)))
			var segments [][]byte
			for i := range test.pieces {
				segments = append(segments, data[i*len(data)/test.pieces:(i+1)*len(data)/test.pieces])
			}
			w.send(segments...)
			got := w.receive()
			if !bytes.Equal(got.Data, data) {
				t.Errorf("%d bytes arrived, %d were sent, or they differ", len(got.Data), len(data))
			}
			if got.Header != (frame.Header{}) {
				t.Errorf("header %+v of a frame without offloads", got.Header)
			}
			if want := (frame.HeaderSize + len(data) + 2047) / 2048; got.Buffers != want {
				t.Errorf("%d buffers, want %d", got.Buffers, want)
			}
		})
	}
}

func TestEveryPortHasItsPeer(t *testing.T) {
	n := newNetwork(t, vnet.Config{})
	guests := map[nic.Port]*fakeguest.Guest{}
	for _, port := range nic.Ports {
		guests[port] = connect(t, n, port, fakeguest.Options{})
	}
	for _, port := range nic.Ports {
		data := udp("from " + string(port))
		if _, _, err := guests[port].Transmit(frame.Header{}, data); err != nil {
			t.Fatal(err)
		}
		got, err := guests[port.Peer()].Receive()
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got.Data, data) {
			t.Errorf("%s received something else than %s sent", port.Peer(), port)
		}
	}
}

func TestFeaturesByPort(t *testing.T) {
	n := newNetwork(t, vnet.Config{})
	for port, checksum := range map[nic.Port]bool{nic.NIC0: true, nic.NIC1: true, nic.NoSG0: false, nic.NoSG1: false} {
		g := connect(t, n, port, fakeguest.Options{})
		const offloads = guestTSO | 1<<54 | 1<<55 | 1<<56
		if got := g.Features & offloads; checksum && got != offloads || !checksum && got != 0 {
			t.Errorf("%s offers offloads %#x", port, got)
		}
		if g.Features&mergeable == 0 || g.Features&version1 == 0 || g.Features&(1<<29) != 0 {
			t.Errorf("%s offers %#x", port, g.Features)
		}
	}
}

// offload sends a large TCP frame whose checksum and segmentation are left to
// the device, and returns what the guest at the other end gets.
func offload(t *testing.T, receiver fakeguest.Options, ipv6 bool, length int, gso bool) (sent []byte, got []fakeguest.Frame) {
	n := newNetwork(t, vnet.Config{})
	a, b := connect(t, n, nic.NIC0, fakeguest.Options{}), connect(t, n, nic.NIC1, receiver)
	sent, headers := fakeguest.Build(fakeguest.Packet{
		IPv6: ipv6, Payload: pattern(length), Flags: fakeguest.TCPFlags{PSH: true, FIN: true}, Seq: 0xffff_f000,
	})
	left := bytes.Clone(sent)
	transport := headers - 20
	// The driver leaves the sum of the pseudo header in the field.
	binary.BigEndian.PutUint16(left[transport+16:], pseudoSum(left, transport))
	h := frame.Header{Flags: frame.NeedsChecksum, ChecksumStart: uint16(transport), ChecksumOffset: 16}
	if gso {
		h.GSOType, h.GSOSize, h.HeaderLength = frame.GSOTCPv4, 1448, uint16(headers)
		if ipv6 {
			h.GSOType = frame.GSOTCPv6
		}
	}
	if _, _, err := a.Transmit(h, left[:headers], left[headers:]); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Completed(); err != nil {
		t.Fatal(err)
	}
	for {
		f, ok, err := b.TryReceive()
		if err != nil {
			t.Fatal(err)
		}
		if !ok {
			return sent, got
		}
		got = append(got, f)
	}
}

func pseudoSum(data []byte, transport int) uint16 {
	var sum uint32
	add := func(b []byte) {
		for i := 0; i < len(b); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(b[i:]))
		}
	}
	if data[14]>>4 == 4 {
		add(data[14+12 : 14+20])
	} else {
		add(data[14+8 : 14+40])
	}
	sum += 6 + uint32(len(data)-transport)
	for sum>>16 != 0 {
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}

func TestOffloadsFollowTheReceiver(t *testing.T) {
	for _, ipv6 := range []bool{false, true} {
		t.Run(fmt.Sprintf("large frame passed on/ipv6=%v", ipv6), func(t *testing.T) {
			sent, got := offload(t, fakeguest.Options{}, ipv6, 50_000, true)
			if len(got) != 1 || len(got[0].Data) != len(sent) {
				t.Fatalf("%d frames arrived", len(got))
			}
			if h := got[0].Header; h.Flags != frame.NeedsChecksum || h.GSOSize != 1448 || h.GSOType == 0 {
				t.Errorf("header %+v", h)
			}
		})
		t.Run(fmt.Sprintf("large frame segmented/ipv6=%v", ipv6), func(t *testing.T) {
			sent, got := offload(t, fakeguest.Options{Features: mergeable | guestChecksum}, ipv6, 50_000, true)
			if want := (50_000 + 1447) / 1448; len(got) != want {
				t.Fatalf("%d frames arrived, want %d", len(got), want)
			}
			headers := len(sent) - 50_000
			var payload []byte
			for i, f := range got {
				if f.Header != (frame.Header{}) || !frame.ChecksumsGood(f.Data) {
					t.Errorf("segment %d: header %+v, or a bad checksum", i, f.Header)
				}
				sequence := binary.BigEndian.Uint32(f.Data[headers-16:])
				if want := 0xffff_f000 + uint32(i*1448); sequence != want {
					t.Errorf("segment %d: sequence number %#x, want %#x", i, sequence, want)
				}
				if flags, last := f.Data[headers-7], i == len(got)-1; flags&0x09 != 0 != last {
					t.Errorf("segment %d of %d: flags %#x", i, len(got), flags)
				}
				payload = append(payload, f.Data[headers:]...)
			}
			if !bytes.Equal(payload, sent[headers:]) {
				t.Error("the payload differs")
			}
		})
		t.Run(fmt.Sprintf("checksum passed on/ipv6=%v", ipv6), func(t *testing.T) {
			_, got := offload(t, fakeguest.Options{Features: mergeable | guestChecksum}, ipv6, 999, false)
			if len(got) != 1 || got[0].Header.Flags != frame.NeedsChecksum {
				t.Fatalf("arrived: %+v", got)
			}
		})
		t.Run(fmt.Sprintf("checksum completed/ipv6=%v", ipv6), func(t *testing.T) {
			sent, got := offload(t, fakeguest.Options{Features: mergeable}, ipv6, 999, false)
			if len(got) != 1 || got[0].Header != (frame.Header{}) || !bytes.Equal(got[0].Data, sent) {
				t.Fatalf("arrived: %+v", got)
			}
		})
	}
}

func TestDuplicateOfChecksumOffload(t *testing.T) {
	// The device completes the checksum twice, of the same bytes.
	n := newNetwork(t, vnet.Config{})
	a, b := connect(t, n, nic.NIC0, fakeguest.Options{}), connect(t, n, nic.NIC1, fakeguest.Options{Features: mergeable})
	call(t, n, nic.MethodAddRule, nic.Rule{Port: nic.NIC0, Action: nic.Duplicate})
	data, headers := fakeguest.Build(fakeguest.Packet{Payload: pattern(100)})
	left := bytes.Clone(data)
	binary.BigEndian.PutUint16(left[headers-4:], pseudoSum(left, headers-20))
	h := frame.Header{Flags: frame.NeedsChecksum, ChecksumStart: uint16(headers - 20), ChecksumOffset: 16}
	if _, _, err := a.Transmit(h, left); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if got, err := b.Receive(); err != nil || !bytes.Equal(got.Data, data) {
			t.Errorf("%v, or the bytes differ", err)
		}
	}
}

func TestHeldBuffersComeBackInTheOrderAskedFor(t *testing.T) {
	w := newWire(t)
	w.call(nic.MethodHold, nic.Hold{Port: nic.NIC0, On: true})
	var heads []uint16
	for i := range 6 {
		head, _ := w.transmit(udp(string(rune('0' + i))))
		heads = append(heads, head)
	}
	frames := w.logged(6)
	if got := w.arrived(); got != "012345" {
		t.Errorf("arrived while held: %q", got)
	}
	if got := w.completed(); got != nil {
		t.Errorf("chains %v came back while held", got)
	}
	for _, f := range frames.Frames {
		if !f.Held {
			t.Errorf("frame %d is not shown as held", f.Number)
		}
	}

	for _, step := range []struct {
		release nic.Release
		want    []uint16
		status  nic.Released
	}{
		{nic.Release{Port: nic.NIC0, Order: []int{3, 0}}, []uint16{heads[3], heads[0]}, nic.Released{Released: 2, Held: 4}},
		{nic.Release{Port: nic.NIC0, Count: 1}, []uint16{heads[1]}, nic.Released{Released: 1, Held: 3}},
		{nic.Release{Port: nic.NIC0, Order: []int{2}}, []uint16{heads[5]}, nic.Released{Released: 1, Held: 2}},
		{nic.Release{}, []uint16{heads[2], heads[4]}, nic.Released{Released: 2}},
	} {
		if got := w.call(nic.MethodRelease, step.release); got != step.status {
			t.Errorf("%+v: %+v, want %+v", step.release, got, step.status)
		}
		if got := w.completed(); !cmp.Equal(got, step.want) {
			t.Errorf("%+v: chains %v came back, want %v", step.release, got, step.want)
		}
	}
	if got := w.arrived(); got != "" {
		t.Errorf("%q arrived again", got)
	}
}

func TestHoldOffReleasesAll(t *testing.T) {
	w := newWire(t)
	w.call(nic.MethodHold, nic.Hold{On: true})
	first, _ := w.transmit(udp("a"))
	second, _ := w.transmit(udp("b"))
	w.logged(2)
	w.call(nic.MethodHold, nic.Hold{})
	if got, want := w.completed(), []uint16{first, second}; !cmp.Equal(got, want) {
		t.Errorf("chains %v came back, want %v", got, want)
	}
	w.send(udp("c"))
}

func TestImpossibleReleaseChangesNothing(t *testing.T) {
	w := newWire(t)
	w.call(nic.MethodHold, nic.Hold{Port: nic.NIC0, On: true})
	w.transmit(udp("a"))
	w.logged(1)
	for _, release := range []nic.Release{
		{Port: nic.NIC0, Order: []int{1}},
		{Port: nic.NIC0, Order: []int{-1}},
		{Port: nic.NIC0, Order: []int{0, 0}},
		{Port: nic.NIC0, Count: -1},
		{Port: "eth0"},
		{Order: []int{0}},
	} {
		if _, err := tryCall(w.network, nic.MethodRelease, release); err == nil {
			t.Errorf("%+v was done", release)
		}
	}
	if got := w.call(nic.MethodRelease, nic.Release{Port: nic.NIC0}); got != (nic.Released{Released: 1}) {
		t.Errorf("%+v", got)
	}
}

func TestLateDMA(t *testing.T) {
	for _, test := range []struct {
		name    string
		length  int
		gso     bool
		offload bool
	}{
		{"checksum by the guest", 1000, false, false},
		{"checksum by the device", 1000, false, true},
		{"segmented by the device", 5000, true, true},
	} {
		for _, overwrite := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/overwritten=%v", test.name, overwrite), func(t *testing.T) {
				w := newWire(t)
				w.call(nic.MethodHold, nic.Hold{Port: nic.NIC0, On: true})
				w.call(nic.MethodLateDMA, nic.LateDMA{Port: nic.NIC0, On: true})
				data, headers := fakeguest.Build(fakeguest.Packet{Payload: pattern(test.length)})
				var h frame.Header
				if test.offload {
					h = frame.Header{Flags: frame.NeedsChecksum, ChecksumStart: uint16(headers - 20), ChecksumOffset: 16}
					binary.BigEndian.PutUint16(data[headers-4:], pseudoSum(data, headers-20))
				}
				if test.gso {
					h.GSOType, h.GSOSize = frame.GSOTCPv4, 1000
				}
				_, addresses, err := w.a.Transmit(h, data[:headers], data[headers:])
				if err != nil {
					t.Fatal(err)
				}
				w.logged(1)
				if got := w.arrived(); got != "" {
					t.Fatalf("%q arrived before the release", got)
				}
				payload := w.a.At(addresses[2], test.length)
				if overwrite {
					for i := range payload {
						payload[i] = 0xee
					}
				}
				want := bytes.Clone(payload)
				w.call(nic.MethodRelease, nic.Release{Port: nic.NIC0})
				var got []byte
				for len(got) < len(want) {
					f := w.receive()
					if f.Header != (frame.Header{}) {
						t.Errorf("header %+v lets the receiver trust the checksum", f.Header)
					}
					if good := frame.ChecksumsGood(f.Data); good == overwrite {
						t.Errorf("checksum good: %v", good)
					}
					got = append(got, f.Data[headers:]...)
				}
				if !bytes.Equal(got, want) {
					t.Error("not the bytes of the moment of the release")
				}
			})
		}
	}
}

func TestLateDMAKeepsNothingWithoutPayload(t *testing.T) {
	w := newWire(t)
	w.call(nic.MethodHold, nic.Hold{Port: nic.NIC0, On: true})
	w.call(nic.MethodLateDMA, nic.LateDMA{Port: nic.NIC0, On: true})
	w.transmit(tcp("", fakeguest.TCPFlags{SYN: true}))
	w.receive()
	if got := w.completed(); got != nil {
		t.Errorf("chains %v came back", got)
	}
}

func TestRules(t *testing.T) {
	// Frames are named by their last byte: digits are UDP, capitals TCP data.
	for _, test := range []struct {
		name   string
		rules  []nic.Rule
		sent   string
		want   string // arrived before the rules were removed
		rest   string // arrived by the removal of the rules
		status nic.RuleStatus
	}{
		{name: "none", sent: "0A1", want: "0A1"},
		{
			"drop all",
			[]nic.Rule{{Action: nic.Drop}},
			"0A1", "", "",
			nic.RuleStatus{Matched: 3, Acted: 3},
		},
		{
			"drop a class",
			[]nic.Rule{{Action: nic.Drop, Match: nic.UDP}},
			"0A1", "A", "",
			nic.RuleStatus{Matched: 2, Acted: 2},
		},
		{
			"drop of another port",
			[]nic.Rule{{Action: nic.Drop, Port: nic.NIC1}},
			"0A1", "0A1", "",
			nic.RuleStatus{},
		},
		{
			"skip and count",
			[]nic.Rule{{Action: nic.Drop, Match: nic.UDP, Skip: 1, Count: 2}},
			"0123456", "03456", "",
			nic.RuleStatus{Matched: 7, Acted: 2},
		},
		{
			"duplicate",
			[]nic.Rule{{Action: nic.Duplicate, Match: nic.TCPData}},
			"0AB1", "0AABB1", "",
			nic.RuleStatus{Matched: 2, Acted: 2},
		},
		{
			"delay",
			[]nic.Rule{{Action: nic.Delay, Match: nic.TCPData, Count: 1, By: 2}},
			"0AB123", "0B1A23", "",
			nic.RuleStatus{Matched: 2, Acted: 1},
		},
		{
			"delay all",
			[]nic.Rule{{Action: nic.Delay, By: 1}},
			"0123", "012", "3",
			nic.RuleStatus{Matched: 4, Acted: 4, Held: 1},
		},
		{
			"delay past the end",
			[]nic.Rule{{Action: nic.Delay, Match: nic.TCPData, By: 3}},
			"0AB1", "01", "AB",
			nic.RuleStatus{Matched: 2, Acted: 2, Held: 2},
		},
		{
			"reorder",
			[]nic.Rule{{Action: nic.Reorder, By: 3, Match: nic.UDP}},
			"01A23456", "A210543", "6",
			nic.RuleStatus{Matched: 7, Acted: 7, Held: 1},
		},
		{
			"reorder ends with its count",
			[]nic.Rule{{Action: nic.Reorder, By: 3, Count: 5}},
			"0123456", "2104356", "",
			nic.RuleStatus{Matched: 7, Acted: 5},
		},
		{
			"withhold",
			[]nic.Rule{{Action: nic.Withhold, Match: nic.UDP}},
			"0A1B2", "AB", "012",
			nic.RuleStatus{Matched: 3, Acted: 3, Held: 3},
		},
		{
			"the first rule decides",
			[]nic.Rule{{Action: nic.Withhold, Match: nic.UDP, Skip: 1, Count: 1}, {Action: nic.Drop}},
			"0123", "0", "1",
			nic.RuleStatus{Matched: 4, Acted: 1, Held: 1},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWire(t)
			var numbers []int
			for _, rule := range test.rules {
				numbers = append(numbers, w.call(nic.MethodAddRule, rule).(nic.RuleAdded).Rule)
			}
			for _, name := range test.sent {
				if name <= '9' {
					w.send(udp(string(name)))
				} else {
					w.send(tcp(string(name), fakeguest.TCPFlags{}))
				}
			}
			if got := w.arrived(); got != test.want {
				t.Errorf("%q arrived, want %q", got, test.want)
			}
			for i, number := range numbers {
				status := w.call(nic.MethodRuleStatus, nic.RemoveRule{Rule: number})
				if removed := w.call(nic.MethodRemoveRule, nic.RemoveRule{Rule: number}); removed != status {
					t.Errorf("removed with %+v, status was %+v", removed, status)
				}
				if i == 0 && status != test.status {
					t.Errorf("%+v, want %+v", status, test.status)
				}
			}
			if got := w.arrived(); got != test.rest {
				t.Errorf("%q arrived by the removal, want %q", got, test.rest)
			}
		})
	}
}

func TestClasses(t *testing.T) {
	w := newWire(t)
	icmp := udp("ping")
	icmp[14+9] = 1
	arp := udp("who has")
	binary.BigEndian.PutUint16(arp[12:], 0x0806)
	frames := map[nic.Class][]byte{
		nic.TCPData:  tcp("x", fakeguest.TCPFlags{PSH: true}),
		nic.TCPAck:   tcp("", fakeguest.TCPFlags{}),
		nic.TCPReset: tcp("", fakeguest.TCPFlags{RST: true}),
		nic.UDP:      udp("x"),
		nic.ICMP:     icmp,
	}
	frames["other"] = arp
	rules := map[nic.Class]int{}
	for class := range frames {
		if class != "other" {
			rules[class] = w.call(nic.MethodAddRule, nic.Rule{Port: nic.NIC0, Match: class, Action: nic.Drop}).(nic.RuleAdded).Rule
		}
	}
	for _, data := range frames {
		w.send(data)
	}
	for class, rule := range rules {
		want := nic.RuleStatus{Matched: 1, Acted: 1}
		if got := w.call(nic.MethodRuleStatus, nic.RemoveRule{Rule: rule}); got != want {
			t.Errorf("%s: %+v, want %+v", class, got, want)
		}
	}
	if got := w.receive(); !bytes.Equal(got.Data, arp) {
		t.Error("not the ARP frame arrived")
	}
}

func TestImpossibleCalls(t *testing.T) {
	n := newNetwork(t, vnet.Config{})
	for _, test := range []struct {
		method string
		args   string
	}{
		{"nic.explode", `{}`},
		{nic.MethodHold, `{"port":"nic7","on":true}`},
		{nic.MethodHold, `{"prot":"nic0"}`},
		{nic.MethodHold, ``},
		{nic.MethodLateDMA, `{"port":"nic7"}`},
		{nic.MethodAddRule, `{"port":"nic0","action":"teleport"}`},
		{nic.MethodAddRule, `{"port":"nic7","action":"drop"}`},
		{nic.MethodAddRule, `{"port":"nic0","action":"drop","match":"sctp"}`},
		{nic.MethodAddRule, `{"port":"nic0","action":"delay"}`},
		{nic.MethodAddRule, `{"port":"nic0","action":"reorder","by":0}`},
		{nic.MethodAddRule, `{"port":"nic0","action":"drop","skip":-1}`},
		{nic.MethodRemoveRule, `{"rule":1}`},
		{nic.MethodRuleStatus, `{"rule":1}`},
		{nic.MethodFrames, `{"port":""}`},
		{nic.MethodSetLink, `{"port":"nic7"}`},
	} {
		_, err := n.Call(context.Background(), test.method, json.RawMessage(test.args))
		if err == nil || !strings.HasPrefix(err.Error(), test.method+": ") {
			t.Errorf("%s %s: error %v", test.method, test.args, err)
		}
	}
	if err := n.Err(); err != nil {
		t.Errorf("the network ended: %v", err)
	}
}

func TestLinkDown(t *testing.T) {
	type change struct {
		Port nic.Port
		Up   bool
	}
	var changes []change
	n := newNetwork(t, vnet.Config{OnSetLink: func(_ context.Context, port nic.Port, up bool) error {
		changes = append(changes, change{port, up})
		return nil
	}})
	w := &wire{
		T: t, network: n,
		a: connect(t, n, nic.NIC0, fakeguest.Options{}), b: connect(t, n, nic.NIC1, fakeguest.Options{}),
	}
	for _, port := range []nic.Port{nic.NIC0, nic.NIC1} {
		w.call(nic.MethodSetLink, nic.SetLink{Port: port})
		w.send(udp("down"))
		w.call(nic.MethodSetLink, nic.SetLink{Port: port, Up: true})
	}
	w.call(nic.MethodSetLink, nic.SetLink{Port: nic.NIC1})
	w.call(nic.MethodReset, nil)
	w.send(udp("1"))
	if got := w.arrived(); got != "1" {
		t.Errorf("%q arrived", got)
	}
	if got := n.Stats(nic.NIC1); got.LinkDown != 2 || got.Received != 1 {
		t.Errorf("%+v", got)
	}
	want := []change{{nic.NIC0, false}, {nic.NIC0, true}, {nic.NIC1, false}, {nic.NIC1, true}, {nic.NIC1, false}, {nic.NIC1, true}}
	if diff := cmp.Diff(want, changes); diff != "" {
		t.Error(diff)
	}
}

func TestLinkThatTheMachineCannotChange(t *testing.T) {
	broken := errors.New("no QMP")
	n := newNetwork(t, vnet.Config{OnSetLink: func(context.Context, nic.Port, bool) error { return broken }})
	if _, err := tryCall(n, nic.MethodSetLink, nic.SetLink{Port: nic.NIC0}); !errors.Is(err, broken) {
		t.Errorf("error %v", err)
	}
}

func TestReset(t *testing.T) {
	w := newWire(t)
	w.call(nic.MethodAddRule, nic.Rule{Match: nic.UDP, Action: nic.Withhold})
	w.call(nic.MethodHold, nic.Hold{Port: nic.NIC0, On: true})
	w.call(nic.MethodLateDMA, nic.LateDMA{Port: nic.NIC0, On: true})
	w.transmit(udp("0"))
	w.transmit(tcp("1", fakeguest.TCPFlags{}))
	w.logged(2)
	w.call(nic.MethodReset, nil)
	if got := len(w.completed()); got != 2 {
		t.Errorf("%d buffers came back, want 2", got)
	}
	if got := w.call(nic.MethodFrames, nic.FramesQuery{Port: nic.NIC0}).(nic.Frames); got.Next != 0 || len(got.Frames) != 0 {
		t.Errorf("the log has %+v", got)
	}
	w.send(udp("2"))
	if got := w.arrived(); got != "012" {
		t.Errorf("%q arrived, want everything", got)
	}
}

func TestDescriptorLog(t *testing.T) {
	w := newWire(t)
	data := tcp("payload", fakeguest.TCPFlags{})
	_, addresses := w.transmit(data[:54], data[54:])
	if _, err := w.a.Completed(); err != nil {
		t.Fatal(err)
	}
	w.send(udp("x"))
	want := nic.Frames{Next: 2, Frames: []nic.Frame{{
		Class: nic.TCPData, Length: 61, Payload: 7,
		Segments: []nic.Segment{{Address: addresses[0], Length: 12}, {Address: addresses[1], Length: 54}, {Address: addresses[2], Length: 7}},
	}}}
	if diff := cmp.Diff(want, w.call(nic.MethodFrames, nic.FramesQuery{Port: nic.NIC0, Match: nic.TCPData})); diff != "" {
		t.Error(diff)
	}
	if got := w.call(nic.MethodFrames, nic.FramesQuery{Port: nic.NIC0, Since: 1}).(nic.Frames); len(got.Frames) != 1 || got.Frames[0].Class != nic.UDP {
		t.Errorf("since 1: %+v", got)
	}

	var lines bytes.Buffer
	if err := w.network.WriteDescriptorLog(&lines); err != nil {
		t.Fatal(err)
	}
	var line struct {
		Port nic.Port
		nic.Frame
	}
	if err := json.Unmarshal(bytes.SplitN(lines.Bytes(), []byte("\n"), 2)[0], &line); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want.Frames[0], line.Frame); diff != "" || line.Port != nic.NIC0 {
		t.Errorf("port %s, %s", line.Port, diff)
	}
}

func TestReceiverWithoutBuffers(t *testing.T) {
	n := newNetwork(t, vnet.Config{})
	w := &wire{
		T: t, network: n,
		a: connect(t, n, nic.NIC0, fakeguest.Options{}), b: connect(t, n, nic.NIC1, fakeguest.Options{Buffers: -1}),
	}
	const tooMany = 1100
	for i := range tooMany {
		w.send(udp(string(rune('0' + i%10))))
	}
	if got := w.arrived(); got != "" {
		t.Fatalf("%q arrived without buffers", got)
	}
	stats := n.Stats(nic.NIC1)
	if stats.NoBuffers == 0 || stats.NoBuffers > tooMany/2 {
		t.Errorf("%+v", stats)
	}
	if err := w.b.Refill(2); err != nil {
		t.Fatal(err)
	}
	for i := range tooMany - int(stats.NoBuffers) {
		if got := w.receive(); got.Data[len(got.Data)-1] != byte('0'+i%10) {
			t.Fatalf("frame %d ends with %q", i, got.Data[len(got.Data)-1])
		}
	}
}

func TestReceiverThatIsNotThere(t *testing.T) {
	n := newNetwork(t, vnet.Config{})
	w := &wire{T: t, network: n, a: connect(t, n, nic.NIC0, fakeguest.Options{})}
	w.send(udp("x"))
	if got := n.Stats(nic.NIC1); got.NoDriver != 1 {
		t.Errorf("%+v", got)
	}
}

func TestReceiverWithoutMergeableBuffers(t *testing.T) {
	n := newNetwork(t, vnet.Config{})
	w := &wire{
		T: t, network: n,
		a: connect(t, n, nic.NIC0, fakeguest.Options{}), b: connect(t, n, nic.NIC1, fakeguest.Options{Features: 1}),
	}
	w.send(udp(string(pattern(3000))))
	w.send(udp(string(pattern(1000))))
	if got := w.receive(); got.Buffers != 1 || len(got.Data) != 1042 {
		t.Errorf("%d bytes in %d buffers", len(got.Data), got.Buffers)
	}
	if got := n.Stats(nic.NIC1); got.NoBuffers != 1 || got.Received != 1 {
		t.Errorf("%+v", got)
	}
}

func TestCloseWhileIdle(t *testing.T) {
	n, err := vnet.New(vnet.Config{Ports: []nic.Port{nic.NoSG1, nic.NoSG0}})
	if err != nil {
		t.Fatal(err)
	}
	if n.Socket(nic.NIC0) != "" || n.Socket(nic.NoSG0) == n.Socket(nic.NoSG1) {
		t.Error("wrong sockets")
	}
	if err := n.Close(); err != nil {
		t.Error(err)
	}
	<-n.Done()
	if err := n.Err(); err != nil {
		t.Error(err)
	}
	if _, err := tryCall(n, nic.MethodHold, nic.Hold{}); !errors.Is(err, vnet.ErrClosed) {
		t.Errorf("a call after Close: %v", err)
	}
	if err := n.Close(); err != nil {
		t.Error(err)
	}
}

func TestPortWithoutPeer(t *testing.T) {
	for _, ports := range [][]nic.Port{{nic.NIC0}, {nic.NIC0, nic.NIC1, nic.NIC0}, {"eth0", "eth1"}} {
		if n, err := vnet.New(vnet.Config{Ports: ports}); err == nil {
			t.Errorf("a network of %v", ports)
			_ = n.Close()
		}
	}
}
