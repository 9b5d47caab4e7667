// SPDX-License-Identifier: BSD-3-Clause

package leak

import (
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/zcvet/zcvet/guest/network"
	"github.com/zcvet/zcvet/guest/notify"
)

func TestSinceNamesWhatIsMore(t *testing.T) {
	before := Count{Sockets: map[string]int{"sender": 3, "receiver": 5}, Pinned: 10, Unpinned: 8}
	for _, test := range []struct {
		name string
		now  Count
		want []string // the beginning of each line
	}{
		{"nothing", before, nil},
		{"fewer sockets", Count{Sockets: map[string]int{"sender": 2, "receiver": 5}, Pinned: 10, Unpinned: 8}, nil},
		{
			"a socket",
			Count{
				Sockets: map[string]int{"sender": 4, "receiver": 5}, Details: map[string]string{"sender": "sockets: used 4, TCP: inuse 1"},
				Pinned: 10, Unpinned: 8,
			},
			[]string{"4 sockets are in use in the sender's namespace, 3 were before (sockets: used 4, TCP: inuse 1)"},
		},
		{"pins given back", Count{Sockets: before.Sockets, Pinned: 17, Unpinned: 15}, nil},
		{"pins of before given back", Count{Sockets: before.Sockets, Pinned: 17, Unpinned: 17}, nil},
		{"a pin", Count{Sockets: before.Sockets, Pinned: 17, Unpinned: 14}, []string{"7 pages were pinned, 6 of them unpinned"}},
		{
			"everything",
			Count{Sockets: map[string]int{"sender": 4, "receiver": 6}, Pinned: 11, Unpinned: 8},
			[]string{"4 sockets", "6 sockets", "1 pages were pinned, 0 of them"},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := test.now.Since(before)
			slices.Sort(got)
			slices.Sort(test.want)
			if len(got) != len(test.want) {
				t.Fatalf("got %q, want %q", got, test.want)
			}
			for i := range got {
				if !strings.HasPrefix(got[i], test.want[i]) {
					t.Errorf("got %q, want %q", got[i], test.want[i])
				}
			}
		})
	}
}

func TestField(t *testing.T) {
	const text = "sockets: used 21\nTCP: inuse 5 orphan 0\nodd x\n"
	if value, err := field(text, "sockets: used "); err != nil || value != 21 {
		t.Errorf("%d, %v", value, err)
	}
	for _, label := range []string{"TCP: ", "odd ", "no such "} {
		if value, err := field(text, label); err == nil {
			t.Errorf("%q gave %d", label, value)
		}
	}
}

// TestSocketIsCountedUntilItsLastReference works on the kernel of this machine.
func TestSocketIsCountedUntilItsLastReference(t *testing.T) {
	here, err := network.Current()
	if err != nil {
		t.Skip(err)
	}
	defer func() { _ = here.Close() }()
	own, err := network.NewNamespace() // where nobody else opens sockets
	if err != nil {
		t.Skipf("no network namespaces here: %v", err)
	}
	defer func() { _ = own.Close() }()
	counters := Open(map[string]*network.Namespace{"own": own})
	defer counters.Close()
	if err := counters.Missing(Sockets); err != nil {
		t.Skipf("this kernel does not count sockets: %v", err)
	}
	take := func() Count {
		t.Helper()
		count, err := counters.Take(true)
		if err != nil {
			t.Fatal(err)
		}
		return count
	}
	before := take()
	var fd int
	if err := own.Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if more := take().Since(before); len(more) != 1 || !strings.Contains(more[0], "own's namespace") {
		t.Errorf("with a socket: %q", more)
	}
	if err := unix.Close(fd); err != nil {
		t.Fatal(err)
	}
	if more := take().Since(before); more != nil {
		t.Errorf("with the socket closed: %q", more)
	}
}

// TestHeldPage works on the kernel of this machine: a pipe holds a page that
// nobody maps any more.
func TestHeldPage(t *testing.T) {
	counters := Open(nil)
	defer counters.Close()
	if err := counters.Missing(Pages); err != nil {
		t.Skipf("pages cannot be looked at here: %v", err)
	}
	memory, err := notify.Pages(2)
	if err != nil {
		t.Fatal(err)
	}
	frames, err := counters.Frames(memory)
	if err != nil {
		t.Skipf("no physical addresses here: %v", err)
	}
	held := func() []uint64 {
		t.Helper()
		if err := FlushBatches(); err != nil {
			t.Fatal(err)
		}
		held, err := counters.Held(frames)
		if err != nil {
			t.Fatal(err)
		}
		return held
	}
	if got := held(); got != nil {
		t.Errorf("mapped pages are held by others: %#x", got)
	}
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	vector := []unix.Iovec{{Base: &memory.Bytes()[0], Len: 100}}
	if _, err := unix.Vmsplice(pipe[1], vector, 0); err != nil {
		t.Fatal(err)
	}
	if err := memory.Close(); err != nil {
		t.Fatal(err)
	}
	if got := held(); !slices.Contains(got, frames[0]) {
		t.Errorf("the page in the pipe is at %#x, held are %#x", frames[0], got)
	}
	_ = unix.Close(pipe[0])
	_ = unix.Close(pipe[1])
	// On a busy machine they may be in other hands by now, and for a moment look
	// the same there.
	deadline := time.Now().Add(10 * time.Second)
	for got := held(); got != nil; got = held() {
		if time.Now().After(deadline) {
			t.Fatalf("held after the pipe is closed: %#x", got)
		}
		time.Sleep(time.Millisecond)
	}
}
