// SPDX-License-Identifier: BSD-3-Clause

package agent

import (
	"fmt"
	"os"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/zcvet/zcvet/guest/link"
	"github.com/zcvet/zcvet/guest/shared"
)

// timesheetSize is the size of a timesheet, in bytes.
const timesheetSize = 4096

// timesheet is where a worker enters what it does, in memory that PID 1 shares: so
// PID 1 need not be woken for every case. It outlives the worker.
type timesheet struct {
	// frames counts those that the worker has sent to the host.
	frames atomic.Uint32
	// ready is not 0 once the worker has said hello.
	ready atomic.Uint32
	// turn is odd while the fields below change.
	turn   atomic.Uint32
	length atomic.Uint32 // of id, 0 while no case runs
	began  atomic.Int64  // by link.Now, in nanoseconds
	limit  atomic.Int64  // in nanoseconds
	grace  atomic.Int64  // in nanoseconds
	id     [timesheetSize - 64]byte
}

// shift is what a timesheet says of the case that runs; without an id there is none.
type shift struct {
	id string
	// began is when, by link.Now.
	began time.Duration
	limit time.Duration
	// grace is how long the worker may take to die.
	grace time.Duration
}

// newTimesheet returns memory for one that can be handed on to other processes.
func newTimesheet() (*os.File, error) {
	file, err := shared.New("timesheet", timesheetSize)
	if err != nil {
		return nil, fmt.Errorf("memory for the timesheet of a worker: %w", err)
	}
	return file, nil
}

// mapTimesheet maps the memory of one. It stays mapped.
func mapTimesheet(fd int) (*timesheet, error) {
	memory, err := shared.Map(fd, timesheetSize)
	if err != nil {
		return nil, fmt.Errorf("map the timesheet of a worker: %w", err)
	}
	return (*timesheet)(unsafe.Pointer(unsafe.SliceData(memory))), nil
}

// begin enters a case that begins now, end that it is over.
func (t *timesheet) begin(id string, limit, grace time.Duration) {
	t.turn.Add(1)
	t.began.Store(int64(link.Now()))
	t.limit.Store(int64(limit))
	t.grace.Store(int64(grace))
	t.length.Store(uint32(copy(t.id[:], id)))
	t.turn.Add(1)
}

func (t *timesheet) end() { t.length.Store(0) }

// current returns what runs. A worker that died while it changed the entry leaves
// none.
func (t *timesheet) current() shift {
	for range 100 {
		before := t.turn.Load()
		s := shift{
			began: time.Duration(t.began.Load()),
			limit: time.Duration(t.limit.Load()),
			grace: time.Duration(t.grace.Load()),
			id:    string(t.id[:min(t.length.Load(), uint32(len(t.id)))]),
		}
		if before%2 == 0 && t.turn.Load() == before {
			return s
		}
	}
	return shift{}
}

// countedPort counts the frames that go through a port.
type countedPort struct {
	port
	sheet *timesheet
}

// Write is called once a frame, see link.Conn.
func (p countedPort) Write(frame []byte) (int, error) {
	n, err := p.port.Write(frame)
	if err == nil {
		p.sheet.frames.Add(1)
	}
	return n, err
}
