// SPDX-License-Identifier: BSD-3-Clause

package link_test

import (
	"testing"

	"github.com/zcvet/zcvet/guest/link"
)

func TestParseMark(t *testing.T) {
	for _, test := range []struct {
		line      string
		id        string
		start, ok bool
	}{
		{"[    1.234567] " + link.StartMark("poll/epollet/tcp/ipv4/nic"), "poll/epollet/tcp/ipv4/nic", true, true},
		{"[    1.234567][   T57] " + link.EndMark + "\r", "", false, true},
		{"[    1.234567] Run /init as init process", "", false, false},
	} {
		id, start, ok := link.ParseMark(test.line)
		if id != test.id || start != test.start || ok != test.ok {
			t.Errorf("ParseMark(%q) = %q, %v, %v; want %q, %v, %v", test.line, id, start, ok, test.id, test.start, test.ok)
		}
	}
}
