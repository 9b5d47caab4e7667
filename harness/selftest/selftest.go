// SPDX-License-Identifier: BSD-3-Clause

// Package selftest compiles a patched tree's own test of MSG_ZEROCOPY,
// tools/testing/selftests/net/msg_zerocopy, against the tree's own uapi headers,
// for the guest to run: a static program.
//
// The headers are taken as they are in the tree. `make headers` would first take
// out what the compiler can be told to ignore, at a process per header and some
// forty seconds of processor time per series.
package selftest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/zcvet/zcvet/harness/cache"
	"github.com/zcvet/zcvet/harness/fault"
	"github.com/zcvet/zcvet/harness/kbuild"
	"github.com/zcvet/zcvet/harness/tree"
)

// Source is the test within a kernel tree.
const Source = "tools/testing/selftests/net/msg_zerocopy.c"

// recipe is raised whenever the same tree gives another program.
const recipe = "1"

// The folders of a tree with what the program is made of, headers first.
const (
	uapi     = "include/uapi"
	archUAPI = "arch/x86/include/uapi"
	tests    = "tools/testing/selftests"
)

// Options are what Build needs besides the tree.
type Options struct {
	Cache *cache.Dir
	// Log gets what the compiler says; may be nil.
	Log io.Writer
}

// Selftest is the outcome: a program, or the reason there is none.
type Selftest struct {
	// Program is a static executable, or nil.
	Program []byte
	// Failure says in the compiler's words why the test does not compile, and
	// which patch the place is from. It is a fault of the tree.
	Failure string
	// Absent is set if the tree has no such test.
	Absent bool
}

// Build compiles the test, or finds it compiled. That it does not compile is a
// result; an error is of class fault.Infrastructure: a machine without a compiler
// or without a static C library.
func Build(ctx context.Context, t *tree.Tree, options Options) (*Selftest, error) {
	if _, err := content(t, Source); errors.Is(err, fs.ErrNotExist) {
		return &Selftest{Absent: true}, nil
	} else if err != nil {
		return nil, fault.New(fault.Infrastructure, "selftest: %w", err)
	}
	compiler, err := ask(ctx, "--version")
	if err != nil {
		return nil, err
	}
	id := identity(recipe, t.ID, compiler)
	dir := options.Cache
	unlock, err := dir.Lock(ctx, cache.Selftests, id)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if dir.Has(cache.Selftests, id) {
		return load(dir, id)
	}
	built, err := compile(ctx, t, options)
	if err != nil {
		return nil, err
	}
	return built, keep(dir, id, built)
}

// An entry of the cache is one byte that says what follows it.
const (
	isProgram = 'p'
	isFailure = 'f'
)

func load(dir *cache.Dir, id string) (*Selftest, error) {
	kept, err := dir.Get(cache.Selftests, id)
	switch {
	case err != nil:
		return nil, dir.Explain("read a selftest from the cache", err)
	case len(kept) > 0 && kept[0] == isProgram:
		return &Selftest{Program: kept[1:]}, nil
	case len(kept) > 0 && kept[0] == isFailure:
		return &Selftest{Failure: string(kept[1:])}, nil
	}
	return nil, fault.New(fault.Infrastructure, "the cache has a selftest of no known kind").
		WithAdvice("remove %s", dir.Path(cache.Selftests, id))
}

func keep(dir *cache.Dir, id string, built *Selftest) error {
	if built.Program != nil {
		return dir.Put(cache.Selftests, id, append([]byte{isProgram}, built.Program...))
	}
	return dir.Put(cache.Selftests, id, append([]byte{isFailure}, built.Failure...))
}

func identity(parts ...string) string {
	sum := sha256.New()
	for _, part := range parts {
		_, _ = fmt.Fprintf(sum, "%d:%s", len(part), part)
	}
	return hex.EncodeToString(sum.Sum(nil))[:24]
}

// content reads a file of the patched tree.
func content(t *tree.Tree, name string) ([]byte, error) {
	if changed, ok := t.Overlay[name]; ok {
		return changed, nil
	}
	if slices.Contains(t.Deleted, name) {
		return nil, fs.ErrNotExist
	}
	return os.ReadFile(filepath.Join(t.Kernel.Dir, filepath.FromSlash(name)))
}

func compile(ctx context.Context, t *tree.Tree, options Options) (*Selftest, error) {
	if err := requireStaticLibrary(ctx); err != nil {
		return nil, err
	}
	scratch, cleanup, err := options.Cache.TempDir()
	if err != nil {
		return nil, err
	}
	defer cleanup()
	if err := lay(t, scratch); err != nil {
		return nil, options.Cache.Explain("selftest", err)
	}
	program := filepath.Join(scratch, "program")
	command := exec.CommandContext(ctx, "gcc", arguments(t, scratch, program)...)
	command.Env = environment("TMPDIR=" + scratch)
	output, err := command.CombinedOutput()
	if options.Log != nil {
		_, _ = options.Log.Write(output)
	}
	if err == nil {
		made, err := os.ReadFile(program)
		return &Selftest{Program: made}, options.Cache.Explain("selftest", err)
	}
	if ctx.Err() != nil {
		return nil, fmt.Errorf("compile the selftest: %w", context.Cause(ctx))
	}
	if _, exited := errors.AsType[*exec.ExitError](err); !exited {
		return nil, fault.New(fault.Infrastructure, "compile the selftest: %w", err)
	}
	return explain(t, scratch, string(output))
}

// explain turns a compiler's complaint into a result, or into an error if it is
// about the machine.
func explain(t *tree.Tree, scratch, output string) (*Selftest, error) {
	// File names from the root of the tree, wherever the file lies.
	output = strings.NewReplacer(scratch+"/tree/", "", strings.TrimSuffix(t.Kernel.Dir, "/")+"/", "").Replace(output)
	diagnosis := kbuild.Diagnose(strings.Split(strings.TrimRight(output, "\n"), "\n"), "")
	if diagnosis.Machine {
		return nil, fault.New(fault.Infrastructure, "compile the selftest: %s", diagnosis).WithOutput(diagnosis.Excerpt)
	}
	failure := diagnosis.String()
	if by := kbuild.Culprit(diagnosis, t); by != "" {
		failure += "; " + by
	}
	return &Selftest{Failure: failure + "\n" + diagnosis.Excerpt}, nil
}

// lay puts what differs from the pristine tree into scratch/tree, and what
// `make headers` would generate into scratch/generated.
func lay(t *tree.Tree, scratch string) error {
	files := make(map[string][]byte)
	for name, changed := range t.Overlay {
		if wanted(name) {
			files["tree/"+name] = changed
		}
	}
	for _, name := range t.Deleted {
		if wanted(name) {
			files["tree/"+name] = fmt.Appendf(nil, "#error %q\n", "the series deletes this file")
		}
	}
	// What a header for user space must not need.
	for _, name := range []string{"compiler.h", "compiler_types.h"} {
		files["generated/linux/"+name] = nil
	}
	generic, err := names(t, uapi+"/asm-generic")
	if err != nil {
		return err
	}
	own, err := names(t, archUAPI+"/asm")
	if err != nil {
		return err
	}
	for _, name := range generic {
		if !slices.Contains(own, name) {
			files["generated/asm/"+name] = fmt.Appendf(nil, "#include <asm-generic/%s>\n", name)
		}
	}
	for name, text := range files {
		file := filepath.Join(scratch, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(file, text, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// wanted tells whether the program may be made of a file.
func wanted(name string) bool {
	// The names come from patches.
	if !filepath.IsLocal(filepath.FromSlash(name)) {
		return false
	}
	return slices.ContainsFunc([]string{uapi, archUAPI, tests}, func(folder string) bool {
		return strings.HasPrefix(name, folder+"/")
	})
}

// names lists the headers in a folder of the patched tree.
func names(t *tree.Tree, folder string) ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(t.Kernel.Dir, filepath.FromSlash(folder)))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var found []string
	for _, entry := range entries {
		if !slices.Contains(t.Deleted, folder+"/"+entry.Name()) {
			found = append(found, entry.Name())
		}
	}
	for name := range t.Overlay {
		if path.Dir(name) == folder && !slices.Contains(found, path.Base(name)) {
			found = append(found, path.Base(name))
		}
	}
	return slices.DeleteFunc(found, func(name string) bool { return path.Ext(name) != ".h" }), nil
}

func arguments(t *tree.Tree, scratch, program string) []string {
	changed := filepath.Join(scratch, "tree")
	source := filepath.Join(t.Kernel.Dir, Source)
	if _, ok := t.Overlay[Source]; ok {
		source = filepath.Join(changed, Source)
	}
	list := []string{
		"-static", "-O2", "-Wall", "-Wl,--build-id=none", "-o", program,
		// What scripts/headers_install.sh takes out, and the macro it sets.
		"-D__EXPORTED_HEADERS__", "-D__user=", "-D__force=", "-D__iomem=", "-D__attribute_const__=",
		"-D__packed=__attribute__((packed))",
	}
	// The changed file goes before the pristine one of the same name.
	for _, folder := range []string{archUAPI, uapi} {
		list = append(list, "-isystem", filepath.Join(changed, folder), "-isystem", filepath.Join(t.Kernel.Dir, folder))
	}
	list = append(list, "-isystem", filepath.Join(scratch, "generated"))
	for _, folder := range []string{path.Dir(Source), tests} {
		list = append(list, "-I", filepath.Join(changed, folder), "-I", filepath.Join(t.Kernel.Dir, folder))
	}
	return append(list, source)
}

// environment keeps variables away that would make another program of the same
// tree.
func environment(more ...string) []string {
	list := []string{"LC_ALL=C"}
	for _, name := range []string{"PATH", "HOME", "LD_LIBRARY_PATH"} {
		if value, ok := os.LookupEnv(name); ok {
			list = append(list, name+"="+value)
		}
	}
	return append(list, more...)
}

// ask returns the first line of what gcc answers.
func ask(ctx context.Context, question string) (string, error) {
	command := exec.CommandContext(ctx, "gcc", question)
	command.Env = environment()
	output, err := command.Output()
	switch {
	case ctx.Err() != nil:
		return "", fmt.Errorf("compile the selftest: %w", context.Cause(ctx))
	case errors.Is(err, exec.ErrNotFound):
		return "", fault.New(fault.Infrastructure, "compile the selftest: %w", err).WithAdvice("sudo apt-get install gcc")
	case err != nil:
		return "", fault.New(fault.Infrastructure, "ask gcc %s: %w", question, err)
	}
	line, _, _ := bytes.Cut(output, []byte("\n"))
	return string(line), nil
}

// requireStaticLibrary looks for the C library that -static links.
func requireStaticLibrary(ctx context.Context) error {
	const library = "libc.a"
	found, err := ask(ctx, "-print-file-name="+library)
	if err != nil {
		return err
	}
	// gcc repeats the name of what it does not find.
	if found == library {
		return fault.New(fault.Infrastructure, "this machine has no static C library, which the tree's selftest is linked with").
			WithAdvice("sudo apt-get install libc6-dev")
	}
	return nil
}
