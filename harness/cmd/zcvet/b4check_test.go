// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"bytes"
	"encoding/json"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/zcvet/zcvet/harness/checkout"
	"github.com/zcvet/zcvet/harness/series/loretest"
)

// TestB4Check does what b4 review does with its hook: the cover letter, or the first
// patch if there is none, on standard input, and an archive to get the rest from.
func TestB4Check(t *testing.T) {
	if testing.Short() {
		t.Skip("needs kernels and virtual machines, which -short leaves out")
	}
	root, err := checkout.Find()
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		series, status, summary string
	}{
		{"6.12", "pass", "PASS: 5 passed"},
		{"testdata/does-not-apply", "fail", "net/ipv4/udp.c"},
	} {
		t.Run(filepath.Base(test.series), func(t *testing.T) {
			mails, ids := loretest.Mails(t, filepath.Join(root, "patches", test.series))
			command, dir := start(t, "b4-check", "--kernel", "6.12", "--suite", "option/values")
			data := t.TempDir()
			command.Env = append(command.Env, "ZCVET_LORE="+loretest.Serve(t, mails), "XDG_DATA_HOME="+data)
			command.Stdin = bytes.NewReader(mails[0])
			var out, talk bytes.Buffer
			command.Stdout, command.Stderr = &out, &talk
			if err := command.Run(); err != nil {
				t.Fatalf("%v\n%s", err, &talk)
			}
			var results []map[string]string
			if err := json.Unmarshal(out.Bytes(), &results); err != nil || len(results) != 1 {
				t.Fatalf("%v\n%s", err, &out)
			}
			got := results[0]
			if got["tool"] != "zcvet" || got["status"] != test.status || !strings.Contains(got["summary"], test.summary) {
				t.Errorf("%v\n%s", got, &talk)
			}
			report, err := url.Parse(got["url"])
			if err != nil {
				t.Fatal(err)
			}
			if _, err := os.Stat(report.Path); err != nil || !strings.HasPrefix(report.Path, filepath.Join(data, "zcvet", "reviews", ids[0])) {
				t.Errorf("the report is said to be at %s: %v", got["url"], err)
			}
			if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
				t.Errorf("left in the working directory: %v, %v", left, err)
			}
		})
	}
}
