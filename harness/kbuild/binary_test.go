// SPDX-License-Identifier: BSD-3-Clause

package kbuild

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// linkProgram makes a program that needs no library of C source, as a kernel is made:
// with line tables and a build id, then stripped.
func linkProgram(t *testing.T, source string) *Kernel {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "program.c"), []byte(source), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, arguments := range [][]string{
		{"gcc", "-O1", "-g1", "-nostdlib", "-static", "-Wl,--build-id=sha1", "-o", "vmlinux", "program.c"},
		{"strip", "--strip-all", "-o", "boot", "vmlinux"},
	} {
		command := exec.Command(arguments[0], arguments[1:]...)
		command.Dir = dir
		if output, err := command.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", arguments, err, output)
		}
	}
	return &Kernel{Boot: filepath.Join(dir, "boot")}
}

func TestBinary(t *testing.T) {
	const program = "int counter = 7;\nint _start(void) { return counter; }\n"
	hash := func(kernel *Kernel) string {
		t.Helper()
		hash, err := kernel.Binary()
		if err != nil {
			t.Fatal(err)
		}
		return hash
	}
	first := linkProgram(t, program)
	want := hash(first)
	for _, test := range []struct {
		name, source string
		same         bool
	}{
		{"moved lines", "/* A comment. */\n\n" + program, true},
		{"other data", "int counter = 8;\nint _start(void) { return counter; }\n", false},
		{"other code", "int counter = 7;\nint _start(void) { return counter + 1; }\n", false},
	} {
		other := linkProgram(t, test.source)
		if same := hash(other) == want; same != test.same {
			t.Errorf("%s: the hashes are the same: %v, want %v", test.name, same, test.same)
		}
		if test.same {
			// Or else the test shows nothing.
			a, errA := os.ReadFile(first.Boot)
			b, errB := os.ReadFile(other.Boot)
			if errA != nil || errB != nil || string(a) == string(b) {
				t.Errorf("%s: the files do not differ at all (%v, %v)", test.name, errA, errB)
			}
		}
	}

	image := filepath.Join(t.TempDir(), "bzImage")
	if err := os.WriteFile(image, bzImage([]byte("payload")), 0o644); err != nil {
		t.Fatal(err)
	}
	if hash(&Kernel{Boot: image}) == want {
		t.Error("an image that is no ELF file has the hash of another kernel")
	}
	if _, err := (&Kernel{Boot: image + ".missing"}).Binary(); err == nil {
		t.Error("a kernel that is not there has a hash")
	}
}
