// SPDX-License-Identifier: BSD-3-Clause

package rig

import (
	"bytes"
	"context"
	"errors"
	"io"
)

// Escape is the key that ends an interactive machine whatever its kernel does:
// Ctrl-], as in telnet.
const Escape = 0x1d

// ErrEscaped tells that the person at the keyboard ended the machine.
var ErrEscaped = errors.New("ended by Ctrl-]")

// Interact boots a machine for a person: keys goes to its console, and its
// console to Machine.ConsoleRaw. It returns when the guest powers off or dies,
// when keys brings Escape, or when ctx ends.
//
// The goroutine that reads keys cannot be interrupted and outlives the call if
// keys blocks; it touches the machine no more.
func (b *Booter) Interact(ctx context.Context, keys io.Reader) error {
	v, err := b.start(func(string) {}, power(ctx, b.Machine))
	if err != nil {
		return err
	}
	defer v.Close()
	// The agent's shell mode sends nothing, but a port nobody reads would stop
	// whoever writes to it.
	for _, port := range []io.Reader{v.Link(), v.Cases()} {
		v.watcher.Go(func() { _, _ = io.Copy(io.Discard, port) })
	}

	escaped := make(chan struct{})
	go func() {
		buffer := make([]byte, 1024)
		for {
			n, err := keys.Read(buffer)
			typed := buffer[:n]
			if i := bytes.IndexByte(typed, Escape); i >= 0 {
				close(escaped)
				return
			}
			if _, lost := v.machine.Console().Write(typed); err != nil || lost != nil {
				return
			}
		}
	}()
	select {
	case <-v.Done():
		return v.Err()
	case <-escaped:
		return ErrEscaped
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
