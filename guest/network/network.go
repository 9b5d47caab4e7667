// SPDX-License-Identifier: BSD-3-Clause

// Package network lays the links a case can run over: two network namespaces
// and, between them, the ports of the harness's NIC and a veth pair.
//
// The sender's namespace is the one the machine booted in. That saves moving
// half of the devices, and keeps the sysctls that are not per namespace on old
// kernels (net.core.optmem_max before 6.8) within reach of the sender.
package network

import (
	"fmt"
	"net/netip"

	"github.com/zcvet/zcvet/guest/nic"
)

// Link names a way from the sender to the receiver.
type Link string

// The links of conformance.md.
const (
	Loopback Link = "lo"       // both ends in the sender's namespace
	NIC      Link = "nic"      // the harness's NIC with every offload
	NICNoSG  Link = "nic-nosg" // the same without checksum offload, so without scatter-gather
	Veth     Link = "veth"
)

// Links lists every link.
var Links = []Link{Loopback, NIC, NICNoSG, Veth}

// Family is an address family.
type Family string

// The families.
const (
	IPv4 Family = "ipv4"
	IPv6 Family = "ipv6"
	// Mapped is IPv4 through AF_INET6 sockets and ::ffff:0:0/96 addresses.
	Mapped Family = "ipv4-mapped"
)

// plan is what is fixed about a link. Addresses come from the documentation
// ranges, so that nobody can mistake them for a network of his own.
type plan struct {
	sender, receiver string   // device names
	port             nic.Port // sender's port, empty for links that are no NIC
	ipv4             [2]netip.Addr
	ipv6             [2]netip.Addr
}

var plans = map[Link]plan{
	Loopback: {
		sender: "lo", receiver: "lo",
		ipv4: [2]netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.AddrFrom4([4]byte{127, 0, 0, 1})},
		ipv6: [2]netip.Addr{netip.IPv6Loopback(), netip.IPv6Loopback()},
	},
	NIC:     addressed(plan{sender: "nic0", receiver: "nic1", port: nic.NIC0}, [3]byte{192, 0, 2}, 1),
	NICNoSG: addressed(plan{sender: "nosg0", receiver: "nosg1", port: nic.NoSG0}, [3]byte{198, 51, 100}, 2),
	Veth:    addressed(plan{sender: "veth0", receiver: "veth1"}, [3]byte{203, 0, 113}, 3),
}

func addressed(p plan, v4 [3]byte, v6 byte) plan {
	for end := range 2 {
		host := byte(end + 1)
		p.ipv4[end] = netip.AddrFrom4([4]byte{v4[0], v4[1], v4[2], host})
		// 2001:db8:<link>::<host>
		p.ipv6[end] = netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 0, v6, 15: host})
	}
	return p
}

// Devices returns the names of the link's two network devices.
func (l Link) Devices() (sender, receiver string) { return plans[l].sender, plans[l].receiver }

// Ports returns the NIC ports of the link's two ends, empty for a link that is
// not made by the harness's NIC.
func (l Link) Ports() (sender, receiver nic.Port) {
	port := plans[l].port
	return port, port.Peer()
}

// Addresses returns the addresses of the link's two ends. For Mapped they are
// IPv4-mapped IPv6 addresses.
func (l Link) Addresses(family Family) (sender, receiver netip.Addr) {
	p := plans[l]
	switch family {
	case IPv6:
		return p.ipv6[0], p.ipv6[1]
	case Mapped:
		return netip.AddrFrom16(p.ipv4[0].As16()), netip.AddrFrom16(p.ipv4[1].As16())
	default:
		return p.ipv4[0], p.ipv4[1]
	}
}

// Network is the laid network.
type Network struct {
	Sender, Receiver *Namespace
	// Missing says why a link is not there; a link without an entry is.
	Missing map[Link]string
}

// Has returns nil when link is there, and otherwise an error with the reason.
func (n *Network) Has(link Link) error {
	if _, known := plans[link]; !known {
		return fmt.Errorf("no link is called %q", link)
	}
	if reason, missing := n.Missing[link]; missing {
		return fmt.Errorf("link %s: %s", link, reason)
	}
	return nil
}

// NamespaceOf returns the namespace of the link's receiving end: the sender's
// own for loopback.
func (n *Network) NamespaceOf(link Link) *Namespace {
	if link == Loopback {
		return n.Sender
	}
	return n.Receiver
}
