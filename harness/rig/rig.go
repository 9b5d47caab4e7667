// SPDX-License-Identifier: BSD-3-Clause

// Package rig plugs a machine into the NIC: a QEMU whose virtio-net devices are
// served by this process. It is what the suite runs its cases on.
package rig

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"sync"
	"sync/atomic"

	"github.com/zcvet/zcvet/guest/nic"
	"github.com/zcvet/zcvet/harness/fault"
	"github.com/zcvet/zcvet/harness/machine"
	"github.com/zcvet/zcvet/harness/suite"
	"github.com/zcvet/zcvet/harness/vnet"
)

// Booter starts machines that are plugged into a NIC of their own.
type Booter struct {
	// Machine is the machine; its NICs are set by the rig, and its processors by
	// whoever boots one.
	Machine machine.Config
	// Evidence opens a file for evidence about a case, of the given kind; nil
	// keeps none.
	Evidence func(caseID, kind string) (io.WriteCloser, error)

	version atomic.Pointer[string]
}

// QEMU is the version of QEMU, known once a machine was started.
func (b *Booter) QEMU() string {
	if version := b.version.Load(); version != nil {
		return *version
	}
	return ""
}

// Boot starts a machine from power-on, with so many processors.
func (b *Booter) Boot(ctx context.Context, processors int, console func(line string)) (suite.VM, error) {
	config := b.Machine
	config.CPUs = processors
	return b.start(console, power(ctx, config))
}

// power is a cold start.
func power(ctx context.Context, config machine.Config) func([]machine.NIC) (*machine.Machine, error) {
	return func(nics []machine.NIC) (*machine.Machine, error) {
		config.NICs = nics
		return machine.Start(ctx, config)
	}
}

func (b *Booter) start(console func(line string), start func([]machine.NIC) (*machine.Machine, error)) (*vm, error) {
	v := &vm{booter: b, done: make(chan struct{})}
	network, err := vnet.New(vnet.Config{OnSetLink: v.setLink})
	if err != nil {
		return nil, fault.New(fault.Infrastructure, "the virtio-net back end: %w", err)
	}
	v.network = network
	for _, port := range nic.Ports {
		v.nics = append(v.nics, machine.NIC{Port: port, Socket: network.Socket(port)})
	}
	if v.machine, err = start(v.nics); err != nil {
		return nil, errors.Join(err, network.Close())
	}
	version := v.machine.Version()
	b.version.Store(&version)
	v.listen(console)
	v.watcher.Go(v.watch)
	return v, nil
}

// listen passes the console on, from its first line.
func (v *vm) listen(console func(line string)) {
	// Held until the lines of before Subscribe are through, so that the order
	// is kept.
	var order sync.Mutex
	order.Lock()
	defer order.Unlock()
	before, unsubscribe := v.machine.Console().Subscribe(func(line machine.Line) {
		order.Lock()
		defer order.Unlock()
		console(line.Text)
	})
	v.unsubscribe = unsubscribe
	for _, line := range before {
		console(line.Text)
	}
}

// vm is a machine with its NIC.
type vm struct {
	booter      *Booter
	machine     *machine.Machine
	network     *vnet.Network
	nics        []machine.NIC
	unsubscribe func()

	watcher sync.WaitGroup
	done    chan struct{} // closed when err is settled
	err     error
	closing sync.Once
}

// watch ends the machine when its NIC can serve it no more: a guest that broke
// its rings waits for completions that will never come.
func (v *vm) watch() {
	defer close(v.done)
	select {
	case <-v.machine.Done():
	case <-v.network.Done():
		if err := v.network.Err(); err != nil {
			v.machine.Kill(err)
		}
	}
	exit := v.machine.Exit()
	v.err = exit.Err
	if ring, ok := errors.AsType[*vnet.RingError](v.err); ok {
		v.err = fault.New(fault.Crash, "%w", ring)
	}
}

func (v *vm) setLink(ctx context.Context, port nic.Port, up bool) error {
	for _, n := range v.nics {
		if n.Port == port {
			return v.machine.SetLink(ctx, n, up)
		}
	}
	return fault.New(fault.Infrastructure, "no NIC at port %q", port)
}

func (v *vm) Link() io.ReadWriter   { return v.machine.Link() }
func (v *vm) Cases() io.ReadWriter  { return v.machine.Cases() }
func (v *vm) Done() <-chan struct{} { return v.done }

func (v *vm) Err() error {
	<-v.done
	return v.err
}

func (v *vm) Call(ctx context.Context, method string, args json.RawMessage) (any, error) {
	return v.network.Call(ctx, method, args)
}

func (v *vm) ReadMemory(p []byte, physical uint64) error {
	return v.machine.ReadMemory(p, physical)
}

func (v *vm) InjectNMI(ctx context.Context) error {
	_, err := v.machine.InjectNMI(ctx)
	return err
}

// SaveEvidence writes what the NIC saw: the frames as a capture, the transmit
// descriptors as JSON lines.
func (v *vm) SaveEvidence(caseID string) error {
	if v.booter.Evidence == nil {
		return nil
	}
	return errors.Join(
		v.save(caseID, "pcapng", v.network.WritePcap),
		v.save(caseID, "descriptors.jsonl", v.network.WriteDescriptorLog),
	)
}

func (v *vm) save(caseID, kind string, write func(io.Writer) error) error {
	file, err := v.booter.Evidence(caseID, kind)
	if err != nil {
		return err
	}
	return errors.Join(write(file), file.Close())
}

func (v *vm) Close() error {
	var err error
	v.closing.Do(func() {
		err = v.machine.Close()
		v.watcher.Wait()
		v.unsubscribe()
		err = errors.Join(err, v.network.Close())
	})
	return err
}
