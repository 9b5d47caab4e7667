// SPDX-License-Identifier: BSD-3-Clause

package vet

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/zcvet/zcvet/harness/splat"
	"github.com/zcvet/zcvet/harness/suite"
	"github.com/zcvet/zcvet/harness/verdict"
)

// Only a crash is run again, and only one that SMAP made.
func TestTouchedUser(t *testing.T) {
	outcome := &suite.Result{
		Cases: []verdict.Case{
			{ID: "user", Status: verdict.Crash},
			{ID: "null", Status: verdict.Crash},
			{ID: "warned", Status: verdict.Fail},
			{ID: "fine", Status: verdict.Pass},
		},
		Splats: []splat.Splat{
			{Case: "", UserAccess: true},
			{Case: "warned", UserAccess: true},
			{Case: "user", UserAccess: true},
			{Case: "null"},
			{Case: "user", UserAccess: true},
		},
	}
	if diff := cmp.Diff([]string{"user"}, touchedUser(outcome)); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}
