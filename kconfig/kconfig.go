// SPDX-License-Identifier: BSD-3-Clause

// Package kconfig holds the kernel configurations that zcvet builds: fragments
// of one purpose each, embedded, in which every symbol has its reason.
//
// A fragment is a file as the kernel's own merge_config.sh reads it. Two more
// conventions, both in comments, are ours:
//
//   - A paragraph, that is lines without an empty one between them, is introduced
//     by the comment that says why.
//   - "# since 6.5" or "# until 6.4", alone on the line before a symbol, limits it
//     to kernels from or up to and including that version. Any other symbol must
//     exist in every kernel that zcvet builds.
package kconfig

import (
	"bytes"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

//go:embed fragments/*.config
var files embed.FS

const (
	// Default is the set that is built unless another one is asked for: as small
	// as the suite allows.
	Default = "default"
	// Debug finds what the default set cannot see, at several times the cost.
	Debug = "debug"
	// Coverage counts which lines of the series are executed.
	Coverage = "coverage"
)

// small are the fragments that every set begins with.
var small = []string{"base", "console", "net", "zerocopy", "detect"}

// sets lists the fragments of each set; a later fragment overrides an earlier one.
var sets = map[string][]string{
	Default:  small,
	Debug:    append(slices.Clone(small), "memory", "locking", "references", "inject"),
	Coverage: append(slices.Clone(small), "coverage", "inject"),
}

// Set is a kernel configuration: fragments in the order they are merged.
type Set struct {
	Name      string
	Fragments []Fragment

	own bool // has fragments of the user's
}

// Fragment is one fragment file.
type Fragment struct {
	// Name is the file's base name without ".config".
	Name    string
	Text    []byte
	Symbols []Symbol
}

// Symbol is what a fragment asks for.
type Symbol struct {
	Name string // without CONFIG_
	// Value is as .config has it: y, m, n, a number, or a quoted string.
	Value string
	// Since and Until limit the symbol to kernel versions, both inclusive; the
	// zero Version does not limit.
	Since, Until Version
	// Fragment and Line tell where the symbol was asked for.
	Fragment string
	Line     int
}

// String is the symbol as a line of .config.
func (s Symbol) String() string {
	if s.Value == "n" {
		return "# CONFIG_" + s.Name + " is not set"
	}
	return "CONFIG_" + s.Name + "=" + s.Value
}

// In tells whether the symbol is meant for that kernel.
func (s Symbol) In(kernel Version) bool {
	return (s.Since == Version{} || !kernel.Before(s.Since)) && (s.Until == Version{} || !s.Until.Before(kernel))
}

// Names lists the sets there are, sorted.
func Names() []string { return slices.Sorted(maps.Keys(sets)) }

// Load reads a set by its name. The name of a set may be followed by fragment
// files of the user's own, separated by commas: "default,./more.config".
func Load(name string) (*Set, error) {
	first, own, _ := strings.Cut(name, ",")
	fragments, ok := sets[first]
	if !ok {
		return nil, fmt.Errorf("no kernel configuration %q; there are: %s", first, strings.Join(Names(), ", "))
	}
	set := &Set{Name: first}
	for _, fragment := range fragments {
		text, err := fs.ReadFile(files, "fragments/"+fragment+".config")
		if err != nil {
			return nil, fmt.Errorf("kernel configuration %s: %w", first, err)
		}
		if err := set.add(fragment, text); err != nil {
			return nil, err
		}
	}
	if own == "" {
		return set, nil
	}
	set.Name, set.own = name, true
	for path := range strings.SplitSeq(own, ",") {
		text, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("kernel configuration: %w", err)
		}
		if err := set.add(strings.TrimSuffix(filepath.Base(path), ".config"), text); err != nil {
			return nil, err
		}
	}
	return set, nil
}

func (s *Set) add(name string, text []byte) error {
	fragment, err := Parse(name, text)
	if err != nil {
		return err
	}
	s.Fragments = append(s.Fragments, fragment)
	return nil
}

// Symbols is what the set asks of a kernel of that version: each symbol once, in
// the order of the fragments, with the value of the last one that names it.
func (s *Set) Symbols(kernel Version) []Symbol {
	var symbols []Symbol
	position := map[string]int{}
	for _, fragment := range s.Fragments {
		for _, symbol := range fragment.Symbols {
			if !symbol.In(kernel) {
				continue
			}
			if at, seen := position[symbol.Name]; seen {
				symbols[at] = symbol
				continue
			}
			position[symbol.Name] = len(symbols)
			symbols = append(symbols, symbol)
		}
	}
	return symbols
}

// Config is the set as one file for KCONFIG_ALLCONFIG.
func (s *Set) Config(kernel Version) []byte {
	var text bytes.Buffer
	for _, symbol := range s.Symbols(kernel) {
		fmt.Fprintln(&text, symbol)
	}
	return text.Bytes()
}

// FragmentNames lists the names of the fragments, in order.
func (s *Set) FragmentNames() []string {
	names := make([]string, len(s.Fragments))
	for i, fragment := range s.Fragments {
		names[i] = fragment.Name
	}
	return names
}

var (
	assignment = regexp.MustCompile(`^CONFIG_([A-Za-z0-9_]+)=(y|m|n|-?[0-9]+|0[xX][0-9a-fA-F]+|"(?:[^"\\]|\\.)*")$`)
	unset      = regexp.MustCompile(`^# CONFIG_([A-Za-z0-9_]+) is not set$`)
	limit      = regexp.MustCompile(`^# (since|until) ([0-9]+\.[0-9]+)$`)
)

// Parse reads a fragment. A line that is neither comment nor assignment is an
// error, and so is a version limit that belongs to no symbol: with either, the
// kernel would silently be another one than was asked for.
func Parse(name string, text []byte) (Fragment, error) {
	fragment := Fragment{Name: name, Text: text}
	var since, until Version
	number := 0
	fail := func(format string, args ...any) (Fragment, error) {
		return Fragment{}, fmt.Errorf("kernel configuration %s.config:%d: %w", name, number, fmt.Errorf(format, args...))
	}
	for line := range strings.Lines(string(text)) {
		number++
		line = strings.TrimSpace(line)
		if match := limit.FindStringSubmatch(line); match != nil {
			version, err := ParseVersion(match[2])
			if err != nil {
				return fail("%w", err)
			}
			if match[1] == "since" {
				since = version
			} else {
				until = version
			}
			continue
		}
		symbol := Symbol{Since: since, Until: until, Fragment: name, Line: number}
		if match := assignment.FindStringSubmatch(line); match != nil {
			symbol.Name, symbol.Value = match[1], match[2]
		} else if match := unset.FindStringSubmatch(line); match != nil {
			symbol.Name, symbol.Value = match[1], "n"
		} else if since != (Version{}) || until != (Version{}) {
			return fail("a version limit must stand right before its symbol")
		} else if line == "" || strings.HasPrefix(line, "#") {
			continue
		} else {
			return fail("%q is neither a comment nor CONFIG_NAME=value", line)
		}
		fragment.Symbols = append(fragment.Symbols, symbol)
		since, until = Version{}, Version{}
	}
	if since != (Version{}) || until != (Version{}) {
		return fail("a version limit must stand right before its symbol")
	}
	return fragment, nil
}

// Version is the part of a kernel's version that decides what it has.
type Version struct{ Major, Minor int }

// ParseVersion reads a version as kernels give it: "6.12", "6.12.95",
// "6.13.0-rc3", "7.2-zcvet".
func ParseVersion(text string) (Version, error) {
	bad := fmt.Errorf("%q is not a kernel version", text)
	major, rest, found := strings.Cut(text, ".")
	if !found {
		return Version{}, bad
	}
	end := strings.IndexFunc(rest, func(r rune) bool { return r < '0' || r > '9' })
	if end < 0 {
		end = len(rest)
	}
	var version Version
	var err, err2 error
	version.Major, err = strconv.Atoi(major)
	version.Minor, err2 = strconv.Atoi(rest[:end])
	if errors.Join(err, err2) != nil || version.Major < 0 {
		return Version{}, bad
	}
	return version, nil
}

// Before tells whether v is an older version than other.
func (v Version) Before(other Version) bool {
	return v.Major < other.Major || (v.Major == other.Major && v.Minor < other.Minor)
}

// String is the version as people write it.
func (v Version) String() string { return fmt.Sprintf("%d.%d", v.Major, v.Minor) }
