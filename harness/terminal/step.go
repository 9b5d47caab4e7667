// SPDX-License-Identifier: BSD-3-Clause

package terminal

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/dustin/go-humanize"

	"github.com/zcvet/zcvet/harness/progress"
)

// Step is one step of a run that is under way. Done or Fail ends it; a second
// call of either does nothing, so Fail may be deferred.
type Step struct {
	ui    *UI
	name  string
	began time.Time
	spoke time.Time // when the log had its last line about this step
	last  progress.Update
	stop  chan struct{}
	ended chan struct{} // closed when the ticking goroutine is gone
	over  bool
}

// Step begins a step. The step before it, if still open, ends silently.
func (ui *UI) Step(name string) *Step {
	ui.mu.Lock()
	before := ui.step
	ui.mu.Unlock()
	if before != nil {
		before.end("")
	}

	now := time.Now()
	step := &Step{ui: ui, name: name, began: now, spoke: now, stop: make(chan struct{}), ended: make(chan struct{})}
	ui.mu.Lock()
	ui.step = step
	ui.mu.Unlock()
	go step.tick()
	return step
}

// Progress takes an update; it is a progress.Func.
func (s *Step) Progress(update progress.Update) {
	s.ui.mu.Lock()
	defer s.ui.mu.Unlock()
	if !s.over {
		s.last = update
	}
}

// Done ends the step with what came of it.
func (s *Step) Done(format string, args ...any) {
	s.end(fmt.Sprintf(format, args...))
}

// Fail ends the step because of an error. The error itself is shown by UI.Error,
// at the end, where a person looks for it.
func (s *Step) Fail(err error) {
	if err != nil {
		s.end(s.ui.paint(red, "failed"))
	}
}

// end stops the ticking and prints the step's line, unless there is no text.
func (s *Step) end(text string) {
	s.ui.mu.Lock()
	if s.over {
		s.ui.mu.Unlock()
		return
	}
	s.over = true
	s.ui.mu.Unlock()
	close(s.stop)
	<-s.ended

	s.ui.mu.Lock()
	defer s.ui.mu.Unlock()
	s.ui.clear()
	s.ui.step = nil
	if text != "" && !s.ui.options.Quiet {
		s.ui.line("%s  %s", s.label()+text, s.ui.paint(dim, took(s.began)))
	}
}

// tick shows from time to time how far the step is.
func (s *Step) tick() {
	defer close(s.ended)
	every := time.Second
	if s.ui.options.TTY {
		every = frame
	}
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for {
		select {
		case <-s.stop:
			return
		case <-ticker.C:
			s.show()
		}
	}
}

func (s *Step) show() {
	ui := s.ui
	ui.mu.Lock()
	defer ui.mu.Unlock()
	switch {
	case ui.options.Quiet || s.over:
	case ui.options.TTY:
		ui.clear()
		line := fmt.Sprintf("%-*s%s%s", nameWidth, s.name, bar(s.last), s.text())
		// The last column stays free: some terminals wrap when it is used.
		io.WriteString(ui.out, fit(line, ui.options.Width-1))
		ui.live = true
	case time.Since(s.spoke) >= silence:
		s.spoke = time.Now()
		ui.line("%s%s", s.label(), s.text())
	}
}

// label is the name of the step as a column; it keeps a space behind it.
func (s *Step) label() string {
	return s.ui.paint(bold, fmt.Sprintf("%-*s", nameWidth-1, s.name)) + " "
}

// text says how far the step is.
func (s *Step) text() string {
	var parts []string
	if count := counted(s.last); count != "" {
		parts = append(parts, count)
	}
	parts = append(parts, took(s.began))
	if s.last.What != "" {
		parts = append(parts, clean(s.last.What))
	}
	return strings.Join(parts, "  ")
}

// counted is "412 of 790 objects".
func counted(u progress.Update) string {
	format := func(n int64) string { return humanize.Comma(n) }
	unit := " " + string(u.Unit)
	if u.Unit == progress.Bytes {
		format, unit = func(n int64) string { return humanize.Bytes(uint64(max(n, 0))) }, ""
	}
	switch {
	case u.Total > 0:
		return fmt.Sprintf("%s of %s%s", format(u.Done), format(u.Total), unit)
	case u.Done > 0:
		return format(u.Done) + unit
	}
	return ""
}

// barWidth is the number of characters between the brackets.
const barWidth = 24

// bar draws how much of the total is done; nothing while the total is unknown.
func bar(u progress.Update) string {
	if u.Total <= 0 {
		return ""
	}
	done := int(min(max(u.Done, 0), u.Total) * barWidth / u.Total)
	text := strings.Repeat("=", done)
	if done < barWidth {
		text += ">" + strings.Repeat(" ", barWidth-done-1)
	}
	return "[" + text + "] "
}
