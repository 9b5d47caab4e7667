// SPDX-License-Identifier: BSD-3-Clause

// Package nic holds the calls by which a case drives the host's virtio-net back
// end, and the types they carry. The host implements them in harness/vnet; the
// guest calls them through the guest link.
//
// Everything is counted in frames and calls, never in time, so that a case that
// drives the NIC is deterministic.
package nic

// Port names one virtio-net port. Ports with the same prefix are the two ends
// of one wire.
type Port string

// The ports of the default machine. The sender's namespace owns the ports that
// end in 0, the receiver's those that end in 1.
const (
	NIC0    Port = "nic0" // checksum offload, scatter-gather, TSO, mergeable buffers
	NIC1    Port = "nic1"
	NoSG0   Port = "nosg0" // checksum offload not offered, so no scatter-gather
	NoSG1   Port = "nosg1"
	AllNICs      = "" // in calls that accept it: every port
)

// Ports lists the ports in the order in which the machine plugs them.
var Ports = []Port{NIC0, NIC1, NoSG0, NoSG1}

// Peer returns the other end of the wire.
func (p Port) Peer() Port {
	switch p {
	case NIC0:
		return NIC1
	case NIC1:
		return NIC0
	case NoSG0:
		return NoSG1
	case NoSG1:
		return NoSG0
	}
	return ""
}

// MAC returns the Ethernet address the machine gives to the port; cases and
// agent find the network device by it.
func (p Port) MAC() string {
	for i, port := range Ports {
		if port == p {
			return "02:7a:63:00:00:0" + string(rune('0'+i))
		}
	}
	return ""
}

// The methods. Each comment names the argument and the result type.
const (
	MethodReset       = "nic.reset"        // no argument → none: rules gone, everything held goes on, links up, logs empty and numbered from 0
	MethodHold        = "nic.hold"         // Hold → none
	MethodRelease     = "nic.release"      // Release → Released
	MethodLateDMA     = "nic.late-dma"     // LateDMA → none
	MethodAddRule     = "nic.add-rule"     // Rule → RuleAdded
	MethodRemoveRule  = "nic.remove-rule"  // RemoveRule → RuleStatus from before; frames held by the rule go on
	MethodRuleStatus  = "nic.rule-status"  // RemoveRule → RuleStatus
	MethodSetLink     = "nic.set-link"     // SetLink → none
	MethodFrames      = "nic.frames"       // FramesQuery → Frames
	MethodPcapComment = "nic.pcap-comment" // PcapComment → none
)

// Hold starts or stops withholding used TX descriptors of a port: frames still
// reach the peer, but the guest does not get its buffers back.
type Hold struct {
	Port Port `json:"port"`
	On   bool `json:"on"` // off releases everything held, in order
}

// Release gives held TX buffers back to the guest.
type Release struct {
	Port Port `json:"port"`
	// Count frames, the oldest first; 0 means all. Ignored with Order.
	Count int `json:"count,omitempty"`
	// Order is a list of positions in the held list, 0 the oldest; those
	// frames are released in this order and the others stay held.
	Order []int `json:"order,omitempty"`
}

// Released tells how many frames a Release completed and how many stay held.
type Released struct {
	Released int `json:"released"`
	Held     int `json:"held"`
}

// LateDMA makes the device read the payload of held frames only when they are
// released, as a slow DMA engine would: the peer receives what the buffer holds
// then, under the checksum the guest computed before or the device computes from
// the data of the moment of the send. A buffer that was reused too early so
// arrives with a wrong checksum, unless the new bytes happen to have the same
// sum: overwrite with something that has not, so not with a mere permutation.
//
// It acts on frames sent while Hold is on for the port. Frames without TCP or
// UDP payload have nothing to be read late and go on at once.
type LateDMA struct {
	Port Port `json:"port"`
	On   bool `json:"on"`
}

// Action is what a rule does to a frame.
type Action string

// The actions.
const (
	Drop      Action = "drop"
	Duplicate Action = "duplicate"
	Delay     Action = "delay"   // deliver after Rule.By further frames of this port
	Reorder   Action = "reorder" // collect Rule.By frames, deliver them in reverse
	Withhold  Action = "withhold"
)

// Class selects frames by what they carry.
type Class string

// The classes of frames. IPv4 and IPv6 alike; anything else (ARP, neighbour
// discovery) is matched only by AnyFrame.
const (
	AnyFrame Class = ""
	TCPData  Class = "tcp-data" // TCP with payload
	TCPAck   Class = "tcp-ack"  // TCP without payload, SYN, FIN or RST
	TCPReset Class = "tcp-reset"
	UDP      Class = "udp"
	ICMP     Class = "icmp"
)

// Rule acts on frames that Port transmits, before the peer sees them. The
// guest's buffers are returned as usual; rules are about the wire. The first
// rule that matches a frame decides, be it that the frame passes because it is
// among those to skip; a rule that rests matches no more. Port may be AllNICs.
type Rule struct {
	Port   Port   `json:"port"`
	Match  Class  `json:"match"`
	Action Action `json:"action"`
	Skip   int    `json:"skip,omitempty"`  // let so many matching frames pass first
	Count  int    `json:"count,omitempty"` // act on so many, then rest; 0 means no end
	By     int    `json:"by,omitempty"`    // for Delay and Reorder, in frames
}

// RuleAdded names the new rule.
type RuleAdded struct {
	Rule int `json:"rule"`
}

// RemoveRule names a rule.
type RemoveRule struct {
	Rule int `json:"rule"`
}

// RuleStatus counts what a rule has done.
type RuleStatus struct {
	Matched int `json:"matched"` // frames of the class seen
	Acted   int `json:"acted"`   // frames the action was taken on
	Held    int `json:"held"`    // frames waiting in the rule now
}

// SetLink takes a port's link down or up.
type SetLink struct {
	Port Port `json:"port"`
	Up   bool `json:"up"`
}

// FramesQuery asks for the TX descriptor log of a port.
type FramesQuery struct {
	Port  Port   `json:"port"`
	Since uint64 `json:"since,omitempty"` // first frame number wanted
	// Match restricts the answer to a class of frames.
	Match Class `json:"match,omitempty"`
}

// Frames is a part of the TX descriptor log.
type Frames struct {
	Frames []Frame `json:"frames"`
	Next   uint64  `json:"next"` // number the next frame of this port will get
	// More is true when the answer would have been too long for the guest link:
	// ask again with Since one past the last frame of this answer.
	More bool `json:"more,omitempty"`
}

// Frame is one TX descriptor chain as the device saw it.
type Frame struct {
	Number   uint64    `json:"number"` // counts the frames of the port from 0
	Class    Class     `json:"class"`
	Length   int       `json:"length"`   // bytes, without the virtio-net header
	Payload  int       `json:"payload"`  // bytes of TCP or UDP payload
	Segments []Segment `json:"segments"` // readable descriptors in order, virtio-net header included
	GSO      uint8     `json:"gso"`      // virtio_net_hdr.gso_type
	GSOSize  int       `json:"gso_size"`
	Checksum bool      `json:"checksum"` // VIRTIO_NET_HDR_F_NEEDS_CSUM
	Held     bool      `json:"held"`     // the guest has not got the buffers back yet
}

// Segment is a piece of guest-physical memory.
type Segment struct {
	Address uint64 `json:"address"`
	Length  uint32 `json:"length"`
}

// PcapComment puts a line into the capture, so that a reader finds the case.
type PcapComment struct {
	Text string `json:"text"`
}
