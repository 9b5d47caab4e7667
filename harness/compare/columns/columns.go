// SPDX-License-Identifier: BSD-3-Clause

package columns

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"time"

	"github.com/zcvet/zcvet/harness/compare"
	"github.com/zcvet/zcvet/harness/cost"
	"github.com/zcvet/zcvet/harness/fault"
	"github.com/zcvet/zcvet/harness/machine"
	"github.com/zcvet/zcvet/harness/report"
	"github.com/zcvet/zcvet/harness/report/page"
	"github.com/zcvet/zcvet/harness/results"
	"github.com/zcvet/zcvet/harness/verdict"
	"github.com/zcvet/zcvet/harness/vet"
)

// Attempt is one run in pieces; *vet.Attempt is one.
type Attempt interface {
	Prepare(ctx context.Context) (*vet.Prepared, error)
	Use(prepared *vet.Prepared)
	Cases(ctx context.Context, prepared *vet.Prepared) error
	Adopt(run *verdict.Run)
	Go(ctx context.Context) (*verdict.Run, error)
	End(ctx context.Context, err error) (*verdict.Run, error)
	Path() string
}

// Listener is told how far a comparison is.
type Listener interface {
	Section(format string, args ...any)
	Note(format string, args ...any)
	Error(err error)
}

// Comparer makes comparisons.
type Comparer struct {
	// Begin starts a run; (*vet.Vetter).Begin does.
	Begin func(options vet.Options, command string) (Attempt, error)
	UI    Listener
	// Decide, if not nil, gives the verdict by another rule than Join's.
	Decide func(*compare.Comparison)
	// Cost has every kernel run the cases that measure as well.
	Cost bool
}

// Compare runs the cases on every column and compares neighbours. Options are
// those of all runs; series and revision come from the columns. The results of all
// runs and compare.json are in the group's directory.
//
// A column that does not apply, build or boot is a result. The error is not nil
// only when the comparison could not be finished or stored.
func (c *Comparer) Compare(ctx context.Context, columns []Column, options vet.Options, group *results.Group, command string) (*compare.Comparison, error) {
	started := time.Now()
	options.Verbose = false
	w := &work{Comparer: c, options: options, group: group, command: command}
	defer w.close()
	for i, column := range columns {
		c.UI.Section("%d/%d  %s", i+1, len(columns), column.Name)
		if err := w.run(ctx, column); err != nil {
			return nil, err
		}
	}
	if err := w.repeat(ctx); err != nil {
		return nil, err
	}
	if err := w.measure(ctx); err != nil {
		return nil, err
	}
	comparison := &compare.Comparison{
		Command: command, Started: started.UTC().Format(time.RFC3339), Kernel: options.Kernel,
		Suite: options.Suite, Seed: options.Seed,
	}
	var outcomes []compare.Outcome
	for _, column := range w.columns {
		comparison.Columns = append(comparison.Columns, column.about)
		outcomes = append(outcomes, compare.Outcome{Run: column.run, Again: column.runner().again, Cost: column.runner().cost})
	}
	comparison.Join(outcomes, options.Policy.Strict)
	if c.Decide != nil {
		c.Decide(comparison)
	}
	comparison.Seconds = time.Since(started).Seconds()
	return comparison, Store(comparison, group)
}

// Store writes a comparison in all its forms.
func Store(comparison *compare.Comparison, group *results.Group) error {
	if err := group.Write("compare.md", func(w io.Writer) error { return report.WriteComparison(w, comparison) }); err != nil {
		return err
	}
	if err := group.Write("report.html", func(w io.Writer) error { return page.WriteComparison(w, comparison) }); err != nil {
		return err
	}
	return group.Write(compare.File, comparison.Write)
}

// work is one comparison under way.
type work struct {
	*Comparer
	options vet.Options
	group   *results.Group
	command string
	columns []*column
}

// column is a column and what came of it.
type column struct {
	about    compare.Column
	options  vet.Options
	prepared *vet.Prepared // nil when it does not apply, build or start
	run      *verdict.Run
	// same is the column that ran in place of this one, nil when it ran itself.
	same  *column
	again *verdict.Run
	cost  *verdict.Run // nil when nothing was measured
	// differing are the ids of the cases to repeat.
	differing []string
}

// runner is the column whose machine the cases of c run on.
func (c *column) runner() *column {
	if c.same != nil {
		return c.same
	}
	return c
}

func (w *work) close() {
	for _, column := range w.columns {
		if column.prepared != nil {
			column.prepared.Close()
		}
	}
}

// run prepares a column and runs its cases, unless an earlier column has the same
// kernel.
func (w *work) run(ctx context.Context, wanted Column) error {
	c := &column{about: compare.Column{Name: wanted.Name}, options: w.options}
	c.options.Series, c.options.Revision, c.options.Patches = wanted.Series, wanted.Revision, wanted.Patches
	c.options.Loaded = wanted.Loaded
	c.options.Out = w.group.Run(fmt.Sprintf("%d-%s", len(w.columns)+1, wanted.Name))
	attempt, err := w.Begin(c.options, w.command)
	if err != nil {
		return err
	}
	w.columns = append(w.columns, c)
	c.about.Directory = w.group.Relative(attempt.Path())

	began := time.Now()
	c.prepared, err = attempt.Prepare(ctx)
	prepared := time.Now()
	if err == nil {
		err = w.cases(ctx, attempt, c)
	}
	c.about.RunSeconds = time.Since(prepared).Seconds()
	var failed error
	if c.run, failed = attempt.End(ctx, err); ctx.Err() != nil {
		return failed
	}
	c.describe(prepared.Sub(began))
	if failed == nil {
		return nil
	}
	w.UI.Error(failed)
	if c.run.Exit.Code == 0 || isHopeless(failed) {
		return failed
	}
	return nil
}

// isHopeless tells whether the other columns would meet the same error.
func isHopeless(err error) bool {
	class := fault.Of(err)
	return class == fault.Usage || class == fault.Infrastructure
}

// cases runs the cases on a prepared kernel.
func (w *work) cases(ctx context.Context, attempt Attempt, c *column) error {
	var err error
	if c.about.Binary, err = c.prepared.Kernel.Binary(); err != nil {
		return fault.New(fault.Infrastructure, "%w", err)
	}
	for _, earlier := range w.columns {
		if earlier == c || earlier.run == nil || earlier.same != nil || !c.runsLike(earlier) || !compare.HasResults(earlier.run) {
			continue
		}
		w.UI.Note("the same binary as %s: its results stand for both", earlier.about.Name)
		c.same = earlier
		c.about.SameAs = earlier.about.Name
		attempt.Adopt(earlier.run)
		return nil
	}
	return attempt.Cases(ctx, c.prepared)
}

// runsLike tells whether the cases would meet the same kernel and ask it the same
// questions.
func (c *column) runsLike(other *column) bool {
	return c.about.Binary == other.about.Binary && c.prepared.SpeaksLike(other.prepared)
}

// describe fills what compare.json says of the column.
func (c *column) describe(preparing time.Duration) {
	about, run := &c.about, c.run
	about.Kernel, about.Series, about.Totals, about.Exit = run.Kernel, run.Series, run.Totals, run.Exit
	about.Splats = len(run.Splats)
	about.PrepareSeconds = preparing.Seconds()
	if c.prepared != nil && !run.Kernel.Cached {
		about.CacheHits = c.prepared.Kernel.CacheHits
		about.CacheMisses = c.prepared.Kernel.CacheLookups - c.prepared.Kernel.CacheHits
	}
}

// repeat runs the cases that differ between neighbours a second time, once in each
// column that is involved.
func (w *work) repeat(ctx context.Context) error {
	var before *column
	for _, c := range w.columns {
		if !compare.HasResults(c.run) {
			continue
		}
		if before != nil {
			ids := compare.Differing(before.run, c.run)
			before.runner().differ(ids)
			c.runner().differ(ids)
		}
		before = c
	}
	for _, c := range w.columns {
		if len(c.differing) == 0 {
			continue
		}
		w.UI.Section("again  %s: %d cases that differ", c.about.Name, len(c.differing))
		options := c.options
		options.Only = c.differing
		options.Out = w.beside(c, "again")
		attempt, err := w.Begin(options, w.command)
		if err != nil {
			return err
		}
		attempt.Use(c.prepared)
		err = attempt.Cases(ctx, c.prepared)
		if c.again, err = attempt.End(ctx, err); err != nil {
			// The kernel ran before: that it does not now is no fault of the column.
			return fault.New(fault.Infrastructure, "repeat the cases of %s that differ: %w", c.about.Name, err).
				WithAdvice("the machine may be too busy: try again when it is not; what was built is kept")
		}
		c.about.Repeated, c.about.RepeatDirectory = len(c.differing), w.group.Relative(attempt.Path())
	}
	return nil
}

// measure runs the cases that measure costs, in a machine that counts instructions.
// It is another machine than that of the cases, perhaps with another accelerator, so
// it is prepared anew; everything is in the cache.
func (w *work) measure(ctx context.Context) error {
	for _, c := range w.columns {
		if !w.Cost || c.same != nil || !compare.HasResults(c.run) {
			continue
		}
		w.UI.Section("cost  %s", c.about.Name)
		options := c.options
		options.Suite, options.Accelerator, options.CountInstructions = cost.Suite, machine.TCG, true
		options.Out = w.beside(c, "cost")
		attempt, err := w.Begin(options, w.command)
		if err != nil {
			return err
		}
		if c.cost, err = attempt.Go(ctx); err != nil {
			return fault.New(fault.Infrastructure, "measure the costs of %s: %w", c.about.Name, err)
		}
		if c.cost.Exit.Code != 0 {
			w.UI.Note("not all costs of %s could be measured: %s", c.about.Name, c.cost.Exit.Error)
		}
		c.about.CostDirectory = w.group.Relative(attempt.Path())
	}
	return nil
}

// beside is the directory for another run of a column. Its own, whose name may have
// been cut, is the beginning of it.
func (w *work) beside(c *column, what string) string {
	return filepath.Join(w.group.Path, filepath.FromSlash(c.about.Directory)) + "-" + what
}

// differ notes cases to repeat.
func (c *column) differ(ids []string) {
	for _, id := range ids {
		if !slices.Contains(c.differing, id) {
			c.differing = append(c.differing, id)
		}
	}
}
