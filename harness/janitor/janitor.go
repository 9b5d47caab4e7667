// SPDX-License-Identifier: BSD-3-Clause

// Package janitor tidies up after a command that was killed. Processes, sockets
// and guest memory go by themselves; directories on disk do not. So a second
// process waits for the end of the first, however it comes, and removes the
// temporary directories that nobody owns any more.
package janitor

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"

	"github.com/zcvet/zcvet/harness/cache"
	"github.com/zcvet/zcvet/harness/fault"
)

// Command is the hidden subcommand that calls Wait, with the cache's root as its
// argument.
const Command = "janitor"

// Start starts the janitor of this process for the cache at root. The returned
// function ends it in good order and waits for it; without that call, the end of
// this process does.
func Start(root string) (stop func(), err error) {
	executable, err := os.Executable()
	if err != nil {
		return nil, fault.New(fault.Infrastructure, "janitor: %w", err)
	}
	// Only this process holds the writing end, so its end is the end of file.
	reader, writer, err := os.Pipe()
	if err != nil {
		return nil, fault.New(fault.Infrastructure, "janitor: %w", err)
	}
	defer reader.Close()
	janitor := exec.Command(executable, Command, root)
	janitor.Args[0] = os.Args[0]
	janitor.Stdin = reader
	// A session of its own: the keyboard's signals are not for it.
	janitor.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := janitor.Start(); err != nil {
		return nil, fault.New(fault.Infrastructure, "janitor: %w", err)
	}
	return func() {
		_ = writer.Close()
		_ = janitor.Wait()
	}, nil
}

// Wait returns after the process that started this one has ended and what it left
// in the cache at root is gone.
func Wait(root string) error {
	if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
		return fmt.Errorf("janitor: %w", err)
	}
	// Opening a cache sweeps what processes that are gone have left.
	_, err := cache.Open(root)
	return err
}
