// SPDX-License-Identifier: BSD-3-Clause

package machine

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/zcvet/zcvet/guest/nic"
)

func TestOptions(t *testing.T) {
	for _, test := range []struct {
		name       string
		option     option
		arguments  []string
		parameters []string
	}{
		{
			"KVM", NewAccelerator(KVM, "tested"),
			[]string{"-accel", "kvm", "-cpu", "host"},
			[]string{"tsc=reliable"},
		},
		{
			"TCG with another CPU",
			Accelerator{Name: TCG, CPU: "max,smap=off"},
			[]string{"-accel", "tcg,thread=multi", "-cpu", "max,smap=off"},
			[]string{"tsc=reliable"},
		},
		{
			"memory in an inherited file",
			sharedMemory{mebibytes: 256, path: "/proc/self/fd/3"},
			[]string{"-m", "256M", "-object", "memory-backend-file,id=ram,size=256M,mem-path=/proc/self/fd/3,share=on"},
			nil,
		},
		{
			"memory of QEMU's own",
			sharedMemory{mebibytes: 64},
			[]string{"-m", "64M", "-object", "memory-backend-memfd,id=ram,size=64M,share=on"},
			nil,
		},
		{
			"kernel alone",
			directBoot{kernel: "vmlinux"},
			[]string{"-kernel", "vmlinux"},
			nil,
		},
		{
			"kernel and initramfs",
			directBoot{kernel: "vmlinux", initramfs: "init.cpio"},
			[]string{"-kernel", "vmlinux", "-initrd", "init.cpio"},
			[]string{"retain_initrd"},
		},
		{
			"console",
			serialConsole{chardev: inheritedSocket(4)},
			[]string{"-chardev", "socket,id=console,fd=4", "-serial", "chardev:console"},
			[]string{"earlyprintk=serial,ttyS0,115200", "console=ttyS0,115200", "loglevel=5"},
		},
		{
			"verbose console on the terminal",
			serialConsole{chardev: standardStreams{}, verbose: true},
			[]string{"-chardev", "stdio,id=console,mux=on,signal=off", "-serial", "chardev:console"},
			[]string{"earlyprintk=serial,ttyS0,115200", "console=ttyS0,115200", "ignore_loglevel"},
		},
		{
			"guest link",
			guestLink{chardev: nowhere{}, cases: inheritedSocket(5)},
			[]string{
				"-chardev", "null,id=link",
				"-chardev", "socket,id=cases,fd=5",
				"-device", "virtio-serial-device,max_ports=3",
				"-device", "virtserialport,chardev=link,name=zcvet.link",
				"-device", "virtserialport,chardev=cases,name=zcvet.cases",
			},
			nil,
		},
		{
			"NIC",
			NIC{Port: nic.NIC0, Socket: "@a,b"},
			[]string{
				"-chardev", "socket,id=nic0,abstract=on,tight=on,path=a,,b",
				"-netdev", "vhost-user,id=nic0,chardev=nic0",
				"-device", "virtio-net-device,netdev=nic0,mac=02:7a:63:00:00:00,mq=off,guest_announce=off",
			},
			nil,
		},
		{
			"NIC on a hub",
			hubNIC{NIC: NIC{Port: nic.NIC1, MAC: "02:00:00:00:00:01"}, hub: 0},
			[]string{
				"-netdev", "hubport,id=nic1,hubid=0",
				"-device", "virtio-net-device,netdev=nic1,mac=02:00:00:00:00:01,mq=off,guest_announce=off",
			},
			nil,
		},
		{
			"instructions for a clock",
			instructionCounter{Accelerator{Name: TCG, CPU: "max"}},
			[]string{"-accel", "tcg", "-cpu", "max,erms=off,fsrm=off", "-icount", "shift=0,sleep=off"},
			[]string{"tsc=reliable", "nokaslr", "norandmaps", "nolapic_timer"},
		},
		{
			"clock known",
			knownClock{tsc: 2000000, hz: 1000},
			nil,
			[]string{"tsc_early_khz=2000000", "lpj=2000000"},
		},
		{
			"clock known, tick not",
			knownClock{tsc: 2000000},
			nil,
			[]string{"tsc_early_khz=2000000"},
		},
		{"clock unknown", knownClock{hz: 1000}, nil, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			if diff := cmp.Diff(test.arguments, test.option.arguments()); diff != "" {
				t.Errorf("arguments: %s", diff)
			}
			if diff := cmp.Diff(test.parameters, test.option.parameters()); diff != "" {
				t.Errorf("parameters: %s", diff)
			}
		})
	}
}

func TestParametersOfTheCallerComeLast(t *testing.T) {
	line := commandLine([]option{exitOnPanic{}, backtraceOnNMI{}}, "panic=0", "--", "shell")
	at := slices.Index(line, "-append")
	if at < 0 || at != len(line)-2 {
		t.Fatalf("no -append at the end of %q", line)
	}
	parameters := strings.Fields(line[at+1])
	if diff := cmp.Diff([]string{"panic=0", "--", "shell"}, parameters[len(parameters)-3:]); diff != "" {
		t.Error(diff)
	}
}

func TestCommandNeedsNothingOfOurs(t *testing.T) {
	command := Config{
		Kernel: "/cache/a kernel", Accelerator: NewAccelerator(TCG, "test"),
		NICs: []NIC{{Port: nic.NIC0, Socket: "@ours"}, {Port: nic.NIC1, Socket: "@ours"}},
	}.Command()
	for _, ours := range []string{"/proc/", "fd=", "@ours", "vhost-user", " -S"} {
		if strings.Contains(command, ours) {
			t.Errorf("%q is in %s", ours, command)
		}
	}
	for _, want := range []string{"-kernel '/cache/a kernel'", "hubport,id=nic0,hubid=0", "hubport,id=nic1,hubid=0", "-append 'no_timer_check "} {
		if !strings.Contains(command, want) {
			t.Errorf("%q is not in %s", want, command)
		}
	}
}

func TestConfiguredHZ(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config")
	if err := os.WriteFile(path, []byte("# CONFIG_HZ_1000 is not set\nCONFIG_HZ_250=y\nCONFIG_HZ=250\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if got := configuredHZ(path); got != 250 {
		t.Errorf("got %d, want 250", got)
	}
	if got := configuredHZ(path + ".missing"); got != 0 {
		t.Errorf("got %d without a file, want 0", got)
	}
}

func TestPatienceNests(t *testing.T) {
	for _, accelerator := range []string{KVM, TCG} {
		for _, slowdown := range []float64{0, 1, 4} {
			p := NewPatience(NewAccelerator(accelerator, ""), slowdown)
			if !(p.Case < p.Suite && p.Suite < p.Machine(1) && p.Silence < p.Suite && p.Scale >= 1) {
				t.Errorf("%s, slowdown %v: %+v does not nest", accelerator, slowdown, p)
			}
		}
	}
}
