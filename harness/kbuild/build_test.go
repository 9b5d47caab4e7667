// SPDX-License-Identifier: BSD-3-Clause

package kbuild_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/zcvet/zcvet/harness/cache"
	"github.com/zcvet/zcvet/harness/fault"
	"github.com/zcvet/zcvet/harness/kbuild"
	"github.com/zcvet/zcvet/harness/progress"
	"github.com/zcvet/zcvet/harness/series"
	"github.com/zcvet/zcvet/harness/source"
	"github.com/zcvet/zcvet/harness/tree"
	"github.com/zcvet/zcvet/kconfig"
)

// fakeMake stands in for make and the kernel's build system. It writes down each
// call, configures to what it was asked for less what the file "drop" names, and
// then does what the file "script" says.
const fakeMake = `#!/bin/sh
fake=$(dirname "$0")
echo "$@" >>"$fake/calls"
mkdir -p build/include/config
case "$*" in
*allnoconfig*)
	if [ -f "$fake/drop" ]; then
		grep -v -f "$fake/drop" "$KCONFIG_ALLCONFIG" >build/.config
	else
		cp "$KCONFIG_ALLCONFIG" build/.config
	fi
	exit 0 ;;
esac
if [ -f "$fake/script" ]; then . "$fake/script"; fi
echo '  HOSTCC  scripts/basic/fixdep'
echo '  CC      /cache/work/linux/build/tools/objtool/check.o'
echo '  CC      net/core/skbuff.o'
echo '  AS      arch/x86/entry/entry_64.o'
echo '  LD      vmlinux'
cp net/core/skbuff.c build/vmlinux
cp net/core/skbuff.c build/vmlinux.o
echo 6.12.95 >build/include/config/kernel.release
`

// fakes are the tools besides make; strip copies, and marks what it copied.
var fakes = map[string]string{
	"gcc":   "#!/bin/sh\necho 'gcc (Fake) 12.2.0'\necho more\n",
	"ld":    "#!/bin/sh\necho 'GNU ld (Fake) 2.40'\n",
	"strip": "#!/bin/sh\n{ echo stripped; cat \"$4\"; } >\"$3\"\n",
	"flex":  "#!/bin/sh\n",
	"bison": "#!/bin/sh\n",
	"bc":    "#!/bin/sh\n",
	"make":  fakeMake,
}

// fixture is a small kernel, a cache and a fake toolchain.
type fixture struct {
	t       *testing.T
	tools   string
	source  *source.Kernel
	set     *kconfig.Set
	options kbuild.Options
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	f := &fixture{t: t, tools: t.TempDir()}
	for name, script := range fakes {
		f.tool(name, script)
	}
	t.Setenv("PATH", f.tools+":/usr/bin:/bin")
	// The headers that are looked for, wherever this runs.
	headers := t.TempDir()
	f.write(filepath.Join(headers, "gelf.h"), "")
	f.write(filepath.Join(headers, "stdlib.h"), "")
	t.Setenv("CPATH", headers)

	dir := t.TempDir()
	f.write(filepath.Join(dir, "net/core/skbuff.c"), "int skb;\n")
	f.write(filepath.Join(dir, "Kconfig"), "config NET\n\tbool \"Net\"\n\nconfig CARD\n\tbool \"Card\"\n\tdepends on NET && PCI\n\nconfig PCI\n\tbool\n")
	f.source = &source.Kernel{Version: "6.12.95", ID: "pristine", Dir: dir}
	f.set = f.config("# A reason.\nCONFIG_NET=y\n")
	store, err := cache.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	f.options = kbuild.Options{Cache: store, NoCCache: true}
	return f
}

func (f *fixture) write(file, content string) {
	f.t.Helper()
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		f.t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fixture) tool(name, script string) {
	f.t.Helper()
	if err := os.WriteFile(filepath.Join(f.tools, name), []byte(script), 0o755); err != nil {
		f.t.Fatal(err)
	}
}

// script is what the fake make does before it succeeds.
func (f *fixture) script(text string) { f.write(filepath.Join(f.tools, "script"), text) }

func (f *fixture) config(text string) *kconfig.Set {
	f.t.Helper()
	fragment, err := kconfig.Parse("fragment", []byte(text))
	if err != nil {
		f.t.Fatal(err)
	}
	return &kconfig.Set{Name: "test", Fragments: []kconfig.Fragment{fragment}}
}

// calls counts how often make ran, less the times it was asked to configure.
func (f *fixture) calls() (builds, configurations int) {
	f.t.Helper()
	text, err := os.ReadFile(filepath.Join(f.tools, "calls"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		f.t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if strings.Contains(line, "allnoconfig") {
			configurations++
		} else {
			builds++
		}
	}
	return builds, configurations
}

func (f *fixture) tree(id string, overlay map[string]string) *tree.Tree {
	t := &tree.Tree{Kernel: f.source, Series: &series.Series{}, ID: id, Overlay: map[string][]byte{}}
	for name, content := range overlay {
		t.Overlay[name] = []byte(content)
	}
	return t
}

func (f *fixture) build(t *tree.Tree) (*kbuild.Kernel, error) {
	return kbuild.Build(f.t.Context(), t, f.set, f.options)
}

func (f *fixture) mustBuild(t *tree.Tree) *kbuild.Kernel {
	f.t.Helper()
	kernel, err := f.build(t)
	if err != nil {
		f.t.Fatal(err)
	}
	return kernel
}

func read(t *testing.T, file string) string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestBuildAndFindAgain(t *testing.T) {
	f := newFixture(t)
	var updates []progress.Update
	f.options.Progress = func(u progress.Update) {
		if u.Unit == progress.Objects && u.Done > 0 {
			updates = append(updates, u)
		}
	}
	var log bytes.Buffer
	f.options.Log = &log
	patched := f.tree("patched", map[string]string{"net/core/skbuff.c": "int patched;\n"})
	kernel := f.mustBuild(patched)
	if kernel.Cached || kernel.Objects != 2 || kernel.Release != "6.12.95" || kernel.Compiler != "gcc (Fake) 12.2.0" || kernel.CacheLookups != 0 {
		t.Errorf("kernel %+v", kernel)
	}
	if got := read(t, kernel.Vmlinux); got != "int patched;\n" {
		t.Errorf("vmlinux was made from %q", got)
	}
	if got := read(t, kernel.Boot); got != "stripped\nint patched;\n" {
		t.Errorf("boot image %q", got)
	}
	if got := read(t, kernel.Config); got != "CONFIG_NET=y\n" {
		t.Errorf("config %q", got)
	}
	if got := read(t, filepath.Join(f.source.Dir, "net/core/skbuff.c")); got != "int skb;\n" {
		t.Errorf("the pristine source is now %q", got)
	}
	if len(updates) != 2 || updates[1].Done != 2 || updates[1].Total == 0 || updates[1].What != "arch/x86/entry/entry_64.o" {
		t.Errorf("progress %v", updates)
	}
	if !strings.Contains(log.String(), "  LD      vmlinux\n") {
		t.Errorf("log %q", &log)
	}

	again := f.mustBuild(patched)
	if builds, _ := f.calls(); builds != 1 || !again.Cached {
		t.Errorf("%d builds, cached %v", builds, again.Cached)
	}
	again.Cached = kernel.Cached
	if diff := cmp.Diff(*kernel, *again, cmp.FilterPath(func(p cmp.Path) bool { return p.String() == "release" }, cmp.Ignore())); diff != "" {
		t.Errorf("found again, it differs (-built +found):\n%s", diff)
	}
}

func TestBuildIsReproducible(t *testing.T) {
	f := newFixture(t)
	f.mustBuild(f.tree("patched", nil))
	call := read(t, filepath.Join(f.tools, "calls"))
	for _, want := range []string{
		"KBUILD_BUILD_USER=zcvet", "KBUILD_BUILD_HOST=zcvet", "KBUILD_BUILD_VERSION=1", "KBUILD_BUILD_TIMESTAMP=Thu Jan  1 00:00:00 UTC 1970",
	} {
		if !strings.Contains(call, want) {
			t.Errorf("make was called without %s:\n%s", want, call)
		}
	}
}

func TestIdentityDependsOnAllInputs(t *testing.T) {
	f := newFixture(t)
	seen := map[string]string{}
	try := func(what string, patched *tree.Tree) {
		t.Helper()
		kernel := f.mustBuild(patched)
		if first, same := seen[kernel.ID]; same {
			t.Errorf("%s gives the kernel id of %s", what, first)
		}
		seen[kernel.ID] = what
	}
	try("the first tree", f.tree("a", nil))
	try("another tree", f.tree("b", nil))
	f.set = f.config("# A reason.\nCONFIG_NET=y\n# Another.\nCONFIG_PCI=y\n")
	try("another config", f.tree("b", nil))
	f.tool("gcc", "#!/bin/sh\necho 'gcc (Fake) 13.1.0'\n")
	try("another compiler", f.tree("b", nil))
	f.tool("ld", "#!/bin/sh\necho 'GNU ld (Fake) 2.42'\n")
	try("another linker", f.tree("b", nil))
}

func TestIncrementalBuildDoesNotConfigureAgain(t *testing.T) {
	f := newFixture(t)
	f.mustBuild(f.tree("a", nil))
	kernel := f.mustBuild(f.tree("b", map[string]string{"net/core/skbuff.c": "int b;\n"}))
	if got := read(t, kernel.Vmlinux); got != "int b;\n" {
		t.Errorf("vmlinux was made from %q", got)
	}
	if builds, configurations := f.calls(); builds != 2 || configurations != 1 {
		t.Errorf("%d builds, %d configurations; want 2 and 1", builds, configurations)
	}
	f.mustBuild(f.tree("c", map[string]string{"net/Kconfig": "config ZC\n\tbool\n"}))
	if _, configurations := f.calls(); configurations != 2 {
		t.Errorf("%d configurations after a series that changes a Kconfig file, want 2", configurations)
	}
}

func TestTwoAtOnceBuildOnce(t *testing.T) {
	f := newFixture(t)
	f.script("sleep 0.2\n")
	var group sync.WaitGroup
	kernels := make([]*kbuild.Kernel, 3)
	for i := range kernels {
		group.Go(func() {
			kernel, err := f.build(f.tree("a", nil))
			if err != nil {
				t.Error(err)
				return
			}
			kernels[i] = kernel
		})
	}
	group.Wait()
	builds, _ := f.calls()
	cached := 0
	for _, kernel := range kernels {
		if kernel != nil && kernel.Cached {
			cached++
		}
	}
	if builds != 1 || cached != 2 {
		t.Errorf("%d builds, %d found in the cache; want 1 and 2", builds, cached)
	}
}

func TestBuildFailures(t *testing.T) {
	for _, test := range []struct {
		name, script string
		class        fault.Class
		want         []string // parts of the message
	}{
		{
			"compile error in a patched file",
			"echo '../net/core/skbuff.c:1:5: error: expected identifier' >&2\necho 'make[4]: *** [../scripts/Makefile.build:229: net/core/skbuff.o] Error 1'\nexit 2\n",
			fault.Build,
			[]string{"net/core/skbuff.c:1: expected identifier"},
		},
		{
			"linker",
			"echo 'ld: vmlinux.o: in function `f'\\'':'\necho 'net/core/skbuff.c:12: undefined reference to `g'\\'\nexit 2\n",
			fault.Build,
			[]string{"net/core/skbuff.c:12: undefined reference to `g'"},
		},
		{
			"silent",
			"exit 2\n",
			fault.Build,
			[]string{"make failed without saying why"},
		},
		{
			"disk full",
			"echo 'ld: final link failed: No space left on device'\nexit 2\n",
			fault.Infrastructure,
			[]string{"No space left on device"},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := newFixture(t)
			f.script(test.script)
			_, err := f.build(f.tree("a", map[string]string{"net/core/skbuff.c": "int broken\n"}))
			if fault.Of(err) != test.class {
				t.Fatalf("got %v of class %v, want class %v", err, fault.Of(err), test.class)
			}
			for _, want := range test.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("message %q lacks %q", err, want)
				}
			}
			// A failure is not remembered.
			f.script("")
			f.mustBuild(f.tree("a", nil))
		})
	}
}

func TestErrorNamesThePatch(t *testing.T) {
	f := newFixture(t)
	mail := []byte(`diff --git a/net/core/skbuff.c b/net/core/skbuff.c
--- a/net/core/skbuff.c
+++ b/net/core/skbuff.c
@@ -1 +1,2 @@
 int skb;
+int zc_missing(void);
`)
	applied, err := tree.Apply(t.Context(), f.source, &series.Series{Patches: []series.Patch{{Subject: "net: add the thing", File: "0001.patch", Mail: mail, Diff: mail}}}, tree.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ output, want string }{
		{"../net/core/skbuff.c:2:5: error: bad", `net/core/skbuff.c:2: bad (the line is from patch 1/1 "net: add the thing")`},
		{"../net/core/skbuff.c:1:5: error: bad", `net/core/skbuff.c:1: bad (the file was changed by patch 1/1 "net: add the thing")`},
		{"x.c:(.text+0x1): undefined reference to `zc_missing'\\''", "x.c: undefined reference to `zc_missing' (zc_missing is used by patch 1/1 \"net: add the thing\")"},
		{"../net/core/dev.c:1:5: error: bad", "net/core/dev.c:1: bad"},
	} {
		f.script(fmt.Sprintf("echo '%s'\nexit 2\n", test.output))
		if _, err := f.build(applied); err == nil || err.Error() != test.want {
			t.Errorf("got  %v\nwant %s", err, test.want)
		}
	}
}

func TestDroppedSymbolFails(t *testing.T) {
	f := newFixture(t)
	f.set = f.config("# A reason.\nCONFIG_NET=y\n\n# Another.\nCONFIG_CARD=y\nCONFIG_GONE=y\n")
	f.write(filepath.Join(f.tools, "drop"), "CONFIG_CARD\nCONFIG_GONE\n")
	_, err := f.build(f.tree("a", nil))
	failure, ok := errors.AsType[*fault.Error](err)
	if !ok || failure.Class != fault.Build {
		t.Fatalf("got %v", err)
	}
	if want := "CONFIG_CARD=y, asked for in fragment.config:5, is n: it depends on NET && PCI (NET=y, PCI=n); see Kconfig:4 (and 1 more symbols were dropped)"; failure.Error() != want {
		t.Errorf("got  %s\nwant %s", failure, want)
	}
	if !strings.Contains(failure.Output, "CONFIG_GONE=y, asked for in fragment.config:6, is n: this kernel has no such symbol") {
		t.Errorf("output %q", failure.Output)
	}
	if builds, _ := f.calls(); builds != 0 {
		t.Error("it was compiled nevertheless")
	}
	// The next try must look again, not believe the stamp of this one.
	if _, err := f.build(f.tree("a", nil)); fault.Of(err) != fault.Build {
		t.Errorf("the second time: %v", err)
	}
}

func TestMissingToolsAreNamed(t *testing.T) {
	f := newFixture(t)
	empty := t.TempDir()
	f.tool("ld", fakes["ld"])
	if err := os.Rename(filepath.Join(f.tools, "ld"), filepath.Join(empty, "ld")); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", empty)
	_, err := f.build(f.tree("a", nil))
	failure, ok := errors.AsType[*fault.Error](err)
	if !ok || failure.Class != fault.Infrastructure {
		t.Fatalf("got %v", err)
	}
	if want := "sudo apt-get install bc binutils bison flex gcc make"; failure.Advice != want {
		t.Errorf("advice %q, want %q", failure.Advice, want)
	}
}

func TestEnvironmentDoesNotReachTheBuild(t *testing.T) {
	f := newFixture(t)
	t.Setenv("KCFLAGS", "-DSURPRISE")
	t.Setenv("MAKEFLAGS", "-k")
	f.script(`env >"$fake/environment"` + "\n")
	f.mustBuild(f.tree("a", nil))
	environment := read(t, filepath.Join(f.tools, "environment"))
	if strings.Contains(environment, "SURPRISE") || strings.Contains(environment, "MAKEFLAGS") {
		t.Errorf("make saw\n%s", environment)
	}
	if !strings.Contains(environment, "LC_ALL=C\n") {
		t.Errorf("make did not see LC_ALL=C:\n%s", environment)
	}
}

func TestCCacheIsUsedWhenThere(t *testing.T) {
	f := newFixture(t)
	f.tool("ccache", "#!/bin/sh\n")
	f.options.NoCCache = false
	f.script(`printf '# net/core/skbuff.c\ndirect_cache_hit\n# b\ncache_miss\n' >"$CCACHE_STATSLOG"` + "\n")
	if kernel := f.mustBuild(f.tree("a", nil)); kernel.CacheHits != 1 || kernel.CacheLookups != 2 {
		t.Errorf("%d hits of %d, want 1 of 2", kernel.CacheHits, kernel.CacheLookups)
	}
	if call := read(t, filepath.Join(f.tools, "calls")); !strings.Contains(call, "CC=ccache gcc") {
		t.Errorf("make was called as\n%s", call)
	}
}

// alive tells whether the process runs; a zombie does not.
func alive(pid int) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, state, _ := strings.Cut(string(text), ") ")
	return !strings.HasPrefix(state, "Z")
}

// eventually waits for what another process does.
func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	for range 600 {
		if done() {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatalf("%s: not within 30 s", what)
}

// waits is a script that says who runs, and then makes make last for ever, with a
// child as a compiler would be.
const waits = "sleep 1000 &\necho $$ $! >\"$fake/pids\"\nwait\n"

func (f *fixture) pids() []int {
	var pids []int
	eventually(f.t, "the build starts", func() bool {
		text, _ := os.ReadFile(filepath.Join(f.tools, "pids"))
		pids = nil
		for _, word := range strings.Fields(string(text)) {
			if pid, err := strconv.Atoi(word); err == nil {
				pids = append(pids, pid)
			}
		}
		return len(pids) == 2
	})
	return pids
}

func TestCancelEndsAllProcesses(t *testing.T) {
	f := newFixture(t)
	f.script(waits)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	failed := make(chan error)
	go func() {
		_, err := kbuild.Build(ctx, f.tree("a", nil), f.set, f.options)
		failed <- err
	}()
	pids := f.pids()
	cancel()
	if err := <-failed; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	for _, pid := range pids {
		if alive(pid) {
			t.Errorf("process %d still runs", pid)
		}
	}
	// Nothing is locked or broken: the next build succeeds.
	f.script("")
	f.mustBuild(f.tree("a", nil))
}

// roleVariable makes the test binary a harness that builds, to be killed.
const roleVariable = "ZCVET_KBUILD_TEST_BUILD"

func TestMain(m *testing.M) {
	if root := os.Getenv(roleVariable); root != "" {
		store, err := cache.Open(filepath.Join(root, "cache"))
		if err == nil {
			kernel := &source.Kernel{Version: "6.12.95", ID: "pristine", Dir: filepath.Join(root, "source")}
			_, err = kbuild.Build(context.Background(), &tree.Tree{Kernel: kernel, Series: &series.Series{}, ID: "a"},
				&kconfig.Set{Name: "test"}, kbuild.Options{Cache: store, NoCCache: true})
		}
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func TestMakeDiesWithTheHarness(t *testing.T) {
	f := newFixture(t)
	// As make does, the fake passes the signal on; as one that the shell between
	// fork and exec cannot swallow.
	f.script("trap 'kill -KILL $!; exit 1' TERM\n" + waits)
	root := t.TempDir()
	f.write(filepath.Join(root, "source/net/core/skbuff.c"), "int skb;\n")
	harness := exec.Command(os.Args[0])
	harness.Env = append(os.Environ(), roleVariable+"="+root)
	harness.Stderr = io.Discard
	if err := harness.Start(); err != nil {
		t.Fatal(err)
	}
	pids := f.pids()
	if err := harness.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	_ = harness.Wait()
	eventually(t, "make and its child end", func() bool { return !alive(pids[0]) && !alive(pids[1]) })
}

// The real thing, some minutes long.
func TestRealKernel(t *testing.T) {
	if os.Getenv("ZCVET_E2E") == "" {
		t.Skip("builds a kernel; set ZCVET_E2E=1")
	}
	store, err := cache.Open("")
	if err != nil {
		t.Fatal(err)
	}
	kernel, err := source.Resolve(t.Context(), "6.12", source.Options{Cache: store})
	if err != nil {
		t.Fatal(err)
	}
	set, err := kconfig.Load(kconfig.Default)
	if err != nil {
		t.Fatal(err)
	}
	patched, err := tree.Apply(t.Context(), kernel, &series.Series{Name: "none"}, tree.Options{})
	if err != nil {
		t.Fatal(err)
	}
	// Twice from nothing, in different places: the bytes must be the same.
	var boots []string
	for range 2 {
		private, err := cache.Open(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		built, err := kbuild.Build(t.Context(), patched, set, kbuild.Options{Cache: private})
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%.1f s, %d objects, ccache had %d of %d", built.BuildSeconds, built.Objects, built.CacheHits, built.CacheLookups)
		text := read(t, built.Vmlinux)
		if strings.Contains(text, private.Root()) {
			t.Error("vmlinux names the place of the cache")
		}
		boots = append(boots, text)
	}
	if boots[0] != boots[1] {
		t.Error("the same inputs gave two different kernels")
	}
}
