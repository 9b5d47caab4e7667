// SPDX-License-Identifier: BSD-3-Clause

package series

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/zcvet/zcvet/harness/cache"
	"github.com/zcvet/zcvet/harness/fault"
	"github.com/zcvet/zcvet/harness/progress"
	"github.com/zcvet/zcvet/patches"
)

// None is the specification of a series without patches.
const None = "none"

// EnvironmentLore is the variable that names another archive to ask for a bare
// message-id: the URL of a public-inbox, "http://127.0.0.1:8080/netdev".
const EnvironmentLore = "ZCVET_LORE"

// Options change how a series is found. The zero value is usable.
type Options struct {
	// Cache holds the temporary directory in which b4 works; nil uses the
	// system's.
	Cache    *cache.Dir
	Progress progress.Func
	// Log receives what b4 prints; nil drops it. It is in the error anyway.
	Log io.Writer
	// Revision asks for that revision of a series of which the place holds
	// several; 0 takes the one that was named, or the newest.
	Revision int
	// Lore is the public-inbox to ask for a bare message-id, before $ZCVET_LORE
	// and b4's own choice.
	Lore string
	// Manifest is what is known of published revisions; nil is our own.
	Manifest *patches.Manifest
}

// Load reads the series that spec names:
//
//	none                a series without patches
//	DIRECTORY           its quilt series, or its *.patch files by name
//	FILE, mbox:FILE     a mailbox or patch file
//	lore:v7, lore:      a published revision of our manifest, the newest
//	https://…/ID/       a mail in a public-inbox, fetched by b4
//	MESSAGE-ID          a mail in the archive, fetched by b4
//
// An input that is no series is a fault.Usage that says what is wrong with which
// mail or file; an archive that does not answer is fault.Infrastructure.
func Load(ctx context.Context, spec string, options Options) (*Series, error) {
	if options.Manifest == nil {
		manifest, err := patches.Load()
		if err != nil {
			return nil, fault.New(fault.Infrastructure, "%w", err)
		}
		options.Manifest = manifest
	}
	s, err := load(ctx, spec, options)
	if err != nil {
		return nil, err
	}
	s.Spec = spec
	if known := options.Manifest.ByMessageID(s.MessageID); known != nil && s.ABI == "" {
		s.ABI = known.ABI
	}
	return s, nil
}

var (
	isURL       = regexp.MustCompile(`^https?://`)
	isMessageID = regexp.MustCompile(`^<?[^\s<>@/]+@[^\s<>@/]+>?$`)
	isRevision  = regexp.MustCompile(`^v?(\d{1,4})$`)
)

func load(ctx context.Context, spec string, options Options) (*Series, error) {
	switch scheme, rest, _ := strings.Cut(spec, ":"); {
	case spec == None:
		return &Series{Name: None}, nil
	case scheme == "mbox":
		return loadMailbox(rest, options.Revision)
	case scheme == "lore":
		return loadPublished(ctx, rest, options)
	case isURL.MatchString(spec):
		return loadURL(ctx, spec, options)
	}
	info, err := os.Stat(spec)
	switch {
	case err == nil && info.IsDir():
		return loadDirectory(spec, options.Revision)
	case err == nil:
		return loadMailbox(spec, options.Revision)
	case isMessageID.MatchString(strings.TrimPrefix(spec, "id:")):
		return fetch(ctx, strings.Trim(strings.TrimPrefix(spec, "id:"), "<>"), "", options)
	}
	return nil, fault.New(fault.Usage, "series %q: there is no such directory or file, and it is no message-id", spec).
		WithAdvice("give a directory, mbox:FILE, a message-id, a lore URL, lore:v1 to lore:v%d, or none", newest(options.Manifest))
}

func newest(m *patches.Manifest) int { return m.Revisions[len(m.Revisions)-1].Revision }

func loadMailbox(file string, revision int) (*Series, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, fault.New(fault.Usage, "mailbox: %w", err)
	}
	mails, err := readMailbox(data)
	if err != nil {
		return nil, fault.New(fault.Usage, "%s: %w", file, err)
	}
	// A file with one bare diff is a series of one.
	if len(mails) == 1 && len(mails[0].diff) == 0 && !mails[0].subject.isPatch {
		if m := readPatchFile(data); m.damage == nil && len(m.diff) > 0 {
			s := &Series{Name: filepath.Base(file), Patches: []Patch{m.patch(1)}}
			s.Patches[0].File = filepath.Base(file)
			return s, nil
		}
	}
	return assemble(file, mails, revision)
}

// loadPublished fetches a revision of the manifest.
func loadPublished(ctx context.Context, name string, options Options) (*Series, error) {
	number := newest(options.Manifest)
	switch match := isRevision.FindStringSubmatch(name); {
	case options.Revision != 0:
		number = options.Revision
	case match != nil:
		number, _ = strconv.Atoi(match[1])
	case name != "":
		return nil, fault.New(fault.Usage, "series lore:%s: write lore:v1 to lore:v%d", name, newest(options.Manifest))
	}
	known := options.Manifest.Find(number)
	if known == nil {
		return nil, fault.New(fault.Usage, "revision v%d was never posted: there are v%d to v%d", number, options.Manifest.Revisions[0].Revision, newest(options.Manifest))
	}
	options.Revision = number
	s, err := fetch(ctx, known.Latest().MessageID, "", options)
	if err != nil {
		return nil, err
	}
	if len(s.Patches) != known.Patches {
		return nil, fault.New(fault.Infrastructure, "the archive has %d patches of v%d, there should be %d", len(s.Patches), number, known.Patches)
	}
	s.ABI, s.Revision = known.ABI, number
	if s.MessageID == "" {
		s.MessageID = known.Latest().MessageID
	}
	s.Name = fmt.Sprintf("%s v%d", s.Name, number)
	return s, nil
}
