// SPDX-License-Identifier: BSD-3-Clause

package gate

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/zcvet/zcvet/harness/check"
	"github.com/zcvet/zcvet/harness/fault"
)

// notOurs are the types of message that netdev's gate leaves out, and those that
// other checks are about.
var notOurs = []string{
	// Left out by the gate: they are wrong too often.
	"ALLOC_SIZEOF_STRUCT", "CAMELCASE", "COMMIT_LOG_LONG_LINE", "FILE_PATH_CHANGES", "GIT_COMMIT_ID", "MACRO_ARG_REUSE", "NO_AUTHOR_SIGN_OFF",
	// check.SignedOff and check.Fixes.
	"MISSING_SIGN_OFF", "BAD_SIGN_OFF", "BAD_FIXES_TAG",
}

// columns is the width that netdev asks for; checkpatch's own limit is 100.
const columns = 80

// checkpatch runs the tree's own checkpatch.pl over the patch. Errors fail it, as
// in the gate; warnings and remarks are shown.
func (p *patchWalk) checkpatch(ctx context.Context) error {
	return p.once(check.Checkpatch, p.key(check.Checkpatch), func() (kept, error) {
		script := filepath.Join(p.from.Dir, "scripts", "checkpatch.pl")
		mail, cleanup, err := p.file("patch", p.patch.Mail)
		if err != nil {
			return kept{}, err
		}
		defer cleanup()
		output, skip, err := p.script(ctx, "perl", script, "--strict", "--max-line-length="+strconv.Itoa(columns), "--show-types", "--terse", "--no-summary",
			"--root="+p.from.Dir, "--ignore="+strings.Join(notOurs, ","), mail)
		if skip != "" || err != nil {
			return skipped(skip), err
		}
		return judgeCheckpatch(strings.ReplaceAll(output, mail+":", "")), nil
	})
}

// checkpatchLine is "12: ERROR:SPACING: space required before …", the number that of
// the line in the mail.
var checkpatchLine = regexp.MustCompile(`^(\d+): (ERROR|WARNING|CHECK):([A-Z_0-9]+): (.*)$`)

func judgeCheckpatch(output string) kept {
	result := check.Result{Status: check.Pass, Summary: "nothing to say"}
	errors, remarks := 0, 0
	for line := range strings.Lines(output) {
		match := checkpatchLine.FindStringSubmatch(strings.TrimRight(line, "\r\n"))
		if match == nil {
			continue
		}
		if match[2] == "ERROR" {
			errors++
		} else {
			remarks++
		}
		result.Messages = append(result.Messages, check.Message{Text: fmt.Sprintf("%s: %s (%s, line %s of the mail)", match[2], match[4], match[3], match[1])})
	}
	// Errors first: the summary quotes the first message.
	slices.SortStableFunc(result.Messages, func(a, b check.Message) int {
		return severity(a.Text) - severity(b.Text)
	})
	switch {
	case errors > 0:
		result.Status = check.Fail
	case remarks > 0:
		result.Status = check.Warn
	default:
		return kept{Result: result}
	}
	result.Summary = summary("message", result.Messages)
	return kept{Result: result, Log: output}
}

func severity(text string) int {
	kind, _, _ := strings.Cut(text, ":")
	return slices.Index([]string{"ERROR", "WARNING", "CHECK"}, kind)
}

// kdoc compares what the tree's own kernel-doc says about the touched files before
// and after the patch.
func (p *patchWalk) kdoc(ctx context.Context) error {
	files := slices.DeleteFunc(slices.Clone(p.touched), func(name string) bool {
		return !strings.HasSuffix(name, ".c") && !strings.HasSuffix(name, ".h")
	})
	return p.once(check.Kdoc, p.key(check.Kdoc), func() (kept, error) {
		if len(files) == 0 {
			return kept{Result: check.Result{Status: check.Pass, Summary: "no C file touched"}}, nil
		}
		before, skip, err := p.kernelDoc(ctx, p.before, files)
		if skip != "" || err != nil {
			return skipped(skip), err
		}
		after, skip, err := p.kernelDoc(ctx, p.after, files)
		if skip != "" || err != nil {
			return skipped(skip), err
		}
		added := fresh(before, after)
		if len(added) == 0 {
			return kept{Result: check.Result{Status: check.Pass, Summary: "no new warning"}}, nil
		}
		return kept{
			Result: check.Result{Status: check.Fail, Summary: summary("new warning", added), Messages: added},
			Log:    strings.Join(after, "\n") + "\n",
		}, nil
	})
}

// kernelDoc is what kernel-doc says about files of a tree, with names from its
// root.
func (p *patchWalk) kernelDoc(ctx context.Context, files check.Files, names []string) (lines []string, skip string, err error) {
	dir, cleanup, err := p.Cache.TempDir()
	if err != nil {
		return nil, "", err
	}
	defer cleanup()
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, "", err
	}
	defer root.Close()
	var here []string
	for _, name := range names {
		data, err := files.ReadFile(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			err = root.MkdirAll(filepath.Dir(name), 0o755)
		}
		if err == nil {
			err = root.WriteFile(name, data, 0o644)
		}
		if err != nil {
			return nil, "", p.Cache.Explain("check the kernel-doc comments", err)
		}
		here = append(here, name)
	}
	if len(here) == 0 {
		return nil, "", nil
	}
	script := filepath.Join(p.from.Dir, "scripts", "kernel-doc")
	interpreter := "perl"
	if head, err := os.ReadFile(script); err == nil && bytes.Contains(head[:min(len(head), 80)], []byte("python")) {
		interpreter = "python3" // since 6.17
	}
	output, skip, err := p.scriptIn(ctx, dir, interpreter, append([]string{script, "-none", "-Wall"}, here...)...)
	return strings.Split(strings.ReplaceAll(output, dir+"/", ""), "\n"), skip, err
}

func skipped(reason string) kept {
	return kept{Result: check.Result{Status: check.Skip, Summary: reason}}
}

// file puts something into a temporary file.
func (p *patchWalk) file(name string, data []byte) (path string, cleanup func(), err error) {
	dir, cleanup, err := p.Cache.TempDir()
	if err != nil {
		return "", nil, err
	}
	path = filepath.Join(dir, name)
	if err := os.WriteFile(path, data, 0o644); err != nil {
		cleanup()
		return "", nil, p.Cache.Explain("write a patch", err)
	}
	return path, cleanup, nil
}

func (p *patchWalk) script(ctx context.Context, interpreter string, arguments ...string) (output, skip string, err error) {
	return p.scriptIn(ctx, p.from.Dir, interpreter, arguments...)
}

// scriptIn runs a script of the tree, the first of the arguments. Skip says why it
// cannot be run here. That it complains is no error.
func (p *patchWalk) scriptIn(ctx context.Context, dir, interpreter string, arguments ...string) (output, skip string, err error) {
	if _, err := exec.LookPath(interpreter); err != nil {
		return "", fmt.Sprintf("%s is not installed: sudo apt-get install %s", interpreter, interpreter), nil
	}
	if _, err := os.Stat(arguments[0]); err != nil {
		return "", fmt.Sprintf("this tree has no scripts/%s", filepath.Base(arguments[0])), nil
	}
	command := exec.CommandContext(ctx, interpreter, arguments...)
	command.Dir = dir
	// Python would write beside the script, into a tree that is only read.
	command.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "PYTHONDONTWRITEBYTECODE=1")
	text, err := command.CombinedOutput()
	if ctx.Err() != nil {
		return "", "", context.Cause(ctx)
	}
	if exit, ok := errors.AsType[*exec.ExitError](err); err != nil && (!ok || !exit.Exited()) {
		return "", "", fault.New(fault.Infrastructure, "%s: %w", arguments[0], err).WithOutput(string(text))
	}
	return string(text), "", nil
}
