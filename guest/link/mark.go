// SPDX-License-Identifier: BSD-3-Clause

package link

import "strings"

// The agent marks the beginning and the end of every case on the console, so
// that what the kernel prints there can be put down to the right case: link and
// console are two streams, and only within one of them is there an order.

const startMark = "zcvet: case "

// EndMark is the console line that comes after everything the case of the last
// StartMark caused while it ran. It is short because the console is slow: each
// character of it is an exit to QEMU.
const EndMark = "zcvet: end"

// StartMark is the console line that comes before anything a case can cause.
func StartMark(id string) string { return startMark + id }

// ParseMark finds a mark in a console line, behind whatever the kernel put in
// front of it. Only a StartMark has an id.
func ParseMark(line string) (id string, start, ok bool) {
	if _, id, start = strings.Cut(line, startMark); start {
		return strings.TrimSpace(id), true, true
	}
	return "", false, strings.HasSuffix(strings.TrimRight(line, "\r"), EndMark)
}
