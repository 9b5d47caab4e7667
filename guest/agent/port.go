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

// descriptor reads and writes a blocking descriptor by plain system calls. Go's
// poller loses wake-ups on a file that several processes have, as a worker's end
// of its connection is had by PID 1 until the worker has started.
type descriptor int

// Read reads at least one byte. It returns io.EOF at the end of the stream.
func (d descriptor) Read(buffer []byte) (int, error) {
	for {
		count, err := unix.Read(int(d), buffer)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return 0, err
		case count == 0 && len(buffer) > 0:
			return 0, io.EOF
		default:
			return count, nil
		}
	}
}

// Write writes all of data: a port takes at most 32 KiB per call.
func (d descriptor) Write(data []byte) (int, error) {
	written := 0
	for written < len(data) {
		count, err := unix.Write(int(d), data[written:])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return written, err
		}
		written += count
	}
	return written, nil
}

// port is the virtio-serial port of the guest link. Between the boot and the
// host's connection, and while a restored machine waits for its new host, a read
// finds no peer and returns at once; that is no end of the stream.
//
// It is read through Go's poller: for a read that blocks, the runtime wakes a
// thread of its own several times, and each time the worker's translations are
// thrown away. It is opened with close-on-exec, as a port that several processes
// have loses wake-ups.
type port struct{ io.ReadWriter }

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

// openPort opens the port with a name, once it is there.
func openPort(class, name string, patience time.Duration) (port, error) {
	deadline := time.Now().Add(patience)
	for {
		device, seen := findPort(class, name)
		if device != "" {
			fd, err := unix.Open(filepath.Join("/dev", device), unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
			if err != nil {
				return port{}, fmt.Errorf("open guest link port %s: %w", device, err)
			}
			return port{os.NewFile(uintptr(fd), name)}, nil
		}
		if time.Now().After(deadline) {
			return port{}, fmt.Errorf("no virtio-serial port is called %q after %v; there are %q", name, patience, seen)
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
