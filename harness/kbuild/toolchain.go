// SPDX-License-Identifier: BSD-3-Clause

package kbuild

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/zcvet/zcvet/harness/fault"
)

// requirement is something a kernel build needs from the machine.
type requirement struct {
	tool    string // looked up in PATH; empty for a header
	header  string
	pkg     string // the Debian package that has it
	purpose string
}

// requirements are checked before a build, because the kernel's own messages about
// them come late and puzzle whoever has not met them.
var requirements = []requirement{
	{tool: "make", pkg: "make", purpose: "runs the build"},
	{tool: "gcc", pkg: "gcc", purpose: "compiles"},
	{tool: "ld", pkg: "binutils", purpose: "links"},
	{tool: "strip", pkg: "binutils", purpose: "makes the image that boots small"},
	{tool: "flex", pkg: "flex", purpose: "Kconfig's scanner"},
	{tool: "bison", pkg: "bison", purpose: "Kconfig's parser"},
	{tool: "bc", pkg: "bc", purpose: "computes the timer constants"},
	{header: "stdlib.h", pkg: "libc6-dev", purpose: "the build's own tools"},
	{header: "gelf.h", pkg: "libelf-dev", purpose: "objtool"},
}

// Missing lists the Debian packages that a kernel build needs and this machine
// does not have, sorted.
func Missing() []string {
	var packages []string
	for _, r := range requirements {
		if r.tool != "" {
			if _, err := exec.LookPath(r.tool); err == nil {
				continue
			}
		} else if slices.ContainsFunc(includePaths(), func(dir string) bool {
			_, err := os.Stat(filepath.Join(dir, r.header))
			return err == nil
		}) {
			continue
		}
		packages = append(packages, r.pkg)
	}
	slices.Sort(packages)
	return slices.Compact(packages)
}

// includePaths is where the host compiler looks for headers besides its own.
func includePaths() []string {
	paths := []string{"/usr/include", "/usr/local/include", "/usr/include/x86_64-linux-gnu"}
	return append(paths, filepath.SplitList(os.Getenv("CPATH"))...)
}

// toolchain is what turns source into a kernel, as far as the result depends on it.
type toolchain struct {
	Compiler string // first line of gcc --version
	Linker   string // first line of ld --version
	CCache   bool
}

func findToolchain(ctx context.Context, wantCCache bool) (toolchain, error) {
	if missing := Missing(); len(missing) > 0 {
		return toolchain{}, fault.New(fault.Infrastructure, "this machine cannot build kernels: it lacks %s", strings.Join(missing, ", ")).
			WithAdvice("sudo apt-get install %s", strings.Join(missing, " "))
	}
	var t toolchain
	var err error
	if t.Compiler, err = firstLine(ctx, "gcc", "--version"); err != nil {
		return toolchain{}, err
	}
	if t.Linker, err = firstLine(ctx, "ld", "--version"); err != nil {
		return toolchain{}, err
	}
	if wantCCache {
		_, err := exec.LookPath("ccache")
		t.CCache = err == nil
	}
	return t, nil
}

func firstLine(ctx context.Context, name string, args ...string) (string, error) {
	command := exec.CommandContext(ctx, name, args...)
	command.Env = environment()
	output, err := command.Output()
	if err != nil {
		if ctx.Err() != nil {
			return "", ctx.Err()
		}
		return "", fault.New(fault.Infrastructure, "ask %s for its version: %w", name, err)
	}
	line, _, _ := bytes.Cut(output, []byte("\n"))
	if len(line) == 0 {
		return "", fault.New(fault.Infrastructure, "%s does not tell its version", name)
	}
	return string(line), nil
}

// environment is what the build sees of ours. Kbuild takes dozens of variables
// from the environment, and none of them must make another kernel than the id says.
func environment(more ...string) []string {
	env := []string{"LC_ALL=C", "TZ=UTC"}
	for _, name := range []string{"PATH", "HOME", "USER", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "CPATH", "LD_LIBRARY_PATH"} {
		if value, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+value)
		}
	}
	for _, variable := range os.Environ() {
		// ccache's settings change how fast a kernel is made, not which.
		if strings.HasPrefix(variable, "CCACHE_") {
			env = append(env, variable)
		}
	}
	return append(env, more...)
}

func (t toolchain) String() string { return fmt.Sprintf("%s, %s", t.Compiler, t.Linker) }
