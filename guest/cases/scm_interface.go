// SPDX-License-Identifier: BSD-3-Clause

package cases

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/zcvet/zcvet/guest/link"
	"github.com/zcvet/zcvet/guest/network"
	"github.com/zcvet/zcvet/guest/notify"
	"github.com/zcvet/zcvet/guest/sys"
)

// rawAnswer makes a request of a profile on a socket and returns the data of the
// control message afterwards, byte for byte.
func rawAnswer(fd int, profile notify.Profile, capacity int) ([]byte, error) {
	control := profile.Encode(capacity)
	if _, err := notify.Send(fd, &notify.Message{Buffers: [][]byte{{'x'}}, Control: control}); err != nil {
		return nil, fmt.Errorf("send with a request: %w", err)
	}
	messages, err := notify.ParseControl(control)
	if err != nil {
		return nil, err
	}
	return messages[0].Data, nil
}

// layoutQuestion is what childAnswers reads from its second file.
type layoutQuestion struct {
	Parameters link.Parameters
	Capacity   int
}

// childAnswers makes a request on its first file and writes the bytes of the
// answer to its second.
var childAnswers = child("scm-raw-answer", func(files []int) error {
	talk := os.NewFile(uintptr(files[1]), "talk")
	var question layoutQuestion
	if err := json.NewDecoder(talk).Decode(&question); err != nil {
		return err
	}
	profile, err := notify.NewProfile(question.Parameters.ABI, question.Parameters.Constant)
	if err != nil {
		return err
	}
	data, err := rawAnswer(files[0], profile, question.Capacity)
	if err != nil {
		return err
	}
	return json.NewEncoder(talk).Encode(data)
})

var _ = add(Case{
	Name:   "scm/same-layout-in-32-bit",
	Doc:    "a 32-bit task gets the same bytes as a 64-bit one",
	Covers: []string{"N18", "N08"},
	Axes:   OnLoopback,
	Needs:  []string{SCMNotification, ThirtyTwoBit},
}, func(t *T) {
	const capacity = 4
	profile := t.Profile()
	newQueue := func() *Queue {
		queue := t.NewQueue()
		queue.Send()
		queue.Fill(2) // [0,1] [2,2]
		return queue
	}
	wide, err := rawAnswer(newQueue().Sender.FD, profile, capacity)
	t.Check(err, "in a 64-bit task")

	mine, theirs := t.socketPair()
	wait := t.StartChild(childAnswers.In32Bit(), newQueue().Sender, theirs)
	theirs.Close()
	talk := mine.file()
	defer func() { _ = talk.Close() }()
	t.Check(json.NewEncoder(talk).Encode(layoutQuestion{Parameters: t.Parameters, Capacity: capacity}), "ask a 32-bit task")
	var narrow []byte
	err = json.NewDecoder(talk).Decode(&narrow)
	wait()
	t.Check(err, "in a 32-bit task")
	if !bytes.Equal(wide, narrow) {
		t.Errorf("a 64-bit task was answered\n%s\nand a 32-bit task\n%s\nwith the same in the queue: the structure has two layouts, and a 32-bit program reads the wrong ranges",
			hex.Dump(wide), hex.Dump(narrow))
	}
})

// The requests of IPV6_FLOWLABEL_MGR (uapi/linux/in6.h).
const (
	ipv6FlowLabelManager = 32
	flowLabelGet         = 0
	flowLabelCreate      = 1
	flowLabelExclusive   = 1
)

// flowLabelRequest is struct in6_flowlabel_req.
type flowLabelRequest struct {
	destination            [16]byte
	label                  [4]byte
	action, share          uint8
	flags, expires, linger uint16
	_                      uint32
}

// controlBySetsockopt are the socket options that carry control data.
var controlBySetsockopt = map[string]struct {
	option int
	// value puts control data into the option's value.
	value func(t *T, control []byte) []byte
}{
	"packet-options": {
		option: unix.IPV6_2292PKTOPTIONS,
		value:  func(_ *T, control []byte) []byte { return control },
	},
	"flow-label": {
		option: ipv6FlowLabelManager,
		value: func(t *T, control []byte) []byte {
			request := flowLabelRequest{
				destination: t.Address(ReceiverEnd).As16(), action: flowLabelGet, share: flowLabelExclusive,
				flags: flowLabelCreate, expires: 1, linger: 1,
			}
			raw := unsafe.Slice((*byte)(unsafe.Pointer(&request)), unsafe.Sizeof(request))
			return append(bytes.Clone(raw), control...)
		},
	},
}

func init() {
	for name, way := range controlBySetsockopt {
		add(Case{
			Name:   "scm/setsockopt/" + name,
			Doc:    "a request in control data that comes by setsockopt, where nothing can be answered, is refused, reads nothing and is not written to",
			Covers: []string{"N19"},
			Axes:   CopiedAndNot.Over(network.IPv6),
			Needs:  scm,
		}, func(t *T) {
			profile := t.Profile()
			queue := t.NewQueue()
			queue.Fill(3)
			set := func(control []byte) error {
				return sys.SetsockoptString(queue.Sender.FD, unix.SOL_IPV6, way.option, string(way.value(t, control)))
			}
			// What is set stays charged to the socket until it is replaced by
			// nothing.
			defer func() { _ = sys.SetsockoptString(queue.Sender.FD, unix.SOL_IPV6, way.option, "") }()
			// A message that belongs there shows that this way is open.
			class := notify.AppendControl(nil, unix.SOL_IPV6, unix.IPV6_TCLASS, binary.NativeEndian.AppendUint32(nil, 8))
			if err := set(class); errors.Is(err, unix.ENOPROTOOPT) {
				t.Skipf("no such option in this kernel: %v", err)
			} else if err != nil {
				t.Fatalf("a traffic class by setsockopt: %v", err)
			}
			request := profile.Encode(4)
			for place, control := range map[string][]byte{
				"alone":                  request,
				"behind another message": append(bytes.Clone(class), request...),
			} {
				// In memory of its own, so that a write is seen.
				value := way.value(t, control)
				memory := t.Memory(1)
				copy(memory.Bytes(), value)
				err := sys.SetsockoptBytes(queue.Sender.FD, unix.SOL_IPV6, way.option, memory.Bytes()[:len(value)])
				if !errors.Is(err, unix.EINVAL) {
					t.Errorf("%s: EINVAL was expected, came %v: nobody can get an answer this way", place, err)
				}
				if !bytes.Equal(memory.Bytes()[:len(value)], value) {
					sys.Beyond("the value of a socket option after setsockopt")
					t.Errorf("%s: setsockopt wrote to its value", place)
				}
			}
			var ledger notify.Ledger
			queue.Finish(&ledger)
		})
	}
}

var _ = add(Case{
	Name:    "scm/malformed-length",
	Doc:     "a control message whose length is impossible is EINVAL, sends nothing and reads nothing",
	Covers:  []string{"N03"},
	Axes:    CopiedAndNot,
	Needs:   scm,
	In32Bit: true,
}, func(t *T) {
	queue := t.NewQueue()
	queue.Send()
	profile := t.Profile()
	whole := profile.Encode(2)
	for _, test := range []struct {
		name   string
		length int
	}{
		{"shorter than a header", unix.CmsgLen(0) - 1},
		{"0", 0},
		{"a byte longer than the buffer", len(whole) + 1},
		{"far longer than the buffer", 1 << 30},
		{"negative", -1},
	} {
		control := bytes.Clone(whole)
		// cmsg_len is a size_t.
		*(*uintptr)(unsafe.Pointer(unsafe.SliceData(control))) = uintptr(test.length)
		before := bytes.Clone(control)
		_, err := notify.Send(queue.Sender.FD, &notify.Message{Buffers: [][]byte{[]byte("refused")}, Control: control})
		if !errors.Is(err, unix.EINVAL) {
			t.Errorf("a length that is %s: EINVAL was expected, came %v: the kernel would read or write past the caller's buffer", test.name, err)
		}
		if !bytes.Equal(control, before) {
			t.Errorf("a length that is %s: refused, yet the control buffer was written to", test.name)
		}
	}
	queue.ExpectNothingSent()
	var ledger notify.Ledger
	queue.Finish(&ledger)
})

var _ = add(Case{
	Name:   "scm/option-switched-off",
	Doc:    "with SO_ZEROCOPY switched off again a request is EINVAL, and what is in the queue stays there",
	Covers: []string{"N03"},
	Axes:   OnLoopback,
	Needs:  scm,
}, func(t *T) {
	queue := t.NewQueue()
	queue.Fill(2)
	queue.Sender.SetZerocopy(false)
	for _, flags := range []int{0, unix.MSG_ZEROCOPY} {
		_, err := notify.Send(queue.Sender.FD, &notify.Message{
			Buffers: [][]byte{[]byte("x")}, Control: t.Profile().Encode(2), Flags: flags,
		})
		if !errors.Is(err, unix.EINVAL) {
			t.Errorf("flags %#x: EINVAL was expected, came %v", flags, err)
		}
	}
	queue.ExpectNothingSent()
	var ledger notify.Ledger
	queue.Finish(&ledger)
})

var _ = add(Case{
	Name:   "scm/vsock",
	Doc:    "on a VSOCK socket, which has SO_ZEROCOPY, the caller can tell whether a request was answered: by an error, or by an answer",
	Covers: []string{"N15"},
	Level:  Should,
	Axes:   Axes{Protos: []Proto{VSOCK}},
	Needs:  scm,
}, func(t *T) {
	profile := t.Profile()
	if !profile.ReportsCount() {
		t.Skipf("profile %s returns no count, so nothing tells an answer from none", profile.Name())
	}
	pair := t.Pair()
	data := t.Payload(2*notify.PageSize, 1)
	pair.Sender.MustSend(data, unix.MSG_ZEROCOPY)
	pair.Receiver.MustReceive(data)
	if _, err := notify.Wait(pair.Sender.FD, t.Patience()); err != nil {
		t.Fatalf("wait for the notification: %v", err)
	}
	var ledger notify.Ledger
	control := profile.Encode(4)
	_, err := notify.Send(pair.Sender.FD, &notify.Message{Buffers: [][]byte{data[:10]}, Control: control})
	if err != nil {
		t.Logf("refused: %v", err)
	} else {
		pair.Receiver.MustReceive(data[:10])
		entries, err := profile.Decode(control)
		if err != nil {
			t.Errorf("the send succeeded, yet: %v; the caller takes what it finds there for 4 notifications", err)
		}
		ledger.Add(entries...)
	}
	pair.Sender.CollectInto(&ledger, 1)
})

var _ = add(Case{
	Name:   "scm/sockets-without-zerocopy",
	Doc:    "sockets that have no SO_ZEROCOPY answer EINVAL to a request",
	Covers: []string{"N15", "N03"},
	Needs:  scm,
}, func(t *T) {
	profile := t.Profile()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	t.Check(err, "socketpair")
	for _, fd := range pair {
		t.Cleanup(func() { _ = sys.Close(fd) })
	}
	raw := t.SocketOf(SenderEnd, unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_UDP)
	t.Check(sys.Connect(raw.FD, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), "connect")
	raw6 := t.SocketOf(SenderEnd, unix.AF_INET6, unix.SOCK_RAW, unix.IPPROTO_UDP)
	t.Check(sys.Connect(raw6.FD, &unix.SockaddrInet6{Addr: [16]byte{15: 1}}), "connect")
	netlink := t.SocketOf(SenderEnd, unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE)
	for _, test := range []struct {
		name string
		fd   int
	}{{"unix", pair[0]}, {"raw IPv4", raw.FD}, {"raw IPv6", raw6.FD}, {"netlink", netlink.FD}} {
		control := profile.Encode(2)
		before := bytes.Clone(control)
		_, err := notify.Send(test.fd, &notify.Message{Buffers: [][]byte{make([]byte, 64)}, Control: control})
		if !errors.Is(err, unix.EINVAL) {
			t.Errorf("%s socket: EINVAL was expected, came %v: the caller waits for an answer that cannot come", test.name, err)
		}
		if !bytes.Equal(control, before) {
			t.Errorf("%s socket: the control buffer was written to", test.name)
		}
	}
})

var _ = add(Case{
	Name:    "scm/no-kernel-memory-ever",
	Doc:     "for every capacity and number of notifications, padding and unused elements hold the caller's bytes or zeros",
	Covers:  []string{"N16"},
	Axes:    OnLoopback,
	Needs:   scm,
	In32Bit: true,
}, func(t *T) {
	profile := t.Profile()
	queue := t.NewQueue()
	var ledger notify.Ledger
	for capacity := 1; capacity <= most(profile); capacity++ {
		if capacity%3 != 0 { // with none, one or two
			queue.Fill(capacity % 3)
		}
		control := profile.Encode(capacity)
		entries, err := profile.Decode(queue.CarryControl(control, 0))
		t.Check(err, "answer to a request")
		ledger.Add(entries...)
		for _, found := range profile.Foreign(control) {
			t.Errorf("capacity %d, %d returned: the kernel wrote where nothing was due: %s; it may be kernel memory", capacity, len(entries), found)
		}
		queue.Separate() // and not merge with what comes next
	}
	queue.Finish(&ledger)
})

// privateFlags are the bits of the flags of a send that no header of user space
// gives a meaning, by their names in the kernel where they have one
// (linux/socket.h of several releases).
var privateFlags = map[string]int{
	"MSG_SENDPAGE_NOPOLICY":                0x10000,
	"MSG_SENDPAGE_NOTLAST or MSG_BATCH":    0x20000,
	"MSG_NO_SHARED_FRAGS":                  0x80000,
	"MSG_SENDPAGE_DECRYPTED":               0x100000,
	"bit 21":                               0x200000,
	"bit 22":                               0x400000,
	"bit 23":                               0x800000,
	"MSG_ZEROCOPY_UARG of the first draft": 0x2000000,
	"MSG_SPLICE_PAGES":                     0x8000000,
	"bit 28":                               0x10000000,
}

var _ = add(Case{
	Name:   "scm/private-flags",
	Doc:    "flags that only the kernel may set change nothing about a request, and make none of a send without one",
	Covers: []string{"N20"},
	Axes:   CopiedAndNot,
	Needs:  scm,
}, func(t *T) {
	profile := t.Profile()
	queue := t.NewQueue()
	var ledger notify.Ledger
	for name, flag := range privateFlags {
		queue.Fill(2)
		send := func(control []byte) error {
			t.Helper()
			count, err := notify.Send(queue.Sender.FD, &notify.Message{
				Buffers: [][]byte{queue.data}, Control: control, Flags: flag | unix.MSG_NOSIGNAL,
			})
			if err == nil && count != len(queue.data) {
				t.Errorf("%s: the send took %d of %d bytes", name, count, len(queue.data))
			}
			if err == nil {
				queue.Receiver.MustReceive(queue.data)
				queue.Receiver.Acknowledge()
			}
			return err
		}
		// Nothing for the kernel to fill in, and as long as a request.
		other := hopLimit(t, nil)
		for len(other) < len(profile.Encode(4)) {
			other = hopLimit(t, other)
		}
		before := bytes.Clone(other)
		if err := send(other); err != nil {
			t.Logf("%s: %v", name, err)
		}
		if !bytes.Equal(other, before) {
			t.Errorf("%s: the kernel wrote into the control buffer of a send that asked for nothing", name)
		}
		request := profile.Encode(4)
		if err := send(request); err != nil {
			t.Logf("%s, with a request: %v", name, err)
		} else if entries, err := profile.Decode(request); err != nil {
			t.Errorf("%s, with a request: %v", name, err)
		} else {
			if len(entries) != 2 {
				t.Errorf("%s, with a request: two notifications were in the queue, came %v", name, entries)
			}
			ledger.Add(entries...)
		}
		queue.Finish(&ledger)
	}
})

var _ = add(Case{
	Name:   "scm/compat-flag",
	Doc:    "a 64-bit task that says by a flag that it has 32 bits is refused, and loses nothing",
	Covers: []string{"N20", "N08"},
	Axes:   OnLoopback,
	Needs:  scm,
}, func(t *T) {
	const compat = -1 << 31 // MSG_CMSG_COMPAT
	queue := t.NewQueue()
	queue.Fill(2)
	control := t.Profile().Encode(2)
	before := bytes.Clone(control)
	_, err := notify.Send(queue.Sender.FD, &notify.Message{Buffers: [][]byte{queue.data}, Control: control, Flags: compat})
	if !errors.Is(err, unix.EINVAL) {
		t.Errorf("EINVAL was expected, came %v", err)
	}
	if !bytes.Equal(control, before) {
		t.Errorf("the control buffer was written to")
	}
	queue.ExpectNothingSent()
	var ledger notify.Ledger
	queue.Finish(&ledger)
})
