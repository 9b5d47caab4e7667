// SPDX-License-Identifier: BSD-3-Clause

package notify

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"golang.org/x/sys/unix"
)

// Layout of struct zc_info_elem, equal on 32 and 64 bit: two 32-bit numbers, one
// byte, three bytes of padding. struct zc_info of v7 and v8 puts a 32-bit size
// before the elements.
const (
	elementSize     = 12
	elementZerocopy = 8 // offset of the zerocopy byte
	elementPadding  = 9 // offset of the padding
	infoHeader      = 4 // offset of the first element in struct zc_info
)

// Sentinel fills every byte of a request that the kernel may write. An element
// that still holds it was not written: as a range it runs from and to send
// 2779096485, far beyond what a case sends.
const Sentinel byte = 0xa5

// ErrUntouched is returned for a control message the kernel did not write to.
var ErrUntouched = errors.New("the kernel left the SCM_ZC_NOTIFICATION message untouched")

// Request is the data of an SCM_ZC_NOTIFICATION message, well-formed or not.
type Request struct {
	Name string
	Data []byte
}

// Profile is the interface of one revision of the series: what the caller puts
// into the control message and what comes back.
type Profile interface {
	// Name is the profile's name in link.Parameters, "v8".
	Name() string
	// Constant is SCM_ZC_NOTIFICATION in the tree under test.
	Constant() int32
	// Max is the largest capacity the revision accepts, 0 if it has no bound.
	Max() int
	// ReportsCount tells whether the kernel says how many entries it wrote.
	// Otherwise Decode finds the end by the sentinel.
	ReportsCount() bool
	// Data returns the data of a message that asks for capacity entries.
	Data(capacity int) []byte
	// Encode returns a control buffer with that message alone.
	Encode(capacity int) []byte
	// Decode returns the entries the kernel wrote into the first message of
	// this type in control, the caller's whole buffer: published revisions
	// set msg_controllen to something else. The error is ErrUntouched if the
	// message still holds the request.
	Decode(control []byte) ([]Notification, error)
	// Foreign returns a description of each byte of the message's data that is
	// neither an output field the kernel had to write, nor the caller's own
	// byte, nor zero: such a byte is kernel memory.
	Foreign(control []byte) []string
	// Refused lists requests the revision answers with EINVAL.
	Refused() []Request
}

// NewProfile returns the profile that link.Parameters name. A tree that defines
// no constant or has no profile known here is an error.
func NewProfile(abi string, constant int) (Profile, error) {
	if constant <= 0 || constant > math.MaxInt32 {
		return nil, fmt.Errorf("SCM_ZC_NOTIFICATION is %d in the tree under test: not defined", constant)
	}
	switch abi {
	case "v6":
		return v6{constant: int32(constant), max: 16}, nil
	case "v7":
		return counted{name: "v7", constant: int32(constant)}, nil
	case "v8":
		return counted{name: "v8", constant: int32(constant), max: 16}, nil
	}
	return nil, fmt.Errorf("no notification profile %q (known: v6, v7, v8)", abi)
}

// v6 is the array without a header: 1 to 16 elements, and no count returned.
type v6 struct {
	constant int32
	max      int
}

func (p v6) Name() string       { return "v6" }
func (p v6) Constant() int32    { return p.constant }
func (p v6) Max() int           { return p.max }
func (p v6) ReportsCount() bool { return false }

func (p v6) Data(capacity int) []byte {
	return bytes.Repeat([]byte{Sentinel}, capacity*elementSize)
}

func (p v6) Encode(capacity int) []byte {
	return AppendControl(nil, unix.SOL_SOCKET, p.constant, p.Data(capacity))
}

func (p v6) Decode(control []byte) ([]Notification, error) {
	data, err := find(control, p.constant)
	if err != nil {
		return nil, err
	}
	if len(data)%elementSize != 0 {
		return nil, fmt.Errorf("%w: %d bytes are no whole number of elements", ErrControl, len(data))
	}
	return p.elements(data), nil
}

// elements ends at the first element that holds the sentinel, or zeros after the
// first: a kernel that clears what it does not use looks like that. Nothing
// tells a first element of zeros from send 0, copied.
func (p v6) elements(data []byte) []Notification {
	var entries []Notification
	for offset := 0; offset+elementSize <= len(data); offset += elementSize {
		element := data[offset : offset+elementSize]
		if unwritten(element) || offset > 0 && bytes.Count(element, []byte{0}) == elementSize {
			break
		}
		entries = append(entries, decodeElement(p.constant, element))
	}
	return entries
}

func (p v6) Foreign(control []byte) []string {
	data, err := find(control, p.constant)
	if err != nil {
		return []string{err.Error()}
	}
	return foreign(data, 0, len(p.elements(data)))
}

func (p v6) Refused() []Request {
	return []Request{
		{"no data", nil},
		{"less than an element", p.Data(1)[:elementSize-1]},
		{"an element and a byte", p.Data(2)[:elementSize+1]},
		{fmt.Sprintf("%d elements", p.max+1), p.Data(p.max + 1)},
	}
}

// counted is struct zc_info: capacity in, count out. v7 has no upper bound.
type counted struct {
	name     string
	constant int32
	max      int
}

func (p counted) Name() string       { return p.name }
func (p counted) Constant() int32    { return p.constant }
func (p counted) Max() int           { return p.max }
func (p counted) ReportsCount() bool { return true }

func (p counted) Data(capacity int) []byte {
	return sized(uint32(capacity), infoHeader+capacity*elementSize)
}

// sized is a struct zc_info of length bytes that claims size elements.
func sized(size uint32, length int) []byte {
	data := bytes.Repeat([]byte{Sentinel}, max(length, infoHeader))
	binary.NativeEndian.PutUint32(data, size)
	return data[:length]
}

func (p counted) Encode(capacity int) []byte {
	return AppendControl(nil, unix.SOL_SOCKET, p.constant, p.Data(capacity))
}

func (p counted) Decode(control []byte) ([]Notification, error) {
	data, count, err := p.count(control)
	if err != nil {
		return nil, err
	}
	var entries []Notification
	for i := range count {
		element := data[infoHeader+i*elementSize:][:elementSize]
		if unwritten(element) {
			if i == 0 && infoHeader+count*elementSize == len(data) {
				return nil, ErrUntouched
			}
			return entries, fmt.Errorf("%w: size is %d but element %d was not written", ErrControl, count, i)
		}
		if element[elementZerocopy] > 1 {
			return entries, fmt.Errorf("%w: zerocopy of element %d is %d, which is neither 0 nor 1", ErrControl, i, element[elementZerocopy])
		}
		entries = append(entries, decodeElement(p.constant, element))
	}
	return entries, nil
}

func (p counted) count(control []byte) (data []byte, count int, err error) {
	data, err = find(control, p.constant)
	if err != nil {
		return nil, 0, err
	}
	if len(data) < infoHeader || (len(data)-infoHeader)%elementSize != 0 {
		return nil, 0, fmt.Errorf("%w: %d bytes are no struct zc_info", ErrControl, len(data))
	}
	size, capacity := binary.NativeEndian.Uint32(data), (len(data)-infoHeader)/elementSize
	if uint64(size) > uint64(capacity) {
		return nil, 0, fmt.Errorf("%w: size is %d with room for %d", ErrControl, size, capacity)
	}
	return data, int(size), nil
}

func (p counted) Foreign(control []byte) []string {
	data, count, err := p.count(control)
	if err != nil {
		return []string{err.Error()}
	}
	return foreign(data, infoHeader, count)
}

func (p counted) Refused() []Request {
	requests := []Request{
		{"no data", nil},
		{"3 bytes", sized(0, 3)},
		{"size 1, room for none", sized(1, infoHeader)},
		{"size 0, room for one", sized(0, infoHeader+elementSize)},
		{"size 1, a byte short", sized(1, infoHeader+elementSize-1)},
		{"size 1, a byte more", sized(1, infoHeader+elementSize+1)},
		{"size 2^32-1, room for one", sized(math.MaxUint32, infoHeader+elementSize)},
		// 12 * 2^30 is 0 in 32 bits, 12 * (2^30 + 1) is one element.
		{"size 2^30, room for none", sized(1<<30, infoHeader)},
		{"size 2^30+1, room for one", sized(1<<30+1, infoHeader+elementSize)},
	}
	if p.max > 0 {
		requests = append(requests, Request{fmt.Sprintf("size %d", p.max+1), p.Data(p.max + 1)})
	}
	return requests
}

// find returns the data of the first SCM_ZC_NOTIFICATION message.
func find(control []byte, constant int32) ([]byte, error) {
	messages, err := ParseControl(control)
	if err != nil {
		return nil, err
	}
	for _, message := range messages {
		if message.Level == unix.SOL_SOCKET && message.Type == constant {
			return message.Data, nil
		}
	}
	return nil, fmt.Errorf("%w: no SCM_ZC_NOTIFICATION (%d) in it", ErrControl, constant)
}

func unwritten(element []byte) bool {
	return bytes.Count(element, []byte{Sentinel}) == len(element)
}

func decodeElement(constant int32, element []byte) Notification {
	return Notification{
		Low:      binary.NativeEndian.Uint32(element),
		High:     binary.NativeEndian.Uint32(element[4:]),
		Copied:   element[elementZerocopy] == 0,
		Way:      Control,
		Origin:   OriginZerocopy,
		Level:    unix.SOL_SOCKET,
		CmsgType: constant,
	}
}

func foreign(data []byte, first, count int) []string {
	var found []string
	for offset := first; offset < len(data); offset++ {
		index, within := (offset-first)/elementSize, (offset-first)%elementSize
		if index < count && within < elementPadding {
			continue
		}
		if data[offset] == Sentinel || data[offset] == 0 {
			continue
		}
		what := "unused element"
		if index < count {
			what = "padding of element"
		}
		found = append(found, fmt.Sprintf("%s %d, byte %d: %#02x", what, index, within, data[offset]))
	}
	return found
}
