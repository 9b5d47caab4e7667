// SPDX-License-Identifier: BSD-3-Clause

package report_test

import (
	"bytes"
	"testing"

	"github.com/zcvet/zcvet/harness/report"
	"github.com/zcvet/zcvet/harness/report/reporttest"
)

func TestWriteChecks(t *testing.T) {
	var got bytes.Buffer
	if err := report.WriteChecks(&got, reporttest.Checks()); err != nil {
		t.Fatal(err)
	}
	golden(t, "checks.md", got.String())
}
