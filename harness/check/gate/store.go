// SPDX-License-Identifier: BSD-3-Clause

package gate

import (
	"io"

	"github.com/zcvet/zcvet/harness/check"
	"github.com/zcvet/zcvet/harness/report"
	"github.com/zcvet/zcvet/harness/report/page"
	"github.com/zcvet/zcvet/harness/results"
)

// Store writes a report in all its forms.
func Store(r *check.Report, group *results.Group) error {
	if err := group.Write("check.md", func(w io.Writer) error { return report.WriteChecks(w, r) }); err != nil {
		return err
	}
	if err := group.Write("report.html", func(w io.Writer) error { return page.WriteCheck(w, r) }); err != nil {
		return err
	}
	return group.Write(check.File, r.Write)
}
