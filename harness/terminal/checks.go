// SPDX-License-Identifier: BSD-3-Clause

package terminal

import (
	"fmt"
	"strings"

	"github.com/zcvet/zcvet/harness/check"
	"github.com/zcvet/zcvet/harness/report"
)

// maxMessages is how many messages of a check are shown; its log has all.
const maxMessages = 5

// Check prints the result of a check, in one line unless something is wrong. What
// passed shows only if it took work, or when verbose.
func (ui *UI) Check(result check.Result) {
	ui.endStep()
	if ui.options.Quiet && result.Status != check.Fail && result.Status != check.Warn {
		return
	}
	style := map[check.Status]style{check.Pass: green, check.Warn: yellow, check.Fail: red, check.Skip: dim}[result.Status]
	took := ""
	switch {
	case result.Cached:
		took = "  cached"
	case result.Seconds >= 0.05:
		took = "  " + report.Duration(result.Seconds)
	}
	ui.mu.Lock()
	defer ui.mu.Unlock()
	ui.line("  %s %-19s %s%s", ui.paint(style, fmt.Sprintf("%-4s", strings.ToUpper(string(result.Status)))), result.Name, clean(result.Summary), ui.paint(dim, took))
	if result.Status != check.Fail && result.Status != check.Warn {
		return
	}
	for i, message := range result.Messages {
		if i == maxMessages && !ui.options.Verbose {
			ui.line("       … and %d more", len(result.Messages)-i)
			break
		}
		text := message.Text
		if place := report.Place(message.File, message.Line); place != "" {
			text = place + ": " + text
		}
		if len(result.Messages) > 1 || !strings.Contains(result.Summary, text) {
			ui.line("       %s", clean(text))
		}
	}
	if result.Log != "" {
		ui.line("       %s", ui.paint(dim, clean(result.Log)))
	}
}

// Checks prints the verdict over a series: which checks failed for which patches,
// and the last line.
func (ui *UI) Checks(r *check.Report) {
	ui.endStep()
	ui.mu.Lock()
	defer ui.mu.Unlock()
	ui.line("")
	for i, row := range report.CheckTable(r) {
		var line strings.Builder
		for j, cell := range row {
			width := 5
			if j == 0 {
				width = 20
			}
			line.WriteString(fmt.Sprintf("%-*s", width, clean(cell)))
		}
		style := plain
		if i == 0 {
			style = bold
		}
		ui.line("%s", ui.paint(style, strings.TrimRight(line.String(), " ")))
	}
	ui.line("")
	style := green
	if r.Exit.Code != 0 {
		style = red
		if r.Command != "" && !ui.options.Quiet {
			ui.line("%s", ui.paint(dim, "repeat:  "+r.Command))
		}
	}
	ui.line("%s  %s", ui.paint(style, report.CheckWord(r)), clean(report.CheckLine(r)))
}
