// SPDX-License-Identifier: BSD-3-Clause

// Package cache keeps what is dear to make: downloads, unpacked sources, built
// kernels, images, build trees. Several zcvet processes share one cache safely.
//
// An entry appears at its final place complete or not at all: it is made in a
// staging directory on the same file system and renamed. Whoever makes an entry
// holds its lock meanwhile, so that a second process waits for the first one's
// work instead of repeating it. Locks are flock(2) locks: they vanish with the
// process that holds them, however it dies, and so does the claim on its
// temporary directories, which the next Open sweeps away.
package cache

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/gofrs/flock"

	"github.com/zcvet/zcvet/harness/fault"
)

// Kind is a family of entries; each has a folder of its own under the root.
type Kind string

// The kinds in use. Work entries change in place under their lock; all others
// are never written again once they are at their place.
const (
	Downloads Kind = "downloads" // files as fetched, verified
	Sources   Kind = "sources"   // pristine kernel trees
	Kernels   Kind = "kernels"   // built kernels, by kernel id
	Images    Kind = "images"    // initramfs images
	Selftests Kind = "selftests" // selftests of kernel trees, or why they do not compile
	Probe     Kind = "probe"     // what was found out about this machine
	Work      Kind = "work"      // build trees
	Checks    Kind = "checks"    // results of checks, by what they are about
)

// Environment is the variable that moves the cache.
const Environment = "ZCVET_CACHE"

const (
	lockFolder      = "locks"
	temporaryFolder = "temporary"
)

// lockPoll is how often a waiting Lock tries again. flock(2) has no wait that a
// context could end, and a builder is waited for for minutes.
const lockPoll = 50 * time.Millisecond

// Dir is a cache directory. Its methods may be called from several goroutines.
type Dir struct {
	root string
	// Waiting, if set before first use, is called once when Lock or Hold finds
	// the entry taken, so that a person can be told what the run waits for. The
	// owner is a process id, 0 if unknown.
	Waiting func(kind Kind, key string, owner int)
}

// Open opens the cache at root and makes it if need be. An empty root stands for
// $ZCVET_CACHE, or else "zcvet" in the user's cache directory. It sweeps temporary
// directories whose owner has died.
func Open(root string) (*Dir, error) {
	if root == "" {
		root = os.Getenv(Environment)
	}
	if root == "" {
		user, err := os.UserCacheDir()
		if err != nil {
			return nil, fault.New(fault.Infrastructure, "no place for the cache: %w", err).
				WithAdvice("set %s to a directory on a disk with some 10 GB free", Environment)
		}
		root = filepath.Join(user, "zcvet")
	}
	root, err := filepath.Abs(root)
	if err != nil {
		return nil, fault.New(fault.Infrastructure, "cache: %w", err)
	}
	d := &Dir{root: root}
	for _, folder := range []string{lockFolder, temporaryFolder} {
		if err := os.MkdirAll(filepath.Join(root, folder), 0o755); err != nil {
			return nil, d.explain("open the cache", err)
		}
	}
	// Backup tools skip directories that carry this tag: bford.info/cachedir.
	tag := filepath.Join(root, "CACHEDIR.TAG")
	if _, err := os.Stat(tag); errors.Is(err, fs.ErrNotExist) {
		const text = "Signature: 8a477f597d28d172789f06886806bc55\n# Made by zcvet; safe to delete.\n"
		if err := os.WriteFile(tag, []byte(text), 0o644); err != nil {
			return nil, d.explain("open the cache", err)
		}
	}
	d.sweep()
	return d, nil
}

// Root is the directory of the cache, absolute.
func (d *Dir) Root() string { return d.root }

// Path is the final place of an entry, whether it exists or not. Any
// key is fine: characters that mean something in a path are escaped.
func (d *Dir) Path(kind Kind, key string) string {
	return filepath.Join(d.root, string(kind), escape(key))
}

// Has tells whether the entry is there, and marks it as used now, which is what
// Prune goes by.
func (d *Dir) Has(kind Kind, key string) bool {
	path := d.Path(kind, key)
	if _, err := os.Lstat(path); err != nil {
		return false
	}
	now := time.Now()
	// A cache on a read-only disk still serves.
	_ = os.Chtimes(path, now, now)
	return true
}

// Lock takes the entry for this caller alone, between processes and goroutines,
// and waits for that as long as ctx allows. The lock is about making the entry;
// reading a finished one needs none, or Hold to keep Prune away.
func (d *Dir) Lock(ctx context.Context, kind Kind, key string) (unlock func(), err error) {
	return d.lock(ctx, kind, key, true)
}

// Hold keeps the entry from being pruned until release is called. Any number of
// holders share it, and it does not get in the way of Lock: who waits for an entry
// to be made must not wait for the maker to be done with using it. Hold first,
// then look whether the entry is there.
func (d *Dir) Hold(ctx context.Context, kind Kind, key string) (release func(), err error) {
	return d.lock(ctx, kind, key, false)
}

func (d *Dir) lock(ctx context.Context, kind Kind, key string, exclusive bool) (func(), error) {
	// A dead context must not win a free lock, or a cancelled run goes on.
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("lock %s %s: %w", kind, key, err)
	}
	path := d.holdPath(kind, key)
	if exclusive {
		path = d.lockPath(kind, key)
	}
	lock := flock.New(path)
	try, wait := lock.TryRLock, lock.TryRLockContext
	if exclusive {
		try, wait = lock.TryLock, lock.TryLockContext
	}
	taken, err := try()
	if err == nil && !taken {
		if d.Waiting != nil {
			d.Waiting(kind, key, owner(path))
		}
		_, err = wait(ctx, lockPoll)
	}
	if err != nil {
		_ = lock.Close()
		if ctx.Err() != nil {
			return nil, fmt.Errorf("waiting for %s %s, which process %d is making: %w", kind, key, owner(path), err)
		}
		return nil, d.explain(fmt.Sprintf("lock %s %s", kind, key), err)
	}
	if exclusive {
		// Only a hint for whoever waits, so an error does not matter.
		_ = os.WriteFile(path, []byte(strconv.Itoa(os.Getpid())+"\n"), 0o644)
	}
	return func() { _ = lock.Close() }, nil
}

// tryClaim takes the entry if nobody makes it and nobody holds it.
func (d *Dir) tryClaim(kind Kind, key string) (release func(), ok bool) {
	making, holding := flock.New(d.lockPath(kind, key)), flock.New(d.holdPath(kind, key))
	release = func() {
		_ = holding.Close()
		_ = making.Close()
	}
	for _, lock := range []*flock.Flock{making, holding} {
		if taken, err := lock.TryLock(); err != nil || !taken {
			release()
			return nil, false
		}
	}
	return release, true
}

func (d *Dir) lockPath(kind Kind, key string) string {
	// Lock files are never deleted: a process may wait on one that has just
	// lost its name, and then two would hold "the" lock.
	return filepath.Join(d.root, lockFolder, string(kind)+"-"+escape(key))
}

func (d *Dir) holdPath(kind Kind, key string) string {
	return filepath.Join(d.root, lockFolder, "held-"+string(kind)+"-"+escape(key))
}

func owner(lockPath string) int {
	text, err := os.ReadFile(lockPath)
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return 0
	}
	return pid
}

// Get reads a small entry that Put wrote. A missing entry gives fs.ErrNotExist.
func (d *Dir) Get(kind Kind, key string) ([]byte, error) {
	return os.ReadFile(d.Path(kind, key))
}

// Put writes a small entry, replacing what was there in one step.
func (d *Dir) Put(kind Kind, key string, data []byte) error {
	path := d.Path(kind, key)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return d.explain("write to the cache", err)
	}
	staged, cleanup, err := d.TempDir()
	if err != nil {
		return err
	}
	defer cleanup()
	file := filepath.Join(staged, "data")
	if err := os.WriteFile(file, data, 0o644); err != nil {
		return d.explain("write to the cache", err)
	}
	if err := os.Rename(file, path); err != nil {
		return d.explain("write to the cache", err)
	}
	return nil
}

// Stage is an entry in the making.
type Stage struct {
	// Dir is an empty directory to make the entry in.
	Dir string

	cache   *Dir
	path    string
	cleanup func()
}

// Stage starts an entry. Commit or Discard must end it; Discard after Commit does
// nothing, so it can be deferred. The caller should hold the entry's Lock.
func (d *Dir) Stage(kind Kind, key string) (*Stage, error) {
	path := d.Path(kind, key)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, d.explain("write to the cache", err)
	}
	dir, cleanup, err := d.TempDir()
	if err != nil {
		return nil, err
	}
	return &Stage{Dir: dir, cache: d, path: path, cleanup: cleanup}, nil
}

// Commit moves the directory to its place in one step. If the entry is there
// already, made by someone who did not lock, that one stays: entries are named by
// content, so both are the same.
func (s *Stage) Commit() error { return s.commit(s.Dir) }

// CommitFile makes one file of the stage the entry and drops the rest.
func (s *Stage) CommitFile(name string) error { return s.commit(filepath.Join(s.Dir, name)) }

func (s *Stage) commit(from string) error {
	defer s.Discard()
	err := os.Rename(from, s.path)
	if errors.Is(err, syscall.ENOTEMPTY) || errors.Is(err, syscall.EEXIST) {
		return nil
	}
	if err != nil {
		return s.cache.explain("write to the cache", err)
	}
	return nil
}

// Discard drops the stage.
func (s *Stage) Discard() { s.cleanup() }

// Remove deletes an entry, if it exists. The caller holds its Lock.
func (d *Dir) Remove(kind Kind, key string) error {
	return d.remove(d.Path(kind, key))
}

// remove first moves the entry out of sight, so that nobody finds half of it.
func (d *Dir) remove(path string) error {
	trash, cleanup, err := d.TempDir()
	if err != nil {
		return err
	}
	defer cleanup()
	if err := os.Rename(path, filepath.Join(trash, "entry")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return d.explain("remove from the cache", err)
	}
	return nil
}

// Explain classes an error met while writing below the root: a full disk gets
// the advice that helps. It returns nil for nil.
func (d *Dir) Explain(what string, err error) error {
	if err == nil {
		return nil
	}
	return d.explain(what, err)
}

func (d *Dir) explain(what string, err error) error {
	if _, classed := errors.AsType[*fault.Error](err); classed {
		return err
	}
	failure := fault.New(fault.Infrastructure, "%s: %w", what, err)
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return failure.WithAdvice("the disk of %s is full: run `zcvet cache prune`, or set %s to a larger disk", d.root, Environment)
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS):
		return failure.WithAdvice("set %s to a directory this user can write", Environment)
	}
	return failure
}

// escape makes any key one path element that is neither hidden nor special.
func escape(key string) string {
	escaped := url.PathEscape(key)
	if escaped == "" {
		return "%" // no other key gives a lone percent sign
	}
	if hidden, ok := strings.CutPrefix(escaped, "."); ok {
		return "%2E" + hidden
	}
	return escaped
}

func unescape(name string) string {
	if name == escape("") {
		return ""
	}
	key, err := url.PathUnescape(name)
	if err != nil {
		return name // not ours
	}
	return key
}
