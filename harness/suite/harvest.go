// SPDX-License-Identifier: BSD-3-Clause

package suite

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/zcvet/zcvet/guest/cases"
	"github.com/zcvet/zcvet/guest/link"
	"github.com/zcvet/zcvet/harness/splat"
	"github.com/zcvet/zcvet/harness/verdict"
)

// harvest asks a machine that is about to be given up, and still works, for what
// its kernel has gathered: counters of executed lines and leaked memory. What is
// not there any more when a machine is lost, is missing from the result.
func (r *runner) harvest(ctx context.Context, s *session) {
	if r.here(cases.Kmemleak) {
		leaks, err := ask[link.Leaks](ctx, s, link.KindLeaks, r.Patience.Suite)
		if err == nil && leaks.Error != "" {
			err = errors.New(leaks.Error)
		}
		if err != nil {
			r.miss("leaked memory was not looked for: %v", err)
		}
		r.keepLeaks(leaks, s.history)
	}
	if r.here(cases.GCov) {
		counters, err := ask[link.Counters](ctx, s, link.KindCounters, r.Patience.Suite)
		if err == nil && counters.Error != "" {
			err = errors.New(counters.Error)
		}
		if err != nil {
			r.miss("counters of executed lines are missing: %v", err)
		}
		r.result.Counters = append(r.result.Counters, counters)
	}
}

// here tells whether the guest said that it has a feature.
func (r *runner) here(name string) bool {
	for _, feature := range r.result.Features {
		if feature.Name == name {
			return feature.Here
		}
	}
	return false
}

// gathers tells whether a machine that is lost takes something along.
func (r *runner) gathers() bool { return r.here(cases.Kmemleak) || r.here(cases.GCov) }

func (r *runner) miss(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	r.console.note("%s", text)
	r.result.Missing = append(r.result.Missing, text)
}

// ask sends a message without a body and waits for the answer of the same kind.
func ask[T any](ctx context.Context, s *session, kind link.Kind, patience time.Duration) (answer T, err error) {
	if err := s.conn.Send(kind, nil); err != nil {
		return answer, err
	}
	limit := time.NewTimer(patience)
	defer limit.Stop()
	for {
		select {
		case <-ctx.Done():
			return answer, context.Cause(ctx)
		case <-limit.C:
			return answer, fmt.Errorf("the guest did not answer within %v", patience)
		case <-s.vm.Done():
			return answer, errors.New("the machine ended")
		case got := <-s.messages:
			if got.err != nil {
				return answer, got.err
			}
			switch got.message.Kind {
			case kind:
				return link.Decode[T](got.message)
			case link.KindFatal:
				fatal, err := link.Decode[link.Fatal](got.message)
				return answer, errors.Join(errors.New("the agent gave up: "+fatal.Error), err)
			}
		}
	}
}

// keepLeaks makes a splat of each leak, as if the kernel had printed it while the
// case ran that left it behind. Objects that differ in their content only are one
// leak, but fail each of their cases.
func (r *runner) keepLeaks(leaks link.Leaks, history []event) {
	known := map[string]bool{}
	for _, leak := range leaks.Leaks {
		for line := range strings.Lines(leak.Text) {
			r.console.line(strings.TrimRight(line, "\n"))
		}
		found, err := splat.Scan(strings.NewReader(leak.Text), splat.Options{Allowed: r.Allowed})
		if err != nil {
			r.miss("the report of leaked memory cannot be read: %v", err)
			return
		}
		owner := caseAt(history, leak.Allocated)
		for _, lost := range found {
			lost.Case = owner
			if fingerprint := lost.Fingerprint(); !known[fingerprint] {
				known[fingerprint] = true
				r.result.Splats = append(r.result.Splats, lost)
			}
			if c := r.find(owner); c != nil && c.Status == verdict.Pass {
				c.Status = verdict.Fail
				c.Detail = "the kernel lost memory that was allocated while the case ran: " + lost.Title
			}
		}
	}
	if cut := leaks.Total - len(leaks.Leaks); cut > 0 {
		r.miss("%d more leaked objects were not read", cut)
	}
}

// event is the moment from which on a case ran, by the clock of its guest.
type event struct {
	id string
	at time.Duration
}

// caseAt returns the case that ran at a moment, or the last one before: what comes
// late comes from it.
func caseAt(history []event, at time.Duration) string {
	last := ""
	for _, event := range history {
		if event.at > at {
			break
		}
		last = event.id
	}
	return last
}
