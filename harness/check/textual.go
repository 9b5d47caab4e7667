// SPDX-License-Identifier: BSD-3-Clause

package check

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net/mail"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/bluekeyes/go-gitdiff/gitdiff"

	"github.com/zcvet/zcvet/harness/series"
)

// Files reads a kernel tree; *tree.Tree is one. A file that is not there gives
// fs.ErrNotExist.
type Files interface {
	ReadFile(name string) ([]byte, error)
}

// Change is a patch, and the tree after it.
type Change struct {
	Patch *series.Patch
	After Files
}

// Textual makes the checks of a patch that its text alone decides, in the order of
// the catalogue.
func Textual(c *Change) []Result {
	files, _, err := gitdiff.Parse(bytes.NewReader(c.Patch.Diff))
	if err != nil {
		// It was applied, so it parses.
		return []Result{{Name: Inline, Status: Skip, Summary: "the diff cannot be read: " + err.Error()}}
	}
	return []Result{signedOff(c.Patch), fixes(c.Patch), inline(files), selftests(files, c.After)}
}

func passed(name, summary string) Result { return Result{Name: name, Status: Pass, Summary: summary} }

// tag is one line of the trailer of a commit message.
var tag = regexp.MustCompile(`(?mi)^(signed-off-by|fixes):[ \t]*(.*?)[ \t]*$`)

func tags(patch *series.Patch, name string) []string {
	var values []string
	for _, match := range tag.FindAllStringSubmatch(patch.Message, -1) {
		if strings.EqualFold(match[1], name) {
			values = append(values, match[2])
		}
	}
	return values
}

// signedOff wants the author among those who signed off; a name or an address in
// common will do, as addresses change.
func signedOff(patch *series.Patch) Result {
	result := Result{Name: SignedOff, Status: Fail}
	if patch.Author == "" {
		result.Status = Skip
		result.Summary = "the patch is a bare diff: it names no author; make it with git format-patch"
		return result
	}
	signers := tags(patch, "Signed-off-by")
	if len(signers) == 0 {
		result.Summary = "no Signed-off-by line"
		return result
	}
	author := person(patch.Author)
	for _, signer := range signers {
		p := person(signer)
		if author.Address != "" && strings.EqualFold(p.Address, author.Address) || author.Name != "" && strings.EqualFold(p.Name, author.Name) {
			return passed(SignedOff, "by "+signer)
		}
	}
	result.Summary = fmt.Sprintf("the author, %s, has not signed off", patch.Author)
	return result
}

// person reads "Name <address>" as far as it can be read.
func person(text string) mail.Address {
	if address, err := mail.ParseAddress(text); err == nil {
		return *address
	}
	name, rest, found := strings.Cut(text, "<")
	address, _, _ := strings.Cut(rest, ">")
	if !found {
		return mail.Address{Name: strings.TrimSpace(text)}
	}
	return mail.Address{Name: strings.Trim(name, ` "`), Address: strings.TrimSpace(address)}
}

// fixesTag is a Fixes tag as Documentation/process/submitting-patches.rst wants
// it.
var fixesTag = regexp.MustCompile(`^([0-9a-f]{12,40}) \("(.+)"\)$`)

func fixes(patch *series.Patch) Result {
	result := Result{Name: Fixes, Status: Fail}
	all := tags(patch, "Fixes")
	for _, value := range all {
		if !fixesTag.MatchString(value) {
			result.Messages = append(result.Messages, Message{Text: "Fixes: " + value})
		}
	}
	switch {
	case len(result.Messages) > 0:
		result.Summary = `not of the form: Fixes: 123456789abc ("subject of the commit")`
		return result
	case len(all) > 0:
		return passed(Fixes, fmt.Sprintf("%d, well formed; whether the commits exist was not looked up", len(all)))
	case prefixHas(patch, "net"):
		// The net tree takes fixes only.
		result.Status = Warn
		result.Summary = "a patch for the net tree has no Fixes tag"
		return result
	}
	return passed(Fixes, "none")
}

// prefixHas tells whether a word is in the brackets before the subject.
func prefixHas(patch *series.Patch, word string) bool {
	return slices.Contains(words(patch.Prefix), word)
}

func words(prefix string) []string {
	return strings.FieldsFunc(prefix, func(r rune) bool { return r == ' ' || r == ',' || r == '\t' })
}

// inlineWord is the keyword in any of its spellings; comments and strings are left
// out as far as one line tells.
var (
	inlineWord = regexp.MustCompile(`\b(inline|__inline|__inline__|__always_inline)\b`)
	notCode    = regexp.MustCompile(`"(?:[^"\\]|\\.)*"|/\*.*?(?:\*/|$)|//.*$|^\s*\*.*$`)
)

func inline(files []*gitdiff.File) Result {
	result := Result{Name: Inline, Status: Fail}
	for _, file := range files {
		if !strings.HasSuffix(file.NewName, ".c") {
			continue
		}
		// A function that moves keeps its keyword.
		moved := 0
		eachLine(file, gitdiff.OpDelete, func(_ int, text string) {
			moved += len(inlineWord.FindAllString(notCode.ReplaceAllString(text, ""), -1))
		})
		eachLine(file, gitdiff.OpAdd, func(line int, text string) {
			for range inlineWord.FindAllString(notCode.ReplaceAllString(text, ""), -1) {
				if moved > 0 {
					moved--
					continue
				}
				result.Messages = append(result.Messages, Message{File: file.NewName, Line: line, Text: strings.TrimSpace(text)})
			}
		})
	}
	if len(result.Messages) == 0 {
		return passed(Inline, "none")
	}
	first := result.Messages[0]
	result.Summary = fmt.Sprintf("%s: the compiler decides better", first.Text)
	return result
}

// eachLine calls do for each line of a kind in a file's diff, with its number in
// the new file (of a deleted one, that of the next line).
func eachLine(file *gitdiff.File, kind gitdiff.LineOp, do func(line int, text string)) {
	for _, fragment := range file.TextFragments {
		number := int(fragment.NewPosition)
		for _, line := range fragment.Lines {
			if line.Op == kind {
				do(number, strings.TrimRight(line.Line, "\r\n"))
			}
			if line.New() {
				number++
			}
		}
	}
}

// selftestFolder is where the rules of selftests hold.
const selftestFolder = "tools/testing/selftests/"

// selftests looks after what is forgotten with a new selftest: the entry in the
// Makefile without which nobody runs it, that in .gitignore for a program, and the
// order of the config file, which keeps merges apart.
func selftests(files []*gitdiff.File, after Files) Result {
	result := Result{Name: Selftests, Status: Fail}
	touched := false
	fail := func(file string, line int, format string, args ...any) {
		result.Messages = append(result.Messages, Message{File: file, Line: line, Text: fmt.Sprintf(format, args...)})
	}
	for _, file := range files {
		name := file.NewName
		if !strings.HasPrefix(name, selftestFolder) {
			continue
		}
		touched = true
		dir, base := path.Split(name)
		extension := path.Ext(base)
		switch {
		case file.IsNew && (extension == ".sh" || extension == ".py" || extension == ".c"):
			target := base
			if extension == ".c" {
				target = strings.TrimSuffix(base, extension)
			}
			makefile := readOrEmpty(after, dir+"Makefile")
			if makefile == "" {
				continue // a library of another directory's tests
			}
			if !hasWord(makefile, target) && !hasWord(makefile, base) {
				fail(dir+"Makefile", 0, "does not name %s: nobody will run it", target)
				continue
			}
			if extension == ".c" && !ignores(readOrEmpty(after, dir+".gitignore"), target) {
				fail(dir+".gitignore", 0, "does not name %s, which is built in the source directory", target)
			}
		case base == "config":
			previous := ""
			for i, line := range strings.Split(readOrEmpty(after, name), "\n") {
				if strings.HasPrefix(line, "CONFIG_") {
					if line < previous && added(file, i+1) {
						fail(name, i+1, "%s is not in alphabetical order", line)
					}
					previous = line
				}
			}
		}
	}
	switch {
	case !touched:
		return passed(Selftests, "no selftest touched")
	case len(result.Messages) == 0:
		return passed(Selftests, "in order")
	}
	first := result.Messages[0]
	result.Summary = first.File + " " + first.Text
	return result
}

func readOrEmpty(files Files, name string) string {
	data, err := files.ReadFile(name)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return ""
	}
	return string(data)
}

// hasWord tells whether a Makefile names a target by itself, not as a part of a
// longer name.
func hasWord(makefile, target string) bool {
	return slices.ContainsFunc(strings.FieldsFunc(makefile, func(r rune) bool { return strings.ContainsRune(" \t\n\\:=()/", r) }),
		func(word string) bool { return word == target || word == target+".o" })
}

func ignores(gitignore, program string) bool {
	for line := range strings.Lines(gitignore) {
		line = strings.TrimPrefix(strings.TrimSpace(line), "/")
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		if matched, err := path.Match(line, program); err == nil && matched {
			return true
		}
	}
	return false
}

// added tells whether the diff of a file adds that line.
func added(file *gitdiff.File, line int) bool {
	found := false
	eachLine(file, gitdiff.OpAdd, func(number int, _ string) { found = found || number == line })
	return found
}
