// SPDX-License-Identifier: BSD-3-Clause

package dependency

import (
	"testing"
	"testing/fstest"
)

// miniature is a kernel's Kconfig in small, with each construct that matters.
var miniature = fstest.MapFS{
	"Kconfig": {Data: []byte(`mainmenu "Linux/$(ARCH) Kernel Configuration"
source "scripts/Kconfig.include"
source "arch/$(SRCARCH)/Kconfig"
source "net/Kconfig"
source "missing/Kconfig"
`)},
	"scripts/Kconfig.include": {Data: []byte(`
comma := ,
cc-option = $(success,trap "rm -rf .tmp_$$" EXIT; $(CC) $(1))
`)},
	"arch/x86/Kconfig": {Data: []byte(`
config X86
	def_bool y
	select PERF_EVENTS
	select NEVER if SMP && !EXPERT

config SMP
	bool "Symmetric multi-processing"
	help
	  config FAKE in a help text must not be taken for a definition:
	  config FAKE
	    depends on NOTHING

	  Neither after an empty line.

config EXPERT
	bool "Expert"

config PERF_EVENTS
	bool "Performance events" if EXPERT

config NEVER
	bool

config HAS_FLAG
	def_bool $(cc-option,-mflag)

config USES_FLAG
	bool "Uses it"
	depends on $(cc-option,-mflag) && HAS_FLAG
`)},
	"net/Kconfig": {Data: []byte(`
menuconfig NET
	bool "Networking"

if NET

menu "Devices"
	depends on PCI || \
		   USB

config CARD # with a comment
	tristate "A card if you like"
	depends on SMP && BITS >= 64
	depends on !BROKEN

config CARD
	tristate "The same card"
	depends on PCI && SMP && BROKEN && USB

endmenu

choice
	prompt "Size"
	depends on EXPERT

config SMALL
	bool "Small"

config LARGE
	bool "Large"

endchoice

config FREE
	bool "Free"

endif

config PCI
	bool "PCI"

config USB
	bool "USB"

config BROKEN
	bool
`)},
}

func TestExplain(t *testing.T) {
	tree, err := Read(miniature, "x86")
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name, symbol, wanted string
		values               Values
		want                 string
	}{
		{"unknown symbol", "FAKE", "y", nil, "this kernel has no such symbol"},
		{
			"enclosing blocks", "CARD", "y",
			Values{"SMP": "y", "BITS": "64"},
			"it depends on NET (NET=n) and on PCI || USB (PCI=n, USB=n); see net/Kconfig:11",
		},
		{
			"only what is unmet", "CARD", "y",
			Values{"NET": "y", "PCI": "y", "BITS": "64"},
			"it depends on SMP && BITS >= 64 (SMP=n, BITS does not exist); see net/Kconfig:11",
		},
		{
			"negation", "CARD", "y",
			Values{"NET": "y", "PCI": "y", "SMP": "y", "BITS": "64", "BROKEN": "y"},
			"it depends on !BROKEN (BROKEN=y); see net/Kconfig:11",
		},
		{
			"number", "CARD", "y",
			Values{"NET": "y", "PCI": "y", "SMP": "y", "BITS": "8"},
			"it depends on SMP && BITS >= 64 (SMP=y, BITS does not exist); see net/Kconfig:11",
		},
		{
			"choice", "SMALL", "y",
			Values{"NET": "y", "EXPERT": "y", "LARGE": "y"},
			"it is one of a choice that LARGE won; see net/Kconfig:26",
		},
		{
			"choice as a whole", "SMALL", "y",
			Values{"NET": "y"},
			"it depends on EXPERT (EXPERT=n); see net/Kconfig:26",
		},
		{
			"hidden prompt", "PERF_EVENTS", "y",
			Values{},
			"it can be set only if EXPERT (EXPERT=n); see arch/x86/Kconfig:19",
		},
		{
			"no prompt", "NEVER", "y",
			Values{},
			"it cannot be set by itself, only through X86; see arch/x86/Kconfig:22",
		},
		{
			"no prompt, nobody selects", "BROKEN", "y",
			Values{},
			"it cannot be set, it follows from others; see net/Kconfig:45",
		},
		{
			"selected although unwanted", "PERF_EVENTS", "n",
			Values{"X86": "y", "PERF_EVENTS": "y"},
			"it is selected by X86",
		},
		{
			"selected under a condition that does not hold", "NEVER", "n",
			Values{"X86": "y", "SMP": "y", "EXPERT": "y", "NEVER": "y"},
			"it follows from others; see arch/x86/Kconfig:22",
		},
		{
			"nothing to blame", "FREE", "y",
			Values{"NET": "y"},
			"its dependencies hold, but it is n; see net/Kconfig:34",
		},
		{
			"what the compiler can do is not blamed", "USES_FLAG", "y",
			Values{},
			"it depends on $(cc-option,-mflag) && HAS_FLAG (HAS_FLAG=n); see arch/x86/Kconfig:28",
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := tree.Explain(test.symbol, test.wanted, test.values); got != test.want {
				t.Errorf("got  %s\nwant %s", got, test.want)
			}
		})
	}
}

func TestEvaluate(t *testing.T) {
	values := Values{"Y": "y", "M": "m", "N": "n", "TEXT": `"a b"`, "TEN": "10"}
	for expression, want := range map[string]tristate{
		"Y": yes, "M": module, "N": no, "MISSING": no,
		"!Y": no, "!M": module, "!!N": no, "! N": yes,
		"Y && M": module, "N || M": module, "Y || N && N": yes, "(Y || N) && N": no,
		"M != n": yes, "M = y": no, "Y=y": yes, `TEXT = "a b"`: yes,
		"TEN > 9": yes, "TEN <= 9": no, "TEN < 100": yes, "TEN>=10": yes,
		"$(success,a && (b))":          yes,
		"$(success,a && (b)) && N":     no,
		"(Y":                           yes,
		"$(cc-option,-m64) = y && N":   no,
		"":                             yes,
		"Y && ^":                       yes, // not an expression: nothing is blamed on it
		`"unterminated && N`:           no,
		"((((((((((N))))))))))":        no,
		"!(Y && !(M || N)) || N && !N": module,
	} {
		if got := evaluate(expression, values); got != want {
			t.Errorf("%s is %d, want %d", expression, got, want)
		}
	}
}

func TestReadLoop(t *testing.T) {
	loop := fstest.MapFS{"Kconfig": {Data: []byte("source \"Kconfig\"\n")}}
	if _, err := Read(loop, "x86"); err == nil {
		t.Error("a file that sources itself gave no error")
	}
}

// Patches bring Kconfig files of their own, so these are untrusted bytes.
func FuzzRead(f *testing.F) {
	for _, file := range miniature {
		f.Add(file.Data, "CARD")
	}
	f.Add([]byte("config A\n\tbool \"a\" if $(((\n\tdepends on (((!\"\n"), "A")
	f.Fuzz(func(t *testing.T, text []byte, name string) {
		tree, err := Read(fstest.MapFS{"Kconfig": {Data: text}}, "x86")
		if err != nil {
			return
		}
		for _, wanted := range []string{"y", "n"} {
			if tree.Explain(name, wanted, Values{"A": "y"}) == "" {
				t.Error("no explanation")
			}
		}
	})
}
