// SPDX-License-Identifier: BSD-3-Clause

package series

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/zcvet/zcvet/harness/fault"
	"github.com/zcvet/zcvet/harness/progress"
)

// b4Timeout bounds one run of b4, which has no time limit of its own on the
// network.
const b4Timeout = 5 * time.Minute

// loadURL takes the message-id out of the URL of a mail and asks the archive it
// points into.
func loadURL(ctx context.Context, text string, options Options) (*Series, error) {
	id, inbox, err := parseURL(text)
	if err != nil {
		return nil, fault.New(fault.Usage, "series %s: %w", text, err).
			WithAdvice("give the URL of a mail in a public-inbox, such as https://lore.kernel.org/netdev/MESSAGE-ID/")
	}
	return fetch(ctx, id, inbox, options)
}

// parseURL divides the URL of a mail in a public-inbox into message-id and
// inbox. The inbox is empty where the URL is one that only redirects
// (lore.kernel.org/r/, patch.msgid.link), and for a patchwork page.
func parseURL(text string) (id, inbox string, err error) {
	parsed, err := url.Parse(text)
	if err != nil {
		return "", "", err
	}
	parts := strings.Split(strings.Trim(parsed.EscapedPath(), "/"), "/")
	at := slices.IndexFunc(parts, func(part string) bool {
		name, err := url.PathUnescape(part)
		return err == nil && isMessageID.MatchString(name)
	})
	if at < 0 {
		return "", "", errors.New("holds no message-id")
	}
	if id, err = url.PathUnescape(parts[at]); err != nil {
		return "", "", err
	}
	id = strings.Trim(id, "<>")
	if at == 0 || parts[at-1] == "r" || parts[at-1] == "patch" {
		return id, "", nil
	}
	return id, parsed.Scheme + "://" + parsed.Host + "/" + strings.Join(parts[:at], "/"), nil
}

// fetch gets the series that a mail belongs to with b4, which reviewers use and
// which knows about rerolled patches and stray mails. Inbox is the archive to
// ask, empty for the usual one.
func fetch(ctx context.Context, id, inbox string, options Options) (*Series, error) {
	options.Progress.Report(progress.Update{What: "b4 am " + id})
	b, err := newB4(cmp.Or(inbox, options.Lore, os.Getenv(EnvironmentLore)), options)
	if err != nil {
		return nil, err
	}
	defer b.cleanup()

	s, err := b.series(ctx, id, options.Revision)
	if err != nil {
		return nil, err
	}
	// Without a revision b4 takes the newest one of the thread, which is not
	// the one that was named when its successors were sent as replies to it.
	if options.Revision == 0 && !s.hasMail(id) {
		revision, err := b.revisionOf(ctx, id)
		if err != nil {
			return nil, err
		}
		if revision != 0 && revision != s.Revision {
			return b.series(ctx, id, revision)
		}
	}
	return s, nil
}

// series runs b4 am for the mail and reads what it made.
func (b *b4) series(ctx context.Context, id string, revision int) (*Series, error) {
	mailbox, words, err := b.am(ctx, id, revision)
	if err != nil {
		return nil, err
	}
	mails, err := readMailbox(mailbox)
	if err != nil {
		return nil, fault.New(fault.Infrastructure, "%s: b4's mailbox: %w", id, err).WithOutput(words)
	}
	s, err := assemble(id, mails, 0)
	if classed, ok := errors.AsType[*fault.Error](err); ok {
		return nil, classed.WithOutput(words)
	}
	if err != nil {
		return nil, err
	}
	b.completeFrom(s)
	return s, nil
}

// hasMail tells whether one of the mails of the series has this id.
func (s *Series) hasMail(id string) bool {
	return s.MessageID == id || slices.ContainsFunc(s.Patches, func(patch Patch) bool { return readMail(patch.Mail).messageID == id })
}

// b4 is an installation of b4 with a home of its own.
type b4 struct {
	dir         string
	environment []string
	log         io.Writer
	cleanup     func()
}

// newB4 prepares a directory that stands for the home of the user, whose
// settings, caches and keys b4 would otherwise read and write.
func newB4(inbox string, options Options) (*b4, error) {
	dir, cleanup, err := options.Cache.TempDir()
	if err != nil {
		return nil, err
	}
	if dir, err = filepath.EvalSymlinks(dir); err == nil {
		err = os.Mkdir(filepath.Join(dir, "out"), 0o755)
	}
	if err != nil {
		cleanup()
		return nil, fault.New(fault.Infrastructure, "directory for b4: %w", err)
	}

	settings := [][2]string{
		// b4 exits with 1 and without a word when git knows no address.
		{"user.name", "zcvet"},
		{"user.email", "zcvet@localhost"},
		// Attestation needs keys and asks the DNS; it is not our question.
		{"b4.attestation-policy", "off"},
	}
	if inbox != "" {
		mask := strings.ReplaceAll(strings.TrimRight(inbox, "/"), "%", "%%") + "/%s"
		settings = append(settings, [2]string{"b4.midmask", mask}, [2]string{"b4.linkmask", mask})
	}
	environment := slices.DeleteFunc(os.Environ(), func(entry string) bool {
		return strings.HasPrefix(entry, "GIT_") || strings.HasPrefix(entry, "XDG_") || strings.HasPrefix(entry, "HOME=") || strings.HasPrefix(entry, "EMAIL=")
	})
	environment = append(environment,
		"HOME="+dir, "XDG_CONFIG_HOME="+filepath.Join(dir, "config"), "XDG_CACHE_HOME="+filepath.Join(dir, "cache"), "XDG_DATA_HOME="+filepath.Join(dir, "data"),
		"GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL="+os.DevNull, "GIT_CEILING_DIRECTORIES="+filepath.Dir(dir), "GIT_TERMINAL_PROMPT=0",
		"PYTHONDONTWRITEBYTECODE=1", "PYTHONUTF8=1", "NO_COLOR=1",
		"GIT_CONFIG_COUNT="+strconv.Itoa(len(settings)))
	for i, setting := range settings {
		environment = append(environment, fmt.Sprintf("GIT_CONFIG_KEY_%d=%s", i, setting[0]), fmt.Sprintf("GIT_CONFIG_VALUE_%d=%s", i, setting[1]))
	}
	return &b4{dir: dir, environment: environment, log: options.Log, cleanup: cleanup}, nil
}

// run runs b4 and returns what it said on standard error.
func (b *b4) run(ctx context.Context, args ...string) (words string, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, b4Timeout, fmt.Errorf("b4 took longer than %s", b4Timeout))
	defer cancel()
	var stderr bytes.Buffer
	command := exec.CommandContext(ctx, "b4", args...)
	command.Dir, command.Env = b.dir, b.environment
	command.Stderr = &stderr
	if b.log != nil {
		command.Stderr = io.MultiWriter(&stderr, b.log)
	}
	// b4 starts git; when it is killed, nobody may keep its pipes open.
	command.WaitDelay = time.Second
	err = command.Run()
	words = strings.TrimSpace(stderr.String())
	switch {
	case ctx.Err() != nil:
		return words, fault.New(fault.Infrastructure, "b4: %w", context.Cause(ctx)).WithOutput(words)
	case errors.Is(err, exec.ErrNotFound):
		return words, fault.New(fault.Infrastructure, "b4 is needed to fetch a series from the archive: %w", err).WithAdvice("install the package b4, or save the mails and use mbox:FILE")
	}
	return words, err
}

// explain classes a failure of b4 by what it said: an unknown mail is the
// user's matter, anything else is not.
func explain(id, words string, err error) error {
	lines := strings.Split(words, "\n")
	last := strings.TrimSpace(lines[len(lines)-1])
	for _, unknown := range []string{"not known", "No patches found", "Unable to find revision", "No messages in the thread", "Nothing matching that query", "Could not find any patches"} {
		for _, line := range lines {
			if strings.Contains(line, unknown) {
				return fault.New(fault.Usage, "%s: %s", id, strings.TrimSpace(line)).WithOutput(words)
			}
		}
	}
	if last == "" {
		last = "it printed nothing"
	}
	if err != nil {
		return fault.New(fault.Infrastructure, "b4 failed on %s (%w): %s", id, err, last).WithOutput(words).
			WithAdvice("check the network, or save the mails from the archive and use mbox:FILE")
	}
	return fault.New(fault.Infrastructure, "b4 found nothing for %s: %s", id, last).WithOutput(words)
}

// revisionOf fetches the thread and returns the revision of the mail with the
// id, 0 when the thread does not show it.
func (b *b4) revisionOf(ctx context.Context, id string) (int, error) {
	words, err := b.run(ctx, "mbox", "-o", "out", "-n", "thread", id)
	if _, classed := errors.AsType[*fault.Error](err); classed {
		return 0, err
	}
	// The versions of b4 do not agree on the ending of the name.
	saved, globErr := filepath.Glob(filepath.Join(b.dir, "out", "thread*"))
	if err != nil || globErr != nil || len(saved) == 0 {
		return 0, explain(id, words, err)
	}
	data, err := os.ReadFile(saved[0])
	if err != nil {
		return 0, fault.New(fault.Infrastructure, "%s: b4's mailbox: %w", id, err)
	}
	mails, err := readMailbox(data)
	if err != nil {
		return 0, fault.New(fault.Infrastructure, "%s: b4's mailbox: %w", id, err)
	}
	for _, m := range mails {
		if m.messageID == id && m.subject.isPatch && !m.subject.isReply {
			return m.subject.revision, nil
		}
	}
	return 0, nil
}

// am returns the mailbox that b4 am makes of the series.
func (b *b4) am(ctx context.Context, id string, revision int) (mailbox []byte, words string, err error) {
	// Trailers collected from replies change the message, not the patch; they
	// are left out, so that the mails are those that were sent.
	for _, left := range []string{"series.mbx", "series.cover"} {
		_ = os.Remove(filepath.Join(b.dir, "out", left))
	}
	args := []string{"am", "-T", "-o", "out", "-n", "series"}
	if revision != 0 {
		args = append(args, "-v", strconv.Itoa(revision))
	}
	words, err = b.run(ctx, append(args, id)...)
	if _, classed := errors.AsType[*fault.Error](err); classed {
		return nil, words, err
	}
	if err != nil {
		return nil, words, explain(id, words, err)
	}
	mailbox, err = os.ReadFile(filepath.Join(b.dir, "out", "series.mbx"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, words, explain(id, words, nil)
	}
	if err != nil {
		return nil, words, fault.New(fault.Infrastructure, "%s: %w", id, err)
	}
	return mailbox, words, nil
}

// completeFrom takes name and text of the series from the cover letter, which
// b4 keeps in a file of its own. A revision sent without one gets that of the
// revision before from b4: it says what a series was, not what this one is.
func (b *b4) completeFrom(s *Series) {
	data, err := os.ReadFile(filepath.Join(b.dir, "out", "series.cover"))
	if err != nil {
		return
	}
	cover := readMail(data)
	if cover.messageID == "" || cover.subject.revision != s.Revision {
		return
	}
	s.Name, s.Cover, s.MessageID = cover.subject.title, cover.message, cover.messageID
}
