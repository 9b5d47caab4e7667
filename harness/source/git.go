// SPDX-License-Identifier: BSD-3-Clause

package source

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/zcvet/zcvet/harness/cache"
	"github.com/zcvet/zcvet/harness/fault"
	"github.com/zcvet/zcvet/harness/progress"
)

// repositories is the kind of the bare repositories that git: fetches into.
const repositories cache.Kind = "repositories"

// commitID is the same for a commit wherever it was fetched from.
func commitID(commit string) string { return "git-" + commit[:16] }

// git fetches one commit of a repository and unpacks its tree.
func (r *resolver) git(ctx context.Context, spec string) (*Kernel, error) {
	url, ref := splitRef(spec)
	switch {
	case url == "":
		return nil, fault.New(fault.Usage, "git: names no repository").WithAdvice("write git:URL@BRANCH, @TAG or @COMMIT")
	case strings.HasPrefix(url, "-") || strings.HasPrefix(ref, "-"):
		return nil, fault.New(fault.Usage, "git:%s: neither a repository nor a branch begins with a dash", spec)
	}
	// The fetch runs in another directory.
	if info, err := os.Stat(url); err == nil && info.IsDir() {
		if url, err = filepath.Abs(url); err != nil {
			return nil, fault.New(fault.Usage, "git: %w", err)
		}
	}
	sum := sha256.Sum256([]byte(url))
	key := hex.EncodeToString(sum[:])[:16]
	unlock, err := r.Cache.Lock(ctx, repositories, key)
	if err != nil {
		return nil, err
	}
	defer unlock()
	repository := r.Cache.Path(repositories, key)
	if err := os.MkdirAll(repository, 0o755); err != nil {
		return nil, r.Cache.Explain("repository", err)
	}

	commit, err := r.fetchCommit(ctx, repository, url, ref)
	if err != nil {
		return nil, err
	}
	id, source := commitID(commit), "git "+url+" "+ref+" "+commit[:12]
	unlockSource, err := r.Cache.Lock(ctx, cache.Sources, id)
	if err != nil {
		return nil, err
	}
	defer unlockSource()
	if r.Cache.Has(cache.Sources, id) {
		return r.cached(id, source)
	}

	archive := gitCommand(ctx, repository, "archive", "--format=tar", commit)
	var said bytes.Buffer
	archive.Stderr = &said
	stream, err := archive.StdoutPipe()
	if err != nil {
		return nil, fault.New(fault.Infrastructure, "git archive: %w", err)
	}
	if err := archive.Start(); err != nil {
		return nil, toolError(ctx, archive, err, "")
	}
	kernel, err := r.extract(ctx, &meter{Reader: stream, report: r.Progress, what: "unpacking " + commit[:12]}, "", source, id, source)
	if err != nil {
		_ = archive.Process.Kill()
	}
	if waitErr := archive.Wait(); err == nil && waitErr != nil {
		// The tree is committed to the cache by now, and may lack its end.
		return nil, errors.Join(toolError(ctx, archive, waitErr, said.String()), r.Cache.Remove(cache.Sources, id))
	}
	return kernel, err
}

// splitRef divides URL@REF. The user of an ssh URL has an @ too.
func splitRef(spec string) (url, ref string) {
	at := strings.LastIndexByte(spec, '@')
	if at < 0 || strings.ContainsAny(spec[at:], ":") {
		return spec, "HEAD"
	}
	// A path follows the @ of a user's name: ssh://git@host/linux. A branch may
	// have slashes as well, but then the host is before the @.
	if scheme := strings.Index(spec, "://"); scheme >= 0 && !strings.Contains(spec[scheme+3:at], "/") {
		return spec, "HEAD"
	}
	if spec[at+1:] == "" {
		return spec[:at], "HEAD"
	}
	return spec[:at], spec[at+1:]
}

// gitCommand prepares git on a repository of ours. The user's settings stay in
// force: proxies and keys are there.
func gitCommand(ctx context.Context, repository string, args ...string) *exec.Cmd {
	c := command(ctx, "git", append([]string{"--git-dir=" + repository, "-c", "gc.auto=0"}, args...)...)
	c.Env = append(withoutGitDir(c.Env), "GIT_ALLOW_PROTOCOL=file:git:http:https:ssh")
	return c
}

// fetchCommit fetches what ref names, without its history, and returns the
// commit.
func (r *resolver) fetchCommit(ctx context.Context, repository, url, ref string) (string, error) {
	if _, err := os.Stat(filepath.Join(repository, "HEAD")); err != nil {
		if _, err := output(ctx, command(ctx, "git", "init", "--quiet", "--bare", repository)); err != nil {
			return "", err
		}
	}
	// A commit that is here already needs no network.
	if isCommit(ref) {
		if known, err := output(ctx, gitCommand(ctx, repository, "rev-parse", "--verify", "--quiet", ref+"^{commit}")); err == nil {
			return strings.TrimSpace(known), nil
		}
	}
	// A fetch that was killed leaves these locks, and we hold the repository.
	for _, left := range []string{"shallow.lock", "FETCH_HEAD.lock", "packed-refs.lock"} {
		_ = os.Remove(filepath.Join(repository, left))
	}

	fetch := gitCommand(ctx, repository, "fetch", "--progress", "--no-tags", "--depth=1", "--force", "--", url, ref)
	reader, writer := io.Pipe()
	fetch.Stderr = writer
	var said strings.Builder
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		r.watchFetch(reader, &said)
	}()
	err := fetch.Run()
	writer.Close()
	<-watched
	if err := toolError(ctx, fetch, err, said.String()); err != nil {
		classed, ok := errors.AsType[*fault.Error](err)
		if !ok {
			return "", err
		}
		words := lastLine(said.String())
		if isUnknownRef(said.String()) {
			return "", fault.New(fault.Usage, "git:%s: there is no %s: %s", url, ref, words).WithOutput(said.String())
		}
		return "", fault.New(fault.Infrastructure, "git fetch of %s from %s: %s", ref, url, words).WithOutput(classed.Output).
			WithAdvice("check the network and that `git ls-remote %s` works", url)
	}
	commit, err := output(ctx, gitCommand(ctx, repository, "rev-parse", "--verify", "FETCH_HEAD^{commit}"))
	if err != nil {
		return "", err
	}
	return strings.TrimSpace(commit), nil
}

// watchFetch passes git's progress on and keeps what is not progress.
func (r *resolver) watchFetch(stderr io.Reader, said *strings.Builder) {
	lines := bufio.NewScanner(stderr)
	lines.Split(scanLines)
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		if strings.Contains(line, "%") {
			r.Progress.Report(progress.Update{What: line})
			continue
		}
		said.WriteString(line + "\n")
	}
	// Git must not block on a line that is too long for the scanner.
	_, _ = io.Copy(io.Discard, stderr)
}

// scanLines splits at carriage returns too, with which git redraws its progress.
func scanLines(data []byte, atEOF bool) (int, []byte, error) {
	if i := bytes.IndexAny(data, "\r\n"); i >= 0 {
		return i + 1, data[:i], nil
	}
	if atEOF && len(data) > 0 {
		return len(data), data, nil
	}
	return 0, nil, nil
}

func isCommit(ref string) bool {
	_, err := hex.DecodeString(ref)
	return err == nil && (len(ref) == 40 || len(ref) == 64)
}

func isUnknownRef(said string) bool {
	return strings.Contains(said, "couldn't find remote ref") || strings.Contains(said, "not our ref") || strings.Contains(said, "does not appear to be a git repository")
}

func lastLine(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	for _, line := range lines {
		if strings.HasPrefix(line, "fatal: ") || strings.HasPrefix(line, "error: ") {
			return line
		}
	}
	return lines[len(lines)-1]
}

// withoutGitDir drops the variables by which an enclosing git (a hook, a rebase)
// would point ours at its own repository.
func withoutGitDir(environment []string) []string {
	return slices.DeleteFunc(environment, func(entry string) bool {
		for _, name := range []string{"GIT_DIR=", "GIT_WORK_TREE=", "GIT_INDEX_FILE=", "GIT_OBJECT_DIRECTORY=", "GIT_COMMON_DIR="} {
			if strings.HasPrefix(entry, name) {
				return true
			}
		}
		return false
	})
}
