// SPDX-License-Identifier: BSD-3-Clause

// Package loretest serves a series as mails, the way lore does: a real
// public-inbox on loopback, for tests of whatever fetches from one.
package loretest

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// Address is the list the mails are sent to.
const Address = "netdev@example.org"

// Mails turns the patch files of a directory into mails as git send-email
// sends them: addressed to the list, with ids, the patches as replies to the
// first. Ids given in the files are kept.
func Mails(t testing.TB, dir string) (mails [][]byte, ids []string) {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "*.patch"))
	if err != nil || len(names) == 0 {
		t.Fatalf("no patches in %s: %v", dir, err)
	}
	given := regexp.MustCompile(`(?im)^message-id: <(.*)>$`)
	for i, name := range names {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		_, text, _ := strings.Cut(string(data), "\n") // the envelope line
		header, body, _ := strings.Cut(text, "\n\n")
		id := fmt.Sprintf("20240101000000.1234-%d-ada@example.org", i+1)
		if m := given.FindStringSubmatch(header); m != nil {
			id = m[1]
		} else {
			header += "\nMessage-Id: <" + id + ">"
			if i > 0 {
				header += "\nIn-Reply-To: <" + ids[0] + ">\nReferences: <" + ids[0] + ">"
			}
		}
		if !strings.Contains(header, "Content-Type:") {
			header += "\nMIME-Version: 1.0\nContent-Type: text/plain; charset=UTF-8\nContent-Transfer-Encoding: 8bit"
		}
		mails = append(mails, []byte(header+"\nTo: "+Address+"\n\n"+body))
		ids = append(ids, id)
	}
	return mails, ids
}

// Serve runs a real public-inbox with the given mails until the test ends, and
// returns the URL of the inbox.
func Serve(t testing.TB, mails [][]byte) string {
	t.Helper()
	if testing.Short() {
		t.Skip("needs public-inbox and b4, which -short leaves out")
	}
	for _, tool := range []string{"public-inbox-init", "public-inbox-index", "public-inbox-httpd", "b4"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Fatalf("%v: install public-inbox and b4, or test with -short", err)
		}
	}
	home := t.TempDir()
	environment := append(os.Environ(), "HOME="+home, "PI_CONFIG="+filepath.Join(home, "config"), "GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=/dev/null",
		"GIT_AUTHOR_NAME=test", "GIT_AUTHOR_EMAIL=test@example.org", "GIT_COMMITTER_NAME=test", "GIT_COMMITTER_EMAIL=test@example.org")

	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	socket, err := listener.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	listener.Close()
	url := "http://" + listener.Addr().String() + "/netdev"

	run := func(stdin []byte, name string, args ...string) {
		t.Helper()
		command := exec.Command(name, args...)
		command.Env, command.Stdin = environment, bytes.NewReader(stdin)
		if out, err := command.CombinedOutput(); err != nil {
			t.Fatalf("%s %v: %v\n%s", name, args, err, out)
		}
	}
	run(nil, "public-inbox-init", "-V2", "-L", "basic", "-j", "1", "netdev", filepath.Join(home, "netdev"), url, Address)
	// The archive's own format: a commit per mail, which holds it as the file
	// "m". Delivering each with public-inbox-mda would take a second per mail.
	var commits bytes.Buffer
	for i, mail := range mails {
		fmt.Fprintf(&commits, "commit refs/heads/master\ncommitter test <test@example.org> %d +0000\ndata 4\nmail\n", 1700000000+i)
		fmt.Fprintf(&commits, "M 100644 inline m\ndata %d\n%s\n", len(mail), mail)
	}
	run(commits.Bytes(), "git", "--git-dir="+filepath.Join(home, "netdev/git/0.git"), "fast-import", "--quiet")
	run(nil, "public-inbox-index", "-j", "0", filepath.Join(home, "netdev"))

	// The socket is handed over as systemd does it: no port can be taken in between.
	ctx, cancel := context.WithCancel(context.Background())
	var output bytes.Buffer
	server := exec.CommandContext(ctx, "sh", "-c", "LISTEN_PID=$$ LISTEN_FDS=1 exec public-inbox-httpd -W0")
	server.Env, server.ExtraFiles = environment, []*os.File{socket}
	server.Stdout, server.Stderr = &output, &output
	server.WaitDelay = 5 * time.Second
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		_ = server.Wait()
		if t.Failed() {
			t.Logf("public-inbox-httpd: %s", &output)
		}
	})
	return url
}

// Mbox writes mails into a mailbox as public-inbox does.
func Mbox(mails [][]byte) []byte {
	var out bytes.Buffer
	quote := regexp.MustCompile(`(?m)^(>*From )`)
	for _, mail := range mails {
		out.WriteString("From mboxrd@z Thu Jan  1 00:00:00 1970\n")
		out.Write(quote.ReplaceAll(mail, []byte(">$1")))
		out.WriteString("\n")
	}
	return out.Bytes()
}
