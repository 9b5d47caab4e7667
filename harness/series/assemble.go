// SPDX-License-Identifier: BSD-3-Clause

package series

import (
	"bytes"
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/zcvet/zcvet/harness/fault"
)

// assemble makes a series of the mails of a mailbox, which may hold replies,
// other revisions and the same mail twice. Place names the mailbox in errors.
// Revision 0 takes the newest.
func assemble(place string, mails []*mail, revision int) (*Series, error) {
	var candidates []*mail
	for _, m := range mails {
		if m.subject.isReply || (!m.subject.isPatch && len(m.diff) == 0) {
			continue
		}
		candidates = append(candidates, m)
	}
	if !slices.ContainsFunc(candidates, func(m *mail) bool { return len(m.diff) > 0 || m.damage != nil }) {
		return nil, noPatches(place, mails)
	}
	// Beside a series, a diff in some other mail is a remark.
	if slices.ContainsFunc(candidates, func(m *mail) bool { return m.subject.isPatch }) {
		candidates = slices.DeleteFunc(candidates, func(m *mail) bool { return !m.subject.isPatch })
	}

	if revision == 0 {
		for _, m := range candidates {
			revision = max(revision, m.subject.revision)
		}
	}
	var chosen []*mail
	for _, m := range candidates {
		if m.subject.revision != revision {
			continue
		}
		// The same mail by way of two lists.
		if m.messageID != "" && slices.ContainsFunc(chosen, func(other *mail) bool { return other.messageID == m.messageID && bytes.Equal(other.diff, m.diff) }) {
			continue
		}
		chosen = append(chosen, m)
	}
	if len(chosen) == 0 {
		return nil, fault.New(fault.Usage, "%s: holds no revision v%d, only %s", place, revision, revisions(candidates))
	}
	for _, m := range chosen {
		// What looks like a diff in a cover letter is an interdiff at most.
		if m.damage != nil && !m.subject.isCover() {
			return nil, fault.New(fault.Usage, "%s: mail %s: %w", place, m.name(), m.damage).
				WithAdvice("fetch the mail again, raw: mail programs wrap, cut and re-encode")
		}
		if len(m.diff) == 0 && !m.subject.isCover() {
			return nil, fault.New(fault.Usage, "%s: mail %s: %w", place, m.name(), errNoDiff)
		}
	}
	if err := order(place, chosen); err != nil {
		return nil, err
	}
	return build(chosen, revision)
}

func noPatches(place string, mails []*mail) error {
	switch len(mails) {
	case 0:
		return fault.New(fault.Usage, "%s: is empty", place)
	case 1:
		if mails[0].damage != nil {
			return fault.New(fault.Usage, "%s: is neither a mailbox nor a patch: %w", place, mails[0].damage)
		}
		return fault.New(fault.Usage, "%s: holds no patch: its one mail, %s, has no diff", place, mails[0].name())
	}
	return fault.New(fault.Usage, "%s: holds no patch: none of its %d mails, of which %s is the first, is one", place, len(mails), mails[0].name())
}

func revisions(mails []*mail) string {
	var numbers []int
	for _, m := range mails {
		numbers = append(numbers, m.subject.revision)
	}
	slices.Sort(numbers)
	var names []string
	for _, n := range slices.Compact(numbers) {
		names = append(names, fmt.Sprintf("v%d", n))
	}
	return strings.Join(names, ", ")
}

// order sorts mails by the n of their n/m and checks that each is there once.
// Patches without numbers stay in the order of the mailbox, as git am takes
// them.
func order(place string, mails []*mail) error {
	var numbered *mail
	for _, m := range mails {
		if m.subject.numbered {
			numbered = m
		}
	}
	if numbered == nil {
		return nil
	}
	total := numbered.subject.total
	byNumber := map[int]*mail{}
	for _, m := range mails {
		s := m.subject
		switch other := byNumber[s.number]; {
		case !s.numbered:
			return fault.New(fault.Usage, "%s: mail %s has no number, unlike %s", place, m.name(), numbered.name())
		case s.total != total:
			return fault.New(fault.Usage, "%s: mail %s counts %d patches, %s counts %d: two series in one mailbox", place, m.name(), s.total, numbered.name(), total).
				WithAdvice("keep the mails of one series")
		case s.number > total:
			return fault.New(fault.Usage, "%s: mail %s: patch %d of %d", place, m.name(), s.number, total)
		case other != nil:
			return fault.New(fault.Usage, "%s: patch %d/%d is there twice: %s and %s", place, s.number, total, other.name(), m.name()).
				WithAdvice("keep the mails of one posting")
		}
		byNumber[s.number] = m
	}
	for n := 1; n <= total; n++ {
		if byNumber[n] == nil {
			return fault.New(fault.Usage, "%s: patch %d/%d is missing", place, n, total)
		}
	}
	slices.SortStableFunc(mails, func(a, b *mail) int { return cmp.Compare(a.subject.number, b.subject.number) })
	return nil
}

// build makes the series from mails in order.
func build(mails []*mail, revision int) (*Series, error) {
	s := &Series{}
	if mails[0].subject.isPatch {
		s.Revision = revision
	}
	for _, m := range mails {
		if m.subject.isCover() {
			s.Name, s.Cover, s.MessageID = m.subject.title, m.message, m.messageID
			continue
		}
		s.Patches = append(s.Patches, m.patch(len(s.Patches)+1))
	}
	if s.Name == "" {
		s.Name = s.Patches[0].Subject
	}
	if s.MessageID == "" {
		s.MessageID = mails[0].messageID
	}
	return s, nil
}

func (m *mail) patch(number int) Patch {
	title := m.subject.title
	if title == "" {
		title, _, _ = strings.Cut(m.message, "\n")
	}
	if title == "" {
		title = "(no subject)"
	}
	return Patch{
		Subject: title, Prefix: m.subject.prefix, Message: m.message, Author: m.from, File: fileName(number, title),
		Mail: m.raw, Diff: m.diff, SHA256: hexSHA256(m.diff),
	}
}

var notInFileNames = regexp.MustCompile(`[^A-Za-z0-9._]+`)

// fileName makes the name that git format-patch would give a patch.
func fileName(number int, title string) string {
	slug := strings.Trim(notInFileNames.ReplaceAllString(title, "-"), "-.")
	if len(slug) > 52 {
		slug = strings.TrimRight(slug[:52], "-.")
	}
	return fmt.Sprintf("%04d-%s.patch", number, slug)
}
