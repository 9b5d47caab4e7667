// SPDX-License-Identifier: BSD-3-Clause

package source

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/zcvet/zcvet/harness/cache"
	"github.com/zcvet/zcvet/harness/fault"
	"github.com/zcvet/zcvet/harness/progress"
)

// command prepares a tool of the machine. It dies with us, speaks English, and
// cannot hold a cancelled run up with a pipe that its children keep open.
func command(ctx context.Context, name string, args ...string) *exec.Cmd {
	c := exec.CommandContext(ctx, name, args...)
	c.Env = append(os.Environ(), "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive", "GIT_TERMINAL_PROMPT=0")
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	c.WaitDelay = 2 * time.Second
	return c
}

// output runs a tool and returns its standard output; the error carries what it
// said on standard error.
func output(ctx context.Context, c *exec.Cmd) (string, error) {
	var stdout, stderr bytes.Buffer
	c.Stdout, c.Stderr = &stdout, &stderr
	err := c.Run()
	return stdout.String(), toolError(ctx, c, err, stderr.String())
}

// toolError explains the end of a tool; nil for nil.
func toolError(ctx context.Context, c *exec.Cmd, err error, said string) error {
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.Is(err, exec.ErrNotFound):
		return fault.New(fault.Infrastructure, "%w", err).WithAdvice("install %s", c.Args[0])
	}
	return fault.New(fault.Infrastructure, "%s: %w", c.Args[0], err).WithOutput(said)
}

// meter counts the bytes that pass and reports them.
type meter struct {
	io.Reader
	report progress.Func
	what   string
	done   int64
	total  int64
	last   time.Time
}

// meterInterval keeps a fast copy from drowning its listener.
const meterInterval = 100 * time.Millisecond

func (m *meter) Read(p []byte) (int, error) {
	n, err := m.Reader.Read(p)
	m.done += int64(n)
	if now := time.Now(); err != nil || now.Sub(m.last) >= meterInterval {
		m.last = now
		m.report.Report(progress.Update{Done: m.done, Total: m.total, Unit: progress.Bytes, What: m.what})
	}
	return n, err
}

// hashFile returns the SHA-256 of a file in hex.
func (r *resolver) hashFile(ctx context.Context, name string) (string, error) {
	file, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return "", err
	}
	hash := sha256.New()
	reader := &meter{Reader: cancelled{ctx, file}, report: r.Progress, what: "checking " + filepath.Base(name), total: info.Size()}
	if _, err := io.Copy(hash, reader); err != nil {
		return "", err
	}
	return hex.EncodeToString(hash.Sum(nil)), nil
}

// cancelled is a reader that ends with its context.
type cancelled struct {
	ctx context.Context
	io.Reader
}

func (c cancelled) Read(p []byte) (int, error) {
	if c.ctx.Err() != nil {
		return 0, context.Cause(c.ctx)
	}
	return c.Reader.Read(p)
}

// compressions are the formats by which tar can be told to read a pipe; from a
// pipe it does not find out for itself.
var compressions = []struct {
	magic  string
	option string
}{
	{"\x1f\x8b", "--gzip"},
	{"\xfd7zXZ\x00", "--xz"},
	{"BZh", "--bzip2"},
	{"\x28\xb5\x2f\xfd", "--zstd"},
	{"LZIP", "--lzip"},
	{"\x89LZO", "--lzop"},
	{"\x1f\x9d", "--compress"},
	{"\x5d\x00\x00", "--lzma"},
}

// unpack makes a tarball the source tree with the given id, unless it is there.
func (r *resolver) unpack(ctx context.Context, tarball, id, source string) (*Kernel, error) {
	unlock, err := r.Cache.Lock(ctx, cache.Sources, id)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if r.Cache.Has(cache.Sources, id) {
		return r.cached(id, source)
	}
	file, err := os.Open(tarball)
	if err != nil {
		return nil, fault.New(fault.Usage, "kernel source: %w", err)
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil, fault.New(fault.Infrastructure, "kernel source: %w", err)
	}
	magic := make([]byte, 8)
	n, err := io.ReadFull(file, magic)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return nil, fault.New(fault.Infrastructure, "kernel source: %w", err)
	}
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		return nil, fault.New(fault.Infrastructure, "kernel source: %w", err)
	}
	option := ""
	for _, compression := range compressions {
		if bytes.HasPrefix(magic[:n], []byte(compression.magic)) {
			option = compression.option
			break
		}
	}
	reader := &meter{Reader: file, report: r.Progress, what: "unpacking " + filepath.Base(tarball), total: info.Size()}
	return r.extract(ctx, reader, option, filepath.Base(tarball), id, source)
}

// extract runs tar on a stream and commits the tree it holds. The caller holds
// the entry's lock.
func (r *resolver) extract(ctx context.Context, stream io.Reader, option, name, id, source string) (*Kernel, error) {
	stage, err := r.Cache.Stage(cache.Sources, id)
	if err != nil {
		return nil, err
	}
	defer stage.Discard()
	// The files belong to whoever unpacks them, with his umask: a tree that root
	// unpacked is not to be left writable by everybody.
	args := []string{"--extract", "--no-same-owner", "--no-same-permissions", "--directory", stage.Dir}
	if option != "" {
		args = append(args, option)
	}
	tar := command(ctx, "tar", args...)
	tar.Env = append(tar.Env, "XZ_DEFAULTS=--threads=0", "TAR_OPTIONS=")
	var said bytes.Buffer
	tar.Stdin, tar.Stderr = stream, &said
	if err := toolError(ctx, tar, tar.Run(), said.String()); err != nil {
		if classed, ok := errors.AsType[*fault.Error](err); ok {
			return nil, r.Cache.Explain("unpack "+name, outOfSpace(classed))
		}
		return nil, err
	}

	root, err := treeRoot(stage.Dir)
	if err != nil {
		return nil, fault.New(fault.Usage, "%s: %w", name, err)
	}
	version, err := readVersion(filepath.Join(stage.Dir, root))
	if err != nil {
		return nil, fault.New(fault.Usage, "%s: %w", name, err)
	}
	if root == "." {
		err = stage.Commit()
	} else {
		err = stage.CommitFile(root)
	}
	if err != nil {
		return nil, err
	}
	return &Kernel{Version: version, Source: source, ID: id, Dir: r.Cache.Path(cache.Sources, id)}, nil
}

// outOfSpace recognises tar's complaint about a full disk, which reaches us as
// words, so that the advice for it can be given.
func outOfSpace(err *fault.Error) error {
	if bytes.Contains([]byte(err.Output), []byte("No space left on device")) {
		return fmt.Errorf("%w: %w", err.Err, syscall.ENOSPC)
	}
	return err
}

// treeRoot finds the kernel tree in an unpacked tarball: itself, or the one
// directory in it. The result is relative to dir.
func treeRoot(dir string) (string, error) {
	if _, err := os.Stat(filepath.Join(dir, "Makefile")); err == nil {
		return ".", nil
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return "", err
	}
	// A pax header that git archive writes may have become a file.
	var folders []string
	for _, entry := range entries {
		if entry.IsDir() {
			folders = append(folders, entry.Name())
		}
	}
	if len(folders) != 1 {
		return "", errors.New("holds no kernel source: there is no Makefile at its top")
	}
	return folders[0], nil
}

// cached describes a tree that is in the cache already.
func (r *resolver) cached(id, source string) (*Kernel, error) {
	dir := r.Cache.Path(cache.Sources, id)
	version, err := readVersion(dir)
	if err != nil {
		return nil, fault.New(fault.Infrastructure, "cached source: %w", err).WithAdvice("remove %s", dir)
	}
	return &Kernel{Version: version, Source: source, ID: id, Dir: dir}, nil
}

// tarball unpacks a tarball of the user's.
func (r *resolver) tarball(ctx context.Context, name string) (*Kernel, error) {
	sum, err := r.hashFile(ctx, name)
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if err != nil {
		return nil, fault.New(fault.Usage, "kernel source: %w", err)
	}
	return r.unpack(ctx, name, "tar-"+sum[:16], "tarball "+name)
}
