// SPDX-License-Identifier: BSD-3-Clause

package vet

import (
	"strconv"

	"al.essio.dev/pkg/shellescape"

	"github.com/zcvet/zcvet/harness/suite"
	"github.com/zcvet/zcvet/harness/verdict"
)

// Arguments is a command line that is being put together.
type Arguments []string

// Add appends words if they are wanted.
func (a *Arguments) Add(wanted bool, words ...string) {
	if wanted {
		*a = append(*a, words...)
	}
}

// RunCommand is the command line of zcvet run that does the same again.
func (o *Options) RunCommand() string {
	arguments := append(Arguments{"zcvet", "run"}, o.KernelFlags()...)
	arguments = append(arguments, o.SeriesFlags()...)
	return shellescape.QuoteCommand(append(arguments, o.CaseFlags()...))
}

// KernelFlags are the flags about the kernel and its machine that say what o says,
// but for the series.
func (o *Options) KernelFlags() Arguments {
	flags := Arguments{"--kernel", o.Kernel}
	flags.Add(o.NoFuzz, "--no-fuzz")
	flags.Add(o.Config != "" && o.Config != "default", "--config", o.Config)
	flags.Add(o.Accelerator != "" && o.Accelerator != "auto", "--accel", o.Accelerator)
	flags.Add(o.CPU != "", "--cpu", o.CPU)
	flags.Add(o.SMAPOff, "--smap", "off")
	return flags
}

// SeriesFlags are the flags about the series that say what o says.
func (o *Options) SeriesFlags() Arguments {
	flags := Arguments{"--series", o.Series}
	flags.Add(o.Revision != 0, "--rev", strconv.Itoa(o.Revision))
	return flags
}

// CaseFlags are the flags about the cases that say what o says, but for the place
// of the results.
func (o *Options) CaseFlags() Arguments {
	var flags Arguments
	flags.Add(o.Suite != suite.Everything, "--suite", o.Suite)
	flags.Add(o.Seed != 1, "--seed", strconv.FormatInt(o.Seed, 10))
	flags.Add(o.SearchSteps != 0, "--search-steps", strconv.Itoa(o.SearchSteps))
	flags.Add(o.SearchBudget != 0, "--search-budget", o.SearchBudget.String())
	flags.Add(o.Policy.Strict, "--strict")
	flags.Add(o.Policy.ExpectAll, "--expect-all")
	return flags
}

// caseCommand is the command line that runs a case of that id alone.
func (o *Options) caseCommand(id string) string {
	alone := *o
	alone.Suite, alone.Policy = id, verdict.Policy{}
	return alone.RunCommand()
}
