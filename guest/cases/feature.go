// SPDX-License-Identifier: BSD-3-Clause

package cases

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/zcvet/zcvet/guest/debugfs"
	"github.com/zcvet/zcvet/guest/leak"
	"github.com/zcvet/zcvet/guest/link"
	"github.com/zcvet/zcvet/guest/network"
	"github.com/zcvet/zcvet/guest/notify"
	"github.com/zcvet/zcvet/guest/sys"
	"github.com/zcvet/zcvet/guest/uring"
)

// The features a case can need.
const (
	ZerocopyTCP     = "zerocopy-tcp"
	ZerocopyUDP     = "zerocopy-udp"
	FeatureIPv6     = "ipv6"
	FeatureVSOCK    = "vsock"
	FeatureIOURing  = "io_uring"
	SendZC          = "io_uring-send-zc"
	SendmsgZC       = "io_uring-sendmsg-zc"
	Pagemap         = "pagemap"
	HugePages       = "huge-pages"
	Ethtool         = "ethtool"
	ThirtyTwoBit    = "ia32"
	FaultInjection  = "fault-injection"
	SCMNotification = "scm-zc-notification"
	// GCov and Kmemleak are no case's need: they tell the host what it can ask
	// for at the end.
	GCov     = "gcov"
	Kmemleak = "kmemleak"
	// InstructionCount is a clock that counts instructions.
	InstructionCount = "instruction-count"
)

// feature is something a kernel or machine may lack.
type feature struct {
	name string
	// since is the kernel that brought it, for the reader of a skip; empty
	// when it depends on the machine.
	since string
	// probe returns nil when the feature is here, and otherwise the reason.
	probe func(*Environment) error
	// parameterised probes ask for what the host knows, so they cannot run
	// before the first case.
	parameterised bool
}

var features = []feature{
	{name: ZerocopyTCP, since: "4.14", probe: func(*Environment) error {
		return zerocopyOption(unix.AF_INET, unix.SOCK_STREAM)
	}},
	{name: ZerocopyUDP, since: "5.0", probe: func(*Environment) error {
		return zerocopyOption(unix.AF_INET, unix.SOCK_DGRAM)
	}},
	{name: FeatureIPv6, probe: func(*Environment) error {
		return openable(unix.AF_INET6, unix.SOCK_DGRAM)
	}},
	{name: FeatureVSOCK, since: "6.7", probe: probeVSOCK},
	{name: FeatureIOURing, since: "5.11", probe: func(*Environment) error { return probeIOURing(uring.OpSendmsg) }},
	{name: SendZC, since: "6.0", probe: func(*Environment) error { return probeIOURing(uring.OpSendZC) }},
	{name: SendmsgZC, since: "6.1", probe: func(*Environment) error { return probeIOURing(uring.OpSendmsgZC) }},
	{name: Pagemap, probe: probePagemap},
	{name: HugePages, probe: func(*Environment) error {
		page, err := mapHugePage()
		if err != nil {
			return err
		}
		return sys.Munmap(page)
	}},
	{name: Ethtool, probe: probeEthtool},
	{name: ThirtyTwoBit, probe: probe32Bit},
	{name: FaultInjection, probe: func(*Environment) error {
		_, err := os.Stat("/proc/self/make-it-fail")
		return err
	}},
	{name: GCov, probe: func(*Environment) error { return debugfs.HasGCov(debugfs.Root) }},
	{name: Kmemleak, probe: func(*Environment) error { return debugfs.HasKmemleak(debugfs.Root) }},
	{name: SCMNotification, probe: probeSCMNotification, parameterised: true},
	{name: InstructionCount, probe: probeInstructionCount, parameterised: true},
}

// Features probes what can be known before a case runs.
func (e *Environment) Features() []link.Feature {
	var found []link.Feature
	for _, feature := range features {
		if feature.parameterised {
			continue
		}
		found = append(found, describe(feature.name, e.feature(feature.name)))
	}
	for _, way := range network.Links {
		found = append(found, describe("link:"+string(way), e.Network.Has(way)))
	}
	if e.Counters != nil {
		// Without one of these the leaks of that kind are not looked for.
		for _, kind := range leak.Kinds {
			found = append(found, describe("count:"+kind, e.Counters.Missing(kind)))
		}
	}
	return found
}

func describe(name string, err error) link.Feature {
	if err != nil {
		return link.Feature{Name: name, Reason: err.Error()}
	}
	return link.Feature{Name: name, Here: true}
}

// probes remembers answers: a probe costs system calls, and its answer cannot
// change while the machine runs.
type probes struct {
	lock   sync.Mutex
	answer map[string]error
}

// feature returns nil when the named feature is here, and otherwise an error
// with the reason a skip shows.
func (e *Environment) feature(name string) error {
	e.probes.lock.Lock()
	defer e.probes.lock.Unlock()
	if answer, known := e.probes.answer[name]; known {
		return answer
	}
	for _, feature := range features {
		if feature.name != name {
			continue
		}
		err := feature.probe(e)
		if err != nil {
			since := ""
			if feature.since != "" {
				since = " (in kernels since " + feature.since + ")"
			}
			err = fmt.Errorf("no %s%s: %w", name, since, err)
		}
		if feature.parameterised {
			return err // the next run may bring other parameters
		}
		if e.probes.answer == nil {
			e.probes.answer = make(map[string]error)
		}
		e.probes.answer[name] = err
		return err
	}
	return fmt.Errorf("no feature is called %q", name)
}

func openable(family, kind int) error {
	fd, err := sys.Socket(family, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	return sys.Close(fd)
}

func zerocopyOption(family, kind int) error {
	fd, err := sys.Socket(family, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	defer func() { _ = sys.Close(fd) }()
	if err := sys.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ZEROCOPY, 1); err != nil {
		return fmt.Errorf("SO_ZEROCOPY: %w", err)
	}
	return nil
}

// probeVSOCK also asks for the loopback transport, which is what cases use.
func probeVSOCK(*Environment) error {
	if err := zerocopyOption(unix.AF_VSOCK, unix.SOCK_STREAM); err != nil {
		return err
	}
	fd, err := sys.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	defer func() { _ = sys.Close(fd) }()
	if err := sys.Bind(fd, &unix.SockaddrVM{CID: unix.VMADDR_CID_LOCAL, Port: unix.VMADDR_PORT_ANY}); err != nil {
		return fmt.Errorf("bind to the loopback transport: %w", err)
	}
	return nil
}

// probeIOURing asks a ring whether the kernel knows an operation.
func probeIOURing(op uint8) error {
	ring, err := uring.New(1)
	if err != nil {
		return err
	}
	defer func() { _ = ring.Close() }()
	known, err := ring.Supports(op)
	if err != nil {
		return err
	}
	if !known {
		return fmt.Errorf("io_uring does not know operation %d", op)
	}
	return nil
}

// probePagemap looks for a physical address, because without CAP_SYS_ADMIN the
// file can be read but shows none.
func probePagemap(*Environment) error {
	memory, err := notify.Pages(1)
	if err != nil {
		return err
	}
	defer func() { _ = memory.Close() }()
	_, err = memory.Physical()
	return err
}

// probeEthtool asks for the driver of loopback, which every kernel answers.
func probeEthtool(e *Environment) error {
	return e.Network.Sender.Do(func() error {
		fd, err := sys.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("socket: %w", err)
		}
		defer func() { _ = sys.Close(fd) }()
		if _, err := unix.IoctlGetEthtoolDrvinfo(fd, "lo"); err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
			return fmt.Errorf("SIOCETHTOOL: %w", err)
		}
		return nil
	})
}

// probeSCMNotification tells the reference mechanism from an unpatched kernel.
func probeSCMNotification(e *Environment) error {
	if e.parameters.Constant == 0 || e.parameters.ABI == "" {
		return errors.New("the kernel's headers define no SCM_ZC_NOTIFICATION")
	}
	return nil
}

// probeInstructionCount tells a machine for measurements from one for everything
// else.
func probeInstructionCount(e *Environment) error {
	if !e.parameters.CountsInstructions {
		return errors.New("time is not a count of instructions here: zcvet bench measures")
	}
	return nil
}
