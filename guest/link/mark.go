// SPDX-License-Identifier: BSD-3-Clause

package link

import "strings"

// The agent marks the beginning and the end of every case on the console, so
// that what the kernel prints there can be put down to the right case: link and
// console are two streams, and only within one of them is there an order.

const (
	startMark = "zcvet: case "
	endMark   = "zcvet: end "
)

// StartMark is the console line that comes before anything a case can cause.
func StartMark(id string) string { return startMark + id }

// EndMark is the console line that comes after everything a case caused while it
// ran.
func EndMark(id string) string { return endMark + id }

// ParseMark finds a mark in a console line, behind whatever the kernel put in
// front of it.
func ParseMark(line string) (id string, start, ok bool) {
	for _, mark := range []string{startMark, endMark} {
		if i := strings.Index(line, mark); i >= 0 {
			return strings.TrimSpace(line[i+len(mark):]), mark == startMark, true
		}
	}
	return "", false, false
}
