// SPDX-License-Identifier: BSD-3-Clause

// Package series reads a patch series from where its authors or reviewers have
// it: a directory, a mailbox, the mailing list archive, or our list of the
// published revisions.
package series

// Series is a patch series as its author sent it. A series without patches
// ("none") leaves the kernel as it is.
type Series struct {
	// Name is a readable name: the directory, or the subject of the cover
	// letter; "none" without patches.
	Name string
	// Spec is what the user asked for.
	Spec string
	// Directory is where the files of the patches are, empty when they did not come
	// from a directory.
	Directory string
	// Revision is the N of "[PATCH vN 1/3]", 1 when the subject names none, 0
	// when there is no such subject.
	Revision int
	// MessageID is that of the cover letter, else of the first patch, without
	// angle brackets; empty when the series never was a mail.
	MessageID string
	// Cover is the text of the cover letter, empty without one.
	Cover string
	// ABI is the profile of the notification interface ("v1" to "v8") when
	// the manifest of published revisions knows this series, else empty and to
	// be read from the patched headers.
	ABI     string
	Patches []Patch
}

// Patch is one patch of a series.
type Patch struct {
	// Subject is the first line of the commit message, without "[PATCH …]".
	Subject string
	// Prefix is what is in the brackets before the subject, "PATCH net-next v2
	// 1/3", empty without.
	Prefix string
	// Message is the commit message without the subject and what follows "---".
	Message string
	// Author is "Name <address>", empty when the patch does not say.
	Author string
	// File is relative to the series' directory, with slashes, or a name made
	// from number and subject as git format-patch makes it.
	File string
	// Mail is the patch as it came.
	Mail []byte
	// Diff is the change alone, in git's format, with LF line ends, without
	// mail headers, message, diffstat and signature. The same change has the
	// same Diff whichever way it came.
	Diff []byte
	// SHA256 is the hash of Diff in lower-case hex.
	SHA256 string
}
