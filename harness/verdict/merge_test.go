// SPDX-License-Identifier: BSD-3-Clause

package verdict_test

import (
	"strings"
	"testing"

	"github.com/zcvet/zcvet/harness/verdict"
)

func TestMerge(t *testing.T) {
	shard := func(id string, list ...verdict.Case) *verdict.Run {
		run := &verdict.Run{Kernel: verdict.Kernel{ID: id}, Cases: list}
		run.Decide(verdict.Policy{}, nil)
		return run
	}
	of := func(id string, status verdict.Status) verdict.Case {
		return verdict.Case{ID: id, Status: status, Level: verdict.Must}
	}
	merged, err := verdict.Merge([]*verdict.Run{
		shard("k", of("a", verdict.Pass), of("b", verdict.Fail), of("c", verdict.Skip)),
		shard("k", of("b", verdict.Pass), of("c", verdict.Pass), of("d", verdict.Pass)),
	})
	if err != nil {
		t.Fatal(err)
	}
	if want := (verdict.Totals{Pass: 3, Fail: 1}); merged.Totals != want || merged.Exit.Code != 1 {
		t.Errorf("%+v, exit %+v: a failure that was seen is not taken back", merged.Totals, merged.Exit)
	}
	if _, err := verdict.Merge([]*verdict.Run{shard("k"), shard("other")}); err == nil {
		t.Error("results of different kernels were merged")
	}
	for _, order := range [][]*verdict.Run{
		{shard("k", of("a", verdict.Pass)), shard("k", of("a", "odd"))},
		{shard("k", of("a", "odd")), shard("k", of("a", verdict.Pass))},
	} {
		if _, err := verdict.Merge(order); err == nil || !strings.Contains(err.Error(), `a has the unknown status "odd"`) {
			t.Errorf("a status that does not exist was merged: %v", err)
		}
	}
	if _, err := verdict.Merge(nil); err == nil {
		t.Error("nothing was merged")
	}
}
