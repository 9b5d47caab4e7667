// SPDX-License-Identifier: BSD-3-Clause

package series

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func seeds(f *testing.F) {
	f.Helper()
	names, err := filepath.Glob("testdata/small/*.patch")
	if err != nil || len(names) == 0 {
		f.Fatal("no seeds: ", err)
	}
	for _, name := range names {
		data, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
		f.Add(bytes.ReplaceAll(data, []byte("\n"), []byte("\r\n")))
	}
	f.Add([]byte("--- a.orig/x\n+++ a/x\n@@ -1 +1 @@\n-a\n+b\n"))
	f.Add([]byte("--- /dev/null\n+++ b/x\n@@ -0,0 +1 @@\n+b\n\\ No newline at end of file\n"))
}

// FuzzMail: no mailbox makes the parser fall over, and what it takes for a diff
// is one that it would read the same way again.
func FuzzMail(f *testing.F) {
	seeds(f)
	f.Add([]byte("Content-Type: multipart/mixed; boundary=B\nSubject: [PATCH 1/1] x\n\n--B\n\n--- a/x\n+++ b/x\n@@ -1 +1 @@\n-a\n+b\n--B--\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		mails, err := readMailbox(data)
		if err != nil {
			return
		}
		s, err := assemble("box", mails, 0)
		if err != nil {
			return
		}
		for _, patch := range s.Patches {
			if len(patch.Diff) == 0 || patch.Subject == "" || patch.File != filepath.Base(patch.File) {
				t.Errorf("patch %+v", patch)
			}
		}
	})
}

// FuzzSplitPatch: writing a diff in git's form is done once; doing it again
// changes nothing.
func FuzzSplitPatch(f *testing.F) {
	seeds(f)
	f.Add([]byte("diff --git \n--- 0\n+++ 1")) // names without a rename
	f.Fuzz(func(t *testing.T, data []byte) {
		_, diff, err := splitPatch(data)
		if err != nil {
			return
		}
		message, again, err := splitPatch(diff)
		if err != nil && !errors.Is(err, errNoDiff) {
			t.Fatalf("%v of its own\n%s", err, diff)
		}
		if message != "" || !bytes.Equal(diff, again) {
			t.Errorf("message %q, diff\n%q\nbecomes\n%q", message, diff, again)
		}
	})
}
