// SPDX-License-Identifier: BSD-3-Clause

package splat_test

import (
	"debug/elf"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/zcvet/zcvet/harness/splat"
)

// The sources of a tiny "kernel". The line of interest in each is marked.
var tinyKernel = map[string]string{
	"init/main.c": `int outer(int *p);
int main(int argc, char **argv)
{
	return outer(&argc);
}
`,
	"include/linux/helper.h": `static inline __attribute__((always_inline)) int peek(int *p)
{
	return *(volatile int *)p; /* innermost */
}
`,
	"net/core/sock.c": `#include "helper.h"
void noreturn_bug(void) __attribute__((noreturn, noinline));
void noreturn_bug(void) { for (;;) __asm__ volatile("hlt"); }

static __attribute__((noinline)) int twin(int *p) { __asm__ volatile("nop"); return *p; }
__attribute__((section(".init.text"), noinline)) int starts(int *p) { return *p * 5; } /* other section */
int use_twin(int *p) { return twin(p) + starts(p); }

int outer(int *p)
{
	int x = peek(p); /* inlined call */

	if (x == 7)
		noreturn_bug(); /* call without return */
	return x + use_twin(p);
}
`,
	"net/core/other.c": `static __attribute__((noinline)) int twin(int *p)
{
	__asm__ volatile("nop; nop; nop; nop; nop; nop; nop; nop; nop; nop; nop; nop; nop; nop; nop; nop; nop");
	return *p + 3;
}
int other(int *p) { return twin(p) + 1; }
`,
}

// buildTiny compiles the tiny kernel from outside its tree, as kbuild does, and
// returns the ELF file and its root.
func buildTiny(t *testing.T, flags ...string) (vmlinux, root string) {
	t.Helper()
	gcc, err := exec.LookPath("gcc")
	if err != nil {
		t.Skip("no gcc")
	}
	root, build := t.TempDir(), t.TempDir()
	vmlinux = filepath.Join(build, "vmlinux")
	args := append([]string{"-O2", "-fno-pie", "-no-pie", "-Wl,--section-start=.init.text=0x200000", "-I", filepath.Join(root, "include/linux"), "-o", vmlinux}, flags...)
	for name, text := range tinyKernel {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(name, ".c") {
			args = append(args, path)
		}
	}
	slices.Sort(args[len(args)-3:])
	command := exec.Command(gcc, args...)
	command.Dir = build
	if output, err := command.CombinedOutput(); err != nil {
		t.Fatalf("gcc: %v\n%s", err, output)
	}
	return vmlinux, root
}

func lineOf(t *testing.T, name, mark string) int {
	t.Helper()
	for i, line := range strings.Split(tinyKernel[name], "\n") {
		if strings.Contains(line, mark) {
			return i + 1
		}
	}
	t.Fatalf("no %q in %s", mark, name)
	return 0
}

// symbolsOf returns the symbols of one name, by size.
func symbolsOf(t *testing.T, vmlinux, name string) []elf.Symbol {
	t.Helper()
	file, err := elf.Open(vmlinux)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	table, err := file.Symbols()
	if err != nil {
		t.Fatal(err)
	}
	var found []elf.Symbol
	for _, symbol := range table {
		if symbol.Name == name {
			found = append(found, symbol)
		}
	}
	slices.SortFunc(found, func(a, b elf.Symbol) int { return int(a.Size) - int(b.Size) })
	if len(found) == 0 {
		t.Fatalf("no symbol %s", name)
	}
	return found
}

func TestDecode(t *testing.T) {
	for _, debug := range []string{"-g", "-g1", "-gdwarf-4"} {
		t.Run(debug, func(t *testing.T) {
			vmlinux, _ := buildTiny(t, debug)
			decoder := splat.NewDecoder(vmlinux)
			defer decoder.Close()
			outer := symbolsOf(t, vmlinux, "outer")[0]
			twins := symbolsOf(t, vmlinux, "twin")
			if len(twins) != 2 {
				t.Fatalf("%d functions called twin", len(twins))
			}

			s := splat.Splat{Frames: []splat.Frame{
				{Function: "twin", Offset: 0, Size: twins[0].Size, Exact: true},
				{Function: "twin", Offset: 0, Size: twins[1].Size, Exact: true},
				{Function: "nowhere", Offset: 1, Size: 2},
				{Function: "outer", Offset: 1, Size: outer.Size, Module: "some_module"},
			}}
			if err := decoder.Decode(&s); err != nil {
				t.Fatal(err)
			}
			if s.Frames[0].File != "net/core/sock.c" || s.Frames[1].File != "net/core/other.c" {
				t.Errorf("functions of one name are mixed up: %v, %v", s.Frames[0], s.Frames[1])
			}
			if s.Frames[2].File != "" || s.Frames[3].File != "" {
				t.Errorf("decoded what is not in the file: %v, %v", s.Frames[2], s.Frames[3])
			}

			// A section at a lower address, as .init.text and others are in
			// the kernel, makes the line table of the file unsorted.
			starts := symbolsOf(t, vmlinux, "starts")[0]
			other := splat.Splat{Frames: []splat.Frame{{Function: "starts", Offset: 0, Size: starts.Size, Exact: true}}}
			if err := decoder.Decode(&other); err != nil {
				t.Fatal(err)
			}
			if got, want := other.Frames[0].Line, lineOf(t, "net/core/sock.c", "other section"); got != want {
				t.Errorf("function in a section of its own decodes to line %d, want %d", got, want)
			}

			// Somewhere in outer is the load that was inlined from the header.
			want := splat.Frame{
				File: "include/linux/helper.h", Line: lineOf(t, "include/linux/helper.h", "innermost"),
				Inlined: []splat.Inline{{Function: "peek", File: "net/core/sock.c", Line: lineOf(t, "net/core/sock.c", "inlined call")}},
			}
			found := false
			for offset := range outer.Size {
				s := splat.Splat{Frames: []splat.Frame{{Function: "outer", Offset: offset, Size: outer.Size, Exact: true}}}
				if err := decoder.Decode(&s); err != nil {
					t.Fatal(err)
				}
				got := splat.Frame{File: s.Frames[0].File, Line: s.Frames[0].Line, Inlined: s.Frames[0].Inlined}
				found = found || cmp.Equal(got, want)
			}
			if !found {
				t.Errorf("no instruction of outer decodes to %+v", want)
			}
		})
	}
}

// The return address of a call that is the last instruction of its function
// belongs to whatever comes next; the frame has to show the call.
func TestDecodeReturnAddress(t *testing.T) {
	vmlinux, _ := buildTiny(t, "-g1")
	decoder := splat.NewDecoder(vmlinux)
	defer decoder.Close()
	mark := lineOf(t, "net/core/sock.c", "call without return")

	var end uint64
	var function elf.Symbol
	for _, name := range []string{"outer", "outer.cold"} {
		file, err := elf.Open(vmlinux)
		if err != nil {
			t.Fatal(err)
		}
		table, err := file.Symbols()
		file.Close()
		if err != nil {
			t.Fatal(err)
		}
		for _, symbol := range table {
			if symbol.Name != name {
				continue
			}
			for offset := range symbol.Size {
				s := splat.Splat{Frames: []splat.Frame{{Function: name, Offset: offset, Size: symbol.Size, Exact: true}}}
				if err := decoder.Decode(&s); err != nil {
					t.Fatal(err)
				}
				if s.Frames[0].Line == mark && s.Frames[0].File == "net/core/sock.c" {
					function, end = symbol, offset+1
				}
			}
		}
	}
	if end == 0 {
		t.Fatal("no instruction for the call")
	}
	s := splat.Splat{Frames: []splat.Frame{{Function: function.Name, Offset: end, Size: function.Size}}}
	if err := decoder.Decode(&s); err != nil {
		t.Fatal(err)
	}
	if s.Frames[0].Line != mark {
		t.Errorf("return address %s+0x%x/0x%x decodes to line %d, the call is in line %d",
			function.Name, end, function.Size, s.Frames[0].Line, mark)
	}
}

func TestDecodeWithoutLineTables(t *testing.T) {
	vmlinux, _ := buildTiny(t, "-g0")
	decoder := splat.NewDecoder(vmlinux)
	defer decoder.Close()
	s := splat.Splat{Frames: []splat.Frame{{Function: "outer", Offset: 1, Size: 2}}}
	if err := decoder.Decode(&s); err == nil && s.Frames[0].File != "" {
		t.Errorf("decoded to %v without tables", s.Frames[0])
	}
}

func TestDecodeMissingFile(t *testing.T) {
	decoder := splat.NewDecoder(filepath.Join(t.TempDir(), "vmlinux"))
	defer decoder.Close()
	empty := splat.Splat{}
	if err := decoder.Decode(&empty); err != nil {
		t.Errorf("opened the file for a splat without frames: %v", err)
	}
	s := splat.Splat{Frames: []splat.Frame{{Function: "outer"}}}
	if err := decoder.Decode(&s); err == nil {
		t.Error("no error for a missing vmlinux")
	}
}
