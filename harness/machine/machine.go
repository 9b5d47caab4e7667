// SPDX-License-Identifier: BSD-3-Clause

// Package machine runs a kernel in QEMU: it starts it, reads its console and the
// guest link, notices how it ends, takes snapshots and restores them.
//
// Everything a machine is made of belongs to this process and goes with it.
// There is no named socket, no temporary file and no detached child: streams are
// inherited sockets, guest memory is a memfd, and the kernel kills QEMU when this
// process ends, however it ends.
package machine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"al.essio.dev/pkg/shellescape"
	"github.com/digitalocean/go-qemu/qmp"

	"github.com/zcvet/zcvet/harness/fault"
)

// Config describes a machine. Kernel and Accelerator must be set.
type Config struct {
	// QEMU is the program, by default qemu-system-x86_64 from PATH.
	QEMU string
	// Accelerator comes from Probe or NewAccelerator.
	Accelerator Accelerator
	// Kernel is an uncompressed vmlinux with a PVH entry point.
	Kernel string
	// KernelConfig is the file with the configuration that Kernel was built
	// with. It may be empty; the machine then boots a tenth of a second slower
	// under TCG.
	KernelConfig string
	// Initramfs may be empty.
	Initramfs string
	// Memory of the guest in MiB, 256 by default.
	Memory int
	// CPUs of the guest, 2 by default.
	CPUs int
	// Slowdown is how many times longer than another kernel this one takes for
	// everything, 1 by default; see NewPatience.
	Slowdown float64
	// NICs in the order in which they are plugged, at most 6.
	NICs []NIC
	// Parameters are added to the kernel's command line and win over those the
	// machine sets.
	Parameters []string
	// CountInstructions makes the guest's time a count of the instructions it
	// executed, one nanosecond each: the same work takes the same time whatever
	// else the host does. It takes one CPU and the accelerator TCG.
	CountInstructions bool
	// Verbose lets the kernel print everything, from its first line, for a
	// kernel that does not boot.
	Verbose bool
	// ConsoleLog receives every console line, with the seconds since the start
	// in front. ConsoleRaw receives the bytes as they come, for a terminal. Both
	// may be nil; neither can hold up the guest.
	ConsoleLog, ConsoleRaw io.Writer
}

const (
	defaultProgram = "qemu-system-x86_64"
	defaultMemory  = 256
	defaultCPUs    = 2
)

func (c Config) withDefaults() Config {
	if c.QEMU == "" {
		c.QEMU = defaultProgram
	}
	if c.Memory == 0 {
		c.Memory = defaultMemory
	}
	if c.CPUs == 0 {
		c.CPUs = defaultCPUs
	}
	if c.CountInstructions {
		c.CPUs = 1
	}
	return c
}

func (c Config) patience() Patience { return NewPatience(c.Accelerator, c.Slowdown) }

// plugs are the parts of a machine that differ between a machine that this
// process runs and the same machine started by hand.
type plugs struct {
	memory                        string
	console, link, cases, monitor chardev
	hubs                          bool
	tsc, hz                       int
	extra                         []option
}

// options is the machine that c describes.
func (c Config) options(p plugs) []option {
	options := []option{
		microvm{},
		c.accelerator(),
		processors(c.CPUs),
		sharedMemory{mebibytes: c.Memory, path: p.memory},
		directBoot{kernel: c.Kernel, initramfs: c.Initramfs},
		exitOnPanic{},
		backtraceOnNMI{},
		knownClock{tsc: p.tsc, hz: p.hz},
		serialConsole{chardev: p.console, verbose: c.Verbose},
		guestLink{chardev: p.link, cases: p.cases},
	}
	if p.monitor != nil {
		options = append(options, monitorSocket{chardev: p.monitor}, heldAtStart{})
	}
	for i, n := range c.NICs {
		if p.hubs {
			options = append(options, hubNIC{NIC: n, hub: i / 2})
		} else {
			options = append(options, n)
		}
	}
	return append(options, p.extra...)
}

func (c Config) accelerator() option {
	if c.CountInstructions {
		return instructionCounter{c.Accelerator}
	}
	return c.Accelerator
}

// guestTSC is the rate of the guest's clock in kHz, where we know it better than
// the guest.
func (c Config) guestTSC() int {
	switch {
	case c.Accelerator.Name != TCG:
		return 0
	case c.CountInstructions:
		return 1_000_000
	}
	return hostTSC()
}

// configuredHZ reads CONFIG_HZ from a kernel configuration; 0 if it is not there.
func configuredHZ(path string) int {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(text)) {
		if value, found := strings.CutPrefix(strings.TrimSpace(line), "CONFIG_HZ="); found {
			hz, err := strconv.Atoi(value)
			if err != nil {
				return 0
			}
			return hz
		}
	}
	return 0
}

// Command is a shell command that starts the same machine by hand, with the
// console on the terminal. Two things cannot be had there: the guest link leads
// nowhere, and the NICs are QEMU's own, so that sends are copied.
func (c Config) Command() string {
	c = c.withDefaults()
	options := c.options(plugs{console: standardStreams{}, link: nowhere{}, cases: nowhere{}, hubs: true})
	words := append([]string{c.QEMU}, commandLine(options, c.Parameters...)...)
	return shellescape.QuoteCommand(words)
}

// Machine is a running virtual machine.
type Machine struct {
	config  Config
	process *process
	monitor *monitor
	console *Console
	link    *Link
	cases   *Link
	memory  *os.File
	version qmp.Version
	started time.Time

	events chan Event
	done   chan struct{} // closed once exit is known

	lock    sync.Mutex
	panic   string // the console's panic line
	reasons []string
	killed  error // why we killed it
	exit    Exit

	stopContext func() bool
	closing     sync.Once
}

// Event is a QMP event: "SHUTDOWN", "RESET", "STOP", "RESUME",
// "GUEST_PANICKED", "MIGRATION", …
type Event struct {
	Name string
	Data map[string]any
	Time time.Time
}

// Start boots a machine and returns as soon as QEMU runs; the guest is then
// somewhere in its boot. When ctx ends the machine is killed. The caller has to
// call [Machine.Close].
//
// Errors are of class fault.Infrastructure: QEMU is missing, too old, refuses an
// argument, or the host has no memory left.
func Start(ctx context.Context, config Config) (*Machine, error) {
	config = config.withDefaults()
	memory, err := newMemoryFile("guest memory", int64(config.Memory)<<20)
	if err != nil {
		return nil, fault.New(fault.Infrastructure, "%w", err)
	}
	m, err := start(ctx, config, memory)
	if err != nil {
		return nil, err
	}
	if err := m.Continue(ctx); err != nil {
		_ = m.Close()
		return nil, err
	}
	return m, nil
}

// start runs QEMU, with the guest stopped, on memory, which it owns from here on.
func start(ctx context.Context, config Config, memory *os.File, extra ...option) (_ *Machine, err error) {
	files := &inheritance{}
	defer files.closeTheirs()
	defer func() {
		if err != nil {
			files.closeOurs()
			_ = memory.Close()
		}
	}()

	program, err := findProgram(config.QEMU)
	if err != nil {
		return nil, err
	}
	console, consoleFD, err := files.socket("console")
	if err != nil {
		return nil, err
	}
	guest, linkFD, err := files.socket("guest link")
	if err != nil {
		return nil, err
	}
	worker, casesFD, err := files.socket("guest link of the cases")
	if err != nil {
		return nil, err
	}
	control, monitorFD, err := files.socket("monitor")
	if err != nil {
		return nil, err
	}
	options := config.options(plugs{
		memory:  fmt.Sprintf("/proc/self/fd/%d", files.pass(memory)),
		console: consoleFD, link: linkFD, cases: casesFD, monitor: monitorFD,
		tsc: config.guestTSC(), hz: configuredHZ(config.KernelConfig),
		extra: extra,
	})

	started := time.Now()
	p, err := startProcess(program, commandLine(options, config.Parameters...), files.passed)
	if err != nil {
		return nil, fault.New(fault.Infrastructure, "start %s: %w", program, err).WithAdvice("%s", installAdvice)
	}
	files.closeTheirs()

	m := &Machine{
		config: config, process: p, memory: memory, started: started,
		link: newLink(guest), cases: newLink(worker),
		events: make(chan Event, 256),
		done:   make(chan struct{}),
	}
	m.console = newConsole(console, started, config.ConsoleRaw, config.ConsoleLog)
	m.console.Subscribe(m.watch)

	connecting, cancel := context.WithTimeoutCause(ctx, 20*time.Second, errors.New("QEMU did not answer within 20 s"))
	defer cancel()
	m.monitor, err = connectMonitor(connecting, control)
	if err != nil {
		cause := m.giveUp(ctx, err)
		// The streams belong to the machine by now.
		files.ours = nil
		return nil, cause
	}
	files.ours = nil
	m.version = *m.monitor.socket.Version
	m.stopContext = context.AfterFunc(ctx, func() { m.Kill(context.Cause(ctx)) })
	go m.supervise()
	return m, nil
}

// giveUp ends a QEMU that never got as far as QMP, and says why.
func (m *Machine) giveUp(ctx context.Context, err error) error {
	// A QEMU that refuses its arguments closes the connection and then exits
	// by itself, with its reason on stderr.
	select {
	case <-m.process.done:
	case <-time.After(time.Second):
	case <-ctx.Done():
	}
	exited := false
	select {
	case <-m.process.done:
		exited = true
	default:
	}
	m.process.kill()
	m.console.wait()
	_ = m.link.Close()
	_ = m.cases.Close()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if exited {
		return m.diedEarly()
	}
	return fault.New(fault.Infrastructure, "QEMU does not answer: %w", err).WithOutput(m.process.output())
}

// diedEarly turns QEMU's last words into an error with advice.
func (m *Machine) diedEarly() error {
	output := m.process.output()
	first, _, _ := strings.Cut(output, "\n")
	if first == "" {
		first = "it said nothing"
	}
	err := fault.New(fault.Infrastructure, "QEMU ended at once (%s): %s", m.process.status(), first).WithOutput(output)
	return advise(err, m.config, output, m.process.signal())
}

// inheritance collects the descriptors that QEMU is started with.
type inheritance struct {
	passed []*os.File  // descriptors 3, 4, … of the child
	theirs []*os.File  // those of them that only the child needs
	ours   []io.Closer // the other ends
}

func (i *inheritance) pass(file *os.File) int {
	i.passed = append(i.passed, file)
	return 2 + len(i.passed)
}

func (i *inheritance) socket(name string) (*net.UnixConn, inheritedSocket, error) {
	ours, theirs, err := socketPair(name)
	if err != nil {
		return nil, 0, fault.New(fault.Infrastructure, "%w", err)
	}
	i.theirs = append(i.theirs, theirs)
	conn, err := net.FileConn(ours)
	_ = ours.Close()
	if err != nil {
		return nil, 0, fault.New(fault.Infrastructure, "%s: %w", name, err)
	}
	i.ours = append(i.ours, conn)
	return conn.(*net.UnixConn), inheritedSocket(i.pass(theirs)), nil
}

func (i *inheritance) closeTheirs() {
	for _, file := range i.theirs {
		_ = file.Close()
	}
	i.theirs = nil
}

func (i *inheritance) closeOurs() {
	for _, conn := range i.ours {
		_ = conn.Close()
	}
	i.ours = nil
}

// watch looks for the one line that tells a panic from any other reset.
func (m *Machine) watch(line Line) {
	if _, message, found := strings.Cut(line.Text, "Kernel panic - not syncing: "); found {
		m.lock.Lock()
		defer m.lock.Unlock()
		if m.panic == "" {
			m.panic = message
		}
	}
}

// supervise waits for the end of QEMU and settles how it came.
func (m *Machine) supervise() {
	for event := range m.monitor.events {
		if event.Event == "SHUTDOWN" {
			reason, _ := event.Data["reason"].(string)
			m.lock.Lock()
			m.reasons = append(m.reasons, reason)
			m.lock.Unlock()
		}
		converted := Event{
			Name: event.Event,
			Data: event.Data,
			Time: time.Unix(event.Timestamp.Seconds, event.Timestamp.Microseconds*1000),
		}
		select {
		case m.events <- converted:
		default: // nobody listens
		}
	}
	<-m.process.done
	m.monitor.close()
	// QEMU's ends are closed: what is left is read to its end.
	m.console.wait()
	m.link.running.Wait()
	m.cases.running.Wait()

	m.lock.Lock()
	m.exit = m.settleExit()
	m.lock.Unlock()
	close(m.events)
	close(m.done)
}

// Cause says why a machine ended.
type Cause string

// The causes.
const (
	// Reset: the guest asked for a reset or power-off. It is how the agent ends
	// a machine; without a Shutdown message it is the kernel's triple fault.
	Reset Cause = "reset"
	// Panic: the kernel panicked, and said so on the console.
	Panic Cause = "panic"
	// Killed: this process ended it.
	Killed Cause = "killed"
	// Lost: QEMU ended by itself.
	Lost Cause = "lost"
)

// Exit tells how a machine ended.
type Exit struct {
	Cause Cause
	// Panic is the kernel's panic message, whatever the cause.
	Panic string
	// Status is QEMU's exit status in words.
	Status string
	// Output is what QEMU itself printed.
	Output string
	// Err is nil for Reset, the reason for Killed, of class
	// fault.Infrastructure for Lost and of class fault.Crash for Panic.
	Err error
}

func (m *Machine) settleExit() Exit {
	exit := Exit{Panic: m.panic, Status: m.process.status(), Output: m.process.output()}
	guest := false
	for _, reason := range m.reasons {
		guest = guest || strings.HasPrefix(reason, "guest-")
	}
	switch {
	case m.killed != nil:
		exit.Cause, exit.Err = Killed, m.killed
	case m.panic != "":
		exit.Cause, exit.Err = Panic, fault.New(fault.Crash, "kernel panic: %s", m.panic).WithOutput(m.console.TailText(80))
	case guest:
		exit.Cause = Reset
	default:
		exit.Cause = Lost
		err := fault.New(fault.Infrastructure, "QEMU ended by itself (%s)", exit.Status).WithOutput(exit.Output)
		exit.Err = advise(err, m.config, exit.Output, m.process.signal())
	}
	return exit
}

// Done is closed when the machine has ended and everything it printed and sent
// has been read.
func (m *Machine) Done() <-chan struct{} { return m.done }

// Exit waits for the end of the machine and tells how it came.
func (m *Machine) Exit() Exit {
	<-m.done
	return m.exit
}

// Console returns the console.
func (m *Machine) Console() *Console { return m.console }

// Link returns the guest link to PID 1, Cases that to the worker.
func (m *Machine) Link() *Link { return m.link }

func (m *Machine) Cases() *Link { return m.cases }

// Events returns the QMP events, at most 256 unread ones; the channel is closed
// when the machine has ended.
func (m *Machine) Events() <-chan Event { return m.events }

// Started is when QEMU was started.
func (m *Machine) Started() time.Time { return m.started }

// PID is QEMU's process id.
func (m *Machine) PID() int { return m.process.command.Process.Pid }

// Version is QEMU's version, as in "7.2.22".
func (m *Machine) Version() string { return m.version.String() }

// Command is a shell command that starts the same machine by hand; see
// [Config.Command].
func (m *Machine) Command() string { return m.config.Command() }

// MemoryUsed is how much of the host's memory the guest's RAM takes, in bytes.
func (m *Machine) MemoryUsed() int64 {
	var stat syscall.Stat_t
	if err := syscall.Fstat(int(m.memory.Fd()), &stat); err != nil {
		return 0
	}
	return stat.Blocks * 512
}

// ReadMemory copies the guest's RAM from a guest-physical address on. It works
// until Close, whatever became of the guest.
func (m *Machine) ReadMemory(p []byte, physical uint64) error {
	if physical > math.MaxInt64 {
		return fmt.Errorf("guest memory at %#x: no such address", physical)
	}
	// A machine of this size has its RAM in one piece that begins at address 0.
	if _, err := m.memory.ReadAt(p, int64(physical)); err != nil {
		return fmt.Errorf("guest memory at %#x: %w", physical, err)
	}
	return nil
}

// errClosed is the reason of a machine that its owner closed.
var errClosed = errors.New("machine closed")

// Kill ends the machine at once, for the given reason, and returns without
// waiting. It does nothing to a machine that has ended.
func (m *Machine) Kill(reason error) {
	m.lock.Lock()
	defer m.lock.Unlock()
	select {
	case <-m.process.done:
		return
	default:
	}
	if m.killed == nil {
		m.killed = reason
	}
	_ = m.process.command.Process.Kill()
}

// Close kills the machine if it still runs, waits for it and frees what it
// held. It may be called more than once.
func (m *Machine) Close() error {
	m.closing.Do(func() {
		m.stopContext()
		m.Kill(errClosed)
		<-m.done
		_ = m.link.Close()
		_ = m.cases.Close()
		if conn, ok := m.console.stream.(io.Closer); ok {
			_ = conn.Close()
		}
		_ = m.memory.Close()
	})
	return nil
}

// run executes a QMP command within its patience.
func (m *Machine) run(ctx context.Context, command string, arguments, result any) error {
	ctx, cancel := context.WithTimeout(ctx, m.config.patience().Command)
	defer cancel()
	if err := m.monitor.run(ctx, command, arguments, result); err != nil {
		return fault.New(fault.Infrastructure, "%w", err)
	}
	return nil
}

// Stop halts the guest's CPUs. Its clock stands still until [Machine.Continue].
func (m *Machine) Stop(ctx context.Context) error { return m.run(ctx, "stop", nil, nil) }

// Continue lets a stopped guest go on.
func (m *Machine) Continue(ctx context.Context) error { return m.run(ctx, "cont", nil, nil) }

// SetLink takes the carrier of a NIC away or gives it back.
func (m *Machine) SetLink(ctx context.Context, n NIC, up bool) error {
	return m.run(ctx, "set_link", map[string]any{"name": string(n.Port), "up": up}, nil)
}

// Quit asks QEMU to end, without asking the guest.
func (m *Machine) Quit(ctx context.Context) error { return m.run(ctx, "quit", nil, nil) }

// InjectNMI makes the kernel print the stacks of all CPUs and panic, even when
// it loops with interrupts off, and waits for the end of the machine. It returns
// false when the kernel did not react within [Patience.Backtrace]; the machine
// then still runs.
func (m *Machine) InjectNMI(ctx context.Context) (bool, error) {
	if err := m.run(ctx, "inject-nmi", nil, nil); err != nil {
		return false, err
	}
	patience := m.config.patience()
	select {
	case <-m.done:
		return true, nil
	case <-time.After(patience.Backtrace):
		return false, nil
	case <-ctx.Done():
		return false, context.Cause(ctx)
	}
}

func findProgram(name string) (string, error) {
	path, err := exec.LookPath(name)
	if err != nil {
		return "", fault.New(fault.Infrastructure, "QEMU is missing: %w", err).WithAdvice("%s", installAdvice)
	}
	return path, nil
}

const installAdvice = "apt-get install qemu-system-x86"

// advise adds what the reader can do about the commonest ends of QEMU.
func advise(err *fault.Error, config Config, output string, signal syscall.Signal) error {
	switch {
	case signal == syscall.SIGBUS || strings.Contains(output, "Cannot allocate memory"):
		return err.WithAdvice("the host has no memory left for a guest of %d MiB; stop something or run fewer machines at once", config.Memory)
	case signal == syscall.SIGKILL:
		return err.WithAdvice("somebody killed it; if it was the kernel for lack of memory, dmesg says so")
	case strings.Contains(output, "No machine type") || strings.Contains(output, "unsupported machine type"):
		return err.WithAdvice("QEMU 7.2 or newer with the microvm machine is needed: %s", installAdvice)
	case config.Accelerator.Name == KVM:
		return err.WithAdvice("KVM does not run this guest; try --accel tcg")
	case strings.Contains(output, "No space left on device"):
		return err.WithAdvice("the disk is full")
	}
	return err
}
