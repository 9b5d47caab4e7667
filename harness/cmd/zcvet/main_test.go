// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/zcvet/zcvet/harness/checkout"
)

// TestMain makes this test binary the command zcvet, for the scripts and for the
// tests that run it as a process.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"zcvet": main})
}

func TestScripts(t *testing.T) {
	root, err := checkout.Find()
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(env *testscript.Env) error {
			env.Setenv(checkout.Variable, root)
			env.Setenv("ZCVET_CACHE", env.WorkDir+"/cache")
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"exits": exits},
	})
}

// exits runs a command that has to end with the exit code named first:
//
//	exits 2 zcvet run --kernel nonsense
func exits(ts *testscript.TestScript, negated bool, arguments []string) {
	if negated || len(arguments) < 2 {
		ts.Fatalf("usage: exits CODE COMMAND...")
	}
	err := ts.Exec(arguments[1], arguments[2:]...)
	code := "0"
	if err != nil {
		code = strings.TrimPrefix(err.Error(), "exit status ")
	}
	if code != arguments[0] {
		ts.Fatalf("exit code %s, want %s", code, arguments[0])
	}
}
