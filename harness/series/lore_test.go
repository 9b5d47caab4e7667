// SPDX-License-Identifier: BSD-3-Clause

package series_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/zcvet/zcvet/harness/fault"
	"github.com/zcvet/zcvet/harness/series"
	"github.com/zcvet/zcvet/patches"
)

const listAddress = "netdev@example.org"

// asMails turns the patch files of a directory into mails as git send-email
// sends them: addressed to the list, with ids, the patches as replies to the
// first. Ids given in the files are kept.
func asMails(t *testing.T, dir string) (mails [][]byte, ids []string) {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "*.patch"))
	if err != nil || len(names) == 0 {
		t.Fatalf("no patches in %s: %v", dir, err)
	}
	given := regexp.MustCompile(`(?im)^message-id: <(.*)>$`)
	for i, name := range names {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		_, text, _ := strings.Cut(string(data), "\n") // the envelope line
		header, body, _ := strings.Cut(text, "\n\n")
		id := fmt.Sprintf("20240101000000.1234-%d-ada@example.org", i+1)
		if m := given.FindStringSubmatch(header); m != nil {
			id = m[1]
		} else {
			header += "\nMessage-Id: <" + id + ">"
			if i > 0 {
				header += "\nIn-Reply-To: <" + ids[0] + ">\nReferences: <" + ids[0] + ">"
			}
		}
		if !strings.Contains(header, "Content-Type:") {
			header += "\nMIME-Version: 1.0\nContent-Type: text/plain; charset=UTF-8\nContent-Transfer-Encoding: 8bit"
		}
		mails = append(mails, []byte(header+"\nTo: "+listAddress+"\n\n"+body))
		ids = append(ids, id)
	}
	return mails, ids
}

// serve runs a real public-inbox with the given mails until the test ends, and
// returns the URL of the inbox.
func serve(t *testing.T, mails [][]byte) string {
	t.Helper()
	if testing.Short() {
		t.Skip("needs public-inbox and b4, which -short leaves out")
	}
	for _, tool := range []string{"public-inbox-init", "public-inbox-index", "public-inbox-httpd", "b4"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Fatalf("%v: install public-inbox and b4, or test with -short", err)
		}
	}
	home := t.TempDir()
	environment := append(os.Environ(), "HOME="+home, "PI_CONFIG="+filepath.Join(home, "config"), "GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=/dev/null",
		"GIT_AUTHOR_NAME=test", "GIT_AUTHOR_EMAIL=test@example.org", "GIT_COMMITTER_NAME=test", "GIT_COMMITTER_EMAIL=test@example.org")

	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	socket, err := listener.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	listener.Close()
	url := "http://" + listener.Addr().String() + "/netdev"

	run := func(stdin []byte, name string, args ...string) {
		t.Helper()
		command := exec.Command(name, args...)
		command.Env, command.Stdin = environment, bytes.NewReader(stdin)
		if out, err := command.CombinedOutput(); err != nil {
			t.Fatalf("%s %v: %v\n%s", name, args, err, out)
		}
	}
	run(nil, "public-inbox-init", "-V2", "-L", "basic", "-j", "1", "netdev", filepath.Join(home, "netdev"), url, listAddress)
	// The archive's own format: a commit per mail, which holds it as the file
	// "m". Delivering each with public-inbox-mda would take a second per mail.
	var commits bytes.Buffer
	for i, mail := range mails {
		fmt.Fprintf(&commits, "commit refs/heads/master\ncommitter test <test@example.org> %d +0000\ndata 4\nmail\n", 1700000000+i)
		fmt.Fprintf(&commits, "M 100644 inline m\ndata %d\n%s\n", len(mail), mail)
	}
	run(commits.Bytes(), "git", "--git-dir="+filepath.Join(home, "netdev/git/0.git"), "fast-import", "--quiet")
	run(nil, "public-inbox-index", "-j", "0", filepath.Join(home, "netdev"))

	// The socket is handed over as systemd does it: no port can be taken in between.
	ctx, cancel := context.WithCancel(context.Background())
	var output bytes.Buffer
	server := exec.CommandContext(ctx, "sh", "-c", "LISTEN_PID=$$ LISTEN_FDS=1 exec public-inbox-httpd -W0")
	server.Env, server.ExtraFiles = environment, []*os.File{socket}
	server.Stdout, server.Stderr = &output, &output
	server.WaitDelay = 5 * time.Second
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		_ = server.Wait()
		if t.Failed() {
			t.Logf("public-inbox-httpd: %s", &output)
		}
	})
	return url
}

// seriesUnderTest is our reference series once it exists, so that the one that
// users start with is what is tested.
func seriesUnderTest(t *testing.T) string {
	t.Helper()
	const reference = "../../patches/6.12"
	if names, err := filepath.Glob(filepath.Join(reference, "*.patch")); err == nil && len(names) > 1 {
		return reference
	}
	return "testdata/small"
}

func diffs(s *series.Series) []string {
	var out []string
	for _, patch := range s.Patches {
		out = append(out, string(patch.Diff))
	}
	return out
}

func TestEveryWayGivesTheSameDiffs(t *testing.T) {
	dirs := []string{"testdata/small"}
	if reference := seriesUnderTest(t); reference != dirs[0] {
		dirs = append(dirs, reference)
	}
	for _, dir := range dirs {
		t.Run(filepath.Base(dir), func(t *testing.T) {
			t.Parallel()
			mails, ids := asMails(t, dir)
			url := serve(t, mails)
			want, err := series.Load(t.Context(), dir, series.Options{})
			if err != nil {
				t.Fatal(err)
			}
			file := filepath.Join(t.TempDir(), "series.mbox")
			if err := os.WriteFile(file, mboxrd(mails), 0o644); err != nil {
				t.Fatal(err)
			}
			for _, spec := range []string{ids[0], "<" + ids[len(ids)-1] + ">", url + "/" + ids[0] + "/", url + "/" + ids[1] + "/T/#u", "mbox:" + file, file} {
				got, err := series.Load(t.Context(), spec, series.Options{Lore: url})
				if err != nil {
					classed, _ := errors.AsType[*fault.Error](err)
					t.Errorf("%s: %v\n%s", spec, err, classed.Output)
					continue
				}
				if d := cmp.Diff(diffs(want), diffs(got)); d != "" {
					t.Errorf("%s: diffs: %s", spec, d)
				}
				if got.Revision != want.Revision || got.Name != want.Name || got.MessageID != ids[0] {
					t.Errorf("%s: revision %d, name %q, id %q", spec, got.Revision, got.Name, got.MessageID)
				}
				for i := range got.Patches {
					if got.Patches[i].Subject != want.Patches[i].Subject {
						t.Errorf("%s: subject %q, want %q", spec, got.Patches[i].Subject, want.Patches[i].Subject)
					}
				}
			}
		})
	}
}

// mboxrd writes mails as public-inbox does.
func mboxrd(mails [][]byte) []byte {
	var out bytes.Buffer
	quote := regexp.MustCompile(`(?m)^(>*From )`)
	for _, mail := range mails {
		out.WriteString("From mboxrd@z Thu Jan  1 00:00:00 1970\n")
		out.Write(quote.ReplaceAll(mail, []byte(">$1")))
		out.WriteString("\n")
	}
	return out.Bytes()
}

// TestNamedRevision has the next revision sent as a reply to the one before, as
// many do: b4 alone would take the newest.
func TestNamedRevision(t *testing.T) {
	mails, ids := asMails(t, "testdata/small")
	const next = "next-1-ada@example.org"
	newer := []byte("From: Ada Example <ada@example.org>\nTo: " + listAddress + "\nDate: Mon, 1 Jan 2024 10:00:00 +0000\nMessage-Id: <" + next + ">\n" +
		"In-Reply-To: <" + ids[0] + ">\nReferences: <" + ids[0] + ">\nSubject: [PATCH net-next v4] net: all in one\n\nText\n\n" +
		"Signed-off-by: Ada Example <ada@example.org>\n---\n" +
		"diff --git a/include/core.h b/include/core.h\nindex 1..2 100644\n--- a/include/core.h\n+++ b/include/core.h\n@@ -1,2 +1,2 @@\n /* SPDX-License-Identifier: GPL-2.0 */\n-#define LIMIT\t8\n+#define LIMIT\t32\n-- \n2.39.5\n")
	url := serve(t, append(mails, newer))
	for _, test := range []struct {
		name     string
		spec     string
		revision int
		want     int
		patches  int
	}{
		{"old one by id", ids[0], 0, 3, 3},
		{"new one by id", next, 0, 4, 1},
		{"new one by number", ids[0], 4, 4, 1},
		{"old one by number", next, 3, 3, 3},
	} {
		got, err := series.Load(t.Context(), test.spec, series.Options{Lore: url, Revision: test.revision})
		if err != nil {
			t.Errorf("%s: %v", test.name, err)
			continue
		}
		if got.Revision != test.want || len(got.Patches) != test.patches {
			t.Errorf("%s: v%d with %d patches, want v%d with %d", test.name, got.Revision, len(got.Patches), test.want, test.patches)
		}
	}

	manifest := &patches.Manifest{Revisions: []patches.Revision{
		{Revision: 3, Patches: 3, ABI: "v6", Postings: []patches.Posting{{MessageID: ids[0]}}},
		{Revision: 4, Patches: 2, ABI: "v7", Postings: []patches.Posting{{MessageID: next}}},
	}}
	got, err := series.Load(t.Context(), "lore:v3", series.Options{Lore: url, Manifest: manifest})
	if err != nil {
		t.Fatal(err)
	}
	if got.Revision != 3 || got.ABI != "v6" || got.MessageID != ids[0] || got.Spec != "lore:v3" {
		t.Errorf("lore:v3 is %+v", got)
	}
	if _, err := series.Load(t.Context(), "lore:", series.Options{Lore: url, Manifest: manifest}); fault.Of(err) != fault.Infrastructure || !strings.Contains(err.Error(), "1 patches of v4, there should be 2") {
		t.Errorf("fewer patches than the manifest says: %v", err)
	}

	if _, err := series.Load(t.Context(), "nobody@example.org", series.Options{Lore: url}); fault.Of(err) != fault.Usage {
		t.Errorf("an unknown id: %v (%v)", err, fault.Of(err))
	}
	if _, err := series.Load(t.Context(), ids[0], series.Options{Lore: url, Revision: 9}); fault.Of(err) != fault.Usage {
		t.Errorf("an unknown revision: %v (%v)", err, fault.Of(err))
	}
}

func TestArchiveDoesNotAnswer(t *testing.T) {
	if testing.Short() {
		t.Skip("needs b4, which -short leaves out")
	}
	broken := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) }))
	defer broken.Close()
	gone := httptest.NewServer(http.NotFoundHandler())
	gone.Close()
	for name, url := range map[string]string{"refused": gone.URL} {
		_, err := series.Load(t.Context(), "a@example.org", series.Options{Lore: url + "/netdev"})
		classed, ok := errors.AsType[*fault.Error](err)
		if !ok || classed.Class != fault.Infrastructure || classed.Output == "" || classed.Advice == "" {
			t.Errorf("%s: %v", name, err)
		}
	}
}
