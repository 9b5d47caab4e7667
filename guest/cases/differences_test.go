// SPDX-License-Identifier: BSD-3-Clause

package cases

import (
	"slices"
	"strings"
	"testing"

	"github.com/zcvet/zcvet/guest/network"
)

func TestDifferencesAreOfCases(t *testing.T) {
	for _, difference := range Differences {
		if !slices.ContainsFunc(All(), func(c *Case) bool { return c.Name == difference.Case }) {
			t.Errorf("%s is no case", difference.Case)
		}
		if difference.Until == (Version{}) || difference.Why == "" {
			t.Errorf("%s: a difference has a range and a reason", difference.Case)
		}
	}
}

func TestDifferenceSkipsUpToItsKernel(t *testing.T) {
	for _, difference := range Differences {
		instance := Instance{Case: &Case{Name: difference.Case}, Link: difference.Link}
		for _, test := range []struct {
			version Version
			skips   bool
		}{
			{Version{5, 15}, true},
			{difference.Until, true},
			{Version{difference.Until.Major, difference.Until.Minor + 1}, false},
			{Version{difference.Until.Major + 1, 0}, false},
		} {
			e := &Environment{version: test.version}
			err := e.differs(instance)
			if (err != nil) != test.skips {
				t.Errorf("%s on %v: %v", difference.Case, test.version, err)
			}
			if err != nil && !strings.Contains(err.Error(), difference.Why) {
				t.Errorf("%s on %v, the reason is missing: %v", difference.Case, test.version, err)
			}
		}
	}
}

func TestDifferencesConcernNothingElse(t *testing.T) {
	e := &Environment{version: Version{4, 19}}
	for _, instance := range []Instance{
		{Case: &Case{Name: "no difference"}},
		{Case: &Case{Name: "mixes/segmentation-offload"}, Link: network.NIC},
	} {
		if err := e.differs(instance); err != nil {
			t.Errorf("%s: %v", instance.ID(), err)
		}
	}
}
