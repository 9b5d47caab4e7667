// SPDX-License-Identifier: BSD-3-Clause

package check

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/zcvet/zcvet/harness/series"
	"github.com/zcvet/zcvet/harness/verdict"
)

const (
	// coverFrom is the number of patches from which netdev wants a cover letter.
	coverFrom = 3
	// maxPatches is the longest series netdev takes.
	maxPatches = 15
)

// Series makes the checks of the series as a whole, in the order of the catalogue.
// After is the tree with all patches, findings what was found when they were
// applied.
func Series(s *series.Series, before, after Files, findings []verdict.Finding) []Result {
	return []Result{cover(s), size(s), targetTree(s), uapi(before, after, findings)}
}

func cover(s *series.Series) Result {
	switch {
	case s.Cover != "":
		return passed(Cover, s.Name)
	case len(s.Patches) < coverFrom:
		return passed(Cover, fmt.Sprintf("not needed for %d", len(s.Patches)))
	}
	return Result{Name: Cover, Status: Fail, Summary: fmt.Sprintf("%d patches and no cover letter: git format-patch --cover-letter", len(s.Patches))}
}

func size(s *series.Series) Result {
	if len(s.Patches) > maxPatches {
		return Result{Name: Size, Status: Fail, Summary: fmt.Sprintf("%d patches, netdev takes %d at once: split the series", len(s.Patches), maxPatches)}
	}
	return passed(Size, fmt.Sprintf("%d", len(s.Patches)))
}

// targets are the trees that netdev patches can be for.
var targets = regexp.MustCompile(`^(net|net-next|bpf|bpf-next|ipsec|ipsec-next|nf|nf-next|wireless|wireless-next|bluetooth|bluetooth-next|can|can-next|mptcp|mptcp-next)$`)

func targetTree(s *series.Series) Result {
	var named []string
	isMail := false
	for i := range s.Patches {
		patch := &s.Patches[i]
		isMail = isMail || patch.Prefix != ""
		found := ""
		for _, word := range words(patch.Prefix) {
			if targets.MatchString(word) {
				found = word
			}
		}
		if !slices.Contains(named, found) {
			named = append(named, found)
		}
	}
	result := Result{Name: Tree, Status: Fail}
	switch {
	case !isMail:
		result.Status = Skip
		result.Summary = "the patches have no subject prefix; make them with git format-patch --subject-prefix='PATCH net-next'"
	case slices.Contains(named, ""):
		result.Summary = "a subject does not name the tree: git format-patch --subject-prefix='PATCH net-next'"
	case len(named) > 1:
		result.Summary = "the subjects name several trees: " + strings.Join(named, ", ")
	default:
		return passed(Tree, named[0])
	}
	return result
}

// genericHeader defines the socket numbers of most architectures; ownHeaders are
// those of the others, which do not include it. They have to follow it by hand.
const genericHeader = "include/uapi/asm-generic/socket.h"

var ownHeaders = []string{
	"arch/alpha/include/uapi/asm/socket.h", "arch/mips/include/uapi/asm/socket.h",
	"arch/parisc/include/uapi/asm/socket.h", "arch/sparc/include/uapi/asm/socket.h",
}

// socketNumber is a number of that header.
var socketNumber = regexp.MustCompile(`(?m)^[ \t]*#[ \t]*define[ \t]+((?:SO|SCM)_\w+)[ \t]+\S`)

func uapi(before, after Files, findings []verdict.Finding) Result {
	result := Result{Name: Uapi, Status: Fail}
	for _, finding := range findings {
		if finding.Level == verdict.Must && finding.File != "" {
			result.Messages = append(result.Messages, Message{File: finding.File, Line: finding.Line, Text: finding.Title})
		}
	}
	old := socketNumbers(readOrEmpty(before, genericHeader))
	count := 0
	for _, name := range socketNumbers(readOrEmpty(after, genericHeader)) {
		if slices.Contains(old, name) {
			continue
		}
		count++
		for _, header := range ownHeaders {
			text := readOrEmpty(after, header)
			if text != "" && !slices.Contains(socketNumbers(text), name) {
				result.Messages = append(result.Messages, Message{File: header, Text: "does not define " + name})
			}
		}
	}
	switch {
	case len(result.Messages) > 0:
		result.Summary = result.Messages[0].File + ": " + result.Messages[0].Text
		return result
	case count == 0:
		return passed(Uapi, "no socket number added")
	}
	return passed(Uapi, fmt.Sprintf("%d added, on all architectures", count))
}

func socketNumbers(header string) []string {
	var names []string
	for _, match := range socketNumber.FindAllStringSubmatch(header, -1) {
		names = append(names, match[1])
	}
	return names
}
