// SPDX-License-Identifier: BSD-3-Clause

package rig

import (
	"context"

	"github.com/zcvet/zcvet/harness/machine"
	"github.com/zcvet/zcvet/harness/suite"
)

func (v *vm) Snapshot(ctx context.Context) (suite.Snapshot, error) {
	saved, err := v.machine.Snapshot(ctx)
	if err != nil {
		return nil, err
	}
	return &snapshot{booter: v.booter, saved: saved}, nil
}

type snapshot struct {
	booter *Booter
	saved  *machine.Snapshot
}

func (s *snapshot) Restore(ctx context.Context, console func(line string)) (suite.VM, error) {
	return s.booter.start(console, func(nics []machine.NIC) (*machine.Machine, error) {
		return s.saved.Restore(ctx, machine.Restoration{NICs: nics})
	})
}

func (s *snapshot) Close() error { return s.saved.Close() }
