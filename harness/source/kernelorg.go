// SPDX-License-Identifier: BSD-3-Clause

package source

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/zcvet/zcvet/harness/cache"
	"github.com/zcvet/zcvet/harness/fault"
)

// kernelOrgTarballs is where kernel.org publishes releases.
const kernelOrgTarballs = "https://cdn.kernel.org/pub/linux/kernel"

const (
	// headerTimeout bounds the wait for the answer to a request.
	headerTimeout = 30 * time.Second
	// stallTimeout bounds the wait for the next bytes of a download; a slow
	// line is no failure, a silent one is.
	stallTimeout = 60 * time.Second
	// attempts at one download, each of which goes on where the last ended.
	attempts = 4
)

// retryDelay before the second attempt, doubled for each further one; a variable
// for the tests.
var retryDelay = time.Second

// release is a tarball as kernel.org's list of checksums names it.
type release struct {
	version string
	sha256  string
}

var checksumLine = regexp.MustCompile(`^([0-9a-f]{64})  linux-(\d+\.\d+(?:\.\d+)?)\.tar\.xz$`)

// parseChecksums reads sha256sums.asc. Lines about anything but the tarballs of
// releases are skipped, among them those of the signature.
func parseChecksums(list io.Reader) ([]release, error) {
	var releases []release
	lines := bufio.NewScanner(list)
	for lines.Scan() {
		if m := checksumLine.FindStringSubmatch(lines.Text()); m != nil {
			releases = append(releases, release{version: m[2], sha256: m[1]})
		}
	}
	return releases, lines.Err()
}

// choose returns the release that a version asks for: itself, or the newest of
// its series.
func choose(releases []release, version string) (release, bool) {
	var best release
	exact := strings.Count(version, ".") == 2
	for _, r := range releases {
		inSeries := !exact && (r.version == version || strings.HasPrefix(r.version, version+"."))
		if (r.version == version || inSeries) && (best.version == "" || compareVersions(r.version, best.version) > 0) {
			best = r
		}
	}
	return best, best.version != ""
}

// kernelOrg fetches a release tarball and checks it against the published list.
func (r *resolver) kernelOrg(ctx context.Context, version string) (*Kernel, []string, error) {
	base := r.KernelOrg
	if base == "" {
		base = kernelOrgTarballs
	}
	folder := strings.TrimRight(base, "/") + "/v" + isVersion.FindStringSubmatch(version)[1] + ".x/"
	releases, err := r.checksums(ctx, folder)
	if err != nil {
		return nil, nil, fmt.Errorf("kernel.org: %w", err)
	}
	chosen, ok := choose(releases, version)
	if !ok {
		series := map[string]string{}
		for _, each := range releases {
			m := isVersion.FindStringSubmatch(each.version)
			name := m[1] + "." + m[2]
			if compareVersions(each.version, series[name]) > 0 {
				series[name] = each.version
			}
		}
		var available []string
		for _, newest := range series {
			available = append(available, newest)
		}
		return nil, available, fmt.Errorf("kernel.org: %w: %s has no linux-%s", errUnavailable, folder, version)
	}
	id := "kernel.org-" + chosen.version + "-" + chosen.sha256[:12]
	source := "kernel.org linux-" + chosen.version
	if r.Cache.Has(cache.Sources, id) {
		kernel, err := r.cached(id, source)
		return kernel, nil, err
	}

	name := "linux-" + chosen.version + ".tar.xz"
	unlock, err := r.Cache.Lock(ctx, cache.Downloads, name)
	if err != nil {
		return nil, nil, err
	}
	defer unlock()
	tarball := r.Cache.Path(cache.Downloads, name)
	if err := r.fetch(ctx, folder+name, tarball, chosen.sha256); err != nil {
		return nil, nil, fmt.Errorf("kernel.org: %w", err)
	}
	kernel, err := r.unpack(ctx, tarball, id, source)
	if err != nil {
		return nil, nil, err
	}
	// The tree is what is used from here on.
	return kernel, nil, os.Remove(tarball)
}

// maxChecksums bounds the list of checksums; it has a few hundred kilobytes.
const maxChecksums = 64 << 20

func (r *resolver) checksums(ctx context.Context, folder string) ([]release, error) {
	response, err := request(ctx, folder+"sha256sums.asc", 0)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	if response.StatusCode == http.StatusNotFound {
		return nil, fmt.Errorf("%w: there is no %s", errUnavailable, folder)
	}
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%ssha256sums.asc: %s", folder, response.Status)
	}
	return parseChecksums(io.LimitReader(response.Body, maxChecksums))
}

var client = &http.Client{Transport: &http.Transport{
	Proxy:                 http.ProxyFromEnvironment,
	ResponseHeaderTimeout: headerTimeout,
	TLSHandshakeTimeout:   headerTimeout,
}}

// request asks for a file from an offset on.
func request(ctx context.Context, url string, offset int64) (*http.Response, error) {
	get, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	// Transparent compression would make offsets meaningless.
	get.Header.Set("Accept-Encoding", "identity")
	if offset > 0 {
		get.Header.Set("Range", "bytes="+strconv.FormatInt(offset, 10)+"-")
	}
	return client.Do(get)
}

// errChecksum is the one failure of a download that another attempt is made for
// from the start.
var errChecksum = errors.New("checksum mismatch")

// fetch downloads a file to name, going on with what an earlier attempt, in this
// process or another, left there. The caller holds the lock of the download.
func (r *resolver) fetch(ctx context.Context, url, name, sum string) error {
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return r.Cache.Explain("download", err)
	}
	partial := name + ".part"
	delay := retryDelay
	var last error
	for attempt := range attempts {
		if attempt > 0 {
			r.logf("%v; trying again", last)
			select {
			case <-ctx.Done():
				return context.Cause(ctx)
			case <-time.After(delay):
			}
			delay *= 2
		}
		final, err := r.fetchOnce(ctx, url, partial)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err == nil {
			var got string
			if got, err = r.hashFile(ctx, partial); err == nil && got == sum {
				return os.Rename(partial, name)
			}
			if err == nil {
				err = fmt.Errorf("%s: %w: it is %s, published is %s", url, errChecksum, got, sum)
				// What is there may be an old, damaged beginning: once more, from
				// the start.
				if removeErr := os.Remove(partial); removeErr != nil {
					return removeErr
				}
				final = errors.Is(last, errChecksum)
			}
		}
		last = err
		if final {
			break
		}
	}
	return fault.New(fault.Infrastructure, "%w", last)
}

// fetchOnce makes one attempt; final says that another one is pointless.
func (r *resolver) fetchOnce(ctx context.Context, url, partial string) (final bool, err error) {
	file, err := os.OpenFile(partial, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return true, r.Cache.Explain("download", err)
	}
	defer file.Close()
	offset, err := file.Seek(0, io.SeekEnd)
	if err != nil {
		return true, r.Cache.Explain("download", err)
	}

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	response, err := request(ctx, url, offset)
	if err != nil {
		return false, err
	}
	defer response.Body.Close()
	switch response.StatusCode {
	case http.StatusPartialContent:
		// The range must be the one asked for, or the parts do not fit.
		if !strings.HasPrefix(response.Header.Get("Content-Range"), fmt.Sprintf("bytes %d-", offset)) {
			return false, errors.Join(fmt.Errorf("%s: the server sent another range", url), file.Truncate(0))
		}
	case http.StatusRequestedRangeNotSatisfiable:
		// We have all of it, or more than there is; the checksum decides.
		return false, nil
	case http.StatusOK:
		// The server ignores ranges, or there was nothing yet.
		offset = 0
		if _, err := file.Seek(0, io.SeekStart); err != nil {
			return true, err
		}
		if err := file.Truncate(0); err != nil {
			return true, r.Cache.Explain("download", err)
		}
	default:
		temporary := response.StatusCode >= 500 || response.StatusCode == http.StatusTooManyRequests
		return !temporary, fmt.Errorf("%s: %s", url, response.Status)
	}

	total := int64(0)
	if response.ContentLength > 0 {
		total = offset + response.ContentLength
	}
	watchdog := time.AfterFunc(stallTimeout, func() { cancel(fmt.Errorf("%s: nothing came for %s", url, stallTimeout)) })
	defer watchdog.Stop()
	reader := &meter{Reader: resetting{response.Body, watchdog}, report: r.Progress, what: "downloading " + filepath.Base(strings.TrimSuffix(partial, ".part")), done: offset, total: total}
	if _, err := io.Copy(file, reader); err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		return false, r.Cache.Explain("download", err)
	}
	return false, nil
}

// resetting winds the watchdog up with every read.
type resetting struct {
	io.Reader
	watchdog *time.Timer
}

func (r resetting) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	r.watchdog.Reset(stallTimeout)
	return n, err
}
