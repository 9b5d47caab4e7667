// SPDX-License-Identifier: BSD-3-Clause

package vnet

import (
	"fmt"
	"slices"

	"github.com/zcvet/zcvet/guest/nic"
	"github.com/zcvet/zcvet/harness/vnet/frame"
)

// waitingBytes bounds the frames that wait in rules, of all ports together.
// Frames over it are dropped as if the rule said so.
const waitingBytes = 64 << 20

// rule is a nic.Rule and what it has done so far.
type rule struct {
	nic.Rule
	number  int
	matched int
	acted   int
	waiting []delayedFrame
}

// delayedFrame is a frame that a rule holds back.
type delayedFrame struct {
	waitingFrame
	from *port
	// after is how many more frames its port has to send before it goes on;
	// only for nic.Delay.
	after int
}

func (r *rule) status() nic.RuleStatus {
	return nic.RuleStatus{Matched: r.matched, Acted: r.acted, Held: len(r.waiting)}
}

func (n *Network) addRule(wanted nic.Rule) (nic.RuleAdded, error) {
	if wanted.Port != nic.AllNICs && n.find(wanted.Port) == nil {
		return nic.RuleAdded{}, fmt.Errorf("no port %q", wanted.Port)
	}
	switch wanted.Match {
	case nic.AnyFrame, nic.TCPData, nic.TCPAck, nic.TCPReset, nic.UDP, nic.ICMP:
	default:
		return nic.RuleAdded{}, fmt.Errorf("no class of frames %q", wanted.Match)
	}
	switch wanted.Action {
	case nic.Drop, nic.Duplicate, nic.Withhold:
	case nic.Delay, nic.Reorder:
		if wanted.By < 1 {
			return nic.RuleAdded{}, fmt.Errorf("%s by %d frames", wanted.Action, wanted.By)
		}
	default:
		return nic.RuleAdded{}, fmt.Errorf("no action %q", wanted.Action)
	}
	if wanted.Skip < 0 || wanted.Count < 0 {
		return nic.RuleAdded{}, fmt.Errorf("skip %d, count %d", wanted.Skip, wanted.Count)
	}
	n.lastRule++
	n.rules = append(n.rules, &rule{Rule: wanted, number: n.lastRule})
	return nic.RuleAdded{Rule: n.lastRule}, nil
}

func (n *Network) ruleNumbered(number int) (*rule, error) {
	for _, r := range n.rules {
		if r.number == number {
			return r, nil
		}
	}
	return nil, fmt.Errorf("no rule %d", number)
}

// removeRule lets the frames that waited in the rule go on, in the order they
// came, and returns the status from before.
func (n *Network) removeRule(r *rule) (nic.RuleStatus, error) {
	status := r.status()
	n.rules = slices.DeleteFunc(n.rules, func(other *rule) bool { return other == r })
	return status, n.goOn(r)
}

// goOn delivers every frame that waits in the rule.
func (n *Network) goOn(r *rule) error {
	waiting := r.waiting
	r.waiting = nil
	for _, f := range waiting {
		if err := n.arrive(f); err != nil {
			return err
		}
	}
	return nil
}

func (n *Network) arrive(f delayedFrame) error {
	n.waiting -= len(f.data)
	return f.from.cross(f.header, f.data)
}

// decide returns the rule that acts on a frame, nil if none does. A rule that
// still skips decides too, in the frame's favour; one that rests does not.
func (n *Network) decide(from *port, class nic.Class) *rule {
	for _, r := range n.rules {
		if r.Port != nic.AllNICs && r.Port != from.name || r.Match != nic.AnyFrame && r.Match != class {
			continue
		}
		r.matched++
		if r.matched <= r.Skip {
			return nil
		}
		if r.Count == 0 || r.acted < r.Count {
			r.acted++
			return r
		}
	}
	return nil
}

// send puts a frame of the port on the wire. Data is only read.
func (p *port) send(h frame.Header, data []byte, class nic.Class) error {
	n := p.network
	r := n.decide(p, class)
	if r == nil {
		n.capture.add(p.index, outbound, data, "")
		if err := p.cross(h, data); err != nil {
			return err
		}
	} else {
		n.capture.add(p.index, outbound, data, fmt.Sprintf("rule %d: %s", r.number, r.Action))
		if err := p.act(r, h, data); err != nil {
			return err
		}
	}
	if len(n.rules) == 0 {
		return nil
	}
	return n.countDown(p)
}

// act does to a frame what the rule says.
func (p *port) act(r *rule, h frame.Header, data []byte) error {
	n := p.network
	switch r.Action {
	case nic.Drop:
		p.peer.dropped(&p.peer.stats.ByRule, "rule")
		return nil
	case nic.Duplicate:
		if err := p.cross(h, data); err != nil {
			return err
		}
		return p.cross(h, data)
	}
	if n.waiting+len(data) > waitingBytes {
		p.peer.dropped(&p.peer.stats.ByRule, "too much waits in rules")
		return nil
	}
	n.waiting += len(data)
	r.waiting = append(r.waiting, delayedFrame{
		waitingFrame: waitingFrame{header: h, data: append([]byte(nil), data...)},
		from:         p,
		after:        r.By + 1, // the count runs for this frame, too
	})
	if r.Action == nic.Reorder && (len(r.waiting) == r.By || r.acted == r.Count) {
		slices.Reverse(r.waiting)
		return n.goOn(r)
	}
	return nil
}

// countDown delivers the delayed frames whose time has come with a frame of p.
func (n *Network) countDown(p *port) error {
	for _, r := range n.rules {
		if r.Action != nic.Delay {
			continue
		}
		var due, stay []delayedFrame
		for _, f := range r.waiting {
			if f.from == p {
				f.after--
			}
			if f.after == 0 {
				due = append(due, f)
			} else {
				stay = append(stay, f)
			}
		}
		r.waiting = stay
		for _, f := range due {
			if err := n.arrive(f); err != nil {
				return err
			}
		}
	}
	return nil
}

// cross takes a frame to the other end of the wire, unless that is down.
func (p *port) cross(h frame.Header, data []byte) error {
	if !p.linkUp || !p.peer.linkUp {
		p.peer.dropped(&p.peer.stats.LinkDown, "link down")
		return nil
	}
	return p.peer.deliver(h, data)
}
