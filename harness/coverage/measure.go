// SPDX-License-Identifier: BSD-3-Clause

package coverage

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/zcvet/zcvet/guest/link"
	"github.com/zcvet/zcvet/harness/fault"
	"github.com/zcvet/zcvet/harness/tree"
	"github.com/zcvet/zcvet/harness/verdict"
)

// gcovPatience bounds one call of gcov, which takes a fraction of a second. What it
// reads comes from the guest.
const gcovPatience = 30 * time.Second

// maxOutput bounds what gcov may say about one object, in bytes.
const maxOutput = 64 << 20

// place is a line of a source file, relative to the source's root.
type place struct {
	file string
	line int
}

// Measure tells which lines that the series added were executed. Notes is the
// directory with the compiler's notes, by the objects' places in the build tree.
// Machines are the counters of each machine; they add up.
func Measure(ctx context.Context, t *tree.Tree, notes string, machines []link.Counters) (*verdict.Coverage, error) {
	counts := map[place]int64{}
	measured := map[string]bool{}
	for _, machine := range machines {
		for _, file := range machine.Files {
			source, ok := sourceOf(t, file.Path)
			if !ok {
				continue
			}
			if err := count(ctx, notes, source, file.Data, counts); err != nil {
				return nil, err
			}
			measured[source] = true
		}
	}
	result := &verdict.Coverage{Lines: []verdict.CoveredLine{}}
	for at, count := range counts {
		patch, added := t.Blame(at.file, at.line)
		if !added {
			continue
		}
		result.Executable++
		if count > 0 {
			result.Executed++
		}
		result.Lines = append(result.Lines, verdict.CoveredLine{
			File: at.file, Line: at.line, Patch: t.Applied[patch].Subject, Text: text(t, at), Count: count,
		})
	}
	slices.SortFunc(result.Lines, func(a, b verdict.CoveredLine) int {
		return cmp.Or(cmp.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line))
	})
	if len(machines) > 0 {
		for _, source := range Sources(t) {
			if !measured[source] {
				result.Missing = append(result.Missing, source+" is not compiled in this configuration")
			}
		}
	}
	return result, nil
}

// sourceOf finds the source that counters are about. Their path begins with the
// place of the build tree, which may be another machine's.
func sourceOf(t *tree.Tree, counters string) (string, bool) {
	for _, source := range Sources(t) {
		if strings.HasSuffix(counters, "/"+strings.TrimSuffix(source, ".c")+".gcda") {
			return source, true
		}
	}
	return "", false
}

// text is a line of a file that the series changes, without what surrounds it.
func text(t *tree.Tree, at place) string {
	lines := bytes.Split(t.Overlay[at.file], []byte("\n"))
	if at.line > len(lines) {
		return ""
	}
	return strings.TrimSpace(string(lines[at.line-1]))
}

// count adds the counters of one object.
func count(ctx context.Context, notes, source string, counters []byte, counts map[place]int64) error {
	object := strings.TrimSuffix(source, ".c")
	note, err := os.ReadFile(filepath.Join(notes, object+".gcno"))
	if err != nil {
		return fault.New(fault.Infrastructure, "coverage of %s: %w", source, err).
			WithAdvice("the kernel is in the cache without the compiler's notes: zcvet cache prune")
	}
	dir, err := os.MkdirTemp("", "zcvet-gcov-")
	if err != nil {
		return fault.New(fault.Infrastructure, "coverage of %s: %w", source, err)
	}
	defer os.RemoveAll(dir)
	base := path.Base(object)
	if err := errors.Join(
		os.WriteFile(filepath.Join(dir, base+".gcno"), note, 0o600),
		os.WriteFile(filepath.Join(dir, base+".gcda"), counters, 0o600),
	); err != nil {
		return fault.New(fault.Infrastructure, "coverage of %s: %w", source, err)
	}
	output, err := gcov(ctx, dir, base+".gcda")
	if err != nil {
		return err
	}
	if err := parse(output, counts); err != nil {
		return fault.New(fault.Infrastructure, "coverage of %s: gcov: %w", source, err)
	}
	return nil
}

// gcov has the tool that belongs to the compiler decode counters, because their
// format is that of one version of gcc.
func gcov(ctx context.Context, dir, file string) ([]byte, error) {
	limited, cancel := context.WithTimeout(ctx, gcovPatience)
	defer cancel()
	command := exec.CommandContext(limited, "gcov", "--json-format", "--stdout", file)
	command.Dir = dir
	var output, complaints bytes.Buffer
	command.Stdout, command.Stderr = &limitedBuffer{Buffer: &output, left: maxOutput}, &complaints
	err := command.Run()
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case errors.Is(err, exec.ErrNotFound):
		return nil, fault.New(fault.Infrastructure, "gcov is missing: %w", err).WithAdvice("sudo apt-get install gcc")
	case strings.Contains(complaints.String(), "mismatch"):
		return nil, fault.New(fault.Infrastructure, "gcov %s: the counters are not those of the kernel that was built", file).WithOutput(complaints.String())
	case err != nil:
		return nil, fault.New(fault.Infrastructure, "gcov %s: %w", file, err).WithOutput(complaints.String())
	}
	return output.Bytes(), nil
}

// limitedBuffer refuses more than so many bytes.
type limitedBuffer struct {
	*bytes.Buffer
	left int
}

func (b *limitedBuffer) Write(p []byte) (int, error) {
	if b.left -= len(p); b.left < 0 {
		return 0, errors.New("too much output")
	}
	return b.Buffer.Write(p)
}

// report is what gcov --json-format prints, as far as it matters here.
type report struct {
	Directory string `json:"current_working_directory"` // of the compiler: the build tree
	Files     []struct {
		File  string `json:"file"` // as the compiler was given it
		Lines []struct {
			Number int   `json:"line_number"`
			Count  int64 `json:"count"`
		} `json:"lines"`
	} `json:"files"`
}

// parse adds the counts of every line that gcov knows. A line in several functions,
// or in several objects, was executed as often as in all of them together.
func parse(output []byte, counts map[place]int64) error {
	decoder := json.NewDecoder(bytes.NewReader(output))
	for documents := 0; ; documents++ {
		var r report
		err := decoder.Decode(&r)
		if errors.Is(err, io.EOF) {
			if documents == 0 {
				return errors.New("it said nothing")
			}
			return nil
		}
		if err != nil {
			return fmt.Errorf("%.40q…: %w", output, err)
		}
		for _, file := range r.Files {
			name, ok := inSource(r.Directory, file.File)
			if !ok {
				continue
			}
			for _, line := range file.Lines {
				if line.Number < 1 || line.Count < 0 {
					return fmt.Errorf("%s: line %d was executed %d times", name, line.Number, line.Count)
				}
				at := place{name, line.Number}
				if counts[at] > math.MaxInt64-line.Count {
					counts[at] = math.MaxInt64
				} else {
					counts[at] += line.Count
				}
			}
		}
	}
}

// inSource turns a name as the compiler was given it into one relative to the
// source's root, which is the parent of the build tree; ok is false for what is
// not below it.
func inSource(build, name string) (string, bool) {
	if !path.IsAbs(name) {
		name = path.Join(build, name)
	}
	relative, err := filepath.Rel(path.Dir(path.Clean(build)), path.Clean(name))
	if err != nil || !filepath.IsLocal(relative) {
		return "", false
	}
	return relative, true
}
