// SPDX-License-Identifier: BSD-3-Clause

package agent

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// port is a virtio-serial port of the guest link. Between the boot and the
// host's connection, and while a restored machine waits for its new host, a read
// finds no peer and returns at once; that is no end of the stream.
//
// It is read through Go's poller: for a read that blocks, the runtime wakes a
// thread of its own several times, and each time translations are thrown away. The
// poller of one process only may have it, or wake-ups are lost.
type port struct{ io.ReadWriter }

// newPort returns the port with a descriptor that does not block.
func newPort(fd int) port { return port{os.NewFile(uintptr(fd), "port")} }

// reconnectPause is how long a port without a host rests between two reads.
const reconnectPause = 2 * time.Millisecond

func (p port) Read(buffer []byte) (int, error) {
	for {
		count, err := p.ReadWriter.Read(buffer)
		if !errors.Is(err, io.EOF) {
			return count, err
		}
		time.Sleep(reconnectPause)
	}
}

const (
	portClass = "/sys/class/virtio-ports"
	// portPatience bounds the wait for the port: the host names it in a
	// control message that may arrive after PID 1 has started.
	portPatience = 5 * time.Second
)

// openPort opens the port with a name, once it is there, so that it does not block.
func openPort(class, name string, patience time.Duration) (fd int, err error) {
	deadline := time.Now().Add(patience)
	for {
		device, seen := findPort(class, name)
		if device != "" {
			fd, err := unix.Open(filepath.Join("/dev", device), unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
			if err != nil {
				return 0, fmt.Errorf("open guest link port %s: %w", device, err)
			}
			return fd, nil
		}
		if time.Now().After(deadline) {
			return 0, fmt.Errorf("no virtio-serial port is called %q after %v; there are %q", name, patience, seen)
		}
		time.Sleep(time.Millisecond)
	}
}

// findPort returns the device with a name, empty if there is none, and all the
// names it saw.
func findPort(class, name string) (device string, seen []string) {
	entries, err := os.ReadDir(class)
	if err != nil {
		return "", nil
	}
	for _, entry := range entries {
		text, err := os.ReadFile(filepath.Join(class, entry.Name(), "name"))
		if err != nil {
			continue // a port without a name
		}
		found := strings.TrimSpace(string(text))
		if found == name {
			return entry.Name(), nil
		}
		seen = append(seen, found)
	}
	return "", seen
}
