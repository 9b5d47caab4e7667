// SPDX-License-Identifier: BSD-3-Clause

package tree

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/bluekeyes/go-gitdiff/gitdiff"

	"github.com/zcvet/zcvet/harness/cache"
	"github.com/zcvet/zcvet/harness/fault"
	"github.com/zcvet/zcvet/harness/series"
	"github.com/zcvet/zcvet/harness/source"
)

// maxFuzz is how many context lines GNU patch may ignore at either end of a
// hunk; two is its own default and what people get who run it by hand.
const maxFuzz = 2

// Options change how a series is applied. The zero value is usable.
type Options struct {
	// NoFuzz refuses a patch that git refuses, instead of placing it with
	// fuzz.
	NoFuzz bool
	// Cache holds the scratch directory, so that one left behind by a killed
	// run is swept; nil uses the system's temporary directory.
	Cache *cache.Dir
}

// Apply applies the patches of s in order to kernel and examines the result.
//
// A patch goes in as git am would put it: every context line must match,
// though the place may differ. When git refuses a patch over its context, and
// Options.NoFuzz is not set, GNU patch with a fuzz of two may place it; that is
// recorded and becomes a finding, since nobody can know that it is the right
// place.
//
// A patch that does not go in, that leaves the tree, or that changes what an
// overlay cannot hold (binary files, symbolic links) is a fault.Apply that
// names patch, file and hunk, with git's own words as its output. A kernel
// image takes no patches: fault.Usage.
func Apply(ctx context.Context, kernel *source.Kernel, s *series.Series, options Options) (*Tree, error) {
	if kernel.Image != "" && len(s.Patches) > 0 {
		return nil, fault.New(fault.Usage, "%s is built already: a series cannot be applied to it", kernel.Image).
			WithAdvice("give the kernel as a version, tar:, dir: or git:, or use --series none")
	}
	tree := &Tree{Kernel: kernel, Series: s, Overlay: map[string][]byte{}, Mode: map[string]fs.FileMode{}, owners: map[string][]int32{}}
	if kernel.Image != "" {
		tree.ID, tree.ABI = kernel.ID, s.ABI
		return tree, nil
	}

	pristine, err := os.OpenRoot(kernel.Dir)
	if err != nil {
		return nil, fault.New(fault.Infrastructure, "kernel source: %w", err)
	}
	defer pristine.Close()

	if len(s.Patches) > 0 {
		a, cleanup, err := newApplier(tree, pristine, options)
		if err != nil {
			return nil, err
		}
		defer cleanup()
		for i := range s.Patches {
			if err := a.apply(ctx, i); err != nil {
				return nil, err
			}
		}
		if err := a.finish(); err != nil {
			return nil, err
		}
	}
	tree.ID = tree.id()
	if err := tree.examine(pristine); err != nil {
		return nil, err
	}
	return tree, nil
}

// content is a file at one moment; the zero value is a file that is not there.
type content struct {
	data   []byte
	mode   fs.FileMode
	exists bool
}

// applier holds the files that the series touches, in memory and in a scratch
// directory where git and patch work on them.
type applier struct {
	tree     *Tree
	pristine *os.Root
	scratch  *os.Root
	dir      string
	noFuzz   bool
	original map[string]content // before the series
	current  map[string]content
}

func newApplier(tree *Tree, pristine *os.Root, options Options) (*applier, func(), error) {
	dir, cleanup, err := options.Cache.TempDir()
	if err != nil {
		return nil, nil, err
	}
	// Git compares the ceiling with the resolved working directory.
	if dir, err = filepath.EvalSymlinks(dir); err == nil {
		dir, err = filepath.Abs(dir)
	}
	// A level of our own: whatever the temporary directory holds for its
	// owner's purposes is not part of the tree.
	work := filepath.Join(dir, "tree")
	if err == nil {
		err = os.Mkdir(work, 0o755)
	}
	var scratch *os.Root
	if err == nil {
		scratch, err = os.OpenRoot(work)
	}
	if err != nil {
		cleanup()
		return nil, nil, fault.New(fault.Infrastructure, "scratch directory: %w", err)
	}
	a := &applier{
		tree: tree, pristine: pristine, scratch: scratch, dir: work, noFuzz: options.NoFuzz,
		original: map[string]content{}, current: map[string]content{},
	}
	return a, func() { scratch.Close(); cleanup() }, nil
}

// apply applies patch i and records how.
func (a *applier) apply(ctx context.Context, i int) error {
	patch := &a.tree.Series.Patches[i]
	refuse := func(format string, args ...any) *fault.Error {
		return fault.New(fault.Apply, "patch %d/%d %q: %w", i+1, len(a.tree.Series.Patches), patch.Subject, fmt.Errorf(format, args...))
	}

	files, err := changes(patch.Diff)
	if err != nil {
		return refuse("%w", err)
	}
	touched := paths(files)
	before := make(map[string]content, len(touched))
	for _, name := range touched {
		if before[name], err = a.seed(name); err != nil {
			return refuse("%w", err)
		}
	}

	applied := Applied{Subject: patch.Subject, File: patch.File, SHA256: patch.SHA256, Files: touched}
	strict, err := a.run(ctx, patch.Diff, "git", "apply", "--verbose", "--whitespace=nowarn", "-")
	if err != nil {
		return err
	}
	report := parseReport(strict.output)
	applied.Output = strict.output
	if !strict.ok {
		failures := report.locate(files)
		if a.noFuzz || !report.contextOnly {
			return refuse("does not apply%s", describe(failures)).WithOutput(strict.output).
				WithAdvice("rebase the series onto %s, or choose the kernel it was made for", a.tree.Kernel.Version)
		}
		loose, err := a.run(ctx, patch.Diff, "patch", "-p1", "--unified", fmt.Sprintf("--fuzz=%d", maxFuzz),
			"--batch", "--forward", "--no-backup-if-mismatch", "--reject-file=-")
		if err != nil {
			return err
		}
		looseReport := parseReport(loose.output)
		if !loose.ok {
			if unplaced := looseReport.locate(files); len(unplaced) > 0 {
				failures = unplaced
			}
			return refuse("does not apply, not even with fuzz%s", describe(failures)).
				WithOutput(strict.output+"\nGNU patch with a fuzz of "+strconv.Itoa(maxFuzz)+" could not place it either:\n"+loose.output).
				WithAdvice("rebase the series onto %s, or choose the kernel it was made for", a.tree.Kernel.Version)
		}
		applied.Fuzz = true
		applied.Output += "\n" + loose.output
		report = looseReport
		a.tree.Findings = append(a.tree.Findings, fuzzFindings(patch, failures, report, strict.output)...)
	}
	applied.Hunks = report.hunks
	for _, hunk := range report.hunks {
		applied.Offset = max(applied.Offset, hunk.Offset, -hunk.Offset)
	}

	// A renamed or copied file takes the history of its lines along.
	origin := map[string]string{}
	for _, file := range files {
		if file.IsRename || file.IsCopy {
			origin[file.NewName] = file.OldName
		}
	}
	owners := map[string][]int32{}
	for _, name := range touched {
		after, err := a.read(a.scratch, name)
		if err != nil {
			return refuse("%w", err)
		}
		a.current[name] = after
		if after.exists {
			from := cmp.Or(origin[name], name)
			owners[name] = carry(a.tree.owners[from], before[from].data, after.data, int32(i))
		}
	}
	for _, name := range touched {
		delete(a.tree.owners, name)
	}
	maps.Copy(a.tree.owners, owners)
	a.tree.Applied = append(a.tree.Applied, applied)
	return nil
}

// seed puts a file into the scratch directory when a patch touches it for the
// first time, and returns what it is now.
func (a *applier) seed(name string) (content, error) {
	if now, ok := a.current[name]; ok {
		return now, nil
	}
	now, err := a.read(a.pristine, name)
	if err != nil {
		return content{}, err
	}
	if now.exists {
		if err := a.scratch.MkdirAll(path.Dir(name), 0o755); err != nil {
			return content{}, err
		}
		if err := a.scratch.WriteFile(name, now.data, now.mode); err != nil {
			return content{}, err
		}
		// The umask took its part of the mode; git compares it.
		if err := a.scratch.Chmod(name, now.mode); err != nil {
			return content{}, err
		}
	}
	a.original[name], a.current[name] = now, now
	return now, nil
}

// read returns a file below root; that there is none is not an error.
func (a *applier) read(root *os.Root, name string) (content, error) {
	info, err := root.Lstat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR):
		return content{}, nil
	case err != nil:
		return content{}, err
	case info.Mode().Type() == fs.ModeSymlink:
		return content{}, fmt.Errorf("%s is a symbolic link: patching one is not supported", name)
	case !info.Mode().IsRegular():
		return content{}, fmt.Errorf("%s is not a regular file", name)
	}
	data, err := root.ReadFile(name)
	if err != nil {
		return content{}, err
	}
	// Git knows two modes, and so does a kernel tree.
	mode := fs.FileMode(0o644)
	if info.Mode()&0o100 != 0 {
		mode = 0o755
	}
	return content{data: data, mode: mode, exists: true}, nil
}

// finish turns the difference between the original and the current files into
// the overlay. A file that the series brought back to its old state is none.
func (a *applier) finish() error {
	for name, now := range a.current {
		original := a.original[name]
		switch {
		case !now.exists && original.exists:
			a.tree.Deleted = append(a.tree.Deleted, name)
		case now.exists && (!original.exists || now.mode != original.mode || !bytes.Equal(now.data, original.data)):
			a.tree.Overlay[name] = now.data
			a.tree.Mode[name] = now.mode
		}
	}
	slices.Sort(a.tree.Deleted)
	return nil
}

type result struct {
	output string
	ok     bool
}

// run feeds a diff to a tool in the scratch directory. That the tool refuses
// the diff is a result, not an error.
func (a *applier) run(ctx context.Context, diff []byte, name string, args ...string) (result, error) {
	command := exec.CommandContext(ctx, name, args...)
	command.Dir = a.dir
	command.Stdin = bytes.NewReader(diff)
	// The user's own settings (apply.whitespace, core.autocrlf, POSIXLY_CORRECT
	// and the like) must not decide whether a series applies. The ceiling
	// keeps git from taking the scratch directory for a part of a repository
	// around it: it would then silently skip every path outside.
	command.Env = append(withoutPrefix(os.Environ(), "GIT_", "LC_", "LANG", "POSIXLY_CORRECT", "PATCH_", "SIMPLE_BACKUP_SUFFIX", "VERSION_CONTROL", "QUOTING_STYLE"),
		"LC_ALL=C", "GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL="+os.DevNull, "GIT_CEILING_DIRECTORIES="+filepath.Dir(a.dir))
	output, err := command.CombinedOutput()
	if ctx.Err() != nil {
		return result{}, context.Cause(ctx)
	}
	exit, refused := errors.AsType[*exec.ExitError](err)
	switch {
	case errors.Is(err, exec.ErrNotFound):
		return result{}, fault.New(fault.Infrastructure, "%s is needed to apply patches: %w", name, err).WithAdvice("install the package %s", name)
	case err != nil && (!refused || !exit.Exited()):
		return result{}, fault.New(fault.Infrastructure, "%s: %w", name, err).WithOutput(string(output))
	}
	return result{output: strings.TrimRight(string(output), "\n"), ok: err == nil}, nil
}

func withoutPrefix(environment []string, prefixes ...string) []string {
	return slices.DeleteFunc(environment, func(entry string) bool {
		return slices.ContainsFunc(prefixes, func(prefix string) bool { return strings.HasPrefix(entry, prefix) })
	})
}

// changes parses a diff and refuses what an overlay cannot hold.
func changes(diff []byte) ([]*gitdiff.File, error) {
	files, _, err := gitdiff.Parse(bytes.NewReader(diff))
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("malformed diff: %w", err)
	}
	if len(files) == 0 {
		return nil, errors.New("changes no file")
	}
	for _, file := range files {
		for _, name := range []string{file.OldName, file.NewName} {
			if name != "" && !isInside(name) {
				return nil, fmt.Errorf("the path %q leaves the tree", name)
			}
		}
		name := cmp.Or(file.NewName, file.OldName)
		if file.IsBinary {
			return nil, fmt.Errorf("%s: binary changes are not supported", name)
		}
		for _, mode := range []os.FileMode{file.OldMode, file.NewMode} {
			// Octal file types of git: 0120000 symbolic link, 0160000 submodule.
			if kind := mode &^ 0o777; kind != 0 && kind != 0o100000 {
				return nil, fmt.Errorf("%s: mode %o (symbolic link or submodule) is not supported", name, uint32(mode))
			}
		}
	}
	return files, nil
}

// isInside tells whether a path of a diff names something in the tree, and not
// git's own data.
func isInside(name string) bool {
	if !filepath.IsLocal(name) || path.Clean(name) != name || name == "." || strings.ContainsAny(name, "\x00\n") {
		return false
	}
	return !slices.ContainsFunc(strings.Split(name, "/"), func(part string) bool { return strings.EqualFold(part, ".git") })
}

// paths lists every path that the files of a diff name, sorted.
func paths(files []*gitdiff.File) []string {
	var names []string
	for _, file := range files {
		for _, name := range []string{file.OldName, file.NewName} {
			if name != "" {
				names = append(names, name)
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// failure is a place where a diff did not go in.
type failure struct {
	file   string
	number int // of the hunk from 1, 0 when it is the file as a whole
	line   int
}

// describe names the first of the failures, and how many more there are.
func describe(failures []failure) string {
	if len(failures) == 0 {
		return ""
	}
	first := failures[0]
	text := ": " + first.file
	if first.number > 0 {
		text += fmt.Sprintf(", hunk %d", first.number)
	}
	if first.line > 0 {
		text += fmt.Sprintf(" (line %d)", first.line)
	}
	if more := len(failures) - 1; more > 0 {
		text += fmt.Sprintf(", and %d more", more)
	}
	return text
}

// report is what git apply --verbose or GNU patch said about a diff.
type report struct {
	hunks  []Hunk
	failed []failure
	// contextOnly is true when the only objection was that context lines did
	// not match.
	contextOnly bool
}

var (
	gitFile      = regexp.MustCompile(`^Checking patch (.*)\.\.\.$`)
	patchFile    = regexp.MustCompile(`^(?:patching|checking) file '?(.*?)'?(?: \((?:renamed|copied) from .*\))?$`)
	placed       = regexp.MustCompile(`^Hunk #(\d+) succeeded at (\d+)(?: with fuzz (\d+))?(?: \(offset (-?\d+) lines?\))?\.$`)
	gitFailed    = regexp.MustCompile(`^error: patch failed: (.*):(\d+)$`)
	gitUnapplied = regexp.MustCompile(`^error: (.*): patch does not apply$`)
	gitError     = regexp.MustCompile(`^error: (.*)$`)
	gitErrorFile = regexp.MustCompile(`^error: (.*): (?:No such file or directory|does not exist in working directory|already exists in working directory|wrong type|is beyond a symbolic link)`)
	patchFailed  = regexp.MustCompile(`^Hunk #(\d+) FAILED at (\d+)`)
)

// parseReport reads the output of either tool. Its input repeats lines of the
// patch ("while searching for:"), so nothing in it is trusted further than to
// name a place.
func parseReport(output string) report {
	var r report
	file, sought := "", false
	contextErrors, otherErrors := 0, 0
	for line := range strings.Lines(output) {
		line = strings.TrimSuffix(line, "\n")
		// Git repeats the hunk's old lines after this error, up to the next one.
		if sought && !strings.HasPrefix(line, "error: patch failed: ") {
			continue
		}
		sought = false
		if line == "error: while searching for:" {
			sought = true
			continue
		}
		if m := gitFile.FindStringSubmatch(line); m != nil {
			file = renamed(m[1])
		} else if m := patchFile.FindStringSubmatch(line); m != nil {
			file = m[1]
		} else if m := placed.FindStringSubmatch(line); m != nil {
			hunk := Hunk{File: file, Number: number(m[1]), Line: number(m[2]), Fuzz: number(m[3]), Offset: number(m[4])}
			r.hunks = append(r.hunks, hunk)
		} else if m := gitFailed.FindStringSubmatch(line); m != nil {
			r.failed = append(r.failed, failure{file: m[1], line: number(m[2])})
			contextErrors++
		} else if m := patchFailed.FindStringSubmatch(line); m != nil {
			r.failed = append(r.failed, failure{file: file, number: number(m[1]), line: number(m[2])})
		} else if gitUnapplied.MatchString(line) {
			// Follows the error that named the hunk.
		} else if m := gitErrorFile.FindStringSubmatch(line); m != nil {
			r.failed = append(r.failed, failure{file: m[1]})
			otherErrors++
		} else if gitError.MatchString(line) {
			otherErrors++
		}
	}
	r.contextOnly = contextErrors > 0 && otherErrors == 0
	return r
}

// locate completes the failures of a report with the numbers of the hunks.
func (r report) locate(files []*gitdiff.File) []failure {
	failures := slices.Clone(r.failed)
	for i := range failures {
		failed := &failures[i]
		if failed.number > 0 {
			continue
		}
		for _, file := range files {
			if file.OldName != failed.file && file.NewName != failed.file {
				continue
			}
			for n, fragment := range file.TextFragments {
				if failed.line > 0 && fragment.OldPosition == int64(failed.line) {
					failed.number = n + 1
				}
			}
		}
	}
	return failures
}

// renamed returns the new name from git's "{old => new}" or "old => new".
func renamed(name string) string {
	if open := strings.IndexByte(name, '{'); open >= 0 {
		if end := strings.IndexByte(name[open:], '}'); end >= 0 {
			if _, after, ok := strings.Cut(name[open+1:open+end], " => "); ok {
				return path.Clean(name[:open] + after + name[open+end+1:])
			}
		}
	}
	if _, after, ok := strings.Cut(name, " => "); ok {
		return after
	}
	return name
}

// number converts a string of digits; an empty or absurd one is 0.
func number(digits string) int {
	n, err := strconv.Atoi(digits)
	if err != nil {
		return 0
	}
	return n
}
