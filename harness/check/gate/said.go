// SPDX-License-Identifier: BSD-3-Clause

package gate

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/zcvet/zcvet/harness/check"
)

// complaint is a warning or error as compilers, sparse and kernel-doc write it.
var complaint = regexp.MustCompile(`^([^\s:]+):(\d+):(?:\d+:)? ?((?:warning|error|fatal error|Warning|Error): .*)$`)

// complaints reads the lines of a tool.
func complaints(lines []string) []check.Message {
	var messages []check.Message
	for _, line := range lines {
		match := complaint.FindStringSubmatch(strings.TrimSpace(line))
		if match == nil {
			continue
		}
		number, err := strconv.Atoi(match[2])
		if err != nil {
			continue // a number too large is no line
		}
		file := match[1]
		for strings.HasPrefix(file, "../") {
			file = strings.TrimPrefix(file, "../")
		}
		messages = append(messages, check.Message{File: file, Line: number, Text: match[3]})
	}
	return messages
}

// inText is a place that a message names, which moves with the lines.
var inText = regexp.MustCompile(`\b(line )?\d+\b`)

// same is what a message has in common with itself after lines moved.
func same(m check.Message) string { return m.File + " " + inText.ReplaceAllString(m.Text, "#") }

// fresh lists what is said after and was not said before. A message that comes more
// often than before is new once for each time.
func fresh(before, after []string) []check.Message {
	known := map[string]int{}
	for _, message := range complaints(before) {
		known[same(message)]++
	}
	var added []check.Message
	for _, message := range complaints(after) {
		if known[same(message)] > 0 {
			known[same(message)]--
			continue
		}
		added = append(added, message)
	}
	return added
}

// each makes every message one, in the order of files and lines: that of a header
// comes with every file that includes it.
func each(messages []check.Message) []check.Message {
	slices.SortFunc(messages, func(a, b check.Message) int {
		return cmp.Or(cmp.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line), cmp.Compare(a.Text, b.Text))
	})
	return slices.Compact(messages)
}

// summary is the first of the messages and how many there are.
func summary(what string, messages []check.Message) string {
	first := messages[0]
	text := fmt.Sprintf("%s:%d: %s", first.File, first.Line, first.Text)
	if first.File == "" {
		text = first.Text
	}
	if len(messages) == 1 {
		return fmt.Sprintf("1 %s: %s", what, text)
	}
	return fmt.Sprintf("%d %ss, first %s", len(messages), what, text)
}
