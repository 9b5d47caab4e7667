// SPDX-License-Identifier: BSD-3-Clause

package suite_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/zcvet/zcvet/guest/link"
	"github.com/zcvet/zcvet/harness/fault"
	"github.com/zcvet/zcvet/harness/suite"
)

func TestSelect(t *testing.T) {
	instances := []link.Instance{
		{ID: "poll/edge/tcp/ipv4/nic", Name: "poll/edge", Covers: []string{"Z41"}, Proto: "tcp", Family: "ipv4", Link: "nic"},
		{ID: "poll/edge/udp/ipv6/lo", Name: "poll/edge", Covers: []string{"Z41"}, Proto: "udp", Family: "ipv6", Link: "lo"},
		{ID: "option/range", Name: "option/range", Covers: []string{"Z02"}},
		{ID: "scm/empty/tcp/ipv4/lo", Name: "scm/empty", Covers: []string{"N02", "N01"}, Proto: "tcp", Family: "ipv4", Link: "lo"},
	}
	for _, test := range []struct {
		patterns string
		want     []int
	}{
		{"all", []int{0, 1, 2, 3}},
		{"Z41", []int{0, 1}},
		{"Z*", []int{0, 1, 2}},
		{"poll", []int{0, 1}},
		{"poll/edge, N02", []int{0, 1, 3}},
		{"tcp,!lo", []int{0}},
		{"!tcp", []int{1, 2}},
		{"poll/*/*/*/nic", []int{0}},
		{"nothing", nil},
	} {
		t.Run(test.patterns, func(t *testing.T) {
			wanted, err := suite.Select(test.patterns)
			if err != nil {
				t.Fatal(err)
			}
			var got []int
			for i, instance := range instances {
				if wanted(instance) {
					got = append(got, i)
				}
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
	for _, patterns := range []string{"", "Z41,", "[", "!"} {
		if _, err := suite.Select(patterns); fault.Of(err) != fault.Usage {
			t.Errorf("Select(%q): %v, want a usage error", patterns, err)
		}
	}
}
