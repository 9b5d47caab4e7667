// SPDX-License-Identifier: BSD-3-Clause

package kconfig

// Needs is what a kernel of some configuration asks of the machine that runs it.
type Needs struct {
	// Memory of the guest in MiB; 0 when any amount will do.
	Memory int
	// Slowdown is how many times longer than on the default set everything may
	// take, at least 1.
	Slowdown float64
	// Parameters for the kernel's command line.
	Parameters []string
	// Make are variables for the kernel's make, NAME=VALUE.
	Make []string
	// Coverage is true for a kernel that counts which lines are executed.
	Coverage bool
}

// ownSlowdown is the Slowdown of a set with fragments that we know nothing of.
// Patience costs time only where a kernel hangs.
const ownSlowdown = 4

// symbolNeeds are the needs of single symbols; a set needs the most of each.
// Measured under TCG, with reserve for a machine that is busy with other work.
var symbolNeeds = map[string]Needs{
	"KASAN": {
		// Freed objects are kept for a while, and an eighth of all memory tells
		// what of the rest may be accessed.
		Memory:   768,
		Slowdown: 4,
		// By default only the first report is printed, and whatever a later case
		// does wrong would go unseen.
		Parameters: []string{"kasan_multi_shot"},
		// The PVH entry compares strings (xen_cpuid_base) before there is memory
		// that says what may be accessed. The tree itself leaves this file out
		// where memory is encrypted, because of another early use (lib/Makefile).
		Make: []string{"KASAN_SANITIZE_string.o=n"},
	},
	"PROVE_LOCKING":  {Slowdown: 3},
	"DEBUG_KMEMLEAK": {Memory: 512, Slowdown: 2},
	"GCOV_KERNEL":    {Coverage: true},
}

// Needs tells what a machine must offer to a kernel of this set.
func (s *Set) Needs() Needs {
	needs := Needs{Slowdown: 1}
	for _, symbol := range s.enabled() {
		of := symbolNeeds[symbol]
		needs.Memory = max(needs.Memory, of.Memory)
		needs.Slowdown = max(needs.Slowdown, of.Slowdown)
		needs.Parameters = append(needs.Parameters, of.Parameters...)
		needs.Make = append(needs.Make, of.Make...)
		needs.Coverage = needs.Coverage || of.Coverage
	}
	if s.own {
		needs.Slowdown = max(needs.Slowdown, ownSlowdown)
	}
	return needs
}

// enabled lists the symbols that the set switches on for any kernel, each once.
func (s *Set) enabled() []string {
	value := map[string]string{}
	var names []string
	for _, fragment := range s.Fragments {
		for _, symbol := range fragment.Symbols {
			if _, seen := value[symbol.Name]; !seen {
				names = append(names, symbol.Name)
			}
			value[symbol.Name] = symbol.Value
		}
	}
	on := names[:0]
	for _, name := range names {
		if value[name] == "y" {
			on = append(on, name)
		}
	}
	return on
}
