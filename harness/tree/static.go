// SPDX-License-Identifier: BSD-3-Clause

package tree

import (
	"fmt"
	"io/fs"
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/zcvet/zcvet/harness/fault"
	"github.com/zcvet/zcvet/harness/verdict"
)

// Static is a case that needs no machine: it reads the patched source.
type Static struct {
	Name   string
	Doc    string
	Covers []string // checklist ids
	Level  verdict.Level

	faults func(*Tree) []string
}

// StaticCases lists the static cases in the order of their names.
var StaticCases = []Static{
	{
		Name:   layoutCase,
		Doc:    "the structures of the notification interface have the same layout on 32 and 64 bit",
		Covers: []string{"N18"}, Level: verdict.Must,
		faults: func(t *Tree) []string { return t.layoutFaults },
	},
	{
		Name:   numbersCase,
		Doc:    "the numbers that the series adds are taken on no architecture, and SCM_ZC_NOTIFICATION is there on all",
		Covers: []string{"N18"}, Level: verdict.Must,
		faults: func(t *Tree) []string { return t.numberFaults },
	},
}

const (
	layoutCase  = "series/uapi-layout"
	numbersCase = "series/uapi-numbers"
)

// Result is what the case says about a tree. Without the source, or without the
// notification interface in it, the case is skipped.
func (s Static) Result(t *Tree) verdict.Case {
	result := verdict.Case{ID: s.Name, Name: s.Name, Covers: s.Covers, Level: s.Level, Status: verdict.Pass}
	switch {
	case t == nil || t.Kernel.Image != "":
		result.Status, result.Detail = verdict.Skip, "the kernel was built elsewhere, its source is not at hand"
	case len(s.faults(t)) > 0:
		result.Status, result.Detail = verdict.Fail, strings.Join(s.faults(t), "\n")
	case t.Constant == 0:
		result.Status, result.Detail = verdict.Skip, "the kernel's headers define no SCM_ZC_NOTIFICATION"
	}
	return result
}

// examineNumbers fills numberFaults: collisions, and architectures that lack the
// number.
func (t *Tree) examineNumbers(pristine *os.Root, read func(string) (string, error)) error {
	for i := range t.Findings {
		if t.Findings[i].Kind == KindCollision {
			t.Findings[i].Case = numbersCase
			t.numberFaults = append(t.numberFaults, t.Findings[i].Detail)
		}
	}
	if t.Constant == 0 {
		return nil
	}
	headers, err := fs.Glob(pristine.FS(), "arch/*/include/uapi/asm/socket.h")
	if err != nil {
		return fault.New(fault.Infrastructure, "kernel source: %w", err)
	}
	for _, name := range headers {
		text, err := read(name)
		if err != nil {
			return err
		}
		if genericIncluded.MatchString(text) || text == "" {
			continue
		}
		if parseDefines(text).value("SCM_ZC_NOTIFICATION") == 0 {
			architecture := strings.Split(name, "/")[1]
			t.numberFaults = append(t.numberFaults, fmt.Sprintf(
				"%s does not define SCM_ZC_NOTIFICATION and includes no header that does: the kernel does not compile for %s", name, architecture))
		}
	}
	return nil
}

var genericIncluded = regexp.MustCompile(`(?m)^\s*#\s*include\s*[<"]asm-generic/socket\.h[>"]`)

// notificationStructures are the structures that the published revisions hand to
// the caller.
var notificationStructures = []string{"zc_info_elem", "zc_info"}

// sameEverywhere are the types whose size and alignment every architecture agrees
// on. A 64-bit number is aligned to 4 bytes on some and to 8 on others.
var sameEverywhere = regexp.MustCompile(`^(__)?([us]8|[us]16|[us]32|u?int(8|16|32)_t|[bl]e(16|32)|aligned_u64)$|^(unsigned |signed )?char$|^(unsigned |signed )?short$|^(unsigned |signed )?int$|^unsigned$`)

// member matches one declaration within a structure.
var member = regexp.MustCompile(`(?s)^\s*(?:struct\s+(\w+)|([A-Za-z_][\w\s]*?))\s*(\*+)?\s*(\w+)\s*((?:\[[^\]]*\]\s*)*)(?:__\w+\([^)]*\)\s*)*$`)

// examineLayout fills layoutFaults from the text of the headers.
func (t *Tree) examineLayout(headers string) {
	code := withoutComments(headers)
	for _, name := range notificationStructures {
		start := structure(name).FindStringIndex(code)
		if start == nil {
			continue
		}
		body, _, closed := strings.Cut(code[start[1]:], "}")
		if !closed {
			continue
		}
		for declaration := range strings.SplitSeq(body, ";") {
			declaration = strings.TrimSpace(declaration)
			if declaration == "" {
				continue
			}
			if fault := layoutFault(declaration); fault != "" {
				t.layoutFaults = append(t.layoutFaults, fmt.Sprintf("struct %s, member %q: %s", name, strings.Join(strings.Fields(declaration), " "), fault))
			}
		}
	}
}

// layoutFault says why a member makes the layout differ, or nothing.
func layoutFault(declaration string) string {
	parts := member.FindStringSubmatch(declaration)
	switch {
	case parts == nil:
		return "not understood; only plain members of fixed width are the same on 32 and 64 bit for certain"
	case parts[3] != "":
		return "a pointer has 4 bytes in a 32-bit task and 8 in a 64-bit one"
	case parts[1] != "":
		if slices.Contains(notificationStructures, parts[1]) {
			return ""
		}
		return "a structure of unknown layout"
	case !sameEverywhere.MatchString(strings.Join(strings.Fields(parts[2]), " ")):
		return "a type that is wider or aligned otherwise on 64 bit than on 32"
	}
	return ""
}
