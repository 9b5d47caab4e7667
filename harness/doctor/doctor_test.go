// SPDX-License-Identifier: BSD-3-Clause

package doctor_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"slices"
	"strings"
	"testing"

	"github.com/zcvet/zcvet/harness/doctor"
	"github.com/zcvet/zcvet/harness/fault"
)

// healthy is a machine that has everything.
func healthy() doctor.Host {
	return doctor.Host{
		LookPath: func(name string) (string, error) { return "/usr/bin/" + name, nil },
		Stat:     func(string) (fs.FileInfo, error) { return nil, nil },
		Output: func(_ context.Context, name string, _ ...string) (string, error) {
			if name == "go" {
				return "go1.26.8\n", nil
			}
			return "QEMU emulator version 8.2.2 (Debian 1:8.2.2+ds-0ubuntu1.2)\n", nil
		},
		OpenKVM:  func() error { return nil },
		FreeDisk: func(string) (uint64, error) { return 100 << 30, nil },
		Memory:   func() (uint64, error) { return 16 << 30, nil },
		Cores:    func() int { return 4 },
		Groups:   func() []string { return nil },
	}
}

func find(t *testing.T, checks []doctor.Check, name string) doctor.Check {
	t.Helper()
	at := slices.IndexFunc(checks, func(check doctor.Check) bool { return check.Name == name })
	if at < 0 {
		t.Fatalf("no check %q", name)
	}
	return checks[at]
}

func TestHealthy(t *testing.T) {
	checks := doctor.Examine(t.Context(), doctor.Options{CacheDir: "/cache", Host: healthy()})
	for _, check := range checks {
		if !check.OK || check.Fix != "" {
			t.Errorf("%+v", check)
		}
	}
	if err := doctor.Err(checks); err != nil {
		t.Error(err)
	}
}

func TestSick(t *testing.T) {
	missing := func(what string) func(string) (string, error) {
		return func(name string) (string, error) {
			if name == what {
				return "", errors.New("not found")
			}
			return "/usr/bin/" + name, nil
		}
	}
	for _, test := range []struct {
		name     string
		change   func(*doctor.Host)
		check    string
		fix      string
		required bool
	}{
		{"no bison", func(h *doctor.Host) { h.LookPath = missing("bison") }, "bison", "apt-get install bison", true},
		{"no qemu", func(h *doctor.Host) { h.LookPath = missing("qemu-system-x86_64") }, "qemu-system-x86_64", "apt-get install qemu-system-x86", true},
		{"no headers", func(h *doctor.Host) {
			h.Stat = func(path string) (fs.FileInfo, error) {
				if strings.HasSuffix(path, "gelf.h") {
					return nil, fs.ErrNotExist
				}
				return nil, nil
			}
		}, "libelf-dev", "apt-get install libelf-dev", true},
		{"no sparse", func(h *doctor.Host) { h.LookPath = missing("sparse") }, "sparse", "apt-get install sparse", false},
		{"old qemu", func(h *doctor.Host) {
			h.Output = func(_ context.Context, name string, _ ...string) (string, error) {
				if name == "go" {
					return "go1.27", nil
				}
				return "QEMU emulator version 6.2.0", nil
			}
		}, "qemu", "QEMU 7 or newer", true},
		{"old go", func(h *doctor.Host) {
			h.Output = func(_ context.Context, name string, _ ...string) (string, error) {
				if name == "go" {
					return "go1.22.2", nil
				}
				return "QEMU emulator version 8.2.2", nil
			}
		}, "go", "install Go 1.26", true},
		{"no kvm", func(h *doctor.Host) { h.OpenKVM = func() error { return fs.ErrNotExist } }, "kvm", "virtualisation", false},
		{"kvm forbidden", func(h *doctor.Host) { h.OpenKVM = func() error { return fs.ErrPermission } }, "kvm", "usermod -aG kvm", false},
		{"kvm group useless", func(h *doctor.Host) {
			h.OpenKVM = func() error { return fs.ErrPermission }
			h.Groups = func() []string { return []string{"users", "kvm"} }
		}, "kvm", "udev rule", false},
		{"disk full", func(h *doctor.Host) { h.FreeDisk = func(string) (uint64, error) { return 1 << 30, nil } }, "disk", "cache prune", true},
		{"little memory", func(h *doctor.Host) { h.Memory = func() (uint64, error) { return 1 << 30, nil } }, "memory", "guest", true},
		{"one core", func(h *doctor.Host) { h.Cores = func() int { return 1 } }, "cores", "one core", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			host := healthy()
			test.change(&host)
			checks := doctor.Examine(t.Context(), doctor.Options{CacheDir: "/cache", Host: host})
			check := find(t, checks, test.check)
			if check.OK || check.Required != test.required || !strings.Contains(check.Fix, test.fix) {
				t.Errorf("%+v, want a fix with %q", check, test.fix)
			}
			if err := doctor.Err(checks); test.required != (fault.Of(err) == fault.Infrastructure) {
				t.Errorf("Err = %v", err)
			}
		})
	}
}

// The advice is one command, for everything at once.
func TestErrNamesThePackages(t *testing.T) {
	host := healthy()
	host.LookPath = func(name string) (string, error) {
		if name == "flex" || name == "bc" {
			return "", errors.New("not found")
		}
		return "/usr/bin/" + name, nil
	}
	err := doctor.Err(doctor.Examine(t.Context(), doctor.Options{Host: host}))
	classed, ok := errors.AsType[*fault.Error](err)
	if !ok || !strings.Contains(classed.Advice, "install --no-install-recommends flex bc") {
		t.Errorf("%+v", err)
	}
}

func TestSets(t *testing.T) {
	has := func(checks []doctor.Check, name string) bool {
		return slices.ContainsFunc(checks, func(check doctor.Check) bool { return check.Name == name })
	}
	run := doctor.Examine(t.Context(), doctor.Options{Host: healthy()})
	test := doctor.Examine(t.Context(), doctor.Options{Host: healthy(), Sets: []doctor.Set{doctor.Test}})
	if has(run, "public-inbox-httpd") || !has(test, "public-inbox-httpd") || !has(run, "sparse") || has(test, "sparse") {
		t.Error("the sets are mixed up")
	}
}

// Nothing on the real machine may make it fail or hang.
func TestRealMachine(t *testing.T) {
	checks := doctor.Examine(t.Context(), doctor.Options{CacheDir: t.TempDir() + "/not/there/yet"})
	if disk := find(t, checks, "disk"); !strings.Contains(disk.Detail, "free in") {
		t.Errorf("%+v", disk)
	}
	if memory := find(t, checks, "memory"); !strings.Contains(memory.Detail, "available") {
		t.Errorf("%+v", memory)
	}
}

func TestOutput(t *testing.T) {
	checks := []doctor.Check{
		{Name: "go", OK: true, Required: true, Detail: "go1.26.8"},
		{Name: "kvm", Detail: "no /dev/kvm", Fix: "enable virtualisation"},
		{Name: "public-inbox-httpd", Required: true, Detail: "missing", Fix: "sudo apt-get install public-inbox", Package: "public-inbox"},
	}
	var table bytes.Buffer
	if err := doctor.WriteTable(&table, checks); err != nil {
		t.Fatal(err)
	}
	want := `ok       go                  go1.26.8
-        kvm                 no /dev/kvm
                             -> enable virtualisation
MISSING  public-inbox-httpd  missing
                             -> sudo apt-get install public-inbox
`
	if table.String() != want {
		t.Errorf("got\n%s\nwant\n%s", table.String(), want)
	}
	var stored bytes.Buffer
	if err := doctor.WriteJSON(&stored, checks); err != nil {
		t.Fatal(err)
	}
	var back []doctor.Check
	if err := json.Unmarshal(stored.Bytes(), &back); err != nil || !slices.Equal(back, checks) {
		t.Errorf("%v: %+v", err, back)
	}
}
