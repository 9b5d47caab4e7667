// SPDX-License-Identifier: BSD-3-Clause

package notify

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Message is what a case gives to sendmsg or recvmsg. The slices are handed to
// the kernel as they are and never read or written here, so each may lie in
// memory the process has no access to.
type Message struct {
	// Name is the raw peer address, see [Address]; nil on a connected socket.
	Name []byte
	// Buffers become the iovec array, in order; empty ones too.
	Buffers [][]byte
	// Control is the control buffer; its length becomes msg_controllen. For a
	// receive it is the room there is.
	Control []byte
	// HeaderFlags is msg_flags before the call. The kernel ignores it on
	// input, which is worth checking for flags only the kernel may set.
	HeaderFlags int
	// Flags is the flags argument of the call.
	Flags int

	// After is the msghdr as the call left it: Flags and Controllen tell what
	// the kernel wrote there. Set by Send, Receive and their plural forms.
	After unix.Msghdr
}

// HeaderSize is the size of struct msghdr in this task, in bytes.
const HeaderSize = int(unsafe.Sizeof(unix.Msghdr{}))

// Prepared is a message whose msghdr and iovec array are in place, ready for any
// number of calls.
type Prepared struct {
	message *Message
	header  *unix.Msghdr
	vectors []unix.Iovec
}

// Prepare lays out the msghdr in Go memory.
func (m *Message) Prepare() *Prepared {
	p := &Prepared{message: m, header: new(unix.Msghdr)}
	p.fill()
	return p
}

// PrepareAt lays out the msghdr at the beginning of place, HeaderSize bytes of
// memory from [Pages], whose access rights the caller may then change.
func (m *Message) PrepareAt(place []byte) *Prepared {
	if len(place) < HeaderSize {
		panic(fmt.Sprintf("notify: a msghdr needs %d bytes, %d given", HeaderSize, len(place)))
	}
	p := &Prepared{message: m, header: (*unix.Msghdr)(unsafe.Pointer(unsafe.SliceData(place)))}
	p.fill()
	return p
}

func (p *Prepared) fill() {
	m := p.message
	p.vectors = make([]unix.Iovec, len(m.Buffers))
	for i, buffer := range m.Buffers {
		p.vectors[i].Base = unsafe.SliceData(buffer)
		p.vectors[i].SetLen(len(buffer))
	}
	*p.header = unix.Msghdr{
		Name:    unsafe.SliceData(m.Name),
		Namelen: uint32(len(m.Name)),
		Iov:     unsafe.SliceData(p.vectors),
		Control: unsafe.SliceData(m.Control),
		Flags:   int32(m.HeaderFlags),
	}
	p.header.SetIovlen(len(p.vectors))
	p.header.SetControllen(len(m.Control))
}

// Reset undoes what a call has written into the msghdr.
func (p *Prepared) Reset() {
	p.header.Namelen = uint32(len(p.message.Name))
	p.header.Flags = int32(p.message.HeaderFlags)
	p.header.SetControllen(len(p.message.Control))
}

// Header returns the msghdr as it is now. It must be readable.
func (p *Prepared) Header() unix.Msghdr { return *p.header }

// Send calls sendmsg and returns what the kernel answered; the error is a bare
// unix.Errno. The count is 0 with an error.
func (p *Prepared) Send(fd int) (int, error) { return p.call(unix.SYS_SENDMSG, fd) }

// Receive calls recvmsg likewise.
func (p *Prepared) Receive(fd int) (int, error) { return p.call(unix.SYS_RECVMSG, fd) }

// Call is a system call and its arguments, for a process that can do nothing but
// make it.
type Call struct {
	Number    uintptr
	Arguments [6]uintptr
	// Keep is what the arguments point at, if that is in Go's heap.
	Keep any
}

// Call returns the sendmsg that [Prepared.Send] makes.
func (p *Prepared) Call(fd int) Call {
	return Call{unix.SYS_SENDMSG, [6]uintptr{uintptr(fd), uintptr(unsafe.Pointer(p.header)), uintptr(p.message.Flags)}, p}
}

func (p *Prepared) call(number uintptr, fd int) (int, error) {
	r := p.message.recordBegin(number, fd, p.header)
	count, _, errno := unix.Syscall(number, uintptr(fd), uintptr(unsafe.Pointer(p.header)), uintptr(p.message.Flags))
	p.message.recordEnd(r, number, int(count), errno, p.header)
	// A header in mapped memory keeps nothing alive by itself.
	runtime.KeepAlive(p)
	if errno != 0 {
		return 0, errno
	}
	return int(count), nil
}

// Send sends m with one sendmsg call. See [Prepared.Send].
func Send(fd int, m *Message) (int, error) {
	p := m.Prepare()
	count, err := p.Send(fd)
	m.After = *p.header
	return count, err
}

// Receive receives into m with one recvmsg call. See [Prepared.Receive].
func Receive(fd int, m *Message) (int, error) {
	p := m.Prepare()
	count, err := p.Receive(fd)
	m.After = *p.header
	return count, err
}

// SendZerocopy sends the buffers on a connected socket with MSG_ZEROCOPY and the
// further flags.
func SendZerocopy(fd, flags int, buffers ...[]byte) (int, error) {
	return Send(fd, &Message{Buffers: buffers, Flags: unix.MSG_ZEROCOPY | flags})
}

// multiple is struct mmsghdr.
type multiple struct {
	header unix.Msghdr
	length uint32
}

// SendMany sends the messages with one sendmmsg call and returns the bytes sent
// per message; fewer than messages when the kernel stopped early. The flags of
// the messages are not used, those of the call are.
func SendMany(fd int, messages []*Message, flags int) ([]int, error) {
	return callMany(unix.SYS_SENDMMSG, fd, messages, flags)
}

// ReceiveMany receives with one recvmmsg call, likewise. It has no time limit of
// its own: pass MSG_DONTWAIT or MSG_WAITFORONE.
func ReceiveMany(fd int, messages []*Message, flags int) ([]int, error) {
	return callMany(unix.SYS_RECVMMSG, fd, messages, flags)
}

func callMany(number uintptr, fd int, messages []*Message, flags int) ([]int, error) {
	headers := make([]multiple, len(messages))
	prepared := make([]*Prepared, len(messages))
	for i, m := range messages {
		prepared[i] = m.Prepare()
		headers[i].header = *prepared[i].header
	}
	r := recordManyBegin(number, fd, messages, flags)
	count, _, errno := unix.Syscall6(number, uintptr(fd),
		uintptr(unsafe.Pointer(unsafe.SliceData(headers))), uintptr(len(headers)), uintptr(flags), 0, 0)
	recordManyEnd(r, number, headers, messages, int(count), errno)
	runtime.KeepAlive(prepared)
	for i, m := range messages {
		m.After = headers[i].header
	}
	if errno != 0 {
		return nil, errno
	}
	lengths := make([]int, count)
	for i := range lengths {
		lengths[i] = int(headers[i].length)
	}
	return lengths, nil
}

// Address returns a socket address for Message.Name.
func Address(to netip.AddrPort) []byte {
	address := to.Addr()
	if address.Is4() {
		raw := make([]byte, unix.SizeofSockaddrInet4)
		binary.NativeEndian.PutUint16(raw, unix.AF_INET)
		binary.BigEndian.PutUint16(raw[2:], to.Port())
		ip := address.As4()
		copy(raw[4:], ip[:])
		return raw
	}
	raw := make([]byte, unix.SizeofSockaddrInet6)
	binary.NativeEndian.PutUint16(raw, unix.AF_INET6)
	binary.BigEndian.PutUint16(raw[2:], to.Port())
	ip := address.As16()
	copy(raw[8:], ip[:])
	return raw
}
