// SPDX-License-Identifier: BSD-3-Clause

package link_test

import (
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/zcvet/zcvet/guest/link"
)

// Instances arrive as they were sent, also where only one field tells two apart
// that follow each other.
func TestInstancesTravel(t *testing.T) {
	covers := []string{"Z01", "N02"}
	axes := link.Axes{"tcp", "ipv4", "nic"}
	sent := link.Instances{
		link.NewInstance(link.Case{Name: "a", Covers: covers, Level: "MUST"}, axes),
		link.NewInstance(link.Case{Name: "a", Covers: covers, Level: "MUST"}, link.Axes{"udp", "ipv6", "lo"}),
		link.NewInstance(link.Case{Name: "a", Covers: covers, Level: "SHOULD"}, axes),
		link.NewInstance(link.Case{Name: "a", Covers: covers, Level: "SHOULD", Concurrent: true}, axes),
		link.NewInstance(link.Case{Name: "a", Covers: covers, Level: "SHOULD"}, axes),
		link.NewInstance(link.Case{Name: "a", Covers: covers[:1], Level: "SHOULD"}, axes),
		link.NewInstance(link.Case{Name: "b", Covers: covers[:1], Level: "SHOULD"}, link.Axes{}),
	}
	data, err := json.Marshal(sent)
	if err != nil {
		t.Fatal(err)
	}
	var received link.Instances
	if err := json.Unmarshal(data, &received); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(sent, received); diff != "" {
		t.Errorf("sent and received (-want +got):\n%s", diff)
	}
}
