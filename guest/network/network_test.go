// SPDX-License-Identifier: BSD-3-Clause

package network

import (
	"errors"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/zcvet/zcvet/guest/nic"
)

func TestEndsOfALinkReachEachOtherAndNothingElse(t *testing.T) {
	taken := make(map[netip.Prefix]Link)
	for _, link := range Links {
		for family, bits := range map[Family]int{IPv4: 24, IPv6: 64} {
			sender, receiver := link.Addresses(family)
			if (family == IPv4) != sender.Is4() || (family == IPv4) != receiver.Is4() {
				t.Errorf("%s %s: addresses %s and %s", link, family, sender, receiver)
			}
			if link == Loopback {
				if !sender.IsLoopback() || sender != receiver {
					t.Errorf("loopback has %s and %s", sender, receiver)
				}
				continue
			}
			subnet := netip.PrefixFrom(sender, bits).Masked()
			if sender == receiver || !subnet.Contains(receiver) {
				t.Errorf("%s: %s and %s do not share a subnet", link, sender, receiver)
			}
			if other, used := taken[subnet]; used {
				t.Errorf("%s and %s share %s", link, other, subnet)
			}
			taken[subnet] = link
		}
	}
}

func TestMappedAddressesAreThoseOfIPv4(t *testing.T) {
	for _, link := range Links {
		sender4, receiver4 := link.Addresses(IPv4)
		sender, receiver := link.Addresses(Mapped)
		if !sender.Is4In6() || sender.Unmap() != sender4 || !receiver.Is4In6() || receiver.Unmap() != receiver4 {
			t.Errorf("%s: %s and %s", link, sender, receiver)
		}
	}
}

func TestPorts(t *testing.T) {
	for _, test := range []struct {
		link             Link
		sender, receiver nic.Port
	}{
		{Loopback, "", ""}, {Veth, "", ""}, {NIC, nic.NIC0, nic.NIC1}, {NICNoSG, nic.NoSG0, nic.NoSG1},
	} {
		if sender, receiver := test.link.Ports(); sender != test.sender || receiver != test.receiver {
			t.Errorf("%s: ports %q and %q", test.link, sender, receiver)
		}
	}
}

func TestHas(t *testing.T) {
	n := &Network{Missing: map[Link]string{NIC: "not plugged"}}
	if err := n.Has(Veth); err != nil {
		t.Errorf("veth: %v", err)
	}
	if err := n.Has(NIC); err == nil || !strings.Contains(err.Error(), "not plugged") {
		t.Errorf("nic: %v", err)
	}
	if err := n.Has("carrier-pigeon"); err == nil {
		t.Error("there is a link nobody knows")
	}
}

func TestDoRunsInsideAndComesBack(t *testing.T) {
	namespace, err := NewNamespace()
	if err != nil {
		t.Skipf("no network namespaces here: %v", err)
	}
	t.Cleanup(func() { _ = namespace.Close() })
	here := func() string {
		t.Helper()
		name, err := os.Readlink(threadNamespace)
		if err != nil {
			t.Fatal(err)
		}
		return name
	}
	outside, inside := here(), ""
	broken := errors.New("broken")
	if err := namespace.Do(func() error { inside = here(); return broken }); !errors.Is(err, broken) {
		t.Errorf("the error of the function became %v", err)
	}
	if inside == outside {
		t.Error("the function ran outside")
	}
	func() {
		defer func() { _ = recover() }()
		_ = namespace.Do(func() error { panic("oh no") })
	}()
	if back := here(); back != outside {
		t.Errorf("came back to %s from %s", back, outside)
	}
}
