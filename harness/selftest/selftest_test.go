// SPDX-License-Identifier: BSD-3-Clause

package selftest

import (
	"bytes"
	"debug/elf"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/zcvet/zcvet/harness/cache"
	"github.com/zcvet/zcvet/harness/fault"
	"github.com/zcvet/zcvet/harness/source"
	"github.com/zcvet/zcvet/harness/tree"
)

// program prints two numbers: one of a header of its architecture's, by way of
// the wrapper that is generated, and one of a header of its own.
const program = `#include <stdio.h>
#include <linux/number.h>
#include <asm/constant.h>
int main(void)
{
	printf("%d %d\n", NUMBER, CONSTANT);
	return 0;
}
`

// headers need what scripts/headers_install.sh takes out.
var headers = map[string]string{
	"include/uapi/linux/number.h": `#include <linux/compiler_types.h>
struct numbered { char __user *p; } __packed;
#ifdef __KERNEL__
#error "this is for the kernel"
#endif
#define NUMBER 1
`,
	"include/uapi/asm-generic/constant.h":    "#define CONSTANT 2\n",
	"include/uapi/asm-generic/overridden.h":  "#error \"the architecture has its own\"\n",
	"arch/x86/include/uapi/asm/overridden.h": "",
}

// pristine makes a kernel tree with these files and those of headers.
func pristine(t *testing.T, files map[string]string) *tree.Tree {
	t.Helper()
	dir := t.TempDir()
	for _, set := range []map[string]string{headers, files} {
		for name, text := range set {
			file := filepath.Join(dir, name)
			if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	return &tree.Tree{Kernel: &source.Kernel{Dir: dir}, ID: "base"}
}

func openCache(t *testing.T) *cache.Dir {
	t.Helper()
	dir, err := cache.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func build(t *testing.T, patched *tree.Tree, dir *cache.Dir) *Selftest {
	t.Helper()
	built, err := Build(t.Context(), patched, Options{Cache: dir})
	if err != nil {
		t.Fatal(err)
	}
	return built
}

// output runs a program.
func output(t *testing.T, program []byte) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(file, program, 0o755); err != nil {
		t.Fatal(err)
	}
	said, err := exec.Command(file).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, said)
	}
	return strings.TrimSpace(string(said))
}

func TestProgramIsStatic(t *testing.T) {
	built := build(t, pristine(t, map[string]string{Source: program}), openCache(t))
	if built.Failure != "" || built.Absent {
		t.Fatalf("no program: %+v", built)
	}
	file, err := elf.NewFile(bytes.NewReader(built.Program))
	if err != nil {
		t.Fatal(err)
	}
	for _, segment := range file.Progs {
		if segment.Type == elf.PT_INTERP {
			t.Error("the program asks for a loader, which the guest does not have")
		}
	}
	if got := output(t, built.Program); got != "1 2" {
		t.Errorf("the program says %q", got)
	}
}

func TestSeriesGoesBeforePristineTree(t *testing.T) {
	for _, test := range []struct {
		name    string
		overlay map[string]string
		deleted []string
		want    string // what the program says, or a part of the failure
	}{
		{"changed header", map[string]string{"include/uapi/linux/number.h": "#define NUMBER 7\n"}, nil, "7 2"},
		{"changed generic header", map[string]string{"include/uapi/asm-generic/constant.h": "#define CONSTANT 8\n"}, nil, "1 8"},
		{"new header of the architecture", map[string]string{"arch/x86/include/uapi/asm/constant.h": "#define CONSTANT 9\n"}, nil, "1 9"},
		{"changed test", map[string]string{Source: "#include <stdio.h>\nint main(void) { puts(\"new\"); }\n"}, nil, "new"},
		{"deleted header", nil, []string{"include/uapi/linux/number.h"}, "the series deletes this file"},
		{"other files", map[string]string{"include/linux/number.h": "#error\n"}, nil, "1 2"},
	} {
		t.Run(test.name, func(t *testing.T) {
			patched := pristine(t, map[string]string{Source: program})
			patched.Overlay = make(map[string][]byte)
			for name, text := range test.overlay {
				patched.Overlay[name] = []byte(text)
			}
			patched.Deleted = test.deleted
			built := build(t, patched, openCache(t))
			got := built.Failure
			if built.Program != nil {
				got = output(t, built.Program)
			}
			if built.Program != nil && got != test.want || !strings.Contains(got, test.want) {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

func TestCompilersWords(t *testing.T) {
	broken := pristine(t, map[string]string{Source: "int main(void)\n{\n\treturn undefined_name;\n}\n"})
	failure := build(t, broken, openCache(t)).Failure
	if want := Source + ":3: "; !strings.HasPrefix(failure, want) || !strings.Contains(failure, "undefined_name") {
		t.Errorf("the failure %q does not begin with %q", failure, want)
	}
	if strings.Contains(failure, broken.Kernel.Dir) {
		t.Errorf("the failure names a place of this machine: %q", failure)
	}
}

func TestTreeWithoutTest(t *testing.T) {
	if built := build(t, pristine(t, nil), openCache(t)); !built.Absent {
		t.Errorf("made %+v of nothing", built)
	}
	deleted := pristine(t, map[string]string{Source: program})
	deleted.Deleted = []string{Source}
	if built := build(t, deleted, openCache(t)); !built.Absent {
		t.Errorf("made %+v of a deleted test", built)
	}
}

func TestOutcomesAreKept(t *testing.T) {
	for _, test := range []struct{ name, source string }{
		{"program", program},
		{"failure", "int main(void) { return undefined_name; }\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := openCache(t)
			patched := pristine(t, map[string]string{Source: test.source})
			first := build(t, patched, dir)
			// What is not made again is not looked at.
			if err := os.WriteFile(filepath.Join(patched.Kernel.Dir, Source), []byte("changed behind its back"), 0o644); err != nil {
				t.Fatal(err)
			}
			second := build(t, patched, dir)
			if !bytes.Equal(first.Program, second.Program) || first.Failure != second.Failure {
				t.Errorf("the second time gave something else")
			}
			patched.ID = "another tree"
			if third := build(t, patched, dir); third.Failure == first.Failure {
				t.Errorf("another tree gave the outcome of the first")
			}
		})
	}
}

func TestSameProgramFromAnotherPlace(t *testing.T) {
	first := build(t, pristine(t, map[string]string{Source: program}), openCache(t))
	second := build(t, pristine(t, map[string]string{Source: program}), openCache(t))
	if !bytes.Equal(first.Program, second.Program) {
		t.Error("the program depends on where the tree lies")
	}
}

func TestMachineWithoutCompiler(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	_, err := Build(t.Context(), pristine(t, map[string]string{Source: program}), Options{Cache: openCache(t)})
	if !errors.Is(err, exec.ErrNotFound) || fault.Of(err) != fault.Infrastructure {
		t.Errorf("without gcc: %v", err)
	}
}

func TestDamagedEntry(t *testing.T) {
	dir := openCache(t)
	if err := dir.Put(cache.Selftests, "k", []byte("?")); err != nil {
		t.Fatal(err)
	}
	if _, err := load(dir, "k"); fault.Of(err) != fault.Infrastructure {
		t.Errorf("an entry of no known kind: %v", err)
	}
}
