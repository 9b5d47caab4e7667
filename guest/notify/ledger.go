// SPDX-License-Identifier: BSD-3-Clause

package notify

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
)

// Ledger accumulates the notifications of one socket and answers whether each
// send was notified exactly once. It may be used from several goroutines.
type Ledger struct {
	lock    sync.Mutex
	entries []Notification
}

// Add enters notifications.
func (l *Ledger) Add(notifications ...Notification) {
	l.lock.Lock()
	defer l.lock.Unlock()
	l.entries = append(l.entries, notifications...)
}

// Entries returns what was entered, in that order.
func (l *Ledger) Entries() []Notification {
	l.lock.Lock()
	defer l.lock.Unlock()
	return slices.Clone(l.entries)
}

// Covered is the number of different sends that were notified.
func (l *Ledger) Covered() int {
	covered, next := uint64(0), uint64(0)
	for _, entry := range l.sorted() {
		low := max(uint64(entry.Low), next)
		if end := uint64(entry.High) + 1; end > low {
			covered += end - low
			next = end
		}
	}
	return int(min(covered, math.MaxInt)) // an int has 32 bits in a 32-bit task
}

// Total is the number of sends that were notified, each as often as it was.
func (l *Ledger) Total() int {
	total := uint64(0)
	for _, entry := range l.sorted() {
		total += uint64(entry.High) - uint64(entry.Low) + 1
	}
	return int(min(total, math.MaxInt))
}

// Has tells whether every send from low to high, inclusive, was notified.
func (l *Ledger) Has(low, high uint32) bool {
	next := uint64(low)
	for _, entry := range l.sorted() {
		if uint64(entry.Low) > next {
			return false
		}
		next = max(next, uint64(entry.High)+1)
		if next > uint64(high) {
			return true
		}
	}
	return false
}

// sorted returns the well-formed zero-copy entries by range.
func (l *Ledger) sorted() []Notification {
	entries := slices.DeleteFunc(l.Entries(), func(n Notification) bool {
		return !n.Zerocopy() || n.High < n.Low
	})
	slices.SortStableFunc(entries, func(a, b Notification) int {
		return cmp.Or(cmp.Compare(a.Low, b.Low), cmp.Compare(a.High, b.High))
	})
	return entries
}

// Check returns nil if the union of all ranges is exactly [0, sends-1] and no
// send is in two of them. The error names every gap, overlap and stray range.
func (l *Ledger) Check(sends int) error {
	var faults []string
	fault := func(format string, args ...any) { faults = append(faults, fmt.Sprintf(format, args...)) }
	for _, entry := range l.Entries() {
		switch {
		case !entry.Zerocopy():
			fault("no zero-copy notification: %v", entry)
		case entry.High < entry.Low:
			fault("range %v runs backwards", entry)
		}
	}
	next := uint64(0)
	var last Notification
	for _, entry := range l.sorted() {
		low, end := uint64(entry.Low), uint64(entry.High)+1
		if low >= uint64(sends) {
			fault("%v (by %s) is about sends that never were", entry, entry.Way)
			continue
		}
		switch {
		case low > next:
			fault("%s missing", span(next, low-1))
		case low < next:
			fault("%s twice: in %v (by %s) and in %v (by %s)", span(low, min(end, next)-1), last, last.Way, entry, entry.Way)
		}
		if end > uint64(sends) {
			fault("%v (by %s) reaches beyond the last send", entry, entry.Way)
		}
		if end > next {
			next, last = end, entry
		}
	}
	if next < uint64(sends) {
		fault("%s missing", span(next, uint64(sends)-1))
	}
	if faults == nil {
		return nil
	}
	return fmt.Errorf("%d sends, each to be notified exactly once: %s", sends, strings.Join(faults, "; "))
}

func span(low, high uint64) string {
	if low == high {
		return fmt.Sprintf("%d", low)
	}
	return fmt.Sprintf("%d-%d", low, high)
}
