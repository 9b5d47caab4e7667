// SPDX-License-Identifier: BSD-3-Clause

package report

import (
	"io"
	"path/filepath"
	"strings"

	"github.com/zcvet/zcvet/harness/contract"
	"github.com/zcvet/zcvet/harness/fault"
	"github.com/zcvet/zcvet/harness/verdict"
)

// B4Check is one result as b4's review hook (b4.review-series-check-cmd) reads it.
type B4Check struct {
	Tool    string `json:"tool"`
	Status  string `json:"status"` // pass, warn or fail
	Summary string `json:"summary"`
	URL     string `json:"url"`
	Details string `json:"details"`
}

// maxB4 bounds how many failures are told one by one.
const maxB4 = 20

// B4Checks tells a run in the terms of b4: the verdict first, then each complaint
// of the kernel, each fault of the patches and each kind of failure. Directory is
// where the results are; the URL leads to the report in it.
func B4Checks(run *verdict.Run, directory string) []B4Check {
	url := ""
	if absolute, err := filepath.Abs(directory); err == nil && directory != "" {
		url = "file://" + absolute + "/report.html"
	}
	status := func(level verdict.Level) string {
		if level == verdict.Should {
			return "warn"
		}
		return "fail"
	}
	verdictStatus := "pass"
	switch {
	case fault.Class(run.Exit.Code) == fault.Infrastructure || fault.Class(run.Exit.Code) == fault.Usage:
		verdictStatus = "warn" // nothing is known about the series
	case fault.Class(run.Exit.Code) != fault.None:
		verdictStatus = "fail"
	}
	checks := []B4Check{{Tool: "zcvet", Status: verdictStatus, Summary: Word(run) + ": " + Line(run), URL: url, Details: run.Exit.Error}}
	add := func(status, summary, details string) {
		if len(checks) <= maxB4 {
			checks = append(checks, B4Check{Tool: "zcvet", Status: status, Summary: summary, URL: url, Details: details})
		}
	}
	for i := range run.Splats {
		add("fail", splatLine(&run.Splats[i]), run.Splats[i].Text)
	}
	for _, finding := range run.Series.Findings {
		add(status(finding.Level), finding.Kind+": "+finding.Title, finding.Detail)
	}
	for _, failure := range Fold(run) {
		summary := failure.Name + " " + string(failure.Status)
		if len(failure.Covers) > 0 {
			summary += " [" + strings.Join(failure.Covers, " ") + "]"
		}
		details := failure.Detail
		if axes := Axes(failure.Cases); axes != "" {
			details = "on " + axes + "\n" + details
		}
		add(status(failure.Level), summary, details)
	}
	return checks
}

// WriteB4 writes checks as b4 reads them.
func WriteB4(w io.Writer, checks []B4Check) error {
	return contract.Write(w, checks)
}
