// SPDX-License-Identifier: BSD-3-Clause

package bench_test

import (
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/zcvet/zcvet/guest/link"
	"github.com/zcvet/zcvet/harness/cache"
	"github.com/zcvet/zcvet/harness/checkout"
	"github.com/zcvet/zcvet/harness/kbuild"
	"github.com/zcvet/zcvet/harness/rig"
	"github.com/zcvet/zcvet/harness/suite"
	"github.com/zcvet/zcvet/harness/terminal"
	"github.com/zcvet/zcvet/harness/verdict"
	"github.com/zcvet/zcvet/harness/vet"
	"github.com/zcvet/zcvet/kconfig"
)

// options is what make test-kernel does by default.
func options() vet.Options {
	accelerator := os.Getenv("ACCEL")
	if accelerator == "" {
		accelerator = "auto"
	}
	return vet.Options{
		Kernel: "6.12", Series: "reference", Config: "default",
		Accelerator: accelerator, Suite: suite.Everything, Seed: 1,
	}
}

// prepare builds what a machine needs, with the user's cache.
func prepare(b *testing.B) *vet.Prepared {
	b.Helper()
	root, err := checkout.Find()
	check(b, err)
	dir, err := cache.Open("")
	check(b, err)
	v := &vet.Vetter{Cache: dir, Root: root, UI: terminal.New(io.Discard, terminal.Options{})}
	prepared, err := v.Prepare(b.Context(), options(), &verdict.Run{})
	check(b, err)
	return prepared
}

func check(b *testing.B, err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}

// BenchmarkColdBuild builds the default kernel with nothing to start from but its
// source, and without ccache.
func BenchmarkColdBuild(b *testing.B) {
	prepared := prepare(b)
	config, err := kconfig.Load("default")
	check(b, err)
	user, err := cache.Open("")
	check(b, err)
	for b.Loop() {
		// Beside the sources, so that they can be hard-linked as in a first run.
		place, err := os.MkdirTemp(user.Root(), "bench-")
		check(b, err)
		defer os.RemoveAll(place)
		empty, err := cache.Open(place)
		check(b, err)
		built, err := kbuild.Build(b.Context(), prepared.Tree, config, kbuild.Options{Cache: empty, NoCCache: true})
		check(b, err)
		b.ReportMetric(float64(built.Objects), "objects")
		built.Close()
	}
}

// BenchmarkWarmRun is the whole command with everything built: what an edit of a
// case or a second look costs.
func BenchmarkWarmRun(b *testing.B) {
	prepare(b)
	root, err := checkout.Find()
	check(b, err)
	program := filepath.Join(b.TempDir(), "zcvet")
	output, err := exec.Command("go", "build", "-o", program, "github.com/zcvet/zcvet/harness/cmd/zcvet").CombinedOutput()
	if err != nil {
		b.Fatalf("%v\n%s", err, output)
	}
	out := filepath.Join(b.TempDir(), "out")
	var cases, seconds, boot, peak float64
	for b.Loop() {
		o := options()
		command := exec.CommandContext(b.Context(), program, "run", "--kernel", o.Kernel, "--series", o.Series, "--accel", o.Accelerator, "--out", out)
		command.Dir = root
		if output, err := command.CombinedOutput(); err != nil {
			b.Fatalf("%v\n%s", err, output)
		}
		file, err := os.Open(filepath.Join(out, "run.json"))
		check(b, err)
		run, err := verdict.Read(file)
		file.Close()
		check(b, err)
		seconds += run.Seconds
		cases += float64(len(run.Cases))
		boot = float64(run.Machine.BootMS)
		peak = max(peak, float64(command.ProcessState.SysUsage().(*syscall.Rusage).Maxrss)/1024)
	}
	b.ReportMetric(cases/seconds, "cases/s")
	b.ReportMetric(boot, "boot-ms")
	b.ReportMetric(peak, "peak-MiB")
}

// silent is a console nobody reads.
func silent(string) {}

// hello waits for the agent of a freshly booted machine.
func hello(b *testing.B, vm suite.VM) *link.Hello {
	b.Helper()
	message, err := link.NewConn(vm.Cases()).Receive()
	check(b, err)
	body, err := link.Decode[link.Hello](message)
	check(b, err)
	return &body
}

// BenchmarkBoot is the time from the exec of QEMU to the agent's Hello.
func BenchmarkBoot(b *testing.B) {
	booter := &rig.Booter{Machine: prepare(b).Machine(options())}
	for b.Loop() {
		vm, err := booter.Boot(b.Context(), 1, silent)
		check(b, err)
		hello(b, vm)
		b.StopTimer()
		check(b, vm.Close())
		b.StartTimer()
	}
}

// BenchmarkRestore is the time from the decision to restore to a guest that runs;
// the metric first-case-ms goes on until it has begun a case.
func BenchmarkRestore(b *testing.B) {
	booter := &rig.Booter{Machine: prepare(b).Machine(options())}
	vm, err := booter.Boot(b.Context(), 1, silent)
	check(b, err)
	instances := hello(b, vm).Instances
	snapshot, err := vm.Snapshot(b.Context())
	check(b, err)
	check(b, vm.Close())
	defer snapshot.Close()
	var toCase time.Duration
	for b.Loop() {
		began := time.Now()
		vm, err := snapshot.Restore(b.Context(), silent)
		check(b, err)
		b.StopTimer()
		check(b, firstCase(b.Context(), vm, instances[0].ID))
		toCase += time.Since(began)
		check(b, vm.Close())
		b.StartTimer()
	}
	b.ReportMetric(float64(toCase.Milliseconds())/float64(b.N), "first-case-ms")
}

func firstCase(ctx context.Context, vm suite.VM, id string) error {
	conn := link.ResumeConn(vm.Cases())
	if err := conn.Send(link.KindRun, link.Run{Instances: []string{id}}); err != nil {
		return err
	}
	for {
		message, err := conn.Receive()
		if err != nil || message.Kind == link.KindCaseStart {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
}
