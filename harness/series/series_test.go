// SPDX-License-Identifier: BSD-3-Clause

package series_test

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"errors"
	"flag"
	"fmt"
	"mime/quotedprintable"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/zcvet/zcvet/harness/fault"
	"github.com/zcvet/zcvet/harness/series"
	"github.com/zcvet/zcvet/harness/source"
	"github.com/zcvet/zcvet/harness/tree"
)

var update = flag.Bool("update", false, "write the golden files anew")

// change is a diff of one line, whose file and contents the number n decides.
func change(n int) string {
	return fmt.Sprintf("diff --git a/net/file%d.c b/net/file%d.c\nindex 1..2 100644\n--- a/net/file%d.c\n+++ b/net/file%d.c\n@@ -1,3 +1,3 @@ int f(void)\n {\n-\told %d;\n+\tnew %d; /* é */\n }\n", n, n, n, n, n, n)
}

// letter is a mail with the given subject prefix, such as "[PATCH v2 1/3]".
func letter(prefix string, n int, diff string) string {
	body := "Message.\n\nFrom here on text.\n\nSigned-off-by: Ada Example <ada@example.org>\n---\n net/file.c | 2 +-\n 1 file changed\n\n" + diff + "-- \n2.39.5\n\n"
	if diff == "" {
		body = "Words.\n\n-- \n2.39.5\n\n"
	}
	return fmt.Sprintf("From: Ada Example <ada@example.org>\nDate: Mon, 1 Jan 2024 10:00:%02d +0000\nMessage-Id: <%s-%d@example.org>\nSubject: %s net: change %d\nMIME-Version: 1.0\nContent-Type: text/plain; charset=UTF-8\nContent-Transfer-Encoding: 8bit\n\n%s",
		n, strings.NewReplacer("[", "", "]", "", " ", "-", "/", "of").Replace(prefix), n, prefix, n, body)
}

func box(letters ...string) string {
	var out strings.Builder
	for _, text := range letters {
		out.WriteString("From git@z Thu Jan  1 00:00:00 1970\n" + strings.ReplaceAll(text, "\nFrom ", "\n>From ") + "\n")
	}
	return out.String()
}

func load(t *testing.T, text string, revision int) (*series.Series, error) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "box")
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	s, err := series.Load(t.Context(), "mbox:"+file, series.Options{Revision: revision})
	if err != nil {
		// The name of the file is another every time.
		return nil, errors.New(fault.Of(err).String() + ": " + strings.ReplaceAll(err.Error(), file, "BOX"))
	}
	return s, nil
}

// reencode gives a mail another transfer encoding.
func reencode(text, encoding string) string {
	header, body, _ := strings.Cut(text, "\n\n")
	header = strings.Replace(header, "Encoding: 8bit", "Encoding: "+encoding, 1)
	var out bytes.Buffer
	switch encoding {
	case "base64":
		encoded := base64.StdEncoding.EncodeToString([]byte(body))
		for len(encoded) > 76 {
			out.WriteString(encoded[:76] + "\n")
			encoded = encoded[76:]
		}
		out.WriteString(encoded + "\n")
	case "quoted-printable":
		w := quotedprintable.NewWriter(&out)
		_, _ = w.Write([]byte(body))
		_ = w.Close()
	}
	return header + "\n\n" + strings.ReplaceAll(out.String(), "\r\n", "\n")
}

// TestTransport: whatever a mail has gone through, the diffs are the same bytes.
func TestTransport(t *testing.T) {
	cover := letter("[PATCH net-next v2 0/2]", 0, "")
	one, two := letter("[PATCH net-next v2 1/2]", 1, change(1)), letter("[PATCH net-next v2 2/2]", 2, change(2))
	plain := box(cover, one, two)
	want, err := load(t, plain, 0)
	if err != nil {
		t.Fatal(err)
	}
	if len(want.Patches) != 2 || want.Revision != 2 || want.Name != "net: change 0" || want.Cover == "" || want.MessageID == "" {
		t.Fatalf("series %+v", want)
	}
	if d := cmp.Diff([]string{change(1), change(2)}, diffs(want)); d != "" {
		t.Errorf("diffs: %s", d)
	}

	var zipped bytes.Buffer
	w := gzip.NewWriter(&zipped)
	_, _ = w.Write([]byte(plain))
	_ = w.Close()
	_, oneBody, _ := strings.Cut(one, "\n\n")
	text, patch, _ := strings.Cut(oneBody, "---\n")
	parts := "From: Ada Example <ada@example.org>\nMessage-Id: <p@example.org>\nSubject: [PATCH net-next v2 1/2] net: change 1\nMIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=\"B\"\n\n--B\nContent-Type: text/plain\n\n" + text +
		"\n--B\nContent-Type: text/x-patch; charset=utf-8\nContent-Disposition: attachment; filename=1.patch\nContent-Transfer-Encoding: 8bit\n\n---\n" + patch + "\n--B\nContent-Type: application/pgp-signature\n\nxx\n--B--\n"

	for name, text := range map[string]string{
		"out of order":       box(two, cover, one),
		"without cover":      box(one, two),
		"CR LF":              strings.ReplaceAll(plain, "\n", "\r\n"),
		"base64":             box(cover, reencode(one, "base64"), two),
		"quoted-printable":   box(cover, one, reencode(two, "quoted-printable")),
		"gzip":               zipped.String(),
		"attachment":         box(cover, parts, two),
		"delivered twice":    box(cover, one, two, two),
		"with replies":       box(cover, one, strings.Replace(letter("[PATCH net-next v2 1/2]", 9, change(9)), "Subject: ", "Subject: Re: ", 1), two),
		"with an older one":  box(letter("[PATCH net-next 1/1]", 7, change(7)), cover, one, two),
		"with a stray diff":  box(cover, one, two, letter("[FYI]", 8, change(8))),
		"list footer":        box(cover, one+"_______\nlist mailing list\nlist@example.org\n", two),
		"trimmed blanks":     box(cover, one, strings.Replace(two, "\n }\n", "\n }\n", 1)),
		"encoded subject":    box(cover, strings.Replace(one, "Subject: [PATCH net-next v2 1/2] net: change 1", "Subject: =?UTF-8?q?=5BPATCH=20net-next=20v2=201/2=5D=20net=3A?=\n =?UTF-8?q?=20change=201?=", 1), two),
		"glued revision":     box(strings.Replace(one, "PATCH net-next v2", "PATCHv2 net-next", 1), two),
		"no word PATCH":      box(strings.Replace(one, "[PATCH net-next v2", "[net-next v2", 1), two),
		"some interdiff":     box(strings.Replace(cover, "Words.\n", "Words.\n\n@@ -1,9 +1 @@\n-cut\n", 1), one, two),
		"git's own envelope": strings.Replace(plain, "From git@z Thu Jan  1 00:00:00 1970", "From 0123456789abcdef0123456789abcdef01234567 Mon Sep 17 00:00:00 2001", 3),
	} {
		got, err := load(t, text, 0)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if d := cmp.Diff(diffs(want), diffs(got)); d != "" {
			t.Errorf("%s: %s", name, d)
		}
		if got.Revision != 2 || got.Patches[0].Subject != "net: change 1" || got.Patches[0].Author != "Ada Example <ada@example.org>" || got.Patches[1].File != "0002-net-change-2.patch" {
			t.Errorf("%s: revision %d, patches %+v", name, got.Revision, got.Patches)
		}
	}

	older, err := load(t, box(letter("[PATCH net-next]", 7, change(7)), cover, one, two), 1)
	if err != nil || len(older.Patches) != 1 || older.Revision != 1 {
		t.Errorf("revision 1: %+v, %v", older, err)
	}
}

// TestErrors holds every way in which a mailbox can be none, with what the user
// is told.
func TestErrors(t *testing.T) {
	cover := letter("[PATCH v2 0/3]", 0, "")
	one, two, three := letter("[PATCH v2 1/3]", 1, change(1)), letter("[PATCH v2 2/3]", 2, change(2)), letter("[PATCH v2 3/3]", 3, change(3))
	var out strings.Builder
	for _, test := range []struct {
		name     string
		text     string
		revision int
	}{
		{"empty", "", 0},
		{"not a mailbox", "hello\nworld\n", 0},
		{"binary", "\x00\x01\x02\xff\xfe", 0},
		{"mail without a patch", box(letter("Question:", 1, "")), 0},
		{"discussion", box(letter("Question:", 1, ""), letter("Re:", 2, "")), 0},
		{"patch missing", box(cover, one, three), 0},
		{"patch there twice", box(cover, one, two, three, letter("[PATCH v2 2/3]", 22, change(22))), 0},
		{"no diff in a patch", box(cover, one, letter("[PATCH v2 2/3]", 2, ""), three), 0},
		{"two series", box(one, two, three, letter("[PATCH v2 4/4]", 4, change(4))), 0},
		{"number too large", box(one, two, three, letter("[PATCH v2 5/3]", 5, change(5))), 0},
		{"one without number", box(one, two, three, letter("[PATCH v2]", 5, change(5))), 0},
		{"cut in a hunk", box(cover, one, two, strings.Split(three, "\n }\n")[0]+"\n"), 0},
		{"cut in the first file's header", box(strings.Split(letter("[PATCH]", 1, change(1)), "+++")[0]), 0},
		{"no such revision", box(cover, one, two, three), 7},
		{"gzip cut off", "\x1f\x8b\x08\x00", 0},
	} {
		_, err := load(t, test.text, test.revision)
		fmt.Fprintf(&out, "%s:\n    %v\n", test.name, err)
		if err == nil || !strings.HasPrefix(err.Error(), "usage: ") {
			t.Errorf("%s: %v", test.name, err)
		}
	}
	golden := filepath.Join("testdata", "errors.golden")
	if *update {
		if err := os.WriteFile(golden, []byte(out.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), out.String()); d != "" {
		t.Errorf("errors (rewrite with -update): %s", d)
	}
}

func write(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "my-series")
	for name, text := range files {
		full := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(full, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestDirectory(t *testing.T) {
	plain := func(n int) string {
		text := strings.SplitAfter(change(n), "\n")
		header := fmt.Sprintf("Index: linux/net/file%d.c\n===================\n--- linux.orig/net/file%d.c\t2024-01-01 10:00:00.000 +0000\n+++ linux/net/file%d.c\t2024-01-02 10:00:00.000 +0000\n", n, n, n)
		return "net: change " + fmt.Sprint(n) + "\n\nWords of a quilt patch.\n\n" + header + strings.Join(text[4:], "")
	}
	// What quilt does not know, git's header has.
	withoutIndex := func(n int) string { return strings.Replace(change(n), "index 1..2 100644\n", "", 1) }
	for _, test := range []struct {
		name     string
		files    map[string]string
		revision int
		subjects []string
		diffs    []string
		err      string
	}{
		{
			name:     "by name",
			files:    map[string]string{"0002-b.patch": letter("[PATCH v2 2/2]", 2, change(2)), "0001-a.patch": letter("[PATCH v2 1/2]", 1, change(1)), "0000-cover-letter.patch": letter("[PATCH v2 0/2]", 0, ""), "notes.txt": "x", "x.patch.orig": "x"},
			subjects: []string{"net: change 1", "net: change 2"}, diffs: []string{change(1), change(2)},
		},
		{
			name:     "quilt",
			files:    map[string]string{"series": "# order\nz.patch -p1 # first\n\nsub/a.diff\n", "z.patch": plain(1), "sub/a.diff": plain(2), "unused.patch": "nonsense"},
			subjects: []string{"net: change 1", "net: change 2"}, diffs: []string{withoutIndex(1), withoutIndex(2)},
		},
		{name: "bare diff", files: map[string]string{"a.patch": change(1)}, subjects: []string{"(no subject)"}, diffs: []string{change(1)}},
		{name: "CR LF", files: map[string]string{"a.patch": strings.ReplaceAll(letter("[PATCH]", 1, change(1)), "\n", "\r\n")}, subjects: []string{"net: change 1"}, diffs: []string{change(1)}},
		{
			name: "revision in a sub-directory", revision: 2,
			files:    map[string]string{"v1/a.patch": letter("[PATCH]", 1, change(1)), "v2/a.patch": letter("[PATCH v2]", 2, change(2))},
			subjects: []string{"net: change 2"}, diffs: []string{change(2)},
		},
		{name: "another revision", revision: 3, files: map[string]string{"a.patch": letter("[PATCH v2]", 1, change(1))}, err: "holds revision v2, not v3"},
		{name: "no patches", files: map[string]string{"readme": "x"}, err: "holds no patches"},
		{name: "patch without diff", files: map[string]string{"0001-a.patch": "words\n"}, err: "0001-a.patch: holds no diff"},
		{name: "damaged", files: map[string]string{"0001-a.patch": strings.Replace(change(1), " }\n", "", 1)}, err: "0001-a.patch: the diff is damaged or cut off"},
		{name: "quilt names nothing", files: map[string]string{"series": "gone.patch\n"}, err: `names gone.patch, which is not there`},
		{name: "quilt leaves the directory", files: map[string]string{"series": "../../etc/passwd\n"}, err: "outside of the directory"},
		{name: "quilt with -p0", files: map[string]string{"series": "a.patch -p0\n", "a.patch": change(1)}, err: "only -p1 is supported"},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := series.Load(t.Context(), write(t, test.files), series.Options{Revision: test.revision})
			if test.err != "" {
				if fault.Of(err) != fault.Usage || !strings.Contains(err.Error(), test.err) {
					t.Errorf("got %v, want %q", err, test.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var subjects []string
			for _, patch := range got.Patches {
				subjects = append(subjects, patch.Subject)
				if len(patch.SHA256) != 64 || len(patch.Mail) == 0 {
					t.Errorf("patch %+v", patch)
				}
				if _, err := os.Stat(filepath.Join(got.Directory, patch.File)); err != nil {
					t.Errorf("a patch is not in the directory of the series: %v", err)
				}
			}
			if d := cmp.Diff(test.subjects, subjects); d != "" {
				t.Error(d)
			}
			if d := cmp.Diff(test.diffs, diffs(got)); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestNone(t *testing.T) {
	got, err := series.Load(t.Context(), "none", series.Options{})
	if err != nil || got.Name != "none" || got.Spec != "none" || len(got.Patches) != 0 {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestUnknownSpec(t *testing.T) {
	for _, spec := range []string{"no/such/directory", "lore:v99", "lore:latest", "https://lore.kernel.org/netdev/", "mbox:/no/such/file", ""} {
		_, err := series.Load(t.Context(), spec, series.Options{})
		if fault.Of(err) != fault.Usage {
			t.Errorf("%q: %v (%v)", spec, err, fault.Of(err))
		}
	}
}

// TestSmallSeriesApplies closes the circle: renames, modes, umlauts and missing
// newlines survive the way through the parser into a tree.
func TestSmallSeriesApplies(t *testing.T) {
	s, err := series.Load(t.Context(), "testdata/small", series.Options{})
	if err != nil {
		t.Fatal(err)
	}
	got, err := tree.Apply(t.Context(), &source.Kernel{Dir: "testdata/base", ID: "base"}, s, tree.Options{NoFuzz: true})
	if err != nil {
		t.Fatal(err)
	}
	if got.Mode["net/check.sh"] != 0o755 || !bytes.Contains(got.Overlay["net/check.sh"], []byte("Grüße")) || !bytes.HasSuffix(got.Overlay["net/steps.c"], []byte("at the end */")) {
		t.Errorf("modes %v", got.Mode)
	}
	if d := cmp.Diff([]string{"net/core.c"}, got.Deleted); d != "" {
		t.Error(d)
	}
}
