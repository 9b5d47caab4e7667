// SPDX-License-Identifier: BSD-3-Clause

package network

import (
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// threadNamespace names the calling thread's namespace; /proc/self/ns would be
// the main thread's.
const threadNamespace = "/proc/thread-self/ns/net"

// Namespace is an open network namespace. It lives as long as its descriptor
// or anything in it does; nothing is mounted for it.
type Namespace struct {
	fd int
}

// FromFD wraps an inherited descriptor of a namespace.
func FromFD(fd int) *Namespace { return &Namespace{fd: fd} }

// FD returns the descriptor, for handing it to a child.
func (n *Namespace) FD() int { return n.fd }

// Close gives the descriptor up.
func (n *Namespace) Close() error { return unix.Close(n.fd) }

// Current opens the calling thread's namespace.
func Current() (*Namespace, error) {
	fd, err := unix.Open(threadNamespace, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open the network namespace of this thread: %w", err)
	}
	return &Namespace{fd: fd}, nil
}

// NewNamespace makes an empty namespace. The caller's thread stays where it is.
func NewNamespace() (*Namespace, error) {
	var namespace *Namespace
	err := andBack(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make a network namespace: %w", err)
		}
		var err error
		namespace, err = Current()
		return err
	})
	return namespace, err
}

// Do runs f on the calling goroutine inside the namespace. Sockets that f opens
// belong to the namespace for their whole life, wherever they are used
// afterwards; goroutines that f starts are outside.
func (n *Namespace) Do(f func() error) error {
	return andBack(func() error {
		if err := unix.Setns(n.fd, unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter a network namespace: %w", err)
		}
		return f()
	})
}

// andBack runs f, which may change the thread's namespace, and goes back to the
// namespace it came from. If that fails the goroutine stays locked to its
// thread, so that the runtime throws the thread away with it and no later
// goroutine finds itself in a namespace it did not choose.
func andBack(f func() error) (err error) {
	runtime.LockOSThread()
	home, err := Current()
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer func() {
		back := unix.Setns(home.fd, unix.CLONE_NEWNET)
		_ = home.Close()
		if back == nil {
			runtime.UnlockOSThread()
		} else if err == nil {
			err = fmt.Errorf("return to the network namespace: %w", back)
		}
	}()
	return f()
}
