// SPDX-License-Identifier: BSD-3-Clause

// Package source finds the kernel that a series is tried on: from the cache,
// from the machine's own package manager, from kernel.org, from a tarball, a
// directory or a git repository.
package source

// Kernel is the source of one kernel, unpacked and ready to be read. Nothing in
// this project ever writes below Dir: a build works on a copy.
type Kernel struct {
	// Version is what the tree's Makefile says, such as "6.12.95" or
	// "6.12.0-rc3"; for an image the version found in it, or "".
	Version string
	// Source names the provider and the place, for people to read:
	// "debian linux-source-6.12 6.12.95-1".
	Source string
	// ID names the contents of Dir (or Image). Equal ids are equal contents;
	// it is short, and safe as a file name.
	ID string
	// Dir is the root of the pristine tree; empty when Image is set.
	Dir string
	// Image is a kernel that is already built, for an image: specification;
	// such a kernel takes no series and is not built.
	Image string
}
