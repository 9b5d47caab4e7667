// SPDX-License-Identifier: BSD-3-Clause

// Package reproducer turns the system calls of a failed case into a C program that
// makes the same calls and tells whether the kernel answers as it did.
//
// The case judges what its calls give and nothing else; what it does or sees
// beside them is marked in the record. So a kernel that answers every call as
// recorded, up to the first expectation that failed, has the fault. Where the case
// checked that every send was notified exactly once, the program checks that
// instead: how the notifications are divided between calls depends on the moment.
//
// Threads of the case that were in the kernel together are threads of the program,
// see threads.go.
package reproducer

import (
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/zcvet/zcvet/guest/network"
	"github.com/zcvet/zcvet/guest/trace"
	"github.com/zcvet/zcvet/harness/verdict"
)

// About says what the program is to say about itself.
type About struct {
	Case    *verdict.Case
	Kernel  string // version
	Series  string // name, empty for none
	Command string // the zcvet command that runs the case
	// Style is the notification interface of the tree.
	Style trace.Style
	// Complaint is the title of what the kernel printed while the case ran, empty
	// if it printed nothing.
	Complaint string
}

// Impossible is the reason why there is no program.
type Impossible string

func (i Impossible) Error() string { return string(i) }

func impossible(format string, args ...any) error { return Impossible(fmt.Sprintf(format, args...)) }

var errNoCall = impossible("it failed before its first system call")

// Limits of a program that a person reads.
const (
	mostBlocks = 200
	mostBytes  = 16 << 20 // of a buffer
	mostSends  = 1 << 20  // that are counted
	mostLocal  = 1 << 20  // bytes of what each thread has for itself
)

// C writes the program. The error is an Impossible. The record comes from a guest
// and may hold anything.
func C(about About, record *trace.Record) ([]byte, error) {
	c := about.Case
	if l := network.Link(c.Link); l != "" && l != network.Loopback {
		return nil, impossible("it was seen on link %s, which a program cannot lay", c.Link)
	}
	if record == nil || len(record.Calls) == 0 {
		return nil, impossible("its system calls are not recorded")
	}
	p := &program{about: about, names: make(map[string]int), fds: make(map[int64]string), ports: make(map[uint32]string), buffers: make(map[string]bool), rings: make(map[int64]*ring)}
	calls, failure, err := p.relevant(record)
	if err != nil {
		return nil, err
	}
	end := len(calls)
	if p.layout, err = layoutOf(calls); err != nil {
		return nil, err
	}
	if p.threads, err = threadsOf(calls); err != nil {
		return nil, err
	}
	if p.threads.missing > 0 && !p.threaded() {
		return nil, impossible("it takes more calls than are recorded")
	}
	if p.failure = failure; failure == "" {
		p.failure = about.Complaint
	}
	if last := lastOf(record.Calls, calls); failure != "" && c.Status == verdict.Fail && p.violated(calls, last) {
		p.counting, p.watched = true, last.Argument(1)
	} else {
		calls = slices.DeleteFunc(slices.Clone(calls), func(c trace.Call) bool { return c.Name == trace.Expectation })
	}
	calls = slices.DeleteFunc(slices.Clone(calls), func(c trace.Call) bool { return c.Name == trace.Task })
	if len(calls) == 0 {
		return nil, errNoCall
	}
	steps := p.threads.stepsOf(whole(calls))
	if p.threaded() {
		if err := p.arrange(steps); err != nil {
			return nil, err
		}
	}
	for i := range steps {
		if err := p.step(steps, i); err != nil {
			return nil, err
		}
	}
	if p.counting && p.threads.missing > 0 && p.zerocopies == 0 {
		return nil, impossible("none of the sends is among the calls that are recorded")
	}
	p.thread, p.part = 0, after
	p.restore(record, end)
	return p.render()
}

// layoutOf returns a call that is laid out as all others are.
func layoutOf(calls []trace.Call) (*trace.Call, error) {
	is := func(narrow bool) func(c trace.Call) bool {
		return func(c trace.Call) bool { return !isMark(&c) && c.Narrow == narrow }
	}
	narrow := slices.IndexFunc(calls, is(true))
	switch {
	case narrow < 0:
		return &calls[0], nil
	case slices.ContainsFunc(calls, is(false)):
		return nil, impossible("it makes calls of a 32-bit task and others")
	}
	return &calls[narrow], nil
}

// lastOf returns the last of the calls that the thread made whose mark comes behind
// them in the record; the last of all if there is none.
func lastOf(record, calls []trace.Call) *trace.Call {
	last := &calls[len(calls)-1]
	if len(record) == len(calls) {
		return last
	}
	for i := range slices.Backward(calls) {
		if calls[i].Thread == record[len(calls)].Thread {
			return &calls[i]
		}
	}
	return last
}

// relevant returns the calls up to the first expectation that failed, and its
// message; all calls for a case that ended in another way.
func (p *program) relevant(record *trace.Record) (calls []trace.Call, failure string, err error) {
	calls = record.Calls
	end := slices.IndexFunc(calls, func(c trace.Call) bool { return c.Name == trace.Failure })
	waited := false // without a call
	switch {
	case end >= 0:
		failure = calls[end].Text(0)
		if end > 0 {
			waited = calls[end].Began-max(calls[end-1].Began, calls[end-1].Ended) > time.Second
		}
		calls = calls[:end]
	case p.about.Case.Status == verdict.Fail && p.about.Complaint == "":
		return nil, "", impossible("the record does not have the expectation that failed")
	case p.about.Case.Status == verdict.Timeout:
		waited = calls[len(calls)-1].Returned
	}
	for i := range calls {
		c := &calls[i]
		switch {
		case c.Name == trace.Host:
			return nil, "", impossible("it needs zcvet's NIC (%s)", printable(c.Text(0)))
		case c.Name == trace.Child:
			return nil, "", impossible("it needs a second process (%s), whose calls are not recorded", printable(c.Text(0)))
		case c.Name == trace.Beyond:
			return nil, "", impossible("it needs %s, beside system calls", printable(c.Text(0)))
		}
	}
	switch {
	case len(calls) == 0:
		return nil, "", errNoCall
	case waited:
		return nil, "", impossible("the case waited for something that no system call shows")
	}
	return calls, failure, nil
}

// violated tells whether a call is the expectation that each of a socket's sends was
// notified exactly once, and what was recorded says otherwise.
func (p *program) violated(calls []trace.Call, expectation *trace.Call) bool {
	fd, sends := expectation.Argument(1), expectation.Argument(2)
	if expectation.Name != trace.Expectation || expectation.Argument(0) != trace.ExactlyOnce || sends < 1 || sends > mostSends {
		return false
	}
	if p.threads.missing > 0 {
		return true // nobody can count, but the case has
	}
	notified := make([]int, sends)
	strays := false
	about := make(map[asked]int64)
	for i := range calls {
		c := &calls[i]
		if c.Name == trace.Request {
			about[asked{c.Argument(trace.RequestRing), c.Argument(trace.RequestUserData)}] = c.Argument(trace.RequestFD)
			continue
		}
		if c.Name == "socket" && c.Result == fd {
			clear(notified)
			strays = false
		}
		of := c.Argument(0)
		if c.Name == trace.Wait && len(c.Outcome) > trace.CompletionUserData {
			of = about[asked{of, c.Outcome[trace.CompletionUserData]}]
		}
		if of != fd || isMark(c) {
			continue
		}
		for _, n := range p.notifications(c) {
			for send := int64(n.low); send <= int64(n.high) && send < sends; send++ {
				notified[send]++
			}
			strays = strays || n.low > n.high || int64(n.high) >= sends
		}
	}
	return strays || slices.ContainsFunc(notified, func(times int) bool { return times != 1 })
}

func isMark(c *trace.Call) bool {
	return c.Name == trace.Failure || c.Name == trace.Expectation || c.Name == trace.Host || c.Name == trace.Task || c.Name == trace.Child || c.Name == trace.Beyond
}

// step is a call, or several that were one wait.
type step struct {
	*trace.Call
	// since is how long after the end of the step before it began.
	since time.Duration
	// wait tells that what came may need a moment.
	wait bool
	// pieces are the calls that together took a stream's data, of which the first
	// asked for all of it.
	pieces []*trace.Call
	last   bool

	// Number and began are those of the first of several calls.
	number int
	began  time.Duration
	// thread of the program, and which part of that it belongs to.
	thread int
	part   part
	// begun and ended are the points that others wait for, 0 for none; waits are
	// those that it waits for, settles tells that one of them is in the kernel then.
	begun, ended int
	waits        []int
	settles      bool
}

// end is when the last of the calls ended.
func (s *step) end() time.Duration {
	if s.pieces != nil {
		return ended(s.pieces[len(s.pieces)-1])
	}
	return ended(s.Call)
}

// took is how many bytes of a stream came in all, and the beginning of them; done
// that no more were to be asked for.
func (s *step) took() (total int64, data []byte, done bool) {
	for _, piece := range s.pieces {
		if piece.Result <= 0 {
			return total, data, true
		}
		if int64(len(data)) == total && len(piece.Out) > 0 {
			data = append(data, piece.Out[0].Bytes...)
		}
		total += piece.Result
	}
	return total, data, total >= s.pieces[0].Argument(2)
}

// fold makes one step of the calls that repeat a question until there was
// something, and of those that take a stream's data piece by piece. When the
// answer comes depends on the moment.
func fold(calls []trace.Call, stream map[int]bool) []step {
	var steps []step
	for i := range calls {
		c := &calls[i]
		s := step{Call: c, number: c.Number, began: c.Began}
		if i > 0 {
			s.since = c.Began - max(calls[i-1].Began, calls[i-1].Ended)
		}
		if stream[c.Number] && c.Argument(1) == 0 && c.Returned {
			s.pieces = []*trace.Call{c}
		}
		if len(steps) > 0 {
			before := &steps[len(steps)-1]
			switch {
			case before.pieces != nil && s.pieces != nil && before.Argument(0) == c.Argument(0):
				if _, _, done := before.took(); !done {
					before.pieces = append(before.pieces, c)
					continue
				}
			case sameQuestion(before.Call, c) && nothing(before.Call):
				s.since, s.wait = before.since, !nothing(c)
				s.number, s.began = before.number, before.began
				*before = s
				continue
			}
		}
		steps = append(steps, s)
	}
	// What only hurries the peer says nothing at the end.
	for len(steps) > 1 && hurries(steps[len(steps)-1].Call) {
		steps = steps[:len(steps)-1]
	}
	if len(steps) > 0 {
		steps[len(steps)-1].last = true
	}
	return steps
}

// streams returns the numbers of the calls that receive from a stream.
func streams(calls []trace.Call) map[int]bool {
	stream, from := make(map[int64]bool), make(map[int]bool)
	for i := range calls {
		switch c := &calls[i]; c.Name {
		case "socket":
			stream[c.Result] = c.Argument(1)&0xf == unix.SOCK_STREAM
		case "accept4":
			stream[c.Result] = stream[c.Argument(0)]
		case "recvfrom":
			from[c.Number] = stream[c.Argument(0)]
		}
	}
	return from
}

// hurries tells whether a call only makes a stream acknowledge what it has.
func hurries(c *trace.Call) bool {
	return c.Name == "setsockopt" && c.Argument(1) == unix.SOL_TCP && c.Argument(2) == unix.TCP_QUICKACK && c.Errno == 0
}

// sameQuestion tells whether two calls ask for the same thing.
func sameQuestion(a, b *trace.Call) bool {
	if a.Name != b.Name || !b.Returned {
		return false
	}
	switch a.Name {
	case "poll":
		return len(a.Arguments) > 0 && len(b.Arguments) > 0 && slices.Equal(a.Arguments[1:], b.Arguments[1:])
	case "epoll_wait":
		return a.Argument(0) == b.Argument(0)
	case "recvfrom":
		return slices.Equal(a.Arguments, b.Arguments)
	case "recvmsg":
		return a.Argument(0) == b.Argument(0) && a.Argument(1) == b.Argument(1)
	}
	return false
}

// nothing tells whether a call found that there is nothing yet.
func nothing(c *trace.Call) bool {
	switch c.Name {
	case "poll", "epoll_wait":
		return c.Returned && (c.Result == 0 || c.Errno == unix.EINTR)
	case "recvfrom", "recvmsg":
		return c.Returned && (c.Errno == unix.EAGAIN || c.Errno == unix.EINTR)
	}
	return false
}

// loops writes blocks that repeat themselves as loops.
func loops(blocks []block) []block {
	const longest = 8
	var out []block
	for i := 0; i < len(blocks); {
		best, times := 0, 1
		for length := 1; length <= longest && i+2*length <= len(blocks); length++ {
			n := 1
			for i+(n+1)*length <= len(blocks) && equal(blocks[i:i+length], blocks[i+n*length:i+(n+1)*length]) {
				n++
			}
			if n > 2 && n*length > best*times {
				best, times = length, n
			}
		}
		if best == 0 {
			out = append(out, blocks[i])
			i++
			continue
		}
		out = append(out, loop(fmt.Sprintf("for (turn = 0; turn < %d; turn++)", times), linesOf(blocks[i:i+best])))
		i += best * times
	}
	return out
}

// loop is a loop around lines.
func loop(head string, lines []string) block {
	b := block{lines: []string{head + " {"}}
	for _, line := range lines {
		b.lines = append(b.lines, "\t"+line)
	}
	b.lines = append(b.lines, "}")
	return b
}

func equal(a, b []block) bool {
	return slices.EqualFunc(a, b, func(a, b block) bool { return slices.Equal(a.text(), b.text()) })
}

// block is what the program does for one step.
type block struct {
	// before comes first: what later steps need to find prepared here.
	before, lines []string
	// after comes last, likewise.
	after []string
	// thread of the program, and which part of that it belongs to.
	thread int
	part   part
}

func (b block) text() []string { return slices.Concat(b.before, b.lines, b.after) }
