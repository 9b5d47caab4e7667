// SPDX-License-Identifier: BSD-3-Clause

package machine

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	// tailBytes is how much console text is kept in memory.
	tailBytes = 1 << 20
	// longestLine is where a line without an end is cut.
	longestLine = 16 << 10
	// consoleBacklog bounds what waits for slow subscribers, in bytes. What is
	// over it is lost, and a line says so.
	consoleBacklog = 16 << 20
)

// Line is one line of the console.
type Line struct {
	// Time the line was complete on the host.
	Time time.Time
	// Since is the time since QEMU was started.
	Since time.Duration
	// Text is the line without its end. It is what the guest sent: not
	// necessarily UTF-8, and possibly with escape sequences.
	Text string
}

// Console is the serial console of a machine. The machine reads it whether
// anybody listens or not, so that the guest never waits for its console.
//
// Its methods may be called from several goroutines.
type Console struct {
	stream io.ReadWriter
	start  time.Time

	lock        sync.Mutex
	wake        *sync.Cond // pending or ended changed
	tail        []Line
	tailSize    int
	subscribers map[int]func(Line)
	nextID      int
	pending     []chunk
	backlog     int
	lost        int
	ended       bool
	running     sync.WaitGroup
}

// chunk is what one read returned.
type chunk struct {
	time time.Time
	data []byte
}

// newConsole starts to read stream. Raw receives the bytes as they come, log
// one line per line with the seconds since start in front; both may be nil.
func newConsole(stream io.ReadWriter, start time.Time, raw, log io.Writer) *Console {
	c := &Console{stream: stream, start: start, subscribers: make(map[int]func(Line))}
	c.wake = sync.NewCond(&c.lock)
	c.running.Go(c.read)
	c.running.Go(func() { c.deliver(raw, log) })
	return c
}

// Write types into the console.
func (c *Console) Write(p []byte) (int, error) { return c.stream.Write(p) }

// Subscribe calls f for every further line, in order, from one goroutine that
// is not the reader's: f may take its time, but has to return for the next line
// to be delivered and for the machine to be done. It must not wait for the end of
// the machine. The lines that came before are returned; none is missed in
// between and none is seen twice. Call stop to end the subscription.
func (c *Console) Subscribe(f func(Line)) (before []Line, stop func()) {
	c.lock.Lock()
	defer c.lock.Unlock()
	id := c.nextID
	c.nextID++
	c.subscribers[id] = f
	return slices.Clone(c.tail), func() {
		c.lock.Lock()
		defer c.lock.Unlock()
		delete(c.subscribers, id)
	}
}

// Tail returns the last lines, all that are kept if count is 0 or less.
func (c *Console) Tail(count int) []Line {
	c.lock.Lock()
	defer c.lock.Unlock()
	if count <= 0 || count > len(c.tail) {
		count = len(c.tail)
	}
	return slices.Clone(c.tail[len(c.tail)-count:])
}

// TailText returns the last lines as text.
func (c *Console) TailText(count int) string {
	var text strings.Builder
	for _, line := range c.Tail(count) {
		text.WriteString(line.Text)
		text.WriteByte('\n')
	}
	return text.String()
}

// wait returns when everything the guest printed has been delivered; only after
// the guest's end is closed.
func (c *Console) wait() { c.running.Wait() }

func (c *Console) read() {
	buffer := make([]byte, 64<<10)
	for {
		n, err := c.stream.Read(buffer)
		c.lock.Lock()
		switch {
		case n > 0 && c.backlog+n > consoleBacklog:
			c.lost += n
		case n > 0:
			c.pending = append(c.pending, chunk{time.Now(), slices.Clone(buffer[:n])})
			c.backlog += n
		}
		c.ended = err != nil
		c.wake.Signal()
		c.lock.Unlock()
		if err != nil {
			return
		}
	}
}

func (c *Console) deliver(raw, log io.Writer) {
	var partial []byte
	for {
		c.lock.Lock()
		for len(c.pending) == 0 && !c.ended {
			c.wake.Wait()
		}
		chunks, lost, ended := c.pending, c.lost, c.ended
		c.pending, c.backlog, c.lost = nil, 0, 0
		c.lock.Unlock()

		now := time.Now()
		for _, chunk := range chunks {
			now = chunk.time
			if raw != nil {
				// A writer that fails must not stop the guest.
				_, _ = raw.Write(chunk.data)
			}
			partial = c.split(append(partial, chunk.data...), chunk.time, log)
		}
		if lost > 0 {
			c.line(now, fmt.Sprintf("[zcvet: %d bytes of console output lost, the guest prints faster than they are read]", lost), log)
		}
		if ended {
			if len(partial) > 0 {
				c.line(now, string(partial), log)
			}
			return
		}
	}
}

// split delivers the complete lines of text and returns the rest.
func (c *Console) split(text []byte, now time.Time, log io.Writer) []byte {
	for {
		end := bytes.IndexByte(text, '\n')
		switch {
		case end >= 0:
			c.line(now, strings.TrimRight(string(text[:end]), "\r"), log)
			text = text[end+1:]
		case len(text) >= longestLine:
			c.line(now, string(text[:longestLine]), log)
			text = text[longestLine:]
		default:
			return text
		}
	}
}

func (c *Console) line(now time.Time, text string, log io.Writer) {
	line := Line{Time: now, Since: now.Sub(c.start), Text: text}
	if log != nil {
		_, _ = fmt.Fprintf(log, "%9.3f %s\n", line.Since.Seconds(), text)
	}

	c.lock.Lock()
	c.tail = append(c.tail, line)
	c.tailSize += len(text)
	for c.tailSize > tailBytes && len(c.tail) > 1 {
		c.tailSize -= len(c.tail[0].Text)
		c.tail = c.tail[1:]
	}
	ids := make([]int, 0, len(c.subscribers))
	for id := range c.subscribers {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	subscribers := make([]func(Line), 0, len(ids))
	for _, id := range ids {
		subscribers = append(subscribers, c.subscribers[id])
	}
	c.lock.Unlock()
	for _, f := range subscribers {
		f(line)
	}
}
