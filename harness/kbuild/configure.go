// SPDX-License-Identifier: BSD-3-Clause

package kbuild

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"strings"

	"github.com/zcvet/zcvet/harness/fault"
	"github.com/zcvet/zcvet/harness/kbuild/dependency"
	"github.com/zcvet/zcvet/kconfig"
)

// checkConfig compares what was asked for with the .config that came out. Kconfig
// drops what it cannot satisfy without a word, and a kernel that lacks a detector
// would pass every case it should have failed.
func checkConfig(asked []kconfig.Symbol, config []byte, source string) error {
	values, err := readConfig(config)
	if err != nil {
		return fault.New(fault.Infrastructure, "read .config: %w", err)
	}
	var lost []kconfig.Symbol
	for _, symbol := range asked {
		if value(values, symbol.Name) != symbol.Value {
			lost = append(lost, symbol)
		}
	}
	if len(lost) == 0 {
		return nil
	}
	// Reading all Kconfig files takes a moment, so only now.
	explain := func(symbol kconfig.Symbol) string { return "and the Kconfig files cannot be read" }
	if definitions, err := dependency.Read(os.DirFS(source), "x86"); err == nil {
		explain = func(symbol kconfig.Symbol) string {
			return definitions.Explain(symbol.Name, symbol.Value, values)
		}
	}
	var report []string
	for _, symbol := range lost {
		report = append(report, fmt.Sprintf("CONFIG_%s=%s, asked for in %s.config:%d, is %s: %s",
			symbol.Name, symbol.Value, symbol.Fragment, symbol.Line, value(values, symbol.Name), explain(symbol)))
	}
	more := ""
	if len(lost) > 1 {
		more = fmt.Sprintf(" (and %d more symbols were dropped)", len(lost)-1)
	}
	return fault.New(fault.Build, "%s%s", report[0], more).
		WithOutput(strings.Join(report, "\n")).
		WithAdvice("satisfy the dependency, or limit the symbol to the kernels that have it (\"# since 6.5\")")
}

// readConfig reads the values of a .config.
func readConfig(config []byte) (dependency.Values, error) {
	values := dependency.Values{}
	lines := bufio.NewScanner(bytes.NewReader(config))
	for lines.Scan() {
		assignment, ok := strings.CutPrefix(lines.Text(), "CONFIG_")
		if !ok {
			continue
		}
		if name, value, ok := strings.Cut(assignment, "="); ok {
			values[name] = value
		}
	}
	return values, lines.Err()
}

// value is the value of a symbol, n when it is unset or unknown.
func value(values dependency.Values, name string) string {
	if value, ok := values[name]; ok {
		return value
	}
	return "n"
}
