// SPDX-License-Identifier: BSD-3-Clause

// Package patches is what the project knows about the published revisions of
// the series it was made for. The folder also holds series of our own, by base
// kernel; those are read from disk like anybody's.
package patches

import (
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"sync"
)

//go:embed manifest.json
var files embed.FS

// Manifest lists the revisions that were posted to the mailing list.
type Manifest struct {
	Series  string `json:"series"`  // title of the cover letter
	Archive string `json:"archive"` // where the mails are archived
	// Revisions are in ascending order.
	Revisions []Revision `json:"revisions"`
}

// Revision is one revision of the series.
type Revision struct {
	Revision int    `json:"revision"`
	Patches  int    `json:"patches"` // without the cover letter
	ABI      string `json:"abi"`     // profile of the notification interface
	Note     string `json:"note"`
	// Postings are in order of date; most revisions were posted once.
	Postings []Posting `json:"postings"`
}

// Posting is one mailing of a revision.
type Posting struct {
	Date      string `json:"date"`       // year-month-day
	MessageID string `json:"message_id"` // of the cover letter
	Note      string `json:"note,omitempty"`
}

// Latest is the posting that counts: the last one.
func (r *Revision) Latest() Posting { return r.Postings[len(r.Postings)-1] }

// Load returns the manifest that is part of the program.
var Load = sync.OnceValues(func() (*Manifest, error) {
	data, err := files.ReadFile("manifest.json")
	if err != nil {
		return nil, err
	}
	return Parse(data)
})

// Parse reads a manifest and checks that it can be relied on: ascending
// revisions, each with a posting and a profile.
func Parse(data []byte) (*Manifest, error) {
	var m Manifest
	if err := json.Unmarshal(data, &m); err != nil {
		return nil, fmt.Errorf("manifest of revisions: %w", err)
	}
	if len(m.Revisions) == 0 {
		return nil, errors.New("manifest of revisions: it is empty")
	}
	last := 0
	for i := range m.Revisions {
		r := &m.Revisions[i]
		switch {
		case r.Revision <= last:
			return nil, fmt.Errorf("manifest of revisions: v%d follows v%d", r.Revision, last)
		case len(r.Postings) == 0 || r.ABI == "" || r.Patches < 1:
			return nil, fmt.Errorf("manifest of revisions: v%d lacks a posting, a profile or its number of patches", r.Revision)
		}
		for _, posting := range r.Postings {
			if posting.MessageID == "" {
				return nil, fmt.Errorf("manifest of revisions: a posting of v%d has no message-id", r.Revision)
			}
		}
		last = r.Revision
	}
	return &m, nil
}

// Find returns a revision by its number, nil when it was never posted.
func (m *Manifest) Find(revision int) *Revision {
	for i := range m.Revisions {
		if m.Revisions[i].Revision == revision {
			return &m.Revisions[i]
		}
	}
	return nil
}

// mailNumber is the part of a message-id made by git send-email that counts the
// mails of one posting.
var mailNumber = regexp.MustCompile(`-\d+-([^-@]*@)`)

// ByMessageID returns the revision one of whose mails (cover letter or patch)
// has this id, nil when none is known to.
func (m *Manifest) ByMessageID(id string) *Revision {
	posting := mailNumber.ReplaceAllString(id, "-N-$1")
	for i := range m.Revisions {
		for _, known := range m.Revisions[i].Postings {
			if mailNumber.ReplaceAllString(known.MessageID, "-N-$1") == posting {
				return &m.Revisions[i]
			}
		}
	}
	return nil
}
