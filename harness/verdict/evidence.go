// SPDX-License-Identifier: BSD-3-Clause

package verdict

// Evidence is what there is to see about a case that did not pass. Lists are cut
// to what a person reads; the files, all relative to run.json with slashes, have
// everything.
type Evidence struct {
	// Calls are the system calls of the case, one line each, as strace writes
	// them. Package guest/trace makes them.
	Calls []string `json:"calls,omitempty"`
	// Console is what the kernel printed while the case ran.
	Console []string `json:"console,omitempty"`
	// Frames are the last frames that the NIC transmitted, one line each, with
	// the guest-physical places of their data.
	Frames []string `json:"frames,omitempty"`

	CallsFile      string `json:"calls_file,omitempty"`
	Capture        string `json:"capture,omitempty"`         // pcapng
	DescriptorFile string `json:"descriptor_file,omitempty"` // JSON lines of package guest/nic's Frame
	// Reproducer is the C program that shows the failure without zcvet.
	// NoReproducer says why there is none, and what to do instead.
	Reproducer   string `json:"reproducer,omitempty"`
	NoReproducer string `json:"no_reproducer,omitempty"`
}
