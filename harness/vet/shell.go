// SPDX-License-Identifier: BSD-3-Clause

package vet

import (
	"context"
	"io"

	"github.com/zcvet/zcvet/guest/agent"
	"github.com/zcvet/zcvet/harness/rig"
	"github.com/zcvet/zcvet/harness/verdict"
	"github.com/zcvet/zcvet/images"
)

// Shell boots the machine a run would use, with u-root's commands and further
// files in it and its console in the hands of a person.
func (v *Vetter) Shell(ctx context.Context, options Options, files []images.File, keys io.Reader, screen io.Writer) error {
	prepared, err := v.prepare(ctx, options, &verdict.Run{}, images.Options{
		Cache: v.Cache, Root: v.Root, Log: v.Log, Interactive: true,
		Files: func(context.Context) ([]images.File, error) { return files, nil },
	})
	if err != nil {
		return err
	}
	config := prepared.Machine(options)
	config.ConsoleRaw = screen
	// A word the kernel does not know becomes an argument of init. It cannot
	// come behind "--": QEMU appends the virtio-mmio devices there.
	config.Parameters = append(config.Parameters, agent.ShellMode)
	return (&rig.Booter{Machine: config}).Interact(ctx, keys)
}
