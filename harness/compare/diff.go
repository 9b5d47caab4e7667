// SPDX-License-Identifier: BSD-3-Clause

package compare

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/zcvet/zcvet/harness/cost"
	"github.com/zcvet/zcvet/harness/fault"
	"github.com/zcvet/zcvet/harness/verdict"
)

// Outcome is what is known about one column: its run, the run in which the cases
// that differed from a neighbour's were repeated, and the one that measured costs,
// nil for none. Run itself may have measured them too.
type Outcome struct {
	Run   *verdict.Run
	Again *verdict.Run
	Cost  *verdict.Run
}

// measured is the run with the costs.
func (o Outcome) measured() *verdict.Run {
	if o.Cost != nil {
		return o.Cost
	}
	return o.Run
}

// HasResults tells whether a run got as far as saying something about every case.
// A run in which all cases were skipped did.
func HasResults(run *verdict.Run) bool {
	switch class(run) {
	case fault.None, fault.Test, fault.Crash:
		return len(run.Cases) > 0
	}
	return len(run.Cases) > 0 && !slices.ContainsFunc(run.Cases, func(c verdict.Case) bool {
		return strings.HasPrefix(c.Detail, verdict.NotRun)
	})
}

func class(run *verdict.Run) fault.Class { return fault.Class(run.Exit.Code) }

// Differing lists the ids of the cases whose results differ between two runs, in
// the order of the later one. They have to be run again before anything is said
// about them.
func Differing(before, after *verdict.Run) []string {
	var ids []string
	for _, pair := range pairs(Outcome{Run: before}, Outcome{Run: after}) {
		if kind, same := kindOf(pair.Before, pair.After); !same && kind != StillFailing {
			ids = append(ids, pair.ID)
		}
	}
	return ids
}

// Between compares two columns that have results.
//
// The later one is worse if there is a case, of level MUST unless strict, that
//
//   - passed before and does not any more;
//   - did not exist before and does not pass;
//   - passed before and is gone, though both columns speak one ABI. With another
//     ABI it may have lost its subject;
//
// or a complaint of the kernel that is new, unless it belongs to a case that
// failed before as well; or a new MUST finding; or a send that does not use the
// series and has become dearer. An unstable case counts for nothing.
func Between(before, after Outcome, strict bool) Step {
	step := Step{}
	sameABI := before.Run.Series.ABI == after.Run.Series.ABI
	counts := strictness(strict)
	still := map[string]bool{}
	for _, change := range pairs(before, after) {
		kind, same := kindOf(change.Before, change.After)
		if same {
			step.Counts.Same++
			continue
		}
		if kind != StillFailing && (!change.Before.Steady() || !change.After.Steady()) {
			kind = Unstable
		}
		change.Kind = kind
		matters := counts(change.Level)
		switch kind {
		case Fixed:
			step.Counts.Fixed++
		case Broken:
			step.Counts.Broken++
			change.Worse = matters
		case StillFailing:
			step.Counts.StillFailing++
			still[change.ID] = true
		case New:
			step.Counts.New++
			if change.After.Failed() {
				step.Counts.NewFailing++
				change.Worse = matters
			}
		case Gone:
			step.Counts.Gone++
			change.Worse = matters && sameABI && !change.Before.Failed()
		case Unstable:
			step.Counts.Unstable++
		}
		step.Changes = append(step.Changes, change)
	}
	step.Splats = splatChanges(before, after)
	step.Findings = findingChanges(before.Run, after.Run)
	step.Cost = cost.Compare(before.measured(), after.measured()).Rows
	step.judge(still, counts)
	return step
}

// strictness returns the rule which levels count.
func strictness(strict bool) func(verdict.Level) bool {
	return func(level verdict.Level) bool { return strict || level == verdict.Must }
}

// judge fills Worse and Reasons. Still has the cases that failed before as well.
func (s *Step) judge(still map[string]bool, counts func(verdict.Level) bool) {
	worse := map[Kind]int{}
	for _, change := range s.Changes {
		if change.Worse {
			worse[change.Kind]++
		}
	}
	for _, reason := range []struct {
		kind      Kind
		one, many string
	}{
		{Broken, "1 case passed before and fails now", "%d cases passed before and fail now"},
		{New, "1 case is new and fails", "%d cases are new and fail"},
		{Gone, "1 case passed before and does not run any more", "%d cases passed before and do not run any more"},
	} {
		switch count := worse[reason.kind]; {
		case count == 1:
			s.Reasons = append(s.Reasons, reason.one)
		case count > 1:
			s.Reasons = append(s.Reasons, fmt.Sprintf(reason.many, count))
		}
	}
	for _, change := range s.Splats {
		if change.Kind == New && !still[change.Splat.Case] {
			s.Reasons = append(s.Reasons, "the kernel complains: "+change.Splat.Title)
		}
	}
	for _, change := range s.Findings {
		if change.Kind == New && counts(change.Finding.Level) {
			s.Reasons = append(s.Reasons, change.Finding.Kind+": "+change.Finding.Title)
		}
	}
	if dearer := len(cost.Exceeding(s.Cost)); dearer > 0 {
		s.Reasons = append(s.Reasons, cost.Complaint(dearer))
	}
	s.Worse = len(s.Reasons) > 0
}

// pairs joins the cases of two columns by id, in the order of the later column;
// those that only the earlier one has follow. Kind and Worse are not set.
func pairs(before, after Outcome) []Change {
	old := index(before.Run)
	oldAgain, newAgain := index(before.Again), index(after.Again)
	var all []Change
	seen := map[string]bool{}
	add := func(c *verdict.Case, before, after *Result) {
		seen[c.ID] = true
		all = append(all, Change{
			ID: c.ID, Name: c.Name, Covers: c.Covers, Proto: c.Proto, Family: c.Family, Link: c.Link, Level: c.Level,
			Before: before, After: after,
		})
	}
	for i := range after.Run.Cases {
		c := &after.Run.Cases[i]
		add(c, result(old[c.ID], oldAgain[c.ID]), result(c, newAgain[c.ID]))
	}
	for i := range before.Run.Cases {
		if c := &before.Run.Cases[i]; !seen[c.ID] {
			add(c, result(c, oldAgain[c.ID]), nil)
		}
	}
	return all
}

func index(run *verdict.Run) map[string]*verdict.Case {
	byID := map[string]*verdict.Case{}
	if run != nil {
		for i := range run.Cases {
			byID[run.Cases[i].ID] = &run.Cases[i]
		}
	}
	return byID
}

func result(first, again *verdict.Case) *Result {
	if first == nil {
		return nil
	}
	return &Result{Status: first.Status, Detail: first.Detail, Again: result(again, nil)}
}

// kindOf tells what became of a case; same is true when there is nothing to tell.
func kindOf(before, after *Result) (kind Kind, same bool) {
	switch {
	case !before.Ran() && !after.Ran():
		return "", true
	case !before.Ran():
		return New, false
	case !after.Ran():
		return Gone, false
	case before.Failed() && after.Failed():
		return StillFailing, false
	case before.Failed():
		return Fixed, false
	case after.Failed():
		return Broken, false
	}
	return "", true
}

// splatChanges lists the complaints that only one column has. A report counts
// whether it came in the first run or in the repetition.
func splatChanges(before, after Outcome) []SplatChange {
	old, now := splats(before), splats(after)
	known := func(list []SplatChange, splat verdict.Splat) bool {
		return slices.ContainsFunc(list, func(other SplatChange) bool { return fingerprint(other.Splat) == fingerprint(splat) })
	}
	var changes []SplatChange
	for _, change := range now {
		if !known(old, change.Splat) {
			change.Kind = New
			changes = append(changes, change)
		}
	}
	for _, change := range old {
		if !known(now, change.Splat) {
			change.Kind = Gone
			changes = append(changes, change)
		}
	}
	return changes
}

// splats lists the complaints of a column, each once.
func splats(outcome Outcome) []SplatChange {
	var list []SplatChange
	for _, run := range []*verdict.Run{outcome.Run, outcome.Again} {
		if run == nil {
			continue
		}
		for _, splat := range run.Splats {
			i := slices.IndexFunc(list, func(other SplatChange) bool { return fingerprint(other.Splat) == fingerprint(splat) })
			if i < 0 {
				i = len(list)
				list = append(list, SplatChange{Splat: splat})
			}
			if run == outcome.Run {
				list[i].Count++
			}
		}
	}
	return list
}

// fingerprint names a complaint; runs of before there were fingerprints have the
// title.
func fingerprint(splat verdict.Splat) string { return cmp.Or(splat.Fingerprint, splat.Title) }

func findingChanges(before, after *verdict.Run) []FindingChange {
	has := func(run *verdict.Run, finding verdict.Finding) bool {
		return slices.ContainsFunc(run.Series.Findings, func(other verdict.Finding) bool {
			return other.Kind == finding.Kind && other.Title == finding.Title && other.File == finding.File
		})
	}
	var changes []FindingChange
	for _, finding := range after.Series.Findings {
		if !has(before, finding) {
			changes = append(changes, FindingChange{Kind: New, Finding: finding})
		}
	}
	for _, finding := range before.Series.Findings {
		if !has(after, finding) {
			changes = append(changes, FindingChange{Kind: Gone, Finding: finding})
		}
	}
	return changes
}
