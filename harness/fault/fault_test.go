// SPDX-License-Identifier: BSD-3-Clause

package fault_test

import (
	"errors"
	"fmt"
	"io"
	"testing"

	"github.com/zcvet/zcvet/harness/fault"
)

func TestOf(t *testing.T) {
	for _, test := range []struct {
		name string
		err  error
		want fault.Class
		code int
	}{
		{"no error", nil, fault.None, 0},
		{"unclassed", io.ErrUnexpectedEOF, fault.Infrastructure, 7},
		{"classed", fault.New(fault.Apply, "hunk 1"), fault.Apply, 3},
		{"classed and wrapped", fmt.Errorf("series: %w", fault.New(fault.Build, "cc")), fault.Build, 4},
		{"outermost wins", fault.New(fault.Boot, "no agent: %w", fault.New(fault.Infrastructure, "eof")), fault.Boot, 5},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := fault.Of(test.err)
			if got != test.want || got.ExitCode() != test.code {
				t.Errorf("Of(%v) = %v, exit %d; want %v, exit %d", test.err, got, got.ExitCode(), test.want, test.code)
			}
		})
	}
}

func TestErrorKeepsChain(t *testing.T) {
	err := fault.New(fault.Infrastructure, "download: %w", io.ErrUnexpectedEOF).WithAdvice("try again")
	if !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Error("the cause is lost")
	}
	if err.Error() != "download: unexpected EOF" {
		t.Errorf("message %q", err)
	}
}
