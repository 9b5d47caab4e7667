// SPDX-License-Identifier: BSD-3-Clause

package kbuild_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/zcvet/zcvet/harness/fault"
	"github.com/zcvet/zcvet/harness/kbuild"
	"github.com/zcvet/zcvet/harness/tree"
)

// variant is one that the fake make understands.
var variant = kbuild.Variant{Name: "test", Arch: "i386", Compiler: "gcc", Base: "allnoconfig", Config: []byte("CONFIG_NET=y\n"), Sparse: true}

// compileMake prints what "script" does, configures without a word, and compiles
// nothing.
const compileMake = `#!/bin/sh
fake=$(dirname "$0")
echo "$@" >>"$fake/calls"
case "$*" in
*allnoconfig*)
	mkdir -p build-test
	cp "$KCONFIG_ALLCONFIG" build-test/.config
	exit 0 ;;
esac
. "$fake/script"
`

func (f *fixture) compile(t *tree.Tree, targets ...string) *kbuild.Compilation {
	f.t.Helper()
	got, err := kbuild.Compile(f.t.Context(), t, variant, targets, f.options)
	if err != nil {
		f.t.Fatal(err)
	}
	return got
}

func TestCompileRemembersWhatWasSaid(t *testing.T) {
	f := newFixture(t)
	f.tool("make", compileMake)
	patched := f.tree("patched", nil)
	f.script(`cat <<'END'
make[1]: Entering directory '/somewhere'
  SYNC    include/config/auto.conf
  HOSTCC  scripts/basic/fixdep
scripts/basic/fixdep.c:1:1: warning: not the kernel's
  CC      /cache/work/linux/build/tools/objtool/check.o
  CC      net/core/sock.o
../net/core/sock.c: In function 'f':
../net/core/sock.c:3:4: warning: unused variable 'a' [-Wunused-variable]
  CHECK   ../net/core/sock.c
../net/core/sock.c:5:6: warning: restricted __be16 degrades to integer
  CC [M]  net/core/dev.o
  CHECK   ../net/core/dev.c
END
`)
	got := f.compile(patched, "net/core/")
	want := map[string]kbuild.Said{
		"net/core/sock": {
			Compiler: []string{"../net/core/sock.c: In function 'f':", "../net/core/sock.c:3:4: warning: unused variable 'a' [-Wunused-variable]"},
			Sparse:   []string{"../net/core/sock.c:5:6: warning: restricted __be16 degrades to integer"},
		},
		"net/core/dev": {},
	}
	if d := cmp.Diff(want, got.Said); d != "" {
		t.Errorf("said (-want +got):\n%s", d)
	}
	if got.Failed || got.Compiled != 2 {
		t.Errorf("failed %v, %d compiled", got.Failed, got.Compiled)
	}
	calls := read(t, f.tools+"/calls")
	for _, word := range []string{"O=build-test", "ARCH=i386", "CC=gcc", "W=1", "C=1", "--keep-going", "net/core/"} {
		if !strings.Contains(calls, word) {
			t.Errorf("make was not given %s:\n%s", word, calls)
		}
	}

	// Now only dev.c is compiled again.
	f.script("echo '  CC [M]  net/core/dev.o'; echo 'net/core/dev.c:1:2: warning: new'\n")
	got = f.compile(patched, "net/core/")
	want["net/core/dev"] = kbuild.Said{Compiler: []string{"net/core/dev.c:1:2: warning: new"}}
	if d := cmp.Diff(want, got.Said); d != "" {
		t.Errorf("said the second time (-want +got):\n%s", d)
	}
	if builds, configurations := f.calls(); builds != 2 || configurations != 1 {
		t.Errorf("%d builds, %d configurations", builds, configurations)
	}
}

func TestCompileTellsErrorsFromWhatIsNotConfigured(t *testing.T) {
	for _, test := range []struct {
		name, script string
		failed       bool
	}{
		{"an error", "echo '  CC      net/core/sock.o'; echo 'net/core/sock.c:1:2: error: no'; echo \"make[3]: *** [../scripts/Makefile.build:229: net/core/sock.o] Error 1\"; exit 2", true},
		{"left out", "echo \"make[4]: *** No rule to make target 'net/compat.o'.\"; echo \"make[3]: *** [../scripts/Makefile.build:478: net] Error 2\"; exit 2", false},
		{"both", "echo \"make[4]: *** No rule to make target 'net/compat.o'.\"; echo 'net/core/sock.c:1:2: error: no'; exit 2", true},
		{"another missing file", "echo \"make[4]: *** No rule to make target 'net/sock.h', needed by 'net/sock.o'.\"; exit 2", true},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := newFixture(t)
			f.tool("make", compileMake)
			f.script(test.script + "\n")
			if got := f.compile(f.tree("patched", nil), "net/core/"); got.Failed != test.failed {
				t.Errorf("failed %v, want %v", got.Failed, test.failed)
			}
		})
	}
}

func TestCompileBlamesTheMachineForItsFaults(t *testing.T) {
	f := newFixture(t)
	f.tool("make", compileMake)
	f.script("echo 'fatal error: error writing to /tmp/x.s: No space left on device'; exit 2\n")
	if _, err := kbuild.Compile(t.Context(), f.tree("patched", nil), variant, []string{"net/core/"}, f.options); fault.Of(err) != fault.Infrastructure {
		t.Errorf("got %v", err)
	}
}
