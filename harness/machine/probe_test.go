// SPDX-License-Identifier: BSD-3-Clause

package machine

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/zcvet/zcvet/harness/cache"
	"github.com/zcvet/zcvet/harness/fault"
)

// useKVMDevice puts a file in the place of /dev/kvm.
func useKVMDevice(t *testing.T, path string) {
	t.Helper()
	before := kvmDevice
	kvmDevice = path
	t.Cleanup(func() { kvmDevice = before })
}

func existingFile(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "kvm")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestProbe(t *testing.T) {
	for _, test := range []struct {
		name, mode, behaviour string
		device                bool
		want                  string // accelerator, or empty
		class                 fault.Class
		reason                string // in the reason or the error
	}{
		{"TCG is taken as asked", TCG, "silent", true, TCG, fault.None, "asked for"},
		{"no device, automatically", Auto, "silent", false, TCG, fault.None, "there is no"},
		{"no device, but KVM wanted", KVM, "silent", false, "", fault.Infrastructure, "there is no"},
		{"guest sings", Auto, "sings", true, KVM, fault.None, "probe guest ran"},
		{"guest sings, KVM wanted", KVM, "sings", true, KVM, fault.None, "probe guest ran"},
		{"QEMU aborts", Auto, "aborts", true, TCG, fault.None, "failed to set MSR"},
		{"QEMU aborts, but KVM wanted", KVM, "aborts", true, "", fault.Infrastructure, "failed to set MSR"},
		{"QEMU refuses", Auto, "refuses", true, TCG, fault.None, "unsupported machine type"},
		{"guest resets without a word", Auto, "resets", true, TCG, fault.None, "reset itself"},
		{"unknown mode", "xen", "silent", true, "", fault.Usage, "auto, kvm or tcg"},
	} {
		t.Run(test.name, func(t *testing.T) {
			device := filepath.Join(t.TempDir(), "missing")
			if test.device {
				device = existingFile(t)
			}
			useKVMDevice(t, device)
			got, err := Probe(t.Context(), test.mode, ProbeOptions{QEMU: fakeConfig(t, test.behaviour).QEMU})
			if fault.Of(err) != test.class || got.Name != test.want {
				t.Fatalf("got %+v, %v; want %q, class %v", got, err, test.want, test.class)
			}
			said := got.Reason
			if err != nil {
				said = err.Error()
			}
			if !strings.Contains(said, test.reason) || strings.Contains(said, "\n") {
				t.Errorf("%q is not one line about %q", said, test.reason)
			}
		})
	}
}

func TestProbeIsRemembered(t *testing.T) {
	useKVMDevice(t, existingFile(t))
	dir, err := cache.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	options := ProbeOptions{QEMU: fakeConfig(t, "aborts").QEMU, Cache: dir}
	first, err := Probe(t.Context(), Auto, options)
	if err != nil {
		t.Fatal(err)
	}
	// From now on the probe would succeed; the answer must be the old one.
	t.Setenv(fakeQEMU, "sings")
	second, err := Probe(t.Context(), Auto, options)
	if err != nil {
		t.Fatal(err)
	}
	if first != second || second.Name != TCG {
		t.Errorf("first %+v, then %+v", first, second)
	}
	_, err = Probe(t.Context(), KVM, options)
	if failure, ok := errors.AsType[*fault.Error](err); !ok || failure.Advice == "" {
		t.Errorf("got %v, want an error with advice", err)
	}
}
