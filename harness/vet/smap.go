// SPDX-License-Identifier: BSD-3-Clause

package vet

import (
	"context"
	"slices"

	"github.com/zcvet/zcvet/guest/link"
	"github.com/zcvet/zcvet/harness/report"
	"github.com/zcvet/zcvet/harness/suite"
	"github.com/zcvet/zcvet/harness/verdict"
)

// touchedUser lists the cases that crashed because the kernel touched user memory
// without the helpers for it.
func touchedUser(outcome *suite.Result) []string {
	var ids []string
	for _, found := range outcome.Splats {
		if !found.UserAccess || slices.Contains(ids, found.Case) {
			continue
		}
		if slices.ContainsFunc(outcome.Cases, func(c verdict.Case) bool {
			return c.ID == found.Case && c.Status == verdict.Crash
		}) {
			ids = append(ids, found.Case)
		}
	}
	return ids
}

// withoutSMAP runs the cases again that crashed on touching user memory, on a
// processor that lets it pass, so that what else the series does in them is seen.
// The crash stays what it is; the error is about the run alone.
func (a *Attempt) withoutSMAP(ctx context.Context, prepared *Prepared, first *suite.Result) error {
	ids := touchedUser(first)
	if len(ids) == 0 || a.options.SMAPOff {
		return nil
	}
	step := a.vetter.UI.Step(verdict.SMAPOff)
	options := a.options
	options.SMAPOff = true
	wanted := func(instance link.Instance) bool { return slices.Contains(ids, instance.ID) }
	second, err := suite.Run(ctx, a.suite(prepared, a.booter(prepared, options), wanted, step))
	for _, c := range second.Cases {
		i := slices.IndexFunc(a.Run.Cases, func(of verdict.Case) bool { return of.ID == c.ID })
		if i < 0 || c.Status == "" {
			continue
		}
		a.Run.Cases[i].Second = &verdict.Second{Leg: verdict.SMAPOff, Status: c.Status, MS: c.MS, Detail: c.Detail}
	}
	splats := prepared.decode(second.Splats)
	for i := range splats {
		splats[i].Leg = verdict.SMAPOff
	}
	a.Run.Splats = append(a.Run.Splats, splats...)
	first.Counters = append(first.Counters, second.Counters...)
	first.Missing = append(first.Missing, second.Missing...)
	a.Run.Machine.Missing = first.Missing
	if err != nil {
		step.Fail(err)
		return err
	}
	step.Done("%s", report.Second(a.Run))
	return nil
}
