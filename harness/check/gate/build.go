// SPDX-License-Identifier: BSD-3-Clause

package gate

import (
	"context"
	"fmt"

	"github.com/zcvet/zcvet/harness/check"
	"github.com/zcvet/zcvet/harness/fault"
	"github.com/zcvet/zcvet/harness/kbuild"
	"github.com/zcvet/zcvet/harness/verdict"
)

// build builds the kernel with the patch, and boots it. The kernels are those that
// run --each-patch uses.
func (p *patchWalk) build(ctx context.Context) error {
	if !p.wanted(check.Build) && !p.wanted(check.Boot) {
		return nil
	}
	options := kbuild.Options{Cache: p.Cache, Log: p.Log, Jobs: p.Jobs}
	id, err := kbuild.ID(ctx, p.after, p.Config, options)
	if err != nil {
		return err
	}
	key := p.key(check.Build, id)
	k, known := p.recall(key)
	if !known || k.Result.Status == check.Pass {
		// Found in the cache, as a rule, if it was built before.
		if k, err = p.buildKernel(ctx, options); err != nil {
			return err
		}
	}
	k.Result.Name, k.Result.Cached = check.Build, known
	if err := p.remember(key, k); err != nil {
		return err
	}
	p.unbuilt = k.Result.Status == check.Fail
	if p.wanted(check.Build) {
		p.add(k.Result, k.Log)
	}
	return p.boot(ctx, id)
}

func (p *patchWalk) buildKernel(ctx context.Context, options kbuild.Options) (kept, error) {
	step := p.UI.Step("build")
	options.Progress = step.Progress
	kernel, err := kbuild.Build(ctx, p.after, p.Config, options)
	step.Done("") // the result has its own line
	switch {
	case fault.Of(err) == fault.Build:
		return kept{Result: check.Result{Status: check.Fail, Summary: err.Error()}, Log: output(err)}, nil
	case err != nil:
		return kept{}, err
	}
	defer kernel.Close()
	p.report.Kernel.Compiler = kernel.Compiler
	result := check.Result{Status: check.Pass, Seconds: kernel.BuildSeconds, Summary: fmt.Sprintf("kernel %s, %d objects compiled", kernel.ID, kernel.Objects)}
	if kernel.Cached {
		result.Seconds, result.Summary = 0, fmt.Sprintf("kernel %s from the cache", kernel.ID)
	}
	return kept{Result: result}, nil
}

func (p *patchWalk) boot(ctx context.Context, id string) error {
	if !p.wanted(check.Boot) || p.Boot == nil {
		return nil
	}
	if p.unbuilt {
		p.add(check.Result{Name: check.Boot, Status: check.Skip, Summary: "the kernel does not build"}, "")
		return nil
	}
	return p.once(check.Boot, p.key(check.Boot, id), func() (kept, error) {
		run, err := p.Boot(ctx, p.number)
		if err != nil && (ctx.Err() != nil || run == nil || fault.Of(err) == fault.Infrastructure) {
			return kept{}, err
		}
		return judgeBoot(run, output(err)), nil
	})
}

// judgeBoot tells how a kernel booted from a run of a case or two on it. That the
// case failed is for run to say.
func judgeBoot(run *verdict.Run, console string) kept {
	class := fault.Class(run.Exit.Code)
	if class == fault.Boot || class == fault.Crash {
		log := console
		for _, splat := range run.Splats {
			log += splat.Text + "\n"
		}
		return kept{Result: check.Result{Status: check.Fail, Summary: run.Exit.Error}, Log: log}
	}
	return kept{Result: check.Result{Status: check.Pass, Summary: fmt.Sprintf("in %.2f s, %s", float64(run.Machine.BootMS)/1000, run.Machine.Accel)}}
}
