// SPDX-License-Identifier: BSD-3-Clause

// Package frame reads Ethernet frames and virtio-net headers as a driver hands
// them over, and does in software what a NIC's offloads do: it completes
// checksums and cuts large segments.
package frame

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/zcvet/zcvet/guest/nic"
)

// HeaderSize is the length in bytes of the virtio-net header of a device that
// speaks VIRTIO_F_VERSION_1.
const HeaderSize = 12

// MaxLength is the longest frame taken from a driver, in bytes: the largest IP
// packet a device without "BIG TCP" is given, its Ethernet header and a VLAN
// tag, with room to spare.
const MaxLength = 68 << 10

// Flags of Header.Flags.
const NeedsChecksum = 1 // VIRTIO_NET_HDR_F_NEEDS_CSUM

// Values of Header.GSOType.
const (
	GSONone  = 0
	GSOTCPv4 = 1
	GSOTCPv6 = 4
	GSOUDP   = 5 // VIRTIO_NET_HDR_GSO_UDP_L4
	GSOECN   = 0x80
)

// Header is a virtio-net header without num_buffers, which belongs to the
// receiving ring.
type Header struct {
	Flags          uint8
	GSOType        uint8
	HeaderLength   uint16 // a hint only, never relied on
	GSOSize        uint16 // payload per segment
	ChecksumStart  uint16
	ChecksumOffset uint16 // from ChecksumStart
}

// DecodeHeader reads a header from its first HeaderSize bytes.
func DecodeHeader(b []byte) Header {
	_ = b[HeaderSize-1]
	return Header{
		Flags:          b[0],
		GSOType:        b[1],
		HeaderLength:   binary.LittleEndian.Uint16(b[2:]),
		GSOSize:        binary.LittleEndian.Uint16(b[4:]),
		ChecksumStart:  binary.LittleEndian.Uint16(b[6:]),
		ChecksumOffset: binary.LittleEndian.Uint16(b[8:]),
	}
}

// Encode writes the header to the first HeaderSize bytes of b. Buffers is
// num_buffers, the number of descriptor chains the frame takes.
func (h Header) Encode(b []byte, buffers uint16) {
	_ = b[HeaderSize-1]
	b[0], b[1] = h.Flags, h.GSOType
	binary.LittleEndian.PutUint16(b[2:], h.HeaderLength)
	binary.LittleEndian.PutUint16(b[4:], h.GSOSize)
	binary.LittleEndian.PutUint16(b[6:], h.ChecksumStart)
	binary.LittleEndian.PutUint16(b[8:], h.ChecksumOffset)
	binary.LittleEndian.PutUint16(b[10:], buffers)
}

// Check tells whether the header makes sense for a frame of so many bytes, by
// the rules the standard sets to drivers.
func (h Header) Check(length int) error {
	if h.Flags&NeedsChecksum != 0 && int(h.ChecksumStart)+int(h.ChecksumOffset)+2 > length {
		return fmt.Errorf("checksum at %d+%d in a frame of %d bytes", h.ChecksumStart, h.ChecksumOffset, length)
	}
	if h.GSOType == GSONone {
		return nil
	}
	switch {
	case h.Flags&NeedsChecksum == 0:
		return fmt.Errorf("segmentation type %#x without a checksum to compute", h.GSOType)
	case h.GSOSize == 0:
		return fmt.Errorf("segmentation type %#x into segments of 0 bytes", h.GSOType)
	}
	return nil
}

// Info is what the headers of a frame say.
type Info struct {
	Class nic.Class
	// Network, Transport and Payload are offsets of the IP header, of the TCP,
	// UDP or ICMP header and of what follows it; 0 if there is none.
	Network, Transport, Payload int
	// PayloadLength is the number of bytes of TCP or UDP payload in the frame.
	PayloadLength int
	// protocol and version of IP, 0 if the frame carries none.
	protocol, version uint8
	// fragment is true for a frame that is not a whole IP packet.
	fragment bool
}

const (
	etherIPv4 = 0x0800
	etherIPv6 = 0x86dd
	etherVLAN = 0x8100

	protocolICMP   = 1
	protocolTCP    = 6
	protocolUDP    = 17
	protocolICMPv6 = 58

	tcpFIN = 0x01
	tcpSYN = 0x02
	tcpRST = 0x04
	tcpPSH = 0x08
	tcpACK = 0x10
	tcpCWR = 0x80

	// Ethernet header, VLAN tag, an IPv6 header with the extension headers
	// that occur, a TCP header with all options: no headers are longer.
	maxHeaders = 256
)

// Parse reads the headers of a frame. It takes any bytes: what it cannot make
// sense of is of class nic.AnyFrame.
func Parse(data []byte) Info {
	var info Info
	if len(data) < 14 {
		return info
	}
	offset := 14
	ether := binary.BigEndian.Uint16(data[12:])
	if ether == etherVLAN && len(data) >= 18 {
		ether, offset = binary.BigEndian.Uint16(data[16:]), 18
	}
	end := 0
	switch ether {
	case etherIPv4:
		end = info.parseIPv4(data, offset)
	case etherIPv6:
		end = info.parseIPv6(data, offset)
	}
	if end > 0 {
		info.parseTransport(data[:end])
	}
	return info
}

// parseIPv4 returns the end of the packet in data, 0 for one that makes no
// sense.
func (info *Info) parseIPv4(data []byte, offset int) int {
	if len(data) < offset+20 {
		return 0
	}
	header := data[offset:]
	length := int(header[0]&0xf) * 4
	total := int(binary.BigEndian.Uint16(header[2:]))
	if header[0]>>4 != 4 || length < 20 || total < length || len(header) < total {
		return 0
	}
	fragment := binary.BigEndian.Uint16(header[6:])
	info.Network, info.Transport = offset, offset+length
	info.version, info.protocol = 4, header[9]
	info.fragment = fragment&0x3fff != 0
	if fragment&0x1fff != 0 {
		// Only the first fragment has a transport header.
		info.Payload = info.Transport
	}
	return offset + total
}

func (info *Info) parseIPv6(data []byte, offset int) int {
	if len(data) < offset+40 || data[offset]>>4 != 6 {
		return 0
	}
	end := offset + 40 + int(binary.BigEndian.Uint16(data[offset+4:]))
	if end > len(data) {
		return 0
	}
	info.Network, info.version = offset, 6
	next := data[offset+6]
	at := offset + 40
	for at < offset+maxHeaders {
		length := 0
		switch next {
		case 0, 43, 60: // hop-by-hop options, routing, destination options
			if at+8 > end {
				return 0
			}
			length = 8 * (int(data[at+1]) + 1)
		case 44: // fragment
			if at+8 > end {
				return 0
			}
			length = 8
			info.fragment = true
			if binary.BigEndian.Uint16(data[at+2:])&0xfff8 != 0 {
				info.Payload = at + length
			}
		default:
			info.protocol, info.Transport = next, at
			return end
		}
		next, at = data[at], at+length
		if at > end {
			return 0
		}
	}
	return 0
}

func (info *Info) parseTransport(data []byte) {
	if info.Payload != 0 { // a later fragment
		switch info.protocol {
		case protocolTCP:
			info.Class = nic.TCPData
		case protocolUDP:
			info.Class = nic.UDP
		case protocolICMP, protocolICMPv6:
			info.Class = nic.ICMP
			return
		default:
			return
		}
		info.PayloadLength = len(data) - info.Payload
		return
	}
	header := data[info.Transport:]
	switch info.protocol {
	case protocolTCP:
		if len(header) < 20 {
			return
		}
		length := int(header[12]>>4) * 4
		if length < 20 || length > len(header) {
			return
		}
		info.Payload, info.PayloadLength = info.Transport+length, len(header)-length
		switch flags := header[13]; {
		case flags&tcpRST != 0:
			info.Class = nic.TCPReset
		case info.PayloadLength > 0:
			info.Class = nic.TCPData
		case flags&(tcpSYN|tcpFIN) == 0:
			info.Class = nic.TCPAck
		}
	case protocolUDP:
		if len(header) < 8 {
			return
		}
		info.Class, info.Payload, info.PayloadLength = nic.UDP, info.Transport+8, len(header)-8
	case protocolICMP:
		info.Class = nic.ICMP
	case protocolICMPv6:
		// Neighbour discovery and multicast listener reports are the noise of
		// a link, not what a case means by ICMP.
		if len(header) > 0 && (header[0] < 130 || header[0] > 137) && header[0] != 143 {
			info.Class = nic.ICMP
		}
	}
}

// CompleteChecksum does what NeedsChecksum asks: it sums the frame from
// ChecksumStart to its end and stores the result. The header has to have passed
// Check.
func CompleteChecksum(data []byte, h Header) {
	sum := fold(add(0, data[h.ChecksumStart:]))
	if sum == 0 {
		sum = 0xffff // 0 means no checksum in UDP, and the two are equal
	}
	binary.BigEndian.PutUint16(data[int(h.ChecksumStart)+int(h.ChecksumOffset):], sum)
}

// ErrSegment is wrapped by the error for a frame that claims to be a large
// segment and is none.
var ErrSegment = errors.New("not a frame that can be segmented")

// Segment cuts a large TCP or UDP frame into frames of at most h.GSOSize bytes
// of payload with complete checksums, and calls each with one after the other.
// The slice passed to each is cut from buffer, which has to hold the longest
// segment, and is overwritten by the next; payload is the offset in data of the
// segment's payload, which starts at headers in the segment.
func Segment(buffer, data []byte, h Header, each func(segment []byte, headers, payload int)) error {
	info := Parse(data)
	wantProtocol, wantVersion := uint8(protocolTCP), uint8(0)
	switch h.GSOType &^ GSOECN {
	case GSOTCPv4:
		wantVersion = 4
	case GSOTCPv6:
		wantVersion = 6
	case GSOUDP:
		wantProtocol = protocolUDP
	default:
		return fmt.Errorf("%w: type %#x", ErrSegment, h.GSOType)
	}
	if info.Payload == 0 || info.fragment || h.GSOSize == 0 || info.protocol != wantProtocol ||
		(wantVersion != 0 && info.version != wantVersion) {
		return fmt.Errorf("%w: type %#x, size %d, IP version %d, protocol %d",
			ErrSegment, h.GSOType, h.GSOSize, info.version, info.protocol)
	}
	headers, size := info.Payload, int(h.GSOSize)
	if len(buffer) < headers+min(size, info.PayloadLength) {
		return fmt.Errorf("%w: segments of %d bytes", ErrSegment, headers+size)
	}
	end := info.Payload + info.PayloadLength
	for number, start := 0, info.Payload; ; number, start = number+1, start+size {
		part := data[start:min(start+size, end)]
		segment := buffer[:headers+len(part)]
		copy(segment, data[:headers])
		copy(segment[headers:], part)
		info.fixHeaders(segment, number, size, start+size >= end)
		each(segment, headers, start)
		if start+size >= end {
			return nil
		}
	}
}

// fixHeaders turns the headers of a large segment into those of its numberth
// part.
func (info *Info) fixHeaders(segment []byte, number, size int, last bool) {
	network, transport := segment[info.Network:], segment[info.Transport:]
	var pseudo uint64
	if info.version == 4 {
		binary.BigEndian.PutUint16(network[2:], uint16(len(network)))
		id := binary.BigEndian.Uint16(network[4:])
		binary.BigEndian.PutUint16(network[4:], id+uint16(number))
		binary.BigEndian.PutUint16(network[10:], 0)
		binary.BigEndian.PutUint16(network[10:], fold(add(0, network[:info.Transport-info.Network])))
		pseudo = add(0, network[12:20])
	} else {
		binary.BigEndian.PutUint16(network[4:], uint16(len(network)-40))
		pseudo = add(0, network[8:40])
	}
	checksum := 6
	if info.protocol == protocolTCP {
		checksum = 16
		sequence := binary.BigEndian.Uint32(transport[4:])
		binary.BigEndian.PutUint32(transport[4:], sequence+uint32(number*size))
		if !last {
			transport[13] &^= tcpFIN | tcpPSH
		}
		if number > 0 {
			transport[13] &^= tcpCWR
		}
	} else {
		binary.BigEndian.PutUint16(transport[4:], uint16(len(transport)))
	}
	binary.BigEndian.PutUint16(transport[checksum:], 0)
	sum := fold(add(pseudo+uint64(info.protocol)+uint64(len(transport)), transport))
	if sum == 0 && info.protocol == protocolUDP {
		sum = 0xffff
	}
	binary.BigEndian.PutUint16(transport[checksum:], sum)
}

// ChecksumsGood tells whether every IP, TCP, UDP checksum of a frame is right.
// Frames it cannot read have none that are wrong.
func ChecksumsGood(data []byte) bool {
	info := Parse(data)
	if info.version == 4 && fold(add(0, data[info.Network:info.Transport])) != 0 {
		return false
	}
	if info.fragment || info.Payload == 0 || (info.protocol != protocolTCP && info.protocol != protocolUDP) {
		return true
	}
	transport := data[info.Transport : info.Payload+info.PayloadLength]
	if info.protocol == protocolUDP && binary.BigEndian.Uint16(transport[6:]) == 0 {
		return info.version == 4
	}
	var sum uint64
	if info.version == 4 {
		sum = add(0, data[info.Network+12:info.Network+20])
	} else {
		sum = add(0, data[info.Network+8:info.Network+40])
	}
	return fold(add(sum+uint64(info.protocol)+uint64(len(transport)), transport)) == 0
}
