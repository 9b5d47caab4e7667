// SPDX-License-Identifier: BSD-3-Clause

package reproducer

import (
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"math"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/zcvet/zcvet/guest/trace"
)

// shortest is a pause that is worth repeating: the case waited for something.
const shortest = 10 * time.Millisecond

// program is a C program in the making.
type program struct {
	about   About
	failure string
	blocks  []block

	// names counts the variables by what they are called.
	names map[string]int
	// fds and ports are the variables that hold what was recorded as a number.
	fds      map[int64]string
	ports    map[uint32]string
	mappings []*mapping
	declared []string // of main

	// Sizes of the static buffers.
	room, data, control, vectors, elements, many int64
	// messages is how many blocks there were when msg was last used.
	messages int

	// rings are the io_urings by the descriptor in the record.
	rings map[int64]*ring

	// layout is a call of the task that made them all, for what it says about
	// structures.
	layout *trace.Call

	// threads are those of the case; thread and part are where blocks belong.
	threads *threads
	thread  int
	part    part
	// Of a program with several: the variables, how many steps it takes, how many
	// threads it starts, and the zero-copy messages that it sends.
	variables        string
	written, started int
	zerocopies       int64

	// buffers are those of the static buffers that main uses.
	buffers map[string]bool

	sent bool // something was sent; pauses before that mean nothing

	// counting tells that the case found that not each of the sends of a socket,
	// whose number in the record is watched, was notified exactly once.
	counting       bool
	watched, sends int64
}

func (p *program) name(what, kind string) string {
	p.names[what]++
	name := what
	if n := p.names[what]; n > 1 {
		name = fmt.Sprint(what, n)
	}
	p.declared = append(p.declared, kind+name)
	return name
}

// add begins the next block.
func (p *program) add(format string, args ...any) {
	p.blocks = append(p.blocks, block{lines: []string{fmt.Sprintf(format, args...)}, thread: p.thread, part: p.part})
}

// more adds a line to the last block.
func (p *program) more(format string, args ...any) {
	last := &p.blocks[len(p.blocks)-1]
	last.lines = append(last.lines, fmt.Sprintf(format, args...))
}

// check adds what was recorded of the call in the last block.
func (p *program) check(s *step, seen string) {
	if !s.Returned {
		return // it never returned, and what did not happen cannot be compared
	}
	if p.threads.unwatched {
		return // no single answer is the fault
	}
	p.more("check(%s, %s);", quote([]byte(s.Name)), quote([]byte(seen)))
}

// result is how the program shows what a call returned.
func result(c *trace.Call) string {
	if c.Errno != 0 || c.Result < 0 {
		return fmt.Sprintf("-1, errno %d", int(c.Errno))
	}
	return fmt.Sprint(c.Result)
}

// setUp adds a call that has nothing to do with the fault if it went well.
func (p *program) setUp(s *step, call string) {
	if s.Returned && s.Errno == 0 && !s.last {
		p.add("must(%s, %s);", quote([]byte(s.Name)), call)
		return
	}
	p.add("result(%s);", call)
	p.check(s, result(s.Call))
}

// fd is the variable of a descriptor.
func (p *program) fd(number int64) (string, error) {
	if number < 0 {
		return "-1", nil
	}
	if name, known := p.fds[number]; known {
		return name, nil
	}
	return "", impossible("it needs a descriptor that was not opened by a recorded call")
}

// opened adds a call that opens a descriptor.
func (p *program) opened(s *step, what, call string) {
	if s.Errno != 0 || !s.Returned {
		p.add("result(%s);", call)
		p.check(s, result(s.Call))
		return
	}
	name := p.name(what, "int ")
	p.fds[s.Result] = name
	p.add("%s = must(%s, %s);", name, quote([]byte(s.Name)), call)
	if p.counting && s.Result == p.watched {
		p.more("watched = %s;", name)
	}
}

// role is what to call the socket that step i opens, by what becomes of it.
func role(steps []step, i int) string {
	fd := steps[i].Result
	for _, s := range steps[i+1:] {
		if s.Name == "close" && s.Argument(0) == fd {
			break
		}
		switch {
		case s.Argument(0) != fd:
		case s.Name == "listen":
			return "listener"
		case s.Name == "setsockopt" && s.Argument(1) == unix.SOL_SOCKET && s.Argument(2) == unix.SO_ZEROCOPY,
			sends(s.Call) && s.Argument(1)&unix.MSG_ZEROCOPY != 0:
			return "tx"
		}
	}
	return "rx"
}

// step adds what the program does for a step.
func (p *program) step(steps []step, i int) error {
	s := &steps[i]
	if s.Name == trace.Expectation {
		p.thread, p.part = s.thread, s.part
		first := len(p.blocks)
		err := p.expectation(s)
		if err == nil && p.threaded() && s.part == during {
			p.bracket(s, first)
		}
		return err
	}
	if p.swallowed(steps, i) && len(s.waits) == 0 && s.begun == 0 && s.ended == 0 {
		return nil
	}
	p.sent = p.sent || sends(s.Call)
	p.thread, p.part = s.thread, s.part
	first := len(p.blocks)
	if err := p.call(steps, i); err != nil {
		return err
	}
	if p.threaded() && s.part == during {
		if !p.threads.free {
			p.bracket(s, first)
		}
		if p.threads.free || len(s.waits) > 0 {
			return nil // it is the others that it waited for
		}
	}
	if s.since >= shortest && len(p.blocks) > first && p.sent {
		p.blocks[first].before = append([]string{fmt.Sprintf("usleep(%d);", s.since.Microseconds())}, p.blocks[first].before...)
	}
	return nil
}

// swallowed tells whether the step belongs to those that read a socket's
// notifications for the check that the expectation after them makes.
func (p *program) swallowed(steps []step, i int) bool {
	reads := func(s *step) bool {
		switch s.Name {
		case "recvmsg":
			return s.Argument(1)&unix.MSG_ERRQUEUE != 0 && s.Returned
		case "poll":
			return len(s.Arguments) == 3 && s.Returned
		}
		return false
	}
	fd := func(s *step) int64 {
		if s.Name == "poll" {
			return s.Argument(1)
		}
		return s.Argument(0)
	}
	if !p.counting || !reads(&steps[i]) {
		return false
	}
	for j := i + 1; j < len(steps); j++ {
		next := &steps[j]
		if next.Name == trace.Expectation {
			return next.Argument(0) == trace.ExactlyOnce && next.Argument(1) == fd(&steps[i])
		}
		if !reads(next) || fd(next) != fd(&steps[i]) {
			return false
		}
	}
	return false
}

// expectation reads what the sends of a socket were notified by. The last one is
// the one that failed, and the only one that counts.
func (p *program) expectation(s *step) error {
	if s.Argument(0) != trace.ExactlyOnce {
		return impossible("the record has an expectation of an unknown kind")
	}
	fd, err := p.fd(s.Argument(1))
	if err != nil {
		return err
	}
	p.needRoom(2048)
	p.control = max(p.control, 512)
	p.add("collect(%s);", fd)
	p.sends = s.Argument(2)
	return nil
}

func (p *program) needRoom(length int64) { p.room = max(p.room, length) }

func (p *program) call(steps []step, i int) error {
	s := &steps[i]
	a := s.Argument
	for _, argument := range s.Arguments {
		if argument < math.MinInt32 || argument > math.MaxUint32 {
			switch s.Name {
			case "munmap", "mprotect", "sendmsg", "recvmsg", "setrlimit", "capset", trace.Request:
			default:
				return impossible("%s was called with %d", printable(s.Name), argument)
			}
		}
	}
	switch s.Name {
	case "socket":
		what := role(steps, i)
		p.opened(s, what, fmt.Sprintf("socket(%s, %s, %d)", trace.Domain(a(0)), trace.Kind(a(1)&^unix.SOCK_CLOEXEC), a(2)))
		return nil
	case "epoll_create1":
		p.opened(s, "epoll", "epoll_create1(0)")
		return nil
	case "mmap":
		return p.mmap(s)
	case "munmap", "mprotect":
		return p.protect(s)
	case "setrlimit":
		p.setUp(s, fmt.Sprintf("setrlimit(%s, &(struct rlimit){ %s, %s })", trace.Resource(a(0)), limit(a(1)), limit(a(2))))
		return nil
	case "capset":
		p.add("set_capabilities(%#x, %#x);", uint32(a(0)), uint32(a(1)))
		return nil
	case "writefile":
		return p.writeFile(s)
	case "io_uring_setup", "io_uring_enter", trace.Request, trace.Wait:
		return p.uring(s)
	}

	fd, err := p.fd(a(0))
	if s.Name == "poll" {
		fd, err = p.fd(a(1))
	}
	if err != nil {
		return err
	}
	switch s.Name {
	case "close":
		p.add("close(%s);", fd)
		delete(p.fds, a(0))
	case "listen":
		p.setUp(s, fmt.Sprintf("listen(%s, %d)", fd, a(1)))
	case "shutdown":
		p.setUp(s, fmt.Sprintf("shutdown(%s, %s)", fd, trace.How(a(1))))
	case "bind", "connect":
		to, err := p.address(s.In, 0)
		if err != nil {
			return err
		}
		p.setUp(s, fmt.Sprintf("%s(%s, (struct sockaddr *)&to, %s)", s.Name, fd, to))
	case "accept4":
		p.opened(s, role(steps, i), fmt.Sprintf("accept(%s, NULL, NULL)", fd))
	case "getsockname":
		if len(s.Out) == 0 {
			return impossible("a socket has no address")
		}
		port, read := uint32(0), "port_of"
		if to, ok := trace.Address(s.Out[0].Bytes); ok {
			port = uint32(to.Port())
		} else if _, port, ok = trace.VSOCKAddress(s.Out[0].Bytes); ok {
			read = "vsock_port_of"
		} else {
			return impossible(otherFamily)
		}
		if p.ports[port] == "" {
			p.ports[port] = p.name("port", "int ")
		}
		p.add("%s = %s(%s);", p.ports[port], read, fd)
	case "setsockopt":
		return p.setOption(steps, i, fd)
	case "getsockopt":
		p.add("get_option(%s, %s, %s);", fd, trace.OptionLevel(a(1)), trace.Option(a(1), a(2)))
		seen := result(s.Call)
		if s.Errno == 0 && len(s.Outcome) > 0 {
			seen += fmt.Sprintf(", value %d", int32(s.Outcome[0]))
		}
		p.check(s, seen)
	case "fcntl":
		if command := a(1); command == unix.F_DUPFD || command == unix.F_DUPFD_CLOEXEC {
			p.opened(s, "copy", fmt.Sprintf("dup(%s)", fd))
			return nil
		}
		p.setUp(s, fmt.Sprintf("fcntl(%s, %d, %d)", fd, a(1), a(2)))
	case "poll":
		if len(s.Arguments) != 3 {
			return impossible("it polls several descriptors at once")
		}
		p.add("poll_one(%s, %s, %d);", fd, trace.PollEvents(int64(int16(a(2)))), p.patience(s, a(0)))
		seen := result(s.Call)
		if s.Errno == 0 && len(s.Outcome) > 0 {
			seen += ", events " + hex(s.Outcome[0])
		}
		p.check(s, seen)
	case "epoll_ctl":
		of, err := p.fd(a(2))
		if err != nil {
			return err
		}
		p.add("watch(%s, %s, %s, %s);", fd, trace.EpollOperation(a(1)), of, trace.EpollEvents(int64(uint32(a(3)))))
		p.check(s, result(s.Call))
	case "epoll_wait":
		if s.Result > 1 {
			return impossible("it waits for several descriptors at once")
		}
		p.add("wait_one(%s, %d);", fd, p.patience(s, a(2)))
		seen := result(s.Call)
		if s.Result > 0 && len(s.Outcome) > 0 {
			seen += ", events " + hex(s.Outcome[0])
		}
		p.check(s, seen)
	case "recvfrom":
		return p.receive(s, fd)
	case "recvmsg":
		return p.receiveMessage(s, fd)
	case "sendto":
		return p.send(s, fd)
	case "sendmsg":
		return p.sendMessage(s, fd)
	case "sendmmsg":
		return p.sendMessages(s, fd)
	default:
		return impossible("it needs the call %s", printable(s.Name))
	}
	return nil
}

// turn is how long, in milliseconds, a thread waits at a time whose reads are not
// compared: one that only reads is to see soon that the others are done.
func (p *program) turn(s *step) int64 {
	if p.threads.reads[s.thread] {
		return 10
	}
	return 200
}

// patience is how long to wait, in milliseconds, for what came when this was
// recorded.
func (p *program) patience(s *step, recorded int64) int64 {
	if p.unordered() && p.threads.unwatched && s.part == during {
		return p.turn(s)
	}
	if s.wait {
		return max(recorded, 1000)
	}
	return recorded
}

// hex is %#x.
func hex(value int64) string {
	if value == 0 {
		return "0"
	}
	return fmt.Sprintf("%#x", uint32(value))
}

func limit(value int64) string {
	if value < 0 {
		return "RLIM_INFINITY"
	}
	return fmt.Sprint(value)
}

// address returns the call that writes an address to the variable to and gives its
// length.
func (p *program) address(pieces []trace.Memory, i int) (string, error) {
	if i >= len(pieces) {
		return "", impossible("an address is not recorded")
	}
	if to, ok := trace.Address(pieces[i].Bytes); ok {
		return fmt.Sprintf("address(&to, %s, %s)", quote([]byte(host(to))), p.port(uint32(to.Port()))), nil
	}
	if context, port, ok := trace.VSOCKAddress(pieces[i].Bytes); ok {
		return fmt.Sprintf("vsock_address(&to, %#x, %s)", context, p.port(port)), nil
	}
	return "", impossible(otherFamily)
}

const otherFamily = "an address is of a family other than IPv4, IPv6 and VSOCK"

// port is a port that the kernel chose, or the number that was asked for.
func (p *program) port(number uint32) string {
	if name := p.ports[number]; name != "" {
		return name
	}
	if number > math.MaxInt32 {
		return fmt.Sprintf("%#xu", number)
	}
	return fmt.Sprint(number)
}

// host is an address as inet_pton reads it; one mapped from IPv4 stays one of
// IPv6.
func host(to netip.AddrPort) string { return to.Addr().String() }

// setOption sets an option; the time limits that every socket of a case has are
// one line.
func (p *program) setOption(steps []step, i int, fd string) error {
	s := &steps[i]
	level, option := s.Argument(1), s.Argument(2)
	limits := func(s *step, option int64) bool {
		return s.Name == "setsockopt" && s.Argument(1) == unix.SOL_SOCKET && s.Argument(2) == option && s.Errno == 0 &&
			len(s.In) > 0 && len(s.In[0].Bytes) == 16 && s.Argument(0) == steps[i].Argument(0)
	}
	if limits(s, unix.SO_RCVTIMEO) && i+1 < len(steps) && limits(&steps[i+1], unix.SO_SNDTIMEO) {
		p.add("limit_waits(%s);", fd)
		return nil
	}
	if limits(s, unix.SO_SNDTIMEO) && i > 0 && limits(&steps[i-1], unix.SO_RCVTIMEO) {
		return nil
	}
	value := []byte{}
	if len(s.In) > 0 {
		if value = s.In[0].Bytes; len(value) != s.In[0].Length {
			return impossible("the value of a socket option is not recorded")
		}
	}
	where := fmt.Sprintf("%s, %s, %s", fd, trace.OptionLevel(level), trace.Option(level, option))
	if len(value) == 16 && level == unix.SOL_SOCKET && (option == unix.SO_RCVTIMEO || option == unix.SO_SNDTIMEO) {
		p.setUp(s, fmt.Sprintf("setsockopt(%s, &(struct timeval){ %d, %d }, sizeof(struct timeval))", where,
			int32(binary.NativeEndian.Uint64(value)), int32(binary.NativeEndian.Uint64(value[8:]))))
		return nil
	}
	if len(value) == 4 {
		number := int32(binary.NativeEndian.Uint32(value))
		if s.Errno == 0 && s.Returned && !s.last {
			p.add("set_option(%s, %d);", where, number)
			return nil
		}
		p.setUp(s, fmt.Sprintf("setsockopt(%s, &(int){ %d }, sizeof(int))", where, number))
		return nil
	}
	p.setUp(s, fmt.Sprintf("setsockopt(%s, %s, %d)", where, quote(value), len(value)))
	return nil
}

// sum is what see_sum shows.
func sum(what string, data []byte) string {
	if len(data) == 0 {
		return ""
	}
	h := fnv.New32a()
	_, _ = h.Write(data)
	return fmt.Sprintf("%s %08x", what, h.Sum32())
}

// dataSum is what see_data shows.
func dataSum(data []byte) string { return sum(", data", data[:min(len(data), trace.KeptData)]) }

func (p *program) receive(s *step, fd string) error {
	length := s.Argument(2)
	if length < 0 || length > mostBytes {
		return impossible("it receives %d bytes at once", length)
	}
	p.needRoom(length)
	if p.unordered() && p.threads.unwatched && s.part == during {
		p.add("take(%s, %d, %d);", fd, length, p.turn(s))
		return nil
	}
	if s.pieces != nil {
		total, data, _ := s.took()
		seen := fmt.Sprint(total)
		end := s.pieces[len(s.pieces)-1]
		switch {
		case total == 0:
			seen = result(end)
		case total < length && end.Result < 0:
			seen += ", then an error"
		case total < length && end.Result == 0:
			seen += ", then the end"
		}
		if total > length {
			return impossible("a receive gave more than it had room for")
		}
		p.add("receive(%s, %d);", fd, length)
		p.check(s, seen+dataSum(data))
		return nil
	}
	seen := result(s.Call)
	if s.Result > 0 && len(s.Out) > 0 {
		seen += dataSum(s.Out[0].Bytes)
	}
	p.add("receive_once(%s, %d, %s, %d);", fd, length, flags(s.Argument(1)), truth(s.Returned && s.Errno == 0))
	p.check(s, seen)
	return nil
}

func truth(condition bool) int {
	if condition {
		return 1
	}
	return 0
}

// flags are the MSG_ flags of a call, an int.
func flags(value int64) string {
	if value = int64(uint32(value)); value > math.MaxInt32 {
		return fmt.Sprintf("(int)%#xu", value)
	}
	return trace.MessageFlags(value)
}

func (p *program) receiveMessage(s *step, fd string) error {
	if len(s.In) < 2 || s.In[0].Length > 0 {
		return impossible("it receives a message with its address")
	}
	length := int64(0)
	for _, piece := range s.In[2:] {
		length += int64(piece.Length)
		if m, _ := p.mapping(piece); m != nil && m.restricted() {
			return impossible("it receives into memory that it has taken away")
		}
	}
	control := int64(s.In[1].Length)
	if length < 0 || length > mostBytes || control < 0 || control > mostBytes {
		return impossible("it receives %d bytes at once", length)
	}
	p.needRoom(length)
	p.control = max(p.control, control)
	seen := result(s.Call)
	if s.Errno == 0 && s.Returned {
		after, ok := s.MessageFlagsAfter()
		if !ok || len(s.Out) < 2 {
			return impossible("what a receive gave is not recorded")
		}
		var data []byte
		for _, piece := range s.Out[2:] {
			data = append(data, piece.Bytes...)
			if len(piece.Bytes) < piece.Length {
				break
			}
		}
		seen += dataSum(data) + ", flags " + hex(after) + p.received(s.Out[1].Bytes)
	}
	with, wait := s.Argument(1), s.Returned && s.Errno == 0
	if p.unordered() && p.threads.unwatched && s.part == during {
		wait = false // it comes to that again
		if with&unix.MSG_ERRQUEUE == 0 {
			with |= unix.MSG_DONTWAIT
		}
	}
	p.add("read_message(%s, %d, %d, %s, %d);", fd, length, control, flags(with), truth(wait))
	p.check(s, seen)
	return nil
}

const originZerocopy = 5 // SO_EE_ORIGIN_ZEROCOPY

// isExtendedError tells whether a control message has a struct sock_extended_err.
func isExtendedError(m trace.ControlMessage) bool {
	const size, solVsock, vsockRecverr = 16, 287, 1
	is := m.Level == unix.SOL_IP && m.Type == unix.IP_RECVERR || m.Level == unix.SOL_IPV6 && m.Type == unix.IPV6_RECVERR ||
		m.Level == solVsock && m.Type == vsockRecverr
	return is && len(m.Data) >= size
}

// received is what see_control shows.
func (p *program) received(control []byte) string {
	var text strings.Builder
	for _, m := range p.layout.ControlMessages(control) {
		fmt.Fprintf(&text, "; %d/%d", m.Level, m.Type)
		if isExtendedError(m) {
			fmt.Fprintf(&text, " errno %d origin %d code %d %d-%d", binary.NativeEndian.Uint32(m.Data), m.Data[4], m.Data[6],
				binary.NativeEndian.Uint32(m.Data[8:]), binary.NativeEndian.Uint32(m.Data[12:]))
		}
	}
	return text.String()
}

func (p *program) writeFile(s *step) error {
	path, text := s.Text(0), s.Text(1)
	if !strings.HasPrefix(path, "/proc/sys/") || len(s.In) < 2 || len(text) != s.In[1].Length {
		return impossible("it writes to %s", printable(path))
	}
	if s.Errno != 0 {
		return impossible("it could not write to %s", printable(path))
	}
	p.add("write_file(%s, %s);", quote([]byte(path)), quote([]byte(text)))
	return nil
}

// restore undoes the settings of the program as the case did later.
func (p *program) restore(record *trace.Record, end int) {
	changed := make(map[string]bool)
	for _, c := range record.Calls[:end] {
		if c.Name == "writefile" {
			changed[c.Text(0)] = true
		}
	}
	for _, c := range slices.Backward(record.Calls[end:]) {
		if c.Name == "writefile" && changed[c.Text(0)] && len(c.In) > 1 && len(c.Text(1)) == c.In[1].Length {
			changed[c.Text(0)] = false
			p.add("write_file(%s, %s);", quote(c.In[0].Bytes), quote(c.In[1].Bytes))
		}
	}
}
