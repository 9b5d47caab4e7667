// SPDX-License-Identifier: BSD-3-Clause

package kbuild

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"

	"github.com/zcvet/zcvet/harness/cache"
	"github.com/zcvet/zcvet/harness/fault"
	"github.com/zcvet/zcvet/harness/progress"
	"github.com/zcvet/zcvet/harness/tree"
)

// Variant is a way to compile parts of a kernel that is never linked: with another
// compiler, for another architecture, or with other options than the kernel that
// boots.
type Variant struct {
	// Name tells it apart in the cache.
	Name string
	Arch string // as make takes it: x86_64, i386
	// Compiler is gcc or clang.
	Compiler string
	// Base is the configuration to begin with, a target of Kconfig such as
	// allnoconfig or allmodconfig. Config is put over it as far as the
	// architecture has the symbols.
	Base   string
	Config []byte
	// Sparse has sparse look at every file that is compiled.
	Sparse bool
}

// Compilation is what a compiler, and sparse, have to say about a tree.
type Compilation struct {
	// Said holds it by file: that of the source without its extension,
	// "net/core/sock". Files that were compiled without a word are there too.
	Said map[string]Said
	// Compiled is how many files had to be compiled this time.
	Compiled int
	// Failed is true if a file did not compile.
	Failed bool
	// Log is everything make printed.
	Log string
}

// Said is what was said about one file when it was compiled last.
type Said struct {
	Compiler []string `json:"compiler,omitempty"`
	Sparse   []string `json:"sparse,omitempty"`
}

// Compile brings the targets (directories with a slash behind them, and objects) of
// a tree up to date and tells what the compiler said about each file of them, with
// the warnings of W=1. Files that did not change since the last time are not
// compiled again: what was said about them is remembered. A target that the
// configuration leaves out is left out here too.
//
// A file that does not compile is a result. An error is the machine's fault, or
// that of a series that breaks the configuration (class Build).
func Compile(ctx context.Context, t *tree.Tree, variant Variant, targets []string, options Options) (*Compilation, error) {
	tools, err := findToolchain(ctx, !options.NoCCache)
	if err != nil {
		return nil, err
	}
	version, err := firstLine(ctx, variant.Compiler, "--version")
	if err != nil {
		return nil, err
	}
	dir := options.Cache
	key := t.Kernel.ID + "-check"
	unlock, err := dir.Lock(ctx, cache.Work, key)
	if err != nil {
		return nil, err
	}
	defer unlock()
	c := &compiler{
		options: options, variant: variant, tools: tools, version: version,
		workspace: workspace{pristine: t.Kernel.Dir, dir: dir.Path(cache.Work, key), variant: variant.Name},
	}
	if err := os.MkdirAll(c.workspace.dir, 0o755); err != nil {
		return nil, dir.Explain("make a build tree", err)
	}
	dir.Has(cache.Work, key) // counts as a use, for Prune
	if err := c.workspace.prepare(ctx, t, options.Progress); err != nil {
		return nil, dir.Explain("make a build tree", err)
	}
	if err := c.workspace.recover(); err != nil {
		return nil, dir.Explain("clean up after a build that was killed", err)
	}
	temporary, cleanup, err := dir.TempDir()
	if err != nil {
		return nil, err
	}
	defer cleanup()
	c.temporary = temporary
	if err := c.configure(ctx, kconfigOverlay(t)); err != nil {
		return nil, err
	}
	return c.compile(ctx, targets)
}

// compiler is one Compile under way.
type compiler struct {
	options   Options
	variant   Variant
	tools     toolchain
	version   string // of the variant's compiler
	workspace workspace
	temporary string
}

func (c *compiler) make(object func(string), log io.Writer, targets ...string) *makeRun {
	jobs := c.options.Jobs
	if jobs <= 0 {
		jobs = runtime.NumCPU() + 1
	}
	cc := c.variant.Compiler
	if c.tools.CCache {
		cc = "ccache " + cc
	}
	args := []string{
		"--no-print-directory", "-j" + strconv.Itoa(jobs),
		// Every file's output in one piece, and those after a broken one too.
		"--output-sync=target", "--keep-going",
		"O=" + c.workspace.buildName(), "ARCH=" + c.variant.Arch, "CC=" + cc, "W=1", "LOCALVERSION=",
		"KBUILD_BUILD_USER=zcvet", "KBUILD_BUILD_HOST=zcvet", "KBUILD_BUILD_TIMESTAMP=Thu Jan  1 00:00:00 UTC 1970",
	}
	if c.variant.Sparse {
		args = append(args, "C=1")
	}
	if c.variant.Compiler == "gcc" {
		// A message is then about the line that uses a macro, which a patch may
		// have touched, and not about the one that defines it.
		args = append(args, "KCFLAGS=-ftrack-macro-expansion=0")
	}
	return &makeRun{
		dir:  c.workspace.source(),
		args: append(args, targets...),
		env: environment(
			"TMPDIR="+c.temporary,
			"KCONFIG_ALLCONFIG="+filepath.Join(c.workspace.dir, c.workspace.file("all.config")),
			"CCACHE_DEPEND=1", "CCACHE_BASEDIR="+c.workspace.dir, "CCACHE_NOHASHDIR=1",
		),
		log:    log,
		object: object,
	}
}

func (c *compiler) configure(ctx context.Context, overlay string) error {
	explain := func(err error) error { return c.options.Cache.Explain("configure the kernel", err) }
	stampFile := filepath.Join(c.workspace.dir, c.workspace.file("configured"))
	stamp := identity(c.variant.Arch, c.version, c.variant.Base, string(c.variant.Config), strconv.FormatBool(c.variant.Sparse), strconv.FormatBool(c.tools.CCache), overlay)
	if before, err := os.ReadFile(stampFile); err == nil && string(before) == stamp {
		return nil
	}
	c.options.Progress.Report(progress.Update{Unit: progress.Objects, What: "configuring"})
	// What was said with another configuration does not hold.
	for _, file := range []string{stampFile, c.memory()} {
		if err := os.RemoveAll(file); err != nil {
			return explain(err)
		}
	}
	if err := os.RemoveAll(c.workspace.build()); err != nil {
		return explain(err)
	}
	if err := os.MkdirAll(c.workspace.build(), 0o755); err != nil {
		return explain(err)
	}
	if err := os.WriteFile(filepath.Join(c.workspace.dir, c.workspace.file("all.config")), c.variant.Config, 0o644); err != nil {
		return explain(err)
	}
	err := c.make(nil, c.options.Log, c.variant.Base).run(ctx)
	if failed, ok := errors.AsType[*makeError](err); ok {
		diagnosis := Diagnose(failed.lines, c.workspace.source())
		return fault.New(fault.Build, "configure: %s", diagnosis.String()).WithOutput(diagnosis.Excerpt)
	}
	if err != nil {
		return explain(err)
	}
	return explain(os.WriteFile(stampFile, []byte(stamp), 0o644))
}

// memory is the file with what was said about the objects that are there.
func (c *compiler) memory() string {
	return filepath.Join(c.workspace.dir, c.workspace.file("said")+".json")
}

func (c *compiler) compile(ctx context.Context, targets []string) (*Compilation, error) {
	explain := func(err error) error { return c.options.Cache.Explain("compile", err) }
	said, err := c.remember()
	if err != nil {
		return nil, explain(err)
	}
	if err := c.workspace.begin(); err != nil {
		return nil, explain(err)
	}
	result := &Compilation{Said: said}
	var log bytes.Buffer
	var out io.Writer = &log
	if c.options.Log != nil {
		out = io.MultiWriter(&log, c.options.Log)
	}
	err = c.make(func(file string) {
		if filepath.IsAbs(file) {
			return // objtool and its like
		}
		result.Compiled++
		c.options.Progress.Report(progress.Update{Done: int64(result.Compiled), Unit: progress.Objects, What: file})
	}, out, targets...).run(ctx)
	result.Log = log.String()
	for name, words := range listen(result.Log) {
		said[name] = words
	}
	if !errors.Is(err, errKilled) {
		if err := c.keep(said); err != nil {
			return nil, explain(err)
		}
		if err := c.workspace.end(); err != nil {
			return nil, explain(err)
		}
	}
	if failed, ok := errors.AsType[*makeError](err); ok {
		diagnosis := Diagnose(failed.lines, c.workspace.source())
		if diagnosis.Machine {
			return nil, fault.New(fault.Infrastructure, "compile: %s", diagnosis.Text).WithOutput(diagnosis.Excerpt)
		}
		result.Failed = !onlyLeftOut(failed.lines)
		return result, nil
	}
	if err != nil {
		return nil, explain(err)
	}
	return result, nil
}

func (c *compiler) remember() (map[string]Said, error) {
	said := map[string]Said{}
	text, err := os.ReadFile(c.memory())
	if errors.Is(err, fs.ErrNotExist) {
		return said, nil
	}
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(text, &said); err != nil {
		return nil, fault.New(fault.Infrastructure, "%s: %w", c.memory(), err).WithAdvice("remove %s", c.workspace.dir)
	}
	return said, nil
}

func (c *compiler) keep(said map[string]Said) error {
	text, err := json.Marshal(said)
	if err != nil {
		return err
	}
	staged := c.memory() + ".new"
	if err := os.WriteFile(staged, text, 0o644); err != nil {
		return err
	}
	return os.Rename(staged, c.memory())
}

// checkStep is make's progress line for sparse.
var checkStep = regexp.MustCompile(`^  CHECK +(\S+)$`)

// listen sorts the output of make by the file it is about: with --output-sync
// everything about a file stands behind the line that announces it.
func listen(log string) map[string]Said {
	said := map[string]Said{}
	file, sparse := "", false
	for line := range strings.Lines(log) {
		line = trimNewline(line)
		if match := checkStep.FindStringSubmatch(line); match != nil {
			file, sparse = translationUnit(match[1]), true
			continue
		}
		if match := step.FindStringSubmatch(line); match != nil {
			file, sparse = "", false
			if match[1] == "CC" && !filepath.IsAbs(match[2]) {
				file = translationUnit(match[2])
				said[file] = Said{}
			}
			continue
		}
		if file == "" || fails.MatchString(line) || line == "" {
			continue
		}
		words := said[file]
		if sparse {
			words.Sparse = append(words.Sparse, line)
		} else {
			words.Compiler = append(words.Compiler, line)
		}
		said[file] = words
	}
	return said
}

// translationUnit is what an object and its source have in common.
func translationUnit(file string) string {
	for strings.HasPrefix(file, "../") {
		file = strings.TrimPrefix(file, "../")
	}
	return strings.TrimSuffix(file, filepath.Ext(file))
}

// noRule is make's complaint about a target that the configuration leaves out.
var noRule = regexp.MustCompile(`^make\S*: \*\*\* No rule to make target '[^']+\.o'`)

// onlyLeftOut tells whether nothing failed but targets that are not configured.
func onlyLeftOut(lines []string) bool {
	found := false
	for _, line := range lines {
		switch {
		case noRule.MatchString(line):
			found = true
		case strings.Contains(line, " *** ") && !strings.Contains(line, "] Error ") && !strings.Contains(line, "__sub-make"):
			return false
		case strings.Contains(line, ": error: "), strings.Contains(line, ": fatal error: "):
			return false
		}
	}
	return found
}
