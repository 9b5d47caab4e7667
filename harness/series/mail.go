// SPDX-License-Identifier: BSD-3-Clause

package series

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/textproto"
	"regexp"
	"strconv"
	"strings"

	"github.com/emersion/go-message"
)

// mail is one mail as far as it matters for a series.
type mail struct {
	raw       []byte
	subject   subject
	from      string
	messageID string // without angle brackets
	message   string // commit message, or the text of a cover letter
	diff      []byte // empty when the mail changes nothing
	// damage is why the mail cannot be used as the patch it looks like.
	damage error
}

// name tells the reader which mail is meant.
func (m *mail) name() string {
	subject := m.subject.full
	if subject == "" {
		subject = "(no subject)"
	}
	if m.messageID == "" {
		return strconv.Quote(subject)
	}
	return fmt.Sprintf("%q <%s>", subject, m.messageID)
}

// maxMail bounds what is read from one mail or mailbox after decompression; the
// largest series on the kernel lists are some ten megabytes.
const maxMail = 256 << 20

// maxDepth bounds how deep parts of a mail nest; three are seen in practice.
const maxDepth = 8

var (
	// envelope is the line that separates the mails of a mailbox. It carries a
	// date, which keeps "From now on …" in a message from being taken for one.
	envelope = regexp.MustCompile(`^From \S+.*\d\d:\d\d.*\d{4}\s*$`)
	// headerLine is what must follow it.
	headerLine = regexp.MustCompile(`^>?[A-Za-z][A-Za-z0-9-]*:`)
	// quotedFrom is what mailbox writers make of a line that looks like one.
	quotedFrom = regexp.MustCompile(`(?m)^>(>*From )`)
)

// splitMailbox divides a mailbox (mboxo, mboxrd, or what b4 and git format-patch
// write) into mails without their envelope lines. A text without an envelope
// line is one mail.
func splitMailbox(data []byte) [][]byte {
	var mails [][]byte
	start, isMailbox := 0, false
	for at := 0; at < len(data); {
		end := len(data)
		if n := bytes.IndexByte(data[at:], '\n'); n >= 0 {
			end = at + n + 1
		}
		if bytes.HasPrefix(data[at:end], []byte("From ")) && envelope.Match(bytes.TrimRight(data[at:end], "\r\n")) && headerLine.Match(data[end:]) {
			if text := data[start:at]; len(bytes.TrimSpace(text)) > 0 {
				mails = append(mails, text)
			}
			start, isMailbox = end, true
		}
		at = end
	}
	if text := data[start:]; len(bytes.TrimSpace(text)) > 0 {
		mails = append(mails, text)
	}
	if isMailbox {
		for i, text := range mails {
			// The empty line before the next envelope is not the mail's. Left
			// where it is, it would pass for a context line of a hunk whose last
			// one was cut off.
			for _, end := range []string{"\r\n", "\n"} {
				if shorter, ok := bytes.CutSuffix(text, []byte(end+end)); ok {
					text = append(shorter[:len(shorter):len(shorter)], end...)
					break
				}
			}
			mails[i] = quotedFrom.ReplaceAll(text, []byte("$1"))
		}
	}
	return mails
}

// readMailbox reads the mails of a mailbox, which may be compressed with gzip as
// public-inbox hands it out.
func readMailbox(data []byte) ([]*mail, error) {
	if bytes.HasPrefix(data, []byte{0x1f, 0x8b}) {
		reader, err := gzip.NewReader(bytes.NewReader(data))
		if err != nil {
			return nil, fmt.Errorf("gzip: %w", err)
		}
		if data, err = io.ReadAll(io.LimitReader(reader, maxMail)); err != nil {
			return nil, fmt.Errorf("gzip: %w", err)
		}
	}
	var mails []*mail
	for _, raw := range splitMailbox(data) {
		mails = append(mails, readMail(raw))
	}
	return mails, nil
}

// readMail reads one mail. What is wrong with it is kept in the mail: whether it
// matters depends on whether the mail is wanted.
func readMail(raw []byte) *mail {
	m := &mail{raw: raw}
	entity, err := message.Read(bytes.NewReader(unixLines(raw)))
	// An unknown character set is of no concern: a diff is bytes.
	if err != nil && !message.IsUnknownCharset(err) && !message.IsUnknownEncoding(err) {
		// The words of the error quote the text, which may be anything.
		m.damage = errors.New("it does not begin with the header of a mail")
		return m
	}
	m.subject = parseSubject(decodeHeader(entity.Header.Get("Subject")))
	m.from = decodeHeader(entity.Header.Get("From"))
	m.messageID = strings.Trim(strings.TrimSpace(entity.Header.Get("Message-Id")), "<>")

	text, err := mailText(entity, 0)
	if err != nil {
		m.damage = fmt.Errorf("cannot be decoded: %w", err)
		return m
	}
	m.message, m.diff, err = splitPatch(text)
	if err != nil && !errors.Is(err, errNoDiff) {
		m.damage = err
	}
	m.takeInBodyHeaders()
	return m
}

// mailText returns the text of a mail: its body, or the parts of it that are
// text, in order. Depth is how many parts it is inside of.
func mailText(entity *message.Entity, depth int) ([]byte, error) {
	if depth > maxDepth {
		return nil, errors.New("too many parts inside parts")
	}
	parts := entity.MultipartReader()
	if parts == nil {
		kind, _, err := entity.Header.ContentType()
		if err == nil && kind != "" && !strings.HasPrefix(kind, "text/") {
			return nil, nil
		}
		return io.ReadAll(io.LimitReader(entity.Body, maxMail))
	}
	var text []byte
	for {
		part, err := parts.NextPart()
		if errors.Is(err, io.EOF) {
			return text, nil
		}
		if err != nil && !message.IsUnknownCharset(err) && !message.IsUnknownEncoding(err) {
			return nil, err
		}
		more, err := mailText(part, depth+1)
		if err != nil {
			return nil, err
		}
		text = append(text, unixLines(more)...)
		if len(text) > 0 && text[len(text)-1] != '\n' {
			text = append(text, '\n')
		}
	}
}

// decodeHeader decodes the encoded words of a header and joins its lines; what
// cannot be decoded stays as it is.
func decodeHeader(value string) string {
	value = strings.Join(strings.Fields(value), " ")
	decoded, err := new(mime.WordDecoder).DecodeHeader(value)
	if err != nil {
		return value
	}
	return strings.Join(strings.Fields(decoded), " ")
}

// takeInBodyHeaders lets a "From:" or "Subject:" at the head of the message
// override that of the mail, as for a patch sent by somebody else than its
// author.
func (m *mail) takeInBodyHeaders() {
	rest := m.message
	found := false
	for {
		line, after, _ := strings.Cut(rest, "\n")
		key, value, ok := strings.Cut(line, ":")
		if !ok {
			break
		}
		switch textproto.CanonicalMIMEHeaderKey(key) {
		case "From":
			m.from = decodeHeader(value)
		case "Subject":
			if m.subject.full == "" {
				m.subject = parseSubject(decodeHeader(value))
			} else {
				m.subject.title = parseSubject(decodeHeader(value)).title // the prefix stays the mail's
			}
		case "Date":
		default:
			ok = false
		}
		if !ok {
			break
		}
		rest, found = after, true
	}
	if found {
		m.message = strings.TrimSpace(rest)
	}
}

// subject is the subject of a mail, taken apart.
type subject struct {
	full    string
	title   string // without what is in brackets
	prefix  string // what is in brackets
	isReply bool
	isPatch bool // there is a "[PATCH …]" of some form
	// revision is the N of vN, 1 without.
	revision int
	// number and total are n and m of "n/m", 0 and 0 without.
	number, total int
	numbered      bool
}

var (
	reply       = regexp.MustCompile(`(?i)^\s*(re|aw|sv|fwd?|antw|odp)\s*(\[\d+\])?\s*:`)
	bracket     = regexp.MustCompile(`^\s*\[([^\]]*)\]`)
	numberOf    = regexp.MustCompile(`^(\d{1,4})/(\d{1,4})$`)
	revisionOf  = regexp.MustCompile(`(?i)^v(\d{1,4})$`)
	patchPrefix = regexp.MustCompile(`(?i)^(rfc|patch|repost|resend)$`)
	// gluedPrefix is a prefix without a blank: "[PATCHv2 1/3]".
	gluedPrefix = regexp.MustCompile(`(?i)^patchv(\d{1,4})$`)
	// targetTree is a bracket that only names the tree.
	targetTree = regexp.MustCompile(`(?i)^(bpf|net|mm)(-next)?$`)
)

// parseSubject reads "[PATCH net-next v7 1/3] title".
func parseSubject(full string) subject {
	s := subject{full: full, title: full, revision: 1, isReply: reply.MatchString(full)}
	for {
		m := bracket.FindStringSubmatch(s.title)
		if m == nil {
			break
		}
		matched := false
		for _, word := range strings.FieldsFunc(m[1], func(r rune) bool { return r == ' ' || r == ',' || r == '\t' }) {
			if n := numberOf.FindStringSubmatch(word); n != nil {
				s.number, _ = strconv.Atoi(n[1])
				s.total, _ = strconv.Atoi(n[2])
				s.numbered, matched = true, true
			} else if n := revisionOf.FindStringSubmatch(word); n != nil {
				s.revision, _ = strconv.Atoi(n[1])
				matched = true
			} else if n := gluedPrefix.FindStringSubmatch(word); n != nil {
				s.revision, _ = strconv.Atoi(n[1])
				matched = true
			} else if patchPrefix.MatchString(word) {
				matched = true
			}
		}
		// "[net-next] title" carries a tree, "[stable review] …" who knows; a
		// bracket that says nothing of patches belongs to the title unless
		// one before it did.
		if !matched && !s.isPatch && !targetTree.MatchString(m[1]) {
			break
		}
		s.isPatch = s.isPatch || matched
		s.prefix = strings.TrimSpace(s.prefix + " " + m[1])
		s.title = s.title[len(m[0]):]
	}
	s.title = strings.TrimSpace(s.title)
	return s
}

// isCover tells whether the subject is that of a cover letter.
func (s subject) isCover() bool { return s.numbered && s.number == 0 }
