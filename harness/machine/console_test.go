// SPDX-License-Identifier: BSD-3-Clause

package machine

import (
	"bytes"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// oneByOne returns a byte per read, as a slow guest does.
type oneByOne struct {
	io.Reader
	io.Writer
}

func (o oneByOne) Read(p []byte) (int, error) { return o.Reader.Read(p[:1]) }

func TestConsoleLines(t *testing.T) {
	long := strings.Repeat("a", longestLine)
	for _, test := range []struct {
		name, input string
		want        []string
	}{
		{"lines", "one\r\ntwo\n", []string{"one", "two"}},
		{"empty lines stay", "\n\nx\n", []string{"", "", "x"}},
		{"last line without an end", "one\nlogin: ", []string{"one", "login: "}},
		{"carriage return inside", "10%\r20%\n", []string{"10%\r20%"}},
		{"line that never ends", long + "b\n", []string{long, "b"}},
		{"nothing", "", nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			var raw, log bytes.Buffer
			stream := oneByOne{strings.NewReader(test.input), io.Discard}
			c := newConsole(stream, time.Now(), &raw, &log)
			c.wait()
			var got []string
			for _, line := range c.Tail(0) {
				got = append(got, line.Text)
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Error(diff)
			}
			if raw.String() != test.input {
				t.Errorf("raw %q, want %q", raw.String(), test.input)
			}
			if lines := strings.Count(log.String(), "\n"); lines != len(test.want) {
				t.Errorf("%d lines in the log, want %d", lines, len(test.want))
			}
		})
	}
}

func TestSubscriptionMissesNothing(t *testing.T) {
	reader, writer := io.Pipe()
	c := newConsole(oneByOne{reader, io.Discard}, time.Now(), nil, nil)
	printed := make(chan struct{})
	go func() {
		defer close(printed)
		for range 200 {
			_, _ = writer.Write([]byte("line\n"))
		}
		_ = writer.Close()
	}()
	for len(c.Tail(0)) < 20 {
		time.Sleep(time.Millisecond)
	}
	later := 0
	before, stop := c.Subscribe(func(Line) { later++ })
	<-printed
	c.wait()
	stop()
	if len(before)+later != 200 {
		t.Errorf("%d lines before and %d after make not 200", len(before), later)
	}
}

func FuzzConsole(f *testing.F) {
	f.Add([]byte("one\r\ntwo\n\nthree"))
	f.Add([]byte("\x1b[6n\r\r\n\xff\x00"))
	f.Fuzz(func(t *testing.T, input []byte) {
		var raw bytes.Buffer
		c := newConsole(oneByOne{bytes.NewReader(input), io.Discard}, time.Now(), &raw, nil)
		c.wait()
		if !bytes.Equal(raw.Bytes(), input) {
			t.Errorf("raw %q, want %q", raw.Bytes(), input)
		}
		kept := 0
		for _, line := range c.Tail(0) {
			if strings.Contains(line.Text, "\n") || len(line.Text) > longestLine {
				t.Errorf("no line: %q", line.Text)
			}
			kept += len(line.Text)
		}
		if lost := len(input) - kept - bytes.Count(input, []byte("\n")) - bytes.Count(input, []byte("\r")); lost > 0 {
			t.Errorf("%d bytes of %q are in no line", lost, input)
		}
	})
}
