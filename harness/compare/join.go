// SPDX-License-Identifier: BSD-3-Clause

package compare

import (
	"fmt"

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
		step.Same = outcomes[before].Run == outcomes[after].Run
	}
	step.Before, step.After = before, after
	return step
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
	if c.Exit.Error == "" {
		return word
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
