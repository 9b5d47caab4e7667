// SPDX-License-Identifier: BSD-3-Clause

package terminal_test

import (
	"bytes"
	"testing"

	"github.com/zcvet/zcvet/harness/compare"
	"github.com/zcvet/zcvet/harness/report/reporttest"
	"github.com/zcvet/zcvet/harness/terminal"
)

func TestComparison(t *testing.T) {
	for name, c := range map[string]*compare.Comparison{
		"comparison":          reporttest.Comparison(),
		"comparison-nothing":  reporttest.Unchanged(),
		"comparison-no-apply": reporttest.DoesNotApply(),
	} {
		var out bytes.Buffer
		terminal.New(&out, terminal.Options{}).Comparison(c)
		golden(t, name, out.String())
	}
}
