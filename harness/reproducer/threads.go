// SPDX-License-Identifier: BSD-3-Clause

package reproducer

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/zcvet/zcvet/guest/trace"
)

// Several threads of a case become threads of the program. There are two ways,
// because a person is to read it.
//
// Where they make few calls the order of the record is kept: a call that ended
// before another thread's began ends before it in the program, and one that was
// under way has begun. What overlapped is left to overlap.
//
// Where they make many, each thread makes its calls as loops, in no order but that
// of the loops' beginning and end, and the threads that only read do so until the
// others are done. That shows what a race does, and not what a single call gave,
// so only a fault that does not depend on single calls can be shown that way.

const (
	// mostOrdered is up to how many calls the order between threads is kept.
	mostOrdered = 40
	// mostThreads is how many threads a program may have.
	mostThreads = 64
)

// errOverlap is why a program cannot say which answers are the fault.
var errOverlap = impossible("its threads make many calls at the same time, and what a single one gives depends on which was first")

// The parts of a program with threads.
type part int

const (
	before part = iota // while there is one thread
	during
	after // when there is one thread again
)

// never is the end of a call that has not returned.
const never = time.Duration(math.MaxInt64)

func ended(c *trace.Call) time.Duration {
	if !c.Returned {
		return never
	}
	return max(c.Began, c.Ended)
}

// threads is what becomes of the threads of a case.
type threads struct {
	// of is the thread of the program for one of the guest; 0 is the case's own.
	of    map[int]int
	count int
	// free leaves the order between them open.
	free bool
	// missing is how many calls of the case are not recorded, complete the number
	// of the first call from which on all are.
	missing, complete int
	// unwatched tells that the answers are not compared.
	unwatched bool
	// points is how many moments are waited for.
	points int
	// reads tells of each thread that it only reads; repeats, that it only sends
	// and reads, which can be done again, and that more of that is missing; stuck,
	// that it had not returned when an expectation failed.
	reads, repeats, stuck []bool
}

// threadsOf finds out which threads of the guest overlap.
func threadsOf(calls []trace.Call) (*threads, error) {
	t := &threads{of: make(map[int]int)}
	var order []int
	for i := range calls {
		id := calls[i].Thread
		if isMark(&calls[i]) { // of a thread that waits for a task, perhaps
			id = -1
		}
		if i == 0 {
			t.missing += calls[0].Number
		} else {
			if gap := calls[i].Number - calls[i-1].Number - 1; gap > 0 {
				t.missing += gap
				t.complete = calls[i].Number
			}
		}
		if id < 0 {
			continue
		}
		if _, known := t.of[id]; !known {
			if len(order) == mostThreads {
				return nil, impossible("it has more than %d threads", mostThreads)
			}
			t.of[id] = len(order)
			order = append(order, id)
		}
	}
	overlap := make([][]bool, len(order))
	ends := make([]time.Duration, len(order))
	for i := range overlap {
		overlap[i] = make([]bool, len(order))
	}
	for i := range calls {
		c := &calls[i]
		if isMark(c) {
			continue
		}
		this := t.of[c.Thread]
		for other, end := range ends {
			if other != this && end > c.Began {
				overlap[this][other], overlap[other][this] = true, true
			}
		}
		ends[this] = max(ends[this], ended(c))
	}
	// Threads that were never in the kernel together are one.
	var merged [][]int
	place := make([]int, len(order))
	for this := range order {
		fits := func(group []int) bool {
			return !slices.ContainsFunc(group, func(other int) bool { return overlap[this][other] })
		}
		at := slices.IndexFunc(merged, fits)
		if at < 0 {
			at = len(merged)
			merged = append(merged, nil)
		}
		merged[at] = append(merged[at], this)
		place[this] = at
	}
	t.count = max(len(order), 1)
	many := 0 // steps while there are several threads
	if len(merged) > 1 {
		first, last := -1, 0
		for i, s := range t.stepsOf(whole(calls)) {
			if s.thread == 0 {
				continue
			}
			if last = i; first < 0 {
				first = i
			}
		}
		many = last - first + 1
	}
	t.count = max(len(merged), 1)
	if t.free = t.count > 1 && (many > mostOrdered || t.missing > 0); t.free {
		// Each loop is one thread's, so only those that overlap with none are
		// taken together, with the case's own.
		t.count = 1
		for this := range order {
			place[this] = 0
			if this != 0 && slices.Contains(overlap[this], true) {
				place[this] = t.count
				t.count++
			}
		}
	}
	for id, this := range t.of {
		t.of[id] = place[this]
	}
	t.reads, t.repeats, t.stuck = make([]bool, t.count), make([]bool, t.count), make([]bool, t.count)
	return t, nil
}

// threaded tells whether the program has several threads.
func (p *program) threaded() bool { return p.threads != nil && p.threads.count > 1 }

// unordered tells whether the program leaves the order between threads open.
func (p *program) unordered() bool { return p.threaded() && p.threads.free }

// whole removes calls that nobody knows the end of, though their thread went on:
// the record lost it.
func whole(calls []trace.Call) []trace.Call {
	last := make(map[int]int)
	for i := range calls {
		last[calls[i].Thread] = i
	}
	var kept []trace.Call
	for i := range calls {
		if calls[i].Returned || last[calls[i].Thread] == i {
			kept = append(kept, calls[i])
		}
	}
	return kept
}

// stepsOf folds the calls of each thread and returns all steps in the order in
// which they began.
func (t *threads) stepsOf(calls []trace.Call) []step {
	of := make([][]trace.Call, t.count)
	for _, c := range calls {
		of[t.of[c.Thread]] = append(of[t.of[c.Thread]], c)
	}
	stream := streams(calls)
	var steps []step
	for thread, calls := range of {
		for _, s := range fold(calls, stream) {
			s.thread = thread
			steps = append(steps, s)
		}
	}
	slices.SortStableFunc(steps, func(a, b step) int { return cmp.Compare(a.number, b.number) })
	return steps
}

// arrange tells of each step where it belongs, and what it has to wait for.
func (p *program) arrange(steps []step) error {
	t := p.threads
	start := slices.IndexFunc(steps, func(s step) bool { return s.thread != 0 })
	if start < 0 { // only marks were of another thread
		t.count, t.free = 1, false
		return nil
	}
	finished := time.Duration(0)
	for thread := range t.count {
		for i := range steps {
			if s := &steps[i]; s.thread == thread && !isMark(s.Call) {
				// Or its end is among what is missing.
				t.stuck[thread] = !s.Returned && s.Number >= t.complete
				if thread != 0 && s.Returned {
					finished = max(finished, s.end())
				}
			}
		}
	}
	for i := range steps {
		s := &steps[i]
		s.part = during
		switch {
		case s.thread == 0 && i < start && s.end() <= steps[start].began:
			s.part = before
		case t.free && s.thread == 0 && s.began >= finished:
			s.part = after
		}
	}
	if !t.free {
		t.order(steps)
		return nil
	}
	for thread := range t.count {
		does := func(other func(c *trace.Call) bool) bool {
			return slices.ContainsFunc(steps, func(s step) bool {
				return s.thread == thread && s.part == during && other(s.Call)
			})
		}
		t.reads[thread] = !does(func(c *trace.Call) bool { return !reads(c) })
		t.repeats[thread] = p.counting && t.missing > 0 && !does(func(c *trace.Call) bool { return !reads(c) && !sends(c) })
	}
	t.unwatched = p.counting || p.complains() || p.hangs()
	if !t.unwatched && (t.missing > 0 || slices.Contains(t.reads, true)) {
		return errOverlap
	}
	return nil
}

// reads tells whether a call only takes what is there.
func reads(c *trace.Call) bool {
	return c.Name == "recvfrom" || c.Name == "recvmsg" || c.Name == "poll" || hurries(c)
}

// sends tells whether a call sends data.
func sends(c *trace.Call) bool {
	return c.Name == "sendto" || c.Name == "sendmsg" || c.Name == "sendmmsg"
}

// order finds out what each step waits for in other threads, leaving out what
// follows from what they have waited for before.
func (t *threads) order(steps []step) {
	// A clock says of each thread how many beginnings and ends of its steps are
	// known to be over.
	type clock []int
	begin, end := make([]clock, len(steps)), make([]clock, len(steps))
	last := make([]int, t.count) // step of each thread so far
	for i := range last {
		last[i] = -1
	}
	position := make([]int, len(steps)) // among those of its thread
	for i := range steps {
		s := &steps[i]
		now := make(clock, t.count)
		if before := last[s.thread]; before >= 0 {
			copy(now, end[before])
			position[i] = position[before] + 1
		}
		if s.part == during {
			// The latest first: what it has waited for itself is then known.
			var others []int
			for thread, other := range last {
				if thread != s.thread && other >= 0 {
					others = append(others, other)
				}
			}
			slices.SortFunc(others, func(a, b int) int { return cmp.Compare(b, a) })
			for _, other := range others {
				o := &steps[other]
				if o.part == before { // before there were threads
					continue
				}
				running := o.end() > s.began
				known, clocked := 2*position[other]+2, end[other]
				if running {
					known, clocked = 2*position[other]+1, begin[other]
				}
				if now[o.thread] >= known {
					continue
				}
				for thread, at := range clocked {
					now[thread] = max(now[thread], at)
				}
				point := &o.ended
				if running {
					point = &o.begun
				}
				if *point == 0 {
					t.points++
					*point = t.points
				}
				s.waits = append(s.waits, *point)
				if running && o.end() >= s.end() {
					s.settles = true
				}
			}
		}
		now[s.thread] = max(now[s.thread], 2*position[i]+1)
		begin[i] = now
		end[i] = slices.Clone(now)
		end[i][s.thread]++
		last[s.thread] = i
	}
}

// bracket puts what a step waits for, and what waits for it, around its blocks.
func (p *program) bracket(s *step, first int) {
	if first == len(p.blocks) {
		if len(s.waits) == 0 && s.begun == 0 && s.ended == 0 {
			return
		}
		p.blocks = append(p.blocks, block{thread: s.thread, part: s.part})
	}
	var waits, reached []string
	for _, point := range s.waits {
		waits = append(waits, fmt.Sprintf("wait_for(%d);", point))
	}
	if s.settles {
		waits = append(waits, "settle();")
	}
	if s.begun > 0 {
		reached = append(reached, fmt.Sprintf("reach(%d);", s.begun))
	}
	b := &p.blocks[first]
	b.before = append(waits, b.before...)
	last := &p.blocks[len(p.blocks)-1]
	// The buffers are filled before the call is announced.
	if last == b {
		b.before = append(b.before, reached...)
	} else {
		last.before = append(reached, last.before...)
	}
	if s.ended > 0 {
		last.after = append(last.after, fmt.Sprintf("reach(%d);", s.ended))
	}
}

// while writes what a thread that only reads does until the others are done.
func (p *program) while(blocks []block) []block {
	var lines []string
	known := make(map[string]bool)
	for _, b := range blocks {
		text := strings.Join(b.text(), "\n")
		if !known[text] {
			known[text] = true
			lines = append(lines, strings.Split(text, "\n")...)
		}
	}
	return []block{loop("while (!finished)", lines)}
}

// repetitions is how often threads make the calls that are known of them, where that
// can be done: so often that they send as much as the case did. With the few sends
// that happen to be in the record a race might never be lost.
func (p *program) repetitions() int64 {
	if !slices.Contains(p.threads.repeats, true) || p.zerocopies == 0 {
		return 1
	}
	return max((p.sends+p.zerocopies-1)/p.zerocopies, 1)
}

// again repeats blocks.
func again(blocks []block, times int64) []block {
	if times == 1 || len(blocks) == 0 {
		return blocks
	}
	return []block{loop(fmt.Sprintf("for (again = 0; again < %d; again++)", times), linesOf(blocks))}
}

// function is a function of the program.
type function struct {
	name   string
	blocks []block
}

// functions splits the blocks of a program with threads into what is done before
// and after them, and what each does.
func (p *program) functions() (first, own, last []block, of [][]block) {
	of = make([][]block, p.threads.count)
	for _, b := range p.blocks {
		switch {
		case b.part == before:
			first = append(first, b)
		case b.part == after:
			last = append(last, b)
		default:
			of[b.thread] = append(of[b.thread], b)
		}
	}
	for thread := range of {
		if p.unordered() && p.threads.unwatched && p.threads.reads[thread] && len(of[thread]) > 0 {
			of[thread] = p.while(of[thread])
		} else if of[thread] = loops(of[thread]); p.threads.repeats[thread] {
			of[thread] = again(of[thread], p.repetitions())
		}
	}
	if !p.unordered() { // the case's own thread goes on in the function that starts the others
		own, of[0] = of[0], nil
	}
	return loops(first), own, loops(last), of
}

// rounds is how often the program repeats everything.
func (p *program) rounds() int {
	if p.unordered() {
		return 20
	}
	return 6
}

// scenario writes the functions of the threads and the one that does everything
// once, and returns how many steps they have.
func (p *program) scenario() (text string, steps int) {
	first, own, last, of := p.functions()
	steps = len(first) + len(own) + len(last)
	var functions []function
	name := make([]string, len(of))
	for thread, blocks := range of {
		if len(blocks) == 0 {
			continue
		}
		// Threads that do the same are one function.
		at := slices.IndexFunc(functions, func(f function) bool { return equalText(f.blocks, blocks) })
		if at < 0 {
			at = len(functions)
			functions = append(functions, function{fmt.Sprintf("thread_%d", at+1), blocks})
			steps += len(blocks)
		}
		name[thread] = functions[at].name
	}
	starts, joins := p.start(name)

	// The variables are of all functions, so what nobody uses is looked for in
	// all of them.
	sections := make([][]string, 0, len(functions)+1)
	for _, f := range functions {
		sections = append(sections, linesOf(f.blocks))
	}
	sections = append(sections, slices.Concat(linesOf(first), starts, linesOf(own), joins, linesOf(last)))
	p.variables = p.declarations(sections)

	var all strings.Builder
	for i, f := range functions {
		body := append(p.locals(sections[i], false), sections[i]...)
		writeFunction(&all, fmt.Sprintf("static void *%s(void *unused)", f.name), append(body, "return unused;"))
	}
	body := sections[len(sections)-1]
	lines := p.locals(body, true)
	if p.hangs() {
		lines = append(lines, catchHang...)
	}
	lines = append(lines, body...)
	writeFunction(&all, "static int scenario(void)", append(lines, "", p.shown()))
	return all.String(), steps
}

// shown is the statement by which one round tells whether the fault showed.
func (p *program) shown() string {
	switch {
	case p.complains(), p.hangs():
		return "return 0;" // the kernel says it, or the signal
	case p.counting:
		return "return !exactly_once();"
	}
	return "return !differs;"
}

// start writes how the threads are started and waited for. Those that only read
// end when the others have.
func (p *program) start(name []string) (starts, joins []string) {
	var late []string
	number := 0
	for thread, function := range name {
		if function == "" {
			continue
		}
		starts = append(starts, fmt.Sprintf("start(&threads[%d], %s);", number, function))
		join := fmt.Sprintf("pthread_join(threads[%d], NULL);", number)
		switch {
		case p.threads.stuck[thread] && !p.complains() && !p.hangs():
			// It does not end; the process does.
		case p.unordered() && p.threads.unwatched && p.threads.reads[thread]:
			late = append(late, join)
		default:
			joins = append(joins, join)
		}
		number++
	}
	if p.unordered() && slices.Contains(p.threads.reads, true) {
		joins = append(joins, "finished = 1;")
	}
	p.started = number
	return starts, append(joins, late...)
}

func equalText(a, b []block) bool {
	return slices.Equal(linesOf(a), linesOf(b))
}

func linesOf(blocks []block) []string {
	var lines []string
	for _, b := range blocks {
		for _, line := range b.text() {
			lines = append(lines, strings.Split(line, "\n")...)
		}
	}
	return lines
}

// declarations declares the variables that several functions use, which are all
// that hold descriptors, ports and memory, and removes assignments that nobody
// needs.
func (p *program) declarations(sections [][]string) string {
	body := slices.Concat(sections...)
	var lines []string
	for _, declaration := range p.declared {
		variable := strings.TrimLeft(declaration[strings.LastIndex(declaration, " ")+1:], "*")
		if !dropUnused(body, variable) {
			lines = append(lines, "static "+declaration+";")
		}
	}
	for i := range sections {
		copy(sections[i], body[:len(sections[i])])
		body = body[len(sections[i]):]
	}
	if len(lines) == 0 {
		return ""
	}
	return strings.Join(lines, "\n") + "\n"
}

// locals declares what each function has for itself.
func (p *program) locals(body []string, starts bool) []string {
	used := words(strings.Join(body, "\n"))
	var lines []string
	if starts {
		lines = append(lines, fmt.Sprintf("pthread_t threads[%d];", max(p.started, 1)))
	}
	lines = append(lines, scratch(used)...)
	if counters := counters(used); len(counters) > 0 {
		lines = append(lines, "int "+strings.Join(counters, ", ")+";")
	}
	if len(lines) > 0 {
		lines = append(lines, "")
	}
	return lines
}

func writeFunction(text *strings.Builder, head string, lines []string) {
	text.WriteString(head + "\n{\n")
	writeLines(text, lines)
	text.WriteString("}\n\n")
}

func writeLines(text *strings.Builder, lines []string) {
	for _, line := range lines {
		for each := range strings.SplitSeq(line, "\n") {
			if each != "" {
				text.WriteString("\t" + each)
			}
			text.WriteString("\n")
		}
	}
}

// mainOfThreads writes the program's main function, which repeats the scenario.
func (p *program) mainOfThreads() string {
	scenario, steps := p.scenario()
	p.written = steps
	var text strings.Builder
	if p.hangs() {
		text.WriteString(hung)
	}
	text.WriteString(scenario)
	text.WriteString("int main(void)\n{\n")
	log := ""
	if p.complains() {
		log = "log"
		writeLines(&text, []string{openLog, "int round, shown = 0;", "", seekLog})
	} else {
		writeLines(&text, []string{"int round, shown = 0;", ""})
	}
	_, why := p.fault()
	count := p.rounds()
	writeLines(&text, []string{fmt.Sprintf("for (round = 0; round < %d; round++) {", count)})
	switch {
	case log != "":
		writeLines(&text, []string{"\tonce(round, scenario);", "\tif (complained(log)) {", "\t\tshown = 1;", "\t\tbreak;", "\t}"})
	case p.hangs():
		writeLines(&text, []string{"\tif (once(round, scenario)) {", "\t\tshown = 1;", "\t\tbreak;", "\t}"})
	default:
		writeLines(&text, []string{"\tshown += once(round, scenario);"})
	}
	writeLines(&text, []string{"}", "if (shown) {"})
	if log == "" && !p.hangs() {
		writeLines(&text, []string{fmt.Sprintf("\tprintf(\"the fault showed in %%d of %d rounds\\n\", shown);", count)})
	}
	writeLines(&text, []string{
		fmt.Sprintf("\tputs(%s);", quote([]byte("FAULT: "+printable(why)))),
		"\treturn 1;",
		"}",
		fmt.Sprintf("puts(\"the fault does not show in %d rounds\");", count),
		"return 0;",
	})
	text.WriteString("}\n")
	return text.String()
}

// aboutThreads says in the comment of the program what it does with threads.
func (p *program) aboutThreads() string {
	about := fmt.Sprintf("The case had %d threads in the kernel at the same time, and so has the program. ", p.threads.count)
	if !p.threads.free {
		return about + "The calls of several threads come in the order of the record where they did not overlap; where one was under way " +
			"when another thread acted, that one waits until it begins, and every other time a moment longer, for it to fall asleep. " +
			fmt.Sprintf("It depends on the moment what comes of it, so everything is done %d times.", p.rounds())
	}
	if p.threads.missing > 0 {
		about += fmt.Sprintf("There were %d calls more than the record has, so each thread makes those that are known, and none of what is missing between them. ", p.threads.missing)
		if times := p.repetitions(); times > 1 {
			about += fmt.Sprintf("The case sent %d times, of which few are known, so they are repeated %d times. ", p.sends, times)
		}
	}
	return about + "They run freely, and those that only read do so until the others are done. " +
		fmt.Sprintf("It depends on the moment what comes of it, so everything is done %d times; a kernel with the fault may need more.", p.rounds())
}
