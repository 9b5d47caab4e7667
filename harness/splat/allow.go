// SPDX-License-Identifier: BSD-3-Clause

package splat

import (
	"bufio"
	_ "embed" // for allow.txt
	"fmt"
	"io"
	"path"
	"strings"
	"time"
)

// Allowed is a splat that is known, is not the fault of the series, and shall
// not fail runs until it is fixed.
type Allowed struct {
	// Title is a pattern for Splat.Title, in the syntax of path.Match without
	// a meaning for "/".
	Title string
	// Reason says whose fault it is and where that is being discussed.
	Reason string
	// Until is the last day on which the entry is in force. An entry that
	// could stay for ever would.
	Until time.Time
}

//go:embed allow.txt
var allowList string

// DefaultAllowed returns the allow-list that comes with zcvet.
func DefaultAllowed() ([]Allowed, error) {
	return ParseAllowed(strings.NewReader(allowList))
}

// ParseAllowed reads an allow-list: one entry per line, its last day, title
// pattern and reason separated by "|"; empty lines and lines that begin with "#"
// are skipped. An entry without a reason or a day is an error.
func ParseAllowed(list io.Reader) ([]Allowed, error) {
	var entries []Allowed
	scanner := bufio.NewScanner(list)
	for number := 1; scanner.Scan(); number++ {
		line := strings.TrimSpace(scanner.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		fields := strings.SplitN(line, "|", 3)
		if len(fields) != 3 {
			return nil, fmt.Errorf("allow-list line %d: want DAY | TITLE | REASON", number)
		}
		for i := range fields {
			fields[i] = strings.TrimSpace(fields[i])
		}
		until, err := time.Parse(time.DateOnly, fields[0])
		if err != nil {
			return nil, fmt.Errorf("allow-list line %d: %w", number, err)
		}
		if fields[1] == "" || fields[2] == "" {
			return nil, fmt.Errorf("allow-list line %d: an entry needs a title and a reason", number)
		}
		if _, err := path.Match(fields[1], ""); err != nil {
			return nil, fmt.Errorf("allow-list line %d: title %q: %w", number, fields[1], err)
		}
		entries = append(entries, Allowed{Title: fields[1], Reason: fields[2], Until: until})
	}
	if err := scanner.Err(); err != nil {
		return nil, fmt.Errorf("allow-list: %w", err)
	}
	return entries, nil
}

// Expired tells whether the entry is no longer in force at a time.
func (a Allowed) Expired(now time.Time) bool {
	return !now.Before(a.Until.AddDate(0, 0, 1))
}

func (a Allowed) matches(title string, now time.Time) bool {
	if a.Expired(now) {
		return false
	}
	// path.Match stops its wildcards at slashes, which titles hold in file
	// names; a character that titles never hold stands in.
	flat := strings.NewReplacer("/", "\x01")
	matched, err := path.Match(flat.Replace(a.Title), flat.Replace(title))
	return err == nil && matched
}
