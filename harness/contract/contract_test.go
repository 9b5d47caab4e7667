// SPDX-License-Identifier: BSD-3-Clause

package contract_test

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/zcvet/zcvet/harness/contract"
)

type part struct {
	Names []string `json:"names"`
	Rare  []string `json:"rare,omitempty"`
}

type file struct {
	Schema int       `json:"schema"`
	Parts  []part    `json:"parts"`
	One    part      `json:"one"`
	Last   *part     `json:"last"`
	None   *part     `json:"none"`
	When   time.Time `json:"when"`
	Text   string    `json:"text"`
}

func sample() *file {
	return &file{Schema: 3, Parts: []part{{}, {Names: []string{"a"}, Rare: []string{"b"}}}, Last: &part{}, When: time.Unix(0, 0).UTC(), Text: "Name <a@b> & co"}
}

func TestWriteLeavesNoListNil(t *testing.T) {
	value := sample()
	var text bytes.Buffer
	if err := contract.Write(&text, value); err != nil {
		t.Fatal(err)
	}
	const want = `{
  "schema": 3,
  "parts": [
    {
      "names": []
    },
    {
      "names": [
        "a"
      ],
      "rare": [
        "b"
      ]
    }
  ],
  "one": {
    "names": []
  },
  "last": {
    "names": []
  },
  "none": null,
  "when": "1970-01-01T00:00:00Z",
  "text": "Name <a@b> & co"
}
`
	if d := cmp.Diff(want, text.String()); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	if d := cmp.Diff(sample(), value); d != "" {
		t.Errorf("the value itself was changed (-want +got):\n%s", d)
	}
}

func TestRead(t *testing.T) {
	got, err := contract.Read[file](strings.NewReader(`{"schema": 3, "text": "x", "later": 1}`), "file.json", 3)
	if err != nil || got.Text != "x" {
		t.Errorf("%+v, %v", got, err)
	}
	for text, want := range map[string]string{
		`{"schema": 4, "text": {"another": "form"}}`: "file.json: schema 4, this zcvet reads schema 3",
		`{}`:                        "file.json: schema 0, this zcvet reads schema 3",
		`{"schema": 3`:              "file.json: unexpected end of JSON input",
		`{"schema": 3, "text": 5}`:  "file.json: json: cannot unmarshal number",
		`{"schema": 3} {"more": 1}`: "file.json: invalid character",
	} {
		if _, err := contract.Read[file](strings.NewReader(text), "file.json", 3); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%s: %v, want %s", text, err, want)
		}
	}
}
