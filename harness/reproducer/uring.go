// SPDX-License-Identifier: BSD-3-Clause

package reproducer

import (
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/zcvet/zcvet/guest/trace"
)

// Operations of io_uring that a program can ask for, and what it cannot
// (uapi/linux/io_uring.h).
const (
	opNop         = 0
	opSendmsg     = 9
	opAsyncCancel = 14
	opSendZC      = 47
	opSendmsgZC   = 48

	fixedFile     = 1 << 0 // of the flags of a request
	bufferSelect  = 1 << 5
	fixedBuffer   = 1 << 2 // of its priority, for sends
	mostRequests  = 256    // of a ring
	ringArguments = "its io_uring is used in a way that is not recorded"
)

// ring is an io_uring of the program.
type ring struct {
	name string
	// requests are those that were made, by their user data.
	requests map[int64]*request
	// Where there is room in iov for what is not submitted yet.
	vectors int64
}

// request is what later answers need of one.
type request struct {
	fd     string
	number int64 // of fd in the record
	place  string
	length int
}

func (p *program) ring(s *step) (*ring, error) {
	if r := p.rings[s.Argument(0)]; r != nil {
		return r, nil
	}
	return nil, impossible("it needs an io_uring that was not opened by a recorded call")
}

func (p *program) uring(s *step) error {
	if s.Name == "io_uring_setup" {
		if s.Errno != 0 || !s.Returned || s.Argument(0) < 1 || s.Argument(0) > mostRequests {
			return impossible("%s", ringArguments)
		}
		r := &ring{name: p.name("ring", "struct ring "), requests: make(map[int64]*request)}
		p.rings[s.Result] = r
		p.add("ring_open(&%s, %d);", r.name, s.Argument(0))
		return nil
	}
	r, err := p.ring(s)
	if err != nil {
		return err
	}
	switch s.Name {
	case trace.Request:
		return p.request(s, r)
	case trace.Wait:
		return p.wait(s, r)
	}
	if s.Argument(1) < 0 || s.Argument(1) > mostRequests {
		return impossible("%s", ringArguments)
	}
	r.vectors = 0
	p.add("ring_submit(&%s, %d);", r.name, s.Argument(1))
	p.check(s, result(s.Call))
	return nil
}

// request adds one to the ring.
func (p *program) request(s *step, r *ring) error {
	a := s.Argument
	if len(s.Arguments) < trace.RequestArguments || len(s.In) < 2 {
		return impossible("%s", ringArguments)
	}
	if a(trace.RequestFlags)&(fixedFile|bufferSelect) != 0 || a(trace.RequestPriority)&fixedBuffer != 0 {
		return impossible("it needs registered files or buffers of an io_uring")
	}
	fields := []string{".opcode = " + trace.Operation(a(trace.RequestOperation))}
	made := &request{number: -1}
	var lines []string
	switch operation := a(trace.RequestOperation); operation {
	case opNop:
	case opAsyncCancel:
		fields = append(fields, ".fd = -1", fmt.Sprintf(".addr = %d", a(trace.RequestAddress)))
	case opSendmsg, opSendmsgZC, opSendZC:
		fd, err := p.fd(a(trace.RequestFD))
		if err != nil {
			return err
		}
		made.fd, made.number = fd, a(trace.RequestFD)
		m := message{pieces: s.In, flags: a(trace.RequestHeaderFlags), vector: r.vectors}
		// What is sent has to stay until it is, so the buffer of other sends will
		// not do.
		if used, err := p.contents(&m, 0); err != nil {
			return err
		} else if used > 0 {
			return impossible("the data of a request to io_uring lies in memory that no recorded call has mapped")
		}
		place, length := "", int64(1)
		if operation == opSendZC {
			if len(m.buffers()) != 1 {
				return impossible("%s", ringArguments)
			}
			place, length = m.places[0], int64(m.buffers()[0].Length)
		} else if lines, place, err = p.placed(s, &m, made); err != nil {
			return err
		}
		r.vectors += int64(len(m.buffers()))
		fields = append(fields, ".fd = "+fd, fmt.Sprintf(".addr = (unsigned long)(%s)", place), fmt.Sprintf(".len = %d", length))
		if with := a(trace.RequestMessageFlags); with != 0 {
			fields = append(fields, ".msg_flags = "+flags(with))
		}
		if priority := a(trace.RequestPriority); priority != 0 {
			fields = append(fields, fmt.Sprintf(".ioprio = %#x", uint16(priority)))
		}
	default:
		return impossible("it needs the io_uring operation %d", operation)
	}
	if with := a(trace.RequestFlags); with != 0 {
		fields = append(fields, ".flags = "+trace.RequestFlagNames(with&0xff))
	}
	fields = append(fields, fmt.Sprintf(".user_data = %d", a(trace.RequestUserData)))
	r.requests[a(trace.RequestUserData)] = made
	const row = 3
	var rows []string
	for of := range slices.Chunk(fields, row) {
		rows = append(rows, "\t"+strings.Join(of, ", "))
	}
	statement := fmt.Sprintf("ring_ask(&%s, (struct io_uring_sqe){\n%s\n});", r.name, strings.Join(rows, ",\n"))
	p.add("%s", strings.Join(append(lines, statement), "\n"))
	return nil
}

// placed returns the lines that lay out the msghdr of a request, and where it is.
func (p *program) placed(s *step, m *message, made *request) (lines []string, place string, err error) {
	header, at := p.mapping(trace.Memory{Address: uint64(s.Argument(trace.RequestAddress))})
	if header == nil || at+int64(s.HeaderSize()) > header.length || header.restricted() {
		return nil, "", impossible("the msghdr of a request to io_uring lies in memory that no recorded call has mapped")
	}
	if m.control().Length > 0 {
		if in, _ := p.mapping(m.control()); in == nil {
			return nil, "", impossible("the control buffer of a request to io_uring lies in memory that no recorded call has mapped")
		}
	}
	lines, made.place, err = p.message(m)
	made.length = m.control().Length
	return append(lines, fmt.Sprintf("memcpy(%s, &msg, sizeof(msg));", header.at(at))), header.at(at), err
}

// wait takes a completion.
func (p *program) wait(s *step, r *ring) error {
	milliseconds := max(0, min(s.Argument(1), 10000))
	if s.Returned && s.Errno == 0 {
		milliseconds = max(milliseconds, 1000)
	}
	p.add("ring_wait(&%s, %d);", r.name, milliseconds)
	switch {
	case !s.Returned:
		return nil
	case s.Errno == unix.ETIME:
		p.check(s, "nothing")
		return nil
	case s.Errno != 0 || len(s.Outcome) < trace.CompletionValues:
		return impossible("%s", ringArguments)
	}
	seen := fmt.Sprintf("request %d, result %d, flags %s", uint64(s.Outcome[trace.CompletionUserData]),
		int32(s.Outcome[trace.CompletionResult]), hex(s.Outcome[trace.CompletionFlags]))
	made := r.requests[s.Outcome[trace.CompletionUserData]]
	if made != nil && made.length > 0 && len(s.Out) > 0 && s.Out[0].Bytes != nil {
		of := ""
		if p.counting {
			of = made.fd + ", "
		}
		p.more("answer(%s%s, %d);", of, made.place, made.length)
		seen += p.answered(s.Out[0].Bytes)
	}
	p.check(s, seen)
	return nil
}

// asked is which socket a request of a ring is about.
type asked struct{ ring, userData int64 }
