// SPDX-License-Identifier: BSD-3-Clause

package vet

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/zcvet/zcvet/guest/nic"
	"github.com/zcvet/zcvet/guest/trace"
	"github.com/zcvet/zcvet/harness/report"
	"github.com/zcvet/zcvet/harness/results"
	"github.com/zcvet/zcvet/harness/suite"
	"github.com/zcvet/zcvet/harness/verdict"
)

// Limits of what run.json repeats of the files; a run in which everything fails
// must still make a report that opens.
const (
	frameLines    = 24
	excerptsAKind = 2 // cases with excerpts, for each kind of failure
)

// keepEvidence stores what a report needs beside the verdict, and names it in the
// cases that did not pass.
func (a *Attempt) keepEvidence(p *Prepared, outcome *suite.Result) error {
	if p.Tree != nil {
		for i, patch := range p.Tree.Series.Patches {
			if err := a.directory.Keep(results.PatchName(i+1, patch.File), patch.Mail); err != nil {
				return err
			}
		}
	}
	style := trace.Style{Constant: a.Run.Series.Constant, ABI: a.Run.Series.ABI}
	for i := range a.Run.Cases {
		c := &a.Run.Cases[i]
		if c.Evidence == nil {
			continue
		}
		if record := outcome.Traces[c.ID]; record != nil {
			name := results.EvidenceName(c.ID, "calls.txt")
			text := strings.Join(record.Text(style), "\n") + "\n"
			if err := a.directory.Keep(name, []byte(text)); err != nil {
				return err
			}
			c.Evidence.CallsFile = name
		}
		if name := results.EvidenceName(c.ID, "pcapng"); a.directory.Has(name) {
			c.Evidence.Capture = name
		}
		if name := results.EvidenceName(c.ID, "descriptors.jsonl"); a.directory.Has(name) {
			c.Evidence.DescriptorFile = name
			data, err := a.directory.Read(name)
			if err != nil {
				return err
			}
			c.Evidence.Frames = lastFrames(data)
		}
	}
	programs := reproduction{
		directory: a.directory, run: a.Run, traces: outcome.Traces,
		command: a.options.caseCommand, name: results.ReproducerName,
	}
	if err := programs.keep(); err != nil {
		return err
	}
	dropExcerpts(a.Run)
	return nil
}

// lastFrames describes the end of a descriptor log.
func lastFrames(log []byte) []string {
	lines := slices.Collect(bytes.Lines(log))
	var text []string
	if cut := len(lines) - frameLines; cut > 0 {
		text = append(text, fmt.Sprintf("… %d frames before", cut))
		lines = lines[cut:]
	}
	for _, line := range lines {
		var logged struct {
			Port nic.Port `json:"port"`
			nic.Frame
		}
		if err := json.Unmarshal(line, &logged); err != nil {
			text = append(text, err.Error())
			continue
		}
		var places []string
		for _, segment := range logged.Segments {
			places = append(places, fmt.Sprintf("%#x+%d", segment.Address, segment.Length))
		}
		state := ""
		if logged.Held {
			state = " HELD"
		}
		text = append(text, fmt.Sprintf("%s #%d %s %d bytes, payload %d, gso %d/%d%s: %s",
			logged.Port, logged.Number, logged.Class, logged.Length, logged.Payload, logged.GSO, logged.GSOSize, state, strings.Join(places, " ")))
	}
	return text
}

// dropExcerpts leaves the excerpts to the first cases of each kind of failure. The
// files stay.
func dropExcerpts(run *verdict.Run) {
	keep := make(map[string]bool)
	for _, failure := range report.Fold(run) {
		for _, c := range failure.Cases[:min(len(failure.Cases), excerptsAKind)] {
			keep[c.ID] = true
		}
	}
	for i := range run.Cases {
		if c := &run.Cases[i]; c.Evidence != nil && !keep[c.ID] {
			c.Evidence.Calls, c.Evidence.Console, c.Evidence.Frames = nil, nil, nil
		}
	}
}

// quote adds the text of the lines of a splat that the series touched.
func (p *Prepared) quote(s verdict.Splat) verdict.Splat {
	if p.Tree == nil {
		return s
	}
	line := func(file string, number int) string {
		lines := strings.Split(string(p.Tree.Overlay[file]), "\n")
		if number < 1 || number > len(lines) {
			return ""
		}
		return lines[number-1]
	}
	if s.Patch != "" {
		s.Source = line(s.File, s.Line)
	}
	for i := range s.Frames {
		if frame := &s.Frames[i]; frame.Patch != "" {
			frame.Source = line(frame.File, frame.Line)
		}
	}
	return s
}

// belowHere is a directory of patches relative to the working directory, empty
// when it is not below it or is no directory.
func belowHere(place string) string {
	info, err := os.Stat(place)
	if err != nil || !info.IsDir() {
		return ""
	}
	here, err := os.Getwd()
	if err != nil {
		return ""
	}
	absolute, err := filepath.Abs(place)
	if err != nil {
		return ""
	}
	relative, err := filepath.Rel(here, absolute)
	if err != nil || relative == ".." || strings.HasPrefix(relative, "../") {
		return ""
	}
	return filepath.ToSlash(relative)
}
