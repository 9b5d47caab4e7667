// SPDX-License-Identifier: BSD-3-Clause

package machine

import (
	"errors"
	"io"
	"net"
	"os"
	"testing"
)

// linkPair returns the host's end of a link and the guest's.
func linkPair(t *testing.T) (*Link, net.Conn) {
	t.Helper()
	ours, theirs, err := socketPair("test link")
	if err != nil {
		t.Fatal(err)
	}
	connect := func(file *os.File) net.Conn {
		conn, err := net.FileConn(file)
		if err != nil {
			t.Fatal(err)
		}
		_ = file.Close()
		t.Cleanup(func() { _ = conn.Close() })
		return conn
	}
	return newLink(connect(ours).(*net.UnixConn)), connect(theirs)
}

func TestLinkIsDrainedWithoutAReader(t *testing.T) {
	host, guest := linkPair(t)
	// Far more than a socket holds; a link that is not drained blocks here.
	block := make([]byte, 1<<20)
	for range 8 {
		if _, err := guest.Write(block); err != nil {
			t.Fatal(err)
		}
	}
	_ = guest.Close()
	if got, err := io.ReadAll(host); err != nil || len(got) != 8<<20 {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

func TestLinkThatIsFlooded(t *testing.T) {
	host, guest := linkPair(t)
	block := make([]byte, 1<<20)
	// The guest must not stall even then.
	for range linkBacklog/len(block) + 2 {
		if _, err := guest.Write(block); err != nil {
			t.Fatal(err)
		}
	}
	_ = guest.Close()
	if _, err := io.Copy(io.Discard, host); !errors.Is(err, ErrLinkFlooded) {
		t.Errorf("got %v, want ErrLinkFlooded", err)
	}
}

func TestLinkCloseEndsARead(t *testing.T) {
	host, _ := linkPair(t)
	read := make(chan error)
	go func() {
		_, err := host.Read(make([]byte, 1))
		read <- err
	}()
	if err := host.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-read; !errors.Is(err, io.EOF) {
		t.Errorf("got %v, want EOF", err)
	}
}
