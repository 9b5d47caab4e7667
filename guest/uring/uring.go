// SPDX-License-Identifier: BSD-3-Clause

// Package uring is a small client of io_uring: requests go in as the case wrote
// them, completions come out as the kernel wrote them, and nothing is retried or
// hidden in between.
//
// A [Ring] belongs to one thread: the kernel finishes a request in the context of
// the task that submitted it, when that task next enters the kernel. A case runs
// on a thread of its own, and calls the ring from no other.
package uring

import (
	"errors"
	"fmt"
	"runtime"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/zcvet/zcvet/guest/sys"
	"github.com/zcvet/zcvet/guest/trace"
)

// Operations (uapi/linux/io_uring.h).
const (
	OpNop         uint8 = 0
	OpSendmsg     uint8 = 9
	OpAsyncCancel uint8 = 14
	OpSendZC      uint8 = 47 // since 6.0
	OpSendmsgZC   uint8 = 48 // since 6.1
)

// Flags of a request, any operation.
const (
	// Drain begins the request when all before it have completed.
	Drain uint8 = 1 << 1
	// Link begins the next request when this one has succeeded.
	Link uint8 = 1 << 2
	// Async hands the request to a worker thread of the kernel at once.
	Async uint8 = 1 << 4
)

// Values of Request.IOPriority for operations that send.
const (
	// PollFirst waits for the socket to be writable before the first attempt.
	PollFirst uint16 = 1 << 0
	// FixedBuffer takes the data from the registered buffer BufferIndex.
	FixedBuffer uint16 = 1 << 2
	// ReportUsage makes the notification of a zero-copy send tell whether the
	// data was copied; since 6.2.
	ReportUsage uint16 = 1 << 3
)

// Flags of a completion.
const (
	// More announces a further completion of the same request.
	More uint32 = 1 << 1
	// Notification marks the completion that gives a zero-copy send's buffer back.
	Notification uint32 = 1 << 3
)

// NotificationCopied in the result of a notification says that the data was
// copied after all; only with ReportUsage.
const NotificationCopied uint32 = 1 << 31

// Request is struct io_uring_sqe. Which field means what depends on the
// operation; the names are those of sends.
type Request struct {
	Op          uint8
	Flags       uint8
	IOPriority  uint16
	FD          int32
	Address2    uint64 // destination address of OpSendZC
	Address     uint64 // data, or struct msghdr
	Length      uint32 // of the data, or 1
	OpFlags     uint32 // MSG_*
	UserData    uint64 // comes back in every completion of the request
	BufferIndex uint16
	Personality uint16
	AddressLen  uint16
	_           uint16
	Address3    uint64
	_           uint64
}

// Completion is struct io_uring_cqe.
type Completion struct {
	UserData uint64
	// Result is what the system call would have returned, a negative errno for
	// a failure.
	Result int32
	Flags  uint32
}

// Notification tells a notification from the completion of the send itself.
func (c Completion) Notification() bool { return c.Flags&Notification != 0 }

// More tells whether the request has a further completion to come.
func (c Completion) More() bool { return c.Flags&More != 0 }

// Err is the result as a unix.Errno, nil for a success.
func (c Completion) Err() error {
	if c.Result < 0 && !c.Notification() {
		return unix.Errno(-c.Result)
	}
	return nil
}

// String shows the completion as failure messages print it.
func (c Completion) String() string {
	what := fmt.Sprintf("result %d", c.Result)
	if err := c.Err(); err != nil {
		what = err.Error()
	}
	if c.Notification() {
		what = fmt.Sprintf("notification %#x", uint32(c.Result))
	}
	if c.More() {
		what += ", more to come"
	}
	return fmt.Sprintf("{request %d: %s}", c.UserData, what)
}

// The structures of the set-up, uapi/linux/io_uring.h.
type (
	submissionOffsets struct {
		head, tail, ringMask, ringEntries, flags, dropped, array, _ uint32
		_                                                           uint64
	}
	completionOffsets struct {
		head, tail, ringMask, ringEntries, overflow, cqes, flags, _ uint32
		_                                                           uint64
	}
	parameters struct {
		submissionEntries, completionEntries, flags, threadCPU, threadIdle, features, wqFD uint32
		_                                                                                  [3]uint32
		submission                                                                         submissionOffsets
		completion                                                                         completionOffsets
	}
)

const (
	offsetSubmission = 0
	offsetCompletion = 0x8000000
	offsetRequests   = 0x10000000

	enterGetEvents = 1 << 0
	enterExtended  = 1 << 3

	featureExtendedArgument = 1 << 8 // since 5.11

	registerBuffers   = 0
	unregisterBuffers = 1
	registerProbe     = 8
)

// ErrNoCompletion is returned by Wait when the time is over.
var ErrNoCompletion = errors.New("no completion came")

// Ring is an io_uring instance.
type Ring struct {
	fd int
	// Mappings of the submission ring, the completion ring and the requests.
	submission, completion, requests []byte
	parameters                       parameters
	tail                             uint32 // of the submission ring, ours
	// controls are the control buffers of the requests by their user data, for the
	// record of system calls.
	controls map[uint64]trace.Memory
	// limit is here because the kernel gets its address as a number, and a
	// stack may move.
	limit timespec
}

// timespec is struct __kernel_timespec, the same on 32 and 64 bit.
type timespec struct{ seconds, nanoseconds int64 }

// New makes a ring for so many requests at a time; the kernel rounds up to a
// power of two, and gives room for twice as many completions. An error wraps the
// unix.Errno of the system call: ENOSYS for a kernel without io_uring, EPERM where
// it is switched off.
func New(requests int) (*Ring, error) {
	r := &Ring{}
	recorder := sys.Recorder()
	call := recorder.Begin("io_uring_setup", []int64{int64(requests)}, nil, 0)
	fd, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, uintptr(requests), uintptr(unsafe.Pointer(&r.parameters)), 0)
	r.fd = int(fd)
	if errno != 0 {
		r.fd = -1
	}
	recorder.End(call, int64(r.fd), errno, nil, nil, 0)
	if errno != 0 {
		return nil, fmt.Errorf("io_uring_setup: %w", errno)
	}
	unix.CloseOnExec(r.fd)
	if r.parameters.features&featureExtendedArgument == 0 {
		_ = r.Close()
		return nil, fmt.Errorf("io_uring_enter cannot wait for a limited time before 5.11: %w", unix.EOPNOTSUPP)
	}
	p := &r.parameters
	for _, mapping := range []struct {
		place  *[]byte
		offset int64
		length uint32
	}{
		{&r.submission, offsetSubmission, p.submission.array + 4*p.submissionEntries},
		{&r.completion, offsetCompletion, p.completion.cqes + uint32(unsafe.Sizeof(Completion{}))*p.completionEntries},
		{&r.requests, offsetRequests, uint32(unsafe.Sizeof(Request{})) * p.submissionEntries},
	} {
		var err error
		*mapping.place, err = unix.Mmap(r.fd, mapping.offset, int(mapping.length), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
		if err != nil {
			_ = r.Close()
			return nil, fmt.Errorf("map io_uring: %w", err)
		}
	}
	return r, nil
}

// Close gives the ring up. The kernel cancels what is still under way, soon but
// not before Close returns: memory of such requests has to stay.
func (r *Ring) Close() error {
	for _, mapping := range []*[]byte{&r.submission, &r.completion, &r.requests} {
		if *mapping != nil {
			_ = unix.Munmap(*mapping)
			*mapping = nil
		}
	}
	if r.fd < 0 {
		return nil
	}
	fd := r.fd
	r.fd = -1
	return unix.Close(fd)
}

// word is a shared 32-bit number at an offset of a mapping.
func word(mapping []byte, offset uint32) *uint32 {
	return (*uint32)(unsafe.Pointer(&mapping[offset]))
}

// Submit hands requests to the kernel, in order, with one call. What they point
// at must stay where it is until the kernel is done with it, so it may be neither
// on a stack nor garbage: memory of the data and the control buffer until the
// request's last completion, all else until Submit returns.
func (r *Ring) Submit(requests ...Request) error {
	offsets := &r.parameters.submission
	free := r.parameters.submissionEntries - (r.tail - atomic.LoadUint32(word(r.submission, offsets.head)))
	if uint32(len(requests)) > free {
		return fmt.Errorf("io_uring: %d requests, room for %d", len(requests), free)
	}
	mask := *word(r.submission, offsets.ringMask)
	for i := range requests {
		r.recordRequest(&requests[i])
		slot := r.tail & mask
		*(*Request)(unsafe.Pointer(&r.requests[slot*uint32(unsafe.Sizeof(Request{}))])) = requests[i]
		*word(r.submission, offsets.array+4*slot) = slot
		r.tail++
	}
	// The kernel sees the requests before it sees the new tail.
	atomic.StoreUint32(word(r.submission, offsets.tail), r.tail)
	call := sys.Recorder().Begin("io_uring_enter", []int64{int64(r.fd), int64(len(requests))}, nil, 0)
	submitted, err := r.enter(len(requests), 0, 0, nil)
	r.recordSubmitted(call, submitted, err)
	if err != nil {
		return fmt.Errorf("io_uring_enter: %w", err)
	}
	if submitted != len(requests) {
		return fmt.Errorf("io_uring_enter took %d of %d requests", submitted, len(requests))
	}
	return nil
}

// Wait returns the next completion, waiting for it at most so long. With nothing
// to wait it still lets the kernel finish what it has begun. The error is
// ErrNoCompletion when none came.
func (r *Ring) Wait(patience time.Duration) (Completion, error) {
	number := r.recordWait(patience)
	completion, err := r.wait(patience)
	r.recordCompletion(number, completion, err)
	return completion, err
}

func (r *Ring) wait(patience time.Duration) (Completion, error) {
	deadline := time.Now().Add(patience)
	for {
		if completion, ok := r.next(); ok {
			return completion, nil
		}
		left := time.Until(deadline)
		wanted := 1
		if left <= 0 {
			wanted = 0
		}
		r.limit = timespec{int64(max(left, 0) / time.Second), int64(max(left, 0) % time.Second)}
		argument := extendedArgument{limit: uint64(uintptr(unsafe.Pointer(&r.limit)))}
		_, err := r.enter(0, wanted, enterGetEvents|enterExtended, &argument)
		runtime.KeepAlive(r)
		if err != nil && !errors.Is(err, unix.ETIME) && !errors.Is(err, unix.EINTR) {
			return Completion{}, fmt.Errorf("io_uring_enter: %w", err)
		}
		if wanted == 0 {
			if completion, ok := r.next(); ok {
				return completion, nil
			}
			return Completion{}, ErrNoCompletion
		}
	}
}

// next takes a completion off the ring.
func (r *Ring) next() (Completion, bool) {
	offsets := &r.parameters.completion
	head := word(r.completion, offsets.head)
	if *head == atomic.LoadUint32(word(r.completion, offsets.tail)) {
		return Completion{}, false
	}
	slot := *head & *word(r.completion, offsets.ringMask)
	completion := *(*Completion)(unsafe.Pointer(&r.completion[offsets.cqes+slot*uint32(unsafe.Sizeof(Completion{}))]))
	// Read before the kernel may write there again.
	atomic.StoreUint32(head, *head+1)
	return completion, true
}

// extendedArgument is struct io_uring_getevents_arg.
type extendedArgument struct {
	signals     uint64
	signalsSize uint32
	_           uint32
	limit       uint64 // address of a timespec
}

func (r *Ring) enter(submit, wanted, flags int, argument *extendedArgument) (int, error) {
	size := uintptr(0)
	if argument != nil {
		size = unsafe.Sizeof(*argument)
	}
	count, _, errno := unix.Syscall6(unix.SYS_IO_URING_ENTER, uintptr(r.fd), uintptr(submit), uintptr(wanted), uintptr(flags),
		uintptr(unsafe.Pointer(argument)), size)
	if errno != 0 {
		return 0, errno
	}
	return int(count), nil
}

func (r *Ring) register(what int, argument unsafe.Pointer, count int) error {
	_, _, errno := unix.Syscall6(unix.SYS_IO_URING_REGISTER, uintptr(r.fd), uintptr(what), uintptr(argument), uintptr(count), 0, 0)
	if errno != 0 {
		return fmt.Errorf("io_uring_register: %w", errno)
	}
	return nil
}

// RegisterBuffers pins memory for FixedBuffer requests, which name a buffer by
// its place here.
func (r *Ring) RegisterBuffers(buffers ...[]byte) error {
	vectors := make([]unix.Iovec, len(buffers))
	for i, buffer := range buffers {
		vectors[i].Base = unsafe.SliceData(buffer)
		vectors[i].SetLen(len(buffer))
	}
	sys.Beyond("registered buffers of an io_uring")
	return r.register(registerBuffers, unsafe.Pointer(unsafe.SliceData(vectors)), len(vectors))
}

// UnregisterBuffers gives up what RegisterBuffers pinned, once no request uses it.
func (r *Ring) UnregisterBuffers() error { return r.register(unregisterBuffers, nil, 0) }

// Supports tells whether the kernel knows an operation.
func (r *Ring) Supports(op uint8) (bool, error) {
	const supported = 1 // IO_URING_OP_SUPPORTED
	var probe struct {
		lastOp, opsLen uint8
		_              uint16
		_              [3]uint32
		ops            [256]struct {
			op, _ uint8
			flags uint16
			_     uint32
		}
	}
	if err := r.register(registerProbe, unsafe.Pointer(&probe), len(probe.ops)); err != nil {
		return false, err
	}
	return op < probe.opsLen && probe.ops[op].flags&supported != 0, nil
}

// Address is where a slice's memory begins, for the fields of a Request. Whoever
// uses it keeps the memory from being collected.
func Address(memory []byte) uint64 { return uint64(uintptr(unsafe.Pointer(unsafe.SliceData(memory)))) }
