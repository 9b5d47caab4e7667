// SPDX-License-Identifier: BSD-3-Clause

// Package kbuild turns a patched kernel tree and a configuration into a kernel
// that boots, or says which line of which patch is in the way.
//
// Kernels are named by what they are made from, so one that exists already is not
// made again. Build trees are kept: the next series on the same source compiles
// only what differs.
package kbuild

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/zcvet/zcvet/harness/cache"
	"github.com/zcvet/zcvet/harness/fault"
	"github.com/zcvet/zcvet/harness/progress"
	"github.com/zcvet/zcvet/harness/tree"
	"github.com/zcvet/zcvet/kconfig"
)

// recipe is the version of what Build does with its inputs, part of every kernel
// id. Raise it whenever a change makes another kernel from the same inputs.
const recipe = "2"

// typicalObjects is how many files the default configuration compiles, for the
// progress of a first build; later ones know better.
const typicalObjects = 820

// Kernel is a kernel ready to boot.
type Kernel struct {
	// ID names the kernel by content: source, overlay, configuration, toolchain.
	ID string `json:"id"`
	// Vmlinux is the ELF file with line tables, for symbols. Empty for an image
	// from which it cannot be had.
	Vmlinux string `json:"-"`
	// Boot is what QEMU loads: vmlinux without symbols and line tables, with a
	// PVH entry; for an image possibly a bzImage.
	Boot string `json:"-"`
	// Config is the resolved .config; empty for an image.
	Config string `json:"-"`
	// Notes is the directory with the compiler's notes about the objects that
	// count which lines are executed (.gcno), by their places in the build tree;
	// empty when none does.
	Notes string `json:"-"`
	// Release is what uname -r says.
	Release  string `json:"release"`
	Compiler string `json:"compiler"`
	// Fragments are the names of the merged configuration fragments.
	Fragments []string `json:"fragments"`
	// BuildSeconds is how long the build took when it was made, configuring
	// included.
	BuildSeconds float64 `json:"build_seconds"`
	// Objects is how many files were compiled when it was made.
	Objects int `json:"objects"`
	// CacheHits is how many of CacheLookups compilations ccache had; the build's own
	// tools count too. Both are 0 when it was not used.
	CacheHits    int `json:"ccache_hits"`
	CacheLookups int `json:"ccache_lookups"`
	// Cached is true when this call did not have to build.
	Cached bool `json:"-"`

	release func()
}

// Close lets `zcvet cache prune` remove the kernel again. The end of the process
// does so too.
func (k *Kernel) Close() {
	if k.release != nil {
		k.release()
		k.release = nil
	}
}

// Options are what Build needs besides its inputs.
type Options struct {
	Cache *cache.Dir
	// Progress counts compiled objects; the total is 0 for an incremental build,
	// for which nobody knows it.
	Progress progress.Func
	// Log gets all that make prints; may be nil.
	Log io.Writer
	// Jobs is how many compilers run at once, 0 for one more than there are
	// processors.
	Jobs int
	// NoCCache leaves ccache aside even if it is there.
	NoCCache bool
}

// ID is the id of the kernel that Build would make of the same arguments.
func ID(ctx context.Context, t *tree.Tree, set *kconfig.Set, options Options) (string, error) {
	b, err := newBuilder(ctx, t, set, options)
	if err != nil {
		return "", err
	}
	return b.id, nil
}

// Build makes the kernel, or finds it made. An error of class Build is the series'
// or the configuration's fault and names the place; Infrastructure is the machine's.
func Build(ctx context.Context, t *tree.Tree, set *kconfig.Set, options Options) (*Kernel, error) {
	if t.Kernel.Image != "" {
		return Image(ctx, t.Kernel, options)
	}
	b, err := newBuilder(ctx, t, set, options)
	if err != nil {
		return nil, err
	}
	if kernel, err := load(ctx, options.Cache, b.id); kernel != nil || err != nil {
		return kernel, err
	}
	unlock, err := options.Cache.Lock(ctx, cache.Kernels, b.id)
	if err != nil {
		return nil, err
	}
	err = b.buildUnlessMade(ctx)
	unlock()
	if err != nil {
		return nil, err
	}
	kernel, err := load(ctx, options.Cache, b.id)
	if kernel == nil && err == nil {
		err = fault.New(fault.Infrastructure, "kernel %s is gone from the cache right after it was built", b.id)
	}
	if err != nil {
		return nil, err
	}
	kernel.Cached = !b.built
	return kernel, nil
}

// identity hashes its parts so that no two lists of parts are confused.
func identity(parts ...string) string {
	hash := sha256.New()
	for _, part := range parts {
		fmt.Fprintf(hash, "%d:%s", len(part), part)
	}
	return hex.EncodeToString(hash.Sum(nil))[:24]
}

// The files of a kernel in the cache.
const (
	vmlinuxFile = "vmlinux"
	bootFile    = "boot"
	configFile  = "config"
	notesDir    = "notes"
	kernelFile  = "kernel.json"
)

// load finds a kernel in the cache and holds it there; nil if there is none.
func load(ctx context.Context, dir *cache.Dir, id string) (*Kernel, error) {
	if !dir.Has(cache.Kernels, id) {
		return nil, nil
	}
	release, err := dir.Hold(ctx, cache.Kernels, id)
	if err != nil {
		return nil, err
	}
	place := dir.Path(cache.Kernels, id)
	text, err := os.ReadFile(filepath.Join(place, kernelFile))
	if err != nil {
		release()
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil // pruned between Has and Hold
		}
		return nil, dir.Explain("read a kernel from the cache", err)
	}
	kernel := &Kernel{Cached: true, release: release}
	if err := json.Unmarshal(text, kernel); err != nil {
		release()
		return nil, fault.New(fault.Infrastructure, "%s: %w", filepath.Join(place, kernelFile), err).WithAdvice("remove %s", place)
	}
	for name, field := range map[string]*string{vmlinuxFile: &kernel.Vmlinux, bootFile: &kernel.Boot, configFile: &kernel.Config, notesDir: &kernel.Notes} {
		file := filepath.Join(place, name)
		if _, err := os.Stat(file); err == nil {
			*field = file
		}
	}
	if kernel.Boot == "" {
		release()
		return nil, fault.New(fault.Infrastructure, "%s has no kernel to boot", place).WithAdvice("remove %s", place)
	}
	return kernel, nil
}

func newBuilder(ctx context.Context, t *tree.Tree, set *kconfig.Set, options Options) (*builder, error) {
	version, err := kconfig.ParseVersion(t.Kernel.Version)
	if err != nil {
		return nil, fault.New(fault.Infrastructure, "kernel source %s: %w", t.Kernel.Dir, err)
	}
	tools, err := findToolchain(ctx, !options.NoCCache)
	if err != nil {
		return nil, err
	}
	return &builder{
		options: options,
		tree:    t,
		set:     set,
		version: version,
		tools:   tools,
		id: identity(slices.Concat(
			[]string{t.ID, string(set.Config(version)), tools.Compiler, tools.Linker, recipe}, set.Needs().Make)...),
		workspace: workspace{pristine: t.Kernel.Dir},
	}, nil
}

// builder is one build under way.
type builder struct {
	options   Options
	tree      *tree.Tree
	set       *kconfig.Set
	version   kconfig.Version
	tools     toolchain
	id        string
	workspace workspace

	cold    bool // nothing was compiled in this workspace before
	built   bool
	objects int
	hits    int
	lookups int
}

func (b *builder) buildUnlessMade(ctx context.Context) error {
	dir := b.options.Cache
	if dir.Has(cache.Kernels, b.id) {
		return nil // made while we waited for the lock
	}
	key := b.workspaceKey()
	unlock, err := dir.Lock(ctx, cache.Work, key)
	if err != nil {
		return err
	}
	defer unlock()
	b.workspace.dir = dir.Path(cache.Work, key)
	if err := os.MkdirAll(b.workspace.dir, 0o755); err != nil {
		return dir.Explain("make a build tree", err)
	}
	dir.Has(cache.Work, key) // counts as a use, for Prune
	started := time.Now()
	if err := b.workspace.prepare(ctx, b.tree, b.options.Progress); err != nil {
		return dir.Explain("make a build tree", err)
	}
	if err := b.workspace.recover(); err != nil {
		return dir.Explain("clean up after a build that was killed", err)
	}
	_, err = os.Stat(filepath.Join(b.workspace.build(), "vmlinux.o"))
	b.cold = errors.Is(err, fs.ErrNotExist)
	temporary, cleanup, err := dir.TempDir()
	if err != nil {
		return err
	}
	defer cleanup()
	if err := b.configure(ctx, temporary); err != nil {
		return err
	}
	if err := b.compile(ctx, temporary); err != nil {
		return err
	}
	b.built = true
	return b.keep(ctx, time.Since(started))
}

// workspaceKey names the build tree: one per source and configuration. A
// configuration with the user's own fragments is told from others by content.
func (b *builder) workspaceKey() string {
	name, own, _ := strings.Cut(b.set.Name, ",")
	if own != "" {
		name += "-" + identity(string(b.set.Config(b.version)))[:8]
	}
	return b.tree.Kernel.ID + "-" + name
}

// variables are make's command line, the same for configuring and compiling: if
// they differed, kbuild would configure again.
func (b *builder) variables() []string {
	source, build := b.workspace.source(), b.workspace.build()
	// Line tables, and no more: enough for file:line in a splat, at 4 % of the
	// compile time. File names are given from the root of the tree, so that the
	// place of the cache shows in no object. The last option that matches wins.
	debug := fmt.Sprintf("-g1 -fdebug-prefix-map=../= -fdebug-prefix-map=%s/= -fdebug-prefix-map=%s=.", source, build)
	variables := []string{
		"O=build",
		"ARCH=x86_64",
		// Macros are not traced for messages: a tenth of the compile time, and an
		// error is then reported where the patch uses the macro.
		"KCFLAGS=" + debug + " -gno-column-info -ftrack-macro-expansion=0",
		"KAFLAGS=" + debug,
		// Nothing of the user, the host and the hour.
		"KBUILD_BUILD_USER=zcvet",
		"KBUILD_BUILD_HOST=zcvet",
		"KBUILD_BUILD_VERSION=1",
		"KBUILD_BUILD_TIMESTAMP=Thu Jan  1 00:00:00 UTC 1970",
		"LOCALVERSION=",
	}
	variables = append(variables, b.set.Needs().Make...)
	if b.tools.CCache {
		variables = append(variables, "CC=ccache gcc", "HOSTCC=ccache gcc")
	}
	return variables
}

func (b *builder) make(temporary string, object func(string), targets ...string) *makeRun {
	jobs := b.options.Jobs
	if jobs <= 0 {
		jobs = runtime.NumCPU() + 1 // make's own moments fill the gaps: a tenth less on 2 processors
	}
	args := append([]string{"--no-print-directory", "-j" + strconv.Itoa(jobs)}, b.variables()...)
	return &makeRun{
		dir:  b.workspace.source(),
		args: append(args, targets...),
		env: environment(
			// The compilers' temporary files go when we go, however we do.
			"TMPDIR="+temporary,
			"KCONFIG_ALLCONFIG="+filepath.Join(b.workspace.dir, "all.config"),
			// Dependencies from the compiler save ccache a preprocessor run per miss.
			"CCACHE_DEPEND=1",
			"CCACHE_BASEDIR="+b.workspace.dir,
			"CCACHE_NOHASHDIR=1",
			"CCACHE_STATSLOG="+filepath.Join(temporary, "ccache.log"),
		),
		log:    b.options.Log,
		object: object,
	}
}

// configure makes .config and checks it. It is skipped when nothing that Kconfig
// reads has changed since the last time.
func (b *builder) configure(ctx context.Context, temporary string) error {
	config := b.set.Config(b.version)
	stampFile := filepath.Join(b.workspace.dir, "configured")
	resolved := filepath.Join(b.workspace.build(), ".config")
	stamp := identity(string(config), b.tools.String(), strconv.FormatBool(b.tools.CCache), kconfigOverlay(b.tree))
	if before, err := os.ReadFile(stampFile); err == nil && string(before) == stamp {
		if _, err := os.Stat(resolved); err == nil {
			return nil
		}
	}
	b.options.Progress.Report(progress.Update{Unit: progress.Objects, What: "configuring"})
	if err := os.RemoveAll(stampFile); err != nil {
		return b.options.Cache.Explain("configure the kernel", err)
	}
	if err := os.WriteFile(filepath.Join(b.workspace.dir, "all.config"), config, 0o644); err != nil {
		return b.options.Cache.Explain("configure the kernel", err)
	}
	if err := b.make(temporary, nil, "allnoconfig", "olddefconfig").run(ctx); err != nil {
		return b.explain("configure the kernel", err)
	}
	text, err := os.ReadFile(resolved)
	if err != nil {
		return b.options.Cache.Explain("configure the kernel", err)
	}
	if err := checkConfig(b.set.Symbols(b.version), text, b.workspace.source()); err != nil {
		return err
	}
	return b.options.Cache.Explain("configure the kernel", os.WriteFile(stampFile, []byte(stamp), 0o644))
}

// kconfigOverlay is a digest of what the series changes of Kconfig's inputs.
func kconfigOverlay(t *tree.Tree) string {
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(t.Overlay)) {
		if isKconfigInput(name) {
			parts = append(parts, name, string(t.Overlay[name]))
		}
	}
	for _, name := range t.Deleted {
		if isKconfigInput(name) {
			parts = append(parts, name)
		}
	}
	return identity(parts...)
}

func isKconfigInput(name string) bool {
	return strings.HasPrefix(path.Base(name), "Kconfig") || strings.HasPrefix(name, "scripts/") || name == "Makefile"
}

func (b *builder) compile(ctx context.Context, temporary string) error {
	var total int64
	if b.cold {
		total = b.expectedObjects()
	}
	object := func(file string) {
		if filepath.IsAbs(file) {
			return // objtool and its like, which are no part of the kernel
		}
		b.objects++
		// A wrong estimate must not show more than everything.
		if int64(b.objects) > total {
			total = 0
		}
		b.options.Progress.Report(progress.Update{Done: int64(b.objects), Total: total, Unit: progress.Objects, What: file})
	}
	if err := b.workspace.begin(); err != nil {
		return b.options.Cache.Explain("build the kernel", err)
	}
	err := b.make(temporary, object, "vmlinux").run(ctx)
	if !errors.Is(err, errKilled) {
		if err := b.workspace.end(); err != nil {
			return b.options.Cache.Explain("build the kernel", err)
		}
	}
	if err != nil {
		return b.explain("build the kernel", err)
	}
	if b.tools.CCache {
		b.hits, b.lookups = countHits(filepath.Join(temporary, "ccache.log"))
	}
	if b.cold {
		// Only the next progress bar depends on it.
		_ = b.options.Cache.Put(cache.Probe, b.objectsKey(), []byte(strconv.Itoa(b.objects)))
	}
	return nil
}

func (b *builder) objectsKey() string {
	return fmt.Sprintf("objects-%s-%s", b.version, b.set.Name)
}

func (b *builder) expectedObjects() int64 {
	if text, err := b.options.Cache.Get(cache.Probe, b.objectsKey()); err == nil {
		if n, err := strconv.ParseInt(string(text), 10, 64); err == nil && n > 0 {
			return n
		}
	}
	return typicalObjects
}

// countHits reads ccache's statistics log.
func countHits(log string) (hits, lookups int) {
	text, err := os.ReadFile(log)
	if err != nil {
		return 0, 0 // older than 4.4, which has no such log
	}
	for line := range strings.Lines(string(text)) {
		switch strings.TrimSpace(line) {
		case "direct_cache_hit", "preprocessed_cache_hit":
			hits++
			lookups++
		case "cache_miss":
			lookups++
		}
	}
	return hits, lookups
}

// explain turns a failed make into a fault that names the place and the patch.
func (b *builder) explain(what string, err error) error {
	failed, ok := errors.AsType[*makeError](err)
	if !ok {
		return b.options.Cache.Explain(what, err)
	}
	diagnosis := Diagnose(failed.lines, b.workspace.source())
	if diagnosis.Machine {
		return fault.New(fault.Infrastructure, "%s: %s", what, diagnosis.Text).
			WithAdvice("the machine ran out of memory or disk, its compiler crashed, or somebody ended it: `zcvet cache prune` frees disk, --jobs 1 saves memory").
			WithOutput(diagnosis.Excerpt)
	}
	message := diagnosis.String()
	if by := Culprit(diagnosis, b.tree); by != "" {
		message += " (" + by + ")"
	}
	return fault.New(fault.Build, "%s", message).WithOutput(diagnosis.Excerpt)
}

// keepNotes copies the notes that the compiler made beside the objects. Those of
// objects that other builds had counted are among them, and are not asked for.
func keepNotes(build, to string) error {
	return filepath.WalkDir(build, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || filepath.Ext(path) != ".gcno" {
			return err
		}
		relative, err := filepath.Rel(build, path)
		if err != nil {
			return err
		}
		target := filepath.Join(to, relative)
		if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
			return err
		}
		return copyFile(path, target)
	})
}

// keep copies what make made into the cache, under the kernel's id.
func (b *builder) keep(ctx context.Context, took time.Duration) error {
	dir := b.options.Cache
	stage, err := dir.Stage(cache.Kernels, b.id)
	if err != nil {
		return err
	}
	defer stage.Discard()
	build := b.workspace.build()
	// Copies, because the next build in this workspace writes into its files.
	vmlinux := filepath.Join(stage.Dir, vmlinuxFile)
	if err := copyFile(filepath.Join(build, "vmlinux"), vmlinux); err != nil {
		return dir.Explain("keep the kernel", err)
	}
	if err := copyFile(filepath.Join(build, ".config"), filepath.Join(stage.Dir, configFile)); err != nil {
		return dir.Explain("keep the kernel", err)
	}
	if err := keepNotes(build, filepath.Join(stage.Dir, notesDir)); err != nil {
		return dir.Explain("keep the compiler's notes", err)
	}
	strip := exec.CommandContext(ctx, "strip", "--strip-all", "-o", filepath.Join(stage.Dir, bootFile), vmlinux)
	strip.Env = environment()
	if output, err := strip.CombinedOutput(); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return fault.New(fault.Infrastructure, "strip vmlinux: %w", err).WithOutput(string(output))
	}
	release, err := os.ReadFile(filepath.Join(build, "include", "config", "kernel.release"))
	if err != nil {
		return dir.Explain("keep the kernel", err)
	}
	kernel := &Kernel{
		ID:           b.id,
		Release:      string(bytes.TrimSpace(release)),
		Compiler:     b.tools.Compiler,
		Fragments:    b.set.FragmentNames(),
		BuildSeconds: took.Seconds(),
		Objects:      b.objects,
		CacheHits:    b.hits,
		CacheLookups: b.lookups,
	}
	return keepDescription(dir, stage, kernel)
}

// keepDescription writes kernel.json and commits the stage.
func keepDescription(dir *cache.Dir, stage *cache.Stage, kernel *Kernel) error {
	text, err := json.MarshalIndent(kernel, "", "  ")
	if err != nil {
		return fmt.Errorf("describe the kernel: %w", err)
	}
	if err := os.WriteFile(filepath.Join(stage.Dir, kernelFile), append(text, '\n'), 0o644); err != nil {
		return dir.Explain("keep the kernel", err)
	}
	return stage.Commit()
}
