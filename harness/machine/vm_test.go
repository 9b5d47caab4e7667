// SPDX-License-Identifier: BSD-3-Clause

package machine

import (
	"context"
	"debug/elf"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/zcvet/zcvet/guest/link"
	"github.com/zcvet/zcvet/harness/cache"
	"github.com/zcvet/zcvet/harness/fault"
	"github.com/zcvet/zcvet/images"
)

// needQEMU skips a test where there is no QEMU.
func needQEMU(t *testing.T) {
	t.Helper()
	if _, err := exec.LookPath(defaultProgram); err != nil {
		t.Skipf("needs QEMU: %v", err)
	}
}

// tested is the kernel that tests with a real guest boot, named by
// ZCVET_TEST_KERNEL; its vmlinux with symbols and its config lie beside it.
func tested(t *testing.T) Config {
	t.Helper()
	needQEMU(t)
	kernel := os.Getenv("ZCVET_TEST_KERNEL")
	if kernel == "" {
		t.Skip("needs a kernel: ZCVET_TEST_KERNEL is not set")
	}
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	dir, err := cache.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	image, err := images.Build(t.Context(), images.Options{Cache: dir, Root: root, Agent: "./harness/machine/testdata/guest"})
	if err != nil {
		t.Fatal(err)
	}
	return Config{
		Accelerator:  NewAccelerator(TCG, "test"),
		Kernel:       kernel,
		KernelConfig: filepath.Join(filepath.Dir(kernel), "config"),
		Initramfs:    image.Path,
		ConsoleLog:   testLog{t},
	}
}

// testLog shows the console of a failed test.
type testLog struct{ t *testing.T }

func (l testLog) Write(p []byte) (int, error) {
	l.t.Log(strings.TrimRight(string(p), "\n"))
	return len(p), nil
}

func startMachine(t *testing.T, config Config) *Machine {
	t.Helper()
	m, err := Start(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Close() })
	limit := time.AfterFunc(time.Minute, func() { m.Kill(errors.New("the test takes too long")) })
	t.Cleanup(func() { limit.Stop() })
	return m
}

// bootToHello boots the test's init and waits for its hello.
func bootToHello(t *testing.T, config Config) (*Machine, *link.Conn) {
	t.Helper()
	m := startMachine(t, config)
	conn := link.NewConn(m.Link())
	if message, err := conn.Receive(); err != nil || message.Kind != link.KindHello {
		t.Fatalf("got %+v, %v instead of the guest's hello; exit %+v", message, err, m.Exit())
	}
	t.Logf("exec to hello in %v", time.Since(m.Started()).Round(time.Millisecond))
	return m, conn
}

// order sends the guest orders; receive reads until the message of that kind.
func order(t *testing.T, conn *link.Conn, orders ...string) {
	t.Helper()
	if err := conn.Send(link.KindRun, link.Run{Instances: orders}); err != nil {
		t.Fatal(err)
	}
}

func receive(t *testing.T, conn *link.Conn, kind link.Kind) {
	t.Helper()
	for {
		message, err := conn.Receive()
		if err != nil {
			t.Fatalf("waiting for %s: %v", kind, err)
		}
		if message.Kind == kind {
			return
		}
	}
}

func shutDown(t *testing.T, m *Machine, conn *link.Conn) {
	t.Helper()
	if err := conn.Send(link.KindShutdown, nil); err != nil {
		t.Fatal(err)
	}
	if exit := m.Exit(); exit.Cause != Reset || exit.Err != nil {
		t.Errorf("exit %+v, want a reset", exit)
	}
}

func TestGuestBootsAndEnds(t *testing.T) {
	m, conn := bootToHello(t, tested(t))
	order(t, conn, "print a line on the console")
	receive(t, conn, link.KindDone)
	shutDown(t, m, conn)
	if text := m.Console().TailText(0); !strings.Contains(text, "a line on the console") {
		t.Errorf("the line is not on the console:\n%s", text)
	}
	if m.Version() == "" || m.PID() == 0 || m.MemoryUsed() == 0 {
		t.Errorf("version %q, PID %d, memory %d", m.Version(), m.PID(), m.MemoryUsed())
	}
	names := []string{}
	for event := range m.Events() {
		names = append(names, event.Name)
	}
	if !slices.Contains(names, "SHUTDOWN") {
		t.Errorf("events %v, want SHUTDOWN among them", names)
	}
}

func TestPanicIsTold(t *testing.T) {
	m, conn := bootToHello(t, tested(t))
	order(t, conn, "exit")
	exit := m.Exit()
	if exit.Cause != Panic || !strings.Contains(exit.Panic, "Attempted to kill init") || fault.Of(exit.Err) != fault.Crash {
		t.Errorf("exit %+v, want a panic about init", exit)
	}
}

// plant replaces the code of a system call of the running guest, as a broken
// series would have.
func plant(t *testing.T, m *Machine, code ...byte) {
	t.Helper()
	vmlinux := filepath.Join(filepath.Dir(m.config.Kernel), "vmlinux")
	file, err := elf.Open(vmlinux)
	if err != nil {
		t.Skipf("needs the kernel's symbols: %v", err)
	}
	defer func() { _ = file.Close() }()
	symbols, err := file.Symbols()
	if err != nil {
		t.Skipf("needs the kernel's symbols: %v", err)
	}
	at := slices.IndexFunc(symbols, func(s elf.Symbol) bool { return s.Name == "__x64_sys_getpriority" })
	if at < 0 {
		t.Fatal("the kernel has no __x64_sys_getpriority")
	}
	// The kernel is mapped at __START_KERNEL_map and not relocated.
	const startKernelMap = 0xffffffff80000000
	if _, err := m.memory.WriteAt(code, int64(symbols[at].Value-startKernelMap)); err != nil {
		t.Fatal(err)
	}
}

func TestOopsLeavesTheMachineRunning(t *testing.T) {
	m, conn := bootToHello(t, tested(t))
	oops := make(chan struct{})
	m.Console().Subscribe(func(line Line) {
		if strings.Contains(line.Text, "---[ end trace") {
			close(oops)
		}
	})
	plant(t, m, 0x31, 0xc0, 0x8b, 0x00) // xor eax, eax; mov eax, [rax]
	order(t, conn, "break")
	select {
	case <-oops:
	case <-m.Done():
		t.Fatalf("exit %+v", m.Exit())
	}
	if text := m.Console().TailText(0); !strings.Contains(text, "NULL pointer dereference") {
		t.Errorf("no oops on the console:\n%s", text)
	}
	receive(t, conn, link.KindHeartbeat)
}

func TestNMIShowsWhereTheKernelHangs(t *testing.T) {
	m, conn := bootToHello(t, tested(t))
	plant(t, m, 0xfa, 0xeb, 0xfe) // cli; jmp to itself
	order(t, conn, "break")
	receive(t, conn, link.KindDone)
	// The loop has begun when its CPU no longer answers; nothing says so.
	time.Sleep(200 * time.Millisecond)
	answered, err := m.InjectNMI(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if !answered {
		t.Error("the kernel did not answer the NMI")
	}
	if text := m.Console().TailText(0); !strings.Contains(text, "__x64_sys_getpriority") {
		t.Errorf("the looping function is not on the console:\n%s", text)
	}
}

func TestSnapshotIsRestored(t *testing.T) {
	m, conn := bootToHello(t, tested(t))
	snapshot, err := m.Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("snapshot in %v, %d MiB", snapshot.Took.Round(time.Millisecond), snapshot.Bytes>>20)
	defer func() { _ = snapshot.Close() }()

	// The first machine goes on, and what it does is not in the snapshot.
	order(t, conn, "print only in the first machine")
	receive(t, conn, link.KindDone)
	shutDown(t, m, conn)

	for range 2 {
		began := time.Now()
		restored, err := snapshot.Restore(t.Context(), Restoration{ConsoleLog: testLog{t}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = restored.Close() })
		t.Logf("restored in %v", time.Since(began).Round(time.Millisecond))
		conn := link.ResumeConn(restored.Link())
		order(t, conn, "print again")
		receive(t, conn, link.KindDone)
		shutDown(t, restored, conn)
		if text := restored.Console().TailText(0); strings.Contains(text, "only in the first") {
			t.Errorf("the restored machine remembers what came later:\n%s", text)
		}
	}
}

func TestContextKillsTheMachine(t *testing.T) {
	needQEMU(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	m := startCanary(t, ctx, pvhFile([]byte{0xeb, 0xfe}, 0x100000)) // jmp to itself
	reason := errors.New("enough")
	cancel(reason)
	if exit := m.Exit(); exit.Cause != Killed || !errors.Is(exit.Err, reason) {
		t.Errorf("exit %+v, want the reason of the context", exit)
	}
}

// startCanary boots a few bytes of machine code instead of a kernel.
func startCanary(t *testing.T, ctx context.Context, program []byte) *Machine {
	t.Helper()
	path := filepath.Join(t.TempDir(), "guest")
	if err := os.WriteFile(path, program, 0o644); err != nil {
		t.Fatal(err)
	}
	m, err := Start(ctx, Config{Accelerator: NewAccelerator(TCG, "test"), Kernel: path, ConsoleLog: testLog{t}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Close() })
	return m
}

func TestCanarySings(t *testing.T) {
	needQEMU(t)
	m := startCanary(t, t.Context(), canary())
	if exit := m.Exit(); exit.Cause != Reset {
		t.Errorf("exit %+v, want a reset", exit)
	}
	if text := m.Console().TailText(0); !strings.Contains(text, canarySong) {
		t.Errorf("console %q, want %q", text, canarySong)
	}
}
