// SPDX-License-Identifier: BSD-3-Clause

package splat

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"
)

// Limits of what is taken for a console log and for one report.
const (
	// maxLine is the longest line, in bytes. printk cuts its own at 1 KiB; a
	// dump of user space may be longer, but not without end.
	maxLine = 64 << 10
	// maxNUL is how many NUL bytes in a row are tolerated: a serial line may
	// lose a few characters, a log that is a hole lost everything.
	maxNUL = 64
	// maxReport is how many lines one report may have before it is cut.
	maxReport = 400
	// maxPreface is how many lines may stand between "cut here" and the line
	// that says what happened.
	maxPreface = 12
	// quietLines is how many lines that belong to no stack end a report of a
	// hang; strayLines do so behind a finished stack.
	quietLines, strayLines = 25, 3
	// aftermath is within how many lines a panic belongs to the report before
	// it; the second register dump of an oops comes in between.
	aftermath = 80
	// minGarbled is how many bytes of a line have to be invalid, and more
	// than half of it, to give up on the log.
	minGarbled = 256
)

// ErrUnreadable is in the chain of the error of a log that is no console log:
// nothing can be said about the kernel that printed it.
var ErrUnreadable = errors.New("the console log cannot be scanned")

// Options says what counts.
type Options struct {
	// Allowed are the known faults of other people that shall not count.
	Allowed []Allowed
	// Now decides which of them have expired; zero means the current time.
	Now time.Time
	// AllocFailures makes a page allocation failure a splat.
	AllocFailures bool
	// Repeats keeps every report of one fault in one case, instead of the
	// first only.
	Repeats bool
}

// Scanner reads a console log as it grows. It is an io.Writer for the raw bytes
// of the console; lines may be split over several writes. Its methods may be
// called from several goroutines.
type Scanner struct {
	options Options

	mu       sync.Mutex
	partial  []byte // begun line
	line     int    // lines read
	err      error
	current  string             // case that runs
	open     map[string]*report // by printk caller, "" if the kernel does not print it
	prefaces map[string]*preface
	omens    map[string]omen
	done     []Splat
	dropped  []Dropped
	seen     map[string]bool // reports of this case already handed out
	last     int             // line at which a report was completed, 0 for none
	panicked bool
}

// preface is what a context printed since its "cut here" line.
type preface struct {
	lines []string
	line  int // of the log, of "cut here"
}

// omen is the message a check prints before its BUG() prints "cut here".
type omen struct {
	text string
	line int
}

// Dropped is a splat that an entry of the allow-list matched.
type Dropped struct {
	Splat Splat
	By    Allowed
}

// NewScanner returns a scanner at the start of a log.
func NewScanner(options Options) *Scanner {
	if options.Now.IsZero() {
		options.Now = time.Now()
	}
	return &Scanner{
		options:  options,
		open:     make(map[string]*report),
		prefaces: make(map[string]*preface),
		omens:    make(map[string]omen),
		seen:     make(map[string]bool),
	}
}

// Scan reads a whole log. The splats are valid even if the error is not nil:
// they are what was found before the log became unreadable.
func Scan(log io.Reader, options Options) ([]Splat, error) {
	scanner := NewScanner(options)
	if _, err := io.Copy(scanner, log); err != nil && !errors.Is(err, ErrUnreadable) {
		return scanner.Take(), fmt.Errorf("console log: %w", err)
	}
	err := scanner.Close()
	return scanner.Take(), err
}

// SetCase names the case to which reports that begin from now on belong.
func (s *Scanner) SetCase(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.current = id
	clear(s.seen)
}

// Take returns the splats completed since it was called last, in the order in
// which they were completed.
func (s *Scanner) Take() []Splat {
	s.mu.Lock()
	defer s.mu.Unlock()
	done := s.done
	s.done = nil
	return done
}

// Dropped returns the splats so far that the allow-list took out.
func (s *Scanner) Dropped() []Dropped {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]Dropped(nil), s.dropped...)
}

// Busy tells whether a report has begun and not ended, so that it is worth
// waiting a moment before the machine is stopped.
func (s *Scanner) Busy() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.open) > 0 || len(s.prefaces) > 0
}

// Panicked tells whether the kernel said that it stops.
func (s *Scanner) Panicked() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.panicked
}

// Lines is the number of complete lines read.
func (s *Scanner) Lines() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.line
}

// BeginHang opens a report for a hang that the harness noticed; the backtraces
// that the kernel prints on an NMI afterwards become its stacks, and so does a
// panic caused by that NMI. It ends with Close or when the kernel goes on
// printing other things.
func (s *Scanner) BeginHang(reason string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for caller := range s.open {
		if s.open[caller].kind().hangs() {
			return // the kernel noticed too and says more about it
		}
	}
	s.begin("", &header{kind: Hang, end: endQuiet, title: "hang", in: true}, nil, max(s.line, 1), []string{"zcvet: " + reason})
}

// Write reads more of the log. It fails, then and on every later call, when the
// log cannot be scanned.
func (s *Scanner) Write(chunk []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return 0, s.err
	}
	rest := chunk
	for {
		end := bytes.IndexByte(rest, '\n')
		if end < 0 {
			break
		}
		s.partial = append(s.partial, rest[:end]...)
		rest = rest[end+1:]
		if err := s.endLine(); err != nil {
			return len(chunk) - len(rest), err
		}
	}
	s.partial = append(s.partial, rest...)
	if len(s.partial) > maxLine {
		s.err = fmt.Errorf("%w: line %d has no end within %d bytes", ErrUnreadable, s.line+1, maxLine)
		return len(chunk), s.err
	}
	return len(chunk), nil
}

// Close ends the log: what is still open is completed as partial. It returns
// the error of a log that could not be scanned.
func (s *Scanner) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil && len(s.partial) > 0 {
		_ = s.endLine() // kept in s.err
	}
	for _, caller := range callers(s.open) {
		s.finish(caller, false)
	}
	for _, caller := range slices.Sorted(maps.Keys(s.prefaces)) {
		preface := s.prefaces[caller]
		s.begin(caller, &header{kind: Truncated, end: endLine, title: "kernel report cut off at its first line"}, nil, preface.line, preface.lines)
	}
	clear(s.prefaces)
	return s.err
}

// endLine takes the line in s.partial.
func (s *Scanner) endLine() error {
	s.line++
	raw := s.partial
	s.partial = s.partial[:0]
	if len(raw) > maxLine {
		s.err = fmt.Errorf("%w: line %d is %d bytes long", ErrUnreadable, s.line, len(raw))
		return s.err
	}
	if bytes.Contains(raw, nulls) {
		s.err = fmt.Errorf("%w: line %d holds a run of NUL bytes", ErrUnreadable, s.line)
		return s.err
	}
	if !utf8.Valid(raw) {
		garbled := 0
		for rest := raw; len(rest) > 0; {
			r, size := utf8.DecodeRune(rest)
			if r == utf8.RuneError && size == 1 {
				garbled++
			}
			rest = rest[size:]
		}
		if garbled >= minGarbled && garbled > len(raw)/2 {
			s.err = fmt.Errorf("%w: line %d is binary", ErrUnreadable, s.line)
			return s.err
		}
		raw = bytes.ToValidUTF8(raw, []byte("\uFFFD"))
	}
	for _, part := range splitLine(string(raw)) {
		s.take(part.caller, part.text)
	}
	return nil
}

var nulls = make([]byte, maxNUL)

// stamped is the time and, with CONFIG_PRINTK_CALLER, the task or processor in
// front of a line; "<4>" is there when the level is printed too.
var (
	stamped = regexp.MustCompile(`(?:<\d+>)?\[ *\d+\.\d{6}\](?:\[ *([TC]\d+)\])? ?`)
	escapes = regexp.MustCompile("\x1b(?:\\[[0-9;?=]*[A-Za-z]|[c()=>78][0-9A-B]?)")
	control = strings.NewReplacer("\r", "", "\x00", "", "\a", "")
)

type stampedLine struct{ caller, text string }

// splitLine takes off the stamp. A line of user space that was not ended is in
// front of the kernel's, so that one line of the log can be two.
func splitLine(raw string) []stampedLine {
	raw = control.Replace(raw)
	if strings.IndexByte(raw, 0x1b) >= 0 {
		raw = escapes.ReplaceAllString(raw, "")
	}
	at := stamped.FindStringSubmatchIndex(raw)
	if at == nil {
		return []stampedLine{{text: strings.TrimRight(raw, " \t")}}
	}
	var parts []stampedLine
	if at[0] > 0 {
		parts = append(parts, stampedLine{text: strings.TrimRight(raw[:at[0]], " \t")})
	}
	caller := ""
	if at[2] >= 0 {
		caller = raw[at[2]:at[3]]
	}
	return append(parts, stampedLine{caller: caller, text: strings.TrimRight(raw[at[1]:], " \t")})
}

const (
	cutHere     = "------------[ cut here ]------------"
	panicPrefix = "Kernel panic - not syncing: "
	panicEnd    = "---[ end Kernel panic"
	traceEnd    = "---[ end trace"
)

// take reads one line of one context.
func (s *Scanner) take(caller, text string) {
	if strings.HasPrefix(text, panicPrefix) {
		s.panicked = true
	}
	if strings.HasPrefix(text, cutHere) {
		if open := s.open[caller]; open != nil && !open.kind().hangs() {
			s.finish(caller, false)
		}
		preface := &preface{line: s.line}
		if omen := s.omens[caller]; omen.line > 0 && s.line-omen.line <= 2 {
			preface.lines = append(preface.lines, omen.text)
		}
		s.prefaces[caller] = preface
		return
	}

	head, groups := matchHeader(text, s.options)
	owner := s.ownerOf(caller)
	open := s.open[owner]
	if head != nil {
		switch {
		case open != nil && open.continues(head, text):
			open.add(text)
			return
		case head.kind == Panic && s.explains(text):
			return
		}
		if s.open[caller] != nil {
			s.finish(caller, false)
		}
		line, lines := s.line, []string{text}
		if preface := s.prefaces[caller]; preface != nil {
			line, lines = preface.line, append(preface.lines, text)
			delete(s.prefaces, caller)
		}
		s.begin(caller, head, groups, line, lines)
		return
	}

	if preface := s.prefaces[caller]; preface != nil {
		preface.lines = append(preface.lines, text)
		if len(preface.lines) > maxPreface {
			delete(s.prefaces, caller)
			s.begin(caller, &header{kind: Truncated, end: endStack, title: "kernel report of unknown kind", in: true}, nil, preface.line, preface.lines)
		}
		return
	}
	if isOmen(text) {
		s.omens[caller] = omen{text: text, line: s.line}
	}
	if open == nil {
		return
	}
	switch open.add(text) {
	case ends, ended:
		s.finish(owner, true)
	case cut:
		s.finish(owner, false)
	}
}

// ownerOf finds the report a line belongs to: that of its own context, or a
// hang whose stacks other processors print.
func (s *Scanner) ownerOf(caller string) string {
	if s.open[caller] != nil {
		return caller
	}
	for _, other := range callers(s.open) {
		if s.open[other].kind().hangs() && (caller != "" || other == "") {
			return other
		}
	}
	return caller
}

// callers returns the contexts with open reports, in the order in which the
// reports began.
func callers(open map[string]*report) []string {
	return slices.SortedFunc(maps.Keys(open), func(a, b string) int {
		return cmp.Or(cmp.Compare(open[a].line, open[b].line), cmp.Compare(a, b))
	})
}

// explains tells whether the panic in text only ends the machine because of a
// report that has already been completed.
func (s *Scanner) explains(text string) bool {
	return s.last > 0 && s.line-s.last <= aftermath &&
		consequence.MatchString(strings.TrimPrefix(text, panicPrefix))
}

// begin opens a report that began at a line of the log and whose lines so far
// are given, the header last.
func (s *Scanner) begin(caller string, head *header, groups []string, line int, lines []string) {
	r := &report{header: head, groups: groups, line: line, tag: s.current}
	for _, line := range lines {
		r.add(line)
	}
	r.headed = true
	s.open[caller] = r
	if head.end == endLine {
		s.finish(caller, head.kind != Truncated)
	}
}

// finish hands out the report of a context; complete says that its end was
// seen.
func (s *Scanner) finish(caller string, complete bool) {
	r := s.open[caller]
	delete(s.open, caller)
	s.last = s.line
	splat := r.splat(complete)
	for _, allowed := range s.options.Allowed {
		if allowed.matches(splat.Title, s.options.Now) {
			s.dropped = append(s.dropped, Dropped{Splat: splat, By: allowed})
			return
		}
	}
	key := splat.Case + "\n" + splat.Title + "\n" + splat.Fingerprint()
	if s.seen[key] && !s.options.Repeats {
		return
	}
	s.seen[key] = true
	s.done = append(s.done, splat)
}

// splitSite splits "file:line" and takes off what an out-of-tree build puts in
// front of the file.
func splitSite(site string) (file string, line int) {
	colon := strings.LastIndexByte(site, ':')
	if colon < 0 {
		return site, 0
	}
	line, err := strconv.Atoi(site[colon+1:])
	if err != nil {
		return site, 0
	}
	file = site[:colon]
	for strings.HasPrefix(file, "../") || strings.HasPrefix(file, "./") {
		_, file, _ = strings.Cut(file, "/")
	}
	return file, line
}
