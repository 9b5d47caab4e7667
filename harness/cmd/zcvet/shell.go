// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"context"
	"errors"
	"os"
	"path"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/zcvet/zcvet/harness/fault"
	"github.com/zcvet/zcvet/harness/rig"
	"github.com/zcvet/zcvet/harness/vet"
	"github.com/zcvet/zcvet/images"
)

func (a *app) shellCommand() *cobra.Command {
	var options vet.Options
	var with []string
	command := &cobra.Command{
		Use:   "shell",
		Short: "Open a shell in the machine a run would use",
		Long: `shell builds the kernel as run does and boots it with u-root's commands and
the links of the cases. "exit" powers the machine off; Ctrl-] ends it at once. The
programs given with --with, which have to be static, lie in /with.`,
		Example: `  zcvet shell --kernel 6.12 --series patches/6.12
  zcvet shell --kernel 6.12 --series patches/6.12 --with ./reproducer`,
		Args: noArguments,
		RunE: func(command *cobra.Command, _ []string) error {
			return a.shell(command.Context(), options, with)
		},
	}
	kernelFlags(command, &options)
	command.Flags().StringArrayVar(&with, "with", nil, "a program for the machine, as /with/NAME; may be repeated")
	return command
}

func (a *app) shell(ctx context.Context, options vet.Options, with []string) error {
	programs, err := read(with)
	if err != nil {
		return err
	}
	v, err := a.vetter(os.Stdout)
	if err != nil {
		return err
	}
	keyboard := &keyboard{}
	defer keyboard.restore()
	err = v.Shell(ctx, options, programs, keyboard, os.Stdout)
	if errors.Is(err, rig.ErrEscaped) {
		return nil
	}
	return err
}

// read reads the programs that the image is to have.
func read(names []string) ([]images.File, error) {
	var programs []images.File
	for _, name := range names {
		content, err := os.ReadFile(name)
		if err != nil {
			return nil, fault.New(fault.Usage, "--with: %w", err)
		}
		place := path.Join("with", filepath.Base(name))
		if slices.ContainsFunc(programs, func(other images.File) bool { return other.Place == place }) {
			return nil, fault.New(fault.Usage, "--with: two programs are called %s", filepath.Base(name))
		}
		programs = append(programs, images.File{Place: place, Content: content, Executable: true})
	}
	return programs, nil
}

// keyboard is standard input, in raw mode from the first read on: until the
// machine boots, Ctrl-C is still for zcvet.
type keyboard struct{ before *term.State }

func (k *keyboard) Read(buffer []byte) (int, error) {
	in := int(os.Stdin.Fd())
	if k.before == nil && term.IsTerminal(in) {
		state, err := term.MakeRaw(in)
		if err != nil {
			return 0, fault.New(fault.Infrastructure, "terminal: %w", err)
		}
		k.before = state
	}
	return os.Stdin.Read(buffer)
}

func (k *keyboard) restore() {
	if k.before != nil {
		// Nothing is left to do for a terminal that cannot be restored.
		_ = term.Restore(int(os.Stdin.Fd()), k.before)
	}
}
