// SPDX-License-Identifier: BSD-3-Clause

// Package reproducertest compiles reproducers for tests.
package reproducertest

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// Compile makes the program that source is, with the options that it names and
// those given, and without warnings. It tells whether it did: where gcc makes no
// 32-bit programs it cannot for a source that is one.
func Compile(t *testing.T, program string, source []byte, options ...string) bool {
	t.Helper()
	file := filepath.Join(t.TempDir(), "reproducer.c")
	if err := os.WriteFile(file, source, 0o644); err != nil {
		t.Fatal(err)
	}
	named := flags(t, source)
	if slices.Contains(named, "-m32") {
		probe := exec.CommandContext(t.Context(), "gcc", slices.Concat(named, []string{"-x", "c", "-o", program, "-"})...)
		probe.Stdin = strings.NewReader("#include <sys/socket.h>\nint main(void) { return 0; }\n")
		if output, err := probe.CombinedOutput(); err != nil {
			t.Logf("gcc makes no 32-bit programs here: %s", output)
			return false
		}
	}
	arguments := slices.Concat(named, options, []string{"-Wall", "-Wextra", "-Werror", "-o", program, file})
	if output, err := exec.CommandContext(t.Context(), "gcc", arguments...).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s\n%s", err, output, source)
	}
	return true
}

// flags are those that a program says it is to be compiled with.
func flags(t *testing.T, source []byte) []string {
	t.Helper()
	_, command, _ := bytes.Cut(source, []byte(" gcc "))
	list, _, found := bytes.Cut(command, []byte(" -o "))
	if !found {
		t.Fatalf("the program does not say how to compile it:\n%s", source)
	}
	return strings.Fields(string(list))
}
