// SPDX-License-Identifier: BSD-3-Clause

package fakeguest

import (
	"net"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
)

// Packet describes a frame for Build.
type Packet struct {
	IPv6    bool
	UDP     bool
	Payload []byte
	Flags   TCPFlags // ACK is set without being asked for
	Seq     uint32
	VLAN    bool
}

// TCPFlags are the flags of a TCP header.
type TCPFlags struct{ SYN, FIN, RST, PSH bool }

// Build returns a frame with good checksums and the length of its headers. The
// bytes come from a library that shares nothing with the code under test.
func Build(p Packet) (data []byte, headers int) {
	ethernet := &layers.Ethernet{
		SrcMAC: net.HardwareAddr{2, 0x7a, 0x63, 0, 0, 0}, DstMAC: net.HardwareAddr{2, 0x7a, 0x63, 0, 0, 1},
		EthernetType: layers.EthernetTypeIPv4,
	}
	protocol := layers.IPProtocolTCP
	if p.UDP {
		protocol = layers.IPProtocolUDP
	}
	stack := []gopacket.SerializableLayer{ethernet}
	var network gopacket.NetworkLayer
	if p.IPv6 {
		ethernet.EthernetType = layers.EthernetTypeIPv6
		ip := &layers.IPv6{
			Version: 6, NextHeader: protocol, HopLimit: 64,
			SrcIP: net.ParseIP("fd00::1"), DstIP: net.ParseIP("fd00::2"),
		}
		network = ip
	} else {
		ip := &layers.IPv4{
			Version: 4, Protocol: protocol, TTL: 64, Id: 0xfffe,
			SrcIP: net.IP{10, 0, 0, 1}, DstIP: net.IP{10, 0, 0, 2},
		}
		network = ip
	}
	if p.VLAN {
		stack = append(stack, &layers.Dot1Q{VLANIdentifier: 7, Type: ethernet.EthernetType})
		ethernet.EthernetType = layers.EthernetTypeDot1Q
	}
	stack = append(stack, network.(gopacket.SerializableLayer))
	if p.UDP {
		udp := &layers.UDP{SrcPort: 1000, DstPort: 2000}
		_ = udp.SetNetworkLayerForChecksum(network)
		stack = append(stack, udp)
	} else {
		tcp := &layers.TCP{
			SrcPort: 1000, DstPort: 2000, Seq: p.Seq, Ack: 1, ACK: true, Window: 1000,
			SYN: p.Flags.SYN, FIN: p.Flags.FIN, RST: p.Flags.RST, PSH: p.Flags.PSH,
		}
		_ = tcp.SetNetworkLayerForChecksum(network)
		stack = append(stack, tcp)
	}
	stack = append(stack, gopacket.Payload(p.Payload))
	buffer := gopacket.NewSerializeBuffer()
	options := gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}
	if err := gopacket.SerializeLayers(buffer, options, stack...); err != nil {
		panic(err)
	}
	// Small frames are padded by the library.
	data = buffer.Bytes()
	headers = 14 + 40 + 20
	if !p.IPv6 {
		headers -= 20
	}
	if p.UDP {
		headers -= 12
	}
	if p.VLAN {
		headers += 4
	}
	return data[:headers+len(p.Payload)], headers
}
