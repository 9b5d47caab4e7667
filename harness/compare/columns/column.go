// SPDX-License-Identifier: BSD-3-Clause

// Package columns makes the runs that a comparison is about: it prepares one
// kernel after the other, runs the cases on those that differ, and repeats the
// cases whose results do.
package columns

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"

	"github.com/zcvet/zcvet/harness/fault"
	"github.com/zcvet/zcvet/harness/series"
)

// Column is a kernel to compare, by the series that is applied to it.
type Column struct {
	Name     string
	Series   string // as for vet.Options
	Revision int
	// Patches is how many of the series' patches are applied, 0 for all.
	Patches int
	// Loaded is the series itself when it was read before, else nil.
	Loaded *series.Series
}

// Base is the word for the kernel without a series.
const Base = "base"

// atRevision is "S@N". A message-id has an "@" as well, but no bare number behind
// it.
var atRevision = regexp.MustCompile(`^(.+)@(\d{1,4})$`)

// Parse reads columns from the words of the command line:
//
//	base          the kernel without a series
//	SERIES        any series that series.Load reads
//	SERIES@N      its revision N
//
// A file or directory of exactly that name is taken as it is.
func Parse(words []string) ([]Column, error) {
	if len(words) < 2 {
		return nil, fault.New(fault.Usage, "compare takes two columns or more, not %d", len(words)).
			WithAdvice(`name kernels without a series by "base", and series as for run: zcvet compare base lore:v7 lore:v8`)
	}
	var columns []Column
	for _, word := range words {
		if word == "" {
			return nil, fault.New(fault.Usage, "a column has no name")
		}
		column := Column{Name: word, Series: word}
		if _, err := os.Stat(word); err != nil || word == Base {
			if word == Base {
				column.Series = series.None
			} else if match := atRevision.FindStringSubmatch(word); match != nil {
				revision, err := strconv.Atoi(match[2])
				if err != nil || revision == 0 {
					return nil, fault.New(fault.Usage, "column %s: revisions count from 1", word)
				}
				column.Series, column.Revision = match[1], revision
			}
		}
		columns = append(columns, column)
	}
	shorten(columns)
	return columns, nil
}

// shorten names columns of files and directories by the last part of the path, where
// that tells them apart.
func shorten(columns []Column) {
	given := map[string]map[string]bool{} // what the user gave, by short name
	short := make([]string, len(columns))
	for i, column := range columns {
		short[i] = column.Name
		if _, err := os.Stat(column.Series); err == nil && column.Series != Base {
			short[i] = filepath.Base(column.Name)
		}
		if given[short[i]] == nil {
			given[short[i]] = map[string]bool{}
		}
		given[short[i]][column.Name] = true
	}
	for i := range columns {
		if len(given[short[i]]) == 1 && short[i] != Base {
			columns[i].Name = short[i]
		}
	}
}

// EachPatch makes a column of every patch of a series: the kernel with the series
// up to and including it.
func EachPatch(s *series.Series, spec string) ([]Column, error) {
	if len(s.Patches) == 0 {
		return nil, fault.New(fault.Usage, "series %q has no patches to go through one by one", spec)
	}
	var columns []Column
	for i := range s.Patches {
		columns = append(columns, Column{
			Name: fmt.Sprintf("patch %d", i+1), Series: spec, Patches: i + 1, Loaded: s,
		})
	}
	return columns, nil
}
