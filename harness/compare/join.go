// SPDX-License-Identifier: BSD-3-Clause

package compare

import (
	"fmt"
	"strings"

	"github.com/zcvet/zcvet/harness/fault"
	"github.com/zcvet/zcvet/harness/verdict"
)

// Join fills c.Steps and c.Exit from the outcomes of the columns, which are in the
// order of c.Columns.
//
// A column without results is compared with nothing, and the one after it with the
// nearest before it that has some.
func (c *Comparison) Join(outcomes []Outcome, strict bool) {
	c.Steps = nil
	last := -1
	for i := range outcomes {
		c.Columns[i].Compared = HasResults(outcomes[i].Run)
		if i > 0 {
			c.Steps = append(c.Steps, c.step(last, i, outcomes, strict))
		}
		if c.Columns[i].Compared {
			last = i
		}
	}
	c.decide()
}

func (c *Comparison) step(before, after int, outcomes []Outcome, strict bool) Step {
	step := Step{}
	switch {
	case !c.Columns[after].Compared:
		step.Missing = c.Columns[after].Name + " " + c.Columns[after].Trouble()
	case before < 0:
		step.Missing = "no column before " + c.Columns[after].Name + " has results"
	default:
		step = Between(outcomes[before], outcomes[after], strict)
		if step.Same = c.Columns[before].isLike(&c.Columns[after]); step.Same {
			step.Cost = nil // measured once
		}
	}
	step.Before, step.After = before, after
	return step
}

// isLike tells whether two columns have the same binary, and so the same run.
func (c *Column) isLike(other *Column) bool {
	return c.Binary != "" && c.Binary == other.Binary && c.Series.ABI == other.Series.ABI && c.Series.Constant == other.Series.Constant
}

// Trouble says why the column has no results, as a clause to put behind its name;
// empty when it has some.
func (c *Column) Trouble() string {
	if c.Compared {
		return ""
	}
	word, ok := map[fault.Class]string{
		fault.Apply: "does not apply", fault.Build: "does not build", fault.Boot: "does not boot",
		fault.Usage: "cannot be used", fault.Infrastructure: "could not be tried",
	}[fault.Class(c.Exit.Code)]
	if !ok {
		word = "has no results"
	}
	switch {
	case c.Exit.Error == "":
		return word
	case strings.Contains(c.Exit.Error, word):
		return "cannot be compared: " + c.Exit.Error
	}
	return word + ": " + c.Exit.Error
}

// decide fills c.Exit.
//
// A comparison that could not be made whole must not look like one in which
// nothing got worse, nor like one that found something: a column whose run failed
// for reasons of this machine decides first, then the first column that does not
// apply, build or boot, each with the class of its own run. Only then a step that
// is worse makes it class test, and nothing worse class pass.
func (c *Comparison) decide() {
	set := func(class fault.Class, why string) {
		c.Exit = verdict.Exit{Class: class.String(), Code: class.ExitCode(), Error: why}
	}
	set(fault.None, "")
	for _, step := range c.Steps {
		if step.Worse && c.Exit.Code == 0 {
			set(fault.Test, fmt.Sprintf("%s is worse than %s: %s", c.Columns[step.After].Name, c.Columns[step.Before].Name, step.Reasons[0]))
		}
	}
	decided := fault.None
	for i := range c.Columns {
		column := &c.Columns[i]
		trouble := column.Trouble()
		if trouble == "" {
			continue
		}
		class := fault.Class(column.Exit.Code)
		if class == fault.None {
			class = fault.Infrastructure // a run of another tool, without cases
		}
		if decided == fault.None || class == fault.Infrastructure && decided != fault.Infrastructure {
			decided = class
			set(class, column.Name+" "+trouble)
		}
	}
}

// DecideEach gives the verdict of a series that was run patch by patch: that of
// the first patch whose own run did not pass. Every patch has to stand on its own,
// so that a fault can be bisected; that the next one mends it does not help.
func (c *Comparison) DecideEach() {
	c.Exit = verdict.Exit{Class: fault.None.String()}
	for i := range c.Columns {
		column := &c.Columns[i]
		switch {
		case column.Exit.Code == 0, column.Compared && fault.Class(column.Exit.Code) == fault.Infrastructure:
			// All cases skipped: what they ask about comes with a later patch.
			continue
		}
		c.Exit = column.Exit
		c.Exit.Error = column.Name
		if subjects := column.Series.Patches; len(subjects) > 0 {
			c.Exit.Error += fmt.Sprintf(" %q", subjects[len(subjects)-1].Subject)
		}
		if column.Exit.Error != "" {
			c.Exit.Error += ": " + column.Exit.Error
		}
		return
	}
}
