// SPDX-License-Identifier: BSD-3-Clause

// Package source finds the kernel that a series is tried on: from the cache,
// from the machine's own package manager, from kernel.org, from a tarball, a
// directory or a git repository.
package source

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/zcvet/zcvet/harness/cache"
	"github.com/zcvet/zcvet/harness/fault"
	"github.com/zcvet/zcvet/harness/progress"
)

// Kernel is the source of one kernel, unpacked and ready to be read. Nothing in
// this project ever writes below Dir: a build works on a copy.
type Kernel struct {
	// Version is what the tree's Makefile says, such as "6.12.95" or
	// "6.12.0-rc3"; for an image the version found in it, or "".
	Version string
	// Source names the provider and the place, for people to read:
	// "debian linux-source-6.12 6.12.95-1".
	Source string
	// ID names the contents of Dir (or Image). Equal ids are equal contents;
	// it is short, and safe as a file name.
	ID string
	// Dir is the root of the pristine tree; empty when Image is set.
	Dir string
	// Image is a kernel that is already built, for an image: specification;
	// such a kernel takes no series and is not built.
	Image string
}

// Options say where sources are kept and who listens.
type Options struct {
	// Cache is where sources are unpacked; it must be set, except for
	// image: specifications.
	Cache    *cache.Dir
	Progress progress.Func
	// Log receives what the tools print; nil drops it.
	Log io.Writer
	// Refresh looks for a newer source of a version than the cached one. Without
	// it a cached version stays what it is, even when Debian or kernel.org
	// have a newer point release: results stay comparable.
	Refresh bool
	// KernelOrg is where kernel.org's tarballs are, empty for its own site.
	KernelOrg string
}

// isVersion matches "6.12", the newest point release of that series that the
// provider has, and "6.12.5", exactly that one.
var isVersion = regexp.MustCompile(`^(\d+)\.(\d+)(?:\.(\d+))?$`)

// Resolve finds, fetches, verifies and unpacks the kernel that spec names:
//
//	6.12, 6.12.5   from the cache, an installed linux-source package, Debian's
//	               package through apt (also of a newer suite), or kernel.org
//	tar:FILE       a tarball in any compression that tar knows
//	dir:PATH       a directory, which is only read
//	git:URL@REF    a branch, tag or commit, fetched shallow; HEAD without REF
//	image:FILE     a kernel that is built already
//
// Several processes may resolve the same kernel at once: one fetches, the others
// wait for it. A spec that names nothing is a fault.Usage that lists what there
// is; a network or disk that fails is fault.Infrastructure.
func Resolve(ctx context.Context, spec string, options Options) (*Kernel, error) {
	r := &resolver{Options: options}
	scheme, rest, hasScheme := strings.Cut(spec, ":")
	switch {
	case isVersion.MatchString(spec):
		return r.version(ctx, spec)
	case scheme == "tar" && hasScheme:
		return r.tarball(ctx, rest)
	case scheme == "dir" && hasScheme:
		return r.directory(ctx, rest)
	case scheme == "git" && hasScheme:
		return r.git(ctx, rest)
	case scheme == "image" && hasScheme:
		return r.image(ctx, rest)
	}
	unknown := fault.New(fault.Usage, "kernel %q: neither a version nor tar:, dir:, git: or image:", spec)
	if info, err := os.Stat(spec); err == nil {
		if info.IsDir() {
			return nil, unknown.WithAdvice("write dir:%s", spec)
		}
		return nil, unknown.WithAdvice("write tar:%s for a tarball, image:%s for a kernel that is built", spec, spec)
	}
	return nil, unknown.WithAdvice("write a version as 6.12 or 6.12.5, or see the help for the other forms")
}

// resolver carries the options through one Resolve.
type resolver struct{ Options }

func (r *resolver) logf(format string, args ...any) {
	if r.Log != nil {
		fmt.Fprintf(r.Log, format+"\n", args...)
	}
}

// errUnavailable is wrapped by a provider that answered, and has no such kernel.
var errUnavailable = errors.New("not available")

// version asks the providers in turn.
func (r *resolver) version(ctx context.Context, version string) (*Kernel, error) {
	if !r.Refresh {
		if kernel := r.pinned(version); kernel != nil {
			return kernel, nil
		}
	}
	unlock, err := r.Cache.Lock(ctx, cache.Sources, "version "+version)
	if err != nil {
		return nil, err
	}
	defer unlock()
	// Whoever held the lock may have fetched it.
	if !r.Refresh {
		if kernel := r.pinned(version); kernel != nil {
			return kernel, nil
		}
	}

	var (
		failures  []string
		available []string
		broken    error
	)
	for _, provider := range []func(context.Context, string) (*Kernel, []string, error){r.installed, r.debian, r.kernelOrg} {
		kernel, offered, err := provider(ctx, version)
		if err == nil {
			return kernel, r.pin(version, kernel)
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		available = append(available, offered...)
		failures = append(failures, err.Error())
		if !errors.Is(err, errUnavailable) {
			r.logf("%v", err)
			broken = err
		}
	}
	slices.SortFunc(available, compareVersions)
	available = slices.Compact(available)
	slices.Reverse(available)
	if len(available) > maxOffered {
		available = append(available[:maxOffered], "…")
	}
	offer := cmp.Or(strings.Join(available, ", "), "none")
	// The words of every provider: which of them should have had it is the
	// reader's to know.
	output := strings.Join(failures, "\n")
	if broken != nil {
		if classed, ok := errors.AsType[*fault.Error](broken); ok && classed.Output != "" {
			output += "\n" + classed.Output
		}
		return nil, fault.New(fault.Infrastructure, "kernel %s: no provider could deliver it; %w", version, broken).WithOutput(output).
			WithAdvice("check the network and the package sources, or give a tarball with tar:FILE; versions seen: %s", offer)
	}
	return nil, fault.New(fault.Usage, "kernel %s: there is no such version; available: %s", version, offer).WithOutput(output)
}

// maxOffered is how many versions an error lists.
const maxOffered = 12

// compareVersions orders dotted numbers.
func compareVersions(a, b string) int {
	parse := func(version string) (out []int) {
		for part := range strings.SplitSeq(version, ".") {
			n := 0
			for _, digit := range part {
				if digit < '0' || digit > '9' {
					break
				}
				n = n*10 + int(digit-'0')
			}
			out = append(out, n)
		}
		return out
	}
	return slices.Compare(parse(a), parse(b))
}

var (
	makefileVersion = regexp.MustCompile(`(?m)^(VERSION|PATCHLEVEL|SUBLEVEL|EXTRAVERSION)[ \t]*=[ \t]*(.*?)[ \t]*$`)
	// maxMakefile bounds how much of a file is searched; the version is at the top.
	maxMakefile int64 = 1 << 16
)

// readVersion reads the version of a kernel tree from its Makefile.
func readVersion(dir string) (string, error) {
	file, err := os.Open(filepath.Join(dir, "Makefile"))
	if err != nil {
		return "", fmt.Errorf("no kernel source: %w", err)
	}
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, maxMakefile))
	if err != nil {
		return "", fmt.Errorf("no kernel source: %w", err)
	}
	parts := map[string]string{}
	for _, m := range makefileVersion.FindAllStringSubmatch(string(text), -1) {
		if _, ok := parts[m[1]]; !ok {
			parts[m[1]] = m[2]
		}
	}
	version := parts["VERSION"] + "." + parts["PATCHLEVEL"] + "." + cmp.Or(parts["SUBLEVEL"], "0")
	if !isVersion.MatchString(version) {
		return "", fmt.Errorf("no kernel source: the Makefile in %s names no version", dir)
	}
	if _, err := os.Stat(filepath.Join(dir, "Kconfig")); err != nil {
		return "", fmt.Errorf("no kernel source: %w", err)
	}
	return version + parts["EXTRAVERSION"], nil
}
