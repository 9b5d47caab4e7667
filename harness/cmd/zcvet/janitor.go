// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"github.com/spf13/cobra"

	"github.com/zcvet/zcvet/harness/janitor"
)

func (a *app) janitorCommand() *cobra.Command {
	return &cobra.Command{
		Use:    janitor.Command + " CACHE",
		Short:  "Wait for the command that started this one, and tidy up after it",
		Hidden: true,
		Args:   cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, arguments []string) error {
			return janitor.Wait(arguments[0])
		},
	}
}
