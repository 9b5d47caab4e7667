// SPDX-License-Identifier: BSD-3-Clause

package report

import (
	"fmt"

	"github.com/zcvet/zcvet/harness/verdict"
)

// Second says in one line how the cases ended that were run again on another
// machine; empty when none was.
func Second(run *verdict.Run) string {
	var totals verdict.Totals
	count := 0
	for i := range run.Cases {
		second := run.Cases[i].Second
		if second == nil {
			continue
		}
		count++
		switch second.Status {
		case verdict.Pass:
			totals.Pass++
		case verdict.Fail:
			totals.Fail++
		case verdict.Skip:
			totals.Skip++
		case verdict.Crash:
			totals.Crash++
		case verdict.Timeout:
			totals.Timeout++
		}
	}
	if count == 0 {
		return ""
	}
	return fmt.Sprintf("%d that crashed on touching user memory, again with SMAP off: %s", count, Counts(totals))
}

// InLeg is what to say behind a case that was run again on another machine; empty
// for the first time.
func InLeg(leg string) string {
	if leg == "" {
		return ""
	}
	return " with " + leg
}
