// SPDX-License-Identifier: BSD-3-Clause

package machine

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/zcvet/zcvet/harness/cache"
	"github.com/zcvet/zcvet/harness/fault"
)

// Auto lets Probe choose: KVM where it runs guests, TCG elsewhere.
const Auto = "auto"

// ProbeOptions say what to probe with.
type ProbeOptions struct {
	// QEMU is the program, by default qemu-system-x86_64 from PATH.
	QEMU string
	// Cache remembers the answer for this host, until it is booted again or
	// QEMU changes; nil asks anew every time.
	Cache *cache.Dir
	// Kernel, if set, is booted as the proof of KVM; otherwise, and before, a
	// few bytes of machine code are.
	Kernel string
}

// kvmDevice is a variable for tests.
var kvmDevice = "/dev/kvm"

// Patience with a probe. A guest that KVM runs is done in a tenth of it.
const (
	canaryPatience = 3 * time.Second
	kernelPatience = 6 * time.Second
)

// Probe chooses the accelerator. A /dev/kvm that opens is not one that works: in
// nested virtualisation guests may abort, stop or hang, so KVM counts only after
// it has run one.
//
// With mode KVM an error of class fault.Infrastructure tells why KVM cannot be
// had; Auto falls back to TCG with that reason.
func Probe(ctx context.Context, mode string, options ProbeOptions) (Accelerator, error) {
	switch mode {
	case TCG:
		return NewAccelerator(TCG, "asked for"), nil
	case KVM, Auto, "":
	default:
		return Accelerator{}, fault.New(fault.Usage, "no accelerator %q: it is auto, kvm or tcg", mode)
	}
	if options.QEMU == "" {
		options.QEMU = defaultProgram
	}
	program, err := findProgram(options.QEMU)
	if err != nil {
		return Accelerator{}, err
	}
	options.QEMU = program

	refusal := openKVM()
	if refusal == nil {
		refusal, err = rememberedKVM(ctx, options)
		if err != nil {
			return Accelerator{}, err
		}
	}
	switch {
	case refusal == nil:
		return NewAccelerator(KVM, "a probe guest ran under KVM"), nil
	case mode == KVM:
		return Accelerator{}, fault.New(fault.Infrastructure, "KVM was asked for: %w", refusal).WithAdvice("%s", kvmAdvice(refusal))
	default:
		return NewAccelerator(TCG, refusal.Error()), nil
	}
}

// openKVM tells why /dev/kvm cannot be used at all, or nil.
func openKVM() error {
	file, err := os.OpenFile(kvmDevice, os.O_RDWR, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("there is no %s: %w", kvmDevice, err)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("this user may not open %s: %w", kvmDevice, err)
	case err != nil:
		return err
	}
	return file.Close()
}

func kvmAdvice(refusal error) string {
	switch {
	case errors.Is(refusal, fs.ErrNotExist):
		return "turn virtualisation on in the firmware, or nested virtualisation on the host of this machine; or use --accel tcg"
	case errors.Is(refusal, fs.ErrPermission):
		return "add the user to the group kvm, on a CI machine with a udev rule; or use --accel tcg"
	}
	return "use --accel tcg"
}

// answer is what is remembered about a host.
type answer struct {
	// Refusal is empty if KVM works.
	Refusal string `json:"refusal"`
	Tested  string `json:"tested"` // RFC 3339
}

// rememberedKVM returns why KVM does not work here, from the cache or from a
// probe.
func rememberedKVM(ctx context.Context, options ProbeOptions) (refusal, err error) {
	if options.Cache == nil {
		return probeKVM(ctx, options)
	}
	key := hostKey(options)
	unlock, err := options.Cache.Lock(ctx, cache.Probe, key)
	if err != nil {
		return nil, err
	}
	defer unlock()
	var known answer
	if text, err := options.Cache.Get(cache.Probe, key); err == nil && json.Unmarshal(text, &known) == nil {
		if known.Refusal == "" {
			return nil, nil
		}
		return errors.New(known.Refusal), nil
	}
	refusal, err = probeKVM(ctx, options)
	if err != nil {
		return nil, err
	}
	known.Tested = time.Now().Format(time.RFC3339)
	if refusal != nil {
		known.Refusal = refusal.Error()
	}
	text, err := json.Marshal(known)
	if err != nil {
		return nil, err
	}
	// The answer is right even if it cannot be kept.
	_ = options.Cache.Put(cache.Probe, key, append(text, '\n'))
	return refusal, nil
}

// hostKey names what the answer depends on: this boot of this host, its CPU, its
// kernel and QEMU, and how thorough the probe is.
func hostKey(options ProbeOptions) string {
	sum := sha256.New()
	boot, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	var host unix.Utsname
	_ = unix.Uname(&host)
	_, _ = fmt.Fprintf(sum, "%s\n%s\n%s\n%s\n", boot, unix.ByteSliceToString(host.Release[:]), cpuModel(), options.QEMU)
	if info, err := os.Stat(options.QEMU); err == nil {
		_, _ = fmt.Fprintf(sum, "%d %v\n", info.Size(), info.ModTime())
	}
	_, _ = fmt.Fprintf(sum, "kernel %v\n", options.Kernel != "")
	return "kvm-" + hex.EncodeToString(sum.Sum(nil)[:12])
}

func cpuModel() string {
	text, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(text)) {
		if name, model, found := strings.Cut(line, ":"); found && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(model)
		}
	}
	return ""
}

// probeKVM runs guests under KVM. Refusal is why KVM does not work; err is for
// what has nothing to do with KVM.
func probeKVM(ctx context.Context, options ProbeOptions) (refusal, err error) {
	file, path, err := canaryFile()
	if err != nil {
		return nil, fault.New(fault.Infrastructure, "%w", err)
	}
	defer func() { _ = file.Close() }()
	refusal, err = probeGuest(ctx, options.QEMU, KVM, path, canarySong, canaryPatience)
	if refusal != nil || err != nil || options.Kernel == "" {
		return refusal, err
	}
	// Without an initramfs a kernel that runs ends in a panic about its root. A
	// panic about anything else is the kernel's own, and KVM ran it as well.
	return probeGuest(ctx, options.QEMU, KVM, options.Kernel, "Kernel panic - not syncing", kernelPatience)
}

// probeGuest boots a kernel and waits for a line of its console.
func probeGuest(ctx context.Context, qemu, accelerator, kernel, want string, patience time.Duration) (refusal, err error) {
	limited, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	m, err := Start(limited, Config{
		QEMU: qemu, Kernel: kernel, Accelerator: NewAccelerator(accelerator, "probe"), CPUs: 1, Memory: 128,
	})
	if err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return fmt.Errorf("%s does not run guests: %w", kvmDevice, lastWords(err)), nil
	}
	defer func() { _ = m.Close() }()

	said := make(chan struct{}, 1)
	heard := func(line Line) {
		if strings.Contains(line.Text, want) {
			select {
			case said <- struct{}{}:
			default:
			}
		}
	}
	before, stop := m.Console().Subscribe(heard)
	defer stop()
	for _, line := range before {
		heard(line)
	}
	select {
	case <-said:
		return nil, nil
	case <-m.Done():
	case <-limited.Done():
		<-m.Done()
	}
	select {
	case <-said:
		return nil, nil
	default:
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	exit := m.Exit()
	reason := fmt.Sprintf("a probe guest hung for %v", patience)
	switch {
	case exit.Cause == Reset:
		reason = "a probe guest reset itself"
	case exit.Cause == Lost:
		reason = "a probe guest ended QEMU, " + exit.Status
	}
	if words := firstLine(exit.Output); words != "" {
		reason += ": " + words
	}
	return fmt.Errorf("%s opens but does not run guests: %s", kvmDevice, reason), nil
}

// lastWords reduces an error of Start to the part that fits into a line.
func lastWords(err error) error {
	if failure, ok := errors.AsType[*fault.Error](err); ok && failure.Output != "" {
		return errors.New(firstLine(failure.Output))
	}
	return err
}

// firstLine picks QEMU's first complaint, without the name of the program.
func firstLine(output string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(output), "\n")
	return strings.TrimPrefix(line, defaultProgram+": ")
}
