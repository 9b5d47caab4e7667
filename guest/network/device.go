// SPDX-License-Identifier: BSD-3-Clause

package network

import (
	"errors"
	"fmt"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ErrNoDevice is returned for a device that is not in the namespace.
var ErrNoDevice = errors.New("no such network device")

// netlink runs f in the namespace, with its netlink socket.
func (n *Namespace) netlink(f func(*netlink.Handle) error) error {
	return n.Do(func() error {
		handle, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return fmt.Errorf("open netlink: %w", err)
		}
		defer handle.Close()
		return f(handle)
	})
}

// device runs f with a device of the namespace.
func (n *Namespace) device(name string, f func(*netlink.Handle, netlink.Link) error) error {
	return n.netlink(func(handle *netlink.Handle) error {
		device, err := handle.LinkByName(name)
		if missing := (netlink.LinkNotFoundError{}); errors.As(err, &missing) {
			return fmt.Errorf("%w: %s", ErrNoDevice, name)
		}
		if err != nil {
			return fmt.Errorf("find %s: %w", name, err)
		}
		return f(handle, device)
	})
}

// SetUp raises or lowers a device of the namespace, as ip link set does. Lowered,
// it loses its addresses of IPv6 and its neighbours.
func (n *Namespace) SetUp(name string, up bool) error {
	return n.device(name, func(handle *netlink.Handle, device netlink.Link) error {
		change := handle.LinkSetDown
		if up {
			change = handle.LinkSetUp
		}
		if err := change(device); err != nil {
			return fmt.Errorf("set %s up %v: %w", name, up, err)
		}
		return nil
	})
}

// Running tells whether a device of the namespace is up and has a carrier. The
// error wraps ErrNoDevice when it is gone.
func (n *Namespace) Running(name string) (running bool, err error) {
	err = n.device(name, func(_ *netlink.Handle, device netlink.Link) error {
		running = device.Attrs().RawFlags&unix.IFF_RUNNING != 0
		return nil
	})
	return running, err
}

// MoveSender moves the sender's end of a link into a namespace in which nothing
// is set up, and gives it there what it has had. When the namespace goes, the device
// comes back, and [Network.RestoreSender] makes it usable again.
func (n *Network) MoveSender(link Link, to *Namespace) error {
	plan := plans[link]
	err := n.Sender.device(plan.sender, func(handle *netlink.Handle, device netlink.Link) error {
		return handle.LinkSetNsFd(device, to.FD())
	})
	if err != nil {
		return fmt.Errorf("move %s to another namespace: %w", plan.sender, err)
	}
	return n.readdress(link, to)
}

// RestoreSender raises the sender's end of a link that was lowered, or has been in
// another namespace, and gives it back what it lost.
func (n *Network) RestoreSender(link Link) error { return n.readdress(link, n.Sender) }

// ReadmitSender makes the sender's end of a link that is a NIC what it was, after it
// had lost its driver: the device is a new one.
func (n *Network) ReadmitSender(link Link) error {
	plan := plans[link]
	err := n.Sender.netlink(func(handle *netlink.Handle) error {
		found, err := byAddress(handle)
		if err != nil {
			return err
		}
		device := found[plan.port.MAC()]
		if device == nil {
			return fmt.Errorf("%w: none has the address of port %s", ErrNoDevice, plan.port)
		}
		return admit(handle, device, plan.sender)
	})
	if err != nil {
		return err
	}
	return n.RestoreSender(link)
}

// readdress raises the sender's end of a link in a namespace, gives it addresses and
// neighbours, and waits until the link passes traffic.
func (n *Network) readdress(link Link, in *Namespace) error {
	plan := plans[link]
	wire := &wire{link: link}
	for i, place := range []struct {
		namespace *Namespace
		name      string
	}{{in, plan.sender}, {n.Receiver, plan.receiver}} {
		side, err := newSide(place.namespace)
		if err != nil {
			return err
		}
		defer side.handle.Close()
		device, err := side.handle.LinkByName(place.name)
		if err != nil {
			return fmt.Errorf("find %s: %w", place.name, err)
		}
		wire.ends[i] = end{side: side, device: device}
	}
	if err := wire.ends[0].side.handle.LinkSetUp(wire.ends[0].device); err != nil {
		return fmt.Errorf("raise %s: %w", plan.sender, err)
	}
	if err := wire.address(0); err != nil {
		return err
	}
	return wire.awaitCarrier(time.Now().Add(carrierPatience))
}
