// SPDX-License-Identifier: BSD-3-Clause

package splat

import (
	"regexp"
	"strconv"
	"strings"
)

// report is a splat that is being read.
type report struct {
	header *header
	groups []string
	line   int    // of the log, where it began
	tag    string // case that ran then
	headed bool   // the header line is in lines

	lines   []string
	entries []entry
	section int // counts the stacks; entries of one stack share it
	taint   string
	died    bool // the "Oops: … [#1]" line was seen
	fault   pageFault

	backtrace bool // the report's own stack has begun, for endDump
	framed    int  // number of the last line that belonged to a stack, 0 if none
	stray     int  // lines since then that do not
	panicking bool
}

// entry is one function on one of the stacks of a report.
type entry struct {
	frame    Frame
	section  int
	reliable bool // not marked "?"
	pointer  bool // instruction pointer in a register dump
}

// pageFault is what the "#PF:" lines say, for telling an access to user memory
// that SMAP or SMEP forbade from other faults.
type pageFault struct {
	address uint64
	known   bool
	access  string // "read access", "write access", fetch
	allowed bool   // false after "permissions violation"
}

const fetch = "instruction fetch"

// ofUser tells whether the address is one that user space can have mapped. Below
// the first page it is a NULL pointer.
func (f pageFault) ofUser() bool { return f.known && f.address >= 4096 && f.address < userTop }

func (r *report) kind() Kind { return r.header.kind }

// progress says what a line did to a report.
type progress int

const (
	goes  progress = iota // the report goes on
	ends                  // the line is its last
	ended                 // it ended before the line
	cut                   // it is too long to be one report
)

var (
	stackFrame  = regexp.MustCompile(`^(?:\[<[0-9a-fx]+>\] *)?(\? )?([A-Za-z_.$][\w.$]*)\+0x([0-9a-f]+)/0x([0-9a-f]+)(?: \[([\w-]+)[^\]]*\])?(?: [0-9a-f]{20,40})?(?: \([A-Z?]+\))?$`)
	plainFrame  = regexp.MustCompile(`^([A-Za-z_.$][\w.$]*)\+0x([0-9a-f]+)/0x([0-9a-f]+)`)
	pointer     = regexp.MustCompile(`^RIP: 00[01][08]:(?:\[<[0-9a-fx]+>\] *)?(\S.*)$`)
	stackMark   = regexp.MustCompile(`^(?:</?[A-Z#_0-9 ]{2,}>|Call [Tt]race:|Stack:|RIP: |RSP: |EFLAGS|[RC][A-Z0-9]{1,2}: |FS: |DR\d: |PKRU: |ORIG_RAX|Code: |Modules linked in|CPU: |Hardware name: |Tainted: |\[[WDBCLTOEPU]+\]=|Workqueue: |task:|Sending NMI|NMI backtrace for|---\[|Dumping ftrace|irq event stamp|(?:hard|soft)irqs last|PREEMPT |$)`)
	newStack    = regexp.MustCompile(`^(?:Call [Tt]race:|NMI backtrace for|stack backtrace:|Allocated (?:by|in)|Freed (?:by|in)|Last potentially related|Second to last|-> #\d+ |\{[\w-]+\} state was registered at:|the .* lock'?s? dependenc|kfence-#\d+|allocated by task|freed by task|(?:read|write|read-write).* to 0x.* by |task:\S+ )`)
	dieHeader   = regexp.MustCompile(`^(?:Oops: )?([\w -]+?)(?:: |, ).*\[#\d+\]`)
	taintLetter = regexp.MustCompile(`Tainted: ((?:[A-Z] *)+)(?: |$)`)
	faultAt     = regexp.MustCompile(`address: (?:0x)?([0-9a-f]+)$`)
	faultAccess = regexp.MustCompile(`^#PF: supervisor (.*) in kernel mode`)
	faultError  = regexp.MustCompile(`^#PF: error_code\(.*\) - (.*)$`)
	bar         = regexp.MustCompile(`^={20,}$`)
)

// continues tells whether a line that looks like a header only says more about
// this report.
func (r *report) continues(head *header, text string) bool {
	switch {
	case head.kind == Panic:
		return true
	case head.kind == Oops && dieHeader.MatchString(text):
		// A fault says where, then dies; a BUG dies of an invalid opcode.
		switch r.kind() {
		case Oops, Bug, UBSAN, List:
			return !r.died && len(r.lines) < maxPreface+4
		}
	case r.kind() == Hang && head.kind.hangs():
		return true
	}
	return false
}

// add reads a line of the report.
func (r *report) add(raw string) progress {
	text := strings.TrimSpace(raw)
	switch {
	case r.headed && r.header.end == endBar && bar.MatchString(text):
		return ends
	case r.header.end == endBar && bar.MatchString(text):
		return goes
	}

	inStack := r.read(text)
	if inStack {
		r.stray = 0
	} else {
		r.stray++
	}
	if r.headed && r.overrun() && !inStack {
		// The stray lines before this one were kept in the hope that the
		// stack goes on; they are somebody else's.
		if extra := r.stray - 1; extra > 0 && extra < len(r.lines) {
			r.lines = r.lines[:len(r.lines)-extra]
		}
		return ended
	}
	r.lines = append(r.lines, raw)
	switch {
	case strings.HasPrefix(text, panicEnd):
		return ends
	case strings.HasPrefix(text, traceEnd) && r.header.end == endTrace && !r.panicking:
		return ends
	case strings.HasPrefix(text, panicPrefix):
		r.panicking = true
	}
	if len(r.lines) >= maxReport {
		return cut
	}
	return goes
}

// overrun tells whether the report has no mark at its end and the lines that
// came show that it is over.
func (r *report) overrun() bool {
	switch r.header.end {
	case endStack:
		return r.framed > 0 && r.stray >= strayLines || r.stray >= 2*quietLines
	case endDump:
		return r.backtrace && r.framed > 0 && r.stray >= strayLines || r.stray >= 4*quietLines
	case endQuiet:
		return r.stray >= quietLines
	}
	return false
}

// read takes what it can use from a line, and tells whether the line belongs
// to a stack or register dump.
func (r *report) read(text string) bool {
	if newStack.MatchString(text) {
		r.section++
		if strings.HasPrefix(text, "stack backtrace:") || r.kind() == Slab && strings.HasPrefix(text, "Call Trace:") {
			r.backtrace = true
			r.framed = 0
			return true
		}
	}
	if r.taint == "" && strings.Contains(text, "Tainted: ") {
		if groups := taintLetter.FindStringSubmatch(text); groups != nil {
			r.taint = strings.Join(strings.Fields(groups[1]), "")
		}
	}
	if !strings.Contains(text, "+0x") {
		r.readFault(text)
		return stackMark.MatchString(text)
	}
	if groups := pointer.FindStringSubmatch(text); groups != nil {
		if frame, ok := parseFrame(groups[1]); ok {
			frame.Exact = true
			r.entries = append(r.entries, entry{frame: frame, section: r.section, reliable: true, pointer: true})
		}
		return true
	}
	if groups := stackFrame.FindStringSubmatch(text); groups != nil {
		frame, ok := parseFrame(groups[2] + "+0x" + groups[3] + "/0x" + groups[4])
		frame.Module = groups[5]
		if ok {
			r.entries = append(r.entries, entry{frame: frame, section: r.section, reliable: groups[1] == ""})
		}
		r.framed = len(r.lines) + 1
		return true
	}
	return stackMark.MatchString(text)
}

// readFault reads how an oops happened.
func (r *report) readFault(text string) {
	if r.kind() != Oops && r.kind() != Bug && r.kind() != UBSAN {
		return
	}
	if strings.Contains(text, "[#") && dieHeader.MatchString(text) {
		r.died = true
	}
	if groups := faultAt.FindStringSubmatch(text); groups != nil && !r.fault.known {
		if address, err := strconv.ParseUint(groups[1], 16, 64); err == nil {
			r.fault.address, r.fault.known = address, true
			r.fault.allowed = true
		}
	}
	if groups := faultAccess.FindStringSubmatch(text); groups != nil && r.fault.access == "" {
		r.fault.access = groups[1]
	}
	if groups := faultError.FindStringSubmatch(text); groups != nil && groups[1] == "permissions violation" {
		r.fault.allowed = false
	}
}

// parseFrame reads "function+0x12/0x40", with whatever follows.
func parseFrame(text string) (Frame, bool) {
	groups := plainFrame.FindStringSubmatch(text)
	if groups == nil {
		return Frame{}, false
	}
	offset, err := strconv.ParseUint(groups[2], 16, 64)
	if err != nil {
		return Frame{}, false
	}
	size, err := strconv.ParseUint(groups[3], 16, 64)
	if err != nil {
		return Frame{}, false
	}
	return Frame{Function: groups[1], Offset: offset, Size: size}, true
}

// userTop is the first address that is not user space's on x86-64.
const userTop = 1 << 47

// splat makes the result; complete is false when the log or something else cut
// the report off.
func (r *report) splat(complete bool) Splat {
	partial := !complete
	switch r.header.end {
	case endStack, endDump, endQuiet:
		// Nothing marks their end, so a stack that is there counts as one.
		partial = r.framed == 0
	case endTrace:
		// With panic=-1 the machine is gone before the panic's last line.
		if r.panicking && r.framed > 0 {
			partial = false
		}
	}
	s := Splat{
		Kind: r.kind(), Taint: r.taint, Case: r.tag, Line: r.line, Partial: partial,
		Frames: r.frames(), Text: strings.Trim(strings.Join(r.lines, "\n"), "\n"),
	}
	title := r.header.expand(r.groups)
	if r.header.site > 0 {
		file, line := splitSite(r.groups[r.header.site])
		s.Site = file + ":" + strconv.Itoa(line)
	}
	if len(s.Frames) > 0 {
		s.Function = baseName(s.Frames[0].Function)
	}
	s.UserAccess = s.Kind == Oops && r.fault.ofUser() && r.fault.access != fetch
	title, in := r.refine(&s, title)
	if in && s.Function != "" {
		title += " in " + s.Function
	}
	s.Title = title
	return s
}

// refine replaces the title by a better one where the rest of the report tells
// more than its header.
func (r *report) refine(s *Splat, title string) (better string, in bool) {
	in = r.header.in
	switch s.Kind {
	case Oops:
		if r.fault.ofUser() && !r.fault.allowed {
			// The page is there and mapped for user space: SMAP or SMEP
			// stopped the kernel from touching it without the helpers.
			if r.fault.access == fetch {
				return "BUG: supervisor instruction fetch from user address", in
			}
			return "BUG: supervisor " + r.fault.access + " of user address", in
		}
	case Warning, Bug:
		for _, line := range r.lines {
			for _, check := range checks {
				if found := check.pattern.FindString(strings.TrimSpace(line)); found != "" {
					s.Kind = check.kind
					return strings.TrimRight(found, " ."), true
				}
			}
		}
	}
	return title, in
}

// frames picks the stack that shows the fault, from the faulting function on.
func (r *report) frames() []Frame {
	start := r.pick()
	if start < 0 {
		return r.fromHeader(nil)
	}
	var frames, guesses []Frame
	section := r.entries[start].section
	for i := start; i < len(r.entries); i++ {
		e := r.entries[i]
		if e.section != section {
			// Registers stand before their stack; anything after that stack
			// belongs to something else.
			if !(r.entries[start].pointer && len(frames) <= 1 && e.section == section+1) {
				break
			}
			section = e.section
		}
		switch {
		case e.pointer && i > start:
			// The summary repeats the registers, or this is what was
			// interrupted.
			return r.fromHeader(skipMachinery(orGuesses(frames, guesses)))
		case e.reliable:
			frames = append(frames, e.frame)
		default:
			guesses = append(guesses, e.frame)
		}
	}
	return r.fromHeader(skipMachinery(orGuesses(frames, guesses)))
}

// orGuesses adds the callers marked "?" when there are no others: without an
// unwinder in the kernel every caller is a guess.
func orGuesses(frames, guesses []Frame) []Frame {
	if len(frames) > 1 {
		return frames
	}
	return append(frames, guesses...)
}

// pick returns where in r.entries the stack of interest begins, -1 for nowhere.
func (r *report) pick() int {
	first := -1
	for i, e := range r.entries {
		if first < 0 && e.reliable {
			first = i
		}
		switch {
		case !e.pointer:
			continue
		case r.kind().hangs() && isIdle(e.frame.Function):
			continue
		case r.kind() == Hang || r.kind() == RCUStall || r.kind() == Lockup:
			return i
		case r.kind() == Oops || r.kind() == Bug || r.kind() == Warning:
			// An interrupted context further down has registers too.
			if first == i || r.entries[first].section == e.section && !anyReliable(r.entries[:i]) {
				return i
			}
		}
	}
	switch {
	case r.header.end == endDump && r.backtrace:
		last := -1
		for i, e := range r.entries {
			if last < 0 || r.entries[last].section != e.section {
				last = i
			}
		}
		return last
	case first < 0 && len(r.entries) > 0:
		return 0
	}
	return first
}

func anyReliable(entries []entry) bool {
	for _, e := range entries {
		if e.reliable && !e.pointer {
			return true
		}
	}
	return false
}

func sameFunction(a, b Frame) bool { return a.Function == b.Function && a.Offset == b.Offset }

// skipMachinery drops the leading frames that only check and report. If all
// are, nothing better is known and all stay.
func skipMachinery(frames []Frame) []Frame {
	for i, frame := range frames {
		if !isMachinery(frame.Function) {
			return frames[i:]
		}
	}
	return frames
}

// fromHeader makes the frame that the header names the first one: for a
// sanitizer's report everything above it on the stack is the sanitizer.
func (r *report) fromHeader(frames []Frame) []Frame {
	if r.header.function == 0 || r.header.function >= len(r.groups) {
		return frames
	}
	named, ok := parseFrame(r.groups[r.header.function])
	if !ok {
		// KCSAN names functions without offsets.
		return frames
	}
	for i, frame := range frames {
		if sameFunction(frame, named) {
			return frames[i:]
		}
	}
	if isMachinery(named.Function) || len(frames) > 0 && r.kind() == Warning {
		return frames
	}
	return append([]Frame{named}, frames...)
}
