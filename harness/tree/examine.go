// SPDX-License-Identifier: BSD-3-Clause

package tree

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/zcvet/zcvet/harness/fault"
	"github.com/zcvet/zcvet/harness/series"
	"github.com/zcvet/zcvet/harness/verdict"
)

// Kinds of finding, as run.json names them.
const (
	KindFuzz      = "fuzz"
	KindCollision = "uapi-collision"
)

// genericSocketHeader defines the socket constants of most architectures, among
// them the one the guest runs on.
const genericSocketHeader = "include/uapi/asm-generic/socket.h"

// Verdict returns what run.json says about the series.
func (t *Tree) Verdict() verdict.Series {
	out := verdict.Series{
		Name: t.Series.Name, Spec: t.Series.Spec, Revision: t.Series.Revision, MessageID: t.Series.MessageID,
		ABI: t.ABI, Constant: t.Constant, Findings: slices.Clone(t.Findings),
	}
	for i, applied := range t.Applied {
		patch := t.Series.Patches[i]
		out.Patches = append(out.Patches, verdict.Patch{
			Subject: applied.Subject, File: applied.File, SHA256: applied.SHA256, Fuzz: applied.Fuzz, Offset: applied.Offset,
			Diff: string(patch.Diff), DiffLine: lineOf(patch.Mail, patch.Diff),
		})
	}
	return out
}

// lineOf is the line of mail (from 1) at which the first line of diff stands
// unchanged, 0 if there is none.
func lineOf(mail, diff []byte) int {
	first, _, _ := bytes.Cut(diff, []byte("\n"))
	number := 0
	for line := range bytes.Lines(mail) {
		number++
		if len(first) > 0 && bytes.Equal(bytes.TrimRight(line, "\r\n"), first) {
			return number
		}
	}
	return 0
}

// id names the patched tree by content.
func (t *Tree) id() string {
	if len(t.Overlay) == 0 && len(t.Deleted) == 0 {
		return t.Kernel.ID
	}
	hash := sha256.New()
	for _, name := range slices.Sorted(maps.Keys(t.Overlay)) {
		fmt.Fprintf(hash, "file %q %o %x\n", name, t.Mode[name], sha256.Sum256(t.Overlay[name]))
	}
	for _, name := range t.Deleted {
		fmt.Fprintf(hash, "deleted %q\n", name)
	}
	return t.Kernel.ID + "+" + hex.EncodeToString(hash.Sum(nil))[:16]
}

// fuzzFindings makes one finding of every hunk that fuzz placed; of the patch
// when GNU patch saw no need for fuzz where git refused.
func fuzzFindings(patch *series.Patch, refused []failure, placed report, said string) []verdict.Finding {
	var findings []verdict.Finding
	for _, hunk := range placed.hunks {
		if hunk.Fuzz == 0 {
			continue
		}
		findings = append(findings, verdict.Finding{
			Kind: KindFuzz, Level: verdict.Should, Patch: patch.Subject, File: hunk.File, Line: hunk.Line,
			Title:  fmt.Sprintf("%s: hunk %d applied with fuzz %d", hunk.File, hunk.Number, hunk.Fuzz),
			Detail: fmt.Sprintf("git refuses this patch; it was placed at line %d by ignoring %d lines of context and may be in the wrong place.\n%s", hunk.Line, hunk.Fuzz, said),
		})
	}
	if len(findings) == 0 {
		finding := verdict.Finding{
			Kind: KindFuzz, Level: verdict.Should, Patch: patch.Subject,
			Title: "git refuses the patch, GNU patch takes it", Detail: said,
		}
		if len(refused) > 0 {
			finding.File, finding.Line = refused[0].file, refused[0].line
		}
		findings = append(findings, finding)
	}
	return findings
}

// examine looks at the patched headers: which interface they offer, and whether
// a number the series added was taken.
func (t *Tree) examine(pristine *os.Root) error {
	read := func(name string) (string, error) {
		if data, ok := t.Overlay[name]; ok {
			return string(data), nil
		}
		if slices.Contains(t.Deleted, name) {
			return "", nil
		}
		return readIfThere(pristine, name)
	}

	generic, err := read(genericSocketHeader)
	if err != nil {
		return err
	}
	t.Constant = int(parseDefines(generic).value("SCM_ZC_NOTIFICATION"))

	var headers strings.Builder
	// Where the published revisions put their structures, for a source that has
	// them already, and wherever this series puts its own.
	names := []string{genericSocketHeader, "include/linux/socket.h", "include/uapi/linux/socket.h"}
	for name := range t.Overlay {
		if strings.HasSuffix(name, ".h") && !strings.HasPrefix(name, "tools/") {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		text, err := read(name)
		if err != nil {
			return err
		}
		headers.WriteString(text)
	}
	if t.ABI = t.Series.ABI; t.ABI == "" {
		t.ABI = detectABI(headers.String())
	}
	t.examineLayout(headers.String())

	for _, name := range slices.Sorted(maps.Keys(t.Overlay)) {
		family := numberFamily(name)
		if family == nil {
			continue
		}
		before, err := readIfThere(pristine, name)
		if err != nil {
			return err
		}
		for _, c := range collisions(parseDefines(before), parseDefines(string(t.Overlay[name])), family) {
			finding := verdict.Finding{
				Kind: KindCollision, Level: verdict.Must, File: name, Line: c.added.line,
				Title: fmt.Sprintf("%s and %s are both %s in %s", c.added.name, c.taken.name, c.added.text, name),
				Detail: fmt.Sprintf("%s:%d defines %s as %s, which is %s at line %d: the kernel cannot tell one from the other.",
					name, c.added.line, c.added.name, c.added.text, c.taken.name, c.taken.line),
			}
			if patch, ok := t.Blame(name, c.added.line); ok {
				finding.Patch = t.Series.Patches[patch].Subject
			}
			t.Findings = append(t.Findings, finding)
		}
	}
	return t.examineNumbers(pristine, read)
}

func readIfThere(root *os.Root, name string) (string, error) {
	data, err := root.ReadFile(name)
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENOTDIR) {
		return "", fault.New(fault.Infrastructure, "kernel source: %w", err)
	}
	return string(data), nil
}

// detectABI names the newest interface whose traces are in the headers. The
// manifest knows better where two revisions look alike: v5 differs from v6 in
// what it returns only, v2 to v4 are not told apart at all.
func detectABI(headers string) string {
	code := withoutComments(headers)
	switch {
	case structure("zc_info").MatchString(code) && regexp.MustCompile(`\bZC_NOTIFICATION_MAX\b`).MatchString(code):
		return "v8"
	case structure("zc_info").MatchString(code):
		return "v7"
	case structure("zc_info_elem").MatchString(code):
		return "v6"
	case regexp.MustCompile(`\bMSG_ZEROCOPY_UARG\b`).MatchString(code):
		return "v1"
	}
	return ""
}

func structure(name string) *regexp.Regexp {
	return regexp.MustCompile(`\bstruct\s+` + name + `\s*\{`)
}

// numberFamily returns what the constants of a header that share one space of
// numbers look like, nil for a header without such a space.
func numberFamily(name string) *regexp.Regexp {
	switch {
	case strings.Contains("/"+name, "/uapi/") && strings.HasSuffix(name, ".h"):
		return optionNames
	case strings.HasSuffix(name, "include/linux/socket.h") && path.Base(name) == "socket.h":
		return flagNames
	}
	return nil
}

var (
	// optionNames are socket options and control messages. They share their
	// numbers: SCM_TXTIME is SO_TXTIME.
	optionNames = regexp.MustCompile(`^(SO|SCM)_`)
	// flagNames are the flags of send and recv. They are no part of the uapi
	// headers, yet of the interface; the first revision took one.
	flagNames = regexp.MustCompile(`^MSG_`)
)

// define is a constant of a header, a number or another name.
type define struct {
	name  string
	text  string // as written
	line  int
	value int64
	// isNumber is false for an alias or anything else that is no literal.
	isNumber bool
}

type defines []define

var (
	defineLine = regexp.MustCompile(`^[ \t]*#[ \t]*define[ \t]+([A-Za-z_]\w*)[ \t]+(.*?)[ \t]*$`)
	literal    = regexp.MustCompile(`^\(?(0[xX][0-9a-fA-F]+|[0-9]+)[uUlL]*\)?$`)
)

// parseDefines lists the object-like macros of a C header, in order.
func parseDefines(header string) defines {
	var all defines
	line := 0
	for text := range strings.Lines(withoutComments(header)) {
		line++
		m := defineLine.FindStringSubmatch(strings.TrimRight(text, "\r\n"))
		if m == nil {
			continue
		}
		d := define{name: m[1], text: m[2], line: line}
		if number := literal.FindStringSubmatch(m[2]); number != nil {
			// Base 0 reads hexadecimal and octal as C does.
			if value, err := strconv.ParseInt(number[1], 0, 64); err == nil {
				d.value, d.isNumber = value, true
			}
		}
		all = append(all, d)
	}
	return all
}

// value resolves a name through aliases to its number; 0 when it has none.
func (all defines) value(name string) int64 {
	for range len(all) + 1 { // an alias of itself ends here
		i := slices.IndexFunc(all, func(d define) bool { return d.name == name })
		if i < 0 {
			return 0
		}
		if all[i].isNumber {
			return all[i].value
		}
		name = all[i].text
	}
	return 0
}

// feature is what SO_X and SCM_X of one feature have in common: they may be
// written as the same number.
func (d define) feature() string {
	_, feature, _ := strings.Cut(d.name, "_")
	return feature
}

type collision struct{ added, taken define }

// collisions lists the numbers that `after` has and `before` had not, and that
// another name of the family has too. Numbers that were shared before the
// series are not its fault.
func collisions(before, after defines, family *regexp.Regexp) []collision {
	var found []collision
	isNew := func(d define) bool {
		return !slices.ContainsFunc(before, func(old define) bool {
			return old.name == d.name && old.isNumber && old.value == d.value
		})
	}
	for i, added := range after {
		if !added.isNumber || !family.MatchString(added.name) || !isNew(added) {
			continue
		}
		for j, taken := range after {
			if !taken.isNumber || taken.value != added.value || !family.MatchString(taken.name) || taken.feature() == added.feature() {
				continue
			}
			// Of two new ones the later is to blame.
			if isNew(taken) && j > i {
				continue
			}
			found = append(found, collision{added, taken})
			break
		}
	}
	return found
}

// withoutComments blanks C comments, keeping the line structure. String and
// character literals are respected.
func withoutComments(code string) string {
	var out strings.Builder
	out.Grow(len(code))
	for i := 0; i < len(code); {
		switch {
		case strings.HasPrefix(code[i:], "/*"):
			end := len(code)
			if close := strings.Index(code[i+2:], "*/"); close >= 0 {
				end = i + 2 + close + 2
			}
			out.WriteByte(' ')
			out.WriteString(strings.Repeat("\n", strings.Count(code[i:end], "\n")))
			i = end
		case strings.HasPrefix(code[i:], "//"):
			end := strings.IndexByte(code[i:], '\n')
			if end < 0 {
				end = len(code) - i
			}
			i += end
		case code[i] == '"' || code[i] == '\'':
			end := i + 1
			for end < len(code) && code[end] != code[i] && code[end] != '\n' {
				if code[end] == '\\' && end+1 < len(code) {
					end++
				}
				end++
			}
			end = min(end+1, len(code))
			out.WriteString(code[i:end])
			i = end
		default:
			out.WriteByte(code[i])
			i++
		}
	}
	return out.String()
}
