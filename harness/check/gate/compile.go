// SPDX-License-Identifier: BSD-3-Clause

package gate

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/zcvet/zcvet/harness/check"
	"github.com/zcvet/zcvet/harness/fault"
	"github.com/zcvet/zcvet/harness/kbuild"
	"github.com/zcvet/zcvet/harness/report"
	"github.com/zcvet/zcvet/harness/tree"
	"github.com/zcvet/zcvet/kconfig"
)

// maxSources is how many source files a directory may hold, with those below it, to
// be compiled as a whole. Of a larger one, and of those at the root of the tree, the
// files that the patch touches are compiled.
const maxSources = 200

// way is a way to compile, with the checks that come of it.
type way struct {
	variant kbuild.Variant
	// compiler is the check of what the compiler says, sparse that of sparse;
	// empty for none.
	compiler, sparse string
	// whole is true for directories as a whole, false for the files touched.
	whole bool
	// missing says why it cannot be done here, and what to do.
	missing string
}

// everything is put over allmodconfig: what needs tools or headers that have
// nothing to do with the patch, what slows the compiler down, and what makes an
// error of the warnings that are compared.
const everything = `CONFIG_WERROR=n
CONFIG_MODULE_SIG=n
CONFIG_GCC_PLUGINS=n
CONFIG_DEBUG_INFO_NONE=y
CONFIG_DEBUG_INFO_BTF=n
CONFIG_RUST=n
CONFIG_KASAN=n
CONFIG_KCSAN=n
CONFIG_UBSAN=n
CONFIG_KCOV=n
CONFIG_GCOV_KERNEL=n
CONFIG_RANDSTRUCT_NONE=y
CONFIG_IMA=n
CONFIG_SYSTEM_TRUSTED_KEYRING=n
`

// ways lists how a patch is compiled.
func (g *Gate) ways(version kconfig.Version) []way {
	installed := func(tool string) string {
		if _, err := exec.LookPath(tool); err != nil {
			return tool + " is not installed: sudo apt-get install " + tool
		}
		return ""
	}
	config := append(slices.Clone(g.Config.Config(version)), "CONFIG_WERROR=n\n"...)
	noSparse := installed("sparse")
	return []way{
		{
			variant:  kbuild.Variant{Name: "native", Arch: "x86_64", Compiler: "gcc", Base: "allnoconfig", Config: config, Sparse: noSparse == ""},
			compiler: check.Warnings, sparse: check.Sparse, missing: noSparse,
		},
		{
			variant:  kbuild.Variant{Name: "32bit", Arch: "i386", Compiler: "gcc", Base: "allnoconfig", Config: config},
			compiler: check.Build32, whole: true,
		},
		{
			variant:  kbuild.Variant{Name: "all", Arch: "x86_64", Compiler: "gcc", Base: "allmodconfig", Config: []byte(everything)},
			compiler: check.BuildAll, whole: true,
		},
		{
			variant:  kbuild.Variant{Name: "clang", Arch: "x86_64", Compiler: "clang", Base: "allnoconfig", Config: config},
			compiler: check.Clang, whole: true, missing: installed("clang"),
		},
	}
}

// checks are the names of the checks of a way that are wanted.
func (p *patchWalk) checks(w way) []string {
	return slices.DeleteFunc([]string{w.compiler, w.sparse}, func(name string) bool { return name == "" || !p.wanted(name) })
}

// compiled is what a way has to say about the trees before and after a patch.
type compiled struct {
	before, after *kbuild.Compilation
	err           error // of class Build: the configuration itself is broken
}

// compile makes the checks that compile the files or the directories of the patch
// in several ways, before and after it.
func (p *patchWalk) compile(ctx context.Context) error {
	version, err := kconfig.ParseVersion(p.from.Version)
	if err != nil {
		return fault.New(fault.Infrastructure, "%w", err)
	}
	sources, err := p.sources(ctx)
	if err != nil {
		return err
	}
	objects, directories, err := p.targets(sources)
	if err != nil {
		return err
	}
	targets := func(w way) []string {
		if w.whole {
			return directories
		}
		return objects
	}
	for _, w := range p.ways(version) {
		// What both checks of a way need, and neither if their results are known.
		both := sync.OnceValues(func() (*compiled, error) { return p.bothSides(ctx, w, targets(w)) })
		for _, name := range p.checks(w) {
			switch {
			case len(sources) == 0:
				p.add(check.Result{Name: name, Status: check.Pass, Summary: "nothing touched that is compiled"}, "")
				continue
			case p.lacks(w, name):
				p.add(check.Result{Name: name, Status: check.Skip, Summary: w.missing}, "")
				continue
			case p.unbuilt:
				p.add(check.Result{Name: name, Status: check.Skip, Summary: "the kernel does not build"}, "")
				continue
			}
			tool, err := toolVersion(ctx, name, w)
			if err != nil {
				return err
			}
			key := p.key(name, append([]string{tool, w.variant.Base, string(w.variant.Config)}, targets(w)...)...)
			err = p.once(name, key, func() (kept, error) {
				c, err := both()
				if err != nil {
					return kept{}, err
				}
				return c.judge(name == check.Sparse), nil
			})
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// lacks tells whether a check cannot be made on this machine. Without sparse the
// compiler still has its say.
func (p *patchWalk) lacks(w way, name string) bool {
	return w.missing != "" && (name == w.sparse || w.sparse == "")
}

// toolVersion is the first line of what the tool of a check says of itself.
func toolVersion(ctx context.Context, name string, w way) (string, error) {
	tool := w.variant.Compiler
	if name == check.Sparse {
		tool = "sparse"
	}
	text, err := exec.CommandContext(ctx, tool, "--version").Output()
	if ctx.Err() != nil {
		return "", context.Cause(ctx)
	}
	if err != nil {
		return "", nil // missing, which is told elsewhere
	}
	line, _, _ := strings.Cut(string(text), "\n")
	return line, nil
}

// bothSides compiles the tree after the patch, and then, of the tree before it, the
// files that have something to say: what says nothing says nothing new. A series
// that changes a common header has hundreds of files compiled once for each patch,
// and not twice for the first.
func (p *patchWalk) bothSides(ctx context.Context, w way, targets []string) (*compiled, error) {
	c := &compiled{before: &kbuild.Compilation{}}
	var err error
	if c.after, err = p.compileTree(ctx, "after", p.after, w, targets); fault.Of(err) == fault.Build {
		c.err = err
		return c, nil
	} else if err != nil {
		return nil, err
	}
	again := talkative(c.after)
	if c.after.Failed {
		again = targets // what failed need not have said so in its own name
	}
	if len(again) == 0 {
		return c, nil
	}
	before, err := p.compileTree(ctx, "before", p.before, w, again)
	switch {
	case fault.Of(err) == fault.Build:
		// It was broken before: everything that is said now is new.
	case err != nil:
		return nil, err
	default:
		c.before = before
	}
	return c, nil
}

// compileTree compiles targets of one side.
func (p *patchWalk) compileTree(ctx context.Context, side string, t *tree.Tree, w way, targets []string) (*kbuild.Compilation, error) {
	step := p.UI.Step("compile")
	result, err := kbuild.Compile(ctx, t, w.variant, targets, kbuild.Options{Cache: p.Cache, Progress: step.Progress, Log: p.Log, Jobs: p.Jobs})
	switch {
	case fault.Of(err) == fault.Build:
		step.Done("%s the patch, %s: %v", side, w.variant.Name, err)
		return nil, err
	case err != nil:
		step.Fail(err)
		return nil, err
	case result.Compiled > 0:
		step.Done("%s the patch, %s: %d objects", side, w.variant.Name, result.Compiled)
	default:
		step.Done("")
	}
	// Of other files it is known what was said when they were compiled last, with
	// another series perhaps.
	maps.DeleteFunc(result.Said, func(unit string, _ kbuild.Said) bool { return !isAmong(unit, targets) })
	return result, nil
}

// isAmong tells whether a file, named without its extension, is compiled for
// targets.
func isAmong(unit string, targets []string) bool {
	return slices.ContainsFunc(targets, func(target string) bool {
		return unit+".o" == target || strings.HasSuffix(target, "/") && strings.HasPrefix(unit, target)
	})
}

// talkative lists the objects about which something was said.
func talkative(c *kbuild.Compilation) []string {
	var objects []string
	for unit, said := range c.Said {
		if len(complaints(said.Compiler))+len(complaints(said.Sparse)) > 0 {
			objects = append(objects, unit+".o")
		}
	}
	slices.Sort(objects)
	return objects
}

// judge compares both sides.
func (c *compiled) judge(sparse bool) kept {
	if c.err != nil {
		return kept{Result: check.Result{Status: check.Fail, Summary: c.err.Error()}, Log: output(c.err)}
	}
	words := func(said kbuild.Said) []string {
		if sparse {
			return said.Sparse
		}
		return said.Compiler
	}
	var added []check.Message
	for file, said := range c.after.Said {
		added = append(added, fresh(words(c.before.Said[file]), words(said))...)
	}
	added = each(added)
	result := check.Result{Status: check.Pass, Summary: report.Plural(len(c.after.Said), "file") + " compiled, no new warning"}
	switch {
	case len(added) > 0:
		slices.SortStableFunc(added, func(a, b check.Message) int { return weight(a.Text) - weight(b.Text) })
		result.Status, result.Summary, result.Messages = check.Fail, summary("new message", added), added
	case c.after.Failed && !sparse && !c.before.Failed:
		result.Status, result.Summary = check.Fail, "does not compile any more; the log says why"
	case c.after.Failed && !sparse:
		result.Status, result.Summary = check.Warn, "did not compile before the patch either; the log says why"
	}
	return kept{Result: result, Log: c.after.Log}
}

// weight puts errors before warnings.
func weight(text string) int {
	if strings.Contains(text, "error: ") {
		return 0
	}
	return 1
}

// sources are the C files that are compiled for a patch: those it touches, or for
// one that touches headers only those of the whole series. Programs of the host,
// such as selftests, are none of the kernel's.
func (p *patchWalk) sources(ctx context.Context) ([]string, error) {
	sources, err := p.kernelSources(p.touched)
	if err != nil || len(sources) > 0 {
		return sources, err
	}
	if !slices.ContainsFunc(p.touched, func(name string) bool { return strings.HasSuffix(name, ".h") && isKernel(name) }) {
		return nil, nil
	}
	whole, err := p.apply(ctx, len(p.series.Patches))
	if fault.Of(err) == fault.Apply {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var all []string
	for _, applied := range whole.Applied {
		all = append(all, applied.Files...)
	}
	return p.kernelSources(all)
}

// kernelSources picks the C files that are compiled into kernels and are there after
// the patch.
func (p *patchWalk) kernelSources(files []string) ([]string, error) {
	var sources []string
	for _, name := range files {
		if !strings.HasSuffix(name, ".c") || !isKernel(name) {
			continue
		}
		if _, err := p.after.ReadFile(name); errors.Is(err, fs.ErrNotExist) {
			continue // gone with this patch
		} else if err != nil {
			return nil, err
		}
		sources = append(sources, name)
	}
	slices.Sort(sources)
	return slices.Compact(sources), nil
}

// isKernel tells whether a file is compiled into kernels, of any architecture that
// is built here.
func isKernel(name string) bool {
	if arch, ok := strings.CutPrefix(name, "arch/"); ok && !strings.HasPrefix(arch, "x86/") {
		return false
	}
	for _, dir := range []string{"tools/", "samples/", "scripts/", "Documentation/", "usr/"} {
		if strings.HasPrefix(name, dir) {
			return false
		}
	}
	return true
}

// targets are what make compiles for source files: the objects of them alone, and
// their directories with as much of them as [maxSources] allows.
func (p *patchWalk) targets(sources []string) (objects, directories []string, err error) {
	for _, name := range sources {
		object := strings.TrimSuffix(name, ".c") + ".o"
		objects = append(objects, object)
		dir := path.Dir(name)
		large := !strings.Contains(dir, "/")
		if !large {
			count, err := countSources(filepath.Join(p.from.Dir, dir))
			if err != nil {
				return nil, nil, err
			}
			large = count > maxSources
		}
		if large {
			directories = append(directories, object)
		} else {
			directories = append(directories, dir+"/")
		}
	}
	slices.Sort(directories)
	return objects, slices.Compact(directories), nil
}

// countSources counts the C files in and below a directory; one that is new has
// none.
func countSources(dir string) (int, error) {
	count := 0
	err := filepath.WalkDir(dir, func(_ string, entry fs.DirEntry, err error) error {
		if err == nil && !entry.IsDir() && strings.HasSuffix(entry.Name(), ".c") {
			count++
		}
		return err
	})
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fault.New(fault.Infrastructure, "kernel source: %w", err)
	}
	return count, nil
}
