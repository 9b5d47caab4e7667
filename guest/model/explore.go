// SPDX-License-Identifier: BSD-3-Clause

package model

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"
)

// Search is a search for a sequence on which the kernel departs from the model.
type Search struct {
	Config Config
	// Open connects a fresh socket. Within patience it waits for what must
	// come; the last, longest patience is that of the search.
	Open func(patience time.Duration) (Socket, error)
	// Random decides everything random. Sequence n of the same state of Random
	// is always the same, however long the search goes on.
	Random *rand.Rand
	// Length is the number of operations of a sequence, Steps how many are
	// carried out in all before the search is over.
	Length, Steps int
	// Budget ends the search after the sequence under way, and in the same way
	// the shrinking of a sequence that failed.
	Budget time.Duration
	// Patience is how long to wait for what must come.
	Patience time.Duration
}

// Report is what a search has found.
type Report struct {
	Sequences, Steps int
	// Failure is nil if the kernel did what the model says.
	Failure *Failure
}

// Failure is a sequence that failed.
type Failure struct {
	// Sequence is its number, from 0, and Length what it was before shrinking.
	Sequence, Length int
	// Operations is the shrunk sequence. What Run does at the end of each to
	// complete it is not part of it.
	Operations []Operation
	Violation  *Violation
	// Original is set, and Operations not shrunk, if the shrunk sequence did
	// not fail again.
	Original bool
}

// String is the sequence, a line for each operation, and what went wrong in the
// last one.
func (f *Failure) String() string {
	var text strings.Builder
	fmt.Fprintf(&text, "%v\nin sequence %d, of %d operations", f.Violation, f.Sequence, f.Length)
	if f.Original {
		text.WriteString(", which fails only sometimes:\n")
	} else {
		fmt.Fprintf(&text, ", shrunk to %d:\n", len(f.Operations))
	}
	for i, op := range f.Operations {
		fmt.Fprintf(&text, "%4d  %v\n", i+1, op)
	}
	text.WriteString("      then everything is let through and the error queue read until all is notified")
	return text.String()
}

// Run searches. An error means that a sequence could not be carried out.
func (s *Search) Run() (Report, error) {
	var report Report
	started := time.Now()
	for report.Steps < s.Steps && (report.Sequences == 0 || time.Since(started) < s.Budget) {
		// A generator of its own, so that what a sequence draws does not
		// depend on how far another one got.
		random := rand.New(rand.NewPCG(s.Random.Uint64(), s.Random.Uint64()))
		operations := generate(random, s.Config, s.Length)
		done, found, err := s.attempt(operations, s.Patience)
		if err != nil {
			return report, fmt.Errorf("sequence %d: %w", report.Sequences, err)
		}
		report.Steps += len(done)
		if found != nil {
			report.Failure = s.shrink(done, found)
			report.Failure.Sequence = report.Sequences
			return report, nil
		}
		report.Sequences++
	}
	return report, nil
}

// attempt carries a sequence out on a fresh socket.
func (s *Search) attempt(operations []Operation, patience time.Duration) ([]Operation, *Violation, error) {
	socket, err := s.Open(patience)
	if err != nil {
		return nil, nil, err
	}
	defer socket.Close()
	done, err := Run(s.Config, socket, operations)
	var found *Violation
	if errors.As(err, &found) {
		return done, found, nil
	}
	return done, nil, err
}

// haste divides the patience of attempts while shrinking: most of them fail by
// waiting in vain. The result is tried again with all patience.
const haste = 5

func (s *Search) shrink(operations []Operation, found *Violation) *Failure {
	failure := &Failure{Operations: operations, Length: len(operations), Violation: found}
	deadline := time.Now().Add(s.Budget)
	shrunk := Shrink(operations, func(candidate []Operation) bool {
		if time.Now().After(deadline) {
			return false
		}
		_, again, err := s.attempt(candidate, s.Patience/haste)
		return err == nil && again != nil
	})
	if done, again, err := s.attempt(shrunk, s.Patience); err == nil && again != nil {
		failure.Operations, failure.Violation = done, again
	} else {
		failure.Original = true
	}
	return failure
}

// weights says how often each kind of operation is drawn.
var weights = []struct {
	weight int
	kind   Kind
}{
	{50, Send},
	{14, Stamp},
	{8, Read},
	{6, Hold},
	{5, Release},
	{5, Unhold},
	{4, Withhold},
	{4, Acknowledge},
	{3, Uncork},
	{1, Shutdown},
	{1, PeerClose},
}

// generate draws a sequence. Operations that will not be applicable are as good
// as any: they are left out when their turn comes.
func generate(random *rand.Rand, config Config, length int) []Operation {
	total := 0
	for _, w := range weights {
		total += w.weight
	}
	operations := make([]Operation, length)
	for i := range operations {
		at := random.IntN(total)
		for _, w := range weights {
			if at -= w.weight; at < 0 {
				operations[i] = draw(random, config, w.kind)
				break
			}
		}
	}
	return operations
}

func draw(random *rand.Rand, config Config, kind Kind) Operation {
	op := Operation{Kind: kind}
	one := func(in int) bool { return random.IntN(in) == 0 }
	switch kind {
	case Send:
		op.Zerocopy = !one(5)
		op.More = one(8)
		if !one(20) {
			// Small and large alike, and not often beyond a page.
			op.Size = 1 + random.IntN(1<<random.IntN(17))
			op.Size = min(op.Size, config.LargestSend)
		}
		if config.Requests > 0 && one(3) {
			op.Request = 1 + random.IntN(min(config.Requests, 1<<(1+random.IntN(5))))
		}
		switch {
		case one(8):
			op.Fault = BadData
		case op.Request > 0 && one(6):
			op.Fault = BadControl
		}
	case Read:
		if !one(3) {
			op.Count = 1 + random.IntN(4)
		}
	case Release:
		op.Count = 1 + random.IntN(4)
	}
	return op
}
