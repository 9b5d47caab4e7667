// SPDX-License-Identifier: BSD-3-Clause

package series

import (
	"errors"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/zcvet/zcvet/harness/fault"
)

// quiltFile lists the patches of a quilt series in order.
const quiltFile = "series"

var isPatchFile = regexp.MustCompile(`\.(patch|diff)$`)

// loadDirectory reads the patches of a directory: those its quilt file names, or
// all *.patch and *.diff files by name. Revision asks for a sub-directory vN when
// there is one.
func loadDirectory(dir string, revision int) (*Series, error) {
	if revision != 0 {
		sub := filepath.Join(dir, "v"+strconv.Itoa(revision))
		if info, err := os.Stat(sub); err == nil && info.IsDir() {
			dir = sub
		}
	}
	names, err := patchFiles(dir)
	if err != nil {
		return nil, err
	}

	s := &Series{Directory: dir}
	for _, name := range names {
		data, err := os.ReadFile(filepath.Join(dir, filepath.FromSlash(name)))
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil, fault.New(fault.Usage, "%s: the file %q names %s, which is not there", dir, quiltFile, name)
		case err != nil:
			return nil, fault.New(fault.Usage, "%s: %w", dir, err)
		}
		m := readPatchFile(data)
		if m.damage != nil {
			return nil, fault.New(fault.Usage, "%s: %w", filepath.Join(dir, name), m.damage)
		}
		if m.subject.isPatch && s.Revision == 0 {
			s.Revision = m.subject.revision
		}
		if m.subject.isCover() || (len(m.diff) == 0 && strings.HasPrefix(filepath.Base(name), "0000")) {
			s.Name, s.Cover, s.MessageID = m.subject.title, m.message, m.messageID
			continue
		}
		if len(m.diff) == 0 {
			return nil, fault.New(fault.Usage, "%s: %w", filepath.Join(dir, name), errNoDiff)
		}
		if s.MessageID == "" && len(s.Patches) == 0 {
			s.MessageID = m.messageID
		}
		patch := m.patch(len(s.Patches) + 1)
		patch.File = path.Clean(name)
		s.Patches = append(s.Patches, patch)
	}
	if len(s.Patches) == 0 {
		return nil, fault.New(fault.Usage, "%s: holds no patches", dir).
			WithAdvice("it takes *.patch files as git format-patch writes them, or a quilt series")
	}
	if revision != 0 && s.Revision != revision && filepath.Base(dir) != "v"+strconv.Itoa(revision) {
		return nil, fault.New(fault.Usage, "%s: holds revision v%d, not v%d", dir, s.Revision, revision)
	}
	if s.Name == "" {
		absolute, err := filepath.Abs(dir)
		if err != nil {
			return nil, fault.New(fault.Infrastructure, "%w", err)
		}
		s.Name = filepath.Base(absolute)
	}
	return s, nil
}

// patchFiles lists the patch files of a directory in order, relative to it.
func patchFiles(dir string) ([]string, error) {
	list, err := os.ReadFile(filepath.Join(dir, quiltFile))
	if err == nil {
		return quiltNames(dir, string(list))
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, fault.New(fault.Usage, "%s: %w", dir, err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fault.New(fault.Usage, "%w", err)
	}
	var names []string
	for _, entry := range entries {
		if !entry.IsDir() && isPatchFile.MatchString(entry.Name()) {
			names = append(names, entry.Name())
		}
	}
	slices.Sort(names)
	return names, nil
}

// quiltNames reads a quilt series file: a name per line, then options, then a
// comment.
func quiltNames(dir, list string) ([]string, error) {
	var names []string
	for line := range strings.Lines(list) {
		line, _, _ = strings.Cut(line, "#")
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		name := words[0]
		if !filepath.IsLocal(name) {
			return nil, fault.New(fault.Usage, "%s: the file %q names %q, outside of the directory", dir, quiltFile, name)
		}
		for _, option := range words[1:] {
			if option != "-p1" {
				return nil, fault.New(fault.Usage, "%s: the file %q asks for %s with option %s: only -p1 is supported", dir, quiltFile, name, option)
			}
		}
		names = append(names, name)
	}
	return names, nil
}

// readPatchFile reads a patch file: a mail as git format-patch writes it, or a
// diff with or without words before it.
func readPatchFile(data []byte) *mail {
	data = unixLines(data)
	text := data
	if first, rest, ok := strings.Cut(string(data), "\n"); ok && envelope.MatchString(first) && headerLine.MatchString(rest) {
		text = []byte(rest)
	}
	if headerLine.Match(text) {
		// "net: fix it" looks like a header as well, but no mail lacks a subject.
		if m := readMail(text); m.damage == nil && m.subject.full != "" && (len(m.diff) > 0 || m.subject.isCover()) {
			m.raw = data
			return m
		}
	}
	m := &mail{raw: data}
	m.message, m.diff, m.damage = splitPatch(data)
	if errors.Is(m.damage, errNoDiff) {
		m.damage = nil
	}
	m.takeInBodyHeaders()
	if m.subject.title == "" {
		title, _, _ := strings.Cut(m.message, "\n")
		m.subject = parseSubject(strings.TrimSpace(title))
	}
	return m
}
