// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/zcvet/zcvet/harness/checkout"
	"github.com/zcvet/zcvet/harness/fault"
	"github.com/zcvet/zcvet/harness/matrix"
)

func (a *app) matrixCommand() *cobra.Command {
	var kernels, series string
	var github bool
	command := &cobra.Command{
		Use:   "matrix",
		Short: "Plan the runs of a series on several kernels",
		Long: `matrix prints one run per kernel. With "reference" as the series each kernel
gets the port of our own series that is made for it, or none.`,
		Example: `  zcvet matrix --github --kernels "6.1 6.12 7.2" --series lore:v8`,
		Args:    noArguments,
		RunE: func(*cobra.Command, []string) error {
			if !github {
				return fault.New(fault.Usage, "matrix prints only the matrix of a GitHub workflow so far").
					WithAdvice("give --github")
			}
			root, err := checkout.Find()
			if err != nil {
				return err
			}
			plan, err := matrix.Plan(strings.Fields(kernels), series, os.DirFS(filepath.Join(root, "patches")))
			if err != nil {
				return err
			}
			if err := plan.WriteGitHub(os.Stdout); err != nil {
				return fault.New(fault.Infrastructure, "matrix: %w", err)
			}
			return nil
		},
	}
	flags := command.Flags()
	flags.BoolVar(&github, "github", false, "print one line of JSON for strategy.matrix of a GitHub workflow")
	flags.StringVar(&kernels, "kernels", "", "kernels, separated by spaces (default "+strings.Join(matrix.Default, " ")+")")
	flags.StringVar(&series, "series", matrix.Reference, "series, as for run")
	return command
}
