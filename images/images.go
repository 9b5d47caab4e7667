// SPDX-License-Identifier: BSD-3-Clause

// Package images builds the initramfs of the guest with u-root's image builder.
//
// The default image is our static agent as /init and nothing else. The
// interactive one, for `zcvet shell`, has u-root's shell and commands as well;
// the agent starts them when its first argument is "shell". Both are
// uncompressed, because unpacking costs more time than reading, and their bytes
// depend on nothing but the programs in them.
package images

import (
	"context"
	"crypto/sha256"
	"debug/elf"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/zcvet/zcvet/harness/cache"
	"github.com/zcvet/zcvet/harness/fault"
)

// layout is raised whenever the same programs have to give other bytes, so that
// no image of an older builder is taken from the cache.
const layout = 2

// Options say what to build.
type Options struct {
	// Cache is where images and the built agent are kept.
	Cache *cache.Dir
	// Root is the directory of the source tree, with go.mod and guest/.
	Root string
	// Agent is the package of PID 1, "./guest/cmd/agent" by default.
	Agent string
	// Interactive adds u-root's shell and commands.
	Interactive bool
	// With32Bit adds a GOARCH=386 build of the agent as /agent32, for cases
	// that a 32-bit task has to run.
	With32Bit bool
	// Files, if set, gives further files of the image. It is called once, beside
	// or after the compilation of the agent, and may wait for a step before.
	Files func(context.Context) ([]File, error)
	// Log receives what the builders say; may be nil.
	Log io.Writer
}

// File is a file in the image, owned by root.
type File struct {
	// Place is its slash-separated path, relative. The image makes its folder.
	Place   string
	Content []byte
	// Executable gives it mode 0755, else it is 0644.
	Executable bool
}

// Image is a built initramfs.
type Image struct {
	// Path is the cpio archive in the cache; never written to again.
	Path string
	// ID names the image by content.
	ID string
	// Cached tells that nothing had to be built but the check that the agent
	// is up to date.
	Cached bool
}

// Build makes the image, or finds it in the cache. Only the agent is compiled
// anew every time, which Go's own cache makes quick.
//
// An agent that does not compile, or that is not static, is of class
// fault.Infrastructure: it says nothing about the series.
func Build(ctx context.Context, options Options) (*Image, error) {
	if options.Agent == "" {
		options.Agent = "./guest/cmd/agent"
	}
	if options.Log == nil {
		options.Log = io.Discard
	}
	programs, unlock, err := buildAgents(ctx, options)
	if err != nil {
		return nil, err
	}
	defer unlock()
	var files []File
	if options.Files != nil {
		if files, err = options.Files(ctx); err != nil {
			return nil, err
		}
	}

	id, err := identify(ctx, options, programs, files)
	if err != nil {
		return nil, err
	}
	image := &Image{Path: options.Cache.Path(cache.Images, id), ID: id}
	release, err := options.Cache.Lock(ctx, cache.Images, id)
	if err != nil {
		return nil, err
	}
	defer release()
	if options.Cache.Has(cache.Images, id) {
		image.Cached = true
		return image, nil
	}
	stage, err := options.Cache.Stage(cache.Images, id)
	if err != nil {
		return nil, err
	}
	defer stage.Discard()
	if err := assemble(ctx, options, programs, files, stage.Dir); err != nil {
		return nil, err
	}
	if err := stage.CommitFile(archiveName); err != nil {
		return nil, err
	}
	return image, nil
}

// program is an executable of ours in the image.
type program struct {
	architecture string // GOARCH
	file         string // on this machine
	place        string // in the image, relative
	hash         string
}

// machines are the ELF machines of the architectures that are built.
var machines = map[string]elf.Machine{"amd64": elf.EM_X86_64, "386": elf.EM_386}

// buildAgents compiles the agent for each architecture that is wanted. The
// binaries stay in the cache under a lock until unlock is called: `go build`
// links only when the file it is to write is out of date.
func buildAgents(ctx context.Context, options Options) (programs []program, unlock func(), err error) {
	root, err := filepath.Abs(options.Root)
	if err != nil {
		return nil, nil, fault.New(fault.Infrastructure, "source tree: %w", err)
	}
	if _, err := os.Stat(filepath.Join(root, "go.mod")); err != nil {
		return nil, nil, fault.New(fault.Infrastructure, "source tree: %w", err).
			WithAdvice("the guest's agent is built from zcvet's own sources: run zcvet inside its repository")
	}
	sum := sha256.Sum256([]byte(root + "\x00" + options.Agent))
	key := "agent-" + hex.EncodeToString(sum[:8])
	release, err := options.Cache.Lock(ctx, cache.Work, key)
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			release()
		}
	}()
	dir := options.Cache.Path(cache.Work, key)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, nil, options.Cache.Explain("agent", err)
	}

	programs = []program{{architecture: "amd64", place: "init"}}
	if options.With32Bit {
		programs = append(programs, program{architecture: "386", place: "agent32"})
	}
	for i := range programs {
		p := &programs[i]
		p.file = filepath.Join(dir, p.architecture)
		if err := compile(ctx, root, options.Agent, *p); err != nil {
			return nil, nil, err
		}
		if err := checkStatic(p.file, machines[p.architecture]); err != nil {
			return nil, nil, err
		}
		if p.hash, err = hashFile(p.file); err != nil {
			return nil, nil, fault.New(fault.Infrastructure, "agent: %w", err)
		}
	}
	return programs, release, nil
}

// compile runs go build in the source tree.
func compile(ctx context.Context, root, agent string, p program) error {
	command := exec.CommandContext(ctx, "go", "build",
		"-trimpath",
		// A commit must not change the image; only the code may.
		"-buildvcs=false",
		"-ldflags=-s -w",
		"-o", p.file, agent)
	command.Dir = root
	command.Env = append(os.Environ(),
		"CGO_ENABLED=0", "GOOS=linux", "GOARCH="+p.architecture,
		// The guest's CPU is QEMU's, not this machine's.
		"GOAMD64=v1", "GO386=sse2")
	output, err := command.CombinedOutput()
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return fmt.Errorf("build the agent: %w", context.Cause(ctx))
	case errors.Is(err, exec.ErrNotFound):
		return fault.New(fault.Infrastructure, "build the agent: %w", err).WithAdvice("install Go, see https://go.dev/doc/install")
	}
	words := strings.TrimSpace(string(output))
	return fault.New(fault.Infrastructure, "the agent does not compile for %s: %s", p.architecture, firstError(words)).WithOutput(words)
}

// firstError picks go's first complaint; lines that start with "#" name the
// package it is about.
func firstError(output string) string {
	for line := range strings.Lines(output) {
		line = strings.TrimSpace(line)
		if line != "" && !strings.HasPrefix(line, "#") {
			return line
		}
	}
	return "go said nothing"
}

// checkStatic refuses a program that would need a loader: there is none in the
// image, and the kernel's message for it, "not found" of a file that is there,
// has misled enough people.
func checkStatic(path string, machine elf.Machine) error {
	file, err := elf.Open(path)
	if err != nil {
		return fault.New(fault.Infrastructure, "agent: %w", err)
	}
	defer func() { _ = file.Close() }()
	if file.Machine != machine {
		return fault.New(fault.Infrastructure, "agent: built for %v where %v is wanted", file.Machine, machine)
	}
	for _, segment := range file.Progs {
		if segment.Type == elf.PT_INTERP {
			return fault.New(fault.Infrastructure, "agent: not static, it asks for a loader").
				WithAdvice("a package it imports uses cgo; build it without")
		}
	}
	libraries, err := file.ImportedLibraries()
	if err == nil && len(libraries) > 0 {
		return fault.New(fault.Infrastructure, "agent: not static, it needs %s", strings.Join(libraries, ", ")).
			WithAdvice("a package it imports uses cgo; build it without")
	}
	return nil
}

func hashFile(path string) (string, error) {
	file, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer func() { _ = file.Close() }()
	sum := sha256.New()
	if _, err := io.Copy(sum, file); err != nil {
		return "", err
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

// identify names the image that the options give.
func identify(ctx context.Context, options Options, programs []program, files []File) (string, error) {
	sum := sha256.New()
	_, _ = fmt.Fprintf(sum, "layout %d\n", layout)
	for _, p := range programs {
		_, _ = fmt.Fprintf(sum, "%s %s\n", p.place, p.hash)
	}
	for _, file := range files {
		_, _ = fmt.Fprintf(sum, "%q %v %x\n", file.Place, file.Executable, sha256.Sum256(file.Content))
	}
	if options.Interactive {
		// u-root's commands come from the module that go.mod names, built by
		// the toolchain at hand.
		version, err := toolOutput(ctx, options.Root, "env", "GOVERSION")
		if err != nil {
			return "", err
		}
		modules, err := os.ReadFile(filepath.Join(options.Root, "go.sum"))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", fault.New(fault.Infrastructure, "source tree: %w", err)
		}
		_, _ = fmt.Fprintf(sum, "%s\n%x\n%s\n", version, sha256.Sum256(modules), strings.Join(commands, "\n"))
	}
	return hex.EncodeToString(sum.Sum(nil))[:32], nil
}

// toolOutput runs the go command and returns what it prints.
func toolOutput(ctx context.Context, dir string, arguments ...string) (string, error) {
	command := exec.CommandContext(ctx, "go", arguments...)
	command.Dir = dir
	output, err := command.Output()
	if err != nil {
		return "", fault.New(fault.Infrastructure, "go %s: %w", strings.Join(arguments, " "), err)
	}
	return strings.TrimSpace(string(output)), nil
}
