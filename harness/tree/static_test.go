// SPDX-License-Identifier: BSD-3-Clause

package tree_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/zcvet/zcvet/harness/series"
	"github.com/zcvet/zcvet/harness/source"
	"github.com/zcvet/zcvet/harness/tree"
	"github.com/zcvet/zcvet/harness/verdict"
)

// static returns the result of one static case on a tree.
func static(t *testing.T, name string, examined *tree.Tree) verdict.Case {
	t.Helper()
	i := slices.IndexFunc(tree.StaticCases, func(s tree.Static) bool { return s.Name == name })
	if i < 0 {
		t.Fatalf("no static case is called %s", name)
	}
	return tree.StaticCases[i].Result(examined)
}

func TestStaticCasesAreSortedAndComplete(t *testing.T) {
	if !slices.IsSortedFunc(tree.StaticCases, func(a, b tree.Static) int { return strings.Compare(a.Name, b.Name) }) {
		t.Error("not in the order of their names")
	}
	for _, c := range tree.StaticCases {
		result := c.Result(nil)
		if result.ID != c.Name || len(result.Covers) == 0 || c.Doc == "" || result.Level == "" {
			t.Errorf("incomplete: %+v", result)
		}
		if result.Status != verdict.Skip || result.Detail == "" {
			t.Errorf("%s without a tree: %s, %q; want a skip with its reason", c.Name, result.Status, result.Detail)
		}
	}
}

func TestUAPINumbers(t *testing.T) {
	const generic, alpha, arm = "include/uapi/asm-generic/socket.h", "arch/alpha/include/uapi/asm/socket.h", "arch/arm/include/uapi/asm/socket.h"
	from := with(base(), func(f files) {
		f[alpha] = socketHeader
		f[arm] = "/* as everybody */\n#include <asm-generic/socket.h>\n"
	})
	define := func(name, number string) func(files) {
		return replace(name, "#if !def", "#define SCM_ZC_NOTIFICATION "+number+"\n#if !def")
	}
	for _, test := range []struct {
		name   string
		edits  []func(files)
		status verdict.Status
		detail string // part of it
	}{
		{"no notification", nil, verdict.Skip, "no SCM_ZC_NOTIFICATION"},
		{"on all", []func(files){define(generic, "79"), define(alpha, "80")}, verdict.Pass, ""},
		{"taken on alpha", []func(files){define(generic, "79"), define(alpha, "78")}, verdict.Fail, "SO_DEVMEM_LINEAR at line"},
		{"missing on alpha", []func(files){define(generic, "79")}, verdict.Fail, alpha + " does not define"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := &series.Series{}
			if test.edits != nil {
				s = patches(diff(t, from, with(from, test.edits...)))
			}
			got := static(t, "series/uapi-numbers", apply(t, kernel(t, from), s, tree.Options{}))
			if got.Status != test.status || !strings.Contains(got.Detail, test.detail) {
				t.Errorf("%s: %s", got.Status, got.Detail)
			}
		})
	}
}

func TestCollisionNamesItsCase(t *testing.T) {
	const generic = "include/uapi/asm-generic/socket.h"
	to := with(base(), replace(generic, "#if !def", "#define SCM_ZC_NOTIFICATION 78\n#if !def"))
	got := apply(t, kernel(t, base()), patches(diff(t, base(), to)), tree.Options{})
	if len(got.Findings) != 1 || got.Findings[0].Case != "series/uapi-numbers" {
		t.Errorf("findings %+v", got.Findings)
	}
}

func TestUAPILayout(t *testing.T) {
	const generic, header = "include/uapi/asm-generic/socket.h", "include/uapi/linux/socket.h"
	for _, test := range []struct {
		name, members string
		faults        []string // what is said about which member, in part
	}{
		{"published", "__u32 lo; __u32 hi; __u8 zerocopy; __u8 __pad[3];", nil},
		{"other spellings", "uint32_t lo; unsigned int hi; unsigned char zerocopy; int16_t pad[2][3]; __aligned_u64 more;", nil},
		{"commented", "__u32 lo; /* first; __u64 x; */ __u32 hi; // last\n", nil},
		{"long", "unsigned long lo; __u32 hi;", []string{`"unsigned long lo": a type that is wider`}},
		{"pointer", "__u32 lo; void *where;", []string{`"void *where": a pointer`}},
		{"structure pointer", "struct zc_info *next;", []string{`"struct zc_info *next": a pointer`}},
		{"64-bit number", "__u64 lo;", []string{`"__u64 lo": a type that is wider or aligned otherwise`}},
		{"size_t", "size_t lo;", []string{`"size_t lo": a type that is wider`}},
		{"another structure", "struct timespec when;", []string{`"struct timespec when": a structure of unknown layout`}},
		{"bit field", "__u32 lo:3;", []string{`"__u32 lo:3": not understood`}},
	} {
		t.Run(test.name, func(t *testing.T) {
			text := "struct zc_info_elem {\n" + test.members + "\n};\nstruct zc_info {\n\t__u32 size;\n\tstruct zc_info_elem arr[];\n};\n"
			to := with(base(), replace(generic, "#if !def", "#define SCM_ZC_NOTIFICATION 79\n#if !def"), func(f files) { f[header] = text })
			got := static(t, "series/uapi-layout", apply(t, kernel(t, base()), patches(diff(t, base(), to)), tree.Options{}))
			if test.faults == nil {
				if got.Status != verdict.Pass {
					t.Errorf("%s: %s", got.Status, got.Detail)
				}
				return
			}
			lines := strings.Split(got.Detail, "\n")
			if got.Status != verdict.Fail || len(lines) != len(test.faults) {
				t.Fatalf("%s: %s", got.Status, got.Detail)
			}
			for i, want := range test.faults {
				if !strings.Contains(lines[i], want) {
					t.Errorf("got %s, want %s", lines[i], want)
				}
			}
		})
	}
}

func TestStaticCasesOnAnImage(t *testing.T) {
	image := apply(t, &source.Kernel{Image: "/boot/vmlinuz", ID: "image"}, &series.Series{}, tree.Options{})
	var statuses []verdict.Status
	for _, c := range tree.StaticCases {
		statuses = append(statuses, c.Result(image).Status)
	}
	if d := cmp.Diff([]verdict.Status{verdict.Skip, verdict.Skip}, statuses); d != "" {
		t.Error(d)
	}
}
