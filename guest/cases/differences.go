// SPDX-License-Identifier: BSD-3-Clause

package cases

import (
	"fmt"
	"os"

	"github.com/zcvet/zcvet/guest/network"
)

// Version is a version of the kernel, without the number of the stable release.
type Version struct{ Major, Minor int }

// Before tells whether v is the older one.
func (v Version) Before(other Version) bool {
	return v.Major < other.Major || v.Major == other.Major && v.Minor < other.Minor
}

func (v Version) String() string { return fmt.Sprintf("%d.%d", v.Major, v.Minor) }

// Difference is behaviour that differs between kernels and is nobody's fault
// today: a case that expects what newer kernels do is skipped on those that are
// known to do something else.
type Difference struct {
	Case string
	Link network.Link // the only one it is about, empty for all
	// Until is the last kernel that is known to have the older behaviour. Those
	// between it and the next one looked at are tried.
	Until Version
	// Why says what the older kernels do, and where.
	Why string
}

// Differences is all of them, among the kernels that were looked at: 6.1, 6.12 and
// 7.2.
var Differences = []Difference{
	{
		Case: "delivery/recverr-off-keeps-notifications", Until: Version{6, 1},
		Why: "switching IP_RECVERR off empties the whole error queue, notifications too (skb_queue_purge in do_ip_setsockopt and do_ipv6_setsockopt)",
	},
	{
		Case: "mixes/segmentation-offload", Link: network.NICNoSG, Until: Version{6, 10},
		Why: "a device without checksum offload has no UDP segmentation offload (EIO in udp_send_skb)",
	},
}

// differs returns why a case cannot expect on this kernel what it expects, or nil.
func (e *Environment) differs(instance Instance) error {
	for _, difference := range Differences {
		if difference.Case != instance.Case.Name || difference.Link != "" && difference.Link != instance.Link {
			continue
		}
		running, err := e.kernelVersion()
		if err != nil {
			return err
		}
		if !difference.Until.Before(running) {
			return fmt.Errorf("in kernels up to %v %s", difference.Until, difference.Why)
		}
	}
	return nil
}

// kernelVersion is the version of the kernel that runs.
func (e *Environment) kernelVersion() (Version, error) {
	if e.version != (Version{}) {
		return e.version, nil
	}
	release, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return Version{}, err
	}
	if _, err := fmt.Sscanf(string(release), "%d.%d", &e.version.Major, &e.version.Minor); err != nil {
		return Version{}, fmt.Errorf("kernel release %q: %w", release, err)
	}
	return e.version, nil
}
