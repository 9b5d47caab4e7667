// SPDX-License-Identifier: BSD-3-Clause

package frame_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/zcvet/zcvet/guest/nic"
	"github.com/zcvet/zcvet/harness/vnet/frame"
	"github.com/zcvet/zcvet/harness/vnet/internal/fakeguest"
)

func build(p fakeguest.Packet) []byte {
	data, _ := fakeguest.Build(p)
	return data
}

// set returns a copy of data with bytes replaced.
func set(data []byte, at int, b ...byte) []byte {
	data = bytes.Clone(data)
	copy(data[at:], b)
	return data
}

// extended puts an IPv6 extension header of 8 bytes between IP and transport.
func extended(data []byte, kind byte, header ...byte) []byte {
	next := data[20]
	data = set(data, 20, kind)
	binary.BigEndian.PutUint16(data[18:], binary.BigEndian.Uint16(data[18:])+8)
	extension := append([]byte{next}, header...)
	return append(append(bytes.Clone(data[:54]), extension...), data[54:]...)
}

func TestParse(t *testing.T) {
	hello := []byte("hello")
	tcp4 := build(fakeguest.Packet{Payload: hello})
	udp4 := build(fakeguest.Packet{UDP: true, Payload: hello})
	tcp6 := build(fakeguest.Packet{IPv6: true, Payload: hello})
	udp6 := build(fakeguest.Packet{IPv6: true, UDP: true, Payload: hello})
	for _, test := range []struct {
		name    string
		data    []byte
		class   nic.Class
		payload int
	}{
		{"TCP data", tcp4, nic.TCPData, 5},
		{"TCP data over IPv6", tcp6, nic.TCPData, 5},
		{"TCP in a VLAN", build(fakeguest.Packet{VLAN: true, Payload: hello}), nic.TCPData, 5},
		{"Ethernet padding is no payload", append(build(fakeguest.Packet{}), 0, 0, 0, 0, 0, 0), nic.TCPAck, 0},
		{"ACK", build(fakeguest.Packet{IPv6: true}), nic.TCPAck, 0},
		{"SYN", build(fakeguest.Packet{Flags: fakeguest.TCPFlags{SYN: true}}), nic.AnyFrame, 0},
		{"FIN", build(fakeguest.Packet{Flags: fakeguest.TCPFlags{FIN: true}}), nic.AnyFrame, 0},
		{"FIN with data", build(fakeguest.Packet{Flags: fakeguest.TCPFlags{FIN: true}, Payload: hello}), nic.TCPData, 5},
		{"RST", build(fakeguest.Packet{Flags: fakeguest.TCPFlags{RST: true}}), nic.TCPReset, 0},
		{"UDP", udp4, nic.UDP, 5},
		{"empty UDP", build(fakeguest.Packet{UDP: true}), nic.UDP, 0},
		{"UDP over IPv6", udp6, nic.UDP, 5},
		{"first fragment", set(udp4, 20, 0x20), nic.UDP, 5},
		{"last fragment", set(udp4, 20, 0x01), nic.UDP, 13},
		{"first fragment over IPv6", extended(udp6, 44, 0, 0, 1, 0, 0, 0, 0), nic.UDP, 5},
		{"last fragment over IPv6", extended(udp6, 44, 0, 8, 0, 0, 0, 0, 0), nic.UDP, 13},
		{"hop-by-hop options", extended(tcp6, 0, 0, 0, 0, 0, 0, 0, 0), nic.TCPData, 5},
		{"ICMP", set(udp4, 23, 1), nic.ICMP, 0},
		{"ICMPv6 echo", set(udp6, 20, 58, 64), nic.ICMP, 0},
		{"neighbour solicitation", set(set(udp6, 20, 58), 54, 135), nic.AnyFrame, 0},
		{"multicast listener report", set(set(udp6, 20, 58), 54, 143), nic.AnyFrame, 0},
		{"ARP", set(udp4, 12, 0x08, 0x06), nic.AnyFrame, 0},
		{"SCTP", set(udp4, 23, 132), nic.AnyFrame, 0},
		{"total length over the frame", set(udp4, 16, 0xff), nic.AnyFrame, 0},
		{"IPv4 header too long", set(udp4, 14, 0x4f), nic.AnyFrame, 0},
		{"TCP header too long", set(tcp4, 46, 0xf0), nic.AnyFrame, 0},
		{"IPv6 length over the frame", set(udp6, 18, 0xff), nic.AnyFrame, 0},
		{"extension over the end", extended(udp6, 0, 0xff, 0, 0, 0, 0, 0, 0), nic.AnyFrame, 0},
		{"wrong version", set(udp4, 14, 0x65), nic.AnyFrame, 0},
		{"short", udp4[:13], nic.AnyFrame, 0},
		{"nothing", nil, nic.AnyFrame, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			info := frame.Parse(test.data)
			if info.Class != test.class || info.PayloadLength != test.payload {
				t.Errorf("class %q with %d bytes of payload, want %q with %d", info.Class, info.PayloadLength, test.class, test.payload)
			}
		})
	}
}

func TestHeaderRoundTrip(t *testing.T) {
	want := frame.Header{Flags: 1, GSOType: 4, HeaderLength: 0x1234, GSOSize: 1448, ChecksumStart: 34, ChecksumOffset: 16}
	b := make([]byte, frame.HeaderSize)
	want.Encode(b, 3)
	if diff := cmp.Diff(want, frame.DecodeHeader(b)); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]byte{1, 4, 0x34, 0x12, 0xa8, 0x05, 34, 0, 16, 0, 3, 0}, b); diff != "" {
		t.Error(diff)
	}
}

func TestCompleteChecksum(t *testing.T) {
	for length := range 70 {
		data, headers := fakeguest.Build(fakeguest.Packet{UDP: true, Payload: bytes.Repeat([]byte{0xfe}, length)})
		left := bytes.Clone(data)
		transport := headers - 8
		binary.BigEndian.PutUint16(left[transport+6:], 0)
		// What the driver leaves there, computed the slow way.
		sum := uint32(10<<8) + 1 + 10<<8 + 2 + 17 + uint32(len(data)-transport)
		binary.BigEndian.PutUint16(left[transport+6:], uint16(sum))
		frame.CompleteChecksum(left, frame.Header{ChecksumStart: uint16(transport), ChecksumOffset: 6})
		if !bytes.Equal(left, data) {
			t.Errorf("payload of %d bytes: checksum %x, want %x", length, left[transport+6:transport+8], data[transport+6:transport+8])
		}
	}
}

func TestChecksumOfZeroIsWrittenAsOnes(t *testing.T) {
	data := []byte{0, 0, 0xff, 0xff}
	frame.CompleteChecksum(data, frame.Header{})
	if !bytes.Equal(data, []byte{0xff, 0xff, 0xff, 0xff}) {
		t.Errorf("%x", data)
	}
}

func TestChecksumsGood(t *testing.T) {
	for _, ipv6 := range []bool{false, true} {
		for _, udp := range []bool{false, true} {
			data, headers := fakeguest.Build(fakeguest.Packet{IPv6: ipv6, UDP: udp, Payload: []byte("some odd payload!")})
			if !frame.ChecksumsGood(data) {
				t.Errorf("ipv6=%v udp=%v: a good checksum is bad", ipv6, udp)
			}
			for _, at := range []int{headers - 1, headers, len(data) - 1} {
				if frame.ChecksumsGood(set(data, at, data[at]+1)) {
					t.Errorf("ipv6=%v udp=%v: a change at %d is not noticed", ipv6, udp, at)
				}
			}
			if !ipv6 && frame.ChecksumsGood(set(data, 22, 1)) {
				t.Error("a changed TTL is not noticed")
			}
		}
	}
}

func TestSegment(t *testing.T) {
	for _, test := range []struct {
		packet fakeguest.Packet
		kind   uint8
	}{
		{fakeguest.Packet{}, frame.GSOTCPv4},
		{fakeguest.Packet{VLAN: true}, frame.GSOTCPv4},
		{fakeguest.Packet{IPv6: true}, frame.GSOTCPv6},
		{fakeguest.Packet{UDP: true}, frame.GSOUDP},
		{fakeguest.Packet{UDP: true, IPv6: true}, frame.GSOUDP},
	} {
		for _, length := range []int{1, 999, 1000, 1001, 5000, 65000} {
			t.Run(fmt.Sprintf("%+v/%d", test.packet, length), func(t *testing.T) {
				payload := make([]byte, length)
				for i := range payload {
					payload[i] = byte(i * 13 / 5)
				}
				packet := test.packet
				packet.Payload, packet.Seq = payload, 0xffff_ff00
				data, headers := fakeguest.Build(packet)
				var got []byte
				number := 0
				err := frame.Segment(make([]byte, 2000), data, frame.Header{GSOType: test.kind, GSOSize: 1000},
					func(segment []byte, atHeaders, atPayload int) {
						// A library builds the same segment from scratch.
						want := packet
						want.Payload = payload[number*1000 : min(number*1000+1000, length)]
						want.Seq += uint32(number * 1000)
						expected := build(want)
						if !packet.IPv6 {
							expected = withID(expected, headers, packet, uint16(0xfffe+number))
						}
						if !bytes.Equal(expected, segment) {
							t.Errorf("segment %d: %s", number, cmp.Diff(expected, segment))
						}
						if atHeaders != headers || atPayload != headers+number*1000 {
							t.Errorf("segment %d: payload at %d from %d", number, atHeaders, atPayload)
						}
						got = append(got, segment[headers:]...)
						number++
					})
				if err != nil || !bytes.Equal(got, payload) {
					t.Errorf("%v, or the payload differs", err)
				}
			})
		}
	}
}

// withID changes the IPv4 identification and the header checksum with it.
func withID(data []byte, headers int, p fakeguest.Packet, id uint16) []byte {
	network := headers - 20 - 20
	if p.UDP {
		network = headers - 8 - 20
	}
	ip := data[network : network+20]
	binary.BigEndian.PutUint16(ip[4:], id)
	binary.BigEndian.PutUint16(ip[10:], 0)
	var sum uint32
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(ip[i:]))
	}
	for sum>>16 != 0 {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(ip[10:], ^uint16(sum))
	return data
}

func TestWhatCannotBeSegmented(t *testing.T) {
	payload := make([]byte, 3000)
	tcp := build(fakeguest.Packet{Payload: payload})
	for name, test := range map[string]struct {
		data   []byte
		header frame.Header
		buffer int
	}{
		"UDP as TCP":       {build(fakeguest.Packet{UDP: true, Payload: payload}), frame.Header{GSOType: frame.GSOTCPv4, GSOSize: 1000}, 2000},
		"IPv6 as IPv4":     {build(fakeguest.Packet{IPv6: true, Payload: payload}), frame.Header{GSOType: frame.GSOTCPv4, GSOSize: 1000}, 2000},
		"fragment":         {set(tcp, 20, 0x20), frame.Header{GSOType: frame.GSOTCPv4, GSOSize: 1000}, 2000},
		"garbage":          {make([]byte, 100), frame.Header{GSOType: frame.GSOTCPv4, GSOSize: 1000}, 2000},
		"no size":          {tcp, frame.Header{GSOType: frame.GSOTCPv4}, 2000},
		"unknown type":     {tcp, frame.Header{GSOType: 3, GSOSize: 1000}, 2000},
		"no type":          {tcp, frame.Header{GSOSize: 1000}, 2000},
		"buffer too small": {tcp, frame.Header{GSOType: frame.GSOTCPv4, GSOSize: 1000}, 1000},
	} {
		t.Run(name, func(t *testing.T) {
			err := frame.Segment(make([]byte, test.buffer), test.data, test.header, func([]byte, int, int) {
				t.Error("a segment")
			})
			if !errors.Is(err, frame.ErrSegment) {
				t.Errorf("%v", err)
			}
		})
	}
}

func FuzzSegment(f *testing.F) {
	payload := make([]byte, 100) // short seeds are minimised quickly
	f.Add(build(fakeguest.Packet{Payload: payload}), uint8(1), uint16(30))
	f.Add(build(fakeguest.Packet{IPv6: true, Payload: payload}), uint8(4), uint16(1))
	f.Add(extended(build(fakeguest.Packet{IPv6: true, UDP: true, Payload: payload}), 0, 0, 0, 0, 0, 0, 0, 0), uint8(5), uint16(1448))
	buffer := make([]byte, frame.MaxLength)
	f.Fuzz(func(t *testing.T, data []byte, kind uint8, size uint16) {
		if len(data) > frame.MaxLength {
			t.Skip("longer than any frame")
		}
		info := frame.Parse(data)
		if info.PayloadLength < 0 || info.Payload+info.PayloadLength > len(data) {
			t.Fatalf("payload at %d+%d in %d bytes", info.Payload, info.PayloadLength, len(data))
		}
		frame.ChecksumsGood(data)
		total := 0
		err := frame.Segment(buffer, data, frame.Header{GSOType: kind, GSOSize: size}, func(segment []byte, headers, payload int) {
			if !bytes.Equal(segment[headers:], data[payload:][:len(segment)-headers]) {
				t.Fatal("the payload differs")
			}
			total += len(segment) - headers
		})
		if err == nil && total != info.PayloadLength {
			t.Errorf("%d bytes of payload became %d", info.PayloadLength, total)
		}
	})
}

func BenchmarkCompleteChecksum(b *testing.B) {
	data := make([]byte, 64<<10)
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		frame.CompleteChecksum(data, frame.Header{})
	}
}
