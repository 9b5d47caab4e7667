// SPDX-License-Identifier: BSD-3-Clause

// Package mutants holds faults for our reference series and for the code below
// it, each small and realistic, to see whether the cases notice them. All of them
// are in one kernel, and a parameter of it says which is switched on.
//
// A directory is named after the kernel its patches are for. The patches go on
// top of the reference series of that kernel; manifest.json says what each mutant
// breaks and which ids of the checklist must notice.
package mutants

import (
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/zcvet/zcvet/harness/fault"
)

//go:embed */manifest.json */*.patch
var files embed.FS

// None is the name under which the kernel is no mutant.
const None = "none"

// EveryConfig stands for all kernel configurations.
const EveryConfig = "*"

// Area is the code a mutant is in.
type Area string

// The areas.
const (
	SCM      Area = "scm"      // SCM_ZC_NOTIFICATION, that is, the reference series
	Zerocopy Area = "zerocopy" // MSG_ZEROCOPY of every kernel
)

// Mutant is one fault.
type Mutant struct {
	// Name is the value of the kernel's parameter, unique in its set.
	Name string `json:"name"`
	Area Area   `json:"area"`
	// Breaks is what it does, as part of a sentence.
	Breaks string `json:"breaks"`
	// Covers lists the ids of the checklist whose cases must notice.
	Covers []string `json:"covers"`
	// Crashes says that the kernel may not survive it.
	Crashes bool `json:"crashes,omitempty"`
	// Racy says that it shows in a race between processors, and not each time.
	Racy bool `json:"racy,omitempty"`
	// Config is the kernel configuration that is needed to see it, empty if
	// every one does.
	Config string `json:"config,omitempty"`
}

// Set is the mutants of one kernel.
type Set struct {
	Port    string   `json:"-"` // the directory, such as "6.12"
	Mutants []Mutant `json:"mutants"`
}

// Ports lists the kernels that there are mutants for.
func Ports() []string {
	entries, err := files.ReadDir(".")
	if err != nil {
		return nil // an embedded root can always be read
	}
	var ports []string
	for _, entry := range entries {
		ports = append(ports, entry.Name())
	}
	return ports
}

// Load returns the mutants of a port. A port without any is an error of class
// Usage.
func Load(port string) (*Set, error) {
	data, err := files.ReadFile(path.Join(port, "manifest.json"))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrInvalid) {
		return nil, fault.New(fault.Usage, "there are no mutants for linux %s", port).
			WithAdvice("there are some for %s", strings.Join(Ports(), ", "))
	}
	if err != nil {
		return nil, err
	}
	set, err := Parse(data)
	if err != nil {
		return nil, fmt.Errorf("mutants of linux %s: %w", port, err)
	}
	set.Port = port
	return set, nil
}

var (
	validName = regexp.MustCompile(`^[a-z][a-z0-9_]*$`)
	validID   = regexp.MustCompile(`^[ZNR][0-9][0-9A-F]$`)
)

// Parse reads a manifest and checks that it can be relied on.
func Parse(data []byte) (*Set, error) {
	var set Set
	if err := json.Unmarshal(data, &set); err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	if len(set.Mutants) == 0 {
		return nil, errors.New("manifest: it is empty")
	}
	seen := map[string]bool{None: true}
	for _, m := range set.Mutants {
		switch {
		case !validName.MatchString(m.Name):
			return nil, fmt.Errorf("manifest: %q is no name of a mutant", m.Name)
		case seen[m.Name]:
			return nil, fmt.Errorf("manifest: %s is there twice", m.Name)
		case m.Area != SCM && m.Area != Zerocopy:
			return nil, fmt.Errorf("manifest: %s is in no known area: %q", m.Name, m.Area)
		case m.Breaks == "" || len(m.Covers) == 0:
			return nil, fmt.Errorf("manifest: %s does not say what it breaks, or for which ids", m.Name)
		}
		for _, id := range m.Covers {
			if !validID.MatchString(id) {
				return nil, fmt.Errorf("manifest: %s: %q is no id of the checklist", m.Name, id)
			}
		}
		seen[m.Name] = true
	}
	return &set, nil
}

// Find returns a mutant by its name, nil when there is none.
func (s *Set) Find(name string) *Mutant {
	i := slices.IndexFunc(s.Mutants, func(m Mutant) bool { return m.Name == name })
	if i < 0 {
		return nil
	}
	return &s.Mutants[i]
}

// Select returns the mutants that match one of patterns, which are separated by
// commas: names, areas and ids, with * for any text. Those that do not show with
// the kernel configuration are left out. Errors are of class Usage.
func (s *Set) Select(patterns, config string) ([]Mutant, error) {
	var selected, elsewhere []Mutant
	for _, m := range s.Mutants {
		matched, err := m.matches(patterns)
		switch {
		case err != nil:
			return nil, err
		case matched && m.shows(config):
			selected = append(selected, m)
		case matched:
			elsewhere = append(elsewhere, m)
		}
	}
	switch {
	case len(selected) > 0:
		return selected, nil
	case len(elsewhere) > 0:
		return nil, fault.New(fault.Usage, "mutant %s shows with --config %s only", elsewhere[0].Name, elsewhere[0].Config)
	}
	return nil, fault.New(fault.Usage, "%q matches none of the %d mutants", patterns, len(s.Mutants)).
		WithAdvice("zcvet mutate --list shows every mutant")
}

// LeftOut returns the mutants that match the patterns and do not show with the
// kernel configuration.
func (s *Set) LeftOut(patterns, config string) []Mutant {
	var left []Mutant
	for _, m := range s.Mutants {
		matched, err := m.matches(patterns)
		if err == nil && matched && !m.shows(config) {
			left = append(left, m)
		}
	}
	return left
}

// shows tells whether the mutant can be seen with a kernel configuration.
func (m *Mutant) shows(config string) bool {
	return m.Config == "" || m.Config == config || config == EveryConfig
}

func (m *Mutant) matches(patterns string) (bool, error) {
	matched := false
	for pattern := range strings.SplitSeq(patterns, ",") {
		pattern = strings.TrimSpace(pattern)
		for _, text := range append([]string{m.Name, string(m.Area)}, m.Covers...) {
			hit, err := path.Match(pattern, text)
			if err != nil {
				return false, fault.New(fault.Usage, "the selection %q: pattern %q: %w", patterns, pattern, err)
			}
			matched = matched || hit
		}
	}
	return matched, nil
}
