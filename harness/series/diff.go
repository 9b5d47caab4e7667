// SPDX-License-Identifier: BSD-3-Clause

package series

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"

	"github.com/bluekeyes/go-gitdiff/gitdiff"
)

// errNoDiff says that a text changes no file.
var errNoDiff = errors.New("holds no diff")

var (
	// patchBreak is where git mailinfo ends the commit message.
	patchBreak = regexp.MustCompile(`^(?:diff -|Index: |---(?:$|[ \t]*$| \S))`)
	hunkHeader = regexp.MustCompile(`^@@ -\d+(?:,(\d+))? \+\d+(?:,(\d+))? @@`)
	// epoch is how GNU diff dates a file that does not exist.
	epoch = regexp.MustCompile(`\t(?:1970-01-01|1969-12-31) `)
)

// splitPatch divides a text into the commit message and the diff, and writes
// the diff in git's own form, without whatever stands around and between the
// changes. It returns errNoDiff when there is none, and an error that names file
// and line when the diff is damaged: cut off, or with hunks that are shorter or
// longer than their headers say.
func splitPatch(text []byte) (message string, diff []byte, err error) {
	lines := strings.SplitAfter(string(unixLines(text)), "\n")
	start := len(lines)
	for i, line := range lines {
		if patchBreak.MatchString(strings.TrimRight(line, "\r\n")) {
			start = i
			break
		}
	}
	message = strings.TrimSpace(strings.Join(lines[:start], ""))

	files, _, err := gitdiff.Parse(strings.NewReader(gitForm(lines[start:])))
	if err != nil && !errors.Is(err, io.EOF) {
		name := ""
		if len(files) > 0 {
			last := files[len(files)-1]
			name = " after " + cmp.Or(last.NewName, last.OldName)
		}
		return message, nil, fmt.Errorf("the diff is damaged or cut off%s: %s", name, strings.TrimPrefix(err.Error(), "gitdiff: "))
	}
	if len(files) == 0 {
		return message, nil, errNoDiff
	}
	diff = render(files)
	// A header that contradicts itself ("--- a/x", "+++ b/y" without a rename)
	// has no form that would read the same again, and git refuses it too.
	again, _, err := gitdiff.Parse(bytes.NewReader(diff))
	if (err != nil && !errors.Is(err, io.EOF)) || !bytes.Equal(render(again), diff) {
		return message, nil, errors.New("the diff is damaged: the header of a file contradicts itself")
	}
	return message, diff, nil
}

func render(files []*gitdiff.File) []byte {
	var out bytes.Buffer
	for _, file := range files {
		out.WriteString(file.String())
	}
	return out.Bytes()
}

// unixLines undoes what a mail transport does to line ends: when every line
// ends in CR LF, the CRs are not part of the text. A patch to a file that has
// such lines still has headers without.
func unixLines(text []byte) []byte {
	if n := bytes.Count(text, []byte("\n")); n == 0 || bytes.Count(text, []byte("\r\n")) != n {
		return text
	}
	return bytes.ReplaceAll(text, []byte("\r\n"), []byte("\n"))
}

// gitForm gives the files of a plain unified diff ("--- linux.orig/a", "+++
// linux/a") git's header, with the first directory of the names taken off, as
// patch -p1 does. Files that have a git header are left alone.
func gitForm(lines []string) string {
	var out strings.Builder
	inGitHeader := false
	for i := 0; i < len(lines); i++ {
		line := lines[i]
		switch {
		case strings.HasPrefix(line, "diff --git "):
			inGitHeader = true
		case strings.HasPrefix(line, "--- ") && i+2 < len(lines) && strings.HasPrefix(lines[i+1], "+++ ") && hunkHeader.MatchString(lines[i+2]):
			if !inGitHeader {
				out.WriteString(plainHeader(line, lines[i+1]))
				i++
				continue
			}
		case hunkHeader.MatchString(line):
			inGitHeader = false
			end := hunkEnd(lines, i)
			out.WriteString(strings.Join(lines[i:end], ""))
			i = end - 1
			continue
		}
		out.WriteString(line)
	}
	return out.String()
}

// hunkEnd returns the index of the line after the hunk whose header is at
// start, by the counts in that header.
func hunkEnd(lines []string, start int) int {
	counts := hunkHeader.FindStringSubmatch(lines[start])
	before, now := lineCount(counts[1]), lineCount(counts[2])
	i := start + 1
	for ; i < len(lines) && lines[i] != "" && (before > 0 || now > 0); i++ {
		switch lines[i][0] {
		case ' ', '\n', '\r':
			before, now = before-1, now-1
		case '-':
			before--
		case '+':
			now--
		case '\\':
		default:
			return i
		}
	}
	for i < len(lines) && strings.HasPrefix(lines[i], `\`) {
		i++
	}
	return i
}

func lineCount(digits string) int {
	if digits == "" {
		return 1
	}
	n, err := strconv.Atoi(digits)
	if err != nil {
		return 0
	}
	return n
}

// plainHeader makes git's header from the two lines of a plain one.
func plainHeader(oldLine, newLine string) string {
	before, now := plainName(oldLine), plainName(newLine)
	isNew := before == "/dev/null" || epoch.MatchString(oldLine)
	isDelete := now == "/dev/null" || epoch.MatchString(newLine)
	// Of "a/file.orig" and "a/file" the one that is in the tree is meant.
	name := now
	if isDelete || (!isNew && strings.HasPrefix(now, before)) {
		name = before
	}
	if _, rest, ok := strings.Cut(strings.TrimLeft(name, "/"), "/"); ok {
		name = rest
	}
	header := "diff --git a/" + name + " b/" + name + "\n"
	switch {
	case isNew:
		return header + "new file mode 100644\n--- /dev/null\n+++ b/" + name + "\n"
	case isDelete:
		return header + "deleted file mode 100644\n--- a/" + name + "\n+++ /dev/null\n"
	}
	return header + "--- a/" + name + "\n+++ b/" + name + "\n"
}

// plainName takes the name from "--- name<tab>time stamp".
func plainName(line string) string {
	name, _, _ := strings.Cut(strings.TrimRight(line[len("--- "):], "\r\n"), "\t")
	return strings.TrimSpace(name)
}

func hexSHA256(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}
