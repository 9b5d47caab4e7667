// SPDX-License-Identifier: BSD-3-Clause

package suite_test

import (
	"slices"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/zcvet/zcvet/guest/link"
	"github.com/zcvet/zcvet/harness/fault"
	"github.com/zcvet/zcvet/harness/suite"
	"github.com/zcvet/zcvet/harness/verdict"
)

func save(t *testing.T, lab *laboratory) *suite.Base {
	t.Helper()
	lab.t = t
	base, err := suite.Save(t.Context(), suite.Options{Booter: lab, Patience: patience})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(base.Close)
	return base
}

// One boot serves any number of runs, each in a machine of its own.
func TestRunsFromABase(t *testing.T) {
	lab := &laboratory{
		instances: []string{"a", "b", "c"},
		behaviour: map[string]behaviour{"b": prints(dies(nil), oops...)},
	}
	base := save(t, lab)
	if len(base.Instances) != 3 {
		t.Fatalf("the base knows %v", base.Instances)
	}
	if lab.open != 0 {
		t.Errorf("%d machines run on for a base that is only a snapshot", lab.open)
	}
	var runs sync.WaitGroup
	results := make([]*suite.Result, 2)
	for i := range results {
		runs.Go(func() {
			var err error
			backwards := slices.Clone(base.Instances)
			slices.Reverse(backwards)
			results[i], err = base.Run(t.Context(), suite.Options{Booter: lab, Patience: patience}, backwards)
			if err != nil {
				t.Error(err)
			}
		})
	}
	runs.Wait()
	for _, result := range results {
		var got []string
		for _, c := range result.Cases {
			got = append(got, c.ID+" "+string(c.Status))
		}
		if diff := cmp.Diff([]string{"c pass", "b crash", "a pass"}, got); diff != "" {
			t.Errorf("the order asked for, and the crash (-want +got):\n%s", diff)
		}
		if len(result.Restores) != 2 {
			t.Errorf("%d machines were restored, 2 were needed", len(result.Restores))
		}
	}
	if lab.boots != 1 || lab.open != 0 {
		t.Errorf("%d boots, %d machines left running", lab.boots, lab.open)
	}
}

// A base boots a machine of another kind for the first run that needs one, and for
// none after it.
func TestRunsFromABaseShareTheMachineOfAnotherKind(t *testing.T) {
	lab := &laboratory{instances: []string{"a", "races"}, concurrent: map[string]bool{"races": true}}
	base := save(t, lab)
	var runs sync.WaitGroup
	for range 3 {
		runs.Go(func() {
			if _, err := base.Run(t.Context(), suite.Options{Booter: lab, Patience: patience}, base.Instances); err != nil {
				t.Error(err)
			}
		})
	}
	runs.Wait()
	// Each run restores the machine of the base, all but one the other as well.
	if lab.boots != 2 || lab.restores != 5 || lab.open != 0 {
		t.Errorf("%d boots, %d restores, %d machines left running", lab.boots, lab.restores, lab.open)
	}
}

// The parameters of a run are its own.
func TestParametersOfARunFromABase(t *testing.T) {
	lab := &laboratory{instances: []string{"a"}}
	base := save(t, lab)
	for _, mutant := range []string{"first", "second"} {
		options := suite.Options{Booter: lab, Patience: patience, Parameters: link.Parameters{Mutant: mutant}}
		if _, err := base.Run(t.Context(), options, base.Instances); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff([]string{"first", "second"}, lab.mutants); diff != "" {
		t.Error(diff)
	}
}

func TestEnough(t *testing.T) {
	lab := &laboratory{
		instances: []string{"a", "b", "c", "d"},
		behaviour: map[string]behaviour{"b": ends("fail", "no")},
	}
	failed := false
	result, err := run(t, lab, func(options *suite.Options) {
		options.OnCase = func(c verdict.Case) { failed = failed || c.Status == verdict.Fail }
		options.Enough = func() bool { return failed }
	})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]verdict.Status{"a": "pass", "b": "fail", "c": "", "d": ""}
	if diff := cmp.Diff(want, statuses(result)); diff != "" {
		t.Error(diff)
	}
}

func TestNoBaseWithoutAnAgent(t *testing.T) {
	lab := &laboratory{t: t, noHello: true, boot: oops}
	if _, err := suite.Save(t.Context(), suite.Options{Booter: lab, Patience: patience}); fault.Of(err) != fault.Boot {
		t.Errorf("%v, want an error of class boot", err)
	}
	if lab.open != 0 {
		t.Errorf("%d machines left running", lab.open)
	}
}
