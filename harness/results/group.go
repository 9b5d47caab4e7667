// SPDX-License-Identifier: BSD-3-Clause

package results

import (
	"io"
	"os"
	"path/filepath"
	"time"
)

// Group is the directory of a command that makes several runs, or none: what it
// found about all of them is there, and each run has a directory of its own below.
//
//	command.txt     the command line that repeats it
//	*.json, *.md    what it found
//	logs/           what tools said
type Group struct {
	Path string
}

// commandFile is in the directory of a group from its first moment on.
const commandFile = "command.txt"

// logFolder holds the logs of a group.
const logFolder = "logs"

// CreateGroup makes the directory of a group, by the rules of [Create].
func CreateGroup(path string, started time.Time, command string, about ...string) (*Group, error) {
	path, err := place(path, started, about)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(path, commandFile), []byte(command+"\n"), 0o666); err != nil {
		return nil, explain(err)
	}
	return &Group{Path: path}, nil
}

// Run is the directory for a run of the group; the name is made fit for a file
// system.
func (g *Group) Run(name string) string { return filepath.Join(g.Path, clean(name)) }

// Relative is the place of something of the group as its files should name it.
func (g *Group) Relative(path string) string {
	relative, err := filepath.Rel(g.Path, path)
	if err != nil {
		return path // of no group: the caller's mistake shows in the link
	}
	return filepath.ToSlash(relative)
}

// Write makes a file of the group, whole or not at all.
func (g *Group) Write(name string, write func(io.Writer) error) error {
	return writeFile(g.Path, name, write)
}

// Log keeps what a tool said and returns the file's place relative to the group.
func (g *Group) Log(name, text string) (string, error) {
	dir := filepath.Join(g.Path, logFolder)
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return "", explain(err)
	}
	file := clean(name) + ".log"
	err := writeFile(dir, file, func(w io.Writer) error {
		_, err := io.WriteString(w, text)
		return err
	})
	return logFolder + "/" + file, err
}
