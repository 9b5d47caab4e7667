// SPDX-License-Identifier: BSD-3-Clause

package debugfs

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/zcvet/zcvet/guest/link"
)

func write(t *testing.T, name, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestCounters(t *testing.T) {
	root := t.TempDir()
	if err := ResetCounters(root); err != nil {
		t.Errorf("a kernel without counters: %v", err)
	}
	if got := CountersOf(root); got.Error == "" || len(got.Files) > 0 {
		t.Errorf("a kernel without counters gave %+v", got)
	}
	gcov := filepath.Join(root, "gcov")
	sock := filepath.Join(gcov, "build/linux/build/net/core/sock")
	write(t, filepath.Join(gcov, "reset"), "")
	write(t, sock+".gcda", "counters")
	if err := os.Symlink("/nowhere/sock.gcno", sock+".gcno"); err != nil {
		t.Fatal(err)
	}
	if err := ResetCounters(root); err != nil {
		t.Error(err)
	}
	if written, _ := os.ReadFile(filepath.Join(gcov, "reset")); len(written) == 0 {
		t.Error("nothing was written to reset")
	}
	want := link.Counters{Files: []link.CountersFile{{Path: sock + ".gcda", Data: []byte("counters")}}}
	if diff := cmp.Diff(want, CountersOf(root)); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	// More than a message takes must not break the link.
	write(t, filepath.Join(gcov, "build/z.gcda"), strings.Repeat("x", maxCounters))
	got := CountersOf(root)
	if len(got.Files) != 1 || !strings.Contains(got.Error, "z.gcda") {
		t.Errorf("%d files, error %q", len(got.Files), got.Error)
	}
	if err := link.NewConn(new(bytes.Buffer)).Send(link.KindCounters, got); err != nil {
		t.Errorf("the answer does not go over the link: %v", err)
	}
}

// The form of 6.1, with the age, and that of 6.12.
const leaks = `unreferenced object 0xffff888004a91b00 (size 232):
  comm "agent", pid 95, jiffies 4294938000 (age 7.120s)
  hex dump (first 32 bytes):
    00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00  ................
  backtrace:
    [<ffffffff8173c000>] __alloc_skb+0x122/0x190
    [<ffffffff81736100>] sock_omalloc+0x52/0x90
unreferenced object 0xffff888004a91c00 (size 16):
  comm "a, jiffies 3", pid 96, jiffies 4294938300
  backtrace (crc 0):
    sock_kmalloc+0x3c/0x60
`

// fakeDetector finds what its report says after the second scan.
type fakeDetector struct {
	now   time.Duration
	ticks uint64
	scans int
	slept time.Duration
	text  string
}

func (f *fakeDetector) scan() error { f.scans++; return nil }

func (f *fakeDetector) report() (io.ReadCloser, error) {
	text := ""
	if f.scans == 2 && f.slept >= 5*time.Second {
		text = f.text
	}
	return io.NopCloser(strings.NewReader(text)), nil
}

func (f *fakeDetector) clock() (reading, error) { return reading{f.ticks, f.now}, nil }

func (f *fakeDetector) sleep(pause time.Duration) {
	f.slept += pause
	f.now += pause
	f.ticks += uint64(pause / (10 * time.Millisecond)) // 100 Hz
}

func TestFindLeaks(t *testing.T) {
	const now = time.Minute
	// When the second scan comes, minimumAge later, the first object is 4 s old, the
	// second 1 s, and the third 11 s; a tick is 10 ms.
	early := "unreferenced object 0x1 (size 8):\n  comm \"swapper/0\", pid 1, jiffies 4294937300\n"
	got := findLeaks(&fakeDetector{now: now, ticks: 4294938400 - uint64(minimumAge/(10*time.Millisecond)), text: leaks + early})
	objects := strings.SplitAfter(leaks, "190\n    [<ffffffff81736100>] sock_omalloc+0x52/0x90\n")
	const tick, second = 10 * time.Millisecond, now + minimumAge
	want := link.Leaks{Total: 3, Leaks: []link.Leak{
		{Allocated: second - 4*time.Second + tick, Text: objects[0]},
		{Allocated: second - time.Second + tick, Text: objects[1]},
		{Allocated: second - 11*time.Second + tick, Text: early},
	}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestFindLeaksIsBounded(t *testing.T) {
	one := "unreferenced object 0x1 (size 8):\n  comm \"x\", pid 1, jiffies 4294938300\n" + strings.Repeat("    f+0x1/0x2\n", 10000)
	got := findLeaks(&fakeDetector{ticks: 4294938400, text: strings.Repeat(one, 3*maxLeaks)})
	if got.Total != 3*maxLeaks || len(got.Leaks) != maxLeaks || len(got.Leaks[0].Text) > maxLeakText {
		t.Errorf("%d of %d leaks, the first of %d bytes", len(got.Leaks), got.Total, len(got.Leaks[0].Text))
	}
	if err := link.NewConn(new(bytes.Buffer)).Send(link.KindLeaks, got); err != nil {
		t.Errorf("the answer does not go over the link: %v", err)
	}
}

func TestFrequency(t *testing.T) {
	const start = time.Minute
	for _, hz := range frequencies {
		// Read up to a tick late, and a busy host.
		later := reading{uint64(hz*5) + 1, start + 5*time.Second + 20*time.Millisecond}
		if got := frequency(reading{0, start}, later); got != hz {
			t.Errorf("%v ticks a second were taken for %v", hz, got)
		}
	}
}

func TestNoDetector(t *testing.T) {
	if got := FindLeaks(t.TempDir()); got.Error == "" {
		t.Error("a kernel without kmemleak has no leaks")
	}
}

func FuzzParseObjects(f *testing.F) {
	f.Add(leaks)
	f.Add("  comm x, jiffies 99999999999999999999999\n")
	f.Fuzz(func(t *testing.T, report string) {
		objects, err := parseObjects(strings.NewReader(report))
		if err != nil {
			return
		}
		for _, object := range objects {
			if !strings.HasPrefix(object.text, "unreferenced object ") || len(object.text) > maxLeakText {
				t.Errorf("%.100q", object.text)
			}
		}
	})
}
