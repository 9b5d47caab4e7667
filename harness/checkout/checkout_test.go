// SPDX-License-Identifier: BSD-3-Clause

package checkout_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/zcvet/zcvet/harness/checkout"
	"github.com/zcvet/zcvet/harness/fault"
)

func TestFind(t *testing.T) {
	root, err := checkout.Find()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(root, "harness", "checkout", "checkout_test.go")); err != nil {
		t.Errorf("%s is not the root: %v", root, err)
	}

	t.Chdir(t.TempDir())
	t.Setenv(checkout.Variable, root)
	if got, err := checkout.Find(); err != nil || got != root {
		t.Errorf("with %s: %q, %v; want %q", checkout.Variable, got, err, root)
	}
	for _, elsewhere := range []string{t.TempDir(), ""} {
		t.Setenv(checkout.Variable, elsewhere)
		if got, err := checkout.Find(); fault.Of(err) != fault.Usage {
			t.Errorf("with %s=%q: %q, %v; want a usage error", checkout.Variable, elsewhere, got, err)
		}
	}
}
