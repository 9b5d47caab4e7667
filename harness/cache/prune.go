// SPDX-License-Identifier: BSD-3-Clause

package cache

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"
)

// Entry is one entry as List finds it.
type Entry struct {
	Kind Kind
	Key  string
	Path string
	// Size is what the entry takes on disk, in bytes. A file that several
	// entries share through hard links counts for the first one listed only, so
	// the sizes add up to what the cache really takes.
	Size int64
	// Used is when the entry was made or last asked for with Has.
	Used time.Time
}

// List finds all entries, kind by kind in a fixed order, the most recently used
// first. Build trees come last, since they share most files with their source.
func (d *Dir) List(ctx context.Context) ([]Entry, error) {
	folders, err := os.ReadDir(d.root)
	if err != nil {
		return nil, d.explain("list the cache", err)
	}
	var entries []Entry
	for _, folder := range folders {
		if !folder.IsDir() || folder.Name() == lockFolder || folder.Name() == temporaryFolder {
			continue
		}
		kind := Kind(folder.Name())
		children, err := os.ReadDir(filepath.Join(d.root, folder.Name()))
		if err != nil {
			return nil, d.explain("list the cache", err)
		}
		for _, child := range children {
			info, err := child.Info()
			if errors.Is(err, fs.ErrNotExist) {
				continue // pruned meanwhile
			}
			if err != nil {
				return nil, d.explain("list the cache", err)
			}
			entries = append(entries, Entry{
				Kind: kind,
				Key:  unescape(child.Name()),
				Path: filepath.Join(d.root, folder.Name(), child.Name()),
				Used: info.ModTime(),
			})
		}
	}
	slices.SortStableFunc(entries, func(a, b Entry) int {
		return cmp.Or(
			cmp.Compare(kindOrder(a.Kind), kindOrder(b.Kind)),
			cmp.Compare(a.Kind, b.Kind),
			b.Used.Compare(a.Used),
		)
	})
	seen := map[inode]bool{}
	for i := range entries {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		entries[i].Size = diskUsage(entries[i].Path, seen)
	}
	return entries, nil
}

func kindOrder(kind Kind) int {
	if kind == Work {
		return 1
	}
	return 0
}

type inode struct{ device, number uint64 }

// diskUsage counts the blocks below path; what disappears meanwhile counts 0.
func diskUsage(path string, seen map[inode]bool) int64 {
	var total int64
	_ = filepath.WalkDir(path, func(_ string, entry fs.DirEntry, err error) error {
		if err != nil {
			return nil
		}
		info, err := entry.Info()
		if err != nil {
			return nil
		}
		stat, ok := info.Sys().(*syscall.Stat_t)
		if !ok {
			total += info.Size()
			return nil
		}
		if stat.Nlink > 1 && !entry.IsDir() {
			id := inode{stat.Dev, stat.Ino}
			if seen[id] {
				return nil
			}
			seen[id] = true
		}
		total += stat.Blocks * 512 // st_blocks counts 512 bytes whatever the file system does
		return nil
	})
	return total
}

// Filter says what Prune removes. The zero Filter removes everything that is not
// in use.
type Filter struct {
	// Kinds limits pruning to these kinds; empty means all.
	Kinds []Kind
	// OlderThan spares entries used within this time.
	OlderThan time.Duration
	// MaxSize, if positive, stops as soon as the remaining entries of Kinds take
	// no more than this many bytes; the least recently used go first.
	MaxSize int64
	// DryRun only tells what would go.
	DryRun bool
}

// Prune removes entries and returns them. It passes over entries that somebody
// holds or is making right now.
func (d *Dir) Prune(ctx context.Context, filter Filter) ([]Entry, error) {
	entries, err := d.List(ctx)
	if err != nil {
		return nil, err
	}
	var total int64
	entries = slices.DeleteFunc(entries, func(entry Entry) bool {
		return len(filter.Kinds) > 0 && !slices.Contains(filter.Kinds, entry.Kind)
	})
	for _, entry := range entries {
		total += entry.Size
	}
	slices.SortStableFunc(entries, func(a, b Entry) int { return a.Used.Compare(b.Used) })
	var removed []Entry
	limit := time.Now().Add(-filter.OlderThan)
	for _, entry := range entries {
		if err := ctx.Err(); err != nil {
			return removed, err
		}
		if entry.Used.After(limit) || (filter.MaxSize > 0 && total <= filter.MaxSize) {
			break
		}
		release, free := d.tryClaim(entry.Kind, entry.Key)
		if !free {
			continue
		}
		if !filter.DryRun {
			err = d.remove(entry.Path)
		}
		release()
		if err != nil {
			return removed, err
		}
		total -= entry.Size
		removed = append(removed, entry)
	}
	return removed, nil
}
