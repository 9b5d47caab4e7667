// SPDX-License-Identifier: BSD-3-Clause

package report

import (
	"bufio"
	"fmt"
	"io"
	"path"
	"strings"

	"github.com/zcvet/zcvet/harness/fault"
	"github.com/zcvet/zcvet/harness/verdict"
)

// WriteAnnotations writes what went wrong as GitHub workflow commands, which
// the runner turns into annotations. GitHub shows only the first ten of each kind
// of a step, so the gravest come first and failures are folded. It shows them at
// lines of files in the checkout: those of the patches, if the series is there.
func WriteAnnotations(w io.Writer, run *verdict.Run) error {
	out := bufio.NewWriter(w)
	diffs := Diffs(run)
	if why, is := ended(run); is {
		annotate(out, "error", spot{}, "zcvet: "+Word(run), why)
	}
	for i := range run.Splats {
		splat := &run.Splats[i]
		message := splatLine(splat)
		if splat.Case != "" {
			message += "\nwhile " + splat.Case + " ran"
		}
		annotate(out, "error", spotOf(run, diffs, splat.Patch, splat.File, splat.Line, splat.Source), splat.Title, message)
	}
	for _, finding := range run.Series.Findings {
		command := "error"
		if finding.Level == verdict.Should {
			command = "warning"
		}
		message := finding.Title
		if place := Place(finding.File, finding.Line); place != "" {
			message += " at " + place
		}
		if finding.Patch != "" {
			message += "\npatch: " + finding.Patch
		}
		if finding.Detail != "" {
			message += "\n" + finding.Detail
		}
		annotate(out, command, spotOf(run, diffs, finding.Patch, finding.File, finding.Line, ""), finding.Kind, message)
	}
	for _, failure := range Fold(run) {
		command := "error"
		if failure.Level == verdict.Should {
			command = "warning"
		}
		title := fmt.Sprintf("%s %s", failure.Name, failure.Status)
		message := failure.Detail
		if axes := Axes(failure.Cases); axes != "" {
			message = axes + ": " + message
		}
		if len(failure.Covers) > 0 {
			message += " [" + strings.Join(failure.Covers, " ") + "]"
		}
		annotate(out, command, spot{}, title, message)
	}
	for _, uncovered := range uncoveredSpots(run, diffs) {
		annotate(out, "notice", uncovered, "not executed", "no case executed what this adds")
	}
	command := "notice"
	if fault.Class(run.Exit.Code) != fault.None {
		command = "error"
	}
	annotate(out, command, spot{}, "zcvet", Word(run)+": "+Line(run))
	return out.Flush()
}

// spot is where an annotation belongs, in a file of the checkout; the zero value
// is nowhere.
type spot struct {
	file        string
	first, last int // lines
}

// spotOf finds the line of the patch file that adds a line of the kernel, which is
// in no checkout of a series.
func spotOf(run *verdict.Run, diffs []Diff, patch, file string, number int, text string) spot {
	for i := range diffs {
		if d := &diffs[i]; patch != "" && d.Patch.Subject == patch {
			if line := d.find(file, number, text); line != nil {
				return d.spot(run, line)
			}
		}
	}
	return spot{}
}

// spot is where a line of the patch is, nowhere if its file is not at hand.
func (d *Diff) spot(run *verdict.Run, line *DiffLine) spot {
	if run.Series.Directory == "" || d.Patch.DiffLine == 0 {
		return spot{}
	}
	at := d.Patch.DiffLine + line.At - 1
	return spot{path.Join(run.Series.Directory, d.Patch.File), at, at}
}

// uncoveredSpots are the lines that no case executed, neighbours together.
func uncoveredSpots(run *verdict.Run, diffs []Diff) []spot {
	var spots []spot
	for i := range diffs {
		d := &diffs[i]
		for _, file := range d.Files {
			for _, line := range d.added(file.Name) {
				if !line.Executable || line.Count > 0 {
					continue
				}
				at := d.spot(run, line)
				if last := len(spots) - 1; last >= 0 && spots[last].file == at.file && spots[last].last+1 == at.first {
					spots[last].last = at.last
				} else if at.file != "" {
					spots = append(spots, at)
				}
			}
		}
	}
	return spots
}

func annotate(out io.Writer, command string, at spot, title, message string) {
	var properties []string
	if at.file != "" {
		properties = append(properties, "file="+property(at.file), fmt.Sprintf("line=%d", at.first))
		if at.last > at.first {
			properties = append(properties, fmt.Sprintf("endLine=%d", at.last))
		}
	}
	properties = append(properties, "title="+property(title))
	fmt.Fprintf(out, "::%s %s::%s\n", command, strings.Join(properties, ","), data(message))
}

// data escapes the message of a workflow command.
func data(text string) string {
	return strings.NewReplacer("%", "%25", "\r", "%0D", "\n", "%0A").Replace(text)
}

// property escapes a property of a workflow command, where the separators mean
// something too.
func property(text string) string {
	return strings.NewReplacer("%", "%25", "\r", "%0D", "\n", "%0A", ":", "%3A", ",", "%2C").Replace(text)
}
