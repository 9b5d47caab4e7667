// SPDX-License-Identifier: BSD-3-Clause

package suite

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/zcvet/zcvet/guest/link"
	"github.com/zcvet/zcvet/harness/fault"
	"github.com/zcvet/zcvet/harness/splat"
	"github.com/zcvet/zcvet/harness/verdict"
)

// session is the conversation with one machine: what its agent says on the link,
// what its kernel says on the console, and whether it is still there.
//
// Three goroutines feed it: the readers of the links, which close waits for, and
// the machine's console reader, which ends with the machine.
type session struct {
	runner     *runner
	vm         VM
	processors int        // of vm
	traced     []uint64   // where the agent of vm records the system calls
	conn       *link.Conn // to PID 1
	cases      *link.Conn // to the worker

	// messages are what both say. Silent is closed when the links have ended with
	// their machine, and all was taken.
	messages chan received
	silent   chan struct{}
	readers  sync.WaitGroup
	closed   chan struct{}
	// read is how many frames of the worker have been dealt with.
	read uint32

	scanner *splat.Scanner
	shown   string // the case the console is at; only the console reader uses it
	// complained has one element while the console has shown something new.
	complained chan struct{}
	lock       sync.Mutex    // guards the fields below, which the console reader writes
	found      []splat.Splat // which is not in the result yet
	lastLine   time.Time
	unreadable bool // found says so
	// said is what the console has shown of each case, until the case is over.
	said map[string][]string
	// ended holds the cases whose end the console has shown and the link has
	// not: the guest does not wait for us, and is ahead on either of them.
	ended map[string]bool

	// marked has one element while ended has a new one.
	marked chan struct{}

	// history is which case began when.
	history []event
	tainted uint64
}

// received is a message, or the error of a link that carries what the agent cannot
// have sent.
type received struct {
	message *link.Message
	err     error
	worker  bool // it comes from the worker
}

func newSession(r *runner, processors int) *session {
	return &session{
		runner:     r,
		read:       1, // its Hello, which awaitHello takes, or has taken before a snapshot
		processors: processors,
		messages:   make(chan received),
		silent:     make(chan struct{}),
		closed:     make(chan struct{}),
		complained: make(chan struct{}, 1),
		marked:     make(chan struct{}, 1),
		ended:      make(map[string]bool),
		said:       make(map[string][]string),
		scanner:    splat.NewScanner(splat.Options{Allowed: r.Allowed}),
	}
}

// attach starts reading the links of vm.
func (s *session) attach(vm VM, conn, cases *link.Conn) {
	s.vm, s.conn, s.cases = vm, conn, cases
	s.readers.Go(func() { s.listen(conn, false) })
	s.readers.Go(func() { s.listen(cases, true) })
	go func() {
		s.readers.Wait()
		close(s.silent)
	}()
}

// listen reads a link until it ends.
func (s *session) listen(conn *link.Conn, worker bool) {
	for {
		message, err := conn.Receive()
		if err != nil && !errors.Is(err, link.ErrCorrupt) {
			return // with the machine, and Done says why
		}
		select {
		case s.messages <- received{message, err, worker}:
		case <-s.closed:
			return
		}
		if err != nil {
			return
		}
	}
}

// close ends the machine and the readers of its links.
func (s *session) close() {
	close(s.closed)
	if err := s.vm.Close(); err != nil {
		s.runner.console.note("close: %v", err)
	}
	s.readers.Wait()
}

// consoleLine takes one line of the console.
func (s *session) consoleLine(line string) {
	s.runner.console.line(line)
	id, start, marked := link.ParseMark(line)
	if marked && start {
		s.shown = id
		s.scanner.SetCase(id)
	}
	if !marked {
		s.hear(line)
	}
	_, err := s.scanner.Write([]byte(line + "\n"))
	s.collect(err)
	if marked && !start {
		s.lock.Lock()
		s.ended[s.shown] = true
		s.lock.Unlock()
		signal(s.marked)
	}
}

// signal leaves one element in a channel that holds one.
func signal(channel chan struct{}) {
	select {
	case channel <- struct{}{}:
	default:
	}
}

// awaitMark waits until the console has shown everything up to the end of a case;
// at most patience, for a console that lost the mark.
func (s *session) awaitMark(ctx context.Context, id string, patience time.Duration) {
	limit := time.NewTimer(patience)
	defer limit.Stop()
	for {
		s.lock.Lock()
		ended := s.ended[id]
		delete(s.ended, id)
		s.lock.Unlock()
		if ended {
			return
		}
		select {
		case <-s.marked:
		case <-limit.C:
			s.runner.console.note("the console never showed the end of %s", id)
			return
		case <-s.vm.Done():
			return
		case <-ctx.Done():
			return
		}
	}
}

// flush ends the report that is being read, if any: no more console will come.
func (s *session) flush() { s.collect(s.scanner.Close()) }

// collect takes the finished reports from the scanner. A console it cannot read
// is a complaint too: a green result would say that the kernel was silent, and
// that is not known.
func (s *session) collect(err error) {
	splats := s.scanner.Take()
	s.lock.Lock()
	defer s.lock.Unlock()
	s.lastLine = time.Now()
	if err != nil && !s.unreadable {
		s.unreadable = true
		splats = append(splats, splat.Splat{Kind: splat.Unreadable, Title: err.Error(), Case: s.shown})
	}
	s.found = append(s.found, splats...)
	if len(splats) > 0 {
		signal(s.complained)
	}
}

// fresh returns the reports that are not in the result yet.
func (s *session) fresh() []splat.Splat {
	s.lock.Lock()
	defer s.lock.Unlock()
	return slices.Clone(s.found)
}

// keepSplats moves what the console of s has said into the result, but for what it
// says of a case that is still to end: the guest is ahead of the link at times.
func (r *runner) keepSplats(s *session) {
	s.lock.Lock()
	defer s.lock.Unlock()
	s.found = slices.DeleteFunc(s.found, func(said splat.Splat) bool {
		if c := r.find(said.Case); c != nil && c.Status == "" {
			return false
		}
		r.result.Splats = append(r.result.Splats, said)
		return true
	})
}

// keepRest moves everything into the result, when the machine has come to its end.
func (r *runner) keepRest(s *session) {
	s.lock.Lock()
	defer s.lock.Unlock()
	r.result.Splats = append(r.result.Splats, s.found...)
	s.found = nil
}

// fatal tells whether a machine that printed this is of no further use: what ran
// was torn out with its locks held, a processor is lost, or nobody can read what
// it prints next.
func fatal(s splat.Splat) bool {
	switch s.Kind {
	case splat.Oops, splat.Bug, splat.Panic, splat.Lockup, splat.RCUStall, splat.Hang, splat.Unreadable:
		return true
	}
	return false
}

// settle waits until the console has been quiet for a moment, so that a trace
// that is being printed is read to its end; at most patience.
func (s *session) settle(ctx context.Context, patience time.Duration) {
	const quiet = 200 * time.Millisecond
	limit := time.NewTimer(patience)
	defer limit.Stop()
	tick := time.NewTicker(quiet / 4)
	defer tick.Stop()
	started := time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-limit.C:
			return
		case <-s.vm.Done():
			return
		case <-s.messages:
			// What the agent says of a machine that is given up is not wanted,
			// but it must not block the link.
		case <-tick.C:
			s.lock.Lock()
			last := s.lastLine
			s.lock.Unlock()
			if last.Before(started) {
				last = started
			}
			if time.Since(last) >= quiet {
				return
			}
		}
	}
}

// awaitHello waits for the agent. Its errors are of class Boot and carry the end
// of the console, and of what PID 1 says of a worker that is late.
func (s *session) awaitHello(ctx context.Context) (*link.Hello, error) {
	var said []string
	failed := func(format string, args ...any) error {
		s.flush()
		output := append([]string{s.runner.console.tail()}, said[max(0, len(said)-tailLines):]...)
		return fault.New(fault.Boot, format, args...).WithOutput(strings.Join(output, "\n"))
	}
	limit := time.NewTimer(s.runner.Patience.Boot)
	defer limit.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-limit.C:
			return nil, failed("the guest agent was not ready after %v", s.runner.Patience.Boot)
		case <-s.complained:
			for _, complaint := range s.fresh() {
				if fatal(complaint) {
					s.settle(ctx, s.runner.Patience.Backtrace)
					return nil, failed("the kernel did not boot: %s", complaint.Title)
				}
			}
		case <-s.vm.Done():
			s.flush()
			for _, complaint := range s.fresh() {
				if fatal(complaint) {
					return nil, failed("the kernel did not boot: %s", complaint.Title)
				}
			}
			if err := s.vm.Err(); err != nil {
				return nil, failed("the machine ended before the guest agent was ready: %w", err)
			}
			return nil, failed("the machine powered off before the guest agent was ready")
		case got := <-s.messages:
			if got.err != nil {
				return nil, failed("the guest agent: %w", got.err)
			}
			switch got.message.Kind {
			case link.KindHello:
				hello, err := link.Decode[link.Hello](got.message)
				if err != nil {
					return nil, failed("the guest agent: %w", err)
				}
				if hello.Version != link.Version {
					return nil, fault.New(fault.Infrastructure, "the agent speaks version %d of the guest link, this zcvet version %d", hello.Version, link.Version).
						WithAdvice("build both from the same tree")
				}
				return &hello, nil
			case link.KindLog:
				log, err := link.Decode[link.Log](got.message)
				if err != nil {
					return nil, failed("the guest agent: %w", err)
				}
				said = append(said, log.Lines...)
			case link.KindFatal:
				fatal, err := link.Decode[link.Fatal](got.message)
				if err != nil {
					return nil, failed("the guest agent: %w", err)
				}
				return nil, failed("the guest agent gave up: %s", fatal.Error)
			}
		}
	}
}

// powerOff asks the agent to power off and waits for it.
func (s *session) powerOff(ctx context.Context) error {
	if err := s.conn.Send(link.KindShutdown, nil); err != nil {
		return err
	}
	limit := time.NewTimer(s.runner.Patience.Silence)
	defer limit.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-limit.C:
			return fmt.Errorf("the guest did not power off within %v", s.runner.Patience.Silence)
		case <-s.vm.Done():
			s.flush()
			return s.vm.Err()
		case <-s.messages:
		}
	}
}

// runIn has the agent of s run the cases in left, in this order, and returns how
// many of them got a status. The error is errLost when the machine cannot be used
// any more, errSpent when no other case can run in it; the case that ran has its
// status then.
func (r *runner) runIn(ctx context.Context, s *session, left []string) (finished int, err error) {
	parameters := r.Parameters
	parameters.CaseTimeout = r.Patience.Case
	if err := s.cases.Send(link.KindRun, link.Run{Instances: left, Parameter: parameters}); err != nil {
		return 0, lost("%v", err)
	}
	w := &watch{
		runner: r, session: s, started: time.Now(),
		silence: time.NewTimer(r.Patience.Silence), life: time.NewTimer(r.Patience.Machine(len(left))),
	}
	defer w.silence.Stop()
	defer w.life.Stop()
	err = w.run(ctx)
	if err == nil && w.finished < len(left) && !r.enough() {
		err = lost("the agent says that it is done after %d of %d cases", w.finished, len(left))
	}
	return w.finished, err
}

// watch follows one Run of the agent.
type watch struct {
	*runner
	session  *session
	finished int
	current  *verdict.Case // the case that runs, nil between cases
	started  time.Time     // of the case that runs, or of the wait for the next one
	silence  *time.Timer
	life     *time.Timer
	// lost is how the worker died, until what it sent before has been dealt with.
	lost *link.Lost
}

func (w *watch) run(ctx context.Context) error {
	s := w.session
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()

		case <-s.complained:
			if err := w.complaint(ctx); err != nil {
				return err
			}

		case <-s.vm.Done():
			return w.gone(ctx)

		case <-w.silence.C:
			return w.hang(ctx, fmt.Sprintf("no sign of life from PID 1 for %v", w.Patience.Silence))

		case <-w.life.C:
			return w.hang(ctx, "the machine has had the time of all its cases")

		case got := <-s.messages:
			if got.err != nil {
				w.finish(verdict.Fail, got.err.Error())
				return lost("%v", got.err)
			}
			w.silence.Reset(w.Patience.Silence)
			done, err := w.message(ctx, got.message)
			if got.worker {
				s.read = got.message.Number + 1
			}
			if err == nil && w.lost != nil && s.read >= w.lost.Frames {
				err = w.workerLost(ctx)
			}
			if done || err != nil {
				return err
			}
			if got.message.Kind == link.KindCaseEnd && w.enough() {
				return nil
			}
			// The agent kills a case that takes too long. If it cannot, or never
			// gets to the next one, PID 1 may well be alive and send heartbeats
			// for ever.
			if time.Since(w.started) > w.Patience.Suite {
				if w.current == nil {
					return w.hang(ctx, "the agent starts no case")
				}
				return w.hang(ctx, "the agent could not end the case")
			}
		}
	}
}

// message handles one message; done is true at the end of the Run.
func (w *watch) message(ctx context.Context, message *link.Message) (done bool, err error) {
	switch message.Kind {
	case link.KindHeartbeat:
	case link.KindLost:
		body, err := link.Decode[link.Lost](message)
		if err != nil {
			return false, w.protocol(err)
		}
		w.lost = &body
	case link.KindCaseStart:
		body, err := link.Decode[link.CaseStart](message)
		if err != nil {
			return false, w.protocol(err)
		}
		w.current = w.find(body.ID)
		if w.current == nil {
			return false, w.protocol(fmt.Errorf("the agent started %q, which is not in the suite", body.ID))
		}
		w.started = time.Now()
		w.session.history = append(w.session.history, event{body.ID, body.At})
	case link.KindLog:
		body, err := link.Decode[link.Log](message)
		if err != nil {
			return false, w.protocol(err)
		}
		if c := w.find(body.ID); c != nil && c.Status != verdict.Pass && c.Status != verdict.Skip {
			c.Log = append(c.Log, body.Lines...)
		}
	case link.KindCaseEnd:
		body, err := link.Decode[link.CaseEnd](message)
		if err != nil {
			return false, w.protocol(err)
		}
		return false, w.caseEnd(ctx, body)
	case link.KindCall:
		call, err := link.Decode[link.Call](message)
		if err != nil {
			return false, w.protocol(err)
		}
		return false, w.call(ctx, call)
	case link.KindDone:
		return true, w.complaint(ctx)
	case link.KindFatal:
		body, err := link.Decode[link.Fatal](message)
		if err != nil {
			return false, w.protocol(err)
		}
		// PID 1 gives up over a process that not even SIGKILL ends: it is stuck in
		// the kernel, on the one processor, while PID 1 runs on the other.
		w.session.flush()
		if w.crashed() {
			return false, lost("%s", body.Error)
		}
		return false, w.hang(ctx, "the agent gave up: "+body.Error)
	}
	return false, nil
}

func (w *watch) protocol(err error) error {
	w.finish(verdict.Fail, "guest link: "+err.Error())
	return lost("%v", err)
}

func (w *watch) call(ctx context.Context, call link.Call) error {
	reply := link.Reply{Number: call.Number}
	result, err := w.session.vm.Call(ctx, call.Method, call.Args)
	if err != nil {
		reply.Error = err.Error()
	} else if reply.Result, err = marshal(result); err != nil {
		reply.Error = err.Error()
	}
	if err := w.session.cases.Send(link.KindReply, reply); err != nil {
		// The machine is going down; Done or the silence will say so.
		w.console.note("reply to %s: %v", call.Method, err)
	}
	return nil
}

// workerLost ends the case that the worker died of.
func (w *watch) workerLost(ctx context.Context) error {
	end := w.lost.CaseEnd
	if c := w.find(end.ID); c == nil || c.Status != "" {
		w.console.note("the worker was lost between two cases: %s", end.Detail)
		return fmt.Errorf("%w: %s", errSpent, end.Detail)
	}
	if err := w.caseEnd(ctx, end); err != nil {
		return err
	}
	return errSpent
}

// caseEnd stores a result, once the console has caught up with the link.
func (w *watch) caseEnd(ctx context.Context, end link.CaseEnd) error {
	c := w.find(end.ID)
	if c == nil {
		return w.protocol(fmt.Errorf("the agent ended %q, which is not in the suite", end.ID))
	}
	w.session.awaitMark(ctx, end.ID, w.Patience.Backtrace)
	fresh := end.Tainted &^ w.session.tainted
	w.session.tainted |= end.Tainted
	complaints := w.blamePast(c)
	w.keepTrace(end)
	w.current = c
	c.MS = end.Took.Milliseconds()
	for _, measurement := range end.Measurements {
		c.Measurements = append(c.Measurements, verdict.Measurement(measurement))
	}
	if w.crashed() {
		return lost("%s", c.Detail)
	}
	status, detail := verdict.Status(end.Status), end.Detail
	switch {
	case status != verdict.Pass && status != verdict.Fail && status != verdict.Skip && status != verdict.Timeout:
		status, detail = verdict.Fail, fmt.Sprintf("the agent reported the unknown status %q", end.Status)
	case len(complaints) > 0:
		detail = joinDetail(detail, "kernel splat while the case ran: "+complaints[0].Title)
		status = verdict.Fail
	case fresh != 0 && status == verdict.Pass:
		status, detail = verdict.Fail, fmt.Sprintf("the kernel became tainted (bits %#x) while the case ran, and said nothing on the console", fresh)
	}
	w.finish(status, detail)
	if end.Spent {
		return errSpent
	}
	return nil
}

func joinDetail(detail, more string) string {
	if detail == "" {
		return more
	}
	return detail + "; " + more
}

// complaint looks at what the console has shown. A splat the kernel survives is
// dealt with when the case ends; one it does not survive ends the machine.
func (w *watch) complaint(ctx context.Context) error {
	for _, complaint := range w.session.fresh() {
		if fatal(complaint) {
			w.session.settle(ctx, w.Patience.Backtrace)
			w.session.flush()
			w.crashed()
			return lost("%s", complaint.Title)
		}
	}
	if w.current == nil {
		w.blamePast(nil)
		w.keepSplats(w.session)
	}
	return nil
}

// blamePast fails the cases that had passed before the kernel complained of what
// they did, and returns the complaints about the case that is ending. What belongs
// to no case is put down to that, too.
func (w *watch) blamePast(ending *verdict.Case) (complaints []splat.Splat) {
	for _, complaint := range w.session.fresh() {
		switch c := w.find(complaint.Case); {
		case c == ending || c == nil:
			complaints = append(complaints, complaint)
		case c.Status == verdict.Pass:
			c.Status = verdict.Fail
			c.Detail = "kernel splat after the case: " + complaint.Title
		}
	}
	return complaints
}

// crashed gives the status crash to the case that a fatal splat belongs to, and
// tells whether there was one. That case may have ended well before: then it left
// something behind that killed the kernel, and its result does not stand.
func (w *watch) crashed() bool {
	for _, complaint := range w.session.fresh() {
		if !fatal(complaint) {
			continue
		}
		if owner := w.find(complaint.Case); owner != nil {
			w.current = owner
		}
		w.finish(verdict.Crash, complaint.Title)
		return true
	}
	return false
}

// gone handles a machine that ended by itself.
func (w *watch) gone(ctx context.Context) error {
	w.readRest(ctx)
	w.session.flush()
	if w.crashed() {
		return lost("the kernel crashed")
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	reason := "the guest powered off while the case ran"
	if err := w.session.vm.Err(); err != nil {
		reason = err.Error()
	}
	w.finish(verdict.Crash, reason)
	return lost("%s", reason)
}

// readRest reads what the agent sent before its machine ended: which case ran last
// may be among it.
func (w *watch) readRest(ctx context.Context) {
	limit := time.NewTimer(w.Patience.Backtrace)
	defer limit.Stop()
	for {
		select {
		case got := <-w.session.messages:
			if got.err != nil {
				return
			}
			switch got.message.Kind {
			case link.KindCaseStart, link.KindCaseEnd, link.KindLog:
				if _, err := w.message(ctx, got.message); err != nil {
					return
				}
			}
		case <-w.session.silent:
			return
		case <-limit.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

// hang handles a machine that is there but does not answer. An NMI makes the
// kernel print where its processors are.
func (w *watch) hang(ctx context.Context, reason string) error {
	w.console.note("hang: %s; sending an NMI", reason)
	s := w.session
	s.scanner.BeginHang(reason)
	if err := s.vm.InjectNMI(ctx); err != nil {
		w.console.note("NMI: %v", err)
	} else {
		s.settle(ctx, w.Patience.Backtrace)
	}
	s.flush()
	if !w.crashed() {
		w.finish(verdict.Crash, "hang: "+reason)
	}
	return lost("hang: %s", reason)
}

// finish gives the case that runs its result, moves the splats over and keeps the
// NIC's evidence of a failure.
func (w *watch) finish(status verdict.Status, detail string) {
	c, started := w.current, w.started
	w.current, w.started = nil, time.Now()
	if c == nil {
		w.keepSplats(w.session)
		return
	}
	c.Status, c.Detail = status, detail
	w.keepSplats(w.session)
	if c.MS == 0 {
		c.MS = time.Since(started).Milliseconds()
	}
	said := w.session.heard(c.ID)
	if status == verdict.Pass || status == verdict.Skip {
		c.Log = nil
		delete(w.result.Traces, c.ID)
	} else {
		w.evidence(c, said)
	}
	w.finished++
	if w.OnCase != nil {
		w.OnCase(*c)
	}
}
