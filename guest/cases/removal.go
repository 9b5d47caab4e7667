// SPDX-License-Identifier: BSD-3-Clause

package cases

import (
	"errors"
	"fmt"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/zcvet/zcvet/guest/network"
	"github.com/zcvet/zcvet/guest/nic"
	"github.com/zcvet/zcvet/guest/notify"
	"github.com/zcvet/zcvet/guest/sys"
)

// What is taken away here is taken away while sends are pending: every send must
// be accounted for, or the socket must say that its connection is lost. Nothing
// may be left behind, which the framework sees to after each case.

// pendingSends is how many sends are pending in the cases of this file.
const pendingSends = 3

// sendPending makes zero-copy sends that the receiver need not get. It ends the
// case.
func (s *Socket) sendPending(seed byte) {
	s.t.Helper()
	for i := range pendingSends {
		s.MustSend(pendingData(s.t, seed, i), unix.MSG_ZEROCOPY)
	}
}

// pendingData is the data of one of those sends, in memory of its own.
func pendingData(t *T, seed byte, send int) []byte {
	t.Helper()
	return t.Payload(1000, seed+byte(send))
}

// impatient makes a stream give up soon when nobody acknowledges.
func impatient(s *Socket) {
	noDelay(s)
	if s.t.Proto == TCP {
		SetOption(unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 100)(s) // ms; at the first retransmission, that is
	}
}

// expectLost fails the case unless the sender, of which so many sends are pending,
// learns that nobody will ever get them, and that their buffers are its own again;
// and unless the next send fails without an id.
func (s *Socket) expectLost(sends int) {
	s.t.Helper()
	if s.t.Proto == TCP {
		// A connection that gives up tells the last reason it could not send, if
		// it knows one.
		s.awaitError(unix.ETIMEDOUT, unix.ENETUNREACH, unix.EHOSTUNREACH)
	}
	s.Collect(sends)
	if _, err := s.Send(s.t.Payload(1000, 9), unix.MSG_ZEROCOPY); err == nil {
		s.t.Errorf("a send was taken that can reach nobody")
	}
	s.ExpectNothing("the last send failed")
}

var _ = add(Case{
	Name:   "removal/link-down",
	Doc:    "sends made while the link is down, and those in the device when it goes down, are notified: lost datagrams at once, segments when the link is back",
	Covers: []string{"Z3B", "Z36"},
	Axes:   OnNIC,
}, func(t *T) {
	pair := t.Pair(noDelay)
	device, _ := t.Link.Devices()
	await := func(up bool) {
		t.Helper()
		t.Eventually(fmt.Sprintf("%s is running: %v", device, up), func() bool {
			running, err := t.environment.Network.Sender.Running(device)
			t.Check(err, "look at the device")
			return running == up
		})
	}
	t.NIC().Hold(true)
	pair.Sender.sendPending(1)
	for i := range pendingSends {
		pair.Receiver.MustReceive(pendingData(t, 1, i))
	}
	pair.Sender.AwaitAcknowledged()
	pair.Sender.ExpectNothing("the device holds the sends")
	// A virtio-net device without a link gives back all it has.
	t.NIC().SetLink(t.NIC().Sender, false)
	await(false)
	var ledger notify.Ledger
	pair.Sender.CollectInto(&ledger, pendingSends)
	t.NIC().Hold(false)
	pair.Sender.sendPending(11)
	if t.Proto == UDP {
		pair.Sender.CollectInto(&ledger, 2*pendingSends)
	} else {
		pair.Sender.ExpectNothing("nobody has the segments yet")
	}
	t.NIC().SetLink(t.NIC().Sender, true)
	await(true)
	if t.Proto == TCP {
		for i := range pendingSends {
			pair.Receiver.MustReceive(pendingData(t, 11, i))
		}
		pair.Sender.CollectInto(&ledger, 2*pendingSends)
	}
	pair.Sender.ExpectNoError()
})

var _ = add(Case{
	Name:   "removal/device-down",
	Doc:    "sends in a device that is taken down, and in its queue, are notified, and those of a stream arrive when it is up again",
	Covers: []string{"Z3B"},
	Axes:   OnNIC,
}, func(t *T) {
	laid := t.environment.Network
	t.PutBack(func() error { return laid.RestoreSender(t.Link) })
	pair := t.Pair(noDelay)
	device, _ := t.Link.Devices()
	t.NIC().Hold(true)
	pair.Sender.sendPending(1)
	t.Check(laid.Sender.SetUp(device, false), "take the device down")
	t.NIC().Hold(false)
	t.Check(laid.RestoreSender(t.Link), "raise the device")
	if t.Proto == TCP {
		for i := range pendingSends {
			pair.Receiver.MustReceive(pendingData(t, 1, i))
		}
	}
	pair.Sender.Collect(pendingSends)
	pair.Sender.ExpectNoError()
})

// ownNetwork gives the case two namespaces of its own, laid as usual as far as
// this can be done without the NIC, in which sockets are opened from now on. No
// socket may be left in them in the end. It ends the case.
func (t *T) ownNetwork() *network.Network {
	t.Helper()
	outer, err := network.NewNamespace()
	t.Check(err, "namespace")
	err = outer.Do(func() error {
		var err error
		t.own, err = network.Setup()
		return err
	})
	_ = outer.Close() // the network has a descriptor of its own
	t.Check(err, "lay a network")
	t.Cleanup(func() { // after the sockets are closed
		defer t.own.Close()
		counters := OpenCounters(t.own) // not before: they hold the namespaces
		defer counters.Close()
		t.Eventually("no socket is left in the case's own namespaces", func() bool {
			count, err := counters.Take(false)
			t.Check(err, "count the sockets")
			return count.Sockets["sender"] == 0 && count.Sockets["receiver"] == 0
		})
	})
	return t.own
}

// awaitGone waits until a namespace has no such device any more. It ends the
// case.
func (t *T) awaitGone(namespace *network.Namespace, device string) {
	t.Helper()
	t.Eventually(device+" is gone", func() bool {
		_, err := namespace.Running(device)
		if err != nil && !errors.Is(err, network.ErrNoDevice) {
			t.Check(err, "look for the device")
		}
		return err != nil
	})
}

var _ = add(Case{
	Name:   "removal/peer-namespace",
	Doc:    "when the peer's namespace goes, and the sender's device with it, pending sends are notified and the socket learns that its connection is lost",
	Covers: []string{"Z3B", "Z42"},
	Axes:   Everywhere.On(network.Veth),
}, func(t *T) {
	own := t.ownNetwork()
	pair := t.Pair(impatient)
	device, peer := t.Link.Devices()
	t.Check(own.Receiver.SetUp(peer, false), "take the peer's device down")
	pair.Sender.sendPending(1)
	pair.Receiver.abort()
	t.removeReceiver()
	t.awaitGone(own.Sender, device)
	pair.Sender.expectLost(pendingSends)
})

// removeReceiver gives up the receiver's namespace of the case's own network. It
// ends the case.
func (t *T) removeReceiver() {
	t.Helper()
	// Something must stand in its place.
	empty, err := network.NewNamespace()
	t.Check(err, "namespace")
	t.Check(t.own.Receiver.Close(), "give up the namespace")
	t.own.Receiver = empty
}

var _ = add(Case{
	Name:   "removal/own-namespace",
	Doc:    "sends of a socket that is closed, whose namespace nobody else keeps, hold the namespace until they are done with and then go with it",
	Covers: []string{"Z3B", "Z37"},
	Axes:   Everywhere.On(network.Veth).For(TCP),
}, func(t *T) {
	own := t.ownNetwork()
	pair := t.Pair(impatient)
	_, peer := t.Link.Devices()
	t.Check(own.Receiver.SetUp(peer, false), "take the peer's device down")
	memory := t.Memory(pendingSends)
	for i := range pendingSends {
		pair.Sender.MustSend(memory.Bytes()[i*notify.PageSize:][:1000], unix.MSG_ZEROCOPY)
	}
	pair.Sender.Close()
	t.Check(own.Sender.Close(), "give up the namespace")
	empty, err := network.NewNamespace()
	t.Check(err, "namespace")
	own.Sender = empty
	t.awaitGone(own.Receiver, peer)
})

var _ = add(Case{
	Name:   "removal/namespace-with-device",
	Doc:    "a namespace that nobody keeps lives until the device has given back what its sockets sent, and the device comes back from it",
	Covers: []string{"Z3B", "Z37", "Z3A"},
	Axes:   OnNIC,
}, func(t *T) {
	laid := t.environment.Network
	t.PutBack(func() error { return laid.RestoreSender(t.Link) })
	device, _ := t.Link.Devices()
	inside, err := network.NewNamespace()
	t.Check(err, "namespace")
	t.Check(laid.MoveSender(t.Link, inside), "move the device")
	t.own = &network.Network{Sender: inside, Receiver: laid.Receiver}
	pair := t.Pair(noDelay)
	memory := t.Memory(1)
	t.NIC().Hold(true)
	data := memory.Bytes()[:1000]
	pair.Sender.MustSend(data, unix.MSG_ZEROCOPY)
	pair.Receiver.MustReceive(data)
	pair.Sender.AwaitAcknowledged()
	pair.Sender.abort()
	t.Check(memory.Close(), "munmap")
	t.Check(inside.Close(), "give up the namespace")
	t.expectHeld("the device has not given them back")
	t.NIC().Hold(false)
	t.Eventually("the device is back in the namespace it came from", func() bool {
		_, err := laid.Sender.Running(device)
		return err == nil
	})
})

// declareUnplug declares the case for one way of taking the device away: from a driver
// that knows a virtio device, whose directory in sysfs is given, by what bound returns.
func declareUnplug(name, doc, driver string, bound func(device string) string) struct{} {
	return add(Case{
		Name:   "removal/" + name,
		Doc:    doc,
		Covers: []string{"Z3B", "Z3A", "Z42"},
		Axes:   OnNIC,
	}, func(t *T) {
		laid := t.environment.Network
		device, _ := t.Link.Devices()
		directory, err := filepath.EvalSymlinks("/sys/class/net/" + device + "/device")
		t.Check(err, "find the device's driver")
		t.PutBack(func() error {
			if _, err := laid.Sender.Running(device); err == nil {
				return nil // it has never been away
			}
			if err := sys.WriteFile(driver+"/bind", []byte(bound(directory))); err != nil {
				return fmt.Errorf("bind the device to its driver: %w", err)
			}
			return laid.ReadmitSender(t.Link)
		})
		pair := t.Pair(impatient)
		t.NIC().Hold(true)
		// Nobody acknowledges them either.
		t.NIC().AddRule(nic.Rule{Port: t.NIC().Sender, Match: nic.TCPData, Action: nic.Drop})
		pair.Sender.sendPending(1)
		pair.Sender.ExpectNothing("the device holds the sends")
		t.Check(sys.WriteFile(driver+"/unbind", []byte(bound(directory))), "unbind the device from its driver")
		t.awaitGone(laid.Sender, device)
		pair.Sender.expectLost(pendingSends)
	})
}

var (
	_ = declareUnplug("driver-unbound",
		"a NIC whose driver is unbound while it holds sends gives back their pages: each is notified, or the connection is lost and then each is",
		"/sys/bus/virtio/drivers/virtio_net",
		filepath.Base)
	_ = declareUnplug("nic-unplugged",
		"a NIC that is taken out of the machine while it holds sends gives back their pages: each is notified, or the connection is lost and then each is",
		"/sys/bus/platform/drivers/virtio-mmio",
		func(device string) string { return filepath.Base(filepath.Dir(device)) })
)
