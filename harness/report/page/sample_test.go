// SPDX-License-Identifier: BSD-3-Clause

package page_test

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/zcvet/zcvet/harness/fault"
	"github.com/zcvet/zcvet/harness/verdict"
)

// sample is a run of our reference series that went well: its patches are the real
// ones, so that the diffs have the size and shape of real diffs.
func sample(t *testing.T) *verdict.Run {
	t.Helper()
	run := &verdict.Run{
		Command: "zcvet run --kernel 6.12 --series reference --suite 'counter,scm,!udp' --seed 7",
		Started: "2026-11-22T15:00:00Z", Seconds: 28.4, Seed: 7,
		Kernel: verdict.Kernel{
			Version: "6.12.95", Source: "debian linux-source-6.12 6.12.95-1~deb12u1", ID: "c47c685c1e116e2eda126f1e",
			Config: []string{"base", "console", "net", "zerocopy", "detect"}, Compiler: "gcc (Debian 12.2.0-14) 12.2.0", Cached: true,
		},
		Series: verdict.Series{Name: "net: return zerocopy completions from sendmsg()", Spec: "reference", ABI: "v8", Constant: 81},
		Machine: verdict.Machine{
			Accel: "tcg", AccelReason: "/dev/kvm does not run guests: error: failed to set MSR 0x10a to 0x69", CPU: "max", QEMU: "7.2.22",
			BootMS: 1450, Boots: 1,
			Features: []verdict.Feature{{Name: "ipv6", Here: true}, {Name: "vsock", Reason: "socket: address family not supported by protocol"}},
		},
	}
	for i, name := range []string{"0002-net-read-zerocopy-completions-from-the-error-queue-i.patch", "0003-net-add-SCM_ZC_NOTIFICATION.patch"} {
		mail, err := os.ReadFile("../../../patches/6.12/" + name)
		if err != nil {
			t.Fatal(err)
		}
		at := strings.Index(string(mail), "diff --git")
		subject := fmt.Sprintf("net: patch %d <of> the \"series\"", i+1)
		run.Series.Patches = append(run.Series.Patches, verdict.Patch{Subject: subject, File: name, Diff: string(mail[at:])})
	}
	groups := []struct {
		name   string
		covers []string
	}{
		{"counter/consecutive-ids", []string{"Z10", "Z30"}},
		{"counter/no-id-for-fault", []string{"Z11", "Z62"}},
		{"delivery/not-before-acknowledgement", []string{"Z36"}},
		{"copied/by-link", []string{"Z50", "Z51"}},
		{"scm/capacity", []string{"N01"}},
		{"scm/failed-send/data-unmapped", []string{"N10"}},
		{"poll/error-while-pending", []string{"Z40"}},
	}
	for _, group := range groups {
		for _, proto := range []string{"tcp", "udp"} {
			for _, family := range []string{"ipv4", "ipv6"} {
				for _, link := range []string{"lo", "nic", "nic-nosg", "veth"} {
					if strings.HasPrefix(group.name, "delivery") && link == "lo" {
						continue
					}
					run.Cases = append(run.Cases, verdict.Case{
						ID: group.name + "/" + proto + "/" + family + "/" + link, Name: group.name, Covers: group.covers,
						Proto: proto, Family: family, Link: link, Level: verdict.Must, Status: verdict.Pass, MS: 12,
					})
				}
			}
		}
	}
	run.Cases = append(run.Cases,
		verdict.Case{ID: "vsock/stream/vsock", Name: "vsock/stream", Covers: []string{"Z85"}, Proto: "vsock", Level: verdict.Must, Status: verdict.Skip, Detail: "vsock: address family not supported by protocol"},
		verdict.Case{ID: "scm/unknown-is-refused/tcp/ipv4/lo", Name: "scm/unknown-is-refused", Covers: []string{"N17"}, Proto: "tcp", Family: "ipv4", Link: "lo", Level: verdict.Must, Status: verdict.Skip, Detail: "this kernel has SCM_ZC_NOTIFICATION"})
	return run
}

func passing(t *testing.T) *verdict.Run {
	run := sample(t)
	run.Decide(verdict.Policy{}, nil)
	return run
}

func failing(t *testing.T) *verdict.Run {
	run := sample(t)
	for i := range run.Cases {
		c := &run.Cases[i]
		switch {
		case c.Name == "scm/failed-send/data-unmapped" && c.Link != "veth":
			c.Status = verdict.Fail
			c.Detail = "scm_failure.go:190: after a failed call: 3 sends, each to be notified exactly once: 0-1 missing; the application can never reuse those buffers"
			c.Log = []string{"sender fd 9: left in the error queue: [], then <nil>", "FAIL " + c.Detail}
			c.Evidence = &verdict.Evidence{
				Calls: []string{
					" 0.000310 socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0) = 8",
					" 0.001130 setsockopt(8, SOL_SOCKET, SO_ZEROCOPY, 1) = 0",
					"… 14 more",
					" 0.010310 sendmsg(8, {iov=[64]}, MSG_ZEROCOPY | MSG_NOSIGNAL) = 64",
					" 0.011310 mprotect(0x7f3400000000, 4096, PROT_NONE) = 0",
					" 0.012310 sendmsg(8, {iov=[100 unreadable], control=[SCM_ZC_NOTIFICATION 28 bytes, size 2]}, MSG_NOSIGNAL) = -1 EFAULT",
					" 0.014310 recvmsg(8, {iov=[2048], control=[room for 512]}, MSG_ERRQUEUE) = 0 (control=[zerocopy 2-2 COPIED], MSG_ERRQUEUE)",
					" 0.015310 recvmsg(8, {iov=[2048], control=[room for 512]}, MSG_ERRQUEUE) = -1 EAGAIN",
					" 5.016310 -- expected: each of the 3 zero-copy sends of 8 notified exactly once",
					" 5.016320 -- expectation failed: after a failed call: 3 sends, each to be notified exactly once: 0-1 missing",
				},
				Frames:    []string{"nic0 #12 tcp-data 118 bytes, payload 64, gso 0/0: 0x5a21000+66 0x61f4000+64"},
				CallsFile: "evidence/a.calls.txt", Capture: "evidence/a.pcapng", DescriptorFile: "evidence/a.descriptors.jsonl", Reproducer: "reproducers/a.c",
			}
		case c.Name == "poll/error-while-pending" && c.Proto == "udp" && c.Link == "nic":
			c.Status, c.Level, c.Detail = verdict.Timeout, verdict.Should, "not finished after 30s, killed; the log has its stacks"
			c.Evidence = &verdict.Evidence{Capture: "evidence/b.pcapng", NoReproducer: "the failure needs the harness's NIC"}
		}
	}
	run.Series.Findings = []verdict.Finding{{
		Kind: "uapi-collision", Title: "SCM_ZC_NOTIFICATION is 78, which SCM_DEVMEM_LINEAR has", Detail: "on alpha and mips alike",
		Patch: run.Series.Patches[0].Subject, File: "include/uapi/asm-generic/socket.h", Line: 139, Level: verdict.Must,
	}}
	run.Decide(verdict.Policy{}, nil)
	return run
}

func crashing(t *testing.T) *verdict.Run {
	run := sample(t)
	c := &run.Cases[len(run.Cases)/2]
	c.Status, c.Detail = verdict.Crash, "BUG: kernel NULL pointer dereference in zc_notification_read"
	c.Evidence = &verdict.Evidence{
		Calls:   []string{" 0.000310 socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0) = 8", " 0.010310 sendmsg(8, {iov=[64, 64]}, MSG_ZEROCOPY) = ? (never returned)"},
		Console: []string{"[    3.141592] BUG: kernel NULL pointer dereference, address: 0000000000000010", "[    3.141600] #PF: supervisor write access in kernel mode"},
	}
	file, line, text := added(run, 0)
	run.Splats = []verdict.Splat{
		{
			Title: c.Detail, Kind: "oops", Case: c.ID, Function: "zc_notification_read", File: file, Line: line, Source: text, Patch: run.Series.Patches[0].Subject,
			Text: "BUG: kernel NULL pointer dereference, address: 0000000000000010\n#PF: supervisor write access in kernel mode\n</pre><script>alert(1)</script>\nCall Trace:\n <TASK>\n zc_notification_read+0x20/0x90",
			Frames: []verdict.Frame{
				{Function: "zc_copy", File: "include/net/sock.h", Line: 3, Inlined: true},
				{Function: "zc_notification_read", File: file, Line: line, Patch: run.Series.Patches[0].Subject, Source: text},
				{Function: "udp_sendmsg", File: "net/ipv4/udp.c", Line: 1153},
			},
		},
		{Title: "WARNING at kernel/softirq.c:12 in foo", Kind: "warning", Text: "WARNING: CPU: 0"},
	}
	run.Decide(verdict.Policy{}, nil)
	return run
}

// added finds a line that a patch adds: its file, number and text.
func added(run *verdict.Run, patch int) (file string, number int, text string) {
	at := 0
	for line := range strings.Lines(run.Series.Patches[patch].Diff) {
		line = strings.TrimRight(line, "\n")
		switch {
		case strings.HasPrefix(line, "+++ b/"):
			file = line[len("+++ b/"):]
		case strings.HasPrefix(line, "@@"):
			var before, count int
			if _, err := fmt.Sscanf(line, "@@ -%d,%d +%d", &before, &count, &at); err != nil {
				continue
			}
			at--
		case strings.HasPrefix(line, "+"):
			at++
			if strings.HasSuffix(file, ".c") && strings.HasPrefix(line, "+\tif (") {
				return file, at, line[1:]
			}
		case strings.HasPrefix(line, " "):
			at++
		}
	}
	return "", 0, ""
}

// covered is a passing run of a kernel that measured coverage: of every seven
// lines one never ran.
func covered(t *testing.T) *verdict.Run {
	run := sample(t)
	coverage := &verdict.Coverage{}
	for _, patch := range run.Series.Patches {
		file, at := "", 0
		for line := range strings.Lines(patch.Diff) {
			line = strings.TrimRight(line, "\n")
			switch {
			case strings.HasPrefix(line, "+++ b/"):
				file = line[len("+++ b/"):]
			case strings.HasPrefix(line, "@@"):
				var before, count int
				_, _ = fmt.Sscanf(line, "@@ -%d,%d +%d", &before, &count, &at)
				at--
			case strings.HasPrefix(line, "+"):
				at++
				if strings.HasSuffix(line, ";") && strings.HasSuffix(file, ".c") {
					count := int64(at % 7 * 150)
					coverage.Executable++
					if count > 0 {
						coverage.Executed++
					}
					coverage.Lines = append(coverage.Lines, verdict.CoveredLine{File: file, Line: at, Patch: patch.Subject, Text: line[1:], Count: count})
				}
			case strings.HasPrefix(line, " "):
				at++
			}
		}
	}
	run.Coverage = coverage
	run.Decide(verdict.Policy{}, nil)
	return run
}

func unbuilt(*testing.T) *verdict.Run {
	run := &verdict.Run{Command: "zcvet run --kernel 6.12 --series mbox:x", Started: "2026-11-22T15:00:00Z", Seconds: 131, Kernel: verdict.Kernel{Version: "6.12.95"}}
	run.Decide(verdict.Policy{}, fault.New(fault.Build, "net/core/sock.c:12: error: 'x' undeclared\n(patch 1: net: add <x>)"))
	return run
}
