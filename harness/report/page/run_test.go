// SPDX-License-Identifier: BSD-3-Clause

package page_test

import (
	"testing"

	"github.com/zcvet/zcvet/harness/report/page"
	"github.com/zcvet/zcvet/harness/verdict"
)

func TestRepeatCase(t *testing.T) {
	for _, test := range []struct{ command, want string }{
		{"", ""},
		{"zcvet run --kernel 6.12", "zcvet run --kernel 6.12 --suite scm/order"},
		{"zcvet run --suite N06 --seed 7", "zcvet run --suite scm/order --seed 7"},
		{"zcvet run --suite 'scm,!stress' --seed 7", "zcvet run --suite scm/order --seed 7"},
		{
			`zcvet run --series 'mbox:it'"'"'s here.mbox' --suite option`,
			`zcvet run --series 'mbox:it'"'"'s here.mbox' --suite scm/order`,
		},
		{"zcvet run --series 'an unfinished quote", ""},
	} {
		if got := page.RepeatCase(&verdict.Run{Command: test.command}, &verdict.Case{Name: "scm/order"}); got != test.want {
			t.Errorf("%s: %s, want %s", test.command, got, test.want)
		}
	}
}
