// SPDX-License-Identifier: BSD-3-Clause

package cases

import (
	"encoding/json"

	"github.com/zcvet/zcvet/guest/nic"
	"github.com/zcvet/zcvet/guest/sys"
	"github.com/zcvet/zcvet/guest/trace"
)

// NIC drives the two ports of the instance's link. Every method ends the case
// when the host refuses; the NIC is reset after the case.
type NIC struct {
	Sender, Receiver nic.Port

	t    *T
	host Caller
}

func (n *NIC) call(method string, args, result any) {
	n.t.Helper()
	encoded, _ := json.Marshal(args) // as the guest link does, which would say what is wrong with it
	sys.Recorder().Mark(trace.Host, nil, method, string(encoded))
	n.t.Check(n.host.Call(method, args, result), method)
}

// Hold withholds the used TX descriptors of the sender's port, or gives back
// those withheld and stops.
func (n *NIC) Hold(on bool) {
	n.t.Helper()
	n.call(nic.MethodHold, nic.Hold{Port: n.Sender, On: on}, nil)
}

// Release gives back the oldest count held buffers of the sender's port, all of
// them for 0.
func (n *NIC) Release(count int) nic.Released {
	n.t.Helper()
	return n.ReleaseBy(nic.Release{Port: n.Sender, Count: count})
}

// ReleaseBy gives back held buffers of any port, in any order.
func (n *NIC) ReleaseBy(release nic.Release) nic.Released {
	n.t.Helper()
	var released nic.Released
	n.call(nic.MethodRelease, release, &released)
	return released
}

// LateDMA switches late DMA of the sender's port.
func (n *NIC) LateDMA(on bool) {
	n.t.Helper()
	n.call(nic.MethodLateDMA, nic.LateDMA{Port: n.Sender, On: on}, nil)
}

// AddRule adds a rule and returns its number.
func (n *NIC) AddRule(rule nic.Rule) int {
	n.t.Helper()
	var added nic.RuleAdded
	n.call(nic.MethodAddRule, rule, &added)
	return added.Rule
}

// RemoveRule removes a rule; frames it held go on.
func (n *NIC) RemoveRule(rule int) nic.RuleStatus {
	n.t.Helper()
	var status nic.RuleStatus
	n.call(nic.MethodRemoveRule, nic.RemoveRule{Rule: rule}, &status)
	return status
}

// RuleStatus returns what a rule has done.
func (n *NIC) RuleStatus(rule int) nic.RuleStatus {
	n.t.Helper()
	var status nic.RuleStatus
	n.call(nic.MethodRuleStatus, nic.RemoveRule{Rule: rule}, &status)
	return status
}

// SetLink takes a port's link down or up.
func (n *NIC) SetLink(port nic.Port, up bool) {
	n.t.Helper()
	n.call(nic.MethodSetLink, nic.SetLink{Port: port, Up: up}, nil)
}

// Frames returns frames that a port transmitted, from number since on.
func (n *NIC) Frames(port nic.Port, since uint64, match nic.Class) nic.Frames {
	n.t.Helper()
	var frames nic.Frames
	n.call(nic.MethodFrames, nic.FramesQuery{Port: port, Since: since, Match: match}, &frames)
	return frames
}

// dumpedFrames is how many frames of each port a failure shows.
const dumpedFrames = 20

// dump notes the newest frames of both ports.
func (n *NIC) dump() {
	for _, port := range []nic.Port{n.Sender, n.Receiver} {
		var log nic.Frames
		if err := n.host.Call(nic.MethodFrames, nic.FramesQuery{Port: port}, &log); err != nil {
			n.t.Logf("%s: frames: %v", port, err)
			continue
		}
		frames := log.Frames
		if cut := len(frames) - dumpedFrames; cut > 0 {
			n.t.Logf("%s: %d earlier frames not shown", port, cut)
			frames = frames[cut:]
		}
		for _, frame := range frames {
			n.t.Logf("%s: frame %d %s, %d bytes, payload %d, gso %d/%d, held %v",
				port, frame.Number, frame.Class, frame.Length, frame.Payload, frame.GSO, frame.GSOSize, frame.Held)
		}
	}
}
