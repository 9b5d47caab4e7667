// SPDX-License-Identifier: BSD-3-Clause

package reproducer

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/zcvet/zcvet/guest/trace"
)

const (
	sentinel    = 0xa5 // of package notify, and of the program
	elementSize = 12   // struct zc_info_elem
	infoHeader  = 4    // struct zc_info
)

// counted tells whether the kernel says how many elements it has written.
func (p *program) counted() bool { return p.about.Style.ABI != "v6" }

// send is a send without control data. The case may have made it with sendmsg.
func (p *program) send(s *step, fd string) error {
	if len(s.In) < 2 {
		return impossible("the data of a send is not recorded")
	}
	place, err := p.content(s.In[1], 0)
	if err != nil {
		return err
	}
	to := "NULL, 0"
	if s.In[0].Length > 0 {
		address, err := p.address(s.In, 0)
		if err != nil {
			return err
		}
		to = "(struct sockaddr *)&to, " + address
	}
	call := fmt.Sprintf("sendto(%s, %s, %d, %s, %s)", fd, place, s.In[1].Length, flags(s.Argument(1)), to)
	p.add("%s", p.sending(s, fd, "result("+call+")", 1))
	p.check(s, result(s.Call))
	return nil
}

// sending is the statement that makes a call that sends so many messages. Between
// threads it is not known which sends the kernel takes, so the program counts them.
func (p *program) sending(s *step, fd, call string, messages int) string {
	if !p.counting || !p.threaded() || s.Argument(1)&unix.MSG_ZEROCOPY == 0 {
		return call + ";"
	}
	p.zerocopies += int64(messages)
	return fmt.Sprintf("sent(%s, %s, %d);", fd, call, messages)
}

func (p *program) sendMessage(s *step, fd string) error {
	if len(s.In) < 2 {
		return impossible("a message is not recorded")
	}
	m := message{pieces: s.In, flags: s.Argument(2)}
	if _, err := p.contents(&m, 0); err != nil {
		return err
	}
	control, buffers, places := m.control(), m.buffers(), m.places
	after, changed := headerAfter(s)
	header, at := p.mapping(trace.Memory{Address: uint64(s.Argument(3))})
	if len(buffers) == 1 && s.In[0].Length == 0 && control.Length == 0 && s.Argument(2) == 0 && header == nil && !changed {
		call := fmt.Sprintf("send_data(%s, %s, %d, %s)", fd, places[0], buffers[0].Length, flags(s.Argument(1)))
		p.add("%s", p.sending(s, fd, call, 1))
		p.check(s, result(s.Call))
		return nil
	}
	lines, place, err := p.message(&m)
	if err != nil {
		return err
	}
	name := "&msg"
	if header != nil {
		if at+int64(s.HeaderSize()) > header.length {
			return impossible("it puts the msghdr at the end of a mapping")
		}
		if header.restricted() && p.messages > header.taken {
			return impossible("it sends other messages after it has taken away the memory of the msghdr")
		}
		p.prepare(header, append(lines, fmt.Sprintf("memcpy(%s, &msg, sizeof(msg));", header.at(at)))...)
		name = fmt.Sprintf("(struct msghdr *)(%s)", header.at(at))
		lines = nil
	}
	call := fmt.Sprintf("result(sendmsg(%s, %s, %s))", fd, name, flags(s.Argument(1)))
	p.add("%s", strings.Join(append(lines, p.sending(s, fd, call, 1)), "\n"))
	p.messages = len(p.blocks)
	seen := result(s.Call)
	returned := len(s.Out) > 1 && s.Out[1].Bytes != nil
	// A call whose end is not recorded may have been answered all the same, and
	// what is counted must be complete.
	if control.Length > 0 && control.Bytes != nil && (returned || p.counting) {
		of := ""
		if p.counting {
			of = fd + ", "
		}
		p.more("answer(%s%s, %d);", of, place, control.Length)
		if returned {
			seen += p.answered(s.Out[1].Bytes)
		}
	}
	if changed {
		if header != nil {
			return impossible("the kernel wrote to a msghdr that the case has taken away")
		}
		p.more(`see("; msghdr flags %%#x controllen %%zu", msg.msg_flags, msg.msg_controllen);`)
		seen += after
	}
	p.check(s, seen)
	return nil
}

// message is one message of a send.
type message struct {
	pieces []trace.Memory // name, control buffer, and buffers
	flags  int64          // msg_flags
	places []string       // of the buffers
	// Where there is room in iov and in control.
	vector, offset int64
}

func (m *message) control() trace.Memory   { return m.pieces[1] }
func (m *message) buffers() []trace.Memory { return m.pieces[2:] }

// contents finds places for the buffers; from is where there is room in data. It
// returns where there is room then.
func (p *program) contents(m *message, from int64) (int64, error) {
	for _, piece := range m.buffers() {
		place, err := p.content(piece, from)
		if err != nil {
			return from, err
		}
		m.places = append(m.places, place)
		if in, _ := p.mapping(piece); in == nil {
			from += int64(piece.Length)
		}
	}
	return from, nil
}

// message returns the lines that make the variable msg the message, and where its
// control buffer is.
func (p *program) message(m *message) (lines []string, control string, err error) {
	buffers := m.buffers()
	p.buffers["iov"] = true
	p.vectors = max(p.vectors, m.vector+int64(len(buffers)))
	if len(buffers) > 0 {
		lines = append(lines, p.vectorArray(buffers, m.places, m.vector))
	}
	lines = append(lines, fmt.Sprintf("msg = (struct msghdr){ .msg_iov = %s, .msg_iovlen = %d };", behind("iov", m.vector), len(buffers)))
	if m.pieces[0].Length > 0 {
		to, err := p.address(m.pieces, 0)
		if err != nil {
			return nil, "", err
		}
		lines = append(lines, "msg.msg_name = &to;", fmt.Sprintf("msg.msg_namelen = %s;", to))
	}
	if m.flags != 0 {
		lines = append(lines, fmt.Sprintf("msg.msg_flags = %s;", flags(m.flags)))
	}
	of, control, err := p.controlBuffer(m.control(), m.offset)
	return append(lines, of...), control, err
}

// behind is a place in a buffer of the program.
func behind(buffer string, offset int64) string {
	if offset == 0 {
		return buffer
	}
	return fmt.Sprintf("%s + %d", buffer, offset)
}

// sendMessages is sendmmsg.
func (p *program) sendMessages(s *step, fd string) error {
	var name string
	var messages []message
	pieces := s.In
	for _, count := range s.Arguments[min(2, len(s.Arguments)):] {
		if count < 0 || count > int64(len(pieces))-2 {
			return impossible("the messages of a call are not recorded")
		}
		m := message{pieces: pieces[:2+count]}
		pieces = pieces[2+count:]
		if len(messages) > 0 && string(m.pieces[0].Bytes) != name {
			return impossible("it sends to several addresses in one call")
		}
		name = string(m.pieces[0].Bytes)
		messages = append(messages, m)
	}
	var from, vector, offset int64
	var places []string
	var lines []string
	for i := range messages {
		m := &messages[i]
		var err error
		if from, err = p.contents(m, from); err != nil {
			return err
		}
		m.vector, m.offset = vector, offset
		vector += int64(len(m.buffers()))
		offset += int64(m.control().Length+7) &^ 7
		of, place, err := p.message(m)
		if err != nil {
			return err
		}
		places = append(places, place)
		lines = append(lines, of...)
		lines = append(lines, fmt.Sprintf("many[%d].msg_hdr = msg;", i))
	}
	p.many = max(p.many, int64(len(messages)))
	p.buffers["many"] = true
	call := fmt.Sprintf("result(sendmmsg(%s, many, %d, %s))", fd, len(messages), flags(s.Argument(1)))
	lines = append(lines, p.sending(s, fd, call, len(messages)))
	seen := result(s.Call)
	sent := min(len(s.Outcome), len(s.Out), len(messages))
	if p.counting && !s.Returned {
		sent = len(messages) // see sendMessage
	}
	for i := range sent {
		control := messages[i].control()
		if i >= len(s.Out) || i >= len(s.Outcome) {
			if control.Length > 0 && control.Bytes != nil {
				lines = append(lines, fmt.Sprintf("answer(%s, %s, %d);", fd, places[i], control.Length))
			}
			continue
		}
		lines = append(lines, fmt.Sprintf("see(\"; %%u\", many[%d].msg_len);", i))
		seen += fmt.Sprintf("; %d", uint32(s.Outcome[i]))
		if control.Length == 0 || s.Out[i].Bytes == nil || control.Bytes == nil {
			continue
		}
		of := ""
		if p.counting {
			of = fd + ", "
		}
		lines = append(lines, fmt.Sprintf("answer(%s%s, %d);", of, places[i], control.Length))
		seen += p.answered(s.Out[i].Bytes)
	}
	p.add("%s", strings.Join(lines, "\n"))
	p.messages = len(p.blocks)
	p.check(s, seen)
	return nil
}

// headerAfter is what the kernel left in the msghdr of a send, if that is not what
// it was given.
func headerAfter(s *step) (seen string, changed bool) {
	flags, _ := s.MessageFlagsAfter()
	length, known := s.ControlLengthAfter()
	if !known {
		return "", false
	}
	return fmt.Sprintf("; msghdr flags %s controllen %d", hex(flags), length), flags != s.Argument(2) || length != uint64(s.In[1].Length)
}

// vectorArray writes the iovec array, equal pieces at equal distances as a loop.
func (p *program) vectorArray(buffers []trace.Memory, places []string, first int64) string {
	const few = 4
	if distance, regular := p.distance(buffers); regular && len(buffers) > few && first == 0 {
		at := places[0] + " + part"
		if distance > 1 {
			at += fmt.Sprintf(" * %d", distance)
		}
		return fmt.Sprintf("for (part = 0; part < %d; part++)\n\tiov[part] = (struct iovec){ %s, %d };", len(buffers), at, buffers[0].Length)
	}
	var lines []string
	for i, buffer := range buffers {
		lines = append(lines, fmt.Sprintf("iov[%d] = (struct iovec){ %s, %d };", first+int64(i), places[i], buffer.Length))
	}
	return strings.Join(lines, "\n")
}

// distance is that from one piece to the next, if it is the same for all, they are
// of one length and lie in one buffer of the program.
func (p *program) distance(buffers []trace.Memory) (distance int64, regular bool) {
	if len(buffers) < 2 || buffers[0].Length == 0 {
		return 0, false
	}
	in, _ := p.mapping(buffers[0])
	step := buffers[1].Address - buffers[0].Address
	for i, piece := range buffers {
		m, _ := p.mapping(piece)
		if m != in || piece.Length != buffers[0].Length || m != nil && piece.Address != buffers[0].Address+uint64(i)*step {
			return 0, false
		}
	}
	if in == nil {
		return int64(buffers[0].Length), true // one behind the other
	}
	return int64(step), int64(step) > 0
}

// controlBuffer returns the lines that give the message its control buffer, and
// where that is. From is where there is room in control.
func (p *program) controlBuffer(control trace.Memory, from int64) (lines []string, place string, err error) {
	length := int64(control.Length)
	switch {
	case length == 0:
		return nil, "NULL", nil
	case length > trace.KeptControl:
		return nil, "", impossible("a control buffer has %d bytes, more than are recorded", length)
	case control.Bytes != nil && int64(len(control.Bytes)) != length:
		return nil, "", impossible("a control buffer is not recorded")
	}
	if m, offset := p.mapping(control); m != nil {
		if offset+length > m.length {
			return nil, "", impossible("a control buffer is longer than the memory it lies in")
		}
		if place = m.at(offset); control.Bytes != nil {
			if messages, same := p.controlMessages(control.Bytes); same {
				p.prepare(m, append([]string{fmt.Sprintf("msg = (struct msghdr){ .msg_control = %s };", place)}, messages...)...)
			} else {
				p.prepare(m, fmt.Sprintf("memcpy(%s, %s, %d);", place, quote(control.Bytes), length))
			}
		}
		return []string{fmt.Sprintf("msg.msg_control = %s;", place), fmt.Sprintf("msg.msg_controllen = %d;", length)}, place, nil
	}
	if control.Bytes == nil {
		return nil, "", impossible("a control buffer is not recorded")
	}
	p.control = max(p.control, from+length)
	p.buffers["control"] = true
	place = behind("control", from)
	lines = []string{fmt.Sprintf("msg.msg_control = %s;", place)}
	if messages, same := p.controlMessages(control.Bytes); same {
		return append(lines, messages...), place, nil
	}
	return append(lines, fmt.Sprintf("memcpy(%s, %s, %d);", place, quote(control.Bytes), length), fmt.Sprintf("msg.msg_controllen = %d;", length)), place, nil
}

// controlMessages writes the messages of a control buffer one by one, if that
// gives the very same bytes.
func (p *program) controlMessages(control []byte) (lines []string, same bool) {
	var built []byte
	for _, m := range p.layout.ControlMessages(control) {
		built = p.appendControl(built, m.Level, m.Type, m.Data)
		lines = append(lines, p.controlMessage(m))
	}
	return lines, bytes.Equal(built, control)
}

func (p *program) controlMessage(m trace.ControlMessage) string {
	if m.Level == unix.SOL_SOCKET && m.Type == int64(p.about.Style.Constant) && m.Type != 0 {
		if elements := len(m.Data) / elementSize; !p.counted() && len(m.Data)%elementSize == 0 && filler(m.Data) {
			p.elements = max(p.elements, int64(elements))
			return fmt.Sprintf("add_array(&msg, %d);", elements)
		}
		if rest := len(m.Data) - infoHeader; p.counted() && rest >= 0 && rest%elementSize == 0 && filler(m.Data[infoHeader:]) {
			p.elements = max(p.elements, int64(rest/elementSize))
			return fmt.Sprintf("add_request(&msg, %d, %d);", binary.NativeEndian.Uint32(m.Data), rest/elementSize)
		}
	}
	if len(m.Data) == 4 {
		return fmt.Sprintf("add_control(&msg, %s, %s, &(int){ %d }, sizeof(int));", trace.OptionLevel(m.Level), p.controlType(m),
			int32(binary.NativeEndian.Uint32(m.Data)))
	}
	return fmt.Sprintf("add_control(&msg, %s, %s, %s, %d);", trace.OptionLevel(m.Level), p.controlType(m), quote(m.Data), len(m.Data))
}

func (p *program) controlType(m trace.ControlMessage) string {
	if m.Level == unix.SOL_SOCKET && m.Type == int64(p.about.Style.Constant) && m.Type != 0 {
		return "SCM_ZC_NOTIFICATION"
	}
	return trace.Option(m.Level, m.Type)
}

func filler(data []byte) bool { return bytes.Count(data, []byte{sentinel}) == len(data) }

// appendControl does what add_control of the program does.
func (p *program) appendControl(buffer []byte, level, kind int64, data []byte) []byte {
	message, word := make([]byte, p.layout.ControlSpace(len(data))), p.layout.Word()
	if p.layout.Narrow {
		binary.NativeEndian.PutUint32(message, uint32(word+8+len(data)))
	} else {
		binary.NativeEndian.PutUint64(message, uint64(word+8+len(data)))
	}
	binary.NativeEndian.PutUint32(message[word:], uint32(level))
	binary.NativeEndian.PutUint32(message[word+4:], uint32(kind))
	copy(message[word+8:], data)
	return append(buffer, message...)
}

// notification is a range of sends.
type notification struct{ low, high uint32 }

// notifications are those that a call gave.
func (p *program) notifications(c *trace.Call) []notification {
	var list []notification
	add := func(data []byte) {
		list = append(list, notification{binary.NativeEndian.Uint32(data), binary.NativeEndian.Uint32(data[4:])})
	}
	first := 1 // behind the msghdr
	switch c.Name {
	case "recvmsg", "sendmsg":
	case "sendmmsg", trace.Wait:
		first = 0
	default:
		return nil
	}
	for _, piece := range c.Out[min(len(c.Out), first):] {
		for _, m := range c.ControlMessages(piece.Bytes) {
			if c.Name == "recvmsg" {
				if isExtendedError(m) && m.Data[4] == originZerocopy {
					add(m.Data[8:])
				}
				continue
			}
			p.eachElement(m, func(element []byte) { add(element) })
		}
		if c.Name != "sendmmsg" {
			break
		}
	}
	return list
}

// eachElement calls f with the elements that the kernel has written.
func (p *program) eachElement(m trace.ControlMessage, f func(element []byte)) {
	if m.Level != unix.SOL_SOCKET || m.Type != int64(p.about.Style.Constant) || m.Type == 0 {
		return
	}
	data, count := m.Data, len(m.Data)/elementSize
	if p.counted() {
		if len(data) < infoHeader {
			return
		}
		count = int(min(binary.NativeEndian.Uint32(data), 1<<16))
		data = data[infoHeader:]
	}
	for i := 0; i < count && len(data) >= elementSize; i, data = i+1, data[elementSize:] {
		if !filler(data[:elementSize]) {
			f(data)
		} else if !p.counted() {
			return
		}
	}
}

// answered is what the program's answer shows.
func (p *program) answered(control []byte) string {
	var text strings.Builder
	rest := control
	for _, m := range p.layout.ControlMessages(control) {
		fmt.Fprintf(&text, "; %d/%d", m.Level, m.Type)
		rest = rest[min(len(rest), p.layout.ControlSpace(len(m.Data))):]
		switch {
		case m.Level != unix.SOL_SOCKET || m.Type != int64(p.about.Style.Constant) || m.Type == 0:
			text.WriteString(sum(",", m.Data))
		case !p.counted():
			elements(&text, m.Data, -1)
		case len(m.Data) >= infoHeader:
			size := binary.NativeEndian.Uint32(m.Data)
			fmt.Fprintf(&text, " size %d:", size)
			elements(&text, m.Data[infoHeader:], int64(size))
		}
	}
	return text.String() + sum(", rest", rest)
}

// elements does what see_elements of the program does.
func elements(text *strings.Builder, data []byte, count int64) {
	leaks := false
	i := int64(0)
	for ; len(data) >= elementSize; i, data = i+1, data[elementSize:] {
		element := data[:elementSize]
		if count < 0 && filler(element) {
			count = i
		}
		if count >= 0 && i >= count {
			leaks = leaks || foreign(element)
			continue
		}
		if filler(element) {
			text.WriteString(" -")
			continue
		}
		fmt.Fprintf(text, " %d-%d", binary.NativeEndian.Uint32(element), binary.NativeEndian.Uint32(element[4:]))
		switch element[8] {
		case 0:
			text.WriteString(" COPIED")
		case 1:
		default:
			fmt.Fprintf(text, " flag %d", element[8])
		}
		leaks = leaks || foreign(element[9:])
	}
	if leaks || foreign(data) {
		text.WriteString(", foreign bytes")
	}
}

func foreign(data []byte) bool {
	return len(bytes.Trim(data, "\x00\xa5")) > 0
}
