// SPDX-License-Identifier: BSD-3-Clause

package suite_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/zcvet/zcvet/harness/fault"
	"github.com/zcvet/zcvet/harness/progress"
	"github.com/zcvet/zcvet/harness/suite"
	"github.com/zcvet/zcvet/harness/verdict"
)

// many returns a laboratory of a hundred cases, enough for three machines.
func many() *laboratory {
	lab := &laboratory{behaviour: map[string]behaviour{}}
	for i := range 100 {
		lab.instances = append(lab.instances, fmt.Sprintf("c%03d", i))
	}
	return lab
}

// Machines that run at the same time make one run: every case has its result once,
// in the order of the cases, and each machine a console of its own.
func TestMachinesShareTheCases(t *testing.T) {
	lab := many()
	lab.behaviour["c010"] = prints(dies(nil), oops...)
	lab.behaviour["c005"] = prints(ends("pass", ""), warning...)
	consoles := map[int]*bytes.Buffer{}
	var told []string
	var last progress.Update
	result, err := run(t, lab, func(o *suite.Options) {
		o.Machines = 3
		o.OnCase = func(c verdict.Case) { told = append(told, c.ID) }
		o.Progress = func(update progress.Update) { last = update }
		o.Console = func(number int) (io.Writer, error) {
			consoles[number] = &bytes.Buffer{}
			return consoles[number], nil
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	var ids []string
	for _, c := range result.Cases {
		ids = append(ids, c.ID)
		want := verdict.Pass
		switch c.ID {
		case "c005":
			want = verdict.Fail
		case "c010":
			want = verdict.Crash
		}
		if c.Status != want {
			t.Errorf("%s: %s, want %s", c.ID, c.Status, want)
		}
	}
	if diff := cmp.Diff(lab.instances, ids); diff != "" {
		t.Errorf("the order of the cases (-want +got):\n%s", diff)
	}
	if slices.Sort(told); !slices.Equal(told, lab.instances) {
		t.Errorf("OnCase heard of %v", told)
	}
	if last.Done != 100 || last.Total != 100 {
		t.Errorf("the progress ended with %d of %d", last.Done, last.Total)
	}
	var blamed []string
	for _, splat := range result.Splats {
		blamed = append(blamed, splat.Case)
	}
	if diff := cmp.Diff([]string{"c005", "c010"}, blamed); diff != "" {
		t.Errorf("the splats, in the order of their cases (-want +got):\n%s", diff)
	}
	// Two machines start beside the first, and the crash costs one.
	if lab.boots != 1 || len(result.Restores) != 3 {
		t.Errorf("%d boots, %d restores", lab.boots, len(result.Restores))
	}
	if len(consoles) != 3 {
		t.Errorf("%d consoles for 3 machines", len(consoles))
	}
	for number, console := range consoles {
		if strings.Contains(console.String(), "case c010\n") != strings.Contains(console.String(), "NULL pointer") {
			t.Errorf("console %d has either the case that crashed or the crash", number)
		}
	}
}

// The machine of a case depends on the cases alone.
func TestSharesAreTheSameEveryTime(t *testing.T) {
	var first [][]string
	for range 3 {
		lab := many()
		if _, err := run(t, lab, func(o *suite.Options) { o.Machines = 3 }); err != nil {
			t.Fatal(err)
		}
		slices.SortFunc(lab.ran, slices.Compare)
		if first == nil {
			first = lab.ran
		}
		if diff := cmp.Diff(first, lab.ran); diff != "" {
			t.Error(diff)
		}
	}
}

// The concurrent cases run in one machine of two, which boots while the other runs
// what it can; the rest is shared.
func TestConcurrentCasesAreNotSpread(t *testing.T) {
	lab := many()
	lab.concurrent = map[string]bool{}
	for _, id := range lab.instances[50:60] {
		lab.concurrent[id] = true
	}
	if _, err := run(t, lab, func(o *suite.Options) { o.Machines = 2 }); err != nil {
		t.Fatal(err)
	}
	if lab.boots != 2 {
		t.Errorf("%d boots for two kinds of machine", lab.boots)
	}
	together := 0
	for i, ids := range lab.ran {
		if lab.processors[i] == 1 {
			continue
		}
		together++
		slices.Sort(ids)
		if diff := cmp.Diff(lab.instances[50:60], ids); diff != "" {
			t.Errorf("cases in the machine with more processors: %s", diff)
		}
	}
	if together != 1 {
		t.Errorf("%d machines with more processors", together)
	}
}

// A concurrent case among few gets a machine at the same time as the others.
func TestFewCasesOfTwoKindsGetTwoMachines(t *testing.T) {
	lab := &laboratory{instances: []string{"a", "races", "b"}, concurrent: map[string]bool{"races": true}}
	if _, err := run(t, lab, func(o *suite.Options) { o.Machines = 2 }); err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(lab.ran, slices.Compare)
	if diff := cmp.Diff([][]string{{"a", "b"}, {"races"}}, lab.ran); diff != "" {
		t.Error(diff)
	}
}

func TestFewCasesGetOneMachine(t *testing.T) {
	lab := &laboratory{instances: []string{"a", "b", "c"}}
	result, err := run(t, lab, func(o *suite.Options) { o.Machines = 3 })
	if err != nil {
		t.Fatal(err)
	}
	if len(lab.ran) != 1 || len(result.Restores) != 0 {
		t.Errorf("%d machines, %d restores", len(lab.ran), len(result.Restores))
	}
}

// One machine that cannot be had ends the run, and what the others finished stays.
func TestOneOfManyMachinesCannotGoOn(t *testing.T) {
	lab := many()
	result, err := run(t, lab, func(o *suite.Options) {
		o.Machines = 3
		o.Console = func(number int) (io.Writer, error) {
			if number == 3 {
				return nil, errors.New("the disk is full")
			}
			return io.Discard, nil
		}
	})
	if fault.Of(err) != fault.Infrastructure || !strings.Contains(err.Error(), "the disk is full") {
		t.Errorf("error %v", err)
	}
	if result == nil {
		t.Error("no result")
	}
}
