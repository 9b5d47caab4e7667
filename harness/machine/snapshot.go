// SPDX-License-Identifier: BSD-3-Clause

package machine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/zcvet/zcvet/harness/fault"
)

// Snapshot is a saved machine: its RAM and the state of its devices, both in
// memory. Any number of machines can be restored from it.
type Snapshot struct {
	// Took is how long the guest stood still for it.
	Took time.Duration
	// Bytes is the size of the saved RAM, without pages of zeros.
	Bytes int64

	config  Config
	memory  *os.File
	devices *os.File
	closing sync.Once
}

// Close frees the memory of the snapshot. Machines restored from it live on.
func (s *Snapshot) Close() error {
	s.closing.Do(func() {
		_ = s.memory.Close()
		_ = s.devices.Close()
	})
	return nil
}

// Snapshot saves the machine, which goes on afterwards. Nothing that the host
// sent on the link may still be on its way to the guest: it would be missing in
// a restored machine. What the guest sent is not in the snapshot either; it has
// been delivered here.
func (m *Machine) Snapshot(ctx context.Context) (_ *Snapshot, err error) {
	began := time.Now()
	if err := m.Stop(ctx); err != nil {
		return nil, err
	}
	defer func() {
		if resume := m.Continue(ctx); resume != nil && err == nil {
			err = resume
		}
	}()
	snapshot := &Snapshot{config: m.config}
	snapshot.devices, err = newMemoryFile("device state", 0)
	if err != nil {
		return nil, fault.New(fault.Infrastructure, "snapshot: %w", err)
	}
	// The RAM cannot change any more, so both can be saved at once.
	saving, savingCtx := errgroup.WithContext(ctx)
	saving.Go(func() error { return m.saveDevices(savingCtx, snapshot.devices) })
	saving.Go(func() (err error) {
		snapshot.memory, snapshot.Bytes, err = duplicate(m.memory, "saved guest memory", int64(m.config.Memory)<<20)
		return err
	})
	if err := saving.Wait(); err != nil {
		snapshot.discard()
		return nil, fault.New(fault.Infrastructure, "snapshot: %w", err)
	}
	if err := errors.Join(seal(snapshot.memory), seal(snapshot.devices)); err != nil {
		snapshot.discard()
		return nil, fault.New(fault.Infrastructure, "snapshot: %w", err)
	}
	snapshot.Took = time.Since(began)
	return snapshot, nil
}

// discard closes what there is of an unfinished snapshot.
func (s *Snapshot) discard() {
	for _, file := range []*os.File{s.memory, s.devices} {
		if file != nil {
			_ = file.Close()
		}
	}
}

// ignoreShared leaves RAM that is a shared file out of the migration stream.
// Both sides have to agree on it.
const ignoreShared = "x-ignore-shared"

func (m *Machine) setIgnoreShared(ctx context.Context) error {
	return m.run(ctx, "migrate-set-capabilities", map[string]any{
		"capabilities": []any{map[string]any{"capability": ignoreShared, "state": true}},
	}, nil)
}

// saveDevices migrates everything but the RAM into file.
func (m *Machine) saveDevices(ctx context.Context, file *os.File) error {
	if err := m.setIgnoreShared(ctx); err != nil {
		return err
	}
	const name = "snapshot"
	if err := m.runWithFile(ctx, file, "getfd", map[string]any{"fdname": name}); err != nil {
		return err
	}
	if err := m.run(ctx, "migrate", map[string]any{"uri": "fd:" + name}, nil); err != nil {
		return err
	}
	return m.awaitMigration(ctx)
}

func (m *Machine) runWithFile(ctx context.Context, file *os.File, command string, arguments any) error {
	ctx, cancel := context.WithTimeout(ctx, m.config.patience().Command)
	defer cancel()
	return m.monitor.runWithFile(ctx, file, command, arguments, nil)
}

// migrationPoll is short beside what a migration without RAM takes.
const migrationPoll = 2 * time.Millisecond

// awaitMigration waits for the end of an outgoing or incoming migration.
func (m *Machine) awaitMigration(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, m.config.patience().Command,
		errors.New("migration did not end in time"))
	defer cancel()
	ticker := time.NewTicker(migrationPoll)
	defer ticker.Stop()
	for {
		var info struct {
			Status string `json:"status"`
			Error  string `json:"error-desc"`
		}
		if err := m.run(ctx, "query-migrate", nil, &info); err != nil {
			return err
		}
		switch info.Status {
		case "completed":
			return nil
		case "failed", "cancelled":
			if info.Error == "" {
				info.Error = "QEMU gives no reason"
			}
			return fmt.Errorf("migration %s: %s", info.Status, info.Error)
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-m.process.done:
			return fmt.Errorf("QEMU ended during migration (%s)", m.process.status())
		}
	}
}

// Restoration is what may differ between a restored machine and the saved one.
type Restoration struct {
	// NICs have new back ends on new sockets. Ports, MACs and their order must
	// be those of the saved machine; so must be the features the back ends
	// offer.
	NICs []NIC
	// Config.ConsoleLog and Config.ConsoleRaw of the new machine.
	ConsoleLog, ConsoleRaw io.Writer
}

// Restore starts a machine where the saved one stood. It returns when the guest
// runs.
func (s *Snapshot) Restore(ctx context.Context, r Restoration) (_ *Machine, err error) {
	config := s.config
	if len(r.NICs) != len(config.NICs) {
		return nil, fault.New(fault.Infrastructure, "restore: %d NICs for a machine of %d", len(r.NICs), len(config.NICs))
	}
	config.NICs, config.ConsoleLog, config.ConsoleRaw = r.NICs, r.ConsoleLog, r.ConsoleRaw

	devices, err := reopen(s.devices)
	if err != nil {
		return nil, fault.New(fault.Infrastructure, "restore: %w", err)
	}
	defer func() { _ = devices.Close() }()
	memory, err := newMemoryFile("guest memory", int64(config.Memory)<<20)
	if err != nil {
		return nil, fault.New(fault.Infrastructure, "restore: %w", err)
	}
	// QEMU needs longer to start than we to copy.
	copied := make(chan error, 1)
	go func() { copied <- copyMemory(memory, s.memory, false) }()
	m, err := start(ctx, config, memory, incoming{})
	copyErr := <-copied
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = m.Close()
		}
	}()
	if copyErr != nil {
		return nil, fault.New(fault.Infrastructure, "restore: %w", copyErr)
	}
	if err := m.load(ctx, devices); err != nil {
		return nil, fault.New(fault.Infrastructure, "restore: %w", err).WithOutput(m.process.output())
	}
	return m, nil
}

// load reads the device state and lets the guest run.
func (m *Machine) load(ctx context.Context, devices *os.File) error {
	if err := m.setIgnoreShared(ctx); err != nil {
		return err
	}
	const name = "snapshot"
	if err := m.runWithFile(ctx, devices, "getfd", map[string]any{"fdname": name}); err != nil {
		return err
	}
	if err := m.run(ctx, "migrate-incoming", map[string]any{"uri": "fd:" + name}, nil); err != nil {
		return err
	}
	if err := m.awaitMigration(ctx); err != nil {
		return err
	}
	// The state was saved stopped, and QEMU keeps it so.
	return m.Continue(ctx)
}
