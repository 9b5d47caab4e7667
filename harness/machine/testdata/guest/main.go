// SPDX-License-Identifier: BSD-3-Clause

// Command guest is an init that does what tests of harness/machine need and no
// more: it says hello on the guest link, sends heartbeats, and follows the names
// it is given as instances.
package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/zcvet/zcvet/guest/link"
)

func main() {
	if os.Getpid() != 1 {
		brokenCall()
		return
	}
	if err := run(); err != nil {
		fmt.Println("guest:", err)
	}
	// Without ACPI a power-off would halt for ever; QEMU ends at a reset.
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
}

func run() error {
	for _, mount := range []struct{ kind, target string }{{"devtmpfs", "/dev"}, {"sysfs", "/sys"}, {"proc", "/proc"}} {
		if err := os.MkdirAll(mount.target, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(mount.kind, mount.target, mount.kind, 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", mount.target, err)
		}
	}
	port, err := openPort()
	if err != nil {
		return err
	}
	conn := link.NewConn(port)
	if err := conn.Send(link.KindHello, link.Hello{Version: link.Version}); err != nil {
		return err
	}
	go func() {
		for range time.Tick(20 * time.Millisecond) {
			if err := conn.Send(link.KindHeartbeat, nil); err != nil {
				return
			}
		}
	}()
	for {
		message, err := conn.Receive()
		if err != nil {
			return err
		}
		if message.Kind == link.KindShutdown {
			return nil
		}
		order, err := link.Decode[link.Run](message)
		if err != nil {
			return err
		}
		for _, name := range order.Instances {
			if err := obey(name); err != nil {
				return err
			}
		}
		if err := conn.Send(link.KindDone, link.Done{Ran: len(order.Instances)}); err != nil {
			return err
		}
	}
}

func obey(name string) error {
	switch verb, rest, _ := strings.Cut(name, " "); verb {
	case "print":
		fmt.Println(rest)
	case "break":
		// In a process of its own: the kernel does not survive the death of
		// PID 1.
		if err := exec.Command("/proc/self/exe").Start(); err != nil {
			return err
		}
	case "exit":
		os.Exit(1)
	}
	return nil
}

// brokenCall makes a system call that nobody else makes; the test has put its own
// code there.
func brokenCall() { _, _, _ = unix.Syscall(unix.SYS_GETPRIORITY, 0, 0, 0) }

func openPort() (*os.File, error) {
	for {
		names, err := filepath.Glob("/sys/class/virtio-ports/*/name")
		if err != nil {
			return nil, err
		}
		for _, name := range names {
			text, err := os.ReadFile(name)
			if err != nil || strings.TrimSpace(string(text)) != link.PortName {
				continue
			}
			device := filepath.Join("/dev", filepath.Base(filepath.Dir(name)))
			fd, err := unix.Open(device, unix.O_RDWR|unix.O_CLOEXEC, 0)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", device, err)
			}
			return os.NewFile(uintptr(fd), device), nil
		}
		time.Sleep(time.Millisecond)
	}
}
