// SPDX-License-Identifier: BSD-3-Clause

package notify_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/zcvet/zcvet/guest/notify"
)

const constant = 81

func element(low, high uint32, zerocopy byte, padding ...byte) []byte {
	raw := make([]byte, 12)
	binary.NativeEndian.PutUint32(raw, low)
	binary.NativeEndian.PutUint32(raw[4:], high)
	raw[8] = zerocopy
	copy(raw[9:], []byte{notify.Sentinel, notify.Sentinel, notify.Sentinel})
	copy(raw[9:], padding)
	return raw
}

func size(n uint32) []byte { return binary.NativeEndian.AppendUint32(nil, n) }

func profile(t testing.TB, abi string) notify.Profile {
	t.Helper()
	p, err := notify.NewProfile(abi, constant)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestNewProfileRefuses(t *testing.T) {
	for _, test := range []struct {
		abi      string
		constant int
	}{{"", constant}, {"v5", constant}, {"v8", 0}, {"v8", -1}} {
		if p, err := notify.NewProfile(test.abi, test.constant); err == nil {
			t.Errorf("NewProfile(%q, %d) = %v, want an error", test.abi, test.constant, p)
		}
	}
}

func TestDecode(t *testing.T) {
	blank := bytes.Repeat([]byte{notify.Sentinel}, 12)
	type entry struct {
		Low, High uint32
		Copied    bool
	}
	for _, test := range []struct {
		name string
		abi  string
		data [][]byte
		want []entry
		err  error
	}{
		{"v8 nothing", "v8", [][]byte{size(0), blank, blank}, nil, nil},
		{"v8 no room", "v8", [][]byte{size(0)}, nil, nil},
		{"v8 one of two", "v8", [][]byte{size(1), element(3, 9, 1), blank}, []entry{{3, 9, false}}, nil},
		{"v7 two", "v7", [][]byte{size(2), element(0, 0, 0), element(1, 1, 1)}, []entry{{0, 0, true}, {1, 1, false}}, nil},
		{"v8 untouched", "v8", [][]byte{size(2), blank, blank}, nil, notify.ErrUntouched},
		{"v8 size over the room", "v8", [][]byte{size(2), blank}, nil, notify.ErrControl},
		{"v8 counted but not written", "v8", [][]byte{size(2), element(0, 0, 1), blank}, []entry{{0, 0, false}}, notify.ErrControl},
		{"v8 cut", "v8", [][]byte{size(0), blank[:5]}, nil, notify.ErrControl},
		{"v8 empty", "v8", nil, nil, notify.ErrControl},
		{"v6 nothing", "v6", [][]byte{blank, blank}, nil, nil},
		{"v6 one of two", "v6", [][]byte{element(0, 4, 0), blank}, []entry{{0, 4, true}}, nil},
		{"v6 rest cleared", "v6", [][]byte{element(7, 7, 1), make([]byte, 12)}, []entry{{7, 7, false}}, nil},
		{"v6 cut", "v6", [][]byte{blank[:11]}, nil, notify.ErrControl},
	} {
		t.Run(test.name, func(t *testing.T) {
			control := notify.AppendControl(nil, unix.SOL_IP, unix.IP_TTL, []byte{1, 2, 3, 4})
			control = notify.AppendControl(control, unix.SOL_SOCKET, constant, bytes.Join(test.data, nil))
			got, err := profile(t, test.abi).Decode(control)
			if !errors.Is(err, test.err) {
				t.Fatalf("error %v, want %v", err, test.err)
			}
			var entries []entry
			for _, n := range got {
				if !n.Zerocopy() || n.Way != notify.Control {
					t.Errorf("%+v is no zero-copy notification by cmsg", n)
				}
				entries = append(entries, entry{n.Low, n.High, n.Copied})
			}
			if diff := cmp.Diff(test.want, entries); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestDecodeNeedsTheMessage(t *testing.T) {
	control := notify.AppendControl(nil, unix.SOL_IP, constant, size(0))
	if _, err := profile(t, "v8").Decode(control); !errors.Is(err, notify.ErrControl) {
		t.Errorf("message of another level: %v, want ErrControl", err)
	}
}

func TestEncodeIsARequest(t *testing.T) {
	for _, test := range []struct {
		abi      string
		capacity int
		length   int // of the data
	}{{"v6", 1, 12}, {"v6", 16, 192}, {"v7", 100, 1204}, {"v8", 0, 4}, {"v8", 16, 196}} {
		p := profile(t, test.abi)
		messages, err := notify.ParseControl(p.Encode(test.capacity))
		if err != nil || len(messages) != 1 {
			t.Fatalf("%s: %v, %v", test.abi, messages, err)
		}
		m := messages[0]
		if m.Level != unix.SOL_SOCKET || m.Type != constant || len(m.Data) != test.length {
			t.Errorf("%s capacity %d: level %d type %d, %d bytes; want %d bytes", test.abi, test.capacity, m.Level, m.Type, len(m.Data), test.length)
		}
		if p.ReportsCount() && int(binary.NativeEndian.Uint32(m.Data)) != test.capacity {
			t.Errorf("%s capacity %d: size %d", test.abi, test.capacity, binary.NativeEndian.Uint32(m.Data))
		}
		for _, refused := range p.Refused() {
			if bytes.Equal(refused.Data, m.Data) {
				t.Errorf("%s: a well-formed request is listed as refused: %s", test.abi, refused.Name)
			}
		}
	}
}

func TestForeignBytes(t *testing.T) {
	blank := bytes.Repeat([]byte{notify.Sentinel}, 12)
	leak := bytes.Clone(blank)
	leak[4] = 0x88
	for _, test := range []struct {
		name string
		abi  string
		data [][]byte
		want []string
	}{
		{"clean", "v8", [][]byte{size(1), element(1, 2, 1), blank}, nil},
		{"zeroed", "v8", [][]byte{size(1), element(1, 2, 1, 0, 0, 0), make([]byte, 12)}, nil},
		{"padding", "v8", [][]byte{size(1), element(1, 2, 1, 0x11), blank}, []string{"padding of element 0, byte 9: 0x11"}},
		{"unused", "v8", [][]byte{size(1), element(1, 2, 1), leak}, []string{"unused element 1, byte 4: 0x88"}},
		{"v6 padding", "v6", [][]byte{element(1, 2, 1, 0, 9, 0), blank}, []string{"padding of element 0, byte 10: 0x09"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			control := notify.AppendControl(nil, unix.SOL_SOCKET, constant, bytes.Join(test.data, nil))
			if diff := cmp.Diff(test.want, profile(t, test.abi).Foreign(control)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func extendedError(errno uint32, origin, code uint8, info, data uint32) []byte {
	raw := make([]byte, 16)
	binary.NativeEndian.PutUint32(raw, errno)
	raw[4], raw[6] = origin, code
	binary.NativeEndian.PutUint32(raw[8:], info)
	binary.NativeEndian.PutUint32(raw[12:], data)
	return raw
}

func TestParseEntry(t *testing.T) {
	zerocopy := extendedError(0, notify.OriginZerocopy, notify.CodeCopied, 4, 6)
	control := notify.AppendControl(nil, unix.SOL_SOCKET, unix.SCM_TIMESTAMPING, make([]byte, 48))
	control = notify.AppendControl(control, unix.SOL_IPV6, unix.IPV6_RECVERR, zerocopy)
	entry, err := notify.ParseEntry(control, unix.MSG_ERRQUEUE)
	if err != nil {
		t.Fatal(err)
	}
	if !entry.Zerocopy() || !entry.Copied || entry.Low != 4 || entry.High != 6 ||
		entry.Level != unix.SOL_IPV6 || entry.CmsgType != unix.IPV6_RECVERR || len(entry.Others) != 1 {
		t.Errorf("%+v", entry)
	}

	ip := func(data []byte) []byte { return notify.AppendControl(nil, unix.SOL_IP, unix.IP_RECVERR, data) }
	for _, test := range []struct {
		name    string
		control []byte
		flags   int
		err     error
	}{
		{"nothing", nil, 0, notify.ErrControl},
		{"cut", ip(zerocopy[:15]), 0, notify.ErrControl},
		{"twice", append(ip(zerocopy), ip(zerocopy)...), 0, notify.ErrControl},
		{"truncated", ip(zerocopy), unix.MSG_CTRUNC, notify.ErrTruncated},
		{"header cut", ip(zerocopy)[:7], 0, notify.ErrControl},
		{"network error", ip(extendedError(uint32(unix.ECONNREFUSED), notify.OriginICMP, 3, 0, 0)), 0, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			entry, err := notify.ParseEntry(test.control, test.flags)
			if !errors.Is(err, test.err) {
				t.Errorf("error %v, want %v", err, test.err)
			}
			if err == nil && (entry.Zerocopy() || entry.Copied) {
				t.Errorf("%v taken for a zero-copy notification", entry)
			}
		})
	}
}

func ranges(pairs ...[2]uint32) []notify.Notification {
	var out []notify.Notification
	for _, pair := range pairs {
		out = append(out, notify.Notification{Low: pair[0], High: pair[1], Origin: notify.OriginZerocopy, Way: notify.ErrorQueue})
	}
	return out
}

func TestLedger(t *testing.T) {
	const last = ^uint32(0)
	for _, test := range []struct {
		name    string
		sends   int
		entries []notify.Notification
		covered uint64
		want    string // in the error, empty for none
	}{
		{"nothing sent", 0, nil, 0, ""},
		{"in any order", 5, ranges([2]uint32{3, 4}, [2]uint32{0, 0}, [2]uint32{1, 2}), 5, ""},
		{"none came", 3, nil, 0, "0-2 missing"},
		{"gap", 5, ranges([2]uint32{0, 0}, [2]uint32{3, 4}), 3, "1-2 missing"},
		{"end missing", 2, ranges([2]uint32{0, 0}), 1, "1 missing"},
		{"twice", 2, ranges([2]uint32{0, 1}, [2]uint32{1, 1}), 2, "1 twice"},
		{"twice within", 9, ranges([2]uint32{0, 8}, [2]uint32{2, 4}, [2]uint32{5, 5}), 9, "2-4 twice: in [0,8] zero copy (by error queue) and in [2,4]"},
		{"beyond", 2, ranges([2]uint32{0, 2}), 3, "beyond the last send"},
		{"stray", 1, ranges([2]uint32{0, 0}, [2]uint32{7, 7}), 2, "never were"},
		{"backwards", 2, ranges([2]uint32{1, 0}), 0, "backwards"},
		{"huge", 1, ranges([2]uint32{0, last}, [2]uint32{0, last}), 1 << 32, "0-4294967295 twice"},
		{"foreign", 0, []notify.Notification{{Origin: notify.OriginICMP}}, 0, "no zero-copy notification"},
	} {
		t.Run(test.name, func(t *testing.T) {
			var ledger notify.Ledger
			ledger.Add(test.entries...)
			if got := ledger.Covered(); uint64(got) != min(test.covered, math.MaxInt) {
				t.Errorf("covered %d, want %d", got, test.covered)
			}
			err := ledger.Check(test.sends)
			switch {
			case test.want == "" && err != nil:
				t.Errorf("%v", err)
			case test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)):
				t.Errorf("error %v, want %q in it", err, test.want)
			}
		})
	}
}

func TestLedgerTotal(t *testing.T) {
	var ledger notify.Ledger
	ledger.Add(ranges([2]uint32{0, 2}, [2]uint32{2, 2}, [2]uint32{9, 8})...)
	ledger.Add(notify.Notification{Origin: notify.OriginICMP})
	if got := ledger.Total(); got != 4 {
		t.Errorf("%d sends were notified, want 4: those of [0,2] and again the last", got)
	}
}

func TestLedgerHas(t *testing.T) {
	var ledger notify.Ledger
	ledger.Add(ranges([2]uint32{7, 9}, [2]uint32{0, 2}, [2]uint32{3, 4})...)
	for _, test := range []struct {
		low, high uint32
		want      bool
	}{{0, 4, true}, {1, 3, true}, {4, 4, true}, {5, 5, false}, {4, 7, false}, {8, 9, true}, {9, 10, false}} {
		if got := ledger.Has(test.low, test.high); got != test.want {
			t.Errorf("Has(%d, %d) = %v", test.low, test.high, got)
		}
	}
}

func FuzzParseControl(f *testing.F) {
	zerocopy := extendedError(0, notify.OriginZerocopy, 1, 0, 1)
	f.Add(notify.AppendControl(nil, unix.SOL_IP, unix.IP_RECVERR, zerocopy))
	for _, abi := range []string{"v6", "v7", "v8"} {
		f.Add(profile(f, abi).Encode(2))
	}
	f.Fuzz(func(t *testing.T, control []byte) {
		messages, err := notify.ParseControl(control)
		var again []byte
		for _, message := range messages {
			if message.Offset+len(message.Data) > len(control) {
				t.Fatalf("message at %d has %d bytes of data in %d", message.Offset, len(message.Data), len(control))
			}
			again = notify.AppendControl(again, message.Level, message.Type, message.Data)
		}
		if repeated, errAgain := notify.ParseControl(again); err == nil && (errAgain != nil || !cmp.Equal(messages, repeated)) {
			t.Fatalf("%v rebuilt as %v, %v", messages, repeated, errAgain)
		}
		_, _ = notify.ParseEntry(control, 0)
		for _, abi := range []string{"v6", "v7", "v8"} {
			p := profile(t, abi)
			entries, err := p.Decode(control)
			if err == nil && p.Max() > 0 && p.ReportsCount() && len(entries)*12 > len(control) {
				t.Fatalf("%s: %d entries from %d bytes", abi, len(entries), len(control))
			}
			p.Foreign(control)
		}
	})
}
