// SPDX-License-Identifier: BSD-3-Clause

package kbuild

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"syscall"

	"golang.org/x/sync/errgroup"

	"github.com/zcvet/zcvet/harness/fault"
	"github.com/zcvet/zcvet/harness/progress"
	"github.com/zcvet/zcvet/harness/tree"
)

// workspace is a build tree in the cache, for one source and one configuration:
//
//	linux/        the source: hard links to the pristine tree, plus the overlay
//	linux/build/  what make made of it; kept, so that the next build is short
//	touched.json  the paths that may differ from the pristine tree
//
// The build directory lies within the source because kbuild then uses relative
// paths, which keeps the place of the cache out of the objects.
type workspace struct {
	dir      string
	pristine string
	// variant tells several build directories of one source tree apart; empty for
	// the only one.
	variant string
}

func (w *workspace) source() string { return filepath.Join(w.dir, "linux") }
func (w *workspace) build() string  { return filepath.Join(w.dir, "linux", w.buildName()) }

// buildName is the build directory as make's O= names it.
func (w *workspace) buildName() string { return w.file("build") }

// file is the name of a file or directory that each variant has of its own.
func (w *workspace) file(name string) string {
	if w.variant == "" {
		return name
	}
	return name + "-" + w.variant
}

func (w *workspace) state() string { return filepath.Join(w.dir, "touched.json") }

// prepare makes the source tree if it is not there, and then the tree's overlay
// in it. The caller holds the workspace's lock.
func (w *workspace) prepare(ctx context.Context, t *tree.Tree, report progress.Func) error {
	if _, err := os.Stat(w.source()); errors.Is(err, fs.ErrNotExist) {
		if err := w.link(ctx, report); err != nil {
			return fmt.Errorf("copy the kernel source: %w", err)
		}
	} else if err != nil {
		return err
	}
	if err := w.sync(t); err != nil {
		return fmt.Errorf("put the series into the build tree: %w", err)
	}
	return os.MkdirAll(w.build(), 0o755)
}

// link copies the pristine tree by hard links, or by content where links do not
// reach: another file system, or one without them.
func (w *workspace) link(ctx context.Context, report progress.Func) error {
	partial := filepath.Join(w.dir, "linux.partial")
	if err := os.RemoveAll(partial); err != nil {
		return err
	}
	if err := os.RemoveAll(w.state()); err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(2 * runtime.NumCPU()) // the work is waiting for the file system
	done := make(chan int, 64)
	counted := make(chan struct{})
	go func() {
		defer close(counted)
		var total int64
		for n := range done {
			total += int64(n)
			report.Report(progress.Update{Done: total, Unit: progress.Files, What: "copying the source"})
		}
	}()
	err := w.linkDir(ctx, group, "", partial, done)
	err = errors.Join(group.Wait(), err)
	close(done)
	<-counted
	if err != nil {
		return err
	}
	return os.Rename(partial, w.source())
}

// linkDir walks directories one after the other and links their files in the
// group.
func (w *workspace) linkDir(ctx context.Context, group *errgroup.Group, relative, partial string, done chan<- int) error {
	entries, err := os.ReadDir(filepath.Join(w.pristine, relative))
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(partial, relative), 0o755); err != nil {
		return err
	}
	var files []fs.DirEntry
	for _, entry := range entries {
		if err := ctx.Err(); err != nil {
			return err
		}
		if !entry.IsDir() {
			files = append(files, entry)
			continue
		}
		if relative == "" && entry.Name() == ".git" {
			continue
		}
		if err := w.linkDir(ctx, group, filepath.Join(relative, entry.Name()), partial, done); err != nil {
			return err
		}
	}
	if len(files) == 0 {
		return nil
	}
	group.Go(func() error {
		for _, file := range files {
			if err := ctx.Err(); err != nil {
				return err
			}
			from := filepath.Join(w.pristine, relative, file.Name())
			if err := linkOrCopy(from, filepath.Join(partial, relative, file.Name()), file.Type()); err != nil {
				return err
			}
		}
		done <- len(files)
		return nil
	})
	return nil
}

func linkOrCopy(from, to string, kind fs.FileMode) error {
	switch {
	case kind&fs.ModeSymlink != 0:
		target, err := os.Readlink(from)
		if err != nil {
			return err
		}
		return os.Symlink(target, to)
	case !kind.IsRegular():
		return nil // a socket or pipe in somebody's dir: tree is no source
	}
	err := os.Link(from, to)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, syscall.EXDEV), errors.Is(err, syscall.EPERM), errors.Is(err, syscall.EMLINK),
		errors.Is(err, syscall.EOPNOTSUPP), errors.Is(err, syscall.EACCES):
		return copyFile(from, to)
	}
	return err
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, info.Mode().Perm()|0o200)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		_ = out.Close()
		return err
	}
	return out.Close()
}

// sync makes the source tree what the patched tree says, and touches nothing that
// is so already: make goes by modification times, so a file that is rewritten is
// compiled again.
func (w *workspace) sync(t *tree.Tree) error {
	touched, err := w.touched()
	if err != nil {
		return err
	}
	for name := range t.Overlay {
		touched[name] = true
	}
	for _, name := range t.Deleted {
		touched[name] = true
	}
	// Written first: if we die half-way, the next sync looks at these paths too.
	if err := w.setTouched(touched); err != nil {
		return err
	}
	// A root, because the names come from patches: neither ".." nor a symbolic
	// link may lead out of the build tree.
	root, err := os.OpenRoot(w.source())
	if err != nil {
		return err
	}
	defer root.Close()
	pristine, err := os.OpenRoot(w.pristine)
	if err != nil {
		return err
	}
	defer pristine.Close()

	differing := map[string]bool{}
	for _, name := range slices.Sorted(maps.Keys(touched)) {
		content, patched := t.Overlay[name]
		mode := fs.FileMode(0o644)
		if given, ok := t.Mode[name]; ok {
			mode = given.Perm()
		}
		switch {
		case patched:
			differing[name] = true
		case slices.Contains(t.Deleted, name):
			differing[name] = true
			if err := root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			continue
		default:
			info, err := pristine.Stat(name)
			if errors.Is(err, fs.ErrNotExist) {
				if err := root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
					return err
				}
				continue
			}
			if err != nil {
				return err
			}
			// Not linked again: the pristine file is older than the object that
			// was compiled from the patched one, and make would keep that.
			mode = info.Mode().Perm()
			if content, err = pristine.ReadFile(name); err != nil {
				return err
			}
		}
		if err := replace(root, name, content, mode); err != nil {
			return err
		}
	}
	return w.setTouched(differing)
}

// replace gives a file its content unless it has it, always as a new inode: the
// old one may be a hard link into the pristine tree.
func replace(root *os.Root, name string, content []byte, mode fs.FileMode) error {
	current, err := root.ReadFile(name)
	if err == nil && bytes.Equal(current, content) {
		if info, err := root.Stat(name); err == nil && info.Mode().Perm()&0o111 == mode&0o111 {
			return nil
		}
	}
	if dir := path.Dir(name); dir != "." {
		if err := root.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	temporary := name + ".zcvet-new"
	if err := root.RemoveAll(temporary); err != nil {
		return err
	}
	if err := root.WriteFile(temporary, content, mode|0o200); err != nil {
		return err
	}
	return root.Rename(temporary, name)
}

func (w *workspace) touched() (map[string]bool, error) {
	text, err := os.ReadFile(w.state())
	if errors.Is(err, fs.ErrNotExist) {
		return map[string]bool{}, nil
	}
	if err != nil {
		return nil, err
	}
	var names []string
	if err := json.Unmarshal(text, &names); err != nil {
		return nil, fault.New(fault.Infrastructure, "%s: %w", w.state(), err).WithAdvice("remove %s", w.dir)
	}
	set := map[string]bool{}
	for _, name := range names {
		set[name] = true
	}
	return set, nil
}

func (w *workspace) setTouched(set map[string]bool) error {
	text, err := json.Marshal(slices.Sorted(maps.Keys(set)))
	if err != nil {
		return err
	}
	temporary := w.state() + ".new"
	if err := os.WriteFile(temporary, text, 0o644); err != nil {
		return err
	}
	return os.Rename(temporary, w.state())
}

// building is the file that is there while make runs.
func (w *workspace) building() string { return filepath.Join(w.dir, w.file("building")) }

func (w *workspace) begin() error { return os.WriteFile(w.building(), nil, 0o644) }

func (w *workspace) end() error { return os.Remove(w.building()) }

// recover removes what a killed build wrote. A file cut short looks new to make,
// which would link it; so everything since that build began is made again.
func (w *workspace) recover() error {
	mark, err := os.Stat(w.building())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	err = filepath.WalkDir(w.build(), func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		if info.ModTime().Before(mark.ModTime()) {
			return nil
		}
		return os.Remove(path)
	})
	if err != nil {
		return err
	}
	return w.end()
}
