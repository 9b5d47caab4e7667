// SPDX-License-Identifier: BSD-3-Clause

// Package gate makes the checks of a series patch by patch: those of package check,
// the scripts of the tree under test, and what compilers, sparse and a machine have
// to say about each patch on its own.
package gate

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/zcvet/zcvet/harness/cache"
	"github.com/zcvet/zcvet/harness/check"
	"github.com/zcvet/zcvet/harness/fault"
	"github.com/zcvet/zcvet/harness/results"
	"github.com/zcvet/zcvet/harness/series"
	"github.com/zcvet/zcvet/harness/source"
	"github.com/zcvet/zcvet/harness/terminal"
	"github.com/zcvet/zcvet/harness/tree"
	"github.com/zcvet/zcvet/harness/verdict"
	"github.com/zcvet/zcvet/kconfig"
)

// recipe is the version of how checks are made, part of the name under which their
// results are kept. Raise it when a check comes to another result.
const recipe = "2"

// Gate is what the checks share.
type Gate struct {
	Cache *cache.Dir
	UI    *terminal.UI
	// Log receives what the tools print; nil drops it.
	Log  io.Writer
	Jobs int
	// Config is the configuration of the kernel that boots.
	Config *kconfig.Set
	// Wanted selects checks by name; nil means all.
	Wanted func(name string) bool
	// Boot boots the kernel with the first so many patches and returns the run.
	// It is called for kernels that were built.
	Boot func(ctx context.Context, patches int) (*verdict.Run, error)
}

// Check makes the checks. The report is complete as far as it goes even if the
// error is not nil, which then is the machine's fault; what is wrong with the
// series is in the report alone.
func (g *Gate) Check(ctx context.Context, from *source.Kernel, s *series.Series, group *results.Group, command string) (*check.Report, error) {
	if len(s.Patches) == 0 {
		return nil, fault.New(fault.Usage, "there is no patch to check").WithAdvice("name a series in --series")
	}
	if from.Image != "" {
		return nil, fault.New(fault.Usage, "a kernel that is built already cannot be checked").WithAdvice("give the source of the kernel")
	}
	started := time.Now()
	w := &walk{
		Gate: g, from: from, series: s, group: group,
		report: &check.Report{Command: command, Started: started.UTC().Format(time.RFC3339)},
	}
	w.report.Kernel.Version, w.report.Kernel.Source = from.Version, from.Source
	w.report.Series = verdict.Series{Name: s.Name, Spec: s.Spec, Revision: s.Revision, MessageID: s.MessageID, ABI: s.ABI}
	for i := range s.Patches {
		w.report.Series.Patches = append(w.report.Series.Patches, verdict.Patch{Subject: s.Patches[i].Subject, File: s.Patches[i].File})
	}
	err := w.all(ctx)
	w.report.Seconds = time.Since(started).Seconds()
	w.report.Decide(err)
	return w.report, errors.Join(err, Store(w.report, group))
}

// walk is one Check under way.
type walk struct {
	*Gate
	from   *source.Kernel
	series *series.Series
	group  *results.Group
	report *check.Report
}

func (w *walk) all(ctx context.Context) error {
	pristine, err := w.apply(ctx, 0)
	if err != nil {
		return err
	}
	before := pristine
	for i := range w.series.Patches {
		w.UI.Section("%d/%d  %s", i+1, len(w.series.Patches), w.series.Patches[i].Subject)
		after, err := w.patch(ctx, i, before)
		if err != nil {
			return err
		}
		if after == nil {
			return nil // nothing can be said about a tree that the patches do not give
		}
		before = after
	}
	w.report.Series = before.Verdict()
	w.report.Series.Spec = w.series.Spec
	w.UI.Section("the series")
	for _, result := range check.Series(w.series, pristine, before, before.Findings) {
		if w.wanted(result.Name) {
			w.report.Whole = append(w.report.Whole, result)
			w.UI.Check(result)
		}
	}
	return nil
}

func (w *walk) wanted(name string) bool { return w.Wanted == nil || w.Wanted(name) }

// apply applies the first so many patches.
func (w *walk) apply(ctx context.Context, count int) (*tree.Tree, error) {
	cut := *w.series
	cut.Patches = cut.Patches[:count]
	return tree.Apply(ctx, w.from, &cut, tree.Options{Cache: w.Cache})
}

// patch makes the checks of patch i and returns the tree after it, nil when it does
// not apply.
func (w *walk) patch(ctx context.Context, i int, before *tree.Tree) (*tree.Tree, error) {
	patch := &w.series.Patches[i]
	p := &patchWalk{walk: w, patch: patch, number: i + 1, before: before}
	w.report.Patches = append(w.report.Patches, check.Patch{Number: i + 1, Subject: patch.Subject, File: patch.File})
	p.out = &w.report.Patches[i].Results
	after, err := w.apply(ctx, i+1)
	if fault.Of(err) == fault.Apply {
		p.add(check.Result{Name: check.Apply, Status: check.Fail, Summary: err.Error()}, output(err))
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	p.after = after
	applied := after.Applied[i]
	p.touched = applied.Files
	p.applied(applied)
	for _, result := range check.Textual(&check.Change{Patch: patch, After: after}) {
		if w.wanted(result.Name) {
			p.add(result, "")
		}
	}
	for _, make := range []func(context.Context) error{p.checkpatch, p.kdoc, p.build, p.compile} {
		if err := make(ctx); err != nil {
			return nil, err
		}
	}
	return after, nil
}

func output(err error) string {
	if classed, ok := errors.AsType[*fault.Error](err); ok {
		return classed.Output
	}
	return ""
}

// patchWalk is the checks of one patch under way.
type patchWalk struct {
	*walk
	patch         *series.Patch
	number        int // from 1
	before, after *tree.Tree
	touched       []string
	out           *[]check.Result
	// unbuilt is true when the kernel does not build with the patch.
	unbuilt bool
}

// applied tells how the patch went in.
func (p *patchWalk) applied(applied tree.Applied) {
	if !p.wanted(check.Apply) {
		return
	}
	result := check.Result{Name: check.Apply, Status: check.Pass, Summary: "clean"}
	switch {
	case applied.Fuzz:
		result.Status, result.Summary = check.Fail, "git refuses it; GNU patch found a place for it with fuzz"
	case applied.Offset > 0:
		result.Summary = fmt.Sprintf("with an offset of up to %d lines", applied.Offset)
	}
	p.add(result, applied.Output)
}

// add takes a result, keeps its log and shows it.
func (p *patchWalk) add(result check.Result, log string) {
	if log != "" && result.Status != check.Pass {
		file, err := p.group.Log(fmt.Sprintf("%04d-%s", p.number, result.Name), log)
		if err == nil {
			result.Log = file
		} else {
			p.UI.Warn("%v", err)
		}
	}
	*p.out = append(*p.out, result)
	p.UI.Check(result)
}

// kept is a result in the cache, with its log.
type kept struct {
	Result check.Result `json:"result"`
	Log    string       `json:"log"`
}

// key names a result by all that it depends on.
func (p *patchWalk) key(name string, parts ...string) string {
	hash := sha256.New()
	for _, part := range append([]string{recipe, name, p.before.ID, p.after.ID, string(p.patch.Mail)}, parts...) {
		fmt.Fprintf(hash, "%d:%s", len(part), part)
	}
	return hex.EncodeToString(hash.Sum(nil))[:32]
}

// recall finds a result of an earlier time.
func (p *patchWalk) recall(key string) (kept, bool) {
	text, err := p.Cache.Get(cache.Checks, key)
	if err != nil {
		return kept{}, false
	}
	var k kept
	if err := json.Unmarshal(text, &k); err != nil {
		return kept{}, false // made anew, and overwritten
	}
	k.Result.Cached = true
	return k, true
}

// remember keeps a result for another time, unless it is about this machine.
func (p *patchWalk) remember(key string, k kept) error {
	if k.Result.Status == check.Skip {
		return nil
	}
	text, err := json.Marshal(k)
	if err != nil {
		return err
	}
	return p.Cache.Put(cache.Checks, key, text)
}

// once adds the result of a check, that of an earlier time if there is one.
func (p *patchWalk) once(name, key string, make func() (kept, error)) error {
	if !p.wanted(name) {
		return nil
	}
	k, ok := p.recall(key)
	if !ok {
		began := time.Now()
		step := p.UI.Step(name)
		var err error
		k, err = make()
		step.Done("") // the result has its own line
		if err != nil {
			return err
		}
		k.Result.Name, k.Result.Seconds = name, time.Since(began).Seconds()
		if err := p.remember(key, k); err != nil {
			return err
		}
	}
	p.add(k.Result, k.Log)
	return nil
}
