// SPDX-License-Identifier: BSD-3-Clause

package kbuild

import (
	"fmt"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/zcvet/zcvet/harness/tree"
)

// Diagnosis is the first thing that went wrong in a build's output.
type Diagnosis struct {
	// File is relative to the root of the kernel tree, empty if the message
	// names none. Line is 0 if it names none.
	File string
	Line int
	// Text is the message itself, without the place.
	Text string
	// Symbol is what a link did not find, else empty.
	Symbol string
	// Machine is true when the machine failed, not the source: no memory, no
	// disk, a compiler that crashed.
	Machine bool
	// Excerpt is the part of the output that belongs to it.
	Excerpt string
}

// String is the diagnosis as one line, the place first as compilers write it.
func (d Diagnosis) String() string {
	switch {
	case d.File == "":
		return d.Text
	case d.Line == 0:
		return d.File + ": " + d.Text
	}
	return fmt.Sprintf("%s:%d: %s", d.File, d.Line, d.Text)
}

// machineMessages is how many of the messages are about the machine.
const machineMessages = 3

// A message is known by the first of these that matches. The groups "file",
// "line", "text" and "symbol" go into the diagnosis.
var messages = []struct {
	pattern *regexp.Regexp
	prefix  string // put in front of the text where the tool's words need it
}{
	{pattern: regexp.MustCompile(`(?P<text>No space left on device|Disk quota exceeded)`)},
	{pattern: regexp.MustCompile(`(?P<text>Killed signal terminated program \w+|virtual memory exhausted|[Cc]annot allocate memory|internal compiler error: .*)`)},
	// make or its children were ended by somebody else: an out-of-memory killer, an
	// administrator. A fault of the source never ends that way.
	{pattern: regexp.MustCompile(`^make\S*: \*\*\* \[.*\] (?P<text>Terminated|Killed|Hangup|Interrupt)\b`), prefix: "the compiler was ended by a signal: "},
	// gcc and clang: file:line:column: error: …; the kernel's own assembler files say Error.
	{pattern: regexp.MustCompile(`^(?P<file>[^\s:]+):(?P<line>\d+):(?:\d+:)? (?:fatal error|error|Error): (?P<text>.*)`)},
	// ld, with the line when the object has line tables, else with the section.
	{pattern: regexp.MustCompile("^(?:\\S*ld(?:\\.\\w+)?: )?(?P<file>[^\\s:]+?)(?::(?P<line>\\d+))?:(?:\\([^)]*\\):)? (?P<text>undefined reference to [`'](?P<symbol>[^`']+)')")},
	{pattern: regexp.MustCompile("^(?:\\S*ld(?:\\.\\w+)?: )?(?P<file>[^\\s:]+?)(?::(?P<line>\\d+))?:(?:\\([^)]*\\):)? (?P<text>multiple definition of [`'](?P<symbol>[^`']+)').*")},
	{pattern: regexp.MustCompile(`^ld\.lld: error: (?P<text>undefined symbol: (?P<symbol>\S+))`)},
	{pattern: regexp.MustCompile(`^ERROR: modpost: (?P<text>"(?P<symbol>[^"]+)" \[[^\]]*\] undefined!)`), prefix: "modpost: "},
	{pattern: regexp.MustCompile(`^ERROR: modpost: (?P<text>\S.*)`), prefix: "modpost: "},
	// Kconfig's parser: file:line: message, without the word error as a rule.
	{pattern: regexp.MustCompile(`^(?P<file>[^\s:]*Kconfig[^\s:]*):(?P<line>\d+):\s*(?P<text>.*(?:error|unknown|invalid|unexpected|can't open|missing|recursive|unterminated|not supported).*)`)},
	{pattern: regexp.MustCompile(`^(?P<file>[^\s:]+\.o): (?:error|warning): objtool: (?P<text>.*)`), prefix: "objtool: "},
	// make itself: its files, and files it does not find.
	{pattern: regexp.MustCompile(`^(?P<file>[^\s:]+):(?P<line>\d+): \*\*\* (?P<text>.*?)\.?\s+Stop\.$`)},
	{pattern: regexp.MustCompile(`^make\S*: \*\*\* (?P<text>No rule to make target .*?)\.?\s+Stop\.$`)},
	{pattern: regexp.MustCompile(`^(?:error|Error|ERROR): (?P<text>\S.*)`)},
}

// fails is make's own line about a recipe that failed.
var fails = regexp.MustCompile(`^make\S*: \*\*\* `)

// Diagnose finds the first error in what make printed. Source is the root of the
// tree as make saw it, to be taken off file names.
func Diagnose(lines []string, source string) Diagnosis {
	for i, line := range lines {
		// The rare messages about the machine explain all others, even earlier ones.
		for _, message := range messages[:machineMessages] {
			if match := message.pattern.FindStringSubmatch(line); match != nil {
				return Diagnosis{Text: message.prefix + match[1], Machine: true, Excerpt: excerpt(lines, i)}
			}
		}
	}
	for i, line := range lines {
		for _, message := range messages[machineMessages:] {
			match := message.pattern.FindStringSubmatch(line)
			if match == nil {
				continue
			}
			diagnosis := Diagnosis{Excerpt: excerpt(lines, i)}
			for group, name := range message.pattern.SubexpNames() {
				switch name {
				case "file":
					diagnosis.File = relative(match[group], source)
				case "line":
					diagnosis.Line, _ = strconv.Atoi(match[group]) // a number too large is no line
				case "text":
					diagnosis.Text = message.prefix + strings.TrimSpace(match[group])
				case "symbol":
					diagnosis.Symbol = match[group]
				}
			}
			return diagnosis
		}
	}
	for i, line := range lines {
		if fails.MatchString(line) {
			return Diagnosis{Text: strings.TrimSpace(line), Excerpt: excerpt(lines, i)}
		}
	}
	return Diagnosis{Text: "make failed without saying why", Excerpt: excerpt(lines, len(lines)-1)}
}

// relative makes a file name of the compiler one from the root of the tree. The
// build directory lies in the source, so names may start with "../".
func relative(name, source string) string {
	name = path.Clean(name)
	if rest, ok := strings.CutPrefix(name, path.Clean(source)+"/"); ok && source != "" {
		name = rest
	}
	for {
		rest, ok := strings.CutPrefix(name, "../")
		if !ok {
			return name
		}
		name = rest
	}
}

// excerpt is the lines around the one at i that belong to it, as far as one can
// tell: how the compiler got there, and what it shows of the source.
func excerpt(lines []string, i int) string {
	if i < 0 || i >= len(lines) {
		return ""
	}
	const before, after = 6, 12
	first := i
	for first > 0 && i-first < before && leadsIn(lines[first-1]) {
		first--
	}
	last := i
	for last+1 < len(lines) && last-i < after && !strings.HasPrefix(lines[last+1], "make") {
		last++
	}
	return strings.Join(lines[first:last+1], "\n")
}

func leadsIn(line string) bool {
	return strings.HasPrefix(line, "In file included from ") || strings.HasPrefix(line, "                 from ") ||
		strings.Contains(line, ": In function ") || strings.Contains(line, ": in function ") ||
		strings.HasSuffix(line, ": Assembler messages:")
}

// Culprit says which patch of the series the diagnosis leads to, as a clause to
// put behind it; empty when nothing leads to any.
func Culprit(d Diagnosis, t *tree.Tree) string {
	name := func(patch int) string {
		if patch < 0 || patch >= len(t.Applied) {
			return fmt.Sprintf("patch %d", patch+1)
		}
		return fmt.Sprintf("patch %d/%d %q", patch+1, len(t.Applied), t.Applied[patch].Subject)
	}
	if d.File != "" && d.Line > 0 {
		if patch, ok := t.Blame(d.File, d.Line); ok {
			return "the line is from " + name(patch)
		}
	}
	if d.Symbol != "" {
		if patch, ok := mentions(d.Symbol, t); ok {
			return d.Symbol + " is used by " + name(patch)
		}
	}
	if touched := t.Touched(d.File); len(touched) > 0 {
		return "the file was changed by " + name(touched[len(touched)-1])
	}
	return ""
}

// mentions finds the patch that brought the first line with that word.
func mentions(symbol string, t *tree.Tree) (patch int, ok bool) {
	word := regexp.MustCompile(`\b` + regexp.QuoteMeta(symbol) + `\b`)
	var files []string
	for file := range t.Overlay {
		files = append(files, file)
	}
	slices.Sort(files)
	for _, file := range files {
		number := 0
		for line := range strings.Lines(string(t.Overlay[file])) {
			number++
			if !word.MatchString(line) {
				continue
			}
			if patch, ok := t.Blame(file, number); ok {
				return patch, true
			}
		}
	}
	return 0, false
}
