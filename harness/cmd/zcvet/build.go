// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/zcvet/zcvet/harness/vet"
)

func (a *app) buildCommand() *cobra.Command {
	var options vet.Options
	command := &cobra.Command{
		Use:   "build",
		Short: "Build the kernel a run would use, and print where it is",
		Long: `build prints the path of the file that QEMU boots; vmlinux with the symbols and
the configuration lie beside it. Everything else goes to standard error.`,
		Args: noArguments,
		RunE: func(command *cobra.Command, _ []string) error {
			v, err := a.vetter(os.Stderr)
			if err != nil {
				return err
			}
			built, err := v.Kernel(command.Context(), options)
			if err != nil {
				return err
			}
			defer built.Close()
			fmt.Println(built.Boot)
			return nil
		},
	}
	kernelFlags(command, &options)
	return command
}
