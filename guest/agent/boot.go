// SPDX-License-Identifier: BSD-3-Clause

package agent

import (
	"fmt"

	"github.com/zcvet/zcvet/guest/cases"
	"github.com/zcvet/zcvet/guest/debugfs"
)

// filesystem is something PID 1 mounts.
type filesystem struct {
	source, target, kind string
	// optional ones depend on the kernel's configuration.
	optional bool
}

var filesystems = []filesystem{
	{"proc", "/proc", "proc", false},
	{"sysfs", "/sys", "sysfs", false},
	{"devtmpfs", "/dev", "devtmpfs", false},
	{"tmpfs", "/tmp", "tmpfs", false},
	{"debugfs", debugfs.Root, "debugfs", true},
}

// sysctl is a setting of the whole kernel; those of a network namespace are in
// package network. Everything else keeps the kernel's default, because that is
// what users run.
type sysctl struct {
	name, value string
	// optional ones depend on the kernel's configuration.
	optional bool
}

var sysctls = []sysctl{
	// A warning is printed at level 4, and what is not on the console is not
	// seen by the host, whatever the command line says about quiet. What is
	// below a warning costs time on an emulated serial line.
	{"kernel/printk", "5", false},
	// The marks of the cases come faster than the kernel lets a process print
	// by default. It compares with the newline.
	{"kernel/printk_devkmsg", "on\n", false},
	// An oops kills the case that ran. The host sees it on the console and
	// decides; a panic would take the rest of the report with it.
	{"kernel/panic_on_oops", "0", false},
	// Now, while memory is in one piece.
	{"vm/nr_hugepages", cases.HugePageReserve, true},
}

// boot mounts and sets what everything else needs.
func boot(s system) error {
	for _, f := range filesystems {
		if err := s.Mount(f.source, f.target, f.kind); err != nil && !f.optional {
			return err
		}
	}
	for _, setting := range sysctls {
		if err := s.SetSysctl(setting.name, setting.value); err != nil && !setting.optional {
			return fmt.Errorf("sysctl %s: %w", setting.name, err)
		}
	}
	return nil
}
