// SPDX-License-Identifier: BSD-3-Clause

package terminal_test

import (
	"bytes"
	"testing"

	"github.com/zcvet/zcvet/harness/report/reporttest"
	"github.com/zcvet/zcvet/harness/terminal"
)

func TestChecks(t *testing.T) {
	for name, options := range map[string]terminal.Options{
		"checks": {}, "checks-quiet": {Quiet: true},
	} {
		var out bytes.Buffer
		ui := terminal.New(&out, options)
		r := reporttest.Checks()
		for _, patch := range r.Patches {
			ui.Section("%d/2  %s", patch.Number, patch.Subject)
			for _, result := range patch.Results {
				ui.Check(result)
			}
		}
		ui.Checks(r)
		golden(t, name, out.String())
	}
}
