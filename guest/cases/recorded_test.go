// SPDX-License-Identifier: BSD-3-Clause

package cases

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"strings"
	"testing"
)

// A call that is made past package sys is missing from the record of a failed
// case, and from the program that reproduces the failure.
func TestCallsAreRecorded(t *testing.T) {
	recorded := make(map[string]bool)
	for _, file := range parseAll(t, "../sys/*.go") {
		for _, declaration := range file.Decls {
			if function, ok := declaration.(*ast.FuncDecl); ok && function.Name.IsExported() {
				recorded[function.Name.Name] = true
			}
		}
	}
	for _, file := range parseAll(t, "*.go") {
		ast.Inspect(file, func(node ast.Node) bool {
			call, ok := node.(*ast.CallExpr)
			if !ok {
				return true
			}
			if selector, ok := call.Fun.(*ast.SelectorExpr); ok {
				if from, ok := selector.X.(*ast.Ident); ok && from.Name == "unix" && recorded[selector.Sel.Name] {
					t.Errorf("%s: unix.%s is not recorded; use sys.%[2]s", files.Position(call.Pos()), selector.Sel.Name)
				}
			}
			return true
		})
	}
}

var files = token.NewFileSet()

func parseAll(t *testing.T, pattern string) []*ast.File {
	t.Helper()
	names, err := filepath.Glob(pattern)
	if err != nil || len(names) == 0 {
		t.Fatalf("%s: %v, %v", pattern, names, err)
	}
	var parsed []*ast.File
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(files, name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		parsed = append(parsed, file)
	}
	return parsed
}
