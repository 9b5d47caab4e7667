// SPDX-License-Identifier: BSD-3-Clause

package source

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/zcvet/zcvet/harness/cache"
	"github.com/zcvet/zcvet/harness/fault"
	"github.com/zcvet/zcvet/harness/progress"
)

// tree is a kernel source as far as this package looks at one.
func tree(version string) map[string]string {
	parts := strings.SplitN(version, ".", 3)
	return map[string]string{
		"Makefile":   "# SPDX-License-Identifier: GPL-2.0\nVERSION = " + parts[0] + "\nPATCHLEVEL = " + parts[1] + "\nSUBLEVEL = " + parts[2] + "\nEXTRAVERSION =\nNAME = Test\n",
		"Kconfig":    "mainmenu \"test\"\n",
		"net/core.c": "/* " + strings.Repeat("some text ", 1000) + " */\n",
	}
}

func writeTree(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		full := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(full, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// pack makes a tarball; option is tar's compression option, prefix the
// directory that everything is in.
func pack(t *testing.T, version, prefix, option string) []byte {
	t.Helper()
	dir := t.TempDir()
	writeTree(t, filepath.Join(dir, prefix), tree(version))
	args := []string{"-c", "-f", "-", "-C", dir}
	if option != "" {
		args = append(args, option)
	}
	if prefix == "" {
		prefix = "."
	}
	out, err := exec.Command("tar", append(args, prefix)...).Output()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func open(t *testing.T) *cache.Dir {
	t.Helper()
	c, err := cache.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// withoutPackages hides the machine's package manager.
func withoutPackages(t *testing.T) {
	t.Helper()
	bin := t.TempDir()
	for _, tool := range []string{"tar", "xz", "gzip", "bzip2", "git"} {
		if full, err := exec.LookPath(tool); err == nil {
			if err := os.Symlink(full, filepath.Join(bin, tool)); err != nil {
				t.Fatal(err)
			}
		}
	}
	t.Setenv("PATH", bin)
	oldSources, oldDelay := installedSources, retryDelay
	installedSources, retryDelay = t.TempDir(), time.Millisecond
	t.Cleanup(func() { installedSources, retryDelay = oldSources, oldDelay })
}

func sum(data []byte) string {
	hash := sha256.Sum256(data)
	return hex.EncodeToString(hash[:])
}

// site is a kernel.org with the faults a test asks for.
type site struct {
	*httptest.Server
	files    map[string][]byte // by name below v6.x
	checksum map[string]string // by name, when not the true one
	cut      map[string]int    // how often to break off in the middle
	noRange  bool
	status   int // for everything but the checksums

	mu       sync.Mutex
	requests []string
}

func newSite(t *testing.T, files map[string][]byte) *site {
	s := &site{files: files, checksum: map[string]string{}, cut: map[string]int{}}
	s.Server = httptest.NewServer(http.HandlerFunc(s.serve))
	t.Cleanup(s.Close)
	return s
}

func (s *site) serve(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	name, ok := strings.CutPrefix(r.URL.Path, "/v6.x/")
	if !ok {
		http.NotFound(w, r)
		return
	}
	if name == "sha256sums.asc" {
		fmt.Fprintln(w, "-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256")
		for name, data := range s.files {
			want := s.checksum[name]
			if want == "" {
				want = sum(data)
			}
			fmt.Fprintf(w, "%s  %s\n", want, name)
		}
		fmt.Fprintln(w, "-----BEGIN PGP SIGNATURE-----")
		return
	}
	s.requests = append(s.requests, name+" "+r.Header.Get("Range"))
	data, ok := s.files[name]
	if !ok {
		http.NotFound(w, r)
		return
	}
	if s.status != 0 {
		w.WriteHeader(s.status)
		return
	}
	if s.noRange {
		r.Header.Del("Range")
	}
	if s.cut[name] > 0 {
		s.cut[name]--
		w.Header().Set("Content-Length", fmt.Sprint(len(data)))
		_, _ = w.Write(data[:len(data)/2])
		return // the server notices that the length is short, and hangs up
	}
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
}

func TestKernelOrg(t *testing.T) {
	withoutPackages(t)
	older, newer := pack(t, "6.12.9", "linux-6.12.9", "--xz"), pack(t, "6.12.10", "linux-6.12.10", "--xz")
	files := map[string][]byte{"linux-6.12.9.tar.xz": older, "linux-6.12.10.tar.xz": newer, "linux-6.1.5.tar.xz": older, "linux-6.12.10.tar.gz": {}}
	for _, test := range []struct {
		name     string
		spec     string
		prepare  func(*site)
		partial  []byte // left by an earlier attempt
		version  string
		requests string
		class    fault.Class
		err      string
	}{
		{name: "newest of a series", spec: "6.12", version: "6.12.10", requests: "linux-6.12.10.tar.xz "},
		{name: "exact", spec: "6.12.9", version: "6.12.9", requests: "linux-6.12.9.tar.xz "},
		{
			name: "cut off, resumed", spec: "6.12", version: "6.12.10", prepare: func(s *site) { s.cut["linux-6.12.10.tar.xz"] = 1 },
			requests: fmt.Sprintf("linux-6.12.10.tar.xz |linux-6.12.10.tar.xz bytes=%d-", len(newer)/2),
		},
		{
			name: "cut off, ranges ignored", spec: "6.12", version: "6.12.10", prepare: func(s *site) { s.cut["linux-6.12.10.tar.xz"], s.noRange = 1, true },
			requests: fmt.Sprintf("linux-6.12.10.tar.xz |linux-6.12.10.tar.xz bytes=%d-", len(newer)/2),
		},
		{name: "left by another run", spec: "6.12", version: "6.12.10", partial: newer[:100], requests: "linux-6.12.10.tar.xz bytes=100-"},
		{name: "complete, left by another run", spec: "6.12", version: "6.12.10", partial: newer, requests: fmt.Sprintf("linux-6.12.10.tar.xz bytes=%d-", len(newer))},
		{
			name: "damaged, left by another run", spec: "6.12", version: "6.12.10", partial: bytes.Repeat([]byte("x"), 100),
			requests: "linux-6.12.10.tar.xz bytes=100-|linux-6.12.10.tar.xz ",
		},
		{
			name: "checksum mismatch", spec: "6.12", prepare: func(s *site) { s.checksum["linux-6.12.10.tar.xz"] = strings.Repeat("ab", 32) },
			class: fault.Infrastructure, err: "checksum mismatch", requests: "linux-6.12.10.tar.xz |linux-6.12.10.tar.xz ",
		},
		{name: "no such release", spec: "6.99", class: fault.Usage, err: "kernel 6.99: there is no such version; available: 6.12.10, 6.1.5"},
		{name: "no such major", spec: "9.1", class: fault.Usage, err: "there is no such version"},
		{name: "gone", spec: "6.12", prepare: func(s *site) { s.status = http.StatusForbidden }, class: fault.Infrastructure, err: "403", requests: "linux-6.12.10.tar.xz "},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newSite(t, files)
			if test.prepare != nil {
				test.prepare(s)
			}
			c := open(t)
			partial := c.Path(cache.Downloads, "linux-6.12.10.tar.xz") + ".part"
			if test.partial != nil {
				if err := os.MkdirAll(filepath.Dir(partial), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(partial, test.partial, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			var bytesSeen int64
			kernel, err := Resolve(t.Context(), test.spec, Options{Cache: c, KernelOrg: s.URL, Progress: func(u progress.Update) {
				if u.Unit == progress.Bytes {
					bytesSeen = max(bytesSeen, u.Done)
				}
			}})
			if fault.Of(err) != test.class || (err != nil && !strings.Contains(err.Error(), test.err)) {
				t.Fatalf("got %v (%v), want %q (%v)", err, fault.Of(err), test.err, test.class)
			}
			if got := strings.Join(s.requests, "|"); got != test.requests {
				t.Errorf("requests %q, want %q", got, test.requests)
			}
			if err != nil {
				return
			}
			if kernel.Version != test.version || bytesSeen == 0 {
				t.Errorf("kernel %+v, %d bytes of progress", kernel, bytesSeen)
			}
			if _, err := os.Stat(filepath.Join(kernel.Dir, "net/core.c")); err != nil {
				t.Error(err)
			}
			if left, _ := filepath.Glob(filepath.Join(filepath.Dir(partial), "*")); len(left) != 0 {
				t.Errorf("left in the cache: %v", left)
			}

			// The second time nobody is asked.
			s.Close()
			again, err := Resolve(t.Context(), test.spec, Options{Cache: c, KernelOrg: s.URL})
			if err != nil || *again != *kernel {
				t.Errorf("again: %+v, %v", again, err)
			}
		})
	}
}

func TestCachedVersionStaysUntilRefreshed(t *testing.T) {
	withoutPackages(t)
	s := newSite(t, map[string][]byte{"linux-6.12.9.tar.xz": pack(t, "6.12.9", "linux-6.12.9", "--xz")})
	c := open(t)
	resolve := func(refresh bool) string {
		t.Helper()
		kernel, err := Resolve(t.Context(), "6.12", Options{Cache: c, KernelOrg: s.URL, Refresh: refresh})
		if err != nil {
			t.Fatal(err)
		}
		return kernel.Version
	}
	resolve(false)
	newer := pack(t, "6.12.10", "linux-6.12.10", "--xz")
	s.mu.Lock()
	s.files["linux-6.12.10.tar.xz"] = newer
	s.mu.Unlock()
	if got := resolve(false); got != "6.12.9" {
		t.Errorf("a newer release changed 6.12 to %s", got)
	}
	if got := resolve(true); got != "6.12.10" {
		t.Errorf("refreshed to %s", got)
	}
	if got := resolve(false); got != "6.12.10" {
		t.Errorf("after refreshing %s", got)
	}
	// Without its tree a version is looked up again.
	if err := c.Remove(cache.Sources, "kernel.org-6.12.10-"+sum(newer)[:12]); err != nil {
		t.Fatal(err)
	}
	if got := resolve(false); got != "6.12.10" {
		t.Errorf("after pruning %s", got)
	}
}

func TestTwoRunsShareOneDownload(t *testing.T) {
	withoutPackages(t)
	s := newSite(t, map[string][]byte{"linux-6.12.9.tar.xz": pack(t, "6.12.9", "linux-6.12.9", "--xz")})
	root := t.TempDir()
	var group sync.WaitGroup
	var failed atomic.Int32
	for range 4 {
		group.Go(func() {
			c, err := cache.Open(root)
			if err == nil {
				_, err = Resolve(t.Context(), "6.12", Options{Cache: c, KernelOrg: s.URL})
			}
			if err != nil {
				failed.Add(1)
				t.Error(err)
			}
		})
	}
	group.Wait()
	if len(s.requests) != 1 {
		t.Errorf("%d downloads: %v", len(s.requests), s.requests)
	}
}

func TestNetworkDown(t *testing.T) {
	withoutPackages(t)
	s := newSite(t, nil)
	s.Close()
	_, err := Resolve(t.Context(), "6.12", Options{Cache: open(t), KernelOrg: s.URL})
	classed, ok := errors.AsType[*fault.Error](err)
	if !ok || classed.Class != fault.Infrastructure || classed.Advice == "" || !strings.Contains(classed.Output, "kernel.org") {
		t.Errorf("got %v", err)
	}
}

func TestCancel(t *testing.T) {
	withoutPackages(t)
	s := newSite(t, map[string][]byte{"linux-6.12.9.tar.xz": nil})
	s.status = http.StatusServiceUnavailable
	ctx, cancel := context.WithCancel(t.Context())
	_, err := Resolve(ctx, "6.12", Options{Cache: open(t), KernelOrg: s.URL, Log: writerFunc(func(p []byte) (int, error) {
		if bytes.Contains(p, []byte("trying again")) {
			cancel()
		}
		return len(p), nil
	})})
	if !fault.IsCancelled(err) {
		t.Errorf("got %v", err)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func TestTarball(t *testing.T) {
	for _, test := range []struct{ name, prefix, option string }{
		{"plain", "linux-6.12.9", ""},
		{"gzip", "linux-6.12.9", "--gzip"},
		{"xz", "linux-6.12.9", "--xz"},
		{"bzip2", "linux-6.12.9", "--bzip2"},
		{"no directory", "", "--gzip"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if _, err := exec.LookPath(strings.TrimPrefix(test.option, "--")); test.option != "" && err != nil {
				t.Skip(err)
			}
			file := filepath.Join(t.TempDir(), "kernel.tar")
			data := pack(t, "6.12.9", test.prefix, test.option)
			if err := os.WriteFile(file, data, 0o644); err != nil {
				t.Fatal(err)
			}
			kernel, err := Resolve(t.Context(), "tar:"+file, Options{Cache: open(t)})
			if err != nil {
				t.Fatal(err)
			}
			if kernel.Version != "6.12.9" || kernel.ID != "tar-"+sum(data)[:16] {
				t.Errorf("kernel %+v", kernel)
			}
			if text, err := os.ReadFile(filepath.Join(kernel.Dir, "net/core.c")); err != nil || string(text) != tree("6.12.9")["net/core.c"] {
				t.Errorf("net/core.c: %v", err)
			}
		})
	}
}

func TestTarballRefused(t *testing.T) {
	var outside bytes.Buffer
	writer := tar.NewWriter(&outside)
	for _, name := range []string{"linux/Makefile", "../evil"} {
		if err := writer.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: 1, Typeflag: tar.TypeReg}); err != nil {
			t.Fatal(err)
		}
		if _, err := writer.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	if err := writer.Close(); err != nil {
		t.Fatal(err)
	}
	whole := pack(t, "6.12.9", "linux-6.12.9", "--gzip")
	for name, data := range map[string][]byte{
		"no tarball":  []byte("hello, this is a text\n"),
		"cut off":     whole[:len(whole)/2],
		"outside":     outside.Bytes(),
		"no kernel":   pack(t, "6.12.x", "linux-6.12.9", ""),
		"empty":       {},
		"two folders": append(bytes.TrimRight(pack(t, "6.12.9", "a", ""), "\x00"), pack(t, "6.12.9", "b", "")...),
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "kernel.tar")
			if err := os.WriteFile(file, data, 0o644); err != nil {
				t.Fatal(err)
			}
			c := open(t)
			if kernel, err := Resolve(t.Context(), "tar:"+file, Options{Cache: c}); err == nil {
				t.Errorf("taken: %+v", kernel)
			}
			if left, _ := filepath.Glob(filepath.Join(c.Root(), string(cache.Sources), "*")); len(left) != 0 {
				t.Errorf("left in the cache: %v", left)
			}
		})
	}
}

func TestUsage(t *testing.T) {
	dir := t.TempDir()
	for spec, want := range map[string]string{
		"latest":           "neither a version",
		"tar:/no/such":     "no such file",
		"dir:/no/such":     "no such file",
		"dir:" + dir:       "no kernel source",
		dir:                "neither a version",
		"image:/no/such":   "no such file",
		"image:" + dir:     "is not a file",
		"git:":             "names no repository",
		"git:--evil@HEAD":  "dash",
		"git:url@--option": "dash",
		"6.12-rc3":         "neither a version",
	} {
		_, err := Resolve(t.Context(), spec, Options{Cache: open(t)})
		if fault.Of(err) != fault.Usage || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v (%v), want %q", spec, err, fault.Of(err), want)
		}
	}
}

// snapshot lists the files below a directory with their times, to see that none
// was written.
func snapshot(t *testing.T, dir string) string {
	t.Helper()
	out, err := exec.Command("find", dir, "-printf", "%P %T@ %C@ %s\n").Output()
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

func TestDirectory(t *testing.T) {
	dir := t.TempDir()
	writeTree(t, dir, tree("6.12.9"))
	c := open(t)
	resolve := func(dir string) *Kernel {
		t.Helper()
		kernel, err := Resolve(t.Context(), "dir:"+dir, Options{Cache: c})
		if err != nil {
			t.Fatal(err)
		}
		return kernel
	}
	before := snapshot(t, dir)
	first := resolve(dir)
	if first.Version != "6.12.9" || !strings.HasPrefix(first.ID, "dir-") {
		t.Errorf("kernel %+v", first)
	}
	if again := resolve(dir); again.ID != first.ID {
		t.Errorf("ids %s and %s of the same directory", first.ID, again.ID)
	}
	if after := snapshot(t, dir); after != before {
		t.Errorf("the directory was written to:\n%s", after)
	}
	copied := t.TempDir()
	writeTree(t, copied, tree("6.12.9"))
	if other := resolve(copied); other.ID != first.ID {
		t.Errorf("ids %s and %s of the same contents", first.ID, other.ID)
	}
	writeTree(t, copied, map[string]string{"net/core.c": "other"})
	if other := resolve(copied); other.ID == first.ID {
		t.Error("other contents have the same id")
	}

	for _, product := range []string{".config", "include/generated/autoconf.h"} {
		built := t.TempDir()
		writeTree(t, built, tree("6.12.9"))
		writeTree(t, built, map[string]string{product: ""})
		_, err := Resolve(t.Context(), "dir:"+built, Options{Cache: c})
		classed, ok := errors.AsType[*fault.Error](err)
		if !ok || classed.Class != fault.Usage || !strings.Contains(classed.Advice, "make mrproper") {
			t.Errorf("%s: %v", product, err)
		}
	}
}

// repository makes a git repository with two commits, tagged "old" and "new".
func repository(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	git := func(args ...string) {
		t.Helper()
		command := exec.Command("git", append([]string{"-C", dir, "-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "init.defaultBranch=main"}, args...)...)
		command.Env = append(withoutGit(os.Environ()), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_NOSYSTEM=1")
		if out, err := command.CombinedOutput(); err != nil {
			t.Fatalf("git %v: %v\n%s", args, err, out)
		}
	}
	git("init", "-q")
	for tag, version := range map[string]string{"v6.12.9": "6.12.9"} {
		writeTree(t, dir, tree(version))
		git("add", "-A")
		git("commit", "-qm", version)
		git("tag", tag)
	}
	writeTree(t, dir, tree("6.12.10"))
	git("commit", "-qam", "6.12.10")
	git("branch", "topic/zc")
	return dir
}

func TestGit(t *testing.T) {
	dir := repository(t)
	c := open(t)
	commit, err := exec.Command("git", "-C", dir, "rev-parse", "v6.12.9").Output()
	if err != nil {
		t.Fatal(err)
	}
	id := strings.TrimSpace(string(commit))
	for _, test := range []struct{ spec, version string }{
		{dir + "@v6.12.9", "6.12.9"},
		{dir, "6.12.10"},
		{dir + "@topic/zc", "6.12.10"},
		{"file://" + dir + "@" + id, "6.12.9"},
	} {
		kernel, err := Resolve(t.Context(), "git:"+test.spec, Options{Cache: c})
		if err != nil {
			t.Errorf("%s: %v", test.spec, err)
			continue
		}
		if kernel.Version != test.version {
			t.Errorf("%s: %+v", test.spec, kernel)
		}
		if test.version == "6.12.9" && kernel.ID != commitID(id) {
			t.Errorf("%s: id %s", test.spec, kernel.ID)
		}
	}
	for spec, class := range map[string]fault.Class{
		dir + "@nothing":                     fault.Usage,
		"http://127.0.0.1:1/linux.git@v6.12": fault.Infrastructure,
		"ext::sh -c id@HEAD":                 fault.Infrastructure,
	} {
		if _, err := Resolve(t.Context(), "git:"+spec, Options{Cache: c}); fault.Of(err) != class {
			t.Errorf("%s: %v (%v), want %v", spec, err, fault.Of(err), class)
		}
	}
}

func TestWorkTree(t *testing.T) {
	dir := repository(t)
	c := open(t)
	resolve := func() string {
		t.Helper()
		kernel, err := Resolve(t.Context(), "dir:"+dir, Options{Cache: c})
		if err != nil {
			t.Fatal(err)
		}
		return kernel.ID
	}
	fetched, err := Resolve(t.Context(), "git:"+dir+"@main", Options{Cache: c})
	if err != nil {
		t.Fatal(err)
	}
	clean := resolve()
	if clean != fetched.ID {
		t.Errorf("a clean work tree is %s, the same commit fetched %s", clean, fetched.ID)
	}
	// A file that was only touched makes git want to refresh its index.
	if err := os.Chtimes(filepath.Join(dir, "Makefile"), time.Unix(1, 0), time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	before := snapshot(t, dir)
	if got := resolve(); got != clean {
		t.Errorf("touching a file made %s of %s", got, clean)
	}
	if after := snapshot(t, dir); after != before {
		t.Error("the work tree or its .git was written to")
	}
	writeTree(t, dir, map[string]string{"net/core.c": "changed\n"})
	changed := resolve()
	writeTree(t, dir, map[string]string{"net/new.c": "untracked\n"})
	untracked := resolve()
	if changed == clean || untracked == changed || !strings.Contains(changed, "-dirty-") {
		t.Errorf("ids: clean %s, changed %s, with an untracked file %s", clean, changed, untracked)
	}
}

func TestSplitRef(t *testing.T) {
	for spec, want := range map[string][2]string{
		"https://host/linux.git@v6.12":   {"https://host/linux.git", "v6.12"},
		"https://host/linux.git":         {"https://host/linux.git", "HEAD"},
		"https://me@host/linux.git":      {"https://me@host/linux.git", "HEAD"},
		"https://me@host/linux@topic/zc": {"https://me@host/linux", "topic/zc"},
		"git@host:linux.git":             {"git@host:linux.git", "HEAD"},
		"git@host:linux.git@v6.12":       {"git@host:linux.git", "v6.12"},
		"/srv/linux@net-next/main":       {"/srv/linux", "net-next/main"},
		"/srv/linux@":                    {"/srv/linux", "HEAD"},
	} {
		if url, ref := splitRef(spec); url != want[0] || ref != want[1] {
			t.Errorf("%s: %s and %s", spec, url, ref)
		}
	}
}

func TestImage(t *testing.T) {
	boot := make([]byte, 0x1000)
	copy(boot[0x202:], "HdrS")
	boot[0x20e], boot[0x20f] = 0x00, 0x04 // + 0x200
	copy(boot[0x600:], "6.12.9-test (builder@host) #1 SMP\x00")
	elf := append([]byte("\x7fELF"), bytes.Repeat([]byte{0}, 1<<20-10)...)
	elf = append(elf, "Linux version 6.12.10-zc (builder@host)"...) // across the pieces that are read
	for _, test := range []struct {
		name    string
		data    []byte
		version string
		class   fault.Class
	}{
		{"bzImage", boot, "6.12.9-test", fault.None},
		{"vmlinux", elf, "6.12.10-zc", fault.None},
		{"vmlinux without banner", []byte("\x7fELFxxx"), "", fault.None},
		{"bzImage pointing outside", append(append([]byte{}, boot[:0x20e]...), 0xff, 0xff), "", fault.Usage},
		{"text", []byte("hello\n"), "", fault.Usage},
	} {
		t.Run(test.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "image")
			if err := os.WriteFile(file, test.data, 0o644); err != nil {
				t.Fatal(err)
			}
			kernel, err := Resolve(t.Context(), "image:"+file, Options{})
			if fault.Of(err) != test.class {
				t.Fatalf("got %v", err)
			}
			if err == nil && (kernel.Version != test.version || kernel.Image != file || kernel.Dir != "") {
				t.Errorf("kernel %+v", kernel)
			}
		})
	}
}

func TestReadVersion(t *testing.T) {
	for text, want := range map[string]string{
		"VERSION = 6\nPATCHLEVEL = 13\nSUBLEVEL = 0\nEXTRAVERSION = -rc3\n": "6.13.0-rc3",
		"VERSION = 7\nPATCHLEVEL = 2\nSUBLEVEL = 13\nEXTRAVERSION =\n":      "7.2.13",
		"VERSION = 1\nall:\n": "",
		"":                    "",
	} {
		dir := t.TempDir()
		writeTree(t, dir, map[string]string{"Makefile": text, "Kconfig": ""})
		if got, err := readVersion(dir); got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v", text, got, err)
		}
	}
}
