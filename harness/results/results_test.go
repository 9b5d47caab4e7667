// SPDX-License-Identifier: BSD-3-Clause

package results_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/zcvet/zcvet/harness/fault"
	"github.com/zcvet/zcvet/harness/results"
	"github.com/zcvet/zcvet/harness/verdict"
)

var started = time.Date(2026, 11, 22, 15, 4, 5, 0, time.UTC)

func TestEachRunGetsItsOwnDirectory(t *testing.T) {
	t.Chdir(t.TempDir())
	var paths []string
	for range 2 {
		d, err := results.Create("", started, "patches/6.12", "linux 6.12.95")
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		paths = append(paths, d.Path)
	}
	want := []string{
		"results/20261122-150405-patches-6.12-linux-6.12.95",
		"results/20261122-150405-patches-6.12-linux-6.12.95.2",
	}
	if diff := cmp.Diff(want, paths); diff != "" {
		t.Error(diff)
	}
	target, err := os.Readlink("results/latest")
	if err != nil || filepath.Join("results", target) != want[1] {
		t.Errorf("latest points at %q, %v", target, err)
	}
}

func TestWriteLeavesEveryForm(t *testing.T) {
	path := filepath.Join(t.TempDir(), "out")
	d, err := results.Create(path, started)
	if err != nil {
		t.Fatal(err)
	}
	for _, number := range []int{1, 2, 1} {
		console, err := d.Console(number)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := fmt.Fprintf(console, "machine %d\n", number); err != nil {
			t.Fatal(err)
		}
	}
	evidence, err := d.Evidence("poll/edge/tcp/ipv4/nic", "pcapng")
	if err != nil {
		t.Fatal(err)
	}
	evidence.Close()
	run := &verdict.Run{Cases: []verdict.Case{{ID: "a", Name: "a", Status: verdict.Pass, Level: verdict.Must}}}
	run.Decide(verdict.Policy{}, nil)
	if err := d.Write(run); err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"run.json", "results.ktap", "junit.xml", "report.md", "report.html", "report.txt", "console.log", "evidence/poll_edge_tcp_ipv4_nic.pcapng"} {
		if _, err := os.Stat(filepath.Join(path, name)); err != nil {
			t.Error(err)
		}
	}
	file, err := os.Open(filepath.Join(path, "run.json"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	read, err := verdict.Read(file)
	if err != nil {
		t.Fatal(err)
	}
	if read.Totals.Pass != 1 || read.Exit.Code != 0 {
		t.Errorf("read back: %+v", read)
	}
}

func TestAnEarlierRunIsReplacedButNothingElse(t *testing.T) {
	path := filepath.Join(t.TempDir(), "out")
	for range 2 {
		d, err := results.Create(path, started)
		if err != nil {
			t.Fatal(err)
		}
		d.Close()
	}
	precious := t.TempDir()
	if err := os.WriteFile(filepath.Join(precious, "thesis.tex"), nil, 0o666); err != nil {
		t.Fatal(err)
	}
	if _, err := results.Create(precious, started); fault.Of(err) != fault.Usage {
		t.Errorf("a directory of somebody else's: %v, want a usage error", err)
	}
	if _, err := os.Stat(filepath.Join(precious, "thesis.tex")); err != nil {
		t.Error(err)
	}
}

func TestUnwritablePlaceIsInfrastructure(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o666); err != nil {
		t.Fatal(err)
	}
	_, err := results.Create(filepath.Join(file, "out"), started)
	if fault.Of(err) != fault.Infrastructure {
		t.Errorf("%v", err)
	}
}
