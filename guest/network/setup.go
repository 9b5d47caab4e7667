// SPDX-License-Identifier: BSD-3-Clause

package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// carrierPatience bounds the wait until every device passes traffic.
const carrierPatience = 10 * time.Second

// queueLimit is the least number of bytes that byte queue limits let wait in a
// NIC's transmit queue. With the kernel's own estimate a completion withheld by
// the host stops the queue after a frame or two.
const queueLimit = "268435456"

// The Ethernet addresses of the veth pair, fixed so that each end can be told
// its neighbour.
var vethAddresses = [2]net.HardwareAddr{{0x02, 0x7a, 0x63, 1, 0, 0}, {0x02, 0x7a, 0x63, 1, 0, 1}}

// setting is a sysctl that differs from the kernel's default, with the reason.
type setting struct {
	name, value string
	// why is for the reader of this file.
	why string
}

// settings are written in both namespaces. A kernel without one of them does
// not need it.
var settings = []setting{
	{"net/ipv6/conf/all/addr_gen_mode", "1", "no link-local addresses: duplicate address detection and router solicitations would put frames between those of a case"},
	{"net/ipv6/conf/default/addr_gen_mode", "1", "the same for devices that come into the namespace later"},
	{"net/ipv4/tcp_no_metrics_save", "1", "a case that loses frames must not slow down the connections of the next one"},
	{"net/ipv4/tcp_early_retrans", "0", "no tail loss probes: they send a segment again when its acknowledgement takes 10 ms, as it does when the host is busy, and a case then sees two frames and two timestamps of one send"},
	{"net/ipv4/icmp_ratelimit", "0", "a case that provokes an ICMP error must get it, whatever ran before"},
	{"net/ipv6/icmp/ratelimit", "0", "the same for ICMPv6"},
	{"net/ipv4/ping_group_range", "0 0", "lets the agent open ping sockets, which must refuse SO_ZEROCOPY"},
}

// Setup makes a network of the namespace of the calling thread, which becomes
// the sender's, and a new one for the receiver, and lays it.
func Setup() (*Network, error) {
	n, err := New()
	if err != nil {
		return nil, err
	}
	if err := n.Lay(); err != nil {
		n.Close()
		return nil, err
	}
	return n, nil
}

// New makes a network of the same namespaces whose links are still to be laid.
func New() (*Network, error) {
	sender, err := Current()
	if err != nil {
		return nil, err
	}
	receiver, err := NewNamespace()
	if err != nil {
		_ = sender.Close()
		return nil, err
	}
	return &Network{Sender: sender, Receiver: receiver, Missing: make(map[Link]string)}, nil
}

// Close gives up the namespaces; the receiver's goes away with its last socket.
func (n *Network) Close() {
	_ = n.Sender.Close()
	_ = n.Receiver.Close()
}

// side is one namespace while the network is laid.
type side struct {
	namespace *Namespace
	handle    *netlink.Handle
}

func newSide(namespace *Namespace) (*side, error) {
	s := &side{namespace: namespace}
	return s, namespace.Do(func() error {
		for _, setting := range settings {
			if err := os.WriteFile("/proc/sys/"+setting.name, []byte(setting.value), 0); err != nil && !errors.Is(err, os.ErrNotExist) {
				return fmt.Errorf("set sysctl: %w", err)
			}
		}
		var err error
		if s.handle, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
			return fmt.Errorf("open netlink: %w", err)
		}
		return nil
	})
}

// Lay lays every link. One that cannot be laid is noted in Missing; an error
// means that nothing works.
func (n *Network) Lay() error {
	sender, err := newSide(n.Sender)
	if err != nil {
		return fmt.Errorf("sender's namespace: %w", err)
	}
	defer sender.handle.Close()
	receiver, err := newSide(n.Receiver)
	if err != nil {
		return fmt.Errorf("receiver's namespace: %w", err)
	}
	defer receiver.handle.Close()

	devices, err := byAddress(sender.handle)
	if err != nil {
		return err
	}

	for _, side := range []*side{sender, receiver} {
		loopback, err := side.handle.LinkByName("lo")
		if err != nil {
			return fmt.Errorf("find loopback: %w", err)
		}
		if err := side.handle.LinkSetUp(loopback); err != nil {
			return fmt.Errorf("raise loopback: %w", err)
		}
	}
	var laid []*wire
	for _, link := range Links {
		if link == Loopback {
			continue
		}
		wire, err := lay(link, sender, receiver, devices)
		if err != nil {
			n.Missing[link] = err.Error()
			continue
		}
		laid = append(laid, wire)
	}
	// Only now, so that the devices come up side by side.
	deadline := time.Now().Add(carrierPatience)
	for _, wire := range laid {
		if err := wire.awaitCarrier(deadline); err != nil {
			n.Missing[wire.link] = err.Error()
		}
	}
	return nil
}

// wire is a link whose devices are in place.
type wire struct {
	link Link
	ends [2]end
}

type end struct {
	side   *side
	device netlink.Link
}

// lay puts the devices of a link into their namespaces and gives them addresses
// and neighbours.
func lay(link Link, sender, receiver *side, devices map[string]netlink.Link) (*wire, error) {
	plan := plans[link]
	names := [2]string{plan.sender, plan.receiver}
	wire := &wire{link: link}
	if plan.port == "" {
		err := sender.handle.LinkAdd(&netlink.Veth{
			LinkAttrs:        netlink.LinkAttrs{Name: names[0], HardwareAddr: vethAddresses[0]},
			PeerName:         names[1],
			PeerHardwareAddr: vethAddresses[1],
			PeerNamespace:    netlink.NsFd(receiver.namespace.FD()),
		})
		if err != nil {
			return nil, fmt.Errorf("make a veth pair: %w", err)
		}
	} else {
		device, peer := devices[plan.port.MAC()], devices[plan.port.Peer().MAC()]
		if device == nil || peer == nil {
			return nil, fmt.Errorf("the machine has no NIC ports %s and %s", plan.port, plan.port.Peer())
		}
		for i, device := range []netlink.Link{device, peer} {
			if err := admit(sender.handle, device, names[i]); err != nil {
				return nil, err
			}
		}
		if err := sender.handle.LinkSetNsFd(peer, receiver.namespace.FD()); err != nil {
			return nil, fmt.Errorf("move %s to the receiver's namespace: %w", names[1], err)
		}
	}
	for i, side := range []*side{sender, receiver} {
		device, err := side.handle.LinkByName(names[i])
		if err != nil {
			return nil, fmt.Errorf("find %s: %w", names[i], err)
		}
		wire.ends[i] = end{side: side, device: device}
		if err := side.handle.LinkSetUp(device); err != nil {
			return nil, fmt.Errorf("raise %s: %w", names[i], err)
		}
	}
	for i := range wire.ends {
		if err := wire.address(i); err != nil {
			return nil, err
		}
	}
	return wire, nil
}

// address gives the end its addresses and its permanent neighbour, so that
// neither ARP nor neighbour discovery ever waits or puts a frame on the wire.
func (w *wire) address(i int) error {
	end, peer := w.ends[i], w.ends[1-i].device.Attrs().HardwareAddr
	plan := plans[w.link]
	for _, family := range []struct {
		own, other netip.Addr
		prefix     int
		id         int
	}{
		{plan.ipv4[i], plan.ipv4[1-i], 24, netlink.FAMILY_V4},
		{plan.ipv6[i], plan.ipv6[1-i], 64, netlink.FAMILY_V6},
	} {
		address := &netlink.Addr{
			IPNet: &net.IPNet{IP: family.own.AsSlice(), Mask: net.CIDRMask(family.prefix, family.own.BitLen())},
		}
		if family.id == netlink.FAMILY_V6 {
			address.Flags = unix.IFA_F_NODAD
		}
		err := end.side.handle.AddrReplace(end.device, address)
		if family.id == netlink.FAMILY_V6 && (errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EAFNOSUPPORT)) {
			continue // a kernel without IPv6; its cases skip by feature
		}
		if err != nil {
			return fmt.Errorf("address %s: %w", family.own, err)
		}
		err = end.side.handle.NeighSet(&netlink.Neigh{
			LinkIndex: end.device.Attrs().Index, Family: family.id, State: netlink.NUD_PERMANENT,
			IP: family.other.AsSlice(), HardwareAddr: peer,
		})
		if err != nil {
			return fmt.Errorf("neighbour %s: %w", family.other, err)
		}
	}
	return nil
}

// awaitCarrier waits until both devices pass traffic. Before that the kernel
// drops what is sent, and a lost SYN costs the first case a second.
func (w *wire) awaitCarrier(deadline time.Time) error {
	for _, end := range w.ends {
		for {
			device, err := end.side.handle.LinkByIndex(end.device.Attrs().Index)
			if err != nil {
				return fmt.Errorf("look at %s: %w", end.device.Attrs().Name, err)
			}
			if device.Attrs().RawFlags&unix.IFF_RUNNING != 0 {
				break
			}
			if time.Now().After(deadline) {
				return fmt.Errorf("%s has no carrier after %v", end.device.Attrs().Name, carrierPatience)
			}
			time.Sleep(time.Millisecond)
		}
	}
	return nil
}

// byAddress returns the devices of a namespace by their Ethernet addresses.
func byAddress(handle *netlink.Handle) (map[string]netlink.Link, error) {
	found, err := handle.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list network devices: %w", err)
	}
	devices := make(map[string]netlink.Link)
	for _, device := range found {
		devices[device.Attrs().HardwareAddr.String()] = device
	}
	return devices, nil
}

// admit gives a NIC its name and its queue limit. It is in the sender's namespace
// then, whose devices are the only ones that sysfs shows.
func admit(handle *netlink.Handle, device netlink.Link, name string) error {
	if err := handle.LinkSetName(device, name); err != nil {
		return fmt.Errorf("name %s: %w", name, err)
	}
	return raiseQueueLimit(name)
}

// raiseQueueLimit sets the byte queue limits of a NIC. A driver or kernel
// without them has no files to write to.
func raiseQueueLimit(device string) error {
	queues, err := os.ReadDir(filepath.Join("/sys/class/net", device, "queues"))
	if err != nil {
		return fmt.Errorf("queues of %s: %w", device, err)
	}
	for _, queue := range queues {
		if !strings.HasPrefix(queue.Name(), "tx-") {
			continue
		}
		limit := filepath.Join("/sys/class/net", device, "queues", queue.Name(), "byte_queue_limits/limit_min")
		if err := os.WriteFile(limit, []byte(queueLimit), 0); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("byte queue limits of %s: %w", device, err)
		}
	}
	return nil
}
