// SPDX-License-Identifier: BSD-3-Clause

package trace_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/zcvet/zcvet/guest/trace"
)

func parse(t *testing.T, region []byte) *trace.Record {
	t.Helper()
	record, err := trace.Parse(region)
	if err != nil {
		t.Fatal(err)
	}
	return record
}

func TestRecord(t *testing.T) {
	region := make([]byte, trace.Size)
	r := trace.NewRecorder(region)
	r.Start("an/earlier/case")
	r.End(r.Begin("socket", []int64{unix.AF_INET}, nil, 0), 9, 0, nil, nil, 0)
	r.Start("counter/ids/tcp/ipv4/lo")
	long := bytes.Repeat([]byte{7}, 1000)
	first := r.Begin("sendto", []int64{5, unix.MSG_ZEROCOPY}, []trace.Memory{trace.Of(nil), trace.Of(long)}, 1)
	second := r.Begin("close", []int64{6}, nil, 0)
	r.End(second, -1, unix.EBADF, nil, nil, 0)
	r.End(first, 1000, 0, []int64{-3}, nil, 0)
	r.Mark(trace.Failure, nil, "9 of 10 came")
	r.Begin("poll", []int64{-1, 5, 0}, nil, 0)

	record := parse(t, region)
	if record.Case != "counter/ids/tcp/ipv4/lo" || record.Missing != 0 || len(record.Calls) != 4 {
		t.Fatalf("%s, %d missing, %d calls", record.Case, record.Missing, len(record.Calls))
	}
	send := record.Calls[0]
	if send.Name != "sendto" || send.Result != 1000 || !send.Returned || send.Outcome[0] != -3 ||
		send.In[1].Length != 1000 || len(send.In[1].Bytes) != trace.KeptData {
		t.Errorf("%+v", send)
	}
	got := strings.Join(record.Text(trace.Style{}), "\n")
	for _, want := range []string{
		"sendto(5, 1000, MSG_ZEROCOPY) = 1000", "close(6) = -1 EBADF", "-- expectation failed: 9 of 10 came",
		"poll([{5, 0}], -1 ms) = ? (never returned)",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
}

// Two processes write one record in turn, even if the first has filled its beginning.
func TestContinue(t *testing.T) {
	for _, calls := range []int{1, 5000} {
		region := make([]byte, trace.Size)
		first := trace.NewRecorder(region)
		first.Start("in/32/bit")
		for range calls {
			first.Mark(trace.Task, nil)
		}
		second := trace.NewRecorder(region)
		second.Continue()
		second.End(second.Begin("close", []int64{6}, nil, 0), 0, 0, nil, nil, 0)
		first.Continue()
		first.Mark(trace.Failure, nil, "behind it")
		record := parse(t, region)
		if len(record.Calls)+record.Missing != calls+2 {
			t.Errorf("%d calls and %d missing, of %d", len(record.Calls), record.Missing, calls+2)
		}
		last := record.Calls[len(record.Calls)-2:]
		if last[0].Name != "close" || last[1].Name != trace.Failure || last[1].Began < last[0].Ended {
			t.Errorf("%d calls: at the end %+v", calls, last)
		}
	}
	var none *trace.Recorder
	none.Continue()
}

// What goes through an io_uring stands in the record as if it were calls.
func TestRing(t *testing.T) {
	arguments := make([]int64, trace.RequestArguments)
	arguments[trace.RequestRing], arguments[trace.RequestFD], arguments[trace.RequestOperation] = 7, 5, 9
	arguments[trace.RequestUserData], arguments[trace.RequestFlags], arguments[trace.RequestMessageFlags] = 3, 4, unix.MSG_ZEROCOPY
	outcome := make([]int64, trace.CompletionValues)
	outcome[trace.CompletionUserData], outcome[trace.CompletionResult], outcome[trace.CompletionFlags] = 3, -int64(unix.ECANCELED), 2
	for want, call := range map[string]trace.Call{
		"io_uring request(7, number 3, IORING_OP_SENDMSG, 5, {iov=[9]}, MSG_ZEROCOPY, IOSQE_IO_LINK) = 0": {
			Name: trace.Request, Returned: true, Arguments: arguments, In: []trace.Memory{{}, {}, {Length: 9, Bytes: make([]byte, 9)}},
		},
		"io_uring wait(7, 60 ms) = -ECANCELED (number 3, IORING_CQE_F_MORE)": {
			Name: trace.Wait, Returned: true, Arguments: []int64{7, 60}, Outcome: outcome,
		},
		"io_uring wait(7, 0 ms) = nothing": {Name: trace.Wait, Returned: true, Arguments: []int64{7, 0}, Result: -1, Errno: unix.ETIME},
	} {
		if got := (trace.Style{}).Text(&call); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
}

// The structures of a 32-bit task have another layout.
func TestNarrow(t *testing.T) {
	control := make([]byte, 12+20)
	binary.NativeEndian.PutUint32(control, 12+16)
	binary.NativeEndian.PutUint32(control[4:], unix.SOL_IP)
	binary.NativeEndian.PutUint32(control[8:], unix.IP_RECVERR)
	control[12+4], control[12+12] = 5, 9
	header := make([]byte, 28)
	binary.NativeEndian.PutUint32(header[20:], 28)
	binary.NativeEndian.PutUint32(header[24:], unix.MSG_ERRQUEUE)
	call := trace.Call{
		Name: "recvmsg", Narrow: true, Returned: true, Arguments: []int64{3, unix.MSG_ERRQUEUE},
		Out: []trace.Memory{{Length: 28, Bytes: header}, {Length: 28, Bytes: control[:28]}},
	}
	if got := (trace.Style{}).Text(&call); !strings.Contains(got, "zerocopy 0-9") || !strings.Contains(got, "(control=[") || !strings.HasSuffix(got, "MSG_ERRQUEUE)") {
		t.Error(got)
	}
	if length, ok := call.ControlLengthAfter(); !ok || length != 28 {
		t.Errorf("msg_controllen %d, %v", length, ok)
	}
	for data, want := range map[int]int{0: 12, 1: 16, 16: 28} {
		if got := call.ControlSpace(data); got != want {
			t.Errorf("%d bytes of data take %d", data, got)
		}
	}
}

// A case may hand the kernel memory that it has no access to itself.
func TestUnreadableMemory(t *testing.T) {
	page, err := unix.Mmap(-1, 0, unix.Getpagesize(), unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(page)
	region := make([]byte, trace.Size)
	r := trace.NewRecorder(region)
	r.Start("a")
	r.Begin("sendmsg", []int64{3, 0, 0, 0}, []trace.Memory{trace.Of(nil), trace.Of(nil), trace.Of(page[:100])}, 2)
	record := parse(t, region)
	if piece := record.Calls[0].In[2]; piece.Bytes != nil || piece.Length != 100 {
		t.Errorf("%+v", piece)
	}
	if got := record.Text(trace.Style{})[0]; !strings.Contains(got, "iov=[100 unreadable]") {
		t.Error(got)
	}
}

// However many calls a case makes, the first and the last ones are kept.
func TestBounded(t *testing.T) {
	region := make([]byte, trace.Size)
	r := trace.NewRecorder(region)
	for _, calls := range []int{100, 3000, 20_000, 50_000} {
		r.Start("many")
		for i := range calls {
			r.End(r.Begin("listen", []int64{int64(i), 0}, nil, 0), 0, 0, nil, nil, 0)
		}
		record := parse(t, region)
		if len(record.Calls)+record.Missing != calls {
			t.Errorf("%d calls: %d kept, %d missing", calls, len(record.Calls), record.Missing)
		}
		if calls > 100 && len(record.Calls) < 1000 {
			t.Errorf("%d calls: only %d kept", calls, len(record.Calls))
		}
		first, last := record.Calls[0], record.Calls[len(record.Calls)-1]
		if first.Arguments[0] != 0 || last.Arguments[0] != int64(calls-1) || !last.Returned {
			t.Errorf("%d calls: from %+v to %+v", calls, first, last)
		}
		packed, err := trace.Pack(region)
		if err != nil {
			t.Fatal(err)
		}
		unpacked, err := trace.Unpack(packed)
		if err != nil {
			t.Fatal(err)
		}
		if again := parse(t, unpacked); fmt.Sprint(again.Calls) != fmt.Sprint(record.Calls) {
			t.Errorf("%d calls: packing changed the record", calls)
		}
	}
}

func TestNoRecord(t *testing.T) {
	if _, err := trace.Parse(make([]byte, trace.Size)); err == nil {
		t.Error("zeros are no record")
	}
	if _, err := trace.Unpack([]byte("?")); err == nil {
		t.Error("what was never packed cannot be unpacked")
	}
	var none *trace.Recorder
	none.Start("a")
	none.Mark(trace.Failure, nil, "nobody hears it")
	none.End(none.Begin("close", nil, nil, 0), 0, 0, nil, nil, 0)
}

func FuzzParse(f *testing.F) {
	region := make([]byte, trace.Size)
	r := trace.NewRecorder(region)
	r.Start("case")
	r.End(r.Begin("sendmsg", []int64{5, 0, 0, 0}, []trace.Memory{trace.Of(nil), trace.Of(make([]byte, 40)), trace.Of([]byte("x"))}, 2), 1, 0, nil,
		[]trace.Memory{trace.Of(make([]byte, 56)), trace.Of(make([]byte, 40))}, 2)
	f.Add(uint16(0), region[:2000])
	arguments := make([]int64, trace.RequestArguments)
	r.End(r.Begin(trace.Request, arguments, []trace.Memory{{}, {}, {}}, 2), 0, 0, nil, nil, 0)
	r.End(r.Begin(trace.Wait, []int64{7, 0}, nil, 0), 0, 0, []int64{1, 2, 3}, []trace.Memory{{}}, 0)
	f.Add(uint16(512+8+2), []byte{3}) // the call of a 32-bit task
	f.Fuzz(func(t *testing.T, at uint16, data []byte) {
		corrupt := bytes.Clone(region)
		copy(corrupt[int(at)%len(corrupt):], data)
		record, _ := trace.Parse(corrupt)
		if record == nil {
			return
		}
		record.Text(trace.Style{Constant: 81, ABI: "v8"})
	})
}
