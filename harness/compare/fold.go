// SPDX-License-Identifier: BSD-3-Clause

package compare

import (
	"regexp"
	"slices"
	"strings"

	"github.com/zcvet/zcvet/harness/verdict"
)

// Folded is one change on all the axes it was seen on.
type Folded struct {
	// Change is that of the first case.
	Change
	// Cases are all of them, with results as in the later column, or the earlier
	// one if that lacks them.
	Cases []verdict.Case
}

// numbers differ between the axes of one failure: ports, ids, lengths.
var numbers = regexp.MustCompile(`0x[0-9a-f]+|\d+`)

// Fold groups the changes of one kind: cases of one name that ended in the same
// way in both columns, numbers aside, are one entry. What counts against the later
// column comes first.
func (s *Step) Fold(kind Kind) []Folded {
	var folded []Folded
	known := map[string]int{}
	for _, change := range s.Changes {
		if change.Kind != kind {
			continue
		}
		key := strings.Join([]string{change.Name, string(change.Level), change.Before.key(), change.After.key()}, "\x00")
		at, ok := known[key]
		if !ok {
			at = len(folded)
			known[key] = at
			folded = append(folded, Folded{Change: change})
		}
		folded[at].Cases = append(folded[at].Cases, change.caseOf())
	}
	slices.SortStableFunc(folded, func(a, b Folded) int { return rank(a.Change) - rank(b.Change) })
	return folded
}

func rank(c Change) int {
	if c.Worse {
		return 0
	}
	return 1
}

// key is what two results that look alike have in common.
func (r *Result) key() string {
	if r == nil {
		return "-"
	}
	return string(r.Status) + " " + numbers.ReplaceAllString(r.Detail, "#") + " " + r.Again.key()
}

func (c *Change) caseOf() verdict.Case {
	out := verdict.Case{ID: c.ID, Name: c.Name, Covers: c.Covers, Proto: c.Proto, Family: c.Family, Link: c.Link, Level: c.Level}
	result := c.After
	if result == nil {
		result = c.Before
	}
	if result != nil {
		out.Status, out.Detail = result.Status, result.Detail
	}
	return out
}
