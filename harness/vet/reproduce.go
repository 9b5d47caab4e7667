// SPDX-License-Identifier: BSD-3-Clause

package vet

import (
	"slices"

	"github.com/zcvet/zcvet/guest/network"
	"github.com/zcvet/zcvet/guest/trace"
	"github.com/zcvet/zcvet/harness/report"
	"github.com/zcvet/zcvet/harness/reproducer"
	"github.com/zcvet/zcvet/harness/results"
	"github.com/zcvet/zcvet/harness/verdict"
)

// reproduction keeps the programs that show what failed in a run.
type reproduction struct {
	directory *results.Directory
	run       *verdict.Run
	traces    map[string]*trace.Record
	// command is the zcvet command that runs a case.
	command func(id string) string
	// name is where the program of a case goes, relative to the directory.
	name func(id string) string
}

// keep writes one program for each kind of failure, of the first case that one can
// be made of, loopback before the other links. It names it in the case's evidence,
// or else in each case of the kind why there is none.
func (r *reproduction) keep() error {
	evidence := make(map[string]*verdict.Evidence)
	for i := range r.run.Cases {
		if c := &r.run.Cases[i]; c.Evidence != nil {
			evidence[c.ID] = c.Evidence
		}
	}
	for _, failure := range report.Fold(r.run) {
		slices.SortStableFunc(failure.Cases, func(a, b verdict.Case) int { return loopbackFirst(&a) - loopbackFirst(&b) })
		reasons := make(map[*verdict.Evidence]string)
		for i := range failure.Cases {
			c := &failure.Cases[i]
			if evidence[c.ID] == nil {
				continue
			}
			program, err := reproducer.C(r.about(c), r.traces[c.ID])
			if err != nil {
				reasons[evidence[c.ID]] = err.Error() + "; zcvet shows it: " + r.command(c.ID)
				continue
			}
			name := r.name(c.ID)
			if err := r.directory.Keep(name, program); err != nil {
				return err
			}
			evidence[c.ID].Reproducer = name
			clear(reasons)
			break
		}
		for of, reason := range reasons {
			of.NoReproducer = reason
		}
	}
	return nil
}

func loopbackFirst(c *verdict.Case) int {
	if c.Link == string(network.Loopback) || c.Link == "" {
		return 0
	}
	return 1
}

func (r *reproduction) about(c *verdict.Case) reproducer.About {
	about := reproducer.About{
		Case: c, Kernel: r.run.Kernel.Version, Series: report.SeriesName(r.run), Command: r.command(c.ID),
		Style: trace.Style{Constant: r.run.Series.Constant, ABI: r.run.Series.ABI},
	}
	for i := range r.run.Splats {
		if splat := &r.run.Splats[i]; splat.Case == c.ID && splat.Leg == "" {
			about.Complaint = splat.Title
			break
		}
	}
	return about
}
