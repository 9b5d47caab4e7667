// SPDX-License-Identifier: BSD-3-Clause

package source

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/zcvet/zcvet/harness/fault"
)

// fakeApt puts an apt of our own on the path. It knows the packages of the
// machine's lists and of the suites, and hands out a real package built here.
//
// The calls are appended to the file "calls" of the returned directory.
func fakeApt(t *testing.T) string {
	t.Helper()
	if _, err := exec.LookPath("dpkg-deb"); err != nil {
		t.Skip("needs dpkg-deb: ", err)
	}
	dir := t.TempDir()
	for _, packaged := range []string{"6.1.192-2", "7.2.11-1~bpo13+1"} {
		version := strings.Split(upstream(packaged), ".")
		name := packageName(upstream(packaged))
		root := filepath.Join(dir, packaged)
		writeTree(t, root, map[string]string{
			"DEBIAN/control":              "Package: " + name + "\nVersion: " + packaged + "\nArchitecture: all\nMaintainer: Test <test@example.org>\nDescription: test\n",
			"usr/src/" + name + ".tar.xz": string(pack(t, strings.Join(version, "."), name, "--xz")),
			"usr/share/doc/readme":        "other files come first or last",
		})
		if out, err := exec.Command("dpkg-deb", "--build", root, filepath.Join(dir, name+".deb")).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	bin := filepath.Join(dir, "bin")
	writeTree(t, bin, map[string]string{
		"apt-cache": `#!/bin/sh
echo "apt-cache $*" >>"$FAKE_APT/calls"
case "$*" in
*"madison linux-source-6.1") echo " linux-source-6.1 | 6.1.192-2 | http://mirror/debian oldstable/main amd64 Packages"
	echo " linux-source-6.1 | 6.1.176-1 | http://mirror/debian oldstable/main amd64 Packages" ;;
*newer-0*"madison linux-source-7.2") echo "linux-source-7.2 | 7.2.11-1~bpo13+1 | http://mirror/debian stable-backports/main amd64 Packages" ;;
*show*) echo "Size: 1000" ;;
*newer-1*search*) echo "linux-source-7.3 - Linux kernel source" ;;
*search*) echo "linux-source-6.1 - Linux kernel source" ;;
esac
`,
		"apt-get": `#!/bin/sh
echo "apt-get $*" >>"$FAKE_APT/calls"
case "$*" in
*download*) for last; do :; done
	[ -z "$FAKE_APT_BROKEN" ] || { echo "E: Failed to fetch: 404" >&2; exit 100; }
	echo "dlstatus:1:50.0:Retrieving" >&3
	cp "$FAKE_APT/${last%%=*}.deb" . ;;
*indextargets*) echo "Debian|Debian-Security|http://mirror/debian-security/|/none:1"
	echo "Debian|Debian|http://mirror/debian/|$FAKE_APT/debian.sources:1" ;;
esac
`,
		"dpkg-query": "#!/bin/sh\nprintf 'installed 6.12.117-1~deb12u1'\n",
	})
	writeTree(t, dir, map[string]string{"debian.sources": "Types: deb\nURIs: http://mirror/debian\nSigned-By: /usr/share/keyrings/test.gpg\n"})
	for _, tool := range []string{"apt-cache", "apt-get", "dpkg-query"} {
		if err := os.Chmod(filepath.Join(bin, tool), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("FAKE_APT", dir)
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	old := installedSources
	installedSources = filepath.Join(dir, "src")
	t.Cleanup(func() { installedSources = old })
	return dir
}

func calls(t *testing.T, dir string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, "calls"))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return string(text)
}

func TestDebian(t *testing.T) {
	dir := fakeApt(t)
	s := newSite(t, nil)
	c := open(t)
	installed := pack(t, "6.12.117", "linux-source-6.12", "--xz")
	writeTree(t, installedSources, map[string]string{"linux-source-6.12.tar.xz": string(installed)})

	for _, test := range []struct {
		spec, version, id, source string
		called, notCalled         string
	}{
		{"6.12", "6.12.117", "debian-6.12.117-1~deb12u1-" + sum(installed)[:12], "debian linux-source-6.12 6.12.117-1~deb12u1", "", "apt-"},
		{"6.1", "6.1.192", "debian-6.1.192-2-", "debian linux-source-6.1 6.1.192-2", "download linux-source-6.1=6.1.192-2", "update"},
		{"6.1.192", "6.1.192", "debian-6.1.192-2-", "debian linux-source-6.1 6.1.192-2", "download linux-source-6.1=6.1.192-2", "update"},
		{"7.2", "7.2.11", "debian-7.2.11-1~bpo13+1-", "debian linux-source-7.2 7.2.11-1~bpo13+1", "newer-0", "newer-1"},
	} {
		_ = os.Remove(filepath.Join(dir, "calls"))
		kernel, err := Resolve(t.Context(), test.spec, Options{Cache: c, KernelOrg: s.URL})
		if err != nil {
			t.Errorf("%s: %v", test.spec, err)
			continue
		}
		if kernel.Version != test.version || kernel.Source != test.source || !strings.HasPrefix(kernel.ID, test.id) {
			t.Errorf("%s: %+v", test.spec, kernel)
		}
		if got := calls(t, dir); !strings.Contains(got, test.called) || strings.Contains(got, test.notCalled) {
			t.Errorf("%s: calls\n%s", test.spec, got)
		}
	}

	_, err := Resolve(t.Context(), "9.9", Options{Cache: c, KernelOrg: s.URL})
	if fault.Of(err) != fault.Usage || !strings.Contains(err.Error(), "available: 7.3, 6.1") {
		t.Errorf("9.9: %v", err)
	}

	t.Setenv("FAKE_APT_BROKEN", "1")
	_, err = Resolve(t.Context(), "6.1", Options{Cache: open(t), KernelOrg: s.URL})
	if fault.Of(err) != fault.Infrastructure {
		t.Errorf("a mirror that fails: %v", err)
	}
}

// TestPrivateSuites looks at what apt is told about the newer suites: the mirror
// and keyring of the machine, and nothing of the machine's own state.
func TestPrivateSuites(t *testing.T) {
	fakeApt(t)
	r := &resolver{Options{Cache: open(t)}}
	views, err := r.newerSuites(t.Context(), apt{}, t.TempDir())
	if err != nil || len(views) != 2 {
		t.Fatalf("%d views, %v", len(views), err)
	}
	options := strings.Join(views[0].options, " ")
	for _, wanted := range []string{"Dir::State=", "Dir::Cache=", "Dir::State::status=/dev/null", "Dir::Etc::sourceparts=/dev/null"} {
		if !strings.Contains(options, wanted) {
			t.Errorf("options lack %s: %s", wanted, options)
		}
	}
	_, list, _ := strings.Cut(options, "Dir::Etc::sourcelist=")
	list, _, _ = strings.Cut(list, " ")
	text, err := os.ReadFile(list)
	if err != nil {
		t.Fatal(err)
	}
	want := "Types: deb\nURIs: http://mirror/debian/\nSuites: stable stable-backports\nComponents: main\nTargets: Packages\nSigned-By: /usr/share/keyrings/test.gpg\n"
	if string(text) != want {
		t.Errorf("sources:\n%s\nwant:\n%s", text, want)
	}
}

func TestPackageMatches(t *testing.T) {
	for _, test := range []struct {
		packaged, version string
		want              bool
	}{
		{"6.12.117-1~deb12u1", "6.12", true},
		{"6.12.117-1~deb12u1", "6.12.117", true},
		{"6.12.117-1~deb12u1", "6.12.11", false},
		{"6.12.117-1", "6.1", false},
		{"7.2~rc3-1", "7.2", false},
		{"6.12", "6.12", false},
	} {
		if got := packageMatches(test.packaged, test.version); got != test.want {
			t.Errorf("%s for %s: %v", test.packaged, test.version, got)
		}
	}
}

func FuzzParseChecksums(f *testing.F) {
	f.Add("-----BEGIN PGP SIGNED MESSAGE-----\n" + strings.Repeat("a", 64) + "  linux-6.12.1.tar.xz\n")
	f.Fuzz(func(t *testing.T, text string) {
		releases, _ := parseChecksums(strings.NewReader(text))
		for _, r := range releases {
			if len(r.sha256) != 64 || !isVersion.MatchString(r.version) {
				t.Errorf("release %+v", r)
			}
			if chosen, ok := choose(releases, r.version); !ok || chosen.version == "" {
				t.Errorf("%s is listed and not chosen", r.version)
			}
		}
	})
}
