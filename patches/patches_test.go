// SPDX-License-Identifier: BSD-3-Clause

package patches_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/zcvet/zcvet/patches"
)

func TestManifest(t *testing.T) {
	m, err := patches.Load()
	if err != nil {
		t.Fatal(err)
	}
	for n := 1; n <= 8; n++ {
		r := m.Find(n)
		if r == nil || r.ABI != fmt.Sprintf("v%d", n) {
			t.Fatalf("v%d: %+v", n, r)
		}
		for i, posting := range r.Postings {
			// The date is the head of each message-id: a slip of the pen in one shows.
			if !strings.HasPrefix(posting.MessageID, strings.ReplaceAll(posting.Date, "-", "")) {
				t.Errorf("v%d posting %d: %s on %s", n, i, posting.MessageID, posting.Date)
			}
			for mail := 1; mail <= r.Patches+1; mail++ {
				id := strings.Replace(posting.MessageID, "-1-zijianzhang", fmt.Sprintf("-%d-zijianzhang", mail), 1)
				if got := m.ByMessageID(id); got != r {
					t.Errorf("%s is of %+v", id, got)
				}
			}
		}
	}
	if got := m.Find(4).Latest().Date; got != "2024-05-28" {
		t.Errorf("the second posting of v4 counts, got %s", got)
	}
	if m.Find(9) != nil || m.ByMessageID("other@example.org") != nil {
		t.Error("a revision nobody posted")
	}
}

func TestParseRefuses(t *testing.T) {
	for name, text := range map[string]string{
		"no JSON":       "revisions:",
		"empty":         "{}",
		"descending":    `{"revisions":[{"revision":2,"patches":1,"abi":"v2","postings":[{"message_id":"a@b"}]},{"revision":1,"patches":1,"abi":"v1","postings":[{"message_id":"a@b"}]}]}`,
		"no posting":    `{"revisions":[{"revision":1,"patches":1,"abi":"v1"}]}`,
		"no profile":    `{"revisions":[{"revision":1,"patches":1,"postings":[{"message_id":"a@b"}]}]}`,
		"no message-id": `{"revisions":[{"revision":1,"patches":1,"abi":"v1","postings":[{"date":"2024-01-01"}]}]}`,
	} {
		if _, err := patches.Parse([]byte(text)); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}
