// SPDX-License-Identifier: BSD-3-Clause

package uring

import (
	"errors"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/zcvet/zcvet/guest/sys"
	"github.com/zcvet/zcvet/guest/trace"
)

// How a ring is recorded. What goes through the shared memory is no system call,
// but stands in the record as if it were one.
//
// io_uring_setup has the number of requests as its argument and the descriptor as
// its result. Each request is one call, named by package trace, before the
// io_uring_enter that submits it; that has the descriptor and the number of
// requests. The arguments of a request are those that trace.Request names; its
// memory is the name, the control buffer and the buffers of the message, the first
// two empty for other operations. A wait has the descriptor and the milliseconds;
// its outcome is what trace.Completion names, its memory afterwards the control
// buffer of the request, and its error ETIME if nothing came.

// recordRequest notes a request that is about to be submitted.
func (r *Ring) recordRequest(request *Request) {
	recorder := sys.Recorder()
	if recorder == nil {
		return
	}
	in := []trace.Memory{{Bytes: []byte{}}, {Bytes: []byte{}}}
	headerFlags := int64(0)
	switch request.Op {
	case OpSendmsg, OpSendmsgZC:
		header := (*unix.Msghdr)(pointer(&request.Address))
		in[0] = trace.Of(unsafe.Slice(header.Name, header.Namelen))
		in[1] = trace.Of(unsafe.Slice(header.Control, header.Controllen))
		for _, vector := range unsafe.Slice(header.Iov, header.Iovlen) {
			in = append(in, trace.Of(unsafe.Slice(vector.Base, vector.Len)))
		}
		headerFlags = int64(header.Flags)
	case OpSendZC:
		in = append(in, trace.Of(unsafe.Slice((*byte)(pointer(&request.Address)), request.Length)))
	}
	if r.controls == nil {
		r.controls = make(map[uint64]trace.Memory)
	}
	r.controls[request.UserData] = in[1]
	arguments := make([]int64, trace.RequestArguments)
	arguments[trace.RequestRing] = int64(r.fd)
	arguments[trace.RequestFD] = int64(request.FD)
	arguments[trace.RequestOperation] = int64(request.Op)
	arguments[trace.RequestUserData] = int64(request.UserData)
	arguments[trace.RequestFlags] = int64(request.Flags)
	arguments[trace.RequestPriority] = int64(request.IOPriority)
	arguments[trace.RequestMessageFlags] = int64(request.OpFlags)
	arguments[trace.RequestHeaderFlags] = headerFlags
	arguments[trace.RequestAddress] = int64(request.Address)
	recorder.End(recorder.Begin(trace.Request, arguments, in, 2), 0, 0, nil, nil, 0)
}

// pointer reads an address of the kernel's interface, of whose 64 bits a 32-bit
// task has the low ones; these come first here.
func pointer(address *uint64) unsafe.Pointer { return *(*unsafe.Pointer)(unsafe.Pointer(address)) }

func (r *Ring) recordSubmitted(call uint64, count int, err error) {
	errno, _ := errors.AsType[unix.Errno](err)
	if errno != 0 {
		count = -1
	}
	sys.Recorder().End(call, int64(count), errno, nil, nil, 0)
}

func (r *Ring) recordWait(patience time.Duration) (number uint64) {
	return sys.Recorder().Begin(trace.Wait, []int64{int64(r.fd), patience.Milliseconds()}, nil, 0)
}

func (r *Ring) recordCompletion(number uint64, completion Completion, err error) {
	errno, failed := errors.AsType[unix.Errno](err)
	switch {
	case errors.Is(err, ErrNoCompletion):
		sys.Recorder().End(number, -1, unix.ETIME, nil, nil, 0)
	case failed:
		sys.Recorder().End(number, -1, errno, nil, nil, 0)
	default:
		outcome := make([]int64, trace.CompletionValues)
		outcome[trace.CompletionUserData] = int64(completion.UserData)
		outcome[trace.CompletionResult] = int64(completion.Result)
		outcome[trace.CompletionFlags] = int64(completion.Flags)
		sys.Recorder().End(number, 0, 0, outcome, []trace.Memory{r.controls[completion.UserData]}, 1)
	}
}
