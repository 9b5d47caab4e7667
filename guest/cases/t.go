// SPDX-License-Identifier: BSD-3-Clause

package cases

import (
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/zcvet/zcvet/guest/leak"
	"github.com/zcvet/zcvet/guest/link"
	"github.com/zcvet/zcvet/guest/network"
	"github.com/zcvet/zcvet/guest/nic"
	"github.com/zcvet/zcvet/guest/notify"
	"github.com/zcvet/zcvet/guest/sys"
	"github.com/zcvet/zcvet/guest/trace"
)

// patience is how long a wait inside a case goes on at a TimeScale of 1. What
// is waited for takes microseconds, or a retransmission time-out of a second;
// the rest is for a machine that is busy elsewhere. A kernel that loses
// notifications makes many cases wait in vain, so it is no longer than that.
const patience = 2 * time.Second

// Caller takes calls to the host.
type Caller interface {
	// Call asks the host for method and unpacks the answer into result unless
	// that is nil. An error of the host comes back as an error.
	Call(method string, args, result any) error
}

// Environment is what the machine offers to the cases of one process.
type Environment struct {
	Network *network.Network
	// Host answers NIC calls; nil when there is no host, which also means no
	// NIC links.
	Host Caller
	// Counters tells what a case left behind; nil looks for nothing. It counts
	// the namespaces of the network, called sender and receiver.
	Counters *leak.Counters
	// Record is the file of the record of system calls, for the tasks that cases
	// start; nil for none, and their calls are not recorded.
	Record *os.File
	// Sweep, if set, closes what a case has left open, before leaks are looked
	// for.
	Sweep func() error

	parameters link.Parameters
	probes     probes
	// task runs cases of 32-bit tasks, nil once it is spent.
	task    *task
	version Version // of the kernel, once it is known
	// leaky is set once a case has left something behind. A kernel that leaks
	// does so in many cases, and waiting for each would take hours.
	leaky bool
	// vain counts the cases that failed after a wait as long as Patience, for
	// the same reason.
	vain int
}

// Status is how an instance ended, as link.CaseEnd spells it.
type Status string

// The statuses a process can report about a case it ran; a time-out is seen
// from outside.
const (
	Pass Status = "pass"
	Fail Status = "fail"
	Skip Status = "skip"
)

// Result is the outcome of an instance.
type Result struct {
	Status Status
	// Detail is empty for a pass, the reason for a skip, and for a failure one
	// line per failed expectation.
	Detail string
	Took   time.Duration
	// Measurements are the figures of a case that measures.
	Measurements []link.Measurement
	// Spent tells that the case could not put back what it took away from the
	// machine, so that no other case can run.
	Spent bool
}

// Run runs one instance on a thread of its own, which ends with it, so that
// whatever the case did to its thread (capabilities, namespace, fault injection)
// is gone afterwards. Log receives the notes of the case as it makes them.
func (e *Environment) Run(instance Instance, parameters link.Parameters, log func(line string)) Result {
	e.parameters = parameters
	seed := fnv.New64a()
	_, _ = seed.Write([]byte(instance.ID()))
	t := &T{
		Instance:    instance,
		Parameters:  parameters,
		Rand:        rand.New(rand.NewPCG(uint64(parameters.Seed), seed.Sum64())),
		environment: e,
		log:         log,
	}
	started := time.Now()
	// Before the thread is made: a skip should cost nothing.
	if t.protect(t.requireAxes); t.skipped != "" {
		return t.result()
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		// Never unlocked: see the comment of Run.
		runtime.LockOSThread()
		// A case may touch memory it took the access rights away from; that
		// is its failure, not the end of the process.
		debug.SetPanicOnFault(true)
		t.runAndCleanUp()
	}()
	<-done
	result := t.result()
	result.Took, result.Measurements, result.Spent = time.Since(started), t.measurements, t.spent
	if result.Status == Fail && result.Took >= t.Patience() {
		e.vain++
	}
	return result
}

// T is what a case works with. Its methods may be called from any goroutine,
// except those that end the case (Fatalf, Skipf, and every method that says
// so), which belong to the goroutine the case runs on.
type T struct {
	Instance
	Parameters link.Parameters
	// Rand is seeded by the run's seed and the instance's id.
	Rand *rand.Rand

	environment *Environment
	log         func(string)
	nic         *NIC

	measurements []link.Measurement

	lock     sync.Mutex
	failures []string
	skipped  string
	unblocks []func()
	cleanups []func()
	dumps    []func()
	helpers  []uintptr // where they called Helper
	sockets  []*Socket
	// own is the network of the case's own, if it has one.
	own *network.Network
	// spent is set once something that the case took away cannot be put back.
	spent bool
	// pages are the physical addresses of the memory the case had, as far as
	// they could be found out.
	pages []uint64
	group sync.WaitGroup
}

// runAndCleanUp runs the case, and whatever happened in it then undoes what it
// did, newest first. Nothing of the case may be left after that.
func (t *T) runAndCleanUp() {
	before := t.countLeaks()
	t.protect(func() { t.Case.run(t) })
	for _, unblock := range t.unblocks {
		t.protect(unblock)
	}
	t.protect(t.group.Wait)
	if t.Failed() {
		for _, dump := range t.dumps {
			t.protect(dump)
		}
	}
	// First, so that nothing waits in the device for ever.
	t.protect(t.resetNIC)
	t.protect(t.expectSocketsEmpty)
	for _, cleanup := range slices.Backward(t.cleanups) {
		t.protect(cleanup)
	}
	t.protect(func() { t.expectNoLeaks(before) })
}

// protect runs f and turns a panic into a failure. Fatalf and Skipf leave f by a
// private panic and not by Goexit, because what comes after f has to run on the
// same goroutine: its thread carries state that the case has set.
func (t *T) protect(f func()) {
	defer func() {
		if reason := recover(); reason != nil && reason != any(endOfCase{}) {
			t.record(fmt.Sprintf("panic: %v\n%s", reason, debug.Stack()))
		}
	}()
	f()
}

// endOfCase is the panic value by which Fatalf and Skipf leave a case.
type endOfCase struct{}

func (t *T) requireAxes() {
	if t.Link != "" {
		if err := t.environment.Network.Has(t.Link); err != nil {
			t.Skipf("%v", err)
		}
	}
	needs := t.Case.Needs
	switch t.Proto {
	case TCP:
		needs = append([]string{ZerocopyTCP}, needs...)
	case UDP:
		needs = append([]string{ZerocopyUDP}, needs...)
	case VSOCK:
		needs = append([]string{FeatureVSOCK}, needs...)
	}
	if t.Family == network.IPv6 || t.Family == network.Mapped {
		needs = append([]string{FeatureIPv6}, needs...)
	}
	for _, name := range needs {
		t.Require(name)
	}
	if err := t.environment.differs(t.Instance); err != nil {
		t.Skipf("%v", err)
	}
}

// Require skips the case unless the feature is here. It ends the case.
func (t *T) Require(feature string) {
	if err := t.environment.feature(feature); err != nil {
		t.Skipf("%v", err)
	}
}

// Logf notes a line; the report shows it when the case fails.
func (t *T) Logf(format string, args ...any) { t.log(fmt.Sprintf(format, args...)) }

// Errorf notes a failed expectation and goes on. The message says what was
// expected, what came, and why it matters to a user of the kernel.
func (t *T) Errorf(format string, args ...any) {
	t.record(t.caller() + fmt.Sprintf(format, args...))
}

// Fatalf is Errorf for an expectation without which the rest makes no sense. It
// ends the case.
func (t *T) Fatalf(format string, args ...any) {
	t.record(t.caller() + fmt.Sprintf(format, args...))
	panic(endOfCase{})
}

// Check is Fatalf when err is not nil: for steps that are no expectation of the
// case but what it stands on. It ends the case.
func (t *T) Check(err error, doing string) {
	if err != nil {
		t.record(fmt.Sprintf("%s%s: %v", t.caller(), doing, err))
		panic(endOfCase{})
	}
}

// Skipf ends the case, which then counts as skipped for this reason, unless an
// expectation has failed already.
func (t *T) Skipf(format string, args ...any) {
	t.lock.Lock()
	t.skipped = fmt.Sprintf(format, args...)
	t.lock.Unlock()
	panic(endOfCase{})
}

// Failed tells whether an expectation has failed.
func (t *T) Failed() bool {
	t.lock.Lock()
	defer t.lock.Unlock()
	return len(t.failures) > 0
}

// Cleanup runs f after the case, the last one registered first, however the
// case ended.
func (t *T) Cleanup(f func()) {
	t.lock.Lock()
	defer t.lock.Unlock()
	t.cleanups = append(t.cleanups, f)
}

// PutBack runs f after the case, as Cleanup does, to put back what the case takes away
// from the machine. If it fails, the case does, and no other can run in the machine.
func (t *T) PutBack(f func() error) {
	t.Cleanup(func() {
		if err := f(); err != nil {
			t.spent = true
			t.Errorf("the machine is not as it was: %v", err)
		}
	})
}

// Unblock runs f as soon as the function of the case is over, however that ended,
// and before its goroutines are waited for: f ends what they wait for.
func (t *T) Unblock(f func()) {
	t.lock.Lock()
	defer t.lock.Unlock()
	t.unblocks = append(t.unblocks, f)
}

// OnFailure runs f after a failed case and before its cleanups, to note state
// that helps to understand the failure.
func (t *T) OnFailure(f func()) {
	t.lock.Lock()
	defer t.lock.Unlock()
	t.dumps = append(t.dumps, f)
}

// Go runs f on another goroutine; the case is not over before f has returned. A
// panic in f is a failure. F must not call methods that end the case.
func (t *T) Go(f func()) {
	t.group.Go(func() {
		// The record of system calls knows threads: those of f are of one.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		t.protect(f)
	})
}

// Helper makes failures noted in the calling function show the line that called
// it.
func (t *T) Helper() {
	var counter [1]uintptr
	if runtime.Callers(2, counter[:]) == 0 {
		return
	}
	t.lock.Lock()
	defer t.lock.Unlock()
	if !slices.Contains(t.helpers, counter[0]) {
		t.helpers = append(t.helpers, counter[0])
	}
}

// vainCases is how many cases may wait in vain with all their patience. A kernel
// on which more of them do has failed; what is left to find out is in which cases.
const vainCases = 8

// Patience is how long to wait for what must come.
func (t *T) Patience() time.Duration {
	scaled := time.Duration(float64(patience) * max(t.Parameters.TimeScale, 1))
	if limit := t.Parameters.CaseTimeout; limit > 0 {
		// A case that waits in vain should say so itself, not be killed.
		scaled = min(scaled, limit/3)
	}
	if t.environment.vain >= vainCases {
		scaled /= 4
	}
	return scaled
}

// Eventually waits until condition holds and fails the case if it does not. It
// is for what must come; that something does not come is shown by waiting for
// something later that does. It ends the case.
func (t *T) Eventually(what string, condition func() bool) {
	t.Helper()
	deadline := time.Now().Add(t.Patience())
	for pause := 20 * time.Microsecond; !condition(); pause = min(2*pause, 5*time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited %v in vain: %s", t.Patience(), what)
		}
		time.Sleep(pause)
	}
}

// Memory returns count pages of zeroed memory that the kernel may keep, given
// back after the case. It ends the case.
func (t *T) Memory(count int) *notify.Memory {
	t.Helper()
	memory, err := notify.Pages(count)
	t.Check(err, "memory for the case")
	t.Cleanup(func() { _ = memory.Close() })
	t.watchPages(memory)
	return memory
}

// Payload returns length bytes of pages outside Go's heap, filled with a pattern
// that differs for each seed. It ends the case.
func (t *T) Payload(length int, seed byte) []byte {
	t.Helper()
	data := t.Memory(max(1, (length+notify.PageSize-1)/notify.PageSize)).Bytes()[:length]
	notify.Pattern(data, seed)
	return data
}

// NIC returns the client of the harness's NIC, on NIC links only. It ends the
// case.
func (t *T) NIC() *NIC {
	t.Helper()
	if t.nic != nil {
		return t.nic
	}
	sender, receiver := t.Link.Ports()
	if sender == "" || t.environment.Host == nil {
		t.Fatalf("link %q is not made by the harness's NIC; the case must name NICLinks only", t.Link)
	}
	t.nic = &NIC{Sender: sender, Receiver: receiver, t: t, host: t.environment.Host}
	t.OnFailure(t.nic.dump)
	return t.nic
}

// resetNIC puts the NIC into the state in which every case finds it.
func (t *T) resetNIC() {
	if t.nic == nil {
		return
	}
	if err := t.nic.host.Call(nic.MethodReset, nil, nil); err != nil {
		t.Errorf("reset the NIC after the case: %v", err)
	}
}

// failureMark begins the line of the log that notes a failure.
const failureMark = "FAIL "

// record notes a failure.
func (t *T) record(message string) {
	t.lock.Lock()
	t.failures = append(t.failures, message)
	t.lock.Unlock()
	sys.Recorder().Mark(trace.Failure, nil, message)
	t.log(failureMark + message)
}

// caller returns "file.go:line: " of the innermost frame that is no helper.
func (t *T) caller() string {
	var counters [16]uintptr
	frames := runtime.CallersFrames(counters[:runtime.Callers(3, counters[:])])
	helpers := t.helperNames()
	for {
		frame, more := frames.Next()
		if frame.PC == 0 {
			return ""
		}
		if !slices.Contains(helpers, frame.Function) {
			return fmt.Sprintf("%s:%d: ", filepath.Base(frame.File), frame.Line)
		}
		if !more {
			return ""
		}
	}
}

// helperNames names the functions that called Helper. Only a failure needs them.
func (t *T) helperNames() []string {
	t.lock.Lock()
	defer t.lock.Unlock()
	var names []string
	for _, counter := range t.helpers {
		frame, _ := runtime.CallersFrames([]uintptr{counter}).Next()
		names = append(names, frame.Function)
	}
	return names
}

func (t *T) result() Result {
	t.lock.Lock()
	defer t.lock.Unlock()
	switch {
	case len(t.failures) > 0:
		return Result{Status: Fail, Detail: strings.Join(t.failures, "\n")}
	case t.skipped != "":
		return Result{Status: Skip, Detail: t.skipped}
	}
	return Result{Status: Pass}
}
