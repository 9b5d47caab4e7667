// SPDX-License-Identifier: BSD-3-Clause

package memory_test

import (
	"errors"
	"math"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/zcvet/zcvet/harness/vnet/memory"
)

// twoRegions are adjacent in the guest and apart in the front end.
func twoRegions(t testing.TB) *memory.Map {
	t.Helper()
	m, err := memory.FromBytes(
		[]memory.Region{{Guest: 0x3000, User: 0x10_0000}, {Guest: 0x1000, User: 0x20_0000}},
		[][]byte{make([]byte, 0x1000), make([]byte, 0x2000)},
	)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestGuestAddresses(t *testing.T) {
	m := twoRegions(t)
	for _, test := range []struct {
		name            string
		address, length uint64
		whole           bool
		pieces          []int // lengths; nil if the range is outside
	}{
		{"start", 0x1000, 1, true, []int{1}},
		{"a whole region", 0x1000, 0x2000, true, []int{0x2000}},
		{"last byte", 0x3fff, 1, true, []int{1}},
		{"over the border", 0x2ff0, 0x20, false, []int{0x10, 0x10}},
		{"everything", 0x1000, 0x3000, false, []int{0x2000, 0x1000}},
		{"before", 0xfff, 1, false, nil},
		{"into", 0xfff, 2, false, nil},
		{"behind", 0x4000, 1, false, nil},
		{"over the end", 0x3fff, 2, false, nil},
		{"over everything", 0, math.MaxUint64, false, nil},
		{"wraps", 0x3fff, math.MaxUint64, false, nil},
		{"end of the address space", math.MaxUint64, 1, false, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			bytes, err := m.Guest(test.address, test.length)
			if (err == nil) != test.whole || test.whole && uint64(len(bytes)) != test.length {
				t.Errorf("Guest: %d bytes, %v", len(bytes), err)
			}
			if err != nil && !errors.Is(err, memory.ErrOutside) {
				t.Errorf("Guest: %v", err)
			}
			pieces, err := m.AppendGuest(nil, test.address, test.length)
			if test.pieces == nil {
				if !errors.Is(err, memory.ErrOutside) {
					t.Errorf("AppendGuest: %v", err)
				}
				return
			}
			var lengths []int
			for _, piece := range pieces {
				lengths = append(lengths, len(piece))
			}
			if diff := cmp.Diff(test.pieces, lengths); diff != "" || err != nil {
				t.Errorf("AppendGuest: %v %s", err, diff)
			}
		})
	}
}

func TestUserAddresses(t *testing.T) {
	m := twoRegions(t)
	bytes, guest, err := m.User(0x20_0010, 0x10)
	if err != nil || len(bytes) != 0x10 || guest != 0x1010 {
		t.Errorf("%d bytes at %#x, %v", len(bytes), guest, err)
	}
	for _, test := range []struct{ address, length uint64 }{
		{0x1000, 1}, {0x10_0fff, 2}, {0x20_0000, math.MaxUint64}, {math.MaxUint64, 2},
	} {
		if _, _, err := m.User(test.address, test.length); !errors.Is(err, memory.ErrOutside) {
			t.Errorf("%#x with length %#x: %v", test.address, test.length, err)
		}
	}
}

func TestEmptyRangeIsAnywhere(t *testing.T) {
	if pieces, err := twoRegions(t).AppendGuest(nil, 0, 0); err != nil || len(pieces) != 0 {
		t.Errorf("%v, %v", pieces, err)
	}
}

func mapFile(t *testing.T, size int64) (*memory.Map, int) {
	t.Helper()
	file, err := unix.MemfdCreate("memory", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(file) })
	if err := unix.Ftruncate(file, size); err != nil {
		t.Fatal(err)
	}
	m, err := memory.New([]memory.Region{{Guest: 0, Size: uint64(size), User: 1 << 40}}, []int{file})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Close() })
	return m, file
}

func TestGuardReportsVanishedMemory(t *testing.T) {
	m, file := mapFile(t, 8192)
	other, _ := mapFile(t, 4096)
	bytes, err := m.Guest(4096, 4096)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Ftruncate(file, 4096); err != nil {
		t.Fatal(err)
	}
	maps := func() []*memory.Map { return []*memory.Map{nil, other, m} }
	unlocked := false
	err = memory.Guard(maps, func() error {
		defer func() { unlocked = true }()
		copy(make([]byte, 4096), bytes)
		return errors.New("not reached")
	})
	gone, ok := errors.AsType[*memory.GoneError](err)
	if !ok || gone.Map != m || !unlocked {
		t.Errorf("%v, deferred function ran: %v", err, unlocked)
	}
}

func TestGuardLetsOtherPanicsGo(t *testing.T) {
	m, _ := mapFile(t, 4096)
	for name, f := range map[string]func(){
		"panic":       func() { panic("a bug") },
		"nil pointer": func() { _ = *(*int)(nil) },
		"index":       func() { _ = []int{}[len(name())] },
	} {
		t.Run(name, func(t *testing.T) {
			defer func() {
				if recover() == nil {
					t.Error("the panic is lost")
				}
			}()
			_ = memory.Guard(func() []*memory.Map { return []*memory.Map{m} }, func() error { f(); return nil })
		})
	}
}

func name() string { return "1" }

func TestGuardPassesErrors(t *testing.T) {
	want := errors.New("mine")
	if err := memory.Guard(nil, func() error { return want }); err != want {
		t.Errorf("%v", err)
	}
}

func TestDirtyLogMarksPages(t *testing.T) {
	m, _ := mapFile(t, 4096)
	file, err := unix.MemfdCreate("log", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(file)
	if err := unix.Ftruncate(file, 8); err != nil {
		t.Fatal(err)
	}
	log, err := memory.NewDirtyLog(file, 8, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	m.MarkDirty(0, 1) // no log yet
	m.SetDirtyLog(log)
	m.MarkDirty(4095, 2)
	m.MarkDirty(33*4096, 4096)
	m.MarkDirty(40*4096, 0)
	m.MarkDirty(63*4096, 10*4096)      // partly behind the end
	m.MarkDirty(math.MaxUint64-1, 100) // wraps
	got := make([]byte, 8)
	if _, err := unix.Pread(file, got, 0); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]byte{0x03, 0, 0, 0, 0x02, 0, 0, 0x80}, got); diff != "" {
		t.Error(diff)
	}
}
