// SPDX-License-Identifier: BSD-3-Clause

package cache

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/gofrs/flock"

	"github.com/zcvet/zcvet/harness/fault"
)

// lockSuffix marks the file whose lock says that the owner of the directory
// with the same name is alive.
const lockSuffix = ".lock"

// TempDir makes an empty directory on the cache's file system. Cleanup deletes
// it and may be called more than once; if the process dies first, the next Open
// of the cache by anyone does.
//
// A nil Dir makes one where the system keeps its temporary files, for callers
// that work without a cache; nobody tidies up after such a caller's death.
func (d *Dir) TempDir() (path string, cleanup func(), err error) {
	if d == nil {
		path, err := os.MkdirTemp("", "zcvet-")
		if err != nil {
			return "", nil, fault.New(fault.Infrastructure, "make a temporary directory: %w", err)
		}
		return path, func() { _ = removeAll(path) }, nil
	}
	for {
		path, lock, err := d.tryTempDir()
		if err != nil {
			return "", nil, d.explain("make a temporary directory", err)
		}
		if lock == nil {
			continue
		}
		var once sync.Once
		return path, func() {
			once.Do(func() {
				_ = removeAll(path)
				_ = os.Remove(path + lockSuffix)
				_ = lock.Close()
			})
		}, nil
	}
}

// tryTempDir returns a nil lock if a sweeper came in between.
func (d *Dir) tryTempDir() (string, *flock.Flock, error) {
	file, err := os.CreateTemp(filepath.Join(d.root, temporaryFolder), "*"+lockSuffix)
	if err != nil {
		return "", nil, err
	}
	created, err := file.Stat()
	_ = file.Close()
	if err != nil {
		return "", nil, err
	}
	lock := flock.New(file.Name(), flock.SetFlag(os.O_RDWR))
	taken, err := lock.TryLock()
	if errors.Is(err, fs.ErrNotExist) || (err == nil && !taken) {
		_ = lock.Close()
		return "", nil, nil
	}
	if err != nil {
		_ = lock.Close()
		return "", nil, err
	}
	// Between creating and locking the file, a sweeper may have taken it for a
	// dead one's. The lock is worth something only while the name leads to it.
	if current, err := os.Stat(file.Name()); err != nil || !os.SameFile(created, current) {
		_ = lock.Close()
		return "", nil, nil
	}
	path := strings.TrimSuffix(file.Name(), lockSuffix)
	if err := os.Mkdir(path, 0o755); err != nil {
		_ = os.Remove(file.Name())
		_ = lock.Close()
		return "", nil, err
	}
	return path, lock, nil
}

// sweep deletes the temporary directories of dead owners. It is housekeeping: an
// error keeps nobody from working and will meet the next sweeper again.
func (d *Dir) sweep() {
	locks, err := filepath.Glob(filepath.Join(d.root, temporaryFolder, "*"+lockSuffix))
	if err != nil {
		return
	}
	for _, path := range locks {
		lock := flock.New(path, flock.SetFlag(os.O_RDWR))
		if taken, err := lock.TryLock(); err == nil && taken {
			// The directory first: as long as it exists, so must its lock.
			if removeAll(strings.TrimSuffix(path, lockSuffix)) == nil {
				_ = os.Remove(path)
			}
		}
		_ = lock.Close()
	}
}

// removeAll is os.RemoveAll that also gets rid of directories without write
// permission, as pristine sources may have.
func removeAll(path string) error {
	if err := os.RemoveAll(path); err == nil || !errors.Is(err, fs.ErrPermission) {
		return err
	}
	_ = filepath.WalkDir(path, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.IsDir() {
			_ = os.Chmod(path, 0o700)
		}
		return nil
	})
	return os.RemoveAll(path)
}
