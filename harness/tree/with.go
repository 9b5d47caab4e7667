// SPDX-License-Identifier: BSD-3-Clause

package tree

import (
	"io/fs"
	"maps"
)

// With returns the tree with some files given other contents, which no patch of
// the series is to blame for.
func (t *Tree) With(files map[string][]byte) *Tree {
	changed := *t
	changed.Overlay, changed.Mode, changed.owners = map[string][]byte{}, map[string]fs.FileMode{}, maps.Clone(t.owners)
	maps.Copy(changed.Overlay, t.Overlay)
	maps.Copy(changed.Mode, t.Mode)
	for name, content := range files {
		changed.Overlay[name] = content
		delete(changed.owners, name)
	}
	changed.ID = changed.id()
	return &changed
}
