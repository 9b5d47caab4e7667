// SPDX-License-Identifier: BSD-3-Clause

package doctor_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// depsScript is the dependency step of make.
const depsScript = "../../.ci/deps"

// sandbox is a PATH in which only the given commands exist: real ones as links,
// fake ones as scripts that write their arguments to a log.
type sandbox struct {
	path, log string
}

func newSandbox(t *testing.T, fakes map[string]string) sandbox {
	t.Helper()
	s := sandbox{path: t.TempDir(), log: filepath.Join(t.TempDir(), "log")}
	for _, name := range []string{"bash", "env", "sort", "dirname"} {
		real, err := exec.LookPath(name)
		if err != nil {
			t.Skipf("no %s", name)
		}
		if err := os.Symlink(real, filepath.Join(s.path, name)); err != nil {
			t.Fatal(err)
		}
	}
	for name, body := range fakes {
		script := "#!/usr/bin/env bash\necho " + name + " \"$@\" >>\"$LOG\"\n" + body + "\n"
		if err := os.WriteFile(filepath.Join(s.path, name), []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

func (s sandbox) run(t *testing.T, args ...string) (output, log string, code int) {
	t.Helper()
	command := exec.Command(depsScript, args...)
	command.Env = []string{"PATH=" + s.path, "LOG=" + s.log, "BIN=" + s.path}
	text, err := command.CombinedOutput()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		code = exit.ExitCode()
	} else if err != nil {
		t.Fatal(err)
	}
	logged, err := os.ReadFile(s.log)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return string(text), string(logged), code
}

const nothing = ""

func TestDepsInstalls(t *testing.T) {
	s := newSandbox(t, map[string]string{
		"go": nothing, "git": nothing,
		"id":   "echo 1000",
		"sudo": `exec "$@"`,
		// The package brings its command.
		"apt-get": `case "$*" in *install*) printf '#!/bin/sh\n' >"$BIN/shellcheck"; /bin/chmod +x "$BIN/shellcheck";; esac`,
	})
	output, log, code := s.run(t, "lint")
	if code != 0 || output != "Installing: shellcheck\n" {
		t.Errorf("exit %d, output %q", code, output)
	}
	if !strings.Contains(log, "sudo env DEBIAN_FRONTEND=noninteractive apt-get") ||
		!strings.Contains(log, "install --yes --no-install-recommends shellcheck\n") || strings.Contains(log, " git") {
		t.Errorf("commands:\n%s", log)
	}

	// Now that all is there, it does nothing and says nothing.
	if err := os.Remove(s.log); err != nil {
		t.Fatal(err)
	}
	if output, log, code := s.run(t, "lint"); code != 0 || output != "" || log != "" {
		t.Errorf("second run: exit %d, output %q, commands %q", code, output, log)
	}
}

func TestDepsElsewhere(t *testing.T) {
	for _, test := range []struct {
		name  string
		fakes map[string]string
		want  string
	}{
		{"no go", map[string]string{"git": nothing}, "zcvet needs Go"},
		{"no apt-get", map[string]string{"go": nothing, "git": nothing}, "names of Debian packages): shellcheck"},
		{"no sudo", map[string]string{"go": nothing, "git": nothing, "apt-get": nothing, "id": "echo 1000"}, "As root: apt-get install --no-install-recommends shellcheck"},
		{"package without its command", map[string]string{"go": nothing, "git": nothing, "apt-get": nothing, "id": "echo 0"}, "still not found: shellcheck"},
	} {
		t.Run(test.name, func(t *testing.T) {
			output, _, code := newSandbox(t, test.fakes).run(t, "lint")
			if code != 7 || !strings.Contains(output, test.want) {
				t.Errorf("exit %d, output %q; want exit 7 and %q", code, output, test.want)
			}
		})
	}
}
