// SPDX-License-Identifier: BSD-3-Clause

package report

import (
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/zcvet/zcvet/harness/cost"
)

// WriteCost writes the table of costs for a terminal.
func WriteCost(w io.Writer, table *cost.Table) error {
	fmt.Fprintf(w, "instructions for each send, linux %s, without and with %s\n", table.Kernel, table.Series)
	out := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	last := ""
	for _, row := range table.Rows {
		if row.Case != last {
			fmt.Fprintf(out, "\n%s\t\twithout\twith\t\n", row.Case)
			last = row.Case
		}
		fmt.Fprintf(out, "  %s\t%s/%s\t%s\t%s\t%s\n",
			row.Measure, row.Proto, row.Family, figure(row.Without), figure(row.With), change(row))
	}
	return out.Flush()
}

func figure(instructions int64) string {
	if instructions == 0 {
		return "-"
	}
	return fmt.Sprint(instructions)
}

func change(row cost.Row) string {
	if row.Without == 0 || row.With == 0 {
		return ""
	}
	text := fmt.Sprintf("%+d  %+.2f %%", row.With-row.Without, 100*row.Change())
	if row.Exceeds() {
		text += "  DEARER"
	}
	return text
}
