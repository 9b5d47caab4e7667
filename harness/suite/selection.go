// SPDX-License-Identifier: BSD-3-Clause

package suite

import (
	"path"
	"slices"
	"strings"

	"github.com/zcvet/zcvet/guest/link"
	"github.com/zcvet/zcvet/harness/fault"
)

// Everything is the selection of all cases.
const Everything = "all"

// Select turns the argument of --suite into a filter. It is a list of patterns,
// separated by commas; an instance is wanted if one of them matches it and none
// that begins with "!" does. A pattern matches
//
//	a checklist id           Z36, N*
//	a group or a case        poll, poll/edge-triggered
//	a protocol, family, link udp, ipv6, nic
//	a whole instance         poll/*/tcp/ipv4/nic
//
// with * for any text that has no slash. Patterns that only exclude start from
// everything.
func Select(patterns string) (func(link.Instance) bool, error) {
	var include, exclude []string
	for pattern := range strings.SplitSeq(patterns, ",") {
		pattern = strings.TrimSpace(pattern)
		excludes := strings.HasPrefix(pattern, "!")
		pattern = strings.TrimPrefix(pattern, "!")
		if pattern == "" {
			return nil, fault.New(fault.Usage, "the suite selection %q holds an empty pattern", patterns)
		}
		if _, err := path.Match(pattern, ""); err != nil {
			return nil, fault.New(fault.Usage, "the suite selection %q: pattern %q: %w", patterns, pattern, err)
		}
		switch {
		case excludes:
			exclude = append(exclude, pattern)
		case pattern == Everything:
			include = append(include, "*")
		default:
			include = append(include, pattern)
		}
	}
	if include == nil {
		include = []string{"*"}
	}
	return func(instance link.Instance) bool {
		return matchesAny(include, instance) && !matchesAny(exclude, instance)
	}, nil
}

func matchesAny(patterns []string, instance link.Instance) bool {
	group, _, _ := strings.Cut(instance.Name, "/")
	names := []string{instance.ID, instance.Name, group, instance.Proto, instance.Family, instance.Link}
	names = append(names, instance.Covers...)
	return slices.ContainsFunc(patterns, func(pattern string) bool {
		return slices.ContainsFunc(names, func(name string) bool {
			// An axis the case does not vary over is empty and matches nothing,
			// not even "*".
			matched, err := path.Match(pattern, name)
			return err == nil && matched && name != ""
		})
	})
}
