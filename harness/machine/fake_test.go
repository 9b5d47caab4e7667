// SPDX-License-Identifier: BSD-3-Clause

package machine

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/zcvet/zcvet/harness/fault"
)

// The environment turns the test binary into something else.
const (
	fakeQEMU    = "ZCVET_TEST_FAKE_QEMU"    // a QEMU that behaves as its value says
	fakeHarness = "ZCVET_TEST_FAKE_HARNESS" // a process that starts a machine and waits to be killed
)

func TestMain(m *testing.M) {
	switch {
	case os.Getenv(fakeHarness) != "":
		harnessMain()
	case os.Getenv(fakeQEMU) != "":
		qemuMain(os.Getenv(fakeQEMU))
	}
	os.Exit(m.Run())
}

// qemuMain is a QEMU that speaks just enough QMP and has a guest that does one
// thing when it is let run.
func qemuMain(behaviour string) {
	switch behaviour {
	case "refuses":
		fmt.Fprintln(os.Stderr, "qemu-system-x86_64: -machine microvm: unsupported machine type")
		os.Exit(1)
	case "silent":
		select {}
	case "no memory":
		fmt.Fprintln(os.Stderr, "qemu-system-x86_64: cannot set up guest memory 'ram': Cannot allocate memory")
		os.Exit(1)
	}
	monitor, console, guest := inherited("monitor"), inherited("console"), inherited("link")
	say := func(format string, arguments ...any) { _, _ = fmt.Fprintf(monitor, format+"\n", arguments...) }
	shutdown := func() {
		say(`{"event":"SHUTDOWN","data":{"guest":true,"reason":"guest-reset"},"timestamp":{"seconds":1,"microseconds":2}}`)
		os.Exit(0)
	}
	say(`{"QMP":{"version":{"qemu":{"major":7,"minor":2,"micro":99},"package":""},"capabilities":["oob"]}}`)
	commands := json.NewDecoder(monitor)
	for {
		var command struct {
			Execute string `json:"execute"`
		}
		if err := commands.Decode(&command); err != nil {
			os.Exit(3)
		}
		switch {
		case command.Execute == "qmp_capabilities" && behaviour == "talkative":
			// All in one write, as a busy QEMU may.
			say(`{"return":{}}` + "\r\n" + `{"event":"FIRST"}` + "\r\n" + `{"event":"SECOND"}`)
			continue
		case command.Execute == "query-status" && behaviour == "talkative":
			long := strings.Repeat("x", 200)
			say(`{"return":{"status":"running","padding":"%s"}}`+"\r\n"+`{"event":"THIRD","data":{"padding":"%s"}}`, long, long)
			continue
		case command.Execute == "query-status":
			say(`{"error":{"class":"GenericError","desc":"no status today"}}`)
			continue
		case command.Execute == "stop" && behaviour == "stuck":
			continue
		}
		say(`{"return":{}}`)
		if command.Execute != "cont" {
			continue
		}
		switch behaviour {
		case "aborts":
			fmt.Fprintln(os.Stderr, "error: failed to set MSR 0x10a to 0x69")
			_ = syscall.Kill(os.Getpid(), syscall.SIGABRT)
		case "panics":
			_, _ = fmt.Fprint(console, "[    1.0] Kernel panic - not syncing: Fatal exception\r\n[    1.1] the end")
			shutdown()
		case "resets":
			shutdown()
		case "sings":
			_, _ = fmt.Fprintln(console, canarySong)
			shutdown()
		case "says goodbye":
			_, _ = guest.Write([]byte("good"))
			_, _ = guest.Write([]byte("bye"))
			shutdown()
		case "closes the link":
			_, _ = guest.Write([]byte("half a mess"))
			_ = guest.Close()
		case "floods":
			for i := range 20000 {
				_, _ = fmt.Fprintf(console, "line %d\n", i)
			}
			shutdown()
		}
	}
}

// inherited finds the descriptor of a chardev on the command line.
func inherited(id string) *os.File {
	for _, argument := range os.Args {
		if rest, found := strings.CutPrefix(argument, "socket,id="+id+",fd="); found {
			if fd, err := strconv.Atoi(rest); err == nil {
				return os.NewFile(uintptr(fd), id)
			}
		}
	}
	fmt.Fprintf(os.Stderr, "no chardev %s in %q\n", id, os.Args)
	os.Exit(2)
	return nil
}

// fakeConfig is a machine whose QEMU behaves so.
func fakeConfig(t *testing.T, behaviour string) Config {
	t.Helper()
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv(fakeQEMU, behaviour)
	return Config{QEMU: program, Kernel: "/nowhere", Accelerator: NewAccelerator(TCG, "test"), Memory: 1}
}

func TestQEMUThatDoesNotStart(t *testing.T) {
	for _, test := range []struct {
		behaviour, want, advice string
	}{
		{"refuses", "unsupported machine type", "QEMU 7.2"},
		{"no memory", "Cannot allocate memory", "no memory left"},
	} {
		t.Run(test.behaviour, func(t *testing.T) {
			_, err := Start(t.Context(), fakeConfig(t, test.behaviour))
			failure, ok := errors.AsType[*fault.Error](err)
			if !ok || failure.Class != fault.Infrastructure {
				t.Fatalf("got %v, want an infrastructure error", err)
			}
			if !strings.Contains(err.Error(), test.want) || !strings.Contains(failure.Advice, test.advice) {
				t.Errorf("error %q with advice %q, want %q and %q", err, failure.Advice, test.want, test.advice)
			}
		})
	}
}

func TestQEMUMissing(t *testing.T) {
	_, err := Start(t.Context(), Config{QEMU: "qemu-that-is-not-installed", Kernel: "/nowhere"})
	failure, ok := errors.AsType[*fault.Error](err)
	if !ok || failure.Class != fault.Infrastructure || !strings.Contains(failure.Advice, "qemu-system-x86") {
		t.Errorf("got %v, want an infrastructure error that names the package", err)
	}
}

func TestStartOfASilentQEMUStopsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := Start(ctx, fakeConfig(t, "silent")); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want the deadline", err)
	}
}

func TestHowMachinesEnd(t *testing.T) {
	for _, test := range []struct {
		behaviour string
		cause     Cause
		class     fault.Class
		want      string // in the error or in what QEMU said
	}{
		{"resets", Reset, fault.None, ""},
		{"panics", Panic, fault.Crash, "Fatal exception"},
		{"aborts", Lost, fault.Infrastructure, "failed to set MSR"},
	} {
		t.Run(test.behaviour, func(t *testing.T) {
			m := startMachine(t, fakeConfig(t, test.behaviour))
			exit := m.Exit()
			if exit.Cause != test.cause || fault.Of(exit.Err) != test.class {
				t.Errorf("exit %+v, want %s of class %v", exit, test.cause, test.class)
			}
			if said := fmt.Sprint(exit.Err, exit.Output); !strings.Contains(said, test.want) {
				t.Errorf("%q does not say %q", said, test.want)
			}
		})
	}
}

func TestConsoleIsReadToItsEnd(t *testing.T) {
	var log strings.Builder
	config := fakeConfig(t, "panics")
	config.ConsoleLog = &log
	startMachine(t, config).Exit()
	for _, want := range []string{"Fatal exception\n", "the end\n"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("console log %q has no %q", log.String(), want)
		}
	}
}

func TestSlowSubscriberDoesNotHoldTheGuest(t *testing.T) {
	config := fakeConfig(t, "floods")
	m, err := Start(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = m.Close() }()
	release := make(chan struct{})
	m.Console().Subscribe(func(Line) { <-release })
	<-m.process.done // it could print everything
	close(release)
	m.Exit()
	if last := m.Console().Tail(1); len(last) != 1 || last[0].Text != "line 19999" {
		t.Errorf("last line %v", last)
	}
}

func TestLinkIsReadToItsEnd(t *testing.T) {
	m := startMachine(t, fakeConfig(t, "says goodbye"))
	m.Exit()
	if got, err := io.ReadAll(m.Link()); err != nil || string(got) != "goodbye" {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestGuestClosesTheLink(t *testing.T) {
	m := startMachine(t, fakeConfig(t, "closes the link"))
	if got, err := io.ReadAll(m.Link()); err != nil || string(got) != "half a mess" {
		t.Errorf("got %q, %v", got, err)
	}
	select {
	case <-m.Done():
		t.Errorf("the machine ended as well: %+v", m.Exit())
	default:
	}
}

func TestKillGivesItsReason(t *testing.T) {
	m := startMachine(t, fakeConfig(t, "idle"))
	reason := errors.New("the case hung")
	m.Kill(reason)
	m.Kill(errors.New("later"))
	if exit := m.Exit(); exit.Cause != Killed || !errors.Is(exit.Err, reason) {
		t.Errorf("exit %+v, want killed because %v", exit, reason)
	}
	for range 2 {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestCommandsToAMachineThatIsGone(t *testing.T) {
	m := startMachine(t, fakeConfig(t, "resets"))
	m.Exit()
	if err := m.Stop(t.Context()); fault.Of(err) != fault.Infrastructure {
		t.Errorf("got %v, want an infrastructure error", err)
	}
	if _, err := m.Snapshot(t.Context()); err == nil {
		t.Error("a snapshot of nothing")
	}
}

func TestQMPSurvivesATalkativeQEMU(t *testing.T) {
	m := startMachine(t, fakeConfig(t, "talkative"))
	var status struct {
		Status  string `json:"status"`
		Padding string `json:"padding"`
	}
	for range 20 {
		if err := m.run(t.Context(), "query-status", nil, &status); err != nil {
			t.Fatal(err)
		}
		if status.Status != "running" || strings.Trim(status.Padding, "x") != "" || len(status.Padding) != 200 {
			t.Fatalf("damaged reply %+v", status)
		}
	}
	for _, want := range []string{"FIRST", "SECOND", "THIRD"} {
		if event := <-m.Events(); event.Name != want {
			t.Errorf("event %q, want %q", event.Name, want)
		}
	}
}

func TestQMPErrorIsQEMUsOwn(t *testing.T) {
	m := startMachine(t, fakeConfig(t, "idle"))
	err := m.run(t.Context(), "query-status", nil, nil)
	if err == nil || !strings.Contains(err.Error(), "no status today") {
		t.Errorf("got %v", err)
	}
	if err := m.Continue(t.Context()); err != nil {
		t.Errorf("after an error: %v", err)
	}
}

func TestQMPCommandWithoutAnswer(t *testing.T) {
	m := startMachine(t, fakeConfig(t, "stuck"))
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := m.Stop(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want the deadline", err)
	}
	// A late reply must not answer the next command.
	if err := m.Continue(t.Context()); err == nil {
		t.Error("the connection was used again")
	}
}

// harnessMain starts a machine and is then killed by its parent.
func harnessMain() {
	program, err := os.Executable()
	if err != nil {
		panic(err)
	}
	err = errors.Join(
		os.Setenv(fakeQEMU, "idle"),
		os.Unsetenv(fakeHarness))
	if err != nil {
		panic(err)
	}
	m, err := Start(context.Background(), Config{
		QEMU: program, Kernel: "/nowhere", Accelerator: NewAccelerator(TCG, "test"), Memory: 1,
	})
	if err != nil {
		panic(err)
	}
	fmt.Println(m.PID())
	select {}
}

func TestKilledHarnessLeavesNoQEMU(t *testing.T) {
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	harness := exec.Command(program)
	harness.Env = append(os.Environ(), fakeHarness+"=1")
	harness.Stderr = os.Stderr
	output, err := harness.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := harness.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(output).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, 0); err != nil {
		t.Fatalf("QEMU does not run: %v", err)
	}
	if err := harness.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = harness.Wait()

	for deadline := time.Now().Add(5 * time.Second); alive(pid); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("QEMU outlived the harness by 5 s")
		}
	}
}

// alive tells whether a process runs; a zombie nobody waits for does not.
func alive(pid int) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, state, _ := strings.Cut(string(text), ") ")
	return !strings.HasPrefix(state, "Z")
}
