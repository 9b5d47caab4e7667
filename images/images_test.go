// SPDX-License-Identifier: BSD-3-Clause

package images

import (
	"context"
	"crypto/sha256"
	"debug/elf"
	"encoding/binary"
	"errors"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/u-root/mkuimage/cpio"

	"github.com/zcvet/zcvet/harness/cache"
	"github.com/zcvet/zcvet/harness/fault"
)

// tree writes a source tree whose agent is the given program.
func tree(t *testing.T, program string) string {
	t.Helper()
	root := t.TempDir()
	for name, content := range map[string]string{
		"go.mod":                  "module example.org/guest\n\ngo 1.26\n",
		"guest/cmd/agent/main.go": program,
	} {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

const quietAgent = "package main\n\nfunc main() {}\n"

func openCache(t *testing.T) *cache.Dir {
	t.Helper()
	dir, err := cache.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func build(t *testing.T, options Options) *Image {
	t.Helper()
	image, err := Build(context.Background(), options)
	if err != nil {
		t.Fatal(err)
	}
	return image
}

// contents reads an archive into lines of mode, name and what it is.
func contents(t *testing.T, path string) []string {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	records, err := cpio.ReadAllRecords(cpio.Newc.Reader(file))
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, record := range records {
		if record.MTime != 0 || record.UID != 0 || record.GID != 0 || record.Ino != 0 {
			t.Errorf("%s: not reproducible: %+v", record.Name, record.Info)
		}
		lines = append(lines, strconv.FormatUint(record.Mode, 8)+" "+record.Name)
	}
	return lines
}

func TestImageHoldsTheAgentAndLittleElse(t *testing.T) {
	image := build(t, Options{Cache: openCache(t), Root: tree(t, quietAgent)})
	want := []string{
		"40755 dev",
		"20600 dev/console",
		"20666 dev/null",
		"40755 etc",
		"100755 init",
		"40755 proc",
		"40755 run",
		"40755 sys",
		"41777 tmp",
	}
	if diff := cmp.Diff(want, contents(t, image.Path)); diff != "" {
		t.Error(diff)
	}
}

func TestTwoBuildsGiveIdenticalBytes(t *testing.T) {
	// The places differ in everything that must not matter.
	var sums [][sha256.Size]byte
	var ids []string
	for range 2 {
		image := build(t, Options{Cache: openCache(t), Root: tree(t, quietAgent), With32Bit: true})
		content, err := os.ReadFile(image.Path)
		if err != nil {
			t.Fatal(err)
		}
		sums = append(sums, sha256.Sum256(content))
		ids = append(ids, image.ID)
	}
	if sums[0] != sums[1] {
		t.Error("two builds of the same sources differ")
	}
	if ids[0] != ids[1] {
		t.Errorf("the same image has the ids %s and %s", ids[0], ids[1])
	}
}

func TestImageIsBuiltOnlyOnce(t *testing.T) {
	dir, root := openCache(t), tree(t, quietAgent)
	first := build(t, Options{Cache: dir, Root: root})
	if first.Cached {
		t.Error("the first build claims to come from the cache")
	}
	second := build(t, Options{Cache: dir, Root: root})
	if !second.Cached || second.Path != first.Path {
		t.Errorf("second build: cached %v, %s; want %s from the cache", second.Cached, second.Path, first.Path)
	}

	changed := "package main\n\nfunc main() { println(1) }\n"
	if err := os.WriteFile(filepath.Join(root, "guest/cmd/agent/main.go"), []byte(changed), 0o644); err != nil {
		t.Fatal(err)
	}
	third := build(t, Options{Cache: dir, Root: root})
	if third.Cached || third.ID == first.ID {
		t.Error("a changed agent gave the old image")
	}
}

func Test32BitAgent(t *testing.T) {
	image := build(t, Options{Cache: openCache(t), Root: tree(t, quietAgent), With32Bit: true})
	if !slices.Contains(contents(t, image.Path), "100755 agent32") {
		t.Error("no agent32 in the image")
	}
}

func TestFurtherFiles(t *testing.T) {
	dir, root := openCache(t), tree(t, quietAgent)
	with := func(content string) Options {
		return Options{Cache: dir, Root: root, Files: func(context.Context) ([]File, error) {
			return []File{
				{Place: "extra/program", Content: []byte(content), Executable: true},
				{Place: "extra/text", Content: []byte("text")},
			}, nil
		}}
	}
	image := build(t, with("first"))
	names := contents(t, image.Path)
	for _, want := range []string{"40755 extra", "100755 extra/program", "100644 extra/text"} {
		if !slices.Contains(names, want) {
			t.Errorf("no %q in the image: %q", want, names)
		}
	}
	if again := build(t, with("first")); !again.Cached || again.ID != image.ID {
		t.Error("the same files gave another image")
	}
	if other := build(t, with("second")); other.Cached || other.ID == image.ID {
		t.Error("another file gave the old image")
	}
	failure := errors.New("no such file")
	_, err := Build(t.Context(), Options{Cache: dir, Root: root, Files: func(context.Context) ([]File, error) { return nil, failure }})
	if !errors.Is(err, failure) {
		t.Errorf("a file that cannot be had: %v", err)
	}
}

func TestBuildErrors(t *testing.T) {
	for _, test := range []struct {
		name, program string
		root          func(t *testing.T, program string) string
		want          string // in the error or its output
	}{
		{"does not compile", "package main\n\nfunc main() { undefinedName() }\n", tree, "undefined: undefinedName"},
		{"no source tree", "", func(t *testing.T, _ string) string { return t.TempDir() }, "go.mod"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := Build(context.Background(), Options{Cache: openCache(t), Root: test.root(t, test.program)})
			if err == nil {
				t.Fatal("no error")
			}
			if fault.Of(err) != fault.Infrastructure {
				t.Errorf("class %v, want infrastructure", fault.Of(err))
			}
			if !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %q does not say %q", err, test.want)
			}
		})
	}
}

func TestBuildStopsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, err := Build(ctx, Options{Cache: openCache(t), Root: tree(t, quietAgent)})
	if !fault.IsCancelled(err) {
		t.Errorf("got %v, want context.Canceled", err)
	}
}

// program64 makes a minimal ELF file with the given program headers.
func program64(t *testing.T, machine elf.Machine, segments ...elf.ProgType) string {
	t.Helper()
	header := elf.Header64{
		Type: uint16(elf.ET_EXEC), Machine: uint16(machine), Version: uint32(elf.EV_CURRENT),
		Phoff: 64, Ehsize: 64, Phentsize: 56, Phnum: uint16(len(segments)), Shentsize: 64,
	}
	copy(header.Ident[:], elf.ELFMAG)
	header.Ident[elf.EI_CLASS] = byte(elf.ELFCLASS64)
	header.Ident[elf.EI_DATA] = byte(elf.ELFDATA2LSB)
	header.Ident[elf.EI_VERSION] = byte(elf.EV_CURRENT)
	path := filepath.Join(t.TempDir(), "program")
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	if err := binary.Write(file, binary.LittleEndian, header); err != nil {
		t.Fatal(err)
	}
	for _, kind := range segments {
		if err := binary.Write(file, binary.LittleEndian, elf.Prog64{Type: uint32(kind)}); err != nil {
			t.Fatal(err)
		}
	}
	return path
}

func TestStaticCheck(t *testing.T) {
	notELF := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(notELF, []byte("#!/bin/sh\n"+strings.Repeat(" ", 64)), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name, path, want string
	}{
		{"static", program64(t, elf.EM_X86_64, elf.PT_LOAD), ""},
		{"with a loader", program64(t, elf.EM_X86_64, elf.PT_LOAD, elf.PT_INTERP), "not static"},
		{"other machine", program64(t, elf.EM_AARCH64, elf.PT_LOAD), "EM_AARCH64"},
		{"no ELF file", notELF, "bad magic"},
	} {
		t.Run(test.name, func(t *testing.T) {
			err := checkStatic(test.path, elf.EM_X86_64)
			switch {
			case test.want == "" && err != nil:
				t.Errorf("refused: %v", err)
			case test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)):
				t.Errorf("got %v, want an error with %q", err, test.want)
			case err != nil && fault.Of(err) != fault.Infrastructure:
				t.Errorf("class %v, want infrastructure", fault.Of(err))
			}
		})
	}
}

// go.mod must keep what the interactive image is built from.
func TestToolsFileNamesEveryCommand(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "interactive_tools.go", nil, parser.ImportsOnly)
	if err != nil {
		t.Fatal(err)
	}
	var imported []string
	for _, spec := range file.Imports {
		path, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			t.Fatal(err)
		}
		imported = append(imported, path)
	}
	if diff := cmp.Diff(commands, imported); diff != "" {
		t.Error(diff)
	}
}

func TestInteractiveImage(t *testing.T) {
	if testing.Short() {
		t.Skip("compiles forty commands")
	}
	root := moduleRoot(t)
	image := build(t, Options{Cache: openCache(t), Root: root, Agent: "./harness/machine/testdata/guest", Interactive: true})
	names := contents(t, image.Path)
	for _, want := range []string{"100755 init", "120777 bbin/ls", "120777 bbin/gosh", "120777 bin/sh"} {
		if !slices.Contains(names, want) {
			t.Errorf("no %q in the image", want)
		}
	}
}

func moduleRoot(t *testing.T) string {
	t.Helper()
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(root, "go.mod")); err != nil {
		t.Skip("not inside the source tree")
	}
	return root
}
