// SPDX-License-Identifier: BSD-3-Clause

// Package matrix plans which kernels a series is vetted on, one cell per kernel.
package matrix

import (
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"regexp"
	"slices"
	"strings"

	"github.com/zcvet/zcvet/harness/fault"
)

// Reference is the series spec that stands for our own series in the port that
// fits the kernel of the cell.
const Reference = "reference"

// None is the series spec of a cell without a series.
const None = "none"

// Default are the kernels a series is vetted on when none are named: the oldest
// that is still in wide use, the one our reference series is for, and the newest
// stable one.
var Default = []string{"6.1", "6.12", "7.2"}

// Cell is one run of the matrix.
type Cell struct {
	Name   string `json:"name"`   // for people, and unique in the matrix
	Slug   string `json:"slug"`   // the same as a part of a file name
	Kernel string `json:"kernel"` // for --kernel
	Series string `json:"series"` // for --series
}

// Matrix is the list of runs in the form GitHub's strategy.matrix takes.
type Matrix struct {
	Include []Cell `json:"include"`
}

// Plan makes a cell for every kernel. A series other than the reference is used
// on all of them as it is. Of the reference series, patches holds the ports in
// directories named after kernel versions; a kernel without a port runs without
// a series, which still shows what is wrong with the kernel itself.
func Plan(kernels []string, series string, patches fs.FS) (Matrix, error) {
	if len(kernels) == 0 {
		kernels = Default
	}
	if series == "" {
		series = Reference
	}
	var matrix Matrix
	for _, kernel := range kernels {
		cell := Cell{Kernel: kernel, Series: series}
		if series == Reference {
			cell.Series = None
			if port, ok := Port(kernel, patches); ok {
				cell.Series = "patches/" + port
			}
		}
		cell.Name = kernel + " " + cell.Series
		cell.Slug = slug(kernel + "-" + cell.Series)
		if slices.ContainsFunc(matrix.Include, func(other Cell) bool { return other.Slug == cell.Slug }) {
			return Matrix{}, fault.New(fault.Usage, "kernel %s is in the matrix twice", kernel)
		}
		matrix.Include = append(matrix.Include, cell)
	}
	return matrix, nil
}

// branch is the part of a kernel version that names its stable branch.
var branch = regexp.MustCompile(`^\d+\.\d+`)

// Port finds the directory of the reference series for a kernel: exactly that
// version's, else that of its stable branch.
func Port(kernel string, patches fs.FS) (string, bool) {
	for _, name := range []string{kernel, branch.FindString(kernel)} {
		if !branch.MatchString(name) || !fs.ValidPath(name) || strings.Contains(name, "/") {
			continue
		}
		if info, err := fs.Stat(patches, name); err == nil && info.IsDir() {
			return name, true
		}
	}
	return "", false
}

var unsafe = regexp.MustCompile(`[^A-Za-z0-9.]+`)

// slug makes a string that may be part of an artifact's name.
func slug(text string) string {
	const longest = 80
	text = strings.Trim(unsafe.ReplaceAllString(text, "-"), "-.")
	return text[:min(len(text), longest)]
}

// WriteGitHub writes the matrix as one line of JSON, for fromJSON in a workflow.
func (m Matrix) WriteGitHub(w io.Writer) error {
	text, err := json.Marshal(m)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(w, string(text))
	return err
}
