// SPDX-License-Identifier: BSD-3-Clause

package report

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/zcvet/zcvet/harness/cost"
)

// WriteCost writes the table of costs for a terminal.
func WriteCost(w io.Writer, table *cost.Table) error {
	fmt.Fprintf(w, "instructions for each send, linux %s, without and with %s\n", table.Kernel, table.Series)
	return writeCostRows(w, table.Rows, "without", "with")
}

// CostLines is what was measured in two columns of a comparison, a line for each
// figure.
func CostLines(rows []cost.Row, before, after string) []string {
	var text strings.Builder
	// A builder takes everything.
	_ = writeCostRows(&text, rows, before, after)
	lines := strings.Split(strings.Trim(text.String(), "\n"), "\n")
	for i := range lines {
		lines[i] = strings.TrimRight(lines[i], " ")
	}
	return lines
}

func writeCostRows(w io.Writer, rows []cost.Row, before, after string) error {
	out := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	last := ""
	for _, row := range rows {
		if row.Case != last {
			fmt.Fprintf(out, "\n%s\t\t%s\t%s\t\n", row.Case, before, after)
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
