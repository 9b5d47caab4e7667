// SPDX-License-Identifier: BSD-3-Clause

package matrix_test

import (
	"bytes"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"

	"github.com/zcvet/zcvet/harness/fault"
	"github.com/zcvet/zcvet/harness/matrix"
)

func TestPlan(t *testing.T) {
	patches := fstest.MapFS{
		"6.12/0000-cover.patch": {},
		"manifest.json":         {},
		"7.2":                   {}, // a file of that name is no port
	}
	for _, test := range []struct {
		name    string
		kernels []string
		series  string
		want    []matrix.Cell
	}{
		{"default", nil, "", []matrix.Cell{
			{Name: "6.1 none", Slug: "6.1-none", Kernel: "6.1", Series: "none"},
			{Name: "6.12 patches/6.12", Slug: "6.12-patches-6.12", Kernel: "6.12", Series: "patches/6.12"},
			{Name: "7.2 none", Slug: "7.2-none", Kernel: "7.2", Series: "none"},
		}},
		{"stable release", []string{"6.12.95"}, matrix.Reference, []matrix.Cell{
			{Name: "6.12.95 patches/6.12", Slug: "6.12.95-patches-6.12", Kernel: "6.12.95", Series: "patches/6.12"},
		}},
		{"another series", []string{"6.1", "6.12"}, "20240730184120.4089835-1-x@example.org", []matrix.Cell{
			{Name: "6.1 20240730184120.4089835-1-x@example.org", Slug: "6.1-20240730184120.4089835-1-x-example.org", Kernel: "6.1", Series: "20240730184120.4089835-1-x@example.org"},
			{Name: "6.12 20240730184120.4089835-1-x@example.org", Slug: "6.12-20240730184120.4089835-1-x-example.org", Kernel: "6.12", Series: "20240730184120.4089835-1-x@example.org"},
		}},
		{"a directory", []string{"dir:/src/6.12"}, "", []matrix.Cell{
			{Name: "dir:/src/6.12 none", Slug: "dir-src-6.12-none", Kernel: "dir:/src/6.12", Series: "none"},
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := matrix.Plan(test.kernels, test.series, patches)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, got.Include); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

func TestPlanRefusesTwins(t *testing.T) {
	if _, err := matrix.Plan([]string{"6.12", "6.12"}, "none", fstest.MapFS{}); fault.Of(err) != fault.Usage {
		t.Errorf("error %v, want a usage error", err)
	}
}

func TestWriteGitHub(t *testing.T) {
	plan, err := matrix.Plan([]string{"6.1"}, "", fstest.MapFS{})
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := plan.WriteGitHub(&out); err != nil {
		t.Fatal(err)
	}
	want := `{"include":[{"name":"6.1 none","slug":"6.1-none","kernel":"6.1","series":"none"}]}` + "\n"
	if out.String() != want {
		t.Errorf("got %s", out.String())
	}
}
