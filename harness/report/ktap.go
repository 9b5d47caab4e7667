// SPDX-License-Identifier: BSD-3-Clause

package report

import (
	"bufio"
	"fmt"
	"io"
	"strings"

	"github.com/zcvet/zcvet/harness/verdict"
)

// WriteKTAP writes the run as KTAP version 1: one subtest per group of cases
// with one result per case and axes, then what was found outside the cases.
// Diagnostics stand before the result they explain.
func WriteKTAP(w io.Writer, run *verdict.Run) error {
	out := bufio.NewWriter(w)
	fmt.Fprintln(out, "KTAP version 1")
	for _, line := range []string{"kernel: " + run.Kernel.Version, "series: " + SeriesName(run), "machine: " + run.Machine.Accel, "repeat: " + run.Command} {
		if !strings.HasSuffix(line, ": ") {
			diagnose(out, "", line)
		}
	}

	names, cases := groups(run)
	extras := extraTests(run)
	fmt.Fprintf(out, "1..%d\n", len(names)+len(extras))
	number := 0
	for _, name := range names {
		number++
		fmt.Fprintln(out, "  KTAP version 1")
		fmt.Fprintf(out, "  # Subtest: %s\n", ktapName(name))
		fmt.Fprintf(out, "  1..%d\n", len(cases[name]))
		good, skipped := true, true
		for i, c := range cases[name] {
			good = good && (!Failed(c) || tolerated(run, c.Level))
			skipped = skipped && c.Status == verdict.Skip
			ktapCase(out, run, i+1, c)
		}
		directive := ""
		if skipped {
			directive = " # SKIP all skipped"
		}
		fmt.Fprintf(out, "%s %d %s%s\n", okay(good), number, ktapName(name), directive)
	}
	for _, extra := range extras {
		number++
		result, directive := "not ok", ""
		if extra.tolerated {
			result, directive = "ok", " # SKIP "+tolerance
		}
		diagnose(out, "", extra.detail)
		fmt.Fprintf(out, "%s %d %s%s\n", result, number, ktapName(extra.name), directive)
	}
	return out.Flush()
}

// extraTest is something wrong that no case stands for.
type extraTest struct {
	name, detail string
	// kind is "error", "finding" or "splat".
	kind      string
	tolerated bool
}

func extraTests(run *verdict.Run) []extraTest {
	var extras []extraTest
	if why, is := ended(run); is {
		extras = append(extras, extraTest{name: "run/" + run.Exit.Class, detail: why, kind: "error"})
	}
	for _, finding := range run.Series.Findings {
		detail := finding.Title
		for _, more := range []string{Place(finding.File, finding.Line), finding.Patch, finding.Detail} {
			if more != "" {
				detail += "\n" + more
			}
		}
		extras = append(extras, extraTest{name: "finding/" + finding.Kind, detail: detail, kind: "finding", tolerated: tolerated(run, finding.Level)})
	}
	for _, splat := range strays(run) {
		extras = append(extras, extraTest{name: "splat/" + splat.Kind, detail: splatLine(splat) + "\n" + splat.Text, kind: "splat"})
	}
	return extras
}

func ktapCase(out io.Writer, run *verdict.Run, number int, c *verdict.Case) {
	const indent = "  "
	if Failed(c) {
		diagnose(out, indent, c.Detail)
		for _, line := range c.Log {
			diagnose(out, indent, line)
		}
		for _, splat := range splatsOf(run, c.ID) {
			diagnose(out, indent, splatLine(splat))
		}
	}
	directive := ""
	switch c.Status {
	case verdict.Skip:
		directive = " # SKIP " + ktapReason(c.Detail)
	case verdict.Timeout:
		directive = " # TIMEOUT"
	case verdict.Crash:
		directive = " # ERROR the kernel crashed"
	}
	good := !Failed(c)
	if !good && tolerated(run, c.Level) {
		// Not XFAIL: kunit.py, the kernel's own reader, takes that for a
		// failure.
		good, directive = true, " # SKIP "+tolerance
	}
	fmt.Fprintf(out, "%s%s %d %s%s\n", indent, okay(good), number, ktapName(c.ID), directive)
}

func okay(good bool) string {
	if good {
		return "ok"
	}
	return "not ok"
}

// diagnose writes text as diagnostic lines.
func diagnose(out io.Writer, indent, text string) {
	for line := range strings.SplitSeq(strings.TrimSpace(cleanText(text)), "\n") {
		fmt.Fprintf(out, "%s# %s\n", indent, strings.TrimRight(line, " \r"))
	}
}

// ktapName keeps a name from being read as a directive or from ending its line.
func ktapName(name string) string {
	return strings.Join(strings.Fields(strings.ReplaceAll(name, "#", "_")), "_")
}

func ktapReason(reason string) string {
	return strings.Join(strings.Fields(strings.ReplaceAll(reason, "#", "no. ")), " ")
}
