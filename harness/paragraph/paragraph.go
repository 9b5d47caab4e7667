// SPDX-License-Identifier: BSD-3-Clause

// Package paragraph breaks text into lines.
package paragraph

import (
	"strings"
	"unicode/utf8"
)

// Lines breaks a paragraph into lines of at most so many columns, as far as its
// words allow. First begins the first line, indent the others.
func Lines(text, first, indent string, columns int) []string {
	var lines []string
	line, empty := first, true
	for word := range strings.FieldsSeq(text) {
		if !empty && utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) > columns {
			lines = append(lines, line)
			line, empty = indent, true
		}
		if !empty {
			line += " "
		}
		line, empty = line+word, false
	}
	return append(lines, strings.TrimRight(line, " "))
}
