// SPDX-License-Identifier: BSD-3-Clause

package mutate

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/zcvet/zcvet/harness/contract"
	"github.com/zcvet/zcvet/harness/fault"
	"github.com/zcvet/zcvet/harness/verdict"
	"github.com/zcvet/zcvet/patches/mutants"
)

// Schema is the version of mutants.json. Fields are added, never renamed.
const Schema = 1

// Report is mutants.json: everything that is known at the end.
type Report struct {
	Schema   int             `json:"schema"`
	Command  string          `json:"command"`
	Started  string          `json:"started"` // RFC 3339
	Seconds  float64         `json:"seconds"`
	Kernel   verdict.Kernel  `json:"kernel"`
	Series   verdict.Series  `json:"series"`
	Machine  verdict.Machine `json:"machine"`
	Baseline *Baseline       `json:"baseline"` // nil if it was not reached
	Mutants  []Result        `json:"mutants"`
	// LeftOut are the mutants that do not show with this configuration.
	LeftOut []mutants.Mutant `json:"left_out"`
	Totals  Totals           `json:"totals"`
	Exit    verdict.Exit     `json:"exit"`
}

// Totals counts the mutants by verdict.
type Totals struct {
	Killed   int `json:"killed"`
	Survived int `json:"survived"`
}

// Decide fills Totals and Exit. Err is what ended the run early, or nil. A
// baseline that is not clean and a survivor both are of class Test.
func (r *Report) Decide(err error) fault.Class {
	r.Schema = Schema
	r.Totals = Totals{}
	for _, result := range r.Mutants {
		if result.Verdict == Killed {
			r.Totals.Killed++
		} else {
			r.Totals.Survived++
		}
	}
	class, why := fault.None, ""
	switch {
	case err != nil:
		class, why = fault.Of(err), err.Error()
	case r.Baseline != nil && len(r.Baseline.Failures) > 0:
		class, why = fault.Test, fmt.Sprintf("%d cases fail on the kernel without a fault", len(r.Baseline.Failures))
	case r.Totals.Survived > 0:
		class, why = fault.Test, fmt.Sprintf("%d of %d mutants survived", r.Totals.Survived, len(r.Mutants))
	}
	r.Exit = verdict.Exit{Class: class.String(), Code: class.ExitCode(), Error: why}
	return class
}

// Write stores r as indented JSON.
func (r *Report) Write(w io.Writer) error {
	return contract.Write(w, r)
}

// names joins the names of the cases of failures, each once and with the ids they
// cover.
func names(failures []Failure) string {
	var texts []string
	ids := map[string][]string{}
	for _, failure := range failures {
		if ids[failure.Name] == nil {
			texts = append(texts, failure.Name)
		}
		ids[failure.Name] = failure.IDs
	}
	for i, name := range texts {
		texts[i] = fmt.Sprintf("%s (%s)", name, strings.Join(ids[name], " "))
	}
	return strings.Join(texts, ", ")
}

// Why says in a few words what a survivor's cases did.
func (r *Result) Why() string {
	switch {
	case r.Reason != "":
		return r.Reason
	case len(r.Once) > 0:
		return "failed, but not when repeated: " + names(r.Once)
	case len(r.NoticedBy) > 0:
		return "noticed, but not by its ids: " + names(r.NoticedBy)
	}
	return fmt.Sprintf("%d cases that cover its ids passed", r.Ran-r.Skipped)
}

// WriteTable writes the table for a terminal, survivors last.
func (r *Report) WriteTable(w io.Writer) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "MUTANT\tIDS\tVERDICT\tBY")
	ordered := slices.Clone(r.Mutants)
	slices.SortStableFunc(ordered, func(a, b Result) int { return strings.Compare(string(a.Verdict), string(b.Verdict)) })
	for _, result := range ordered {
		by := result.Why()
		if result.Verdict == Killed {
			by = names(result.KilledBy)
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\n", result.Name, strings.Join(result.Covers, " "), result.Verdict, by)
	}
	return table.Flush()
}

// WriteMarkdown writes the table as a document.
func (r *Report) WriteMarkdown(w io.Writer) error {
	var text strings.Builder
	text.WriteString(`# What the cases can see

Mutants are kernels that are broken on purpose, each in one small way. A mutant
counts as killed if a case fails that covers one of the ids it was made for, and
fails again when it is repeated. One that shows only in a race between processors is
tried alone, up to three times until a case fails. A failed case with a kernel splat
covers R04 as well, because the harness looks for splats around every case.

`)
	fmt.Fprintf(&text, "Linux %s, %s, configuration %s. ", r.Kernel.Version, r.Machine.Accel, strings.Join(r.Kernel.Config, " "))
	if b := r.Baseline; b != nil {
		fmt.Fprintf(&text, "Without a fault %d of %d cases pass, %d fail, %d are skipped. ",
			b.Cases-b.Skipped-len(b.Failures), b.Cases, len(b.Failures), b.Skipped)
	}
	fmt.Fprintf(&text, "Of %d mutants %d are killed.\n\nThis file is written by `%s`.\n", len(r.Mutants), r.Totals.Killed, r.Command)
	if r.Baseline != nil {
		for _, failure := range r.Baseline.Failures {
			fmt.Fprintf(&text, "\n- fails without a fault: `%s`, %s", failure.Case, failure.Detail)
		}
	}
	for _, part := range []struct {
		title string
		area  mutants.Area
	}{{"SCM_ZC_NOTIFICATION", mutants.SCM}, {"MSG_ZEROCOPY", mutants.Zerocopy}} {
		var rows []Result
		for _, result := range r.Mutants {
			if result.Area == part.area {
				rows = append(rows, result)
			}
		}
		if len(rows) == 0 {
			continue
		}
		fmt.Fprintf(&text, "\n## %s\n\n| mutant | what it breaks | ids | killed by |\n|---|---|---|---|\n", part.title)
		for _, result := range rows {
			by := names(result.KilledBy)
			if result.Verdict != Killed {
				by = "**survived**: " + result.Why()
			}
			fmt.Fprintf(&text, "| `%s` | %s | %s | %s |\n", result.Name, cell(result.Breaks), strings.Join(result.Covers, " "), cell(by))
		}
	}
	if len(r.LeftOut) > 0 {
		text.WriteString("\n## Not seen with this configuration\n\n| mutant | what it breaks | ids | configuration |\n|---|---|---|---|\n")
		for _, m := range r.LeftOut {
			fmt.Fprintf(&text, "| `%s` | %s | %s | %s |\n", m.Name, cell(m.Breaks), strings.Join(m.Covers, " "), m.Config)
		}
	}
	_, err := io.WriteString(w, text.String())
	return err
}

func cell(text string) string { return strings.ReplaceAll(text, "|", "\\|") }
