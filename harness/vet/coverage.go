// SPDX-License-Identifier: BSD-3-Clause

package vet

import (
	"context"

	"github.com/zcvet/zcvet/harness/coverage"
	"github.com/zcvet/zcvet/harness/report"
	"github.com/zcvet/zcvet/harness/suite"
	"github.com/zcvet/zcvet/harness/tree"
	"github.com/zcvet/zcvet/harness/verdict"
	"github.com/zcvet/zcvet/kconfig"
)

// instrumented is the tree to build: with a configuration that measures coverage
// the one that counts in the files of the series.
func instrumented(patched *tree.Tree, config *kconfig.Set) (*tree.Tree, error) {
	if !config.Needs().Coverage {
		return patched, nil
	}
	return coverage.Instrument(patched)
}

// coverage reads the counters of executed lines, on a kernel that has them.
func (v *Vetter) coverage(ctx context.Context, prepared *Prepared, outcome *suite.Result, run *verdict.Run) error {
	if !prepared.needs.Coverage || prepared.Tree == nil {
		return nil
	}
	step := v.UI.Step("coverage")
	measured, err := coverage.Measure(ctx, prepared.Tree, prepared.Kernel.Notes, outcome.Counters)
	if err != nil {
		step.Fail(err)
		return err
	}
	measured.Missing = append(measured.Missing, outcome.Missing...)
	run.Coverage = measured
	step.Done("%s", report.CoverageLine(measured))
	return nil
}
