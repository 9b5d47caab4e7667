// SPDX-License-Identifier: BSD-3-Clause

package cases

import (
	"slices"
	"strings"
	"testing"
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
	difference := Differences[0]
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
		err := e.differs(difference.Case)
		if (err != nil) != test.skips {
			t.Errorf("on %v: %v", test.version, err)
		}
		if err != nil && !strings.Contains(err.Error(), difference.Why) {
			t.Errorf("on %v the reason is missing: %v", test.version, err)
		}
		if err := e.differs("no difference"); err != nil {
			t.Errorf("on %v another case: %v", test.version, err)
		}
	}
}
