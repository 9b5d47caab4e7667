// SPDX-License-Identifier: BSD-3-Clause

package cases

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/zcvet/zcvet/guest/network"
)

// checklist lists the ids of the conformance checklist.
var checklist = strings.Fields(`
	Z01 Z02 Z03 Z04 Z05 Z10 Z11 Z12 Z13 Z14 Z15 Z17
	Z20 Z21 Z22 Z23 Z24 Z25 Z26 Z30 Z31 Z32 Z33 Z35 Z36 Z37 Z38 Z39 Z3A Z3B
	Z40 Z41 Z42 Z50 Z51 Z52 Z53 Z54 Z60 Z61 Z62 Z63 Z64 Z70 Z71 Z72
	Z80 Z81 Z82 Z83 Z84 Z85
	N01 N02 N03 N04 N05 N06 N07 N08 N09 N10 N11 N12 N13 N14 N15 N16 N17 N18 N19 N20 N21 N22
	R01 R02 R03 R04`)

// hostCovers lists the ids that the host sees to without a case of the guest: splats
// on the console.
var hostCovers = []string{"R04"}

var caseName = regexp.MustCompile(`^[a-z]+(/[a-z0-9]+(-[a-z0-9]+)*)+$`)

func TestDeclarations(t *testing.T) {
	protos := []Proto{TCP, UDP, VSOCK}
	families := []network.Family{network.IPv4, network.IPv6, network.Mapped}
	names := make(map[string]bool)
	seen := make(map[string]bool)
	for _, c := range All() {
		t.Run(c.Name, func(t *testing.T) {
			if names[c.Name] {
				t.Error("the name is taken")
			}
			names[c.Name] = true
			if !caseName.MatchString(c.Name) {
				t.Error("the name is not group/behaviour in lower case with hyphens")
			}
			if c.Doc == "" || strings.HasSuffix(c.Doc, ".") || strings.Contains(c.Doc, "\n") {
				t.Errorf("Doc is not one line without a full stop: %q", c.Doc)
			}
			if len(c.Covers) == 0 {
				t.Error("covers nothing of the checklist")
			}
			for _, id := range c.Covers {
				seen[id] = true
				if !slices.Contains(checklist, id) {
					t.Errorf("covers %s, which the checklist does not have", id)
				}
			}
			if c.Level != Must && c.Level != Should {
				t.Errorf("level %q", c.Level)
			}
			expectValues(t, "protocols", c.Axes.Protos, protos)
			expectValues(t, "families", c.Axes.Families, families)
			expectValues(t, "links", c.Axes.Links, network.Links)
			for _, need := range c.Needs {
				if !slices.ContainsFunc(features, func(f feature) bool { return f.name == need }) {
					t.Errorf("needs %q, which is no feature", need)
				}
			}
			if len(c.Instances()) == 0 {
				t.Error("Skip leaves no instance")
			}
		})
	}
	for _, id := range checklist {
		if seen[id] == slices.Contains(hostCovers, id) {
			t.Errorf("%s: covered by a case: %v", id, seen[id])
		}
	}
}

func expectValues[E comparable](t *testing.T, axis string, got, known []E) {
	t.Helper()
	for i, value := range got {
		if !slices.Contains(known, value) {
			t.Errorf("%s: unknown value %v", axis, value)
		}
		if slices.Contains(got[:i], value) {
			t.Errorf("%s: %v twice", axis, value)
		}
	}
}

func TestInstanceIDsAreUnique(t *testing.T) {
	seen := make(map[string]bool)
	for _, instance := range Instances() {
		id := instance.ID()
		if seen[id] {
			t.Errorf("two instances are called %s", id)
		}
		seen[id] = true
		if described := instance.Describe(); described.ID != id || described.Name != instance.Case.Name {
			t.Errorf("%s is described as %+v", id, described)
		}
	}
}

func TestInstances(t *testing.T) {
	for _, test := range []struct {
		name string
		c    Case
		want []string
	}{
		{"no axis", Case{}, []string{"x/y"}},
		{"one axis", Case{Axes: Axes{Links: NICLinks}}, []string{"x/y/nic", "x/y/nic-nosg"}},
		{
			"product",
			Case{Axes: Axes{Protos: IP, Families: BothFamilies}},
			[]string{"x/y/tcp/ipv4", "x/y/tcp/ipv6", "x/y/udp/ipv4", "x/y/udp/ipv6"},
		},
		{
			"vsock has neither family nor link",
			Case{Axes: Everywhere.For(UDP, VSOCK).On(network.Veth)},
			[]string{"x/y/udp/ipv4/veth", "x/y/udp/ipv6/veth", "x/y/vsock"},
		},
		{
			"skipped combinations",
			Case{Axes: Axes{Protos: IP}, Skip: func(i Instance) bool { return i.Proto == UDP }},
			[]string{"x/y/tcp"},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			test.c.Name = "x/y"
			var got []string
			for _, instance := range test.c.Instances() {
				got = append(got, instance.ID())
			}
			if !slices.Equal(got, test.want) {
				t.Errorf("got %v, want %v", got, test.want)
			}
		})
	}
}

func TestFind(t *testing.T) {
	instance, err := Find("counter/consecutive-ids/udp/ipv6/veth")
	if err != nil || instance.Proto != UDP || instance.Family != network.IPv6 || instance.Link != network.Veth {
		t.Errorf("found %+v, %v", instance, err)
	}
	if _, err := Find("counter/consecutive-ids"); err == nil {
		t.Error("found an instance by the name of its case alone")
	}
}

func TestFeatureNamesAreUnique(t *testing.T) {
	var names []string
	for _, feature := range features {
		if slices.Contains(names, feature.name) {
			t.Errorf("two features are called %s", feature.name)
		}
		names = append(names, feature.name)
	}
}

func ExampleInstance_ID() {
	fmt.Println(Instance{Case: &Case{Name: "poll/one-shot"}, Proto: TCP, Family: network.IPv6, Link: network.NIC}.ID())
	// Output: poll/one-shot/tcp/ipv6/nic
}
