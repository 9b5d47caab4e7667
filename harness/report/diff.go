// SPDX-License-Identifier: BSD-3-Clause

package report

import (
	"strings"

	"github.com/bluekeyes/go-gitdiff/gitdiff"

	"github.com/zcvet/zcvet/harness/verdict"
)

// Diff is a patch of the series, line by line.
type Diff struct {
	Patch   *verdict.Patch
	Number  int // of the patch, from 1
	Files   []DiffFile
	Added   int // lines
	Removed int
}

// DiffFile is what a patch does to one file.
type DiffFile struct {
	Name  string // after the patch, before it for a file it removes
	Hunks []DiffHunk
}

// DiffHunk is a contiguous piece of a file.
type DiffHunk struct {
	Header string // "@@ -1,2 +1,3 @@ function"
	Lines  []DiffLine
}

// DiffLine is one line of a hunk.
type DiffLine struct {
	Op  byte // '+', '-' or ' '
	Old int  // number before the patch, 0 for an added line
	New int  // number after the patch, 0 for a removed line
	// At is the line of the diff, from 1.
	At   int
	Text string // without the line end

	// Executable and Count are those of a line whose coverage is known.
	Executable bool
	Count      int64
	// Guilty marks a line that a splat came from.
	Guilty bool
}

// Diffs returns the patches of the series line by line, with the lines that the
// splats came from and the coverage noted. A patch whose diff is not stored, or
// is none, has no files.
func Diffs(run *verdict.Run) []Diff {
	var diffs []Diff
	for i := range run.Series.Patches {
		patch := &run.Series.Patches[i]
		d := Diff{Patch: patch, Number: i + 1}
		d.parse(patch.Diff)
		for _, splat := range run.Splats {
			if splat.Patch == patch.Subject {
				d.accuse(splat.File, splat.Line, splat.Source)
			}
		}
		if run.Coverage != nil {
			d.cover(run.Coverage.Lines)
		}
		diffs = append(diffs, d)
	}
	return diffs
}

func (d *Diff) parse(text string) {
	files, _, err := gitdiff.Parse(strings.NewReader(text))
	if err != nil {
		return
	}
	at := lineFinder{lines: strings.Split(text, "\n")}
	for _, file := range files {
		name := file.NewName
		if name == "" {
			name = file.OldName
		}
		out := DiffFile{Name: name}
		for _, fragment := range file.TextFragments {
			// Header ends its text with a line end.
			hunk := DiffHunk{Header: strings.TrimSpace(fragment.Header())}
			at.skipTo("@@ ")
			before, after := int(fragment.OldPosition), int(fragment.NewPosition)
			for _, line := range fragment.Lines {
				l := DiffLine{Text: strings.TrimRight(line.Line, "\r\n"), At: at.next()}
				switch line.Op {
				case gitdiff.OpAdd:
					l.Op, l.New = '+', after
					after++
					d.Added++
				case gitdiff.OpDelete:
					l.Op, l.Old = '-', before
					before++
					d.Removed++
				default:
					l.Op, l.Old, l.New = ' ', before, after
					before++
					after++
				}
				hunk.Lines = append(hunk.Lines, l)
			}
			out.Hunks = append(out.Hunks, hunk)
		}
		d.Files = append(d.Files, out)
	}
}

// lineFinder walks along the lines of a diff.
type lineFinder struct {
	lines []string
	at    int // index of the last line taken
}

// skipTo takes the next line that begins with prefix.
func (f *lineFinder) skipTo(prefix string) {
	for f.at < len(f.lines) && !strings.HasPrefix(f.lines[f.at], prefix) {
		f.at++
	}
}

// next takes the next line and returns its number from 1.
func (f *lineFinder) next() int {
	f.at++
	if f.at < len(f.lines) && strings.HasPrefix(f.lines[f.at], `\`) { // "\ No newline at end of file"
		f.at++
	}
	return f.at + 1
}

// added returns the lines that the patch adds to a file, in order.
func (d *Diff) added(file string) []*DiffLine {
	var lines []*DiffLine
	for i := range d.Files {
		if d.Files[i].Name != file {
			continue
		}
		for h := range d.Files[i].Hunks {
			hunk := &d.Files[i].Hunks[h]
			for l := range hunk.Lines {
				if hunk.Lines[l].Op == '+' {
					lines = append(lines, &hunk.Lines[l])
				}
			}
		}
	}
	return lines
}

// accuse marks the line of the patch that is line number of the finished tree.
func (d *Diff) accuse(file string, number int, text string) {
	if line := d.find(file, number, text); line != nil {
		line.Guilty = true
	}
}

// find returns the line of the patch that is line number of the finished tree, nil
// if none is. Patches after it may have moved the line, so its text, if it is
// known, counts more than its number.
func (d *Diff) find(file string, number int, text string) *DiffLine {
	var best *DiffLine
	distance := func(l *DiffLine) int { return max(l.New-number, number-l.New) }
	for _, line := range d.added(file) {
		if text != "" && line.Text != text || text == "" && line.New != number {
			continue
		}
		if best == nil || distance(line) < distance(best) {
			best = line
		}
	}
	return best
}

// cover notes the coverage of the lines the patch added. Both come in the order
// of the file, so a text that occurs several times is told by its place.
func (d *Diff) cover(covered []verdict.CoveredLine) {
	lines := make(map[string][]*DiffLine)
	for _, c := range covered {
		if c.Patch != d.Patch.Subject {
			continue
		}
		if _, known := lines[c.File]; !known {
			lines[c.File] = d.added(c.File)
		}
		left := lines[c.File]
		for i, line := range left {
			if strings.TrimSpace(line.Text) == strings.TrimSpace(c.Text) {
				line.Executable, line.Count = true, c.Count
				lines[c.File] = left[i+1:]
				break
			}
		}
	}
}

// context is how many lines around a guilty one a report shows.
const context = 8

// Excerpt returns the part of a patch around its guilty line for a splat, with
// the name of the file; ok is false when the line is not found.
func Excerpt(diffs []Diff, splat *verdict.Splat) (diff *Diff, file string, hunk DiffHunk, ok bool) {
	for i := range diffs {
		d := &diffs[i]
		if d.Patch.Subject != splat.Patch || splat.Patch == "" {
			continue
		}
		for _, f := range d.Files {
			if f.Name != splat.File {
				continue
			}
			for _, h := range f.Hunks {
				for at, line := range h.Lines {
					if !line.Guilty || splat.Source != "" && line.Text != splat.Source {
						continue
					}
					from, to := max(0, at-context), min(len(h.Lines), at+context+1)
					return d, f.Name, DiffHunk{Header: h.Header, Lines: h.Lines[from:to]}, true
				}
			}
		}
	}
	return nil, "", DiffHunk{}, false
}
