// SPDX-License-Identifier: BSD-3-Clause

// Package page writes report.html: results as one file that a browser shows
// without asking anybody for anything more.
package page

import (
	"embed"
	"fmt"
	"html/template"
	"io"
	"strings"

	"github.com/zcvet/zcvet/harness/compare"
	"github.com/zcvet/zcvet/harness/report"
	"github.com/zcvet/zcvet/harness/verdict"
)

//go:embed assets
var assets embed.FS

func asset(name string) string {
	data, err := assets.ReadFile("assets/" + name)
	if err != nil {
		panic(err) // embedded, so it is there
	}
	return string(data)
}

var templates = template.Must(template.New("").Funcs(template.FuncMap{
	"style":  func() template.CSS { return template.CSS(asset("style.css")) },
	"script": func() template.JS { return template.JS(asset("script.js")) },
	"place":  report.Place, "plural": report.Plural,
	"isShould": func(level verdict.Level) bool { return level == verdict.Should },
	"join":     func(list []string) string { return strings.Join(list, ", ") },
	"lines":    func(list []string) string { return clean(strings.Join(list, "\n")) },
	"calls":    calls, "command": func(id, label, text string) command { return command{id, label, text} },
	"checkClass": checkClass, "checkSign": checkSign, "checkRule": checkRule,
	"caseTable": func(label string, columns []compare.Column, rows []row) caseTable {
		return caseTable{label, columns, rows}
	},
	"lineClass": lineClass, "runs": runs, "percent": percent,
	"cellClass": cellClass, "cellText": cellText, "interesting": interesting,
	"add": func(a, b int) int { return a + b },
}).ParseFS(assets, "assets/*.html"))

// layout is what every page has.
type layout struct {
	Title, Word, Heading, Lead string
	// Mood is "good" or "bad".
	Mood     string
	Numbers  []number
	Facts    []fact
	Sections []section
	Body     template.HTML
	Started  string
	// Contract is the file that scripts read instead.
	Contract string
}

type number struct {
	Name, Class string
	Count       int
}

type fact struct{ Name, Value string }

// section is an entry of the navigation; Count is shown unless it is 0.
type section struct {
	ID, Name string
	Count    int
}

// command is something to paste into a shell.
type command struct{ ID, Label, Text string }

// write makes the page: body is the name of the template of its middle.
func write(w io.Writer, page layout, body string, data any) error {
	var middle strings.Builder
	if err := templates.ExecuteTemplate(&middle, body, data); err != nil {
		return fmt.Errorf("report.html: %w", err)
	}
	// It came out of the templates, which have escaped everything in it.
	page.Body = template.HTML(middle.String())
	if err := templates.ExecuteTemplate(w, "page", page); err != nil {
		return fmt.Errorf("report.html: %w", err)
	}
	return nil
}

// clean drops control characters that a console may have printed.
func clean(text string) string {
	return strings.Map(func(r rune) rune {
		if r < 0x20 && r != '\n' && r != '\t' || r >= 0x7f && r < 0xa0 {
			return -1
		}
		return r
	}, strings.ToValidUTF8(text, "\uFFFD"))
}

// calls shows system calls with the marks between them set off.
func calls(lines []string) template.HTML {
	var out strings.Builder
	for _, line := range lines {
		escaped := template.HTMLEscapeString(clean(line))
		switch {
		case strings.Contains(line, " -- expectation failed") || strings.Contains(line, "(never returned)"):
			fmt.Fprintf(&out, "<span class=\"bad\">%s</span>\n", escaped)
		case strings.Contains(line, " -- ") || strings.HasPrefix(line, "…"):
			fmt.Fprintf(&out, "<span class=\"mark\">%s</span>\n", escaped)
		default:
			out.WriteString(escaped + "\n")
		}
	}
	return template.HTML(out.String())
}

func percent(part, whole int) string {
	if whole == 0 {
		return "0 %"
	}
	return fmt.Sprintf("%.1f %%", 100*float64(part)/float64(whole))
}

// table is the diff of one file, or a piece of it.
type table struct {
	Caption string
	Hunks   []report.DiffHunk
	// Covered adds how often each line ran.
	Covered bool
}

func lineClass(line report.DiffLine, covered bool) string {
	class := map[byte]string{'+': "add", '-': "remove"}[line.Op]
	switch {
	case line.Guilty:
		class += " guilty"
	case covered && line.Executable && line.Count == 0:
		class += " never"
	}
	return class
}

func runs(line report.DiffLine) string {
	switch {
	case !line.Executable:
		return ""
	case line.Count == 0:
		return "never"
	}
	return fmt.Sprintf("%d×", line.Count)
}

func cellClass(c report.GridCell) string {
	switch {
	case c.Failed > 0:
		return "fail"
	case c.Passed > 0:
		return "pass"
	case c.Skipped > 0:
		return "skip"
	}
	return ""
}

// cellText is what a cell of the grid shows; a screen reader says what the sign
// means.
func cellText(c report.GridCell) template.HTML {
	var parts []string
	add := func(count int, sign, word string) {
		if count > 0 {
			parts = append(parts, fmt.Sprintf(`<span aria-hidden="true">%s %d</span><span class="hidden">%d %s</span>`, sign, count, count, word))
		}
	}
	add(c.Failed, "✗", "failed")
	add(c.Passed, "✓", "passed")
	if c.Failed+c.Passed == 0 {
		add(c.Skipped, "○", "skipped")
	}
	return template.HTML(strings.Join(parts, " "))
}

func interesting(row report.GridRow) bool {
	for _, c := range row.Cells {
		if c.Failed > 0 || c.Skipped > 0 {
			return true
		}
	}
	return false
}
