// SPDX-License-Identifier: BSD-3-Clause

package source

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/zcvet/zcvet/harness/fault"
	"github.com/zcvet/zcvet/harness/progress"
)

// contents is the kind of the small entries that remember the hash of a
// directory whose files have not been touched since.
const contents = "directories"

// buildProducts are what an in-tree build leaves, by which the kernel's Makefile
// recognises a source that an out-of-tree build must refuse.
var buildProducts = []string{".config", "include/config", "include/generated", "arch/x86/include/generated"}

// directory takes a source tree where it is. It is never written to: not even
// git's index is refreshed.
func (r *resolver) directory(ctx context.Context, name string) (*Kernel, error) {
	dir, err := filepath.Abs(name)
	if err == nil {
		dir, err = filepath.EvalSymlinks(dir)
	}
	if err != nil {
		return nil, fault.New(fault.Usage, "kernel source: %w", err)
	}
	version, err := readVersion(dir)
	if err != nil {
		return nil, fault.New(fault.Usage, "%s: %w", name, err)
	}
	for _, product := range buildProducts {
		if _, err := os.Lstat(filepath.Join(dir, product)); err == nil {
			advice := fmt.Sprintf("run `make mrproper` in %s", name)
			if _, err := os.Lstat(filepath.Join(dir, ".git")); err == nil {
				advice += fmt.Sprintf(", or use git:%s@HEAD, which leaves it alone", name)
			}
			return nil, fault.New(fault.Usage, "%s has been built in (there is %s): a source like that cannot be built out of tree", name, product).WithAdvice("%s", advice)
		}
	}
	id, err := r.directoryID(ctx, dir)
	if err != nil {
		return nil, err
	}
	return &Kernel{Version: version, Source: "directory " + name, ID: id, Dir: dir}, nil
}

// directoryID names the contents of a directory: by commit when it is the top of
// a git work tree, with a hash of the changes if there are any; else by a hash
// of all files.
func (r *resolver) directoryID(ctx context.Context, dir string) (string, error) {
	if _, err := os.Lstat(filepath.Join(dir, ".git")); err == nil {
		id, err := r.workTreeID(ctx, dir)
		if err == nil || ctx.Err() != nil {
			return id, err
		}
		// A work tree whose repository is gone or foreign is a directory still.
		r.logf("git on %s: %v", dir, err)
	}
	return r.contentID(ctx, dir)
}

func (r *resolver) workTreeID(ctx context.Context, dir string) (string, error) {
	git := func(args ...string) (string, error) {
		c := command(ctx, "git", append([]string{
			"-C", dir,
			// Whose tree it is does not matter to a reader, but the programs it
			// names must not run.
			"-c", "safe.directory=*", "-c", "core.fsmonitor=false",
		}, args...)...)
		// Otherwise `git status` and `git diff` write the refreshed index back.
		c.Env = append(withoutGit(c.Env), "GIT_OPTIONAL_LOCKS=0")
		return output(ctx, c)
	}
	head, err := git("rev-parse", "--verify", "HEAD^{commit}")
	if err != nil {
		return "", err
	}
	head = strings.TrimSpace(head)
	status, err := git("status", "--porcelain=v1", "-z", "--untracked-files=all", "--no-renames")
	if err != nil {
		return "", err
	}
	if status == "" {
		return commitID(head), nil
	}
	hash := sha256.New()
	for entry := range strings.SplitSeq(strings.TrimSuffix(status, "\x00"), "\x00") {
		if len(entry) < 4 {
			continue
		}
		name := entry[3:]
		fmt.Fprintf(hash, "%q", name)
		if err := hashEntry(hash, filepath.Join(dir, name)); err != nil && !os.IsNotExist(err) {
			return "", err
		}
	}
	return commitID(head) + "-dirty-" + hex.EncodeToString(hash.Sum(nil))[:12], nil
}

func withoutGit(environment []string) []string {
	return slices.DeleteFunc(environment, func(entry string) bool { return strings.HasPrefix(entry, "GIT_") })
}

// contentID hashes the files of a directory, unless none was touched since the
// last time.
func (r *resolver) contentID(ctx context.Context, dir string) (string, error) {
	var names []string
	touched := sha256.New()
	fmt.Fprintln(touched, dir)
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if entry.IsDir() {
			if entry.Name() == ".git" {
				return fs.SkipDir
			}
			return nil
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		names = append(names, name)
		changed := info.ModTime().UnixNano()
		if stat, ok := info.Sys().(*syscall.Stat_t); ok {
			// The change time cannot be set back, unlike the modification time.
			changed = max(changed, stat.Ctim.Nano())
		}
		fmt.Fprintf(touched, "%q %o %d %d\n", name, info.Mode(), info.Size(), changed)
		return nil
	})
	if err != nil {
		return "", r.unreadable(ctx, err)
	}
	key := hex.EncodeToString(touched.Sum(nil))[:32]
	if known, err := r.Cache.Get(contents, key); err == nil && len(known) > 0 {
		return string(known), nil
	}

	slices.Sort(names)
	hash := sha256.New()
	for i, name := range names {
		if ctx.Err() != nil {
			return "", context.Cause(ctx)
		}
		if i%1000 == 0 {
			r.Progress.Report(progress.Update{Done: int64(i), Total: int64(len(names)), Unit: progress.Files, What: "reading " + dir})
		}
		fmt.Fprintf(hash, "%q", name)
		if err := hashEntry(hash, filepath.Join(dir, name)); err != nil {
			return "", r.unreadable(ctx, err)
		}
	}
	id := "dir-" + hex.EncodeToString(hash.Sum(nil))[:16]
	return id, r.Cache.Put(contents, key, []byte(id))
}

func (r *resolver) unreadable(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return fault.New(fault.Usage, "kernel source: %w", err)
}

// hashEntry adds kind, permission and contents of a file to a hash.
func hashEntry(hash io.Writer, name string) error {
	info, err := os.Lstat(name)
	if err != nil {
		return err
	}
	executable := info.Mode()&0o100 != 0
	switch info.Mode().Type() {
	case 0:
		file, err := os.Open(name)
		if err != nil {
			return err
		}
		defer file.Close()
		fmt.Fprintf(hash, " file %v %d\n", executable, info.Size())
		_, err = io.Copy(hash, file)
		return err
	case fs.ModeSymlink:
		target, err := os.Readlink(name)
		fmt.Fprintf(hash, " link %q\n", target)
		return err
	default:
		fmt.Fprintf(hash, " %s\n", cmp.Or(info.Mode().Type().String(), "other"))
		return nil
	}
}
