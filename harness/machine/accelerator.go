// SPDX-License-Identifier: BSD-3-Clause

package machine

// The names of accelerators, as run.json and QEMU have them.
const (
	KVM = "kvm"
	TCG = "tcg"
)

// Accelerator is how guest code runs.
type Accelerator struct {
	// Name is KVM or TCG.
	Name string
	// Reason says in one line why this one was chosen.
	Reason string
	// CPU is QEMU's CPU model with its flags.
	CPU string
}

// NewAccelerator returns the named accelerator with the CPU model that has the
// most features, SMAP and SMEP among them.
func NewAccelerator(name, reason string) Accelerator {
	cpu := "max"
	if name == KVM {
		cpu = "host"
	}
	return Accelerator{Name: name, Reason: reason, CPU: cpu}
}
