// SPDX-License-Identifier: BSD-3-Clause

package mutants

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// reference is the directory of the reference series for a port, in a checkout.
func reference(root, port string) string { return filepath.Join(root, "patches", port) }

// WriteSeries makes directory dir and writes a series into it that puts the
// mutants on top of the reference series of the checkout at root, in the form
// that --series takes. In the kernel it makes, name is switched on from the start;
// with None or an empty name nothing is. With the name of a mutant it is a
// revision of the series that has this fault and no other.
func (s *Set) WriteSeries(dir, root, name string) error {
	if name != "" && name != None && s.Find(name) == nil {
		return fmt.Errorf("no mutant of linux %s is called %q", s.Port, name)
	}
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return err
	}
	patches, err := filepath.Glob(filepath.Join(reference(root, s.Port), "*.patch"))
	if err != nil {
		return err
	}
	if len(patches) == 0 {
		return fmt.Errorf("%s holds no reference series", reference(root, s.Port))
	}
	slices.Sort(patches)
	w := &writer{dir: dir}
	if !strings.HasPrefix(filepath.Base(patches[0]), "0000-") {
		w.next = 1 // there is no cover letter
	}
	for _, file := range patches {
		data, err := os.ReadFile(file)
		w.add(filepath.Base(file), data, err)
	}
	own, err := s.patches()
	if err != nil {
		return err
	}
	for _, file := range own {
		data, err := files.ReadFile(file)
		w.add(path.Base(file), data, err)
	}
	if name != "" && name != None {
		patch, err := s.defaultPatch(name)
		w.add("0000-net-be-mutant-"+name+".patch", patch, err)
	}
	return w.err
}

// patches lists the embedded patches in order.
func (s *Set) patches() ([]string, error) {
	entries, err := files.ReadDir(s.Port)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, entry := range entries { // ordered by name
		if strings.HasSuffix(entry.Name(), ".patch") {
			names = append(names, path.Join(s.Port, entry.Name()))
		}
	}
	return names, nil
}

// writer numbers patches through.
type writer struct {
	dir  string
	next int
	err  error
}

// add stores a patch whose name begins with the number it had. Err is that of
// reading it.
func (w *writer) add(name string, data []byte, err error) {
	if w.err = errors.Join(w.err, err); w.err != nil {
		return
	}
	_, title, _ := strings.Cut(name, "-")
	w.err = os.WriteFile(filepath.Join(w.dir, fmt.Sprintf("%04d-%s", w.next, title)), data, 0o666)
	w.next++
}

// selector is the file that holds the selected mutant, and defaultLine the line
// that says which one it is at first.
const (
	selector    = "net/core/zcvet.c"
	defaultLine = "enum zcvet_mutant zcvet_selected = ZCVET_none;"
)

// defaultPatch switches a mutant on from the start, in one line, so that only one
// file of the kernel has to be compiled for it.
func (s *Set) defaultPatch(name string) ([]byte, error) {
	lines, err := s.newFile(selector)
	if err != nil {
		return nil, err
	}
	at := slices.Index(lines, defaultLine)
	if at < 0 {
		return nil, fmt.Errorf("%s of the mutants does not have the line %q", selector, defaultLine)
	}
	const context = 3
	first, last := max(at-context, 0), min(at+context, len(lines)-1)

	var patch bytes.Buffer
	fmt.Fprintf(&patch, "From: zcvet developers <zcvet@example.org>\n")
	fmt.Fprintf(&patch, "Date: Tue, 24 Nov 2026 12:00:00 +0000\n")
	fmt.Fprintf(&patch, "Subject: [PATCH] net: be mutant %s\n\n", name)
	fmt.Fprintf(&patch, "%s.\n\n", s.Find(name).Breaks)
	fmt.Fprintf(&patch, "Signed-off-by: zcvet developers <zcvet@example.org>\n---\n")
	fmt.Fprintf(&patch, "diff --git a/%s b/%s\n--- a/%s\n+++ b/%s\n", selector, selector, selector, selector)
	fmt.Fprintf(&patch, "@@ -%d,%d +%d,%d @@\n", first+1, last-first+1, first+1, last-first+1)
	for i := first; i <= last; i++ {
		if i == at {
			changed := strings.Replace(defaultLine, "ZCVET_"+None, "ZCVET_"+name, 1)
			fmt.Fprintf(&patch, "-%s\n+%s\n", lines[i], changed)
			continue
		}
		fmt.Fprintf(&patch, " %s\n", lines[i])
	}
	return patch.Bytes(), nil
}

// newFile returns the lines of a file that one of the patches creates.
func (s *Set) newFile(name string) ([]string, error) {
	names, err := s.patches()
	if err != nil {
		return nil, err
	}
	for _, patch := range names {
		data, err := files.ReadFile(patch)
		if err != nil {
			return nil, err
		}
		_, diff, found := strings.Cut(string(data), "\n--- /dev/null\n+++ b/"+name+"\n")
		if !found {
			continue
		}
		var lines []string
		for line := range strings.Lines(diff) {
			switch {
			case strings.HasPrefix(line, "@@"):
			case strings.HasPrefix(line, "+"):
				lines = append(lines, strings.TrimSuffix(line[1:], "\n"))
			default:
				return lines, nil
			}
		}
		return lines, nil
	}
	return nil, fmt.Errorf("no patch of the mutants creates %s", name)
}
