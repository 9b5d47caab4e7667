// SPDX-License-Identifier: BSD-3-Clause

package tree

import (
	"fmt"
	"io/fs"
	"os"
	"slices"
)

// ReadFile returns a file of the patched tree. One that is not there gives
// fs.ErrNotExist.
func (t *Tree) ReadFile(name string) ([]byte, error) {
	if data, ok := t.Overlay[name]; ok {
		return data, nil
	}
	if slices.Contains(t.Deleted, name) {
		return nil, fmt.Errorf("%s: %w", name, fs.ErrNotExist)
	}
	// A root, because names come from patches.
	pristine, err := os.OpenRoot(t.Kernel.Dir)
	if err != nil {
		return nil, err
	}
	defer pristine.Close()
	return pristine.ReadFile(name)
}
