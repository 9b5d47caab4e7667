// SPDX-License-Identifier: BSD-3-Clause

package reproducer_test

import (
	"bytes"
	"net/netip"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/zcvet/zcvet/guest/trace"
	"github.com/zcvet/zcvet/harness/reproducer"
	"github.com/zcvet/zcvet/harness/verdict"
)

func addrPort(text string) netip.AddrPort { return netip.MustParseAddrPort(text) }

// Whatever a guest has recorded, no text of it leaves the string or comment it
// stands in.
func FuzzC(f *testing.F) {
	region := make([]byte, trace.Size)
	r := trace.NewRecorder(region)
	r.Start("case")
	r.End(r.Begin("socket", []int64{unix.AF_INET, unix.SOCK_DGRAM, 0}, nil, 0), 3, 0, nil, nil, 0)
	r.End(r.Begin("mmap", []int64{4096, 3, 0x22}, nil, 0), 0x7000, 0, nil, nil, 0)
	r.End(r.Begin("writefile", nil, []trace.Memory{memory(0, []byte("/proc/sys/a")), memory(0, []byte("1"))}, 2), 1, 0, nil, nil, 0)
	r.End(r.Begin("sendmsg", []int64{3, 0, 0, 0}, []trace.Memory{{Bytes: []byte{}}, memory(0, make([]byte, 40)), memory(0x7000, []byte("x"))}, 2), 1, 0, nil,
		[]trace.Memory{memory(0, make([]byte, 56)), memory(0, make([]byte, 40))}, 2)
	r.End(r.Begin("recvfrom", []int64{3, 0, 9}, nil, 0), 3, 0, nil, []trace.Memory{memory(0, []byte("abc"))}, 0)
	r.Mark(trace.Failure, nil, "it \"failed\" */")
	ring := make([]byte, trace.Size)
	r = trace.NewRecorder(ring)
	r.Start("ring")
	r.End(r.Begin("socket", []int64{unix.AF_INET, unix.SOCK_DGRAM, 0}, nil, 0), 4, 0, nil, nil, 0)
	(&script{Recorder: r}).ringOfTwo(make([]byte, 32))
	r.Mark(trace.Failure, nil, "it failed")
	regions := [][]byte{region, ring, threadsRegion(4), threadsRegion(60)}
	f.Add(uint8(0), uint16(0), region[:2000])
	f.Add(uint8(0), uint16(520), []byte("*/\"\\"))
	f.Add(uint8(1), uint16(600), []byte{1})
	f.Add(uint8(2), uint16(700), []byte{1})
	f.Add(uint8(3), uint16(700), []byte{1})
	f.Add(uint8(0), uint16(512+8+2), []byte{3}) // the first call is of a 32-bit task
	f.Fuzz(func(t *testing.T, which uint8, at uint16, data []byte) {
		corrupt := bytes.Clone(regions[int(which)%len(regions)])
		copy(corrupt[int(at)%len(corrupt):], data)
		record, _ := trace.Parse(corrupt)
		for _, status := range []verdict.Status{verdict.Fail, verdict.Crash, verdict.Timeout} {
			source, err := reproducer.C(about(status), record)
			if err == nil {
				lex(t, string(source))
			}
		}
	})
}

// threadsRegion is a record of two threads whose calls overlap, so many times.
func threadsRegion(times int) []byte {
	region := make([]byte, trace.Size)
	r := trace.NewRecorder(region)
	r.Start("threads")
	// Each on a thread of its own, as long as the other.
	other, done := make(chan func()), make(chan struct{})
	go func() {
		runtime.LockOSThread()
		for f := range other {
			f()
			done <- struct{}{}
		}
		close(done)
	}()
	defer func() {
		close(other)
		<-done
	}()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	r.End(r.Begin("socket", []int64{unix.AF_INET, unix.SOCK_DGRAM, 0}, nil, 0), 3, 0, nil, nil, 0)
	for range times {
		n := r.Begin("sendto", []int64{3, unix.MSG_ZEROCOPY}, []trace.Memory{{Bytes: []byte{}}, memory(0, []byte("abc"))}, 1)
		other <- func() {
			r.End(r.Begin("recvfrom", []int64{3, 0, 9}, nil, 0), 3, 0, nil, []trace.Memory{memory(0, []byte("abc"))}, 0)
		}
		<-done
		r.End(n, 3, 0, nil, nil, 0)
	}
	r.Mark(trace.Expectation, []int64{trace.ExactlyOnce, 3, int64(times)})
	r.Mark(trace.Failure, nil, "it failed")
	return region
}

// lex fails the test unless the source is made of closed comments, closed strings
// and code that nobody else had a hand in.
func lex(t *testing.T, source string) {
	t.Helper()
	depth := 0
	for source != "" {
		switch {
		case strings.HasPrefix(source, "//"):
			_, source, _ = strings.Cut(source, "\n")
		case strings.HasPrefix(source, "/*"):
			text, rest, closed := strings.Cut(source[2:], "*/")
			if !closed || strings.Contains(text, "/*") {
				t.Fatalf("comment %q", text)
			}
			source = rest
		case source[0] == '"':
			end := 1
			for end < len(source) && source[end] != '"' && source[end] != '\n' {
				if source[end] == '\\' {
					end++
				}
				end++
			}
			if end >= len(source) || source[end] != '"' || strings.Contains(source[:end], "??") {
				t.Fatalf("string %q", source[:min(end, len(source))])
			}
			source = source[end+1:]
		default:
			switch c := source[0]; {
			case c == '{':
				depth++
			case c == '}':
				depth--
			case c != '\n' && c != '\t' && (c < ' ' || c > '~') || c == '\\':
				t.Fatalf("byte %#x in the code before %q", c, source[:min(40, len(source))])
			}
			source = source[1:]
		}
	}
	if depth != 0 {
		t.Fatalf("%d braces are open at the end", depth)
	}
}
