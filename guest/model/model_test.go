// SPDX-License-Identifier: BSD-3-Clause

package model

import (
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/zcvet/zcvet/guest/notify"
)

// configs are the kinds of sockets that R02 runs on.
var configs = map[string]Config{
	"tcp-lo":          {Stream: true, Requests: 16, LargestSend: 1 << 16},
	"udp-lo":          {Requests: 16, LargestSend: 16000},
	"tcp-nic":         {Stream: true, Device: true, Requests: 16, LargestSend: 1 << 16},
	"udp-nic":         {Device: true, Requests: 16, LargestSend: 1400},
	"tcp-nic-classic": {Stream: true, Device: true, LargestSend: 1 << 16},
	"udp-nic-classic": {Device: true, LargestSend: 1400},
}

// search is one over a fake socket with these faults.
func search(t *testing.T, config Config, faults faults, seed uint64) *Search {
	t.Helper()
	return &Search{
		Config: config,
		Open: func(time.Duration) (Socket, error) {
			socket := &fakeSocket{config: config, faults: faults}
			t.Cleanup(func() {
				if !socket.closed {
					t.Error("a socket was left open")
				}
			})
			return socket, nil
		},
		Random: rand.New(rand.NewPCG(seed, 0)),
		Length: 40, Steps: 20000,
		Budget: time.Hour, Patience: time.Second,
	}
}

func TestCorrectSocketPasses(t *testing.T) {
	for name, config := range configs {
		t.Run(name, func(t *testing.T) {
			report, err := search(t, config, faults{}, 1).Run()
			if err != nil {
				t.Fatal(err)
			}
			if report.Failure != nil {
				t.Fatalf("a correct socket failed:\n%v", report.Failure)
			}
			if report.Steps < 20000 {
				t.Errorf("the search ended after %d steps", report.Steps)
			}
		})
	}
}

// TestFaultsShrinkToTheirCause expects for each fault one of the rules by which it
// shows, and no more operations than it needs to show.
func TestFaultsShrinkToTheirCause(t *testing.T) {
	tests := []struct {
		name   string
		config string
		faults faults
		rules  string
		needs  []Kind
	}{
		{"lost when a send fails", "tcp-lo", faults{lossOnFailedSend: true}, "Z30 Z35", []Kind{Send, Shutdown, Send}},
		{"lost when the control buffer is bad", "udp-lo", faults{lossOnBadControl: true}, "Z30 Z35", []Kind{Send, Send}},
		{"id on failed send", "udp-lo", faults{idOnFailedSend: true}, "Z10", []Kind{Send, Send}},
		{"own completion", "tcp-lo", faults{ownCompletion: true}, "N01", []Kind{Send}},
		{"range off by one", "udp-lo", faults{rangeOffByOne: true}, "N01 Z30 Z35", []Kind{Send, Send, Send}},
		{"inverted", "tcp-nic", faults{inverted: true}, "N06", []Kind{Send, Send}},
		{"merged across a timestamp", "tcp-lo", faults{mergeAcross: true}, "Z32 Z35", []Kind{Send, Stamp, Send}},
		{"timestamp lost", "udp-lo", faults{stampLost: true}, "Z30 Z35 Z39", []Kind{Stamp, Send}},
		{"still queued", "udp-nic", faults{stillQueued: true}, "Z30 Z40", []Kind{Send, Send}},
		{"before the device is done", "udp-nic-classic", faults{early: true}, "Z3A Z40", []Kind{Hold, Send}},
		{"before the acknowledgement", "tcp-nic-classic", faults{earlyUnacked: true}, "Z36 Z40", []Kind{Withhold, Send}},
		{"last first", "udp-lo", faults{lifo: true}, "Z35", []Kind{Send, Stamp, Send, Send}},
		{"over capacity", "tcp-lo", faults{overCapacity: true}, "N01", []Kind{Send, Stamp, Send, Send}},
		{"one at most", "tcp-lo", faults{stingy: true}, "N01", []Kind{Send, Stamp, Send, Send}},
		{"POLLERR for nothing", "udp-lo", faults{epollStuck: true}, "Z40", []Kind{Read}},
		{"lost on release", "udp-nic-classic", faults{lostOnThirdRelease: true}, "Z30", []Kind{Hold, Send, Send, Send, Release}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			for seed := range uint64(10) {
				report, err := search(t, configs[test.config], test.faults, seed).Run()
				if err != nil {
					t.Fatal(err)
				}
				got := report.Failure
				if got == nil {
					t.Fatalf("seed %d: %d steps did not find the fault", seed, report.Steps)
				}
				if !slices.Contains(strings.Fields(test.rules), got.Violation.Rule) || got.Original {
					t.Errorf("seed %d: a rule of %s and a shrunk sequence were expected:\n%v", seed, test.rules, got)
				}
				if len(got.Operations) > len(test.needs) {
					t.Errorf("seed %d: operations of kinds %v are enough:\n%v", seed, test.needs, got)
				}
			}
		})
	}
}

// TestSequencesFollowFromTheSeed expects sequence n of a seed to be the same
// however the sequences before it went, or a failure could not be replayed.
func TestSequencesFollowFromTheSeed(t *testing.T) {
	drawn := func(faults faults, length int) [][]Operation {
		var sequences [][]Operation
		s := search(t, configs["tcp-nic"], faults, 7)
		s.Length, s.Steps = length, 500
		open := s.Open
		s.Open = func(patience time.Duration) (Socket, error) {
			socket, err := open(patience)
			return &recording{Socket: socket, into: &sequences}, err
		}
		if _, err := s.Run(); err != nil {
			t.Fatal(err)
		}
		return sequences
	}
	first, again := drawn(faults{}, 40), drawn(faults{}, 40)
	if len(first) < 10 || len(first) != len(again) {
		t.Fatalf("%d and %d sequences", len(first), len(again))
	}
	for i := range first {
		if !slices.Equal(first[i], again[i]) {
			t.Errorf("sequence %d is not the same:\n%v\n%v", i, first[i], again[i])
		}
	}
	// A sequence that fails early is the beginning of the same one.
	if broken := drawn(faults{epollStuck: true}, 40); !slices.Equal(broken[0], first[0][:len(broken[0])]) {
		t.Errorf("a failure changed what was drawn: %v, %v", broken[0], first[0])
	}
}

// recording notes what is carried out on its socket.
type recording struct {
	Socket
	into *[][]Operation
	done []Operation
}

func (r *recording) Do(op Operation) (Outcome, error) {
	r.done = append(r.done, op)
	return r.Socket.Do(op)
}

func (r *recording) Close() {
	*r.into = append(*r.into, r.done)
	r.Socket.Close()
}

func TestSearchEnds(t *testing.T) {
	tests := []struct {
		name   string
		steps  int
		budget time.Duration
		want   func(Report) bool
	}{
		{"after its steps", 100, time.Hour, func(r Report) bool { return r.Steps >= 100 && r.Steps < 200 }},
		{"after its time, with one sequence at least", 1 << 30, 0, func(r Report) bool { return r.Sequences == 1 }},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			s := search(t, configs["udp-nic"], faults{}, 1)
			s.Steps, s.Budget = test.steps, test.budget
			report, err := s.Run()
			if err != nil || !test.want(report) {
				t.Errorf("%+v, %v", report, err)
			}
		})
	}
}

func TestErrorsAreNoFailures(t *testing.T) {
	broken := errors.New("no memory")
	s := search(t, configs["udp-nic"], faults{}, 1)
	s.Open = func(time.Duration) (Socket, error) { return nil, broken }
	if report, err := s.Run(); !errors.Is(err, broken) || report.Failure != nil {
		t.Errorf("no socket: %+v, %v", report, err)
	}
	s = search(t, configs["udp-nic"], faults{}, 1)
	s.Open = func(time.Duration) (Socket, error) { return &unusable{err: broken}, nil }
	if report, err := s.Run(); !errors.Is(err, broken) || report.Failure != nil {
		t.Errorf("unusable socket: %+v, %v", report, err)
	}
}

type unusable struct {
	fakeSocket
	err error
}

func (u *unusable) Do(Operation) (Outcome, error) { return Outcome{}, u.err }

// TestFlakyFailureIsNotShrunk has a socket that fails once and never again.
func TestFlakyFailureIsNotShrunk(t *testing.T) {
	opened := 0
	s := search(t, configs["udp-lo"], faults{}, 1)
	s.Open = func(time.Duration) (Socket, error) {
		opened++
		return &fakeSocket{config: s.Config, faults: faults{epollStuck: opened == 1}}, nil
	}
	report, err := s.Run()
	if err != nil {
		t.Fatal(err)
	}
	if report.Failure == nil || !report.Failure.Original || len(report.Failure.Operations) != report.Failure.Length {
		t.Errorf("the whole sequence was expected, and that it fails only sometimes:\n%v", report.Failure)
	}
}

// TestOrderAfterARetransmission has the notification of the first of three sends come
// last, or that of the first with a timestamp behind it.
func TestOrderAfterARetransmission(t *testing.T) {
	zerocopy := func(low, high uint32) notify.Notification {
		return notify.Notification{Origin: notify.OriginZerocopy, Low: low, High: high, Way: notify.ErrorQueue}
	}
	for _, test := range []struct {
		name    string
		entries []notify.Notification
	}{
		{"a later send first", []notify.Notification{zerocopy(1, 2), zerocopy(0, 0)}},
		{"a timestamp first", []notify.Notification{{Origin: notify.OriginTimestamping, High: 3, Way: notify.ErrorQueue}, zerocopy(0, 2)}},
	} {
		for _, resent := range []bool{false, true} {
			m := New(configs["tcp-nic"])
			var err error
			apply := func(op Operation, outcome Outcome) {
				if err == nil {
					err = m.Apply(op, outcome)
				}
			}
			for range 3 {
				apply(Operation{Kind: Send, Size: 1, Zerocopy: true}, Outcome{Sent: 1})
			}
			apply(Operation{Kind: Stamp}, Outcome{Sent: 1})
			m.Settled()
			apply(Operation{Kind: Read, Count: 1}, Outcome{Entries: test.entries[:1], Resent: resent})
			apply(Operation{Kind: Read, Count: 1}, Outcome{Entries: test.entries[1:], Resent: resent})
			violation, violated := errors.AsType[*Violation](err)
			if violated == resent || violated && violation.Rule != "Z35" {
				t.Errorf("%s, resent %t: %v", test.name, resent, err)
			}
		}
	}
}
