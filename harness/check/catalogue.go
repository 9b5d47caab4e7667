// SPDX-License-Identifier: BSD-3-Clause

package check

// Scope says what a check looks at.
type Scope string

// The scopes.
const (
	EachPatch   Scope = "patch"
	WholeSeries Scope = "series"
)

// The names of the checks.
const (
	Apply      = "apply"
	Build      = "build"
	Boot       = "boot"
	Warnings   = "warnings"
	Sparse     = "sparse"
	Build32    = "build-32bit"
	BuildAll   = "build-allmodconfig"
	Clang      = "build-clang"
	Checkpatch = "checkpatch"
	Kdoc       = "kdoc"
	Inline     = "inline"
	SignedOff  = "signed-off-by"
	Fixes      = "fixes"
	Selftests  = "selftests"

	Cover = "cover-letter"
	Size  = "size"
	Tree  = "tree"
	Uapi  = "uapi"
)

// Check describes one check.
type Check struct {
	Name  string
	Scope Scope
	// Rule is what it demands, in one line.
	Rule string
}

// Catalogue lists the checks in the order they are made and shown. They are those
// of netdev's own gate (the "nipa" tests), described in
// Documentation/process/maintainer-netdev.rst and submitting-patches.rst.
var Catalogue = []Check{
	{Cover, WholeSeries, "a series of three patches or more has a cover letter"},
	{Size, WholeSeries, "a series has at most 15 patches"},
	{Tree, WholeSeries, "the subjects name the tree the series is for, net or net-next"},
	{Uapi, WholeSeries, "a number added to the generic socket header is added to every architecture's own, and is taken in none"},

	{Apply, EachPatch, "the patch applies where it says, as git would put it"},
	{SignedOff, EachPatch, "the author has signed off"},
	{Fixes, EachPatch, "Fixes tags are well formed"},
	{Checkpatch, EachPatch, "checkpatch.pl --strict of the tree finds no error, at 80 columns"},
	{Inline, EachPatch, "no new inline keyword in a .c file: the compiler knows better"},
	{Kdoc, EachPatch, "no new kernel-doc warning in the files touched"},
	{Selftests, EachPatch, "a new selftest is in its Makefile, its program in .gitignore, and config files are sorted"},
	{Build, EachPatch, "the kernel builds"},
	{Boot, EachPatch, "the kernel boots and says nothing bad on its way"},
	{Warnings, EachPatch, "gcc has no new warning with W=1 in the files touched"},
	{Sparse, EachPatch, "sparse has no new warning in the files touched"},
	{Build32, EachPatch, "the directories touched compile for 32 bits without a new warning"},
	{BuildAll, EachPatch, "the directories touched compile with every option on without a new warning"},
	{Clang, EachPatch, "the directories touched compile with clang without a new warning"},
}

// Find returns the description of a check; ok is false for an unknown name.
func Find(name string) (check Check, ok bool) {
	for _, check := range Catalogue {
		if check.Name == name {
			return check, true
		}
	}
	return Check{}, false
}
