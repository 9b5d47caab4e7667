// SPDX-License-Identifier: BSD-3-Clause

package agent

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// portClassWith makes a directory like /sys/class/virtio-ports.
func portClassWith(t *testing.T, names map[string]string) string {
	t.Helper()
	class := t.TempDir()
	for device, name := range names {
		if err := os.Mkdir(filepath.Join(class, device), 0o755); err != nil {
			t.Fatal(err)
		}
		if name == "" {
			continue
		}
		if err := os.WriteFile(filepath.Join(class, device, "name"), []byte(name+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return class
}

func TestFindPort(t *testing.T) {
	class := portClassWith(t, map[string]string{"vport0p0": "", "vport0p1": "other", "vport0p2": "zcvet.link"})
	if device, _ := findPort(class, "zcvet.link"); device != "vport0p2" {
		t.Errorf("found %q", device)
	}
	device, seen := findPort(class, "missing")
	if device != "" || strings.Join(seen, " ") != "other zcvet.link" {
		t.Errorf("found %q, saw %q", device, seen)
	}
}

func TestMissingPortIsNamed(t *testing.T) {
	class := portClassWith(t, map[string]string{"vport0p1": "other"})
	_, err := openPort(class, "zcvet.link", 0)
	if err == nil || !strings.Contains(err.Error(), `"zcvet.link"`) || !strings.Contains(err.Error(), `"other"`) {
		t.Errorf("error %v does not say what was looked for and what is there", err)
	}
}

func TestPortWithoutHostIsNoEndOfStream(t *testing.T) {
	// A file behaves like the port: at its end a read returns nothing.
	file, err := os.CreateTemp(t.TempDir(), "port")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	reader, err := unix.Open(file.Name(), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan string, 1)
	go func() {
		buffer := make([]byte, 16)
		count, err := newPort(reader).Read(buffer)
		if err != nil {
			got <- err.Error()
			return
		}
		got <- string(buffer[:count])
	}()
	if _, err := file.WriteString("hello"); err != nil {
		t.Fatal(err)
	}
	if read := <-got; read != "hello" {
		t.Errorf("read %q", read)
	}
}
