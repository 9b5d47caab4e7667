// SPDX-License-Identifier: BSD-3-Clause

package series_test

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/zcvet/zcvet/harness/fault"
	"github.com/zcvet/zcvet/harness/series"
	"github.com/zcvet/zcvet/harness/series/loretest"
	"github.com/zcvet/zcvet/patches"
)

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
			mails, ids := loretest.Mails(t, dir)
			url := loretest.Serve(t, mails)
			want, err := series.Load(t.Context(), dir, series.Options{})
			if err != nil {
				t.Fatal(err)
			}
			file := filepath.Join(t.TempDir(), "series.mbox")
			if err := os.WriteFile(file, loretest.Mbox(mails), 0o644); err != nil {
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

// TestNamedRevision has the next revision sent as a reply to the one before, as
// many do: b4 alone would take the newest.
func TestNamedRevision(t *testing.T) {
	mails, ids := loretest.Mails(t, "testdata/small")
	const next = "next-1-ada@example.org"
	newer := []byte("From: Ada Example <ada@example.org>\nTo: " + loretest.Address + "\nDate: Mon, 1 Jan 2024 10:00:00 +0000\nMessage-Id: <" + next + ">\n" +
		"In-Reply-To: <" + ids[0] + ">\nReferences: <" + ids[0] + ">\nSubject: [PATCH net-next v4] net: all in one\n\nText\n\n" +
		"Signed-off-by: Ada Example <ada@example.org>\n---\n" +
		"diff --git a/include/core.h b/include/core.h\nindex 1..2 100644\n--- a/include/core.h\n+++ b/include/core.h\n@@ -1,2 +1,2 @@\n /* SPDX-License-Identifier: GPL-2.0 */\n-#define LIMIT\t8\n+#define LIMIT\t32\n-- \n2.39.5\n")
	url := loretest.Serve(t, append(mails, newer))
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
	gone := httptest.NewServer(http.NotFoundHandler())
	gone.Close()
	_, err := series.Load(t.Context(), "a@example.org", series.Options{Lore: gone.URL + "/netdev"})
	classed, ok := errors.AsType[*fault.Error](err)
	if !ok || classed.Class != fault.Infrastructure || classed.Output == "" || classed.Advice == "" {
		t.Errorf("got %v", err)
	}
}
