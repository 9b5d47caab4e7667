// SPDX-License-Identifier: BSD-3-Clause

package source

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/zcvet/zcvet/harness/progress"
)

// installedSources is where the linux-source packages put their tarballs; a
// variable for the tests.
var installedSources = "/usr/src"

// packageName is the Debian package with the source of a version; a package
// holds one point release of a series.
func packageName(version string) string {
	m := isVersion.FindStringSubmatch(version)
	return "linux-source-" + m[1] + "." + m[2]
}

// packageMatches tells whether a package version, "6.12.95-1", satisfies the
// version asked for. Debian's own updates add a suffix.
func packageMatches(packaged, version string) bool {
	if isVersion.FindStringSubmatch(version)[3] == "" {
		version += "."
	}
	rest, ok := strings.CutPrefix(packaged, version)
	if !ok || rest == "" {
		return false
	}
	return strings.HasSuffix(version, ".") || !strings.ContainsAny(rest[:1], "0123456789.")
}

// debianID is the same for a tarball however it got here.
func debianID(packaged, sum string) string { return "debian-" + packaged + "-" + sum[:12] }

func debianSource(version, packaged string) string {
	return "debian " + packageName(version) + " " + packaged
}

// installed takes the tarball of a linux-source package that the machine has.
func (r *resolver) installed(ctx context.Context, version string) (*Kernel, []string, error) {
	name := packageName(version)
	tarball := filepath.Join(installedSources, name+".tar.xz")
	if _, err := os.Stat(tarball); err != nil {
		return nil, nil, fmt.Errorf("installed packages: %w: there is no %s", errUnavailable, tarball)
	}
	status, err := output(ctx, command(ctx, "dpkg-query", "--show", "--showformat=${db:Status-Status} ${Version}", name))
	packaged, ok := strings.CutPrefix(status, "installed ")
	if err != nil || !ok {
		return nil, nil, fmt.Errorf("installed packages: %w: %s is not installed", errUnavailable, name)
	}
	if !packageMatches(packaged, version) {
		return nil, []string{upstream(packaged)}, fmt.Errorf("installed packages: %w: %s is %s", errUnavailable, name, packaged)
	}
	sum, err := r.hashFile(ctx, tarball)
	if err != nil {
		return nil, nil, fmt.Errorf("installed packages: %w", err)
	}
	kernel, err := r.unpack(ctx, tarball, debianID(packaged, sum), debianSource(version, packaged))
	return kernel, nil, err
}

// upstream is the part of a package version that kernel.org chose.
func upstream(packaged string) string {
	before, _, _ := strings.Cut(packaged, "-")
	return before
}

// apt is a view of the machine's package manager: its own, or one with other
// sources and directories of its own, which leaves the machine as it is and
// needs no privileges.
type apt struct {
	name    string
	options []string
	// update says that package lists must be fetched before use.
	update bool
}

func (a apt) command(ctx context.Context, tool string, args ...string) *exec.Cmd {
	return command(ctx, tool, slices.Concat(a.options, args)...)
}

// debian takes the linux-source package of Debian's archive: from the machine's
// package lists as they are, from fresh ones, and from newer suites of the same
// mirror. Apt verifies signatures and checksums in each case.
func (r *resolver) debian(ctx context.Context, version string) (*Kernel, []string, error) {
	if _, err := exec.LookPath("apt-get"); err != nil {
		return nil, nil, fmt.Errorf("debian: %w: this machine has no apt", errUnavailable)
	}
	temporary, cleanup, err := r.Cache.TempDir()
	if err != nil {
		return nil, nil, err
	}
	defer cleanup()

	var (
		available []string
		broken    error
	)
	views := []apt{{name: "the machine's package lists"}}
	fresh, err := privateApt(filepath.Join(temporary, "fresh"), "the machine's sources, updated", nil)
	if err != nil {
		return nil, nil, err
	}
	views = append(views, fresh)
	for i := 0; i < len(views); i++ {
		view := views[i]
		if view.update {
			r.Progress.Report(progress.Update{What: "package lists: " + view.name})
			if said, err := output(ctx, view.command(ctx, "apt-get", "update", "--quiet")); err != nil {
				if ctx.Err() != nil {
					return nil, nil, err
				}
				// One suite of several may be missing, and the others be there.
				r.logf("%s%v", said, err)
				broken = fmt.Errorf("debian, %s: %w", view.name, err)
			}
		}
		kernel, offered, err := r.fromApt(ctx, view, version, temporary)
		available = append(available, offered...)
		switch {
		case err == nil:
			return kernel, nil, nil
		case ctx.Err() != nil:
			return nil, nil, err
		case !errors.Is(err, errUnavailable):
			broken = fmt.Errorf("debian, %s: %w", view.name, err)
		}
		if i == len(views)-1 && view.name == fresh.name {
			newer, err := r.newerSuites(ctx, fresh, temporary)
			if err != nil {
				return nil, available, err
			}
			views = append(views, newer...)
		}
	}
	if broken != nil {
		return nil, available, broken
	}
	return nil, available, fmt.Errorf("debian: %w: no suite has %s for %s", errUnavailable, packageName(version), version)
}

// privateApt makes a view with package lists and caches of its own below dir.
// Sources, in deb822 form, replace the machine's when not nil.
func privateApt(dir, name string, sources []byte) (apt, error) {
	for _, folder := range []string{"state/lists/partial", "cache/archives/partial"} {
		if err := os.MkdirAll(filepath.Join(dir, folder), 0o755); err != nil {
			return apt{}, err
		}
	}
	a := apt{name: name, update: true, options: []string{
		"-o", "Dir::State=" + filepath.Join(dir, "state"),
		"-o", "Dir::Cache=" + filepath.Join(dir, "cache"),
		// Nothing is installed here, and what the machine has is no matter.
		"-o", "Dir::State::status=" + os.DevNull,
		// Root would hand the downloads to a user that cannot enter our
		// directories.
		"-o", "APT::Sandbox::User=root",
		"-o", "Acquire::Languages=none",
		// Hooks of the machine are for the machine's own lists.
		"-o", "APT::Update::Pre-Invoke=", "-o", "APT::Update::Post-Invoke=", "-o", "APT::Update::Post-Invoke-Success=",
	}}
	if sources != nil {
		list := filepath.Join(dir, "zcvet.sources")
		if err := os.WriteFile(list, sources, 0o644); err != nil {
			return apt{}, err
		}
		a.options = append(a.options, "-o", "Dir::Etc::sourcelist="+list, "-o", "Dir::Etc::sourceparts="+os.DevNull)
	}
	return a, nil
}

// madisonLine is a line of apt-cache madison: package, version, place.
var madisonLine = regexp.MustCompile(`(?m)^\s*(\S+)\s*\|\s*(\S+)\s*\|`)

// fromApt takes the package from one view of apt.
func (r *resolver) fromApt(ctx context.Context, view apt, version, temporary string) (*Kernel, []string, error) {
	name := packageName(version)
	versions, err := output(ctx, view.command(ctx, "apt-cache", "madison", name))
	if err != nil {
		return nil, nil, err
	}
	packaged := ""
	var available []string
	// The newest comes first.
	for _, m := range madisonLine.FindAllStringSubmatch(versions, -1) {
		available = append(available, upstream(m[2]))
		if packaged == "" && packageMatches(m[2], version) {
			packaged = m[2]
		}
	}
	if packaged == "" {
		names, err := output(ctx, view.command(ctx, "apt-cache", "search", "--names-only", `^linux-source-[0-9.]+$`))
		if err != nil {
			return nil, available, err
		}
		for line := range strings.Lines(names) {
			found, _, _ := strings.Cut(line, " ")
			available = append(available, strings.TrimPrefix(found, "linux-source-"))
		}
		return nil, available, fmt.Errorf("%w: no %s for %s", errUnavailable, name, version)
	}

	r.logf("%s %s, from %s", name, packaged, view.name)
	deb, err := r.download(ctx, view, name, packaged, temporary)
	if err != nil {
		return nil, available, err
	}
	tarball, sum, err := r.tarballOf(ctx, deb, temporary)
	if err != nil {
		return nil, available, err
	}
	kernel, err := r.unpack(ctx, tarball, debianID(packaged, sum), debianSource(version, packaged))
	return kernel, available, err
}

// download lets apt fetch and verify a package, and returns its file.
func (r *resolver) download(ctx context.Context, view apt, name, packaged, temporary string) (string, error) {
	dir, err := os.MkdirTemp(temporary, "download-")
	if err != nil {
		return "", err
	}
	size := int64(0)
	if description, err := output(ctx, view.command(ctx, "apt-cache", "show", name+"="+packaged)); err == nil {
		if m := regexp.MustCompile(`(?m)^Size: (\d+)$`).FindStringSubmatch(description); m != nil {
			size, _ = strconv.ParseInt(m[1], 10, 64)
		}
	}

	get := view.command(ctx, "apt-get", "-o", "APT::Status-Fd=3", "-o", "APT::Sandbox::User=root", "--quiet", "download", name+"="+packaged)
	get.Dir = dir
	var said bytes.Buffer
	get.Stdout, get.Stderr = &said, &said
	reader, writer, err := os.Pipe()
	if err != nil {
		return "", err
	}
	defer reader.Close()
	get.ExtraFiles = []*os.File{writer}
	if err := get.Start(); err != nil {
		writer.Close()
		return "", toolError(ctx, get, err, "")
	}
	writer.Close()
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		watchDownload(reader, func(percent float64) {
			r.Progress.Report(progress.Update{Done: int64(percent / 100 * float64(size)), Total: size, Unit: progress.Bytes, What: "downloading " + name + " " + packaged})
		})
	}()
	err = get.Wait()
	// A method process that outlives apt-get may hold the pipe.
	reader.Close()
	<-watched
	if err := toolError(ctx, get, err, said.String()); err != nil {
		return "", err
	}
	debs, err := filepath.Glob(filepath.Join(dir, "*.deb"))
	if err != nil || len(debs) != 1 {
		return "", fmt.Errorf("apt-get download left %d packages", len(debs))
	}
	return debs[0], nil
}

// watchDownload reads apt's status lines, "dlstatus:1:42.5:Retrieving file",
// until the end of the stream.
func watchDownload(status io.Reader, report func(percent float64)) {
	lines := bufio.NewScanner(status)
	for lines.Scan() {
		fields := strings.SplitN(lines.Text(), ":", 4)
		if len(fields) < 3 || fields[0] != "dlstatus" {
			continue
		}
		if percent, err := strconv.ParseFloat(fields[2], 64); err == nil && percent >= 0 && percent <= 100 {
			report(percent)
		}
	}
}

// tarballOf takes the kernel's tarball out of a package.
func (r *resolver) tarballOf(ctx context.Context, deb, temporary string) (name, sum string, err error) {
	info, err := os.Stat(deb)
	if err != nil {
		return "", "", err
	}
	unpacker := command(ctx, "dpkg-deb", "--fsys-tarfile", deb)
	var said bytes.Buffer
	unpacker.Stderr = &said
	stream, err := unpacker.StdoutPipe()
	if err != nil {
		return "", "", err
	}
	if err := unpacker.Start(); err != nil {
		return "", "", toolError(ctx, unpacker, err, "")
	}
	reader := &meter{Reader: stream, report: r.Progress, what: "unpacking " + filepath.Base(deb), total: info.Size()}
	name, sum, err = copyTarball(reader, temporary)
	if err == nil {
		// dpkg-deb does not like a pipe that closes early.
		_, err = io.Copy(io.Discard, stream)
	} else {
		_ = unpacker.Process.Kill()
	}
	if waitErr := toolError(ctx, unpacker, unpacker.Wait(), said.String()); waitErr != nil && (err == nil || ctx.Err() != nil) {
		err = waitErr
	}
	if err != nil {
		return "", "", fmt.Errorf("%s: %w", filepath.Base(deb), err)
	}
	return name, sum, os.Remove(deb)
}

// copyTarball writes the tarball found in a package's file system to dir.
func copyTarball(files io.Reader, dir string) (name, sum string, err error) {
	archive := tar.NewReader(files)
	for {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return "", "", errors.New("the package holds no kernel source")
		}
		if err != nil {
			return "", "", err
		}
		base := path.Base(header.Name)
		if header.Typeflag != tar.TypeReg || !strings.HasPrefix(base, "linux-source-") || !strings.Contains(base, ".tar.") {
			continue
		}
		file, err := os.Create(filepath.Join(dir, base))
		if err != nil {
			return "", "", err
		}
		hash := sha256.New()
		_, err = io.Copy(io.MultiWriter(file, hash), archive)
		if closeErr := file.Close(); err == nil {
			err = closeErr
		}
		return file.Name(), hex.EncodeToString(hash.Sum(nil)), err
	}
}

// newerSuites makes views of the suites that may carry a kernel which the
// machine's own do not, on the mirror the machine uses. The suites are tried
// from the most stable on; the aliases mean the same on every Debian.
func (r *resolver) newerSuites(ctx context.Context, view apt, temporary string) ([]apt, error) {
	mirror, keyring, err := debianMirror(ctx, view)
	if err != nil || mirror == "" {
		return nil, err
	}
	var views []apt
	for i, suites := range []string{"stable stable-backports", "testing unstable"} {
		sources := fmt.Sprintf("Types: deb\nURIs: %s\nSuites: %s\nComponents: main\nTargets: Packages\n", mirror, suites)
		if keyring != "" {
			sources += "Signed-By: " + keyring + "\n"
		}
		newer, err := privateApt(filepath.Join(temporary, "newer-"+strconv.Itoa(i)), "Debian "+strings.ReplaceAll(suites, " ", " and "), []byte(sources))
		if err != nil {
			return nil, err
		}
		views = append(views, newer)
	}
	return views, nil
}

// keyrings is where Debian's archive keys are; the first name is the older.
var keyrings = []string{"/usr/share/keyrings/debian-archive-keyring.gpg", "/usr/share/keyrings/debian-archive-keyring.pgp"}

// debianMirror asks apt which mirror of Debian proper the machine uses, and finds
// the keyring its packages are signed with. The mirror is empty when the machine
// uses none: Ubuntu, say.
func debianMirror(ctx context.Context, view apt) (mirror, keyring string, err error) {
	targets, err := output(ctx, view.command(ctx, "apt-get", "indextargets", "--format", "$(ORIGIN)|$(LABEL)|$(REPO_URI)|$(SOURCESENTRY)", "Created-By: Packages"))
	if err != nil {
		return "", "", err
	}
	for line := range strings.Lines(targets) {
		fields := strings.SplitN(strings.TrimSpace(line), "|", 4)
		if len(fields) != 4 || fields[0] != "Debian" || fields[1] != "Debian" {
			continue
		}
		place, _, _ := strings.Cut(fields[3], ":")
		return fields[2], signedBy(place), nil
	}
	return "", "", nil
}

var signedByOption = regexp.MustCompile(`(?im)(?:^Signed-By:[ \t]*|\bsigned-by=)(/[^\s\],]+)`)

// signedBy finds the keyring that a file with package sources names, else the
// one that Debian installs; empty leaves the choice to apt.
func signedBy(sources string) string {
	if text, err := os.ReadFile(sources); err == nil {
		if m := signedByOption.FindSubmatch(text); m != nil {
			return string(m[1])
		}
	}
	for _, keyring := range keyrings {
		if _, err := os.Stat(keyring); err == nil {
			return keyring
		}
	}
	return ""
}
