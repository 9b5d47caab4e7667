// SPDX-License-Identifier: BSD-3-Clause

// Package cases holds the conformance cases and the small framework they are
// written in.
//
// A case is one declaration with one function:
//
//	var _ = add(Case{
//		Name:   "counter/consecutive-ids",
//		Doc:    "every zerocopy send takes the next id, counted from 0",
//		Covers: []string{"Z10"},
//		Level:  Must,
//		Axes:   Everywhere,
//	}, func(t *T) {
//		pair := t.Pair()
//		…
//	})
//
// The framework runs it once on every combination of the axes it names. Package
// initialisation only fills the list, so the host may import the package to
// show what there is.
package cases

import (
	"fmt"
	"slices"
	"strings"

	"github.com/zcvet/zcvet/guest/link"
	"github.com/zcvet/zcvet/guest/network"
)

// Level says how much a failure matters.
type Level string

// The levels of the checklist.
const (
	Must   Level = "MUST"   // data, notifications, memory or the machine is at stake
	Should Level = "SHOULD" // a reviewer would object
)

// Proto is a transport protocol.
type Proto string

// The protocols.
const (
	TCP Proto = "tcp"
	UDP Proto = "udp"
	// VSOCK has neither family nor link: it runs once, over its loopback
	// transport.
	VSOCK Proto = "vsock"
)

// Axes are the protocols, families and links of a case, which runs on every
// combination of them. Over an axis without a value it does not vary.
type Axes struct {
	Protos   []Proto
	Families []network.Family
	Links    []network.Link
}

// The usual values of the axes.
var (
	IP           = []Proto{TCP, UDP}
	BothFamilies = []network.Family{network.IPv4, network.IPv6}
	EveryLink    = network.Links
	// NICLinks are the links whose ends the host sees and drives.
	NICLinks = []network.Link{network.NIC, network.NICNoSG}
)

// The usual sets of axes.
var (
	// Everywhere is both protocols over both families on every link.
	Everywhere = Axes{IP, BothFamilies, EveryLink}
	// EveryProtocol is Everywhere and VSOCK.
	EveryProtocol = Everywhere.For(TCP, UDP, VSOCK)
	// CopiedAndNot has one link that copies the data and one that does not, for
	// behaviour in which links differ by nothing else.
	CopiedAndNot = Everywhere.On(network.Loopback, network.NIC)
	// OnLoopback is for behaviour that does not depend on the link.
	OnLoopback = Everywhere.On(network.Loopback)
	// OnNIC is the link on which data is sent from the application's pages.
	OnNIC = Everywhere.On(network.NIC)
	// OnNICs are the links whose ends the host sees and drives.
	OnNICs = Everywhere.On(NICLinks...)
)

// For returns the axes with these protocols.
func (a Axes) For(protos ...Proto) Axes {
	a.Protos = protos
	return a
}

// Over returns the axes with these families.
func (a Axes) Over(families ...network.Family) Axes {
	a.Families = families
	return a
}

// On returns the axes with these links.
func (a Axes) On(links ...network.Link) Axes {
	a.Links = links
	return a
}

// Case declares a case.
type Case struct {
	// Name is the group and the behaviour, "counter/consecutive-ids"; unique.
	Name string
	// Doc is the behaviour in one line, as the report prints it.
	Doc string
	// Covers lists ids of the checklist.
	Covers []string
	// Level is Must when empty.
	Level Level
	// Axes is nowhere in particular when left out: the case runs once.
	Axes Axes
	// In32Bit makes the case run in a 32-bit task too, on loopback, as
	// GROUP/in-32-bit/BEHAVIOUR.
	In32Bit bool
	// Needs lists names of features; without one the case is skipped.
	Needs []string
	// Skip, when set, drops combinations on which the behaviour does not exist
	// at all, such as a partial send on UDP. It is asked while instances are
	// listed, so it may look at nothing but its arguments.
	Skip func(Instance) bool
	// Concurrent says that the case is about what happens at the same time: its
	// machine has more than one processor. The others have one, which is quicker.
	Concurrent bool
	// Leaks is why the case leaves sockets, pages or charged memory behind; one
	// without it fails if it does.
	Leaks string

	run func(*T)
}

// Instance is a case on one protocol, family and link. Axes the case does not
// vary over are empty.
type Instance struct {
	Case   *Case
	Proto  Proto
	Family network.Family
	Link   network.Link
}

var registry []*Case

// add registers a case. It returns a value only so that it can be called in a
// declaration.
func add(declared Case, run func(*T)) struct{} {
	if declared.Level == "" {
		declared.Level = Must
	}
	declared.run = run
	registry = append(registry, &declared)
	if declared.In32Bit {
		add(declared.inTask())
	}
	return struct{}{}
}

// All returns the cases ordered by name.
func All() []*Case {
	all := slices.Clone(registry)
	slices.SortStableFunc(all, func(a, b *Case) int { return strings.Compare(a.Name, b.Name) })
	return all
}

// Instances returns every case on every combination of its axes, ordered by
// case, then protocol, family and link as the case names them.
func Instances() []Instance {
	var instances []Instance
	for _, c := range All() {
		instances = append(instances, c.Instances()...)
	}
	return instances
}

// Instances returns the case on every combination of its axes.
func (c *Case) Instances() []Instance {
	var instances []Instance
	for _, proto := range orNone(c.Axes.Protos) {
		families, links := orNone(c.Axes.Families), orNone(c.Axes.Links)
		if proto == VSOCK {
			families, links = []network.Family{""}, []network.Link{""}
		}
		for _, family := range families {
			for _, link := range links {
				instance := Instance{Case: c, Proto: proto, Family: family, Link: link}
				if c.Skip == nil || !c.Skip(instance) {
					instances = append(instances, instance)
				}
			}
		}
	}
	return instances
}

// orNone makes an axis that is not varied a single empty value.
func orNone[E ~string](axis []E) []E {
	if len(axis) == 0 {
		return []E{""}
	}
	return axis
}

// ID is the name and the axes the case varies over, joined by slashes.
func (i Instance) ID() string { return i.Describe().ID }

// Describe returns the instance as the guest link carries it.
func (i Instance) Describe() link.Instance {
	return link.NewInstance(link.Case{
		Name: i.Case.Name, Covers: i.Case.Covers, Level: string(i.Case.Level),
		Concurrent: i.Case.Concurrent,
	}, link.Axes{string(i.Proto), string(i.Family), string(i.Link)})
}

// Find returns the instance with an id.
func Find(id string) (Instance, error) {
	for _, c := range registry {
		// A 32-bit task looks for one of thousands each time it starts.
		if !strings.HasPrefix(id, c.Name) {
			continue
		}
		for _, instance := range c.Instances() {
			if instance.ID() == id {
				return instance, nil
			}
		}
	}
	return Instance{}, fmt.Errorf("no case is called %q", id)
}
