// SPDX-License-Identifier: BSD-3-Clause

package kconfig_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/zcvet/zcvet/kconfig"
)

var newest = kconfig.Version{Major: 7, Minor: 2}

// Every set must load, and give each symbol its reason: no paragraph of symbols
// without a comment in front.
func TestSetsGiveReasons(t *testing.T) {
	for _, name := range kconfig.Names() {
		set, err := kconfig.Load(name)
		if err != nil {
			t.Fatal(err)
		}
		if len(set.Symbols(newest)) == 0 {
			t.Errorf("set %s asks for nothing", name)
		}
		for _, fragment := range set.Fragments {
			paragraphs := strings.Split(string(fragment.Text), "\n\n")
			if !strings.HasPrefix(paragraphs[0], "# ") {
				t.Errorf("%s.config does not say what it is for", fragment.Name)
			}
		}
	}
}

func TestSetsContradictNothing(t *testing.T) {
	for _, name := range kconfig.Names() {
		set, err := kconfig.Load(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, fragment := range set.Fragments {
			seen := map[string]kconfig.Symbol{}
			for _, symbol := range fragment.Symbols {
				if first, twice := seen[symbol.Name]; twice && first.In(newest) == symbol.In(newest) {
					t.Errorf("%s.config:%d: %s was asked for in line %d already", fragment.Name, symbol.Line, symbol.Name, first.Line)
				}
				seen[symbol.Name] = symbol
			}
		}
	}
}

func TestParse(t *testing.T) {
	const text = `# What it is for.

# A reason.
CONFIG_A=y
# since 6.5
CONFIG_B=12
# since 6.2
# until 6.9
CONFIG_C="a \"b\""
CONFIG_D=n
# CONFIG_E is not set
CONFIG_F=0x1f
`
	fragment, err := kconfig.Parse("f", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	set := kconfig.Set{Fragments: []kconfig.Fragment{fragment}}
	for _, test := range []struct {
		kernel string
		want   string
	}{
		{"6.1.170", "A=y D=n E=n F=0x1f"},
		{"6.2", `A=y C="a \"b\"" D=n E=n F=0x1f`},
		{"6.9.3", `A=y B=12 C="a \"b\"" D=n E=n F=0x1f`},
		{"6.10", "A=y B=12 D=n E=n F=0x1f"},
		{"7.2.0-rc1", "A=y B=12 D=n E=n F=0x1f"},
	} {
		version, err := kconfig.ParseVersion(test.kernel)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, symbol := range set.Symbols(version) {
			got = append(got, symbol.Name+"="+symbol.Value)
		}
		if diff := cmp.Diff(test.want, strings.Join(got, " ")); diff != "" {
			t.Errorf("for %s (-want +got):\n%s", test.kernel, diff)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	for _, test := range []struct{ name, text, want string }{
		{"no assignment", "CONFIG_A\n", "f.config:1: "},
		{"forgotten prefix", "# a\nA=y\n", "f.config:2: "},
		{"value", "CONFIG_A=yes\n", "f.config:1: "},
		{"trailing comment", "CONFIG_A=y # a\n", "f.config:1: "},
		{"limit without symbol", "# since 6.1\n\nCONFIG_A=y\n", "f.config:2: "},
		{"limit at the end", "# since 6.1\n", "f.config:1: "},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := kconfig.Parse("f", []byte(test.text))
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want an error at %q", err, test.want)
			}
		})
	}
}

func TestLoadWithOwnFragments(t *testing.T) {
	own := filepath.Join(t.TempDir(), "own.config")
	if err := os.WriteFile(own, []byte("# no\nCONFIG_IPV6=n\n# yes\nCONFIG_TUN=y\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	set, err := kconfig.Load("default," + own)
	if err != nil {
		t.Fatal(err)
	}
	config := string(set.Config(newest))
	if strings.Contains(config, "CONFIG_IPV6=y") || !strings.Contains(config, "# CONFIG_IPV6 is not set\n") || !strings.Contains(config, "CONFIG_TUN=y\n") {
		t.Errorf("the user's fragment does not win:\n%s", config)
	}
	if names := set.FragmentNames(); names[len(names)-1] != "own" {
		t.Errorf("fragments %v", names)
	}
}

func TestNeeds(t *testing.T) {
	own := filepath.Join(t.TempDir(), "own.config")
	if err := os.WriteFile(own, []byte("# why\nCONFIG_KASAN=n\n# why\nCONFIG_GCOV_KERNEL=y\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		set  string
		want kconfig.Needs
	}{
		{"default", kconfig.Needs{Slowdown: 1}},
		{"coverage", kconfig.Needs{Slowdown: 1, Coverage: true}},
		{"debug", kconfig.Needs{Slowdown: 4, Memory: 768, Parameters: []string{"kasan_multi_shot"}, Make: []string{"KASAN_SANITIZE_string.o=n"}}},
		{"debug," + own, kconfig.Needs{Slowdown: 4, Memory: 512, Coverage: true}},
		{"default," + own, kconfig.Needs{Slowdown: 4, Coverage: true}},
	} {
		set, err := kconfig.Load(test.set)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(test.want, set.Needs()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", test.set, diff)
		}
	}
}

func TestLoadUnknown(t *testing.T) {
	_, err := kconfig.Load("nonsense")
	if err == nil || !strings.Contains(err.Error(), kconfig.Default) {
		t.Errorf("got %v, want an error that lists the sets", err)
	}
	if _, err := kconfig.Load("default,/does/not/exist"); err == nil {
		t.Error("a missing fragment file gave no error")
	}
}

func TestParseVersion(t *testing.T) {
	for text, want := range map[string]kconfig.Version{
		"6.12": {6, 12}, "6.12.95": {6, 12}, "6.13.0-rc3": {6, 13}, "7.2-zcvet": {7, 2}, "6.1": {6, 1},
	} {
		if got, err := kconfig.ParseVersion(text); err != nil || got != want {
			t.Errorf("%q: %v, %v; want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "6", "six.one", "6.", "6.x", "-6.1", ".1"} {
		if got, err := kconfig.ParseVersion(text); err == nil {
			t.Errorf("%q: %v, want an error", text, got)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("# a\n# since 6.5\nCONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C=\"x\"\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		fragment, err := kconfig.Parse("f", text)
		if err != nil {
			return
		}
		// What was read must read the same when written again.
		set := kconfig.Set{Fragments: []kconfig.Fragment{fragment}}
		config := set.Config(newest)
		again, err := kconfig.Parse("f", config)
		if err != nil {
			t.Fatalf("%v\nin\n%s", err, config)
		}
		second := kconfig.Set{Fragments: []kconfig.Fragment{again}}
		if diff := cmp.Diff(string(config), string(second.Config(newest))); diff != "" {
			t.Fatal(diff)
		}
	})
}
