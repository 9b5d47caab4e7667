// SPDX-License-Identifier: BSD-3-Clause

package cases

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/zcvet/zcvet/guest/network"
	"github.com/zcvet/zcvet/guest/sys"
	"github.com/zcvet/zcvet/guest/trace"
)

// Where the image has the selftest msg_zerocopy of the tree under test: the
// program, or else one of two texts that say why there is none. Without any of
// them the kernel was not built from a tree.
const (
	SelftestProgram = "selftest/msg_zerocopy"
	SelftestFailure = "selftest/failure" // it does not compile
	SelftestAbsent  = "selftest/absent"  // the tree has none
)

// readSelftestText returns a text of the image, empty if it is not there. It ends
// the case.
func readSelftestText(t *T, place string) string {
	t.Helper()
	text, err := os.ReadFile(path.Join("/", place))
	if !errors.Is(err, fs.ErrNotExist) {
		t.Check(err, "read the image")
	}
	return string(text)
}

// requireSelftest skips the case without the program. It ends the case.
func requireSelftest(t *T) {
	t.Helper()
	if _, err := os.Stat(path.Join("/", SelftestProgram)); err == nil {
		return
	}
	if absent := readSelftestText(t, SelftestAbsent); absent != "" {
		t.Skipf("no selftest: %s", absent)
	}
	if readSelftestText(t, SelftestFailure) != "" {
		t.Skipf("no selftest: it does not compile, as selftest/compiles says")
	}
	t.Skipf("no selftest: this kernel was not built from a tree")
}

var _ = add(Case{
	Name:   "selftest/compiles",
	Doc:    "the tree's selftest msg_zerocopy compiles against the tree's own headers",
	Covers: []string{"R01"},
}, func(t *T) {
	if failure := readSelftestText(t, SelftestFailure); failure != "" {
		t.Fatalf("msg_zerocopy does not compile: %s", failure)
	}
	requireSelftest(t)
})

// selftestMode is a way to run the selftest.
type selftestMode struct {
	name, doc string
	// options are the sender's.
	options []string
	protos  []Proto
	// zerocopy tells that every send is to be notified, mixed that some are.
	zerocopy, mixed bool
	// copies tells that the kernel may copy on a link that does zero copy.
	copies bool
}

var selftestModes = []selftestMode{
	{name: "copied", doc: "without zero copy: nothing is notified", protos: IP},
	{name: "zerocopy", doc: "with zero copy (-z): every send is notified", options: []string{"-z"}, protos: IP, zerocopy: true},
	{name: "notified-by-sendmsg", doc: "with notifications from sendmsg (-n, of the series): every send is notified", options: []string{"-n"}, protos: IP, zerocopy: true},
	{name: "corked", doc: "with corked datagrams of 8 pieces (-z -c 8): every piece is notified", options: []string{"-z", "-c", "8"}, protos: []Proto{UDP}, zerocopy: true, copies: true},
	{name: "corked-mixed", doc: "with corked datagrams of copied and zero-copy pieces (-z -c 8 -m): every zero-copy piece is notified", options: []string{"-z", "-c", "8", "-m"}, protos: []Proto{UDP}, mixed: true, copies: true},
}

func init() {
	for _, mode := range selftestModes {
		add(Case{
			Name:       "selftest/" + mode.name,
			Concurrent: true,
			Doc:        "the tree's selftest passes over both families " + mode.doc,
			Covers:     []string{"R01"},
			Axes:       Axes{Protos: mode.protos, Links: []network.Link{network.Loopback, network.NIC}},
		}, func(t *T) {
			requireSelftest(t)
			// As its script does: a send that finds no option memory ends it.
			limitOptmem(t, 8<<20)
			// Bounds what is on its way when the sender stops, because it waits for
			// notifications no longer than half a second.
			setSysctl(t, SenderEnd, "net/core/wmem_max", fmt.Sprint(32<<10))
			families := []network.Family{network.IPv4}
			if t.environment.feature(FeatureIPv6) == nil {
				families = append(families, network.IPv6)
			}
			unknown := make(chan string, len(families))
			for i, family := range families {
				t.Go(func() {
					if option := mode.run(t, family, 8000+i); option != "" {
						unknown <- option
					}
				})
			}
			t.group.Wait()
			if len(unknown) > 0 {
				t.Skipf("the tree's selftest has no option %s", <-unknown)
			}
		})
	}
}

// selftestAttempts is how often a run is made in which notifications were still
// to come at its end: half a second may be too short on a machine that has much
// else to do. A notification that is lost is lost every time.
const selftestAttempts = 3

// run runs the selftest over a family, and returns the option if it does not know
// the mode's. It must not end the case.
func (m selftestMode) run(t *T, family network.Family, port int) (unknown string) {
	for attempt := range selftestAttempts {
		receiver, sender, err := m.pair(t, family, port)
		if err != nil {
			t.Errorf("%s: %v", family, err)
			return ""
		}
		said := sender.String()
		if option := invalidOption(said); option != "" {
			return option
		}
		if late := strings.Contains(said, "missing notifications"); late && attempt+1 < selftestAttempts {
			t.Logf("%s, attempt %d: %s", family, attempt+1, strings.TrimSpace(said))
			continue
		}
		for _, complaint := range m.judge(t.Link, said) {
			t.Errorf("%s: %s; the sender said %q, the receiver %q", family, complaint, strings.TrimSpace(said), strings.TrimSpace(receiver.String()))
		}
		return ""
	}
	return ""
}

// invalidOption returns the option that getopt complained about, if it did.
func invalidOption(said string) string {
	match := regexp.MustCompile(`invalid option -- '(\w)'`).FindStringSubmatch(said)
	if match == nil {
		return ""
	}
	return "-" + match[1]
}

// selftestResult is the sender's last line.
var selftestResult = regexp.MustCompile(`^tx=(\d+) \(\d+ MB\) txc=(\d+) zc=([yn])$`)

// judge returns what is wrong with a sender's output, which ends in its result and
// has nothing else if all is well.
func (m selftestMode) judge(link network.Link, said string) []string {
	var wrong []string
	result := []string(nil)
	for line := range strings.Lines(said) {
		line = strings.TrimSpace(line)
		switch match := selftestResult.FindStringSubmatch(line); {
		case match != nil:
			result = match
		case line != "" && !strings.HasPrefix(line, "cpu: "):
			wrong = append(wrong, "the selftest complains: "+line)
		}
	}
	if result == nil {
		return append(wrong, "there is no result")
	}
	sent, _ := strconv.Atoi(result[1])
	notified, _ := strconv.Atoi(result[2])
	switch {
	case sent == 0:
		wrong = append(wrong, "nothing was sent")
	case m.zerocopy && notified != sent:
		wrong = append(wrong, fmt.Sprintf("%d sends, %d notifications", sent, notified))
	case m.mixed && (notified == 0 || notified >= sent):
		wrong = append(wrong, fmt.Sprintf("%d sends, a part of them zero copy, %d notifications", sent, notified))
	case !m.zerocopy && !m.mixed && notified != 0:
		wrong = append(wrong, fmt.Sprintf("%d notifications, and no send asked for one", notified))
	}
	if m.zerocopy && !m.copies && notified > 0 {
		if zerocopy := result[3] == "y"; zerocopy != (link == network.NIC) {
			wrong = append(wrong, fmt.Sprintf("zero copy %v was expected on link %s, came %v", link == network.NIC, link, zerocopy))
		}
	}
	return wrong
}

// pair runs a receiver and a sender, and returns what they printed. It must not
// end the case. The receiver goes on for a while on purpose; it is ended once it
// has read everything.
func (m selftestMode) pair(t *T, family network.Family, port int) (receiver, sender *bytes.Buffer, err error) {
	sys.Recorder().Mark(trace.Child, nil, "msg_zerocopy, the tree's selftest")
	version := "-4"
	if family == network.IPv6 {
		version = "-6"
	}
	from, to := t.Link.Addresses(family)
	arguments := []string{version, "-p", strconv.Itoa(port), "-S", from.String(), "-D", to.String()}
	if m.zerocopy && !m.copies && selftestExpects() {
		// It compares every notification, and fails itself.
		expected := "0"
		if t.Link == network.NIC {
			expected = "1"
		}
		m.options = append(slices.Clone(m.options), "-Z", expected)
	}
	if t.Proto == UDP {
		// A fragmented datagram is copied.
		arguments = append(arguments, "-s", "1400")
	} else {
		// A fraction of the send buffer.
		arguments = append(arguments, "-s", "8000")
	}
	command := func(processor int, more ...string) *exec.Cmd {
		c := exec.Command(path.Join("/", SelftestProgram), append(append([]string{"-C", strconv.Itoa(processor)}, arguments...), more...)...)
		c.Stderr = new(bytes.Buffer)
		return c
	}
	// The sender stops after the least time there is, a fifth of a second; the
	// receiver would go on for longer than any sender takes to start.
	receiving := command(0, "-t", "600", "-r", string(t.Proto))
	sending := command(runtime.GOMAXPROCS(0)-1, append([]string{"-t", "0"}, append(m.options, string(t.Proto))...)...)
	receiver, sender = receiving.Stderr.(*bytes.Buffer), sending.Stderr.(*bytes.Buffer)

	if err := t.environment.Network.NamespaceOf(t.Link).Do(receiving.Start); err != nil {
		return receiver, sender, fmt.Errorf("start the receiver: %w", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- receiving.Wait() }()
	defer func() {
		// Whatever came before: the process ends, and its output is complete.
		_ = receiving.Process.Signal(unix.SIGKILL)
		if exit := <-ended; err == nil && receiving.ProcessState.Exited() && exit != nil {
			err = fmt.Errorf("the receiver failed: %w: %s", exit, strings.TrimSpace(receiver.String()))
		}
	}()
	table := socketTable{pid: receiving.Process.Pid, name: string(t.Proto), port: port}
	if family == network.IPv6 {
		table.name += "6"
	}
	if err := table.await(t.Patience(), "the receiver's socket is bound", func(sockets []tableLine) bool { return len(sockets) > 0 }); err != nil {
		return receiver, sender, err
	}
	if err := sending.Start(); err != nil {
		return receiver, sender, fmt.Errorf("start the sender: %w", err)
	}
	limit := time.AfterFunc(2*t.Patience(), func() { _ = sending.Process.Kill() })
	err = sending.Wait()
	limit.Stop()
	if err != nil && invalidOption(sender.String()) == "" {
		return receiver, sender, fmt.Errorf("the sender failed: %w: %s", err, strings.TrimSpace(sender.String()))
	}
	return receiver, sender, table.await(t.Patience(), "the receiver has read everything", func(sockets []tableLine) bool {
		for _, socket := range sockets {
			if socket.unread > 0 && !socket.listening {
				return false
			}
		}
		return true
	})
}

// selftestExpects tells whether the selftest has option -Z, which tells it whether
// to expect copies. One that has it reports zero copy only if that was expected.
var selftestExpects = sync.OnceValue(func() bool {
	// Either way it ends at once: the option lacks its argument.
	said, _ := exec.Command(path.Join("/", SelftestProgram), "-Z").CombinedOutput()
	return invalidOption(string(said)) == ""
})

// socketTable finds sockets of a local port in /proc/PID/net.
type socketTable struct {
	pid  int
	name string // of the file
	port int
}

// tableLine is a socket.
type tableLine struct {
	listening bool
	unread    int // bytes
}

// await reads the table until condition holds. A process that has ended has no
// sockets, and an error if some were wanted.
func (s socketTable) await(patience time.Duration, what string, condition func([]tableLine) bool) error {
	for deadline := time.Now().Add(patience); ; time.Sleep(2 * time.Millisecond) {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", s.pid, s.name))
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("look for sockets: %w", err)
		}
		if condition(s.parse(text)) {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("waited %v in vain: %s", patience, what)
		}
	}
}

// parse reads the lines of the table: number, local address, remote address,
// state, and the lengths of the send and receive queues.
func (s socketTable) parse(text []byte) []tableLine {
	const listen = "0A" // TCP_LISTEN
	var found []tableLine
	for lines := bufio.NewScanner(bytes.NewReader(text)); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) < 5 || !strings.HasSuffix(fields[1], fmt.Sprintf(":%04X", s.port)) {
			continue
		}
		_, unread, _ := strings.Cut(fields[4], ":")
		bytes, err := strconv.ParseUint(unread, 16, 32)
		if err != nil {
			continue
		}
		found = append(found, tableLine{listening: fields[3] == listen, unread: int(bytes)})
	}
	return found
}
