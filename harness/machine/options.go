// SPDX-License-Identifier: BSD-3-Clause

package machine

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/zcvet/zcvet/guest/link"
	"github.com/zcvet/zcvet/guest/nic"
)

// option is one thing a machine has or does. Each knows what QEMU and what the
// guest's kernel have to be told about it, and nothing about the others.
type option interface {
	// arguments are QEMU's command-line arguments.
	arguments() []string
	// parameters are kernel command-line parameters.
	parameters() []string
}

// commandLine joins options into QEMU's arguments, without the name of the
// program. The kernel's parameters become the argument of -append; extra ones
// come last, so that they win.
func commandLine(options []option, extra ...string) []string {
	var arguments, parameters []string
	for _, o := range options {
		arguments = append(arguments, o.arguments()...)
		parameters = append(parameters, o.parameters()...)
	}
	parameters = append(parameters, extra...)
	return append(arguments, "-append", strings.Join(parameters, " "))
}

// microvm is QEMU's machine without PCI and ACPI: the shortest way from exec to
// a running init. See docs/system/i386/microvm.rst in QEMU's tree.
type microvm struct{}

func (microvm) arguments() []string {
	return []string{
		// Under TCG the kernel calibrates against the PIT; without an RTC it
		// waits more than a second for one.
		"-machine", "microvm,acpi=off,pic=on,pit=on,rtc=on,usb=off,graphics=off,memory-backend=" + memoryID,
		"-nodefaults", "-no-user-config", "-display", "none",
		// Legacy virtio has no feature bits beyond 32 and its own byte order.
		"-global", "virtio-mmio.force-legacy=false",
	}
}

func (microvm) parameters() []string {
	return []string{
		// The timer check of the IO-APIC is for boards that wire it wrongly.
		"no_timer_check",
		// There is no ACPI and no keyboard controller to ask for a reset.
		"reboot=t",
	}
}

// arguments and parameters of an accelerator choose how guest code runs.
func (a Accelerator) arguments() []string {
	accel := a.Name
	if a.Name == TCG {
		accel = "tcg,thread=multi"
	}
	return []string{"-accel", accel, "-cpu", a.CPU}
}

func (a Accelerator) parameters() []string {
	// Time is the host's TSC under both accelerators, and neither has another
	// clock to check it against.
	return []string{"tsc=reliable"}
}

// instructionCounter runs guest code on one thread and gives the guest the number
// of instructions for a clock (docs/devel/tcg-icount.rst in QEMU's tree).
type instructionCounter struct{ Accelerator }

func (c instructionCounter) arguments() []string {
	return []string{
		"-accel", TCG,
		// A string instruction counts once for each iteration, so a kernel that
		// uses them for copies would seem to pay by the byte.
		"-cpu", c.CPU + ",erms=off,fsrm=off",
		// One instruction a nanosecond, and no waiting while the guest is idle.
		"-icount", "shift=0,sleep=off",
	}
}

func (c instructionCounter) parameters() []string {
	return append(c.Accelerator.parameters(),
		// Where things lie decides how many pages they are on.
		"nokaslr", "norandmaps",
		// To calibrate its timer the kernel spins for a tenth of a second. Each
		// turn ends a translated block, and a counted second has a billion
		// instructions.
		"nolapic_timer")
}

// knownClock tells the kernel how fast its clock is. By itself it measures
// against the PIT, which takes a tenth of a second for each CPU but the first,
// and several and a wrong result when the host is busy.
type knownClock struct {
	tsc int // kHz, 0 if unknown
	hz  int // CONFIG_HZ of the kernel, 0 if unknown
}

func (knownClock) arguments() []string { return nil }

func (k knownClock) parameters() []string {
	if k.tsc == 0 {
		return nil
	}
	parameters := []string{"tsc_early_khz=" + strconv.Itoa(k.tsc)}
	if k.hz != 0 {
		// A delay loop is a count of TSC ticks per jiffy.
		parameters = append(parameters, "lpj="+strconv.Itoa(k.tsc*1000/k.hz))
	}
	return parameters
}

// processors is the number of virtual CPUs.
type processors int

func (p processors) arguments() []string { return []string{"-smp", strconv.Itoa(int(p))} }

func (processors) parameters() []string { return nil }

const memoryID = "ram"

// sharedMemory is the guest's RAM in a file that the vhost-user back end maps as
// well.
type sharedMemory struct {
	mebibytes int
	path      string // of the file; empty lets QEMU make one of its own
}

func (s sharedMemory) arguments() []string {
	size := strconv.Itoa(s.mebibytes) + "M"
	backend := fmt.Sprintf("memory-backend-memfd,id=%s,size=%s,share=on", memoryID, size)
	if s.path != "" {
		backend = fmt.Sprintf("memory-backend-file,id=%s,size=%s,mem-path=%s,share=on", memoryID, size, s.path)
	}
	return []string{"-m", size, "-object", backend}
}

func (sharedMemory) parameters() []string { return nil }

// directBoot loads an uncompressed kernel at its PVH entry point, without
// decompressor and boot loader.
type directBoot struct {
	kernel    string
	initramfs string // may be empty
}

func (d directBoot) arguments() []string {
	arguments := []string{"-kernel", d.kernel}
	if d.initramfs != "" {
		arguments = append(arguments, "-initrd", d.initramfs)
	}
	return arguments
}

func (d directBoot) parameters() []string {
	if d.initramfs == "" {
		return nil
	}
	// Giving the memory of the archive back means to fill it first, page by page:
	// a tenth of the time that a boot takes under emulation, for ten megabytes.
	return []string{"retain_initrd"}
}

// exitOnPanic ends the machine when the kernel dies: the kernel resets at once
// and QEMU takes a reset as its end. An oops alone does not: the run goes on to
// see what else breaks, and the suite decides about the machine afterwards.
type exitOnPanic struct{}

func (exitOnPanic) arguments() []string  { return []string{"-no-reboot"} }
func (exitOnPanic) parameters() []string { return []string{"panic=-1"} }

// backtraceOnNMI turns the NMI that [Machine.InjectNMI] sends into a panic, the
// only way in which the kernel answers it with a stack trace. A loop with
// interrupts off is interrupted by it, too.
type backtraceOnNMI struct{}

func (backtraceOnNMI) arguments() []string { return nil }

func (backtraceOnNMI) parameters() []string {
	return []string{
		// The kernel asks port 0x61 for the reason of an NMI. KVM answers
		// that there is none; microvm under TCG has no such port, and all
		// ones read as a system error. The second is read when the kernel
		// starts init, so that before that TCG has no backtrace.
		"unknown_nmi_panic", "sysctl.kernel.panic_on_unrecovered_nmi=1",
		// All CPUs print their stacks (kernel/panic.c, PANIC_PRINT_ALL_CPU_BT):
		// the boot CPU takes the NMI, the hang may be on another.
		"panic_print=0x40",
	}
}

// chardev is the host's end of a stream to the guest.
type chardev interface {
	// backend is the argument of -chardev without the id.
	backend() string
}

// inheritedSocket is a connected socket that QEMU is started with.
type inheritedSocket int

func (fd inheritedSocket) backend() string { return "socket,fd=" + strconv.Itoa(int(fd)) }

// abstractSocket is a listening socket without a place in the file system.
type abstractSocket string

func (name abstractSocket) backend() string {
	// tight: the address is the name alone, not padded with zeros.
	return "socket,abstract=on,tight=on,path=" + escape(strings.TrimPrefix(string(name), "@"))
}

// standardStreams is the terminal of the person who repeats a command by hand.
type standardStreams struct{}

func (standardStreams) backend() string { return "stdio,mux=on,signal=off" }

// nowhere swallows everything.
type nowhere struct{}

func (nowhere) backend() string { return "null" }

// escape protects a value inside a comma-separated list of QEMU's.
func escape(value string) string { return strings.ReplaceAll(value, ",", ",,") }

func chardevArgument(id string, c chardev) string {
	kind, rest, found := strings.Cut(c.backend(), ",")
	argument := kind + ",id=" + id
	if found {
		argument += "," + rest
	}
	return argument
}

// serialConsole is the kernel's console. It is there from the first printk to
// the last, and needs no working driver model.
type serialConsole struct {
	chardev chardev
	verbose bool
}

func (s serialConsole) arguments() []string {
	return []string{"-chardev", chardevArgument("console", s.chardev), "-serial", "chardev:console"}
}

func (s serialConsole) parameters() []string {
	// Each character is an exit to QEMU, and a boot log is ten thousand of them.
	// Warnings and everything above are kept, stack traces among them.
	level := "loglevel=5"
	if s.verbose {
		level = "ignore_loglevel"
	}
	return []string{"earlyprintk=serial,ttyS0,115200", "console=ttyS0,115200", level}
}

// guestLink is the virtio-serial ports of the agent: that of PID 1, and that of the
// worker.
type guestLink struct{ chardev, cases chardev }

func (g guestLink) arguments() []string {
	return []string{
		"-chardev", chardevArgument("link", g.chardev),
		"-chardev", chardevArgument("cases", g.cases),
		"-device", "virtio-serial-device,max_ports=3", // one of them is for a console
		"-device", "virtserialport,chardev=link,name=" + link.PortName,
		"-device", "virtserialport,chardev=cases,name=" + link.CasesPortName,
	}
}

func (guestLink) parameters() []string { return nil }

// monitorSocket is QEMU's control connection.
type monitorSocket struct{ chardev chardev }

func (m monitorSocket) arguments() []string {
	return []string{"-chardev", chardevArgument("monitor", m.chardev), "-mon", "chardev=monitor,mode=control"}
}

func (monitorSocket) parameters() []string { return nil }

// NIC is a virtio-net device of the guest.
type NIC struct {
	Port nic.Port
	// Socket is the abstract unix address on which the vhost-user back end of
	// the port listens, with or without a leading "@".
	Socket string
	// MAC defaults to that of the port.
	MAC string
}

func (n NIC) mac() string {
	if n.MAC != "" {
		return n.MAC
	}
	return n.Port.MAC()
}

func (n NIC) device() string {
	// Without the control queue's announcement a restored guest sends nothing
	// that its case did not send.
	return fmt.Sprintf("virtio-net-device,netdev=%s,mac=%s,mq=off,guest_announce=off", n.Port, n.mac())
}

func (n NIC) arguments() []string {
	id := string(n.Port)
	return []string{
		"-chardev", chardevArgument(id, abstractSocket(n.Socket)),
		"-netdev", "vhost-user,id=" + id + ",chardev=" + id,
		"-device", n.device(),
	}
}

func (NIC) parameters() []string { return nil }

// hubNIC stands in for a NIC where our back end is not there: the two ends of a
// wire share one of QEMU's hubs. It offers no checksum offload.
type hubNIC struct {
	NIC
	hub int
}

func (h hubNIC) arguments() []string {
	id := string(h.Port)
	return []string{
		"-netdev", fmt.Sprintf("hubport,id=%s,hubid=%d", id, h.hub),
		"-device", h.device(),
	}
}

// heldAtStart keeps the CPUs stopped until QMP is connected. A guest that ends in
// the first milliseconds would otherwise take QEMU along before anybody could ask
// why.
type heldAtStart struct{}

func (heldAtStart) arguments() []string  { return []string{"-S"} }
func (heldAtStart) parameters() []string { return nil }

// incoming makes QEMU wait for the device state of a snapshot instead of
// booting.
type incoming struct{}

func (incoming) arguments() []string  { return []string{"-incoming", "defer"} }
func (incoming) parameters() []string { return nil }
