// SPDX-License-Identifier: BSD-3-Clause

package report

import (
	"bufio"
	"fmt"
	"io"
	"strings"

	"github.com/zcvet/zcvet/harness/fault"
	"github.com/zcvet/zcvet/harness/verdict"
)

// WriteAnnotations writes what went wrong as GitHub workflow commands, which
// the runner turns into annotations. GitHub shows only the first ten errors and
// warnings of a step, so the gravest come first and failures are folded.
func WriteAnnotations(w io.Writer, run *verdict.Run) error {
	out := bufio.NewWriter(w)
	if why, is := ended(run); is {
		annotate(out, "error", "", 0, "zcvet: "+Word(run), why)
	}
	for i := range run.Splats {
		splat := &run.Splats[i]
		message := splatLine(splat)
		if splat.Case != "" {
			message += "\nwhile " + splat.Case + " ran"
		}
		annotate(out, "error", splat.File, splat.Line, splat.Title, message)
	}
	for _, finding := range run.Series.Findings {
		command := "error"
		if finding.Level == verdict.Should {
			command = "warning"
		}
		message := finding.Title
		if finding.Patch != "" {
			message += "\npatch: " + finding.Patch
		}
		if finding.Detail != "" {
			message += "\n" + finding.Detail
		}
		annotate(out, command, finding.File, finding.Line, finding.Kind, message)
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
		annotate(out, command, "", 0, title, message)
	}
	command := "notice"
	if fault.Class(run.Exit.Code) != fault.None {
		command = "error"
	}
	annotate(out, command, "", 0, "zcvet", Word(run)+": "+Line(run))
	return out.Flush()
}

func annotate(out io.Writer, command, file string, line int, title, message string) {
	var properties []string
	if file != "" {
		properties = append(properties, "file="+property(file))
		if line > 0 {
			properties = append(properties, fmt.Sprintf("line=%d", line))
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
