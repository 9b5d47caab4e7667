// SPDX-License-Identifier: BSD-3-Clause

package paragraph_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/zcvet/zcvet/harness/paragraph"
)

func TestLines(t *testing.T) {
	for _, test := range []struct {
		name, text, first, indent string
		want                      []string
	}{
		{"nothing", "", "", "", []string{""}},
		{"nothing behind a prefix", " ", "> ", "", []string{">"}},
		{"fits", "one two\nfour", "", "", []string{"one two four"}},
		{"does not fit", "one two three four", "- ", "  ", []string{"- one two", "  three four"}},
		{"a word that fits nowhere", "a incomprehensible b", "", " ", []string{"a", " incomprehensible", " b"}},
		{"columns are characters", "äöü äöü äöü äöü", "", "", []string{"äöü äöü äöü", "äöü"}},
	} {
		if diff := cmp.Diff(test.want, paragraph.Lines(test.text, test.first, test.indent, 12)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", test.name, diff)
		}
	}
}
