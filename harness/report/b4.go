// SPDX-License-Identifier: BSD-3-Clause

package report

import (
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"path/filepath"
	"strings"

	"github.com/zcvet/zcvet/harness/contract"
	"github.com/zcvet/zcvet/harness/fault"
	"github.com/zcvet/zcvet/harness/verdict"
)

// b4Result is a result as b4's review hook (b4.review-series-check-cmd) reads it.
// b4 (as of 0.16) keeps one for each tool and mail, the last, so everything
// there is to say has to be in one.
type b4Result struct {
	Tool    string `json:"tool"`
	Status  string `json:"status"` // pass, warn or fail
	Summary string `json:"summary"`
	URL     string `json:"url"`
	// Details is text, or a JSON list of b4Detail in a string: b4 shows the
	// entries of one as it shows those of its own checks.
	Details string `json:"details"`
}

// b4Detail is one finding of a check.
type b4Detail struct {
	Status      string `json:"status"` // pass, warn or fail: its colour
	Context     string `json:"context"`
	State       string `json:"state"`
	Description string `json:"description"`
}

// maxB4 bounds how many failures are told.
const maxB4 = 20

// WriteB4 tells a run in the terms of b4: the verdict, with each complaint of the
// kernel, each fault of the patches and each kind of failure. Directory is where
// the results are, empty if they are nowhere; the URL leads to the report in it.
func WriteB4(w io.Writer, run *verdict.Run, directory string) error {
	result := b4Result{Tool: "zcvet", Status: "pass", Summary: Word(run) + ": " + Line(run), Details: run.Exit.Error}
	if len(run.Cases) == 0 && run.Exit.Error != "" {
		result.Summary = Word(run) + ": " + firstLine(run.Exit.Error)
	}
	if absolute, err := filepath.Abs(directory); err == nil && directory != "" {
		result.URL = (&url.URL{Scheme: "file", Path: absolute + "/report.html"}).String()
	}
	details := b4Details(run)
	switch {
	case fault.Class(run.Exit.Code) == fault.Infrastructure || fault.Class(run.Exit.Code) == fault.Usage:
		result.Status = "warn" // nothing is known about the series
	case fault.Class(run.Exit.Code) != fault.None:
		result.Status = "fail"
	case len(details) > 0:
		result.Status = "warn" // SHOULD alone
	}
	if len(details) > 0 {
		text, err := json.Marshal(details)
		if err != nil {
			return err
		}
		result.Details = string(text)
	}
	return contract.Write(w, []b4Result{result})
}

func b4Details(run *verdict.Run) []b4Detail {
	status := func(level verdict.Level) string {
		if level == verdict.Should {
			return "warn"
		}
		return "fail"
	}
	var details []b4Detail
	for i := range run.Splats {
		details = append(details, b4Detail{"fail", "kernel", "splat", splatLine(&run.Splats[i])})
	}
	for _, finding := range run.Series.Findings {
		details = append(details, b4Detail{status(finding.Level), finding.Kind, "finding", finding.Title})
	}
	for _, failure := range Fold(run) {
		context := failure.Name
		if len(failure.Covers) > 0 {
			context += " [" + strings.Join(failure.Covers, " ") + "]"
		}
		description := failure.Detail
		if axes := Axes(failure.Cases); axes != "" {
			description = "on " + axes + ": " + description
		}
		details = append(details, b4Detail{status(failure.Level), context, string(failure.Status), description})
	}
	if len(details) > maxB4 {
		rest := b4Detail{"fail", "zcvet", "more", fmt.Sprintf("%d more, see the report", len(details)-maxB4)}
		details = append(details[:maxB4], rest)
	}
	return details
}
