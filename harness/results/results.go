// SPDX-License-Identifier: BSD-3-Clause

// Package results is the directory a run leaves behind.
//
//	run.json        the contract; everything else can be made from it again
//	results.ktap    nested KTAP
//	junit.xml       JUnit
//	report.html     for people: one file, to be opened in a browser
//	report.md       for job summaries
//	report.txt      a reply to the series, to be sent by mail
//	console.log     every line of the console of the first machine, and of those
//	                that replaced it after a crash; console-2.log that of the
//	                machine that ran beside it, and so on
//	kernel.config   the configuration the kernel was built with
//	series/         the patches as they were applied
//	evidence/       per failed case: system calls, capture and descriptor log of
//	                the NIC
//	reproducers/    per kind of failure: a C program that shows it
package results

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/zcvet/zcvet/harness/fault"
	"github.com/zcvet/zcvet/harness/report"
	"github.com/zcvet/zcvet/harness/report/page"
	"github.com/zcvet/zcvet/harness/verdict"
)

// Parent is where runs go that are not told where, below the working directory.
const Parent = "results"

// Latest is the name in Parent that points at the newest run.
const Latest = "latest"

// Directory is the directory of one run. What is in it at any moment is valid:
// files appear whole or not at all, but for the consoles, which grow.
type Directory struct {
	Path string

	lock     sync.Mutex // guards consoles
	consoles map[int]*os.File
}

// Create makes the directory of a run: path, or with an empty path a new one in
// Parent whose name tells when and what, and Latest pointing at it. A path that
// exists must be empty or hold an earlier run, which is replaced.
func Create(path string, started time.Time, about ...string) (*Directory, error) {
	path, err := place(path, started, about)
	if err != nil {
		return nil, err
	}
	console, err := os.Create(filepath.Join(path, consoleFile))
	if err != nil {
		return nil, explain(err)
	}
	return &Directory{Path: path, consoles: map[int]*os.File{1: console}}, nil
}

// consoleFile is in the directory of a run from its first moment on.
const consoleFile = "console.log"

// place makes the directory of a run or of a group of runs.
func place(path string, started time.Time, about []string) (string, error) {
	latest := path == ""
	if latest {
		name := started.UTC().Format("20060102-150405")
		for _, part := range about {
			if part = clean(part); part != "" {
				name += "-" + part
			}
		}
		var err error
		if path, err = fresh(filepath.Join(Parent, name)); err != nil {
			return "", explain(err)
		}
	} else if err := reuse(path); err != nil {
		return "", explain(err)
	}
	if latest {
		if err := point(filepath.Join(Parent, Latest), filepath.Base(path)); err != nil {
			return "", explain(err)
		}
	}
	return path, nil
}

// unsafeInName is everything a directory name should not hold.
var unsafeInName = regexp.MustCompile(`[^A-Za-z0-9._]+`)

func clean(part string) string {
	const longest = 40
	part = strings.Trim(unsafeInName.ReplaceAllString(part, "-"), "-.")
	if len(part) > longest {
		part = part[:longest]
	}
	return part
}

// fresh makes a directory that nobody else has: two runs may start in the same
// second.
func fresh(path string) (string, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o777); err != nil {
		return "", err
	}
	for i := 1; ; i++ {
		candidate := path
		if i > 1 {
			candidate = fmt.Sprintf("%s.%d", path, i)
		}
		err := os.Mkdir(candidate, 0o777)
		if !errors.Is(err, fs.ErrExist) {
			return candidate, err
		}
	}
}

// reuse makes path, or empties it if it holds an earlier run.
func reuse(path string) error {
	entries, err := os.ReadDir(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return os.MkdirAll(path, 0o777)
	case err != nil:
		return err
	case len(entries) == 0:
		return nil
	}
	isOurs := slices.ContainsFunc(entries, func(entry fs.DirEntry) bool {
		return entry.Name() == consoleFile || entry.Name() == commandFile
	})
	if !isOurs {
		return fault.New(fault.Usage, "%s is not empty and holds no run of zcvet", path).
			WithAdvice("name a new or empty directory in --out")
	}
	for _, entry := range entries {
		if err := os.RemoveAll(filepath.Join(path, entry.Name())); err != nil {
			return err
		}
	}
	return nil
}

// point replaces a symbolic link in one step.
func point(link, target string) error {
	staged := fmt.Sprintf("%s.%d", link, os.Getpid())
	if err := os.Symlink(target, staged); err != nil {
		return err
	}
	return os.Rename(staged, link)
}

// Console is where the console of one of the machines of the run goes that run at
// the same time. They count from 1.
func (d *Directory) Console(number int) (io.Writer, error) {
	d.lock.Lock()
	defer d.lock.Unlock()
	if console := d.consoles[number]; console != nil {
		return console, nil
	}
	console, err := d.create(fmt.Sprintf("console-%d.log", number))
	if err != nil {
		return nil, err
	}
	d.consoles[number] = console
	return console, nil
}

// Close ends the console logs.
func (d *Directory) Close() error {
	var err error
	for _, console := range d.consoles {
		err = errors.Join(err, console.Close())
	}
	return err
}

// Evidence returns a new file for evidence about a case; kind is its extension.
func (d *Directory) Evidence(caseID, kind string) (*os.File, error) {
	return d.create(EvidenceName(caseID, kind))
}

// EvidenceName is the name of that file, relative to the directory of the run and
// with slashes.
func EvidenceName(caseID, kind string) string {
	return "evidence/" + fileName(caseID) + "." + kind
}

// ReproducerName is the name of the program that reproduces a failure, likewise.
func ReproducerName(caseID string) string {
	return "reproducers/" + fileName(caseID) + ".c"
}

// PatchName is the name under which a patch of the series is kept, likewise. Number
// counts from 1, file is where the patch came from.
func PatchName(number int, file string) string {
	return fmt.Sprintf("series/%02d-%s", number, clean(path.Base(file)))
}

func fileName(caseID string) string { return strings.ReplaceAll(caseID, "/", "_") }

// Keep stores a file of the run under a name that one of the functions above made.
func (d *Directory) Keep(name string, data []byte) error {
	file, err := d.create(name)
	if err != nil {
		return err
	}
	_, err = file.Write(data)
	return explain(errors.Join(err, file.Close()))
}

// Has tells whether there is such a file.
func (d *Directory) Has(name string) bool {
	_, err := os.Stat(filepath.Join(d.Path, filepath.FromSlash(name)))
	return err == nil
}

// Read returns what is in such a file.
func (d *Directory) Read(name string) ([]byte, error) {
	data, err := os.ReadFile(filepath.Join(d.Path, filepath.FromSlash(name)))
	return data, explain(err)
}

func (d *Directory) create(name string) (*os.File, error) {
	path := filepath.Join(d.Path, filepath.FromSlash(name))
	if err := os.MkdirAll(filepath.Dir(path), 0o777); err != nil {
		return nil, explain(err)
	}
	file, err := os.Create(path)
	return file, explain(err)
}

// ConsoleOf returns a new file for the console of one of several kernels.
func (d *Directory) ConsoleOf(name string) (*os.File, error) {
	dir := filepath.Join(d.Path, "console")
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return nil, explain(err)
	}
	file, err := os.Create(filepath.Join(dir, name+".log"))
	return file, explain(err)
}

// CopyConfig keeps the kernel's configuration.
func (d *Directory) CopyConfig(from string) error {
	config, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return d.WriteFile("kernel.config", func(w io.Writer) error {
		_, err := w.Write(config)
		return err
	})
}

// Write stores the run in all its forms, run.json last: where it is, the rest is
// too.
func (d *Directory) Write(run *verdict.Run) error { return Render(d.Path, run) }

// Render stores a run in all its forms in a directory, over those that are there.
func Render(directory string, run *verdict.Run) error {
	forms := []struct {
		name  string
		write func(io.Writer) error
	}{
		{"results.ktap", func(w io.Writer) error { return report.WriteKTAP(w, run) }},
		{"junit.xml", func(w io.Writer) error { return report.WriteJUnit(w, run) }},
		{"report.md", func(w io.Writer) error { return report.WriteMarkdown(w, run) }},
		{"report.html", func(w io.Writer) error { return page.WriteRun(w, run) }},
		{"report.txt", func(w io.Writer) error { return report.WriteText(w, run, Tester()) }},
		{"run.json", run.Write},
	}
	for _, form := range forms {
		if err := writeFile(directory, form.name, form.write); err != nil {
			return err
		}
	}
	return nil
}

// WriteFile stores a file whole or not at all.
func (d *Directory) WriteFile(name string, write func(io.Writer) error) error {
	return writeFile(d.Path, name, write)
}

// writeFile makes a file in a directory, whole or not at all.
func writeFile(dir, name string, write func(io.Writer) error) error {
	var text bytes.Buffer
	if err := write(&text); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	staged := filepath.Join(dir, "."+name)
	if err := os.WriteFile(staged, text.Bytes(), 0o666); err != nil {
		_ = os.Remove(staged)
		return explain(err)
	}
	return explain(os.Rename(staged, filepath.Join(dir, name)))
}

// explain classes an error of the file system.
func explain(err error) error {
	if err == nil || fault.Of(err) != fault.Infrastructure {
		return err
	}
	classed := fault.New(fault.Infrastructure, "results: %w", err)
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return classed.WithAdvice("the disk is full: free some space, or name another place in --out; what was built stays in the cache")
	}
	return classed.WithAdvice("name a directory that can be written in --out")
}
