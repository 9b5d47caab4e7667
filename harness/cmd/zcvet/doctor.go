// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"os"

	"github.com/spf13/cobra"

	"github.com/zcvet/zcvet/harness/doctor"
	"github.com/zcvet/zcvet/harness/fault"
)

func (a *app) doctorCommand() *cobra.Command {
	var asJSON bool
	var sets []string
	command := &cobra.Command{
		Use:   "doctor",
		Short: "Say what this machine lacks, and what to do about it",
		Args:  noArguments,
		RunE: func(command *cobra.Command, _ []string) error {
			dir, err := a.openCache()
			if err != nil {
				return err
			}
			options := doctor.Options{CacheDir: dir.Root()}
			for _, set := range sets {
				switch set := doctor.Set(set); set {
				case doctor.Run, doctor.Test, doctor.Lint, doctor.Optional:
					options.Sets = append(options.Sets, set)
				default:
					return fault.New(fault.Usage, "no set of tools is called %q", set).
						WithAdvice("the sets are run, test, lint and optional")
				}
			}
			checks := doctor.Examine(command.Context(), options)
			write := doctor.WriteTable
			if asJSON {
				write = doctor.WriteJSON
			}
			if err := write(os.Stdout, checks); err != nil {
				return fault.New(fault.Infrastructure, "doctor: %w", err)
			}
			return doctor.Err(checks)
		},
	}
	command.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	command.Flags().StringSliceVar(&sets, "for", nil, "what the machine shall be fit for: run, test, lint, optional (default run,optional)")
	return command
}
