// SPDX-License-Identifier: BSD-3-Clause

package mutants

import (
	"context"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/zcvet/zcvet/harness/fault"
	"github.com/zcvet/zcvet/harness/series"
)

const root = "../.."

func load(t *testing.T, port string) *Set {
	t.Helper()
	set, err := Load(port)
	if err != nil {
		t.Fatal(err)
	}
	return set
}

// added returns the lines that the patches of a set add.
func added(t *testing.T, set *Set) string {
	t.Helper()
	names, err := set.patches()
	if err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	for _, name := range names {
		data, err := files.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(data)) {
			if strings.HasPrefix(line, "+") {
				text.WriteString(line)
			}
		}
	}
	return text.String()
}

func names(matches [][]string) []string {
	var found []string
	for _, match := range matches {
		found = append(found, match[1])
	}
	slices.Sort(found)
	return slices.Compact(found)
}

// The manifest and the patches are written by different hands at different times:
// each mutant must be declared in the kernel and have at least one branch, and
// the other way round.
func TestManifestAgreesWithPatches(t *testing.T) {
	for _, port := range Ports() {
		set := load(t, port)
		var listed []string
		for _, m := range set.Mutants {
			listed = append(listed, m.Name)
		}
		slices.Sort(listed)
		code := added(t, set)

		declared := names(regexp.MustCompile(`(?m)^\+\tM\((\w+)\)`).FindAllStringSubmatch(code, -1))
		if diff := cmp.Diff(slices.Sorted(slices.Values(append(slices.Clone(listed), None))), declared); diff != "" {
			t.Errorf("%s: manifest and ZCVET_MUTANTS (-manifest +kernel):\n%s", port, diff)
		}
		used := names(regexp.MustCompile(`\bzcvet_mutant\((\w+)\)`).FindAllStringSubmatch(strings.ReplaceAll(code, "#define zcvet_mutant(name)", ""), -1))
		if diff := cmp.Diff(listed, used); diff != "" {
			t.Errorf("%s: manifest and branches of the kernel (-manifest +kernel):\n%s", port, diff)
		}
	}
}

func TestEnoughMutants(t *testing.T) {
	count := map[Area]int{}
	for _, m := range load(t, "6.12").Mutants {
		count[m.Area]++
	}
	if count[SCM] < 40 || count[Zerocopy] < 10 {
		t.Errorf("there are %v mutants, 40 of the reference series and 10 of the stock path are promised", count)
	}
}

// The patches that make a fake revision must follow on each other.
func TestWriteSeries(t *testing.T) {
	set := load(t, "6.12")
	plain, mutant := t.TempDir(), t.TempDir()
	if err := set.WriteSeries(plain, root, None); err != nil {
		t.Fatal(err)
	}
	if err := set.WriteSeries(mutant, root, "holes"); err != nil {
		t.Fatal(err)
	}
	base, err := series.Load(context.Background(), reference(root, "6.12"), series.Options{})
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for _, patch := range base.Patches {
		want = append(want, patch.Subject)
	}
	want = append(want, "net: select a fault by parameter", "net: add faults to SCM_ZC_NOTIFICATION", "net: add faults to MSG_ZEROCOPY")
	for dir, want := range map[string][]string{plain: want, mutant: append(slices.Clone(want), "net: be mutant holes")} {
		loaded, err := series.Load(context.Background(), dir, series.Options{})
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, patch := range loaded.Patches {
			got = append(got, patch.Subject)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
		if loaded.Name != base.Name {
			t.Errorf("the series is called %q, the reference series %q", loaded.Name, base.Name)
		}
	}
	last, err := filepath.Glob(filepath.Join(mutant, "*-net-be-mutant-holes.patch"))
	if err != nil || len(last) != 1 {
		t.Fatal(last, err)
	}
	text, err := os.ReadFile(last[0])
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(text), "\n-enum zcvet_mutant zcvet_selected = ZCVET_none;\n+enum zcvet_mutant zcvet_selected = ZCVET_holes;\n") {
		t.Errorf("the last patch does not change the default:\n%s", text)
	}
	if err := set.WriteSeries(t.TempDir(), root, "unheard_of"); err == nil {
		t.Error("a mutant that is not there was written")
	}
	if err := set.WriteSeries(t.TempDir(), t.TempDir(), None); err == nil {
		t.Error("a checkout without a reference series was taken")
	}
}

func TestSelect(t *testing.T) {
	set, err := Parse([]byte(`{"mutants": [
		{"name": "alpha_one", "area": "scm", "breaks": "x", "covers": ["N01", "N04"]},
		{"name": "alpha_two", "area": "zerocopy", "breaks": "x", "covers": ["Z3A"]},
		{"name": "beta", "area": "scm", "breaks": "x", "covers": ["N22"], "config": "debug"}]}`))
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ patterns, config, want string }{
		{"*", "default", "alpha_one alpha_two"},
		{"*", "debug", "alpha_one alpha_two beta"},
		{"alpha_*", "default", "alpha_one alpha_two"},
		{"scm", "default", "alpha_one"},
		{"Z3*, N04", "default", "alpha_one alpha_two"},
		{"beta", "debug", "beta"},
	} {
		selected, err := set.Select(test.patterns, test.config)
		if err != nil {
			t.Errorf("%q: %v", test.patterns, err)
		}
		var got []string
		for _, m := range selected {
			got = append(got, m.Name)
		}
		if strings.Join(got, " ") != test.want {
			t.Errorf("%q with config %s selects %q, want %q", test.patterns, test.config, got, test.want)
		}
	}
	for _, patterns := range []string{"gamma", "beta", "[", ""} {
		if _, err := set.Select(patterns, "default"); fault.Of(err) != fault.Usage {
			t.Errorf("%q: %v, want a usage error", patterns, err)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	const good = `"area": "scm", "breaks": "x", "covers": ["N01"]`
	for name, manifest := range map[string]string{
		"no JSON":     `{`,
		"empty":       `{"mutants": []}`,
		"no name":     `{"mutants": [{` + good + `}]}`,
		"bad name":    `{"mutants": [{"name": "Not-C", ` + good + `}]}`,
		"none":        `{"mutants": [{"name": "none", ` + good + `}]}`,
		"twice":       `{"mutants": [{"name": "a", ` + good + `}, {"name": "a", ` + good + `}]}`,
		"no area":     `{"mutants": [{"name": "a", "breaks": "x", "covers": ["N01"]}]}`,
		"no ids":      `{"mutants": [{"name": "a", "area": "scm", "breaks": "x"}]}`,
		"bad id":      `{"mutants": [{"name": "a", "area": "scm", "breaks": "x", "covers": ["N1"]}]}`,
		"breaks what": `{"mutants": [{"name": "a", "area": "scm", "covers": ["N01"]}]}`,
	} {
		if _, err := Parse([]byte(manifest)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := Load("2.4"); fault.Of(err) != fault.Usage {
		t.Errorf("a kernel without mutants: %v, want a usage error", err)
	}
	if _, err := Load("../6.12"); fault.Of(err) != fault.Usage {
		t.Errorf("a path out of the folder: %v, want a usage error", err)
	}
}
