// SPDX-License-Identifier: BSD-3-Clause

// Package fakeguest is the other side of a vhost-user back end, for tests: a
// front end as QEMU is one, and a virtio-net driver with memory and rings of its
// own. It can be honest, by Connect, Transmit and Receive, or anything else, by
// the methods below them.
package fakeguest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"time"

	"golang.org/x/sys/unix"

	"github.com/zcvet/zcvet/harness/vnet/frame"
	"github.com/zcvet/zcvet/harness/vnet/vhost"
)

// The guest's memory: one region, whose address differs between guest and front
// end as it does in real life.
const (
	MemorySize = 32 << 20
	GuestBase  = 0x4000_0000
	UserBase   = 0x7f12_3400_0000

	ringArea   = 64 << 10 // per ring
	bufferArea = 2*ringArea + 2<<20
)

// Patience bounds every wait. It is only reached when a test fails.
const Patience = 10 * time.Second

// The rings of a network device.
const (
	ReceiveRing  = 0
	TransmitRing = 1
)

// Descriptor flags.
const (
	Next     = 1
	Write    = 2
	Indirect = 4
)

// Options says what guest to be. The zero value is a Linux guest of today.
type Options struct {
	Features    uint64 // to accept of those offered, all if 0
	RingSize    int    // 256 if 0
	BufferSize  int    // of a receive buffer, 2048 if 0
	Buffers     int    // receive buffers to offer at once, all if 0, none if < 0
	Base        [2]int // where the rings start, for a restored guest
	KeepRunning bool   // rings are not zeroed: Memory is that of a snapshot
	Memory      int    // a memfd of MemorySize bytes to use, a new one if 0
	Indirect    bool   // transmit by indirect descriptors
}

// Guest is a connected front end with its driver. It is used by one goroutine.
type Guest struct {
	Conn     *net.UnixConn
	Bytes    []byte // the memory
	File     int    // the memfd behind it
	Features uint64 // accepted
	Rings    [2]*Ring

	options Options
	next    int // where the next transmit buffer goes, from bufferArea
}

// Ring is the driver's side of a virtqueue.
type Ring struct {
	guest *Guest
	index int
	start int // offset of the ring in memory
	size  int
	Kick  int // eventfd
	Call  int // eventfd

	offered uint16 // available index
	seen    uint16 // used index up to which buffers were taken back
	free    []uint16
	chains  map[uint16][]uint16
}

// New makes a guest that has memory and rings and is not connected.
func New(options Options) (*Guest, error) {
	if options.RingSize == 0 {
		options.RingSize = 256
	}
	if options.BufferSize == 0 {
		options.BufferSize = 2048
	}
	if options.Buffers == 0 {
		options.Buffers = options.RingSize
	}
	g := &Guest{options: options, File: options.Memory}
	if g.File == 0 {
		var err error
		if g.File, err = unix.MemfdCreate("fakeguest", unix.MFD_CLOEXEC); err != nil {
			return nil, err
		}
		if err := unix.Ftruncate(g.File, MemorySize); err != nil {
			return nil, err
		}
	}
	var err error
	if g.Bytes, err = unix.Mmap(g.File, 0, MemorySize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		return nil, err
	}
	for i := range g.Rings {
		r := &Ring{guest: g, index: i, start: i * ringArea, size: options.RingSize, chains: map[uint16][]uint16{}}
		if r.Kick, err = unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC); err != nil {
			return nil, err
		}
		if r.Call, err = unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC); err != nil {
			return nil, err
		}
		r.offered, r.seen = uint16(options.Base[i]), uint16(options.Base[i])
		for d := r.size - 1; d >= 0; d-- {
			r.free = append(r.free, uint16(d))
		}
		if !options.KeepRunning {
			binary.LittleEndian.PutUint16(g.Bytes[r.available()+2:], r.offered)
			binary.LittleEndian.PutUint16(g.Bytes[r.used()+2:], r.seen)
		}
		g.Rings[i] = r
	}
	return g, nil
}

// Dial makes a guest and connects it to a back end without saying anything.
func Dial(socket string, options Options) (*Guest, error) {
	g, err := New(options)
	if err != nil {
		return nil, err
	}
	g.Conn, err = net.DialUnix("unix", nil, &net.UnixAddr{Name: "@" + socket, Net: "unix"})
	if err != nil {
		g.Close()
		return nil, err
	}
	return g, nil
}

// Connect makes a guest, connects it and starts its rings, as QEMU does when the
// driver is ready.
func Connect(socket string, options Options) (*Guest, error) {
	g, err := Dial(socket, options)
	if err != nil {
		return nil, err
	}
	if err := g.Start(); err != nil {
		g.Close()
		return nil, err
	}
	return g, nil
}

// Close hangs up and frees everything.
func (g *Guest) Close() {
	if g.Conn != nil {
		_ = g.Conn.Close()
	}
	for _, r := range g.Rings {
		if r != nil {
			_ = unix.Close(r.Kick)
			_ = unix.Close(r.Call)
		}
	}
	_ = unix.Munmap(g.Bytes)
	_ = unix.Close(g.File)
}

// Start negotiates and starts the rings.
func (g *Guest) Start() error {
	if err := g.Negotiate(); err != nil {
		return err
	}
	for i := range g.Rings {
		if err := g.StartRing(i); err != nil {
			return err
		}
	}
	return g.Refill(g.options.Buffers)
}

// Negotiate goes through the messages before the rings.
func (g *Guest) Negotiate() error {
	offered, err := g.AskNumber(vhost.GetFeatures)
	if err != nil {
		return err
	}
	protocol, err := g.AskNumber(vhost.GetProtocolFeatures)
	if err != nil {
		return err
	}
	g.Features = offered &^ vhost.FeatureLogAll
	if g.options.Features != 0 {
		g.Features = offered & (g.options.Features | vhost.FeatureProtocolFeatures | vhost.FeatureVersion1)
	}
	return errors.Join(
		g.Send(vhost.SetProtocolFeatures, Numbers(protocol)),
		g.Send(vhost.SetOwner, nil),
		g.Send(vhost.SetFeatures, Numbers(g.Features)),
		g.SendMemTable(),
	)
}

// SendMemTable passes the memory and waits for the acknowledgement.
func (g *Guest) SendMemTable() error {
	table := append([]byte{1, 0, 0, 0, 0, 0, 0, 0}, Numbers(GuestBase, MemorySize, UserBase, 0)...)
	if err := g.SendFlags(vhost.SetMemTable, 0x9, table, g.File); err != nil {
		return err
	}
	ack, err := g.readReply(vhost.SetMemTable)
	if err == nil && (len(ack) != 8 || binary.LittleEndian.Uint64(ack) != 0) {
		err = fmt.Errorf("SET_MEM_TABLE was answered by %x", ack)
	}
	return err
}

// StartRing sets a ring up, in the order QEMU does.
func (g *Guest) StartRing(i int) error {
	r := g.Rings[i]
	index := uint64(i)
	return errors.Join(
		g.Send(vhost.SetVringEnable, State(i, 1)),
		g.Send(vhost.SetVringNum, State(i, r.size)),
		g.Send(vhost.SetVringBase, State(i, g.options.Base[i])),
		g.Send(vhost.SetVringAddr, r.Addresses()),
		g.Send(vhost.SetVringKick, Numbers(index), r.Kick),
		g.Send(vhost.SetVringCall, Numbers(index), r.Call),
	)
}

// StopRing asks for a ring's base, which stops it, and returns the base.
func (g *Guest) StopRing(i int) (int, error) {
	payload, err := g.Ask(vhost.GetVringBase, State(i, 0))
	if err != nil {
		return 0, err
	}
	return int(binary.LittleEndian.Uint32(payload[4:])), nil
}

// Numbers encodes 64-bit numbers.
func Numbers(numbers ...uint64) []byte {
	var b []byte
	for _, n := range numbers {
		b = binary.LittleEndian.AppendUint64(b, n)
	}
	return b
}

// State encodes a number for a ring.
func State(index, number int) []byte {
	return Numbers(uint64(uint32(index)) | uint64(uint32(number))<<32)
}

// Send sends a request without waiting for an answer.
func (g *Guest) Send(request vhost.Request, payload []byte, files ...int) error {
	return g.SendFlags(request, 0x1, payload, files...)
}

// SendFlags is Send with the flags word of the header.
func (g *Guest) SendFlags(request vhost.Request, flags uint32, payload []byte, files ...int) error {
	header := binary.LittleEndian.AppendUint32(nil, uint32(request))
	header = binary.LittleEndian.AppendUint32(header, flags)
	header = binary.LittleEndian.AppendUint32(header, uint32(len(payload)))
	return g.SendRaw(append(header, payload...), files...)
}

// SendRaw sends any bytes.
func (g *Guest) SendRaw(b []byte, files ...int) error {
	var oob []byte
	if len(files) > 0 {
		oob = unix.UnixRights(files...)
	}
	_, _, err := g.Conn.WriteMsgUnix(b, oob, nil)
	return err
}

// Ask sends a request and returns the payload of the reply.
func (g *Guest) Ask(request vhost.Request, payload []byte, files ...int) ([]byte, error) {
	if err := g.Send(request, payload, files...); err != nil {
		return nil, err
	}
	return g.readReply(request)
}

// AskNumber is Ask for a request that is answered by a number.
func (g *Guest) AskNumber(request vhost.Request) (uint64, error) {
	payload, err := g.Ask(request, nil)
	if err != nil {
		return 0, err
	}
	if len(payload) != 8 {
		return 0, fmt.Errorf("%s was answered by %x", request, payload)
	}
	return binary.LittleEndian.Uint64(payload), nil
}

func (g *Guest) readReply(request vhost.Request) ([]byte, error) {
	if err := g.Conn.SetReadDeadline(time.Now().Add(Patience)); err != nil {
		return nil, err
	}
	header := make([]byte, 12)
	if err := readFull(g.Conn, header); err != nil {
		return nil, fmt.Errorf("reply to %s: %w", request, err)
	}
	if got := vhost.Request(binary.LittleEndian.Uint32(header)); got != request || header[4] != 0x5 {
		return nil, fmt.Errorf("reply to %s is %x", request, header)
	}
	payload := make([]byte, binary.LittleEndian.Uint32(header[8:]))
	return payload, readFull(g.Conn, payload)
}

func readFull(conn *net.UnixConn, b []byte) error {
	for got := 0; got < len(b); {
		n, err := conn.Read(b[got:])
		if err != nil {
			return err
		}
		got += n
	}
	return nil
}

// Barrier waits until the back end has handled every message so far.
func (g *Guest) Barrier() error {
	_, err := g.AskNumber(vhost.GetFeatures)
	return err
}

// The ring's parts, as offsets in memory.

func (r *Ring) available() int { return r.start + 16*r.size }

func (r *Ring) used() int { return r.start + ringArea/2 + ringArea/4 }

// Addresses encodes where the ring is, as the front end sees it.
func (r *Ring) Addresses() []byte {
	return append(State(r.index, 0), Numbers(
		UserBase+uint64(r.start), UserBase+uint64(r.used()), UserBase+uint64(r.available()), GuestBase+uint64(r.used()))...)
}

// Describe writes a descriptor of the ring.
func (r *Ring) Describe(d uint16, address uint64, length uint32, flags, next uint16) {
	writeDescriptor(r.guest.Bytes[r.start+16*int(d):], address, length, flags, next)
}

func writeDescriptor(b []byte, address uint64, length uint32, flags, next uint16) {
	binary.LittleEndian.PutUint64(b[0:], address)
	binary.LittleEndian.PutUint32(b[8:], length)
	binary.LittleEndian.PutUint16(b[12:], flags)
	binary.LittleEndian.PutUint16(b[14:], next)
}

// Offer makes a chain available, without a notification.
func (r *Ring) Offer(head uint16) {
	slot := r.available() + 4 + 2*(int(r.offered)%r.size)
	binary.LittleEndian.PutUint16(r.guest.Bytes[slot:], head)
	r.offered++
	r.SetIndex(r.offered)
}

// SetIndex writes the available index.
func (r *Ring) SetIndex(index uint16) {
	r.offered = index
	store16(r.guest.Bytes[r.available():], index)
}

// Notify kicks the back end, whether or not it wants to be.
func (r *Ring) Notify() {
	one := [8]byte{1}
	_, _ = unix.Write(r.Kick, one[:])
}

// Used takes the next used element. The second value is false if there is none.
func (r *Ring) Used() (head uint16, written uint32, ok bool) {
	b := r.guest.Bytes[r.used():]
	if load16(b) == r.seen {
		return 0, 0, false
	}
	element := b[4+8*(int(r.seen)%r.size):]
	r.seen++
	return uint16(binary.LittleEndian.Uint32(element)), binary.LittleEndian.Uint32(element[4:]), true
}

// WaitUsed is Used that waits for an interrupt.
func (r *Ring) WaitUsed() (head uint16, written uint32, err error) {
	deadline := time.Now().Add(Patience)
	for {
		if head, written, ok := r.Used(); ok {
			return head, written, nil
		}
		left := time.Until(deadline)
		if left <= 0 {
			return 0, 0, fmt.Errorf("ring %d: nothing used in %s", r.index, Patience)
		}
		poll := []unix.PollFd{{Fd: int32(r.Call), Events: unix.POLLIN}}
		if n, err := unix.Poll(poll, int(left.Milliseconds())+1); err != nil && !errors.Is(err, unix.EINTR) {
			return 0, 0, err
		} else if n > 0 {
			var counter [8]byte
			_, _ = unix.Read(r.Call, counter[:])
		}
	}
}

// Refill offers count receive buffers.
func (g *Guest) Refill(count int) error {
	r := g.Rings[ReceiveRing]
	for range max(count, 0) {
		d, err := r.allocate()
		if err != nil {
			return err
		}
		r.Describe(d, GuestBase+g.receiveBuffer(d), uint32(g.options.BufferSize), Write, 0)
		r.Offer(d)
	}
	r.Notify()
	return nil
}

func (g *Guest) receiveBuffer(d uint16) uint64 {
	return uint64(2*ringArea + int(d)*g.options.BufferSize)
}

func (r *Ring) allocate() (uint16, error) {
	if len(r.free) == 0 {
		return 0, fmt.Errorf("ring %d is full", r.index)
	}
	d := r.free[len(r.free)-1]
	r.free = r.free[:len(r.free)-1]
	return d, nil
}

// Transmit offers a frame of these segments, preceded by the header in a segment
// of its own, and kicks. It returns the head of the chain and the guest-physical
// addresses of the segments.
func (g *Guest) Transmit(h frame.Header, segments ...[]byte) (head uint16, addresses []uint64, err error) {
	header := make([]byte, frame.HeaderSize)
	h.Encode(header, 0)
	head, addresses, err = g.Enqueue(append([][]byte{header}, segments...)...)
	g.Rings[TransmitRing].Notify()
	return head, addresses, err
}

// Enqueue offers a chain of readable segments without a kick.
func (g *Guest) Enqueue(segments ...[]byte) (head uint16, addresses []uint64, err error) {
	r := g.Rings[TransmitRing]
	for _, s := range segments {
		addresses = append(addresses, g.Place(s))
	}
	if g.options.Indirect {
		table := make([]byte, 16*len(segments))
		for i, s := range segments {
			flags := uint16(Next)
			if i == len(segments)-1 {
				flags = 0
			}
			writeDescriptor(table[16*i:], addresses[i], uint32(len(s)), flags, uint16(i+1))
		}
		if head, err = r.allocate(); err != nil {
			return 0, nil, err
		}
		r.chains[head] = []uint16{head}
		r.Describe(head, g.Place(table), uint32(len(table)), Indirect, 0)
		r.Offer(head)
		return head, addresses, nil
	}
	var chain []uint16
	for range segments {
		d, err := r.allocate()
		if err != nil {
			return 0, nil, err
		}
		chain = append(chain, d)
	}
	for i, d := range chain {
		flags, next := uint16(Next), uint16(0)
		if i == len(chain)-1 {
			flags = 0
		} else {
			next = chain[i+1]
		}
		r.Describe(d, addresses[i], uint32(len(segments[i])), flags, next)
	}
	r.chains[chain[0]] = chain
	r.Offer(chain[0])
	return chain[0], addresses, nil
}

// Place copies bytes into the guest's memory, at an odd place, and returns the
// guest-physical address. The space is used again after 16 MiB.
func (g *Guest) Place(b []byte) uint64 {
	if bufferArea+g.next+len(b)+32 > MemorySize || g.next > 16<<20 {
		g.next = 0
	}
	at := bufferArea + g.next
	copy(g.Bytes[at:], b)
	g.next += len(b) + 17
	g.next &^= 15
	return GuestBase + uint64(at)
}

// At returns the memory at a guest-physical address.
func (g *Guest) At(address uint64, length int) []byte {
	return g.Bytes[address-GuestBase:][:length]
}

// Completed waits until the device gives a transmitted chain back, and returns
// its head.
func (g *Guest) Completed() (uint16, error) {
	r := g.Rings[TransmitRing]
	head, _, err := r.WaitUsed()
	if err == nil {
		r.release(head)
	}
	return head, err
}

func (r *Ring) release(head uint16) {
	r.free = append(r.free, r.chains[head]...)
	delete(r.chains, head)
}

// TryCompleted is Completed that does not wait.
func (g *Guest) TryCompleted() (uint16, bool) {
	r := g.Rings[TransmitRing]
	head, _, ok := r.Used()
	if ok {
		r.release(head)
	}
	return head, ok
}

// Frame is a received frame.
type Frame struct {
	Header  frame.Header
	Buffers int // num_buffers
	Data    []byte
}

// Receive waits for a frame and gives its buffers back to the device.
func (g *Guest) Receive() (Frame, error) {
	head, written, err := g.Rings[ReceiveRing].WaitUsed()
	if err != nil {
		return Frame{}, err
	}
	return g.collect(head, written)
}

// TryReceive is Receive that does not wait.
func (g *Guest) TryReceive() (f Frame, ok bool, err error) {
	head, written, ok := g.Rings[ReceiveRing].Used()
	if !ok {
		return f, false, nil
	}
	f, err = g.collect(head, written)
	return f, true, err
}

func (g *Guest) collect(head uint16, written uint32) (Frame, error) {
	r := g.Rings[ReceiveRing]
	if written < frame.HeaderSize || int(written) > g.options.BufferSize {
		return Frame{}, fmt.Errorf("%d bytes written to a buffer of %d", written, g.options.BufferSize)
	}
	first := g.Bytes[g.receiveBuffer(head):][:written]
	f := Frame{
		Header:  frame.DecodeHeader(first),
		Buffers: int(binary.LittleEndian.Uint16(first[10:])),
		Data:    append([]byte(nil), first[frame.HeaderSize:]...),
	}
	r.free = append(r.free, head)
	for i := 1; i < f.Buffers; i++ {
		head, written, ok := r.Used()
		if !ok {
			return f, fmt.Errorf("only %d of %d buffers of a frame are there", i, f.Buffers)
		}
		f.Data = append(f.Data, g.Bytes[g.receiveBuffer(head):][:written]...)
		r.free = append(r.free, head)
	}
	return f, g.Refill(f.Buffers)
}
