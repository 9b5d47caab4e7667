// SPDX-License-Identifier: BSD-3-Clause

// Package checkout finds the checkout that a zcvet belongs to. The guest agent
// is built from its sources and the reference series lies in it, so the command
// needs it at run time.
package checkout

import (
	"os"
	"path/filepath"

	"golang.org/x/mod/modfile"

	"github.com/zcvet/zcvet/harness/fault"
)

// modulePath is the module whose checkout is looked for.
const modulePath = "github.com/zcvet/zcvet"

// Variable is the environment variable that names the checkout when neither the
// working directory nor the executable is inside it.
const Variable = "ZCVET_ROOT"

// Find returns the absolute root of the checkout: that of Variable, of the
// working directory, or of the executable, in this order.
func Find() (string, error) {
	if root := os.Getenv(Variable); root != "" {
		if !isRoot(root) {
			return "", fault.New(fault.Usage, "%s=%s is not a checkout of zcvet", Variable, root)
		}
		return filepath.Abs(root)
	}
	for _, start := range []func() (string, error){os.Getwd, executableDir} {
		if dir, err := start(); err == nil {
			if root, ok := above(dir); ok {
				return root, nil
			}
		}
	}
	return "", fault.New(fault.Usage, "no checkout of zcvet here").
		WithAdvice("run zcvet inside its checkout, or name the checkout in %s", Variable)
}

func executableDir() (string, error) {
	executable, err := os.Executable()
	if err != nil {
		return "", err
	}
	resolved, err := filepath.EvalSymlinks(executable)
	return filepath.Dir(resolved), err
}

func above(dir string) (string, bool) {
	for {
		if isRoot(dir) {
			return dir, true
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", false
		}
		dir = parent
	}
}

// isRoot tells whether dir holds the go.mod of this very module.
func isRoot(dir string) bool {
	text, err := os.ReadFile(filepath.Join(dir, "go.mod"))
	if err != nil {
		return false
	}
	return modfile.ModulePath(text) == modulePath
}
