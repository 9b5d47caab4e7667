// SPDX-License-Identifier: BSD-3-Clause

package machine

import (
	"errors"
	"io"
	"net"
	"sync"
)

// linkBacklog bounds what waits for the reader of a link, in bytes.
const linkBacklog = 64 << 20

// ErrLinkFlooded ends a link on which the guest sent more than anybody reads.
var ErrLinkFlooded = errors.New("guest link: more than 64 MiB unread")

// Link is the host's end of the guest link: a stream of bytes for link.Conn. It
// is read from the guest whether anybody calls Read or not, because a port that
// is full stalls the guest. Read may be called from one goroutine at a time,
// Write from several.
type Link struct {
	conn    *net.UnixConn
	running sync.WaitGroup

	lock    sync.Mutex
	changed *sync.Cond
	buffer  []byte
	err     error // ends the stream, after buffer
}

func newLink(conn *net.UnixConn) *Link {
	l := &Link{conn: conn}
	l.changed = sync.NewCond(&l.lock)
	l.running.Go(l.drain)
	return l
}

// Read returns io.EOF once the machine has ended and all it sent was read, and
// an error that wraps [ErrLinkFlooded] after an overflow.
func (l *Link) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	l.lock.Lock()
	defer l.lock.Unlock()
	for len(l.buffer) == 0 {
		if l.err != nil {
			return 0, l.err
		}
		l.changed.Wait()
	}
	n := copy(p, l.buffer)
	l.buffer = l.buffer[n:]
	if len(l.buffer) == 0 {
		l.buffer = nil
	}
	return n, nil
}

// Write sends to the guest. It blocks while the guest does not read, until the
// link is closed or the machine ends.
func (l *Link) Write(p []byte) (int, error) { return l.conn.Write(p) }

// Close ends the link on the host; the guest sees the port disconnected.
func (l *Link) Close() error {
	err := l.conn.Close()
	l.running.Wait()
	return err
}

func (l *Link) drain() {
	buffer := make([]byte, 64<<10)
	for {
		n, err := l.conn.Read(buffer)
		l.lock.Lock()
		if l.err == nil {
			if len(l.buffer)+n > linkBacklog {
				l.err = ErrLinkFlooded
			} else {
				l.buffer = append(l.buffer, buffer[:n]...)
			}
		}
		if err != nil && l.err == nil {
			l.err = io.EOF
		}
		l.changed.Broadcast()
		l.lock.Unlock()
		if err != nil {
			return
		}
	}
}
