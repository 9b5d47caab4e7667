// SPDX-License-Identifier: BSD-3-Clause

// Package vet goes the whole way, from a series and a kernel to a verdict: each
// step takes the value of the step before.
//
//	source → series → tree → kbuild → (image, accelerator) → suite → verdict
package vet

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/zcvet/zcvet/guest/cases"
	"github.com/zcvet/zcvet/guest/link"
	"github.com/zcvet/zcvet/harness/cache"
	"github.com/zcvet/zcvet/harness/fault"
	"github.com/zcvet/zcvet/harness/kbuild"
	"github.com/zcvet/zcvet/harness/machine"
	"github.com/zcvet/zcvet/harness/matrix"
	"github.com/zcvet/zcvet/harness/progress"
	"github.com/zcvet/zcvet/harness/selftest"
	"github.com/zcvet/zcvet/harness/series"
	"github.com/zcvet/zcvet/harness/source"
	"github.com/zcvet/zcvet/harness/splat"
	"github.com/zcvet/zcvet/harness/suite"
	"github.com/zcvet/zcvet/harness/terminal"
	"github.com/zcvet/zcvet/harness/tree"
	"github.com/zcvet/zcvet/harness/verdict"
	"github.com/zcvet/zcvet/images"
	"github.com/zcvet/zcvet/kconfig"
)

// Options is what the user asked for.
type Options struct {
	Kernel   string // source.Resolve explains it
	Refresh  bool   // look for a newer source than the cached one
	Series   string // series.Load explains it
	Revision int    // of the series, 0 for the one that is there
	Patches  int    // how many of its patches to apply, 0 for all
	// Loaded is the series when it was read before; Series, Revision and the
	// place they name are not looked at then.
	Loaded *series.Series
	NoFuzz bool

	Config string // a set of package kconfig
	Jobs   int    // of make, 0 for one per processor

	Accelerator string // auto, kvm or tcg
	CPU         string // QEMU's CPU model, empty for the best one
	SMAPOff     bool   // let the kernel touch user memory as it likes
	// CountInstructions gives the guest a clock that counts instructions, for
	// the cases that measure. It goes with the accelerator tcg.
	CountInstructions bool

	Parallel int // machines at a time, 0 for what suits this computer

	Suite string   // suite.Select explains it
	Only  []string // narrows Suite to these instances, by id; empty does not
	Seed  int64
	// SearchSteps and SearchBudget bound each search for a failing sequence of
	// operations (R02); 0 for what the case deems enough.
	SearchSteps  int
	SearchBudget time.Duration
	Policy       verdict.Policy

	Out     string // directory of the results, empty for a new one
	Verbose bool   // tools may print to Log

	// seriesFor, if set, makes the directory of the series for the port of the
	// reference series that fits the kernel; Series only names it then.
	seriesFor func(port string) (string, error)
}

// mostMachines is how many machines run at a time unless more are asked for: what
// is left to win is less than the time to get them ready.
const mostMachines = 4

// machines is how many machines may run at a time. Those that measure have the
// computer to themselves.
func (o *Options) machines() int {
	switch {
	case o.CountInstructions:
		return 1
	case o.Parallel > 0:
		return o.Parallel
	}
	return min(runtime.NumCPU(), mostMachines)
}

// Vetter is what the steps share.
type Vetter struct {
	Cache *cache.Dir
	UI    *terminal.UI
	Root  string // of the checkout
	// Log receives what the tools print when they are asked to be verbose; nil
	// drops it.
	Log io.Writer
}

// Run vets a series. The verdict is complete even if the error is not nil: the
// error is then the reason the run ended early, and run.Exit says the same. A run
// whose cases failed is no error. The verdict is nil if the options make no sense
// or there is no place for results.
func (v *Vetter) Run(ctx context.Context, options Options, command string) (*verdict.Run, error) {
	attempt, err := v.Begin(options, command)
	if err != nil {
		return nil, err
	}
	run, err := attempt.Go(ctx)
	v.UI.Note("results: %s", attempt.Path())
	return run, err
}

func configuration(options Options) (*kconfig.Set, error) {
	set, err := kconfig.Load(options.Config)
	if err != nil {
		return nil, fault.New(fault.Usage, "%w", err)
	}
	return set, nil
}

func restores(outcome *suite.Result) string {
	switch count := len(outcome.Restores); count {
	case 0:
		return ""
	case 1:
		return ", restored once"
	default:
		return fmt.Sprintf(", restored %d times", count)
	}
}

// Prepared is everything a machine needs, built.
type Prepared struct {
	Tree        *tree.Tree // nil for an image: kernel
	Kernel      *kbuild.Kernel
	Image       *images.Image
	Accelerator machine.Accelerator

	allowed []splat.Allowed
	needs   kconfig.Needs
	// about is what a run on it says of kernel, series and machine.
	about verdict.Run
}

// SpeaksLike tells whether the cases would ask both kernels the same questions:
// they go by the ABI and the number of the notification interface.
func (p *Prepared) SpeaksLike(other *Prepared) bool {
	return p.about.Series.ABI == other.about.Series.ABI && p.about.Series.Constant == other.about.Series.Constant
}

// Close lets the cache drop the kernel.
func (p *Prepared) Close() {
	if p.Kernel != nil {
		p.Kernel.Close()
	}
}

// Machine is the machine of a run, without its NICs.
func (p *Prepared) Machine(options Options) machine.Config {
	accelerator := p.Accelerator
	if options.CPU != "" {
		accelerator.CPU = options.CPU
	}
	if options.SMAPOff {
		accelerator.CPU += "," + verdict.SMAPOff
	}
	return machine.Config{
		Accelerator: accelerator, Kernel: p.Kernel.Boot, KernelConfig: p.Kernel.Config, Initramfs: p.Image.Path,
		Memory: p.needs.Memory, Slowdown: p.needs.Slowdown, Parameters: p.needs.Parameters,
		CountInstructions: options.CountInstructions,
	}
}

// Prepare goes all steps up to a machine that could be started, and fills the
// kernel, series and machine parts of run.
func (v *Vetter) Prepare(ctx context.Context, options Options, run *verdict.Run) (*Prepared, error) {
	return v.prepare(ctx, options, run, images.Options{Cache: v.Cache, Root: v.Root, With32Bit: true, Log: v.Log})
}

func (v *Vetter) prepare(ctx context.Context, options Options, run *verdict.Run, image images.Options) (*Prepared, error) {
	p := &Prepared{}
	var err error
	if p.allowed, err = splat.DefaultAllowed(); err != nil {
		return nil, err
	}
	if err := v.kernelAndImage(ctx, options, run, image, p); err != nil {
		return nil, err
	}
	if err := v.accelerator(ctx, options, run, p); err != nil {
		p.Close()
		return nil, err
	}
	p.about = verdict.Run{Kernel: run.Kernel, Series: run.Series, Machine: run.Machine}
	return p, nil
}

// kernelAndImage builds both side by side: the image needs nothing of the kernel
// but the tree. The first that fails stops the other, and its error is returned.
func (v *Vetter) kernelAndImage(ctx context.Context, options Options, run *verdict.Run, image images.Options, p *Prepared) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	known := make(chan struct{})
	more := image.Files
	image.Files = func(ctx context.Context) ([]images.File, error) {
		select {
		case <-known:
			files, err := v.selftest(ctx, p.Tree)
			if err != nil || more == nil {
				return files, err
			}
			own, err := more(ctx)
			return append(files, own...), err
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	var other sync.WaitGroup
	other.Go(func() {
		built, err := images.Build(ctx, image)
		if err != nil {
			stop(err)
		}
		p.Image = built
	})
	if err := v.kernel(ctx, options, run, p, func() { close(known) }); err != nil {
		stop(err)
	}
	other.Wait()
	return context.Cause(ctx)
}

// selftest gives the guest the tree's own test, or the reason it has none.
func (v *Vetter) selftest(ctx context.Context, t *tree.Tree) ([]images.File, error) {
	if t == nil {
		return nil, nil // an image: kernel has no tree
	}
	built, err := selftest.Build(ctx, t, selftest.Options{Cache: v.Cache, Log: v.Log})
	switch {
	case err != nil:
		return nil, err
	case built.Absent:
		return []images.File{{Place: cases.SelftestAbsent, Content: []byte("the tree has no " + selftest.Source)}}, nil
	case built.Failure != "":
		return []images.File{{Place: cases.SelftestFailure, Content: []byte(built.Failure)}}, nil
	}
	return []images.File{{Place: cases.SelftestProgram, Content: built.Program, Executable: true}}, nil
}

// kernel builds the kernel of a run. It calls known when p.Tree is what it will
// be.
func (v *Vetter) kernel(ctx context.Context, options Options, run *verdict.Run, p *Prepared, known func()) error {
	config, err := configuration(options)
	if err != nil {
		return err
	}
	p.needs = config.Needs()
	from, err := v.source(ctx, options, run)
	if err != nil {
		return err
	}
	if from.Image != "" {
		known()
		return v.given(ctx, options, run, from, p)
	}
	if p.Tree, err = v.apply(ctx, options, run, from); err != nil {
		return err
	}
	known()
	return v.build(ctx, options, run, config, p)
}

func (v *Vetter) source(ctx context.Context, options Options, run *verdict.Run) (*source.Kernel, error) {
	step := v.UI.Step("source")
	from, err := source.Resolve(ctx, options.Kernel, source.Options{
		Cache: v.Cache, Progress: step.Progress, Log: v.Log, Refresh: options.Refresh,
	})
	if err != nil {
		step.Fail(err)
		return nil, err
	}
	run.Kernel.Version, run.Kernel.Source = from.Version, from.Source
	step.Done("linux %s from %s", from.Version, from.Source)
	return from, nil
}

// given takes a kernel that somebody else built.
func (v *Vetter) given(ctx context.Context, options Options, run *verdict.Run, from *source.Kernel, p *Prepared) error {
	if options.Series != series.None {
		return fault.New(fault.Usage, "%s is built already: no series can be applied to it", options.Kernel).
			WithAdvice("give --series none with an image, or the source of the kernel")
	}
	var err error
	if p.Kernel, err = kbuild.Image(ctx, from, kbuild.Options{Cache: v.Cache, Log: v.Log}); err != nil {
		return err
	}
	run.Kernel.ID, run.Kernel.Cached = from.ID, true
	run.Series.Name = series.None
	return nil
}

func (v *Vetter) apply(ctx context.Context, options Options, run *verdict.Run, from *source.Kernel) (*tree.Tree, error) {
	step := v.UI.Step("series")
	wanted, err := v.load(ctx, options, from, step.Progress)
	if err != nil {
		step.Fail(err)
		return nil, err
	}
	patched, err := tree.Apply(ctx, from, wanted, tree.Options{NoFuzz: options.NoFuzz, Cache: v.Cache})
	if err != nil {
		run.Series.Name, run.Series.Revision, run.Series.MessageID = wanted.Name, wanted.Revision, wanted.MessageID
		step.Fail(err)
		return nil, err
	}
	spec := run.Series.Spec
	run.Series = patched.Verdict()
	run.Series.Spec = spec
	run.Series.Directory = belowHere(wanted.Directory)
	step.Done("%s", describe(patched))
	for _, finding := range patched.Findings {
		v.UI.Warn("%s: %s", finding.Kind, finding.Title)
	}
	return patched, nil
}

// Load finds the kernel and the series of a run.
func (v *Vetter) Load(ctx context.Context, options Options) (*source.Kernel, *series.Series, error) {
	from, err := v.source(ctx, options, &verdict.Run{})
	if err != nil {
		return nil, nil, err
	}
	step := v.UI.Step("series")
	wanted, err := v.load(ctx, options, from, step.Progress)
	if err != nil {
		step.Fail(err)
		return nil, nil, err
	}
	step.Done("%s: %d patches", wanted.Name, len(wanted.Patches))
	return from, wanted, nil
}

// load reads the series for a kernel, and cuts it where it is told to.
func (v *Vetter) load(ctx context.Context, options Options, from *source.Kernel, report progress.Func) (*series.Series, error) {
	wanted := options.Loaded
	if wanted == nil {
		place, err := v.place(options, from)
		if err != nil {
			return nil, err
		}
		wanted, err = series.Load(ctx, place, series.Options{
			Cache: v.Cache, Progress: report, Log: v.Log, Revision: options.Revision,
		})
		if err != nil {
			return nil, err
		}
	}
	if options.Patches > 0 && options.Patches < len(wanted.Patches) {
		cut := *wanted
		cut.Patches = cut.Patches[:options.Patches]
		return &cut, nil
	}
	return wanted, nil
}

// place resolves what only the checkout knows: the port of our own series for a
// kernel, and its directories from wherever the command is run. What exists in
// the working directory wins.
func (v *Vetter) place(options Options, from *source.Kernel) (string, error) {
	spec := options.Series
	patches := filepath.Join(v.Root, "patches")
	if spec == matrix.Reference || options.seriesFor != nil {
		port, ok := matrix.Port(from.Version, os.DirFS(patches))
		if !ok {
			return "", fault.New(fault.Usage, "the reference series has no port for linux %s", from.Version).
				WithAdvice("give --series none, or a series that is made for this kernel")
		}
		if options.seriesFor != nil {
			return options.seriesFor(port)
		}
		return filepath.Join(patches, port), nil
	}
	if _, err := os.Stat(spec); err == nil || filepath.IsAbs(spec) {
		return spec, nil
	}
	if inCheckout := filepath.Join(v.Root, spec); strings.HasPrefix(spec, "patches/") {
		if info, err := os.Stat(inCheckout); err == nil && info.IsDir() {
			return inCheckout, nil
		}
	}
	return spec, nil
}

func describe(patched *tree.Tree) string {
	if len(patched.Applied) == 0 {
		return "none: the kernel as it is"
	}
	clean, offset, fuzz := 0, 0, 0
	for _, applied := range patched.Applied {
		switch {
		case applied.Fuzz:
			fuzz++
		case applied.Offset > 0:
			offset++
		default:
			clean++
		}
	}
	text := fmt.Sprintf("%s: %d patches", patched.Series.Name, len(patched.Applied))
	if offset+fuzz == 0 {
		text += ", all clean"
	} else {
		text += fmt.Sprintf(", %d clean, %d with offset, %d with FUZZ", clean, offset, fuzz)
	}
	if patched.ABI != "" {
		text += fmt.Sprintf("; ABI %s, SCM_ZC_NOTIFICATION %d", patched.ABI, patched.Constant)
	}
	return text
}

func (v *Vetter) build(ctx context.Context, options Options, run *verdict.Run, config *kconfig.Set, p *Prepared) error {
	step := v.UI.Step("build")
	toBuild, err := instrumented(p.Tree, config)
	if err != nil {
		step.Fail(err)
		return err
	}
	built, err := kbuild.Build(ctx, toBuild, config, kbuild.Options{
		Cache: v.Cache, Progress: step.Progress, Log: v.Log, Jobs: options.Jobs,
	})
	if err != nil {
		step.Fail(err)
		return err
	}
	p.Kernel = built
	run.Kernel.ID = built.ID
	run.Kernel.Config = built.Fragments
	run.Kernel.Compiler = built.Compiler
	run.Kernel.BuildSeconds = built.BuildSeconds
	run.Kernel.Cached = built.Cached
	if built.Cached {
		step.Done("kernel %s from the cache", built.ID)
	} else {
		run.Kernel.Objects = built.Objects
		step.Done("kernel %s, %d objects compiled", built.ID, built.Objects)
	}
	return nil
}

func (v *Vetter) accelerator(ctx context.Context, options Options, run *verdict.Run, p *Prepared) error {
	step := v.UI.Step("machine")
	var err error
	p.Accelerator, err = machine.Probe(ctx, options.Accelerator, machine.ProbeOptions{
		Cache: v.Cache, Kernel: p.Kernel.Boot,
	})
	if err != nil {
		step.Fail(err)
		return err
	}
	run.Machine.Accel, run.Machine.AccelReason = p.Accelerator.Name, p.Accelerator.Reason
	run.Machine.CPU = p.Machine(options).Accelerator.CPU
	step.Done("%s: %s", p.Accelerator.Name, p.Accelerator.Reason)
	return nil
}

// static runs the wanted cases that need no machine.
func (p *Prepared) static(wanted func(link.Instance) bool) []verdict.Case {
	var results []verdict.Case
	for _, c := range tree.StaticCases {
		if wanted(link.Instance{ID: c.Name, Name: c.Name, Covers: c.Covers, Level: string(c.Level)}) {
			results = append(results, c.Result(p.Tree))
		}
	}
	return results
}

// judge moves what the suite found into the run. Err is what ended the suite
// early, or nil.
func (p *Prepared) judge(outcome *suite.Result, run *verdict.Run, err error) {
	run.Cases = outcome.Cases
	for i := range run.Cases {
		c := &run.Cases[i]
		if c.Status == "" {
			c.Status = verdict.Skip
			c.Detail = fmt.Sprint(verdict.NotRun, err)
		}
	}
	for _, feature := range outcome.Features {
		run.Machine.Features = append(run.Machine.Features, verdict.Feature(feature))
	}
	run.Machine.Missing = outcome.Missing
	run.Machine.BootMS = outcome.Boot.Milliseconds()
	run.Machine.Boots, run.Machine.Restores = outcome.Boots, len(outcome.Restores)
	if durations := slices.Sorted(slices.Values(outcome.Restores)); len(durations) > 0 {
		run.Machine.RestoreMS = durations[len(durations)/2].Milliseconds()
	}

	run.Splats = append(run.Splats, p.decode(outcome.Splats)...)
}

// decode finds the lines of splats, and the patches that last touched them.
func (p *Prepared) decode(found []splat.Splat) []verdict.Splat {
	decoder := splat.NewDecoder(p.Kernel.Vmlinux)
	defer decoder.Close()
	var splats []verdict.Splat
	for i := range found {
		// A vmlinux without line tables, such as an image: kernel's, leaves
		// the functions.
		_ = decoder.Decode(&found[i])
		splats = append(splats, p.quote(found[i].Verdict(p.blame)))
	}
	return splats
}

// blame names the patch that last touched a line.
func (p *Prepared) blame(file string, line int) (string, bool) {
	if p.Tree == nil {
		return "", false
	}
	patch, ok := p.Tree.Blame(file, line)
	if !ok {
		return "", false
	}
	return p.Tree.Applied[patch].Subject, true
}

// Kernel builds the kernel of a run and nothing else. The caller closes it.
func (v *Vetter) Kernel(ctx context.Context, options Options) (*kbuild.Kernel, error) {
	p := &Prepared{}
	if err := v.kernel(ctx, options, &verdict.Run{}, p, func() {}); err != nil {
		return nil, err
	}
	return p.Kernel, nil
}

// KernelID is the id under which the kernel of a run is cached, without building
// it.
func (v *Vetter) KernelID(ctx context.Context, options Options) (string, error) {
	config, err := configuration(options)
	if err != nil {
		return "", err
	}
	run := &verdict.Run{}
	from, err := v.source(ctx, options, run)
	if err != nil {
		return "", err
	}
	if from.Image != "" {
		return from.ID, nil
	}
	patched, err := v.apply(ctx, options, run, from)
	if err != nil {
		return "", err
	}
	toBuild, err := instrumented(patched, config)
	if err != nil {
		return "", err
	}
	return kbuild.ID(ctx, toBuild, config, kbuild.Options{Cache: v.Cache})
}
