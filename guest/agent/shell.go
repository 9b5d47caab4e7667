// SPDX-License-Identifier: BSD-3-Clause

package agent

import (
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/zcvet/zcvet/guest/network"
)

// shells are the interactive shells an image may hold, the best first.
var shells = []string{"/bbin/gosh", "/bin/gosh", "/bin/bash", "/bin/sh"}

// Shell lays the network as for a run and then serves a person at the console.
// It returns when the shell ends.
func Shell(s system) error {
	if err := boot(s); err != nil {
		return err
	}
	laid, err := network.Setup()
	if err != nil {
		return err
	}
	for link, reason := range laid.Missing {
		fmt.Printf("link %s is missing: %s\n", link, reason)
	}
	if err := name(laid); err != nil {
		return err
	}
	shell := ""
	for _, path := range shells {
		if _, err := os.Stat(path); err == nil {
			shell = path
			break
		}
	}
	if shell == "" {
		return fmt.Errorf("no shell in this image; looked for %q", shells)
	}
	// The console is the controlling terminal of nobody yet. Interrupts are
	// for what runs in the shell.
	signal.Ignore(unix.SIGINT, unix.SIGTSTP)
	pid, err := syscall.ForkExec(shell, []string{filepath.Base(shell)}, &syscall.ProcAttr{
		Dir:   "/",
		Env:   []string{"PATH=/bbin:/bin:/sbin:/usr/bin:/usr/sbin", "HOME=/", "TERM=linux"},
		Files: []uintptr{0, 1, 2},
		Sys:   &syscall.SysProcAttr{Setsid: true, Setctty: true, Ctty: 0},
	})
	if err != nil {
		return fmt.Errorf("start %s: %w", shell, err)
	}
	for {
		ended, _, err := s.Wait()
		if err != nil {
			return fmt.Errorf("wait for the shell: %w", err)
		}
		if ended == pid {
			return nil
		}
	}
}

// name makes the namespaces known as ip-netns expects them.
func name(laid *network.Network) error {
	const directory = "/run/netns"
	if err := os.MkdirAll(directory, 0o755); err != nil {
		return err
	}
	for name, namespace := range map[string]*network.Namespace{"sender": laid.Sender, "receiver": laid.Receiver} {
		path := filepath.Join(directory, name)
		if err := os.WriteFile(path, nil, 0o444); err != nil {
			return err
		}
		if err := unix.Mount(fmt.Sprintf("/proc/self/fd/%d", namespace.FD()), path, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("name the namespace %s: %w", name, err)
		}
	}
	return nil
}
