// SPDX-License-Identifier: BSD-3-Clause

package report

import (
	"encoding/xml"
	"fmt"
	"io"
	"strings"

	"github.com/jstemmer/go-junit-report/v2/junit"

	"github.com/zcvet/zcvet/harness/verdict"
)

// WriteJUnit writes the run as JUnit XML: a suite per group of cases, and one
// named "zcvet" for what was found outside the cases. A crash and a time-out are
// errors, a failed expectation is a failure, as CI servers tell them apart.
func WriteJUnit(w io.Writer, run *verdict.Run) error {
	suites := junit.Testsuites{Name: "zcvet", Time: seconds(run.Seconds)}
	names, cases := groups(run)
	for _, name := range names {
		suite := junit.Testsuite{Name: "zcvet." + name, ID: len(suites.Suites), Timestamp: run.Started}
		var total int64
		for _, c := range cases[name] {
			total += c.MS
			suite.AddTestcase(junitCase(run, c))
		}
		suite.Time = seconds(float64(total) / 1000)
		properties(&suite, run)
		suites.AddSuite(suite)
	}
	if extras := extraTests(run); len(extras) > 0 {
		suite := junit.Testsuite{Name: "zcvet", ID: len(suites.Suites), Timestamp: run.Started, Time: seconds(0)}
		for _, extra := range extras {
			result := junitResult(extra.kind, extra.detail)
			test := junit.Testcase{Classname: "zcvet", Name: extra.name, Time: seconds(0)}
			switch {
			case extra.tolerated:
				test.Skipped = &junit.Result{Message: tolerance + ": " + result.Message}
			case extra.kind == "finding":
				test.Failure = result
			default:
				test.Error = result
			}
			suite.AddTestcase(test)
		}
		properties(&suite, run)
		suites.AddSuite(suite)
	}
	if _, err := io.WriteString(w, xml.Header); err != nil {
		return err
	}
	return suites.WriteXML(w)
}

func junitCase(run *verdict.Run, c *verdict.Case) junit.Testcase {
	test := junit.Testcase{
		Classname: "zcvet." + xmlText(group(c)),
		Name:      xmlText(strings.TrimPrefix(c.ID, group(c)+"/")),
		Time:      seconds(float64(c.MS) / 1000),
	}
	details := []string{c.Detail}
	if len(c.Covers) > 0 {
		details = append(details, fmt.Sprintf("%s, %s", strings.Join(c.Covers, " "), c.Level))
	}
	details = append(details, c.Log...)
	for _, splat := range splatsOf(run, c.ID) {
		details = append(details, splatLine(splat), splat.Text)
	}
	result := junitResult(string(c.Status), strings.Join(details, "\n"))
	if Failed(c) && tolerated(run, c.Level) {
		test.Skipped = &junit.Result{Message: tolerance + ": " + result.Message}
		return test
	}
	switch c.Status {
	case verdict.Skip:
		test.Skipped = &junit.Result{Message: xmlText(c.Detail)}
	case verdict.Fail:
		test.Failure = result
	case verdict.Crash, verdict.Timeout:
		test.Error = result
	}
	return test
}

func junitResult(kind, detail string) *junit.Result {
	return &junit.Result{Message: xmlText(firstLine(detail)), Type: kind, Data: xmlText(detail)}
}

func properties(suite *junit.Testsuite, run *verdict.Run) {
	for _, property := range [][2]string{
		{"kernel", run.Kernel.Version},
		{"kernel.id", run.Kernel.ID},
		{"series", SeriesName(run)},
		{"machine", run.Machine.Accel},
		{"command", run.Command},
	} {
		if property[1] != "" {
			suite.AddProperty(property[0], xmlText(property[1]))
		}
	}
}

func seconds(value float64) string { return fmt.Sprintf("%.3f", value) }

// xmlText replaces what XML 1.0 cannot hold: console text may have any byte.
func xmlText(text string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\t', r == '\n', r >= 0x20 && r <= 0xD7FF, r >= 0xE000 && r <= 0xFFFD, r >= 0x10000 && r <= 0x10FFFF:
			return r
		case r == '\r':
			return -1
		}
		return '\uFFFD'
	}, strings.ToValidUTF8(text, "\uFFFD"))
}
