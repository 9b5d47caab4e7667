// SPDX-License-Identifier: BSD-3-Clause

// Package coverage finds out which lines that a series added were executed: it has
// the kernel build count in the files that the series changes, and reads the
// counters with gcov.
package coverage

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/zcvet/zcvet/harness/fault"
	"github.com/zcvet/zcvet/harness/tree"
)

// outside are the directories of the source with programs that are no part of the
// kernel.
var outside = []string{"Documentation/", "samples/", "scripts/", "tools/", "usr/"}

// Sources lists the C files of the kernel that the series changes, sorted.
func Sources(t *tree.Tree) []string {
	var files []string
	for _, name := range slices.Sorted(maps.Keys(t.Overlay)) {
		isTool := slices.ContainsFunc(outside, func(dir string) bool { return strings.HasPrefix(name, dir) })
		if path.Ext(name) == ".c" && !isTool {
			files = append(files, name)
		}
	}
	return files
}

// Instrument returns the tree in which the Makefiles ask for counters in the files
// that the series changes, and only there: of a kernel without the series, and of
// one with another series, all other objects can be used. Inline functions of
// headers are counted where these files use them.
func Instrument(t *tree.Tree) (*tree.Tree, error) {
	makefiles := map[string][]byte{}
	for _, source := range Sources(t) {
		name, content, err := makefileOf(t, source)
		if err != nil {
			return nil, err
		}
		if earlier, ok := makefiles[name]; ok {
			content = earlier
		}
		object := strings.TrimSuffix(strings.TrimPrefix(source, path.Dir(name)+"/"), ".c") + ".o"
		// The first line break ends a line that the file itself does not end.
		makefiles[name] = fmt.Appendf(slices.Clone(content), "\nGCOV_PROFILE_%s := y\n", object)
	}
	if len(makefiles) == 0 {
		return t, nil
	}
	return t.With(makefiles), nil
}

// makefileOf finds the file by which kbuild makes the object of a source: of two
// in one directory Kbuild comes first.
func makefileOf(t *tree.Tree, source string) (name string, content []byte, err error) {
	root, err := os.OpenRoot(t.Kernel.Dir)
	if err != nil {
		return "", nil, fault.New(fault.Infrastructure, "kernel source: %w", err)
	}
	defer root.Close()
	for dir := path.Dir(source); dir != "."; dir = path.Dir(dir) {
		for _, base := range []string{"Kbuild", "Makefile"} {
			name := path.Join(dir, base)
			if content, patched := t.Overlay[name]; patched {
				return name, content, nil
			}
			if slices.Contains(t.Deleted, name) {
				continue
			}
			content, err := root.ReadFile(name)
			if err == nil {
				return name, content, nil
			}
			if !errors.Is(err, fs.ErrNotExist) {
				return "", nil, fault.New(fault.Infrastructure, "kernel source: %w", err)
			}
		}
	}
	return "", nil, fault.New(fault.Build, "no Makefile says how %s is compiled", source)
}
