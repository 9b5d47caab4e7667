// SPDX-License-Identifier: BSD-3-Clause

package suite

import (
	"fmt"
	"slices"

	"github.com/zcvet/zcvet/guest/link"
	"github.com/zcvet/zcvet/guest/trace"
	"github.com/zcvet/zcvet/harness/verdict"
)

// Limits of what a result says of its evidence; the files have all of it.
const (
	saidLines  = 80
	firstCalls = 24
	lastCalls  = 56
)

// hear keeps a console line for the case that the console is at.
func (s *session) hear(line string) {
	s.lock.Lock()
	defer s.lock.Unlock()
	if lines := s.said[s.shown]; len(lines) < saidLines {
		s.said[s.shown] = append(lines, line)
	}
}

// heard returns what the console has shown of a case, and forgets it.
func (s *session) heard(id string) []string {
	s.lock.Lock()
	defer s.lock.Unlock()
	lines := s.said[id]
	delete(s.said, id)
	return lines
}

// keepTrace takes the record that the agent sent with the end of a case.
func (w *watch) keepTrace(end link.CaseEnd) {
	if len(end.Trace) == 0 {
		return
	}
	region, err := trace.Unpack(end.Trace)
	if err != nil {
		w.console.note("%s: %v", end.ID, err)
		return
	}
	w.parseTrace(end.ID, region)
}

func (w *watch) parseTrace(id string, region []byte) {
	record, err := trace.Parse(region)
	if err != nil {
		w.console.note("system calls of %s: %v", id, err)
	}
	if record != nil && record.Case == id {
		w.result.Traces[id] = record
	}
}

// readTrace finds the record in the memory of a machine whose agent cannot send
// it any more.
func (w *watch) readTrace(id string) {
	traced := w.session.traced
	if len(traced)*trace.PageSize != trace.Size {
		return
	}
	region := make([]byte, 0, trace.Size)
	for _, page := range traced {
		data := make([]byte, trace.PageSize)
		if err := w.session.vm.ReadMemory(data, page); err != nil {
			w.console.note("system calls of %s: %v", id, err)
			return
		}
		region = append(region, data...)
	}
	w.parseTrace(id, region)
}

// evidence keeps what there is to see about a case that did not pass.
func (w *watch) evidence(c *verdict.Case, said []string) {
	if w.result.Traces[c.ID] == nil {
		w.readTrace(c.ID)
	}
	c.Evidence = &verdict.Evidence{Console: said}
	if record := w.result.Traces[c.ID]; record != nil {
		style := trace.Style{Constant: w.Parameters.Constant, ABI: w.Parameters.ABI}
		c.Evidence.Calls = ends(ledToFailure(record).Text(style))
	}
	if err := w.session.vm.SaveEvidence(c.ID); err != nil {
		w.console.note("evidence of %s: %v", c.ID, err)
	}
}

// ledToFailure is the record up to the last expectation that failed, or the whole
// of it if none did. The rest gives things back, and a case can have many.
func ledToFailure(record *trace.Record) *trace.Record {
	for last := len(record.Calls) - 1; last >= 0; last-- {
		if record.Calls[last].Name == trace.Failure {
			cut := *record
			cut.Calls = record.Calls[:last+1]
			return &cut
		}
	}
	return record
}

// ends is the beginning and the end of a long list.
func ends(lines []string) []string {
	left := len(lines) - firstCalls - lastCalls
	if left <= 1 {
		return lines
	}
	return slices.Concat(lines[:firstCalls], []string{fmt.Sprintf("… %d more", left)}, lines[len(lines)-lastCalls:])
}
