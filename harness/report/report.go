// SPDX-License-Identifier: BSD-3-Clause

// Package report writes a verdict in the forms that others read: KTAP for the
// kernel's own tools, JUnit for CI servers, Markdown for job summaries, workflow
// commands for GitHub. All are made from [verdict.Run] alone, so that a stored
// run.json can be rendered again.
package report

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/zcvet/zcvet/harness/fault"
	"github.com/zcvet/zcvet/harness/verdict"
)

// Word is the verdict in a word or two.
func Word(run *verdict.Run) string {
	switch fault.Class(run.Exit.Code) {
	case fault.None:
		return "PASS"
	case fault.Test:
		return "FAIL"
	case fault.Apply:
		return "DOES NOT APPLY"
	case fault.Build:
		return "BUILD FAILED"
	case fault.Boot:
		return "NO BOOT"
	case fault.Crash:
		return "CRASH"
	}
	return "ERROR"
}

// Counts says how many cases ended how: "412 passed, 0 failed, 96 skipped", and
// the rarer ends only where they occurred.
func Counts(totals verdict.Totals) string {
	text := fmt.Sprintf("%d passed, %d failed, %d skipped", totals.Pass, totals.Fail, totals.Skip)
	if totals.Crash > 0 {
		text += fmt.Sprintf(", %d crashed", totals.Crash)
	}
	if totals.Timeout > 0 {
		text += fmt.Sprintf(", %d timed out", totals.Timeout)
	}
	return text
}

// Line is the verdict in one line, without the word in front.
func Line(run *verdict.Run) string {
	var parts []string
	if len(run.Cases) > 0 {
		parts = append(parts, Counts(run.Totals))
	}
	if run.Kernel.Version != "" {
		parts = append(parts, "kernel "+run.Kernel.Version)
	}
	if name := SeriesName(run); name != "" {
		parts = append(parts, "series "+name)
	}
	if run.Machine.Accel != "" {
		parts = append(parts, run.Machine.Accel)
	}
	return strings.Join(append(parts, Duration(run.Seconds)), "  ")
}

// SeriesName is what to call the series in one line; empty for none.
func SeriesName(run *verdict.Run) string {
	s := &run.Series
	switch {
	case len(s.Patches) == 0:
		return ""
	case s.Name == "":
		return s.Spec
	case s.Revision > 1:
		return fmt.Sprintf("%s v%d", s.Name, s.Revision)
	}
	return s.Name
}

// Duration formats seconds as a person says them: "28.4 s", "4 min 12 s".
func Duration(seconds float64) string {
	if seconds < 100 {
		return fmt.Sprintf("%.1f s", seconds)
	}
	d := time.Duration(seconds * float64(time.Second)).Round(time.Second)
	if d < time.Hour {
		return fmt.Sprintf("%d min %d s", int(d.Minutes()), int(d.Seconds())%60)
	}
	return fmt.Sprintf("%d h %d min", int(d.Hours()), int(d.Minutes())%60)
}

// Plural is a number with its noun: "1 id", "3 ids".
func Plural(count int, noun string) string {
	if count == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", count, noun)
}

// Failed tells whether the case did not do what it should have.
func Failed(c *verdict.Case) bool {
	return c.Status == verdict.Fail || c.Status == verdict.Crash || c.Status == verdict.Timeout
}

// tolerated tells whether a failure or finding of that level did not fail the
// run: formats in which a failure always means red must not show it as one.
func tolerated(run *verdict.Run, level verdict.Level) bool {
	return level == verdict.Should && fault.Class(run.Exit.Code) == fault.None
}

// tolerance is the reason given for them.
const tolerance = "failed, but SHOULD only: the run does not fail"

// Folded is one failure on all the axes it was seen on.
type Folded struct {
	Name   string
	Covers []string
	Level  verdict.Level
	Status verdict.Status
	// Detail and Log are those of the first case.
	Detail string
	Log    []string
	Cases  []verdict.Case
}

// numbers differ between the axes of one failure: ports, ids, lengths.
var numbers = regexp.MustCompile(`0x[0-9a-f]+|\d+`)

// Fold groups the failed cases of a run: cases of one name that failed in the
// same way, numbers aside, are one entry. MUST failures come first, and in them
// crashes.
func Fold(run *verdict.Run) []Folded {
	var folded []Folded
	index := make(map[string]int)
	for i := range run.Cases {
		c := &run.Cases[i]
		if !Failed(c) {
			continue
		}
		key := strings.Join([]string{c.Name, string(c.Status), string(c.Level), numbers.ReplaceAllString(c.Detail, "#")}, "\x00")
		at, known := index[key]
		if !known {
			at = len(folded)
			index[key] = at
			folded = append(folded, Folded{Name: c.Name, Covers: c.Covers, Level: c.Level, Status: c.Status, Detail: c.Detail, Log: c.Log})
		}
		folded[at].Cases = append(folded[at].Cases, *c)
	}
	rank := func(f Folded) int {
		rank := map[verdict.Status]int{verdict.Crash: 0, verdict.Timeout: 1, verdict.Fail: 2}[f.Status]
		if f.Level == verdict.Should {
			rank += 10
		}
		return rank
	}
	slices.SortStableFunc(folded, func(a, b Folded) int { return rank(a) - rank(b) })
	return folded
}

// Axes names where the cases ran: "tcp, udp × ipv4, ipv6 × nic" when they fill
// the product, one by one when they do not, "" when the case has no axes.
func Axes(cases []verdict.Case) string {
	var protos, families, links, each []string
	collect := func(list *[]string, value string) {
		if value != "" && !slices.Contains(*list, value) {
			*list = append(*list, value)
		}
	}
	for _, c := range cases {
		collect(&protos, c.Proto)
		collect(&families, c.Family)
		collect(&links, c.Link)
		collect(&each, strings.Join(strings.Fields(c.Proto+" "+c.Family+" "+c.Link), "/"))
	}
	if len(each) > 1 && max(len(protos), 1)*max(len(families), 1)*max(len(links), 1) == len(each) {
		var parts []string
		for _, axis := range [][]string{protos, families, links} {
			if len(axis) > 0 {
				parts = append(parts, strings.Join(axis, ", "))
			}
		}
		return strings.Join(parts, " × ")
	}
	return strings.Join(each, ", ")
}

// Skips are the skipped cases that gave one reason.
type Skips struct {
	Reason string
	Names  []string // of the cases, each once
	Count  int      // of the instances
}

// FoldSkips groups the skipped cases by reason, the most frequent first.
func FoldSkips(run *verdict.Run) []Skips {
	var skips []Skips
	index := make(map[string]int)
	for i := range run.Cases {
		c := &run.Cases[i]
		if c.Status != verdict.Skip {
			continue
		}
		at, known := index[c.Detail]
		if !known {
			at = len(skips)
			index[c.Detail] = at
			skips = append(skips, Skips{Reason: c.Detail})
		}
		skips[at].Count++
		if !slices.Contains(skips[at].Names, c.Name) {
			skips[at].Names = append(skips[at].Names, c.Name)
		}
	}
	slices.SortStableFunc(skips, func(a, b Skips) int { return b.Count - a.Count })
	return skips
}

// Place is "file:line", or as much of it as is known.
func Place(file string, line int) string {
	if file == "" || line == 0 {
		return file
	}
	return fmt.Sprintf("%s:%d", file, line)
}

// group is the part of a case's name by which cases are filed.
func group(c *verdict.Case) string {
	if before, _, found := strings.Cut(c.Name, "/"); found {
		return before
	}
	if c.Name == "" {
		return "cases"
	}
	return c.Name
}

// groups returns the cases by group, in the order in which groups ran first.
func groups(run *verdict.Run) (names []string, cases map[string][]*verdict.Case) {
	cases = make(map[string][]*verdict.Case)
	for i := range run.Cases {
		c := &run.Cases[i]
		name := group(c)
		if cases[name] == nil {
			names = append(names, name)
		}
		cases[name] = append(cases[name], c)
	}
	return names, cases
}

// splatsOf returns the splats of a case.
func splatsOf(run *verdict.Run, id string) []*verdict.Splat {
	var splats []*verdict.Splat
	for i := range run.Splats {
		if run.Splats[i].Case == id && id != "" {
			splats = append(splats, &run.Splats[i])
		}
	}
	return splats
}

// strays returns the splats that no failed case accounts for.
func strays(run *verdict.Run) []*verdict.Splat {
	failed := make(map[string]bool)
	for i := range run.Cases {
		if Failed(&run.Cases[i]) {
			failed[run.Cases[i].ID] = true
		}
	}
	var splats []*verdict.Splat
	for i := range run.Splats {
		if !failed[run.Splats[i].Case] {
			splats = append(splats, &run.Splats[i])
		}
	}
	return splats
}

// ended tells whether the run ended before its cases were through, and is the
// error that ended it.
func ended(run *verdict.Run) (string, bool) {
	switch fault.Class(run.Exit.Code) {
	case fault.None, fault.Test:
		return "", false
	case fault.Crash:
		return run.Exit.Error, run.Totals.Crash == 0 && len(run.Splats) == 0
	}
	return run.Exit.Error, true
}

// splatLine is a splat in one line, with where and whose it is.
func splatLine(s *verdict.Splat) string {
	text := s.Title
	if place := Place(s.File, s.Line); place != "" {
		text += " at " + place
	}
	if s.Patch != "" {
		text += ", last touched by \"" + s.Patch + "\""
	}
	return text
}

func firstLine(text string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(text), "\n")
	return line
}
