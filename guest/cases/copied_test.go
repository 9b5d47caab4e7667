// SPDX-License-Identifier: BSD-3-Clause

package cases

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/zcvet/zcvet/guest/nic"
)

func TestPayloadOf(t *testing.T) {
	for _, test := range []struct {
		name     string
		segments []nic.Segment
		payload  int
		want     []extent
	}{
		{"headers apart", []nic.Segment{{Address: 0x1000, Length: 12}, {Address: 0x2000, Length: 54}, {Address: 0x5100, Length: 100}}, 100, []extent{{0x5100, 0x5164}}},
		{"headers and payload together", []nic.Segment{{Address: 0x1000, Length: 166}}, 100, []extent{{0x1042, 0x10a6}}},
		{"two pages", []nic.Segment{{Address: 0x1000, Length: 66}, {Address: 0x5ff0, Length: 16}, {Address: 0x9000, Length: 4}}, 20, []extent{{0x5ff0, 0x6000}, {0x9000, 0x9004}}},
		{"no payload", []nic.Segment{{Address: 0x1000, Length: 66}}, 0, nil},
		{"a log that contradicts itself", []nic.Segment{{Address: 0x1000, Length: 10}}, 100, []extent{{0x1000, 0x100a}}},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := payloadOf(nic.Frame{Segments: test.segments, Payload: test.payload})
			if diff := cmp.Diff(test.want, got, cmp.AllowUnexported(extent{})); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestDeviceView(t *testing.T) {
	pages := []extent{{100, 200}, {300, 350}}
	for _, test := range []struct {
		name             string
		payload          []extent
		outside, covered int
	}{
		{"exactly", []extent{{100, 200}, {300, 350}}, 0, 150},
		{"in pieces and out of order", []extent{{300, 350}, {150, 200}, {100, 150}}, 0, 150},
		{"sent twice", []extent{{100, 200}, {120, 180}, {300, 350}, {100, 110}}, 0, 150},
		{"copied", []extent{{1000, 1150}}, 150, 0},
		{"half of it copied", []extent{{100, 175}, {1000, 1075}}, 75, 75},
		{"over the edge", []extent{{190, 210}}, 10, 10},
		{"nothing", nil, 0, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			view := deviceView{pages: pages, payload: test.payload}
			if got := view.outside(pages); got != test.outside {
				t.Errorf("%d bytes outside, want %d", got, test.outside)
			}
			if got := covered(test.payload, pages); got != test.covered {
				t.Errorf("%d bytes covered, want %d", got, test.covered)
			}
		})
	}
}
