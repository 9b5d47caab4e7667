// SPDX-License-Identifier: BSD-3-Clause

package vhost_test

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/zcvet/zcvet/harness/vnet/vhost"
	"github.com/zcvet/zcvet/harness/vnet/virtqueue"
)

// stream gives out bytes a few at a time, as a socket may.
type stream struct {
	bytes.Buffer
	atOnce int
	oob    []byte
	flags  int
	sent   bytes.Buffer
}

func (s *stream) ReadMsgUnix(b, oob []byte) (n, oobn, flags int, addr *net.UnixAddr, err error) {
	if s.atOnce > 0 {
		b = b[:min(len(b), s.atOnce)]
	}
	n, err = s.Buffer.Read(b)
	oobn = copy(oob, s.oob)
	s.oob = nil
	return n, oobn, s.flags, nil, err
}

func (s *stream) Write(b []byte) (int, error) { return s.sent.Write(b) }

func openFiles(t testing.TB) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func TestReceive(t *testing.T) {
	message := []byte{2, 0, 0, 0, 9, 0, 0, 0, 8, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8}
	for _, atOnce := range []int{1, 5, 100} {
		s := &stream{atOnce: atOnce}
		s.Buffer.Write(message)
		s.Buffer.Write(message[:0])
		conn := vhost.NewConn(s)
		got, err := conn.Receive()
		if err != nil {
			t.Fatal(err)
		}
		if got.Request != vhost.SetFeatures || !got.NeedReply || !bytes.Equal(got.Payload, message[12:]) {
			t.Errorf("%d bytes at once: %+v", atOnce, got)
		}
		if _, err := conn.Receive(); err != io.EOF {
			t.Errorf("after the last message: %v", err)
		}
	}
}

func TestReply(t *testing.T) {
	s := &stream{}
	if err := vhost.NewConn(s).Reply(vhost.GetFeatures, []byte{7}); err != nil {
		t.Fatal(err)
	}
	if want := []byte{1, 0, 0, 0, 5, 0, 0, 0, 1, 0, 0, 0, 7}; !bytes.Equal(s.sent.Bytes(), want) {
		t.Errorf("%x", s.sent.Bytes())
	}
}

func TestBadMessageLeaksNoFile(t *testing.T) {
	message := []byte{3, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0}
	null, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	rights := func() []byte {
		file, err := unix.Dup(int(null.Fd()))
		if err != nil {
			t.Fatal(err)
		}
		return unix.UnixRights(file)
	}
	for _, test := range []struct {
		name  string
		bytes []byte
		flags int
	}{
		{"too many for the buffer", message, unix.MSG_CTRUNC},
		{"cut off", message[:5], 0},
		{"wrong version", []byte{3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			before := openFiles(t)
			s := &stream{oob: rights(), flags: test.flags}
			s.Buffer.Write(test.bytes)
			if _, err := vhost.NewConn(s).Receive(); !errors.Is(err, vhost.ErrProtocol) {
				t.Errorf("%v", err)
			}
			if after := openFiles(t); after != before {
				t.Errorf("%d files are open, %d were", after, before)
			}
		})
	}
}

// device notes what a session does with it.
type device struct {
	features uint64
	running  map[int]*virtqueue.Queue
}

func (d *device) Features() uint64     { return 0x3 }
func (d *device) SetFeatures(f uint64) { d.features = f }
func (d *device) StopRing(index int)   { delete(d.running, index) }
func (d *device) StartRing(index int, q *virtqueue.Queue, kick *os.File) {
	d.running[index] = q
	_ = kick.Close()
}

// FuzzSession sends a session any messages. File descriptors are dealt to those
// that the fuzzer marks: a memfd and an eventfd in turn.
func FuzzSession(f *testing.F) {
	number := func(request byte, payload ...byte) []byte {
		return append([]byte{request, 0, 0, 0, 9, 0, 0, 0, byte(len(payload)), 0, 0, 0}, payload...)
	}
	f.Add(bytes.Join([][]byte{number(1), number(15), number(2, 3, 0, 0, 0x10, 1, 0, 0, 0)}, nil), uint8(0))
	region := append([]byte{1, 0, 0, 0, 0, 0, 0, 0}, make([]byte, 32)...)
	region[8+9] = 0x20 // size 0x2000
	region[8+18] = 0x1 // user address 0x10000
	address := make([]byte, 40)
	for at, page := range map[int]byte{8: 0, 16: 0x4, 24: 0x2} {
		address[at+1], address[at+2] = page, 1
	}
	f.Add(bytes.Join([][]byte{
		number(5, region...), number(8, 0, 0, 0, 0, 8, 0, 0, 0), number(9, address...),
		number(12, 0, 0, 0, 0, 0, 0, 0, 0), number(18, 0, 0, 0, 0, 1, 0, 0, 0), number(5, region...),
		number(11, 0, 0, 0, 0, 0, 0, 0, 0),
	}, nil), uint8(0b101001))
	f.Fuzz(func(t *testing.T, data []byte, withFile uint8) {
		s := &stream{}
		s.Buffer.Write(data)
		d := &device{running: map[int]*virtqueue.Queue{}}
		session := vhost.NewSession(d, 2)
		conn := vhost.NewConn(s)
		for i := range 8 {
			if withFile>>i&1 != 0 {
				s.oob = unix.UnixRights(someFile(t, i))
			}
			message, err := conn.Receive()
			if err != nil {
				if !errors.Is(err, io.EOF) && !errors.Is(err, vhost.ErrProtocol) {
					t.Errorf("%v", err)
				}
				break
			}
			_, _, err = session.Handle(message)
			message.Close()
			if err != nil {
				_, ring := errors.AsType[*vhost.RingError](err)
				if !ring && !errors.Is(err, vhost.ErrProtocol) {
					t.Errorf("%v", err)
				}
				break
			}
		}
		closeFiles(s.oob)
		if err := session.Close(); err != nil {
			t.Error(err)
		}
		if len(d.running) != 0 {
			t.Errorf("rings run on: %v", d.running)
		}
	})
}

// closeFiles closes what was dealt and never received.
func closeFiles(oob []byte) {
	controls, _ := unix.ParseSocketControlMessage(oob)
	for _, control := range controls {
		files, _ := unix.ParseUnixRights(&control)
		for _, file := range files {
			_ = unix.Close(file)
		}
	}
}

func someFile(t *testing.T, i int) int {
	t.Helper()
	if i == 3 {
		file, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
		if err != nil {
			t.Fatal(err)
		}
		return file
	}
	file, err := unix.MemfdCreate("fuzz", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Ftruncate(file, 0x4000); err != nil {
		t.Fatal(err)
	}
	return file
}
