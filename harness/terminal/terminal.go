// SPDX-License-Identifier: BSD-3-Clause

// Package terminal is what a person sees of a run: the steps with their
// progress, warnings, failures with their reasons, and one verdict line at the
// end.
//
// On a terminal the current step is one line that is rewritten. Everywhere else
// output is plain lines that are never taken back, so that a CI log reads well,
// and a long step prints one every ten seconds, so that nobody takes it for dead.
package terminal

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/mattn/go-runewidth"
	"golang.org/x/term"

	"github.com/zcvet/zcvet/harness/fault"
	"github.com/zcvet/zcvet/harness/report"
)

const (
	// silence is the longest time a plain log stays without a line.
	silence = 10 * time.Second
	// frame is how often the line of a step is rewritten on a terminal.
	frame = 100 * time.Millisecond
	// nameWidth is the column in which the text of a step begins.
	nameWidth = 9
	// defaultWidth is that of a terminal which does not tell.
	defaultWidth = 80
	// tailLines is how much of a tool's output or a console an error shows.
	tailLines = 30
)

// Options says what the output can do and how much is wanted.
type Options struct {
	Color   bool // ANSI colours
	TTY     bool // the current line can be rewritten
	Width   int  // columns, for TTY; 0 means 80
	Quiet   bool // only warnings, failures and the verdict
	Verbose bool // every case, the logs of failures, the names of skipped cases
}

// Detect returns the options for a file: a terminal if it is one that can
// rewrite lines, with colours unless NO_COLOR is set.
func Detect(file *os.File) Options {
	options := Options{TTY: term.IsTerminal(int(file.Fd())) && os.Getenv("TERM") != "dumb"}
	options.Color = options.TTY && os.Getenv("NO_COLOR") == ""
	if width, _, err := term.GetSize(int(file.Fd())); err == nil {
		options.Width = width
	}
	return options
}

// UI writes to one output. Its methods may be called from several goroutines;
// there is at most one open step.
type UI struct {
	options Options

	mu   sync.Mutex
	out  io.Writer
	step *Step // open, nil for none
	live bool  // the last line on the terminal is the step's and not ended
}

// New returns a UI that writes to out. Errors of out are ignored: the verdict is
// in run.json too, and a closed pipe must not end a run.
func New(out io.Writer, options Options) *UI {
	if options.Width <= 0 {
		options.Width = defaultWidth
	}
	return &UI{out: out, options: options}
}

// Note prints a remark, unless quiet.
func (ui *UI) Note(format string, args ...any) {
	if !ui.options.Quiet {
		ui.print("note", plain, fmt.Sprintf(format, args...))
	}
}

// Warn prints something the reader has to know although the run goes on.
func (ui *UI) Warn(format string, args ...any) {
	ui.print("WARNING", yellow, fmt.Sprintf(format, args...))
}

// Error prints an error that ends the run: what went wrong, what can be done
// about it, and the last lines of what the failing tool said.
func (ui *UI) Error(err error) {
	if err == nil {
		return
	}
	text := err.Error()
	classed, _ := errors.AsType[*fault.Error](err)
	if classed != nil && classed.Output != "" {
		text += "\n\n" + prefixLines("| ", tail(classed.Output, tailLines))
	}
	if classed != nil && classed.Advice != "" {
		text += "\n\n" + classed.Advice
	}
	ui.print("error", red, text)
}

// print writes a labelled text of one or more lines.
func (ui *UI) print(label string, style style, text string) {
	ui.mu.Lock()
	defer ui.mu.Unlock()
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	for i := range lines {
		lines[i] = clean(lines[i])
	}
	ui.line("%s %s", ui.paint(style, label+":"), lines[0])
	for _, line := range lines[1:] {
		if line != "" {
			line = strings.Repeat(" ", len(label)+2) + line
		}
		ui.line("%s", line)
	}
}

// line writes one whole line, with the step's line taken away and put back.
func (ui *UI) line(format string, args ...any) {
	ui.clear()
	fmt.Fprintf(ui.out, format+"\n", args...)
}

func (ui *UI) clear() {
	if ui.live {
		io.WriteString(ui.out, "\r\x1b[K")
		ui.live = false
	}
}

// style is an ANSI attribute.
type style string

const (
	plain  style = ""
	bold   style = "1"
	dim    style = "2"
	red    style = "1;31"
	green  style = "1;32"
	yellow style = "1;33"
)

func (ui *UI) paint(s style, text string) string {
	if !ui.options.Color || s == plain {
		return text
	}
	return "\x1b[" + string(s) + "m" + text + "\x1b[0m"
}

// fit cuts text to a number of columns.
func fit(text string, columns int) string {
	if columns <= 0 {
		return ""
	}
	return runewidth.Truncate(text, columns, "…")
}

func prefixLines(prefix, text string) string {
	lines := strings.Split(text, "\n")
	for i := range lines {
		lines[i] = strings.TrimRight(prefix+lines[i], " ")
	}
	return strings.Join(lines, "\n")
}

// tail returns the last lines of text.
func tail(text string, count int) string {
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	if len(lines) > count {
		lines = append([]string{fmt.Sprintf("… %d lines before", len(lines)-count)}, lines[len(lines)-count:]...)
	}
	return strings.Join(lines, "\n")
}

func took(since time.Time) string { return report.Duration(time.Since(since).Seconds()) }
