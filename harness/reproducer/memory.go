// SPDX-License-Identifier: BSD-3-Clause

package reproducer

import (
	"bytes"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/zcvet/zcvet/guest/notify"
	"github.com/zcvet/zcvet/guest/trace"
)

// mapping is memory that the case mapped.
type mapping struct {
	name    string
	address uint64
	length  int64
	mapped  int // the block that maps it
	// taken is the block that first took access rights away, 0 if none did.
	taken int
	// pattern is what fill was given for it, once it is filled.
	pattern *byte
	// written has the beginnings of what was written piece by piece, by offset.
	written map[int64]string
}

func (m *mapping) restricted() bool { return m.taken > 0 }

// mapping finds the mapping that a piece of memory lies in, and where; nil for
// memory that no recorded call has mapped.
func (p *program) mapping(piece trace.Memory) (m *mapping, offset int64) {
	for _, m := range p.mappings {
		if piece.Address >= m.address && piece.Address-m.address < uint64(m.length) {
			return m, int64(piece.Address - m.address)
		}
	}
	return nil, 0
}

func (p *program) mmap(s *step) error {
	length := s.Argument(0)
	if s.Errno != 0 || length <= 0 || length > mostBytes {
		return impossible("it needs a mapping of %d bytes", length)
	}
	if s.Argument(2)&unix.MAP_ANONYMOUS == 0 {
		return impossible("it maps a file")
	}
	m := &mapping{name: p.name("mem", "char *"), address: uint64(s.Result), length: length, mapped: len(p.blocks), written: make(map[int64]string)}
	p.mappings = append(p.mappings, m)
	p.add("%s = map(%d, %s, %s);", m.name, length, trace.Protection(s.Argument(1)), trace.Mapping(s.Argument(2)))
	return nil
}

func (p *program) protect(s *step) error {
	m, offset := p.mapping(trace.Memory{Address: uint64(s.Argument(0))})
	length := s.Argument(1)
	if m == nil || length <= 0 || offset+length > m.length {
		return impossible("it changes memory that no recorded call has mapped")
	}
	if m.taken == 0 {
		m.taken = len(p.blocks)
	}
	if s.Name == "munmap" {
		p.setUp(s, fmt.Sprintf("munmap(%s, %d)", m.at(offset), length))
		if offset == 0 && length == m.length {
			m.length = 0 // nothing lies in it any more
		}
		return nil
	}
	p.setUp(s, fmt.Sprintf("mprotect(%s, %d, %s)", m.at(offset), length, trace.Protection(s.Argument(2))))
	if s.Argument(2)&unix.PROT_WRITE != 0 {
		m.taken = 0
	}
	return nil
}

// at is a place in the mapping.
func (m *mapping) at(offset int64) string {
	if offset == 0 {
		return m.name
	}
	return fmt.Sprintf("%s + %d", m.name, offset)
}

// prepare adds lines that write to the mapping while the program may: now, or
// before access rights were taken away.
func (p *program) prepare(m *mapping, lines ...string) {
	if m.restricted() {
		b := &p.blocks[m.taken]
		b.before = append(b.before, lines...)
		return
	}
	p.add("%s", strings.Join(lines, "\n"))
}

// content makes sure that memory that is sent holds what it held, and returns
// where it is. Pieces outside of mappings share one buffer; from is where there is
// room in it.
func (p *program) content(piece trace.Memory, from int64) (place string, err error) {
	length := int64(piece.Length)
	if length < 0 || length > mostBytes || from+length > mostBytes {
		return "", impossible("it sends %d bytes at once", length)
	}
	kept := piece.Bytes
	if length == 0 {
		return "NULL", nil
	}
	if len(kept) > piece.Length || kept != nil && len(kept) == 0 {
		return "", impossible("the data of a send is not recorded")
	}
	m, offset := p.mapping(piece)
	if m == nil {
		if kept == nil {
			return "", impossible("it sends memory that no recorded call has mapped, and that cannot be read")
		}
		p.data = max(p.data, from+length)
		p.buffers["data"] = true
		place = "data"
		if from > 0 {
			place = fmt.Sprintf("data + %d", from)
		}
		p.add("%s", write(place, length, kept))
		return place, nil
	}
	if offset+length > m.length {
		return "", impossible("it sends more than a mapping")
	}
	place = m.at(offset)
	if kept == nil { // out of the case's own reach
		return place, nil
	}
	// The usual pattern begins with the mapping.
	first := kept[0] - notify.PatternByte(0, int(offset))
	whole := continues(kept, first, int(offset))
	switch {
	case whole && m.pattern != nil && *m.pattern == first && len(m.written) == 0, m.written[offset] == key(kept, length):
		return place, nil
	case whole && m.pattern == nil && len(m.written) == 0:
		m.pattern = &first
		b := &p.blocks[m.mapped]
		b.after = append(b.after, fmt.Sprintf("fill(%s, %d, %d);", m.name, m.length, first))
		return place, nil
	case m.pattern == nil && len(m.written) == 0 && len(bytes.Trim(kept, "\x00")) == 0:
		return place, nil // as it was mapped
	case m.restricted():
		return "", impossible("it writes to memory whose access rights have changed")
	}
	m.written[offset] = key(kept, length)
	p.add("%s", write(place, length, kept))
	return place, nil
}

func key(kept []byte, length int64) string { return fmt.Sprint(length, " ", string(kept)) }

// write is the statement that fills memory with what is known of its content; the
// rest is the pattern, of which it may be a part.
func write(place string, length int64, kept []byte) string {
	if int64(len(kept)) == length && length <= trace.KeptData {
		if isPattern(kept) && length > 16 {
			return fmt.Sprintf("fill(%s, %d, %d);", place, length, kept[0])
		}
		return fmt.Sprintf("memcpy(%s, %s, %d);", place, quote(kept), length)
	}
	if bytes.Count(kept, kept[:1]) == len(kept) {
		return fmt.Sprintf("memset(%s, %d, %d);", place, kept[0], length)
	}
	if isPattern(kept) {
		return fmt.Sprintf("fill(%s, %d, %d);", place, length, kept[0])
	}
	return fmt.Sprintf("fill(%s, %d, %d);\nmemcpy(%s, %s, %d);", place, length, kept[0], place, quote(kept), len(kept))
}

// isPattern tells whether memory holds what fill writes.
func isPattern(kept []byte) bool { return continues(kept, kept[0], 0) }

// continues tells whether memory at an offset holds the pattern that begins with
// first.
func continues(kept []byte, first byte, offset int) bool {
	for i, b := range kept {
		if b != notify.PatternByte(first, offset+i) {
			return false
		}
	}
	return true
}
