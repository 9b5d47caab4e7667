// SPDX-License-Identifier: BSD-3-Clause

package cases

import (
	"slices"
	"strings"
	"testing"

	"github.com/zcvet/zcvet/guest/network"
)

func TestSelftestJudgement(t *testing.T) {
	modes := make(map[string]selftestMode)
	for _, mode := range selftestModes {
		modes[mode.name] = mode
	}
	for _, test := range []struct {
		name, mode string
		link       network.Link
		said       string
		want       string // in the one complaint; empty if all is well
	}{
		{"zero copy on nic", "zerocopy", network.NIC, "tx=3400 (212 MB) txc=3400 zc=y\n", ""},
		{"zero copy on lo", "zerocopy", network.Loopback, "cpu: unable to pin, may increase variance.\ntx=3400 (212 MB) txc=3400 zc=n\n", ""},
		{"copied on nic", "zerocopy", network.NIC, "tx=3400 (212 MB) txc=3400 zc=n\n", "zero copy true was expected"},
		{"one is missing", "zerocopy", network.NIC, "tx=3400 (212 MB) txc=3399 zc=y\n", "3400 sends, 3399 notifications"},
		{"one is too many", "notified-by-sendmsg", network.NIC, "tx=3400 (212 MB) txc=3401 zc=y\n", "3400 sends, 3401 notifications"},
		{"notified for nothing", "copied", network.NIC, "tx=3400 (212 MB) txc=1 zc=n\n", "no send asked for one"},
		{"not notified, as asked", "copied", network.NIC, "tx=3400 (212 MB) txc=0 zc=n\n", ""},
		{"corks copy", "corked", network.NIC, "tx=800 (0 MB) txc=800 zc=n\n", ""},
		{"half of the pieces", "corked-mixed", network.NIC, "tx=800 (0 MB) txc=400 zc=n\n", ""},
		{"none of the pieces", "corked-mixed", network.NIC, "tx=800 (0 MB) txc=0 zc=n\n", "a part of them zero copy, 0 notifications"},
		{"all of the pieces", "corked-mixed", network.NIC, "tx=800 (0 MB) txc=800 zc=n\n", "a part of them zero copy, 800 notifications"},
		{"nothing sent", "zerocopy", network.NIC, "tx=0 (0 MB) txc=0 zc=n\n", "nothing was sent"},
		{"a complaint", "zerocopy", network.NIC, "serr: inconsistent\ntx=3 (0 MB) txc=3 zc=y\n", "complains: serr: inconsistent"},
		{"no result", "zerocopy", network.NIC, "", "there is no result"},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := modes[test.mode].judge(test.link, test.said)
			if test.want == "" && got == nil || test.want != "" && len(got) == 1 && strings.Contains(got[0], test.want) {
				return
			}
			t.Errorf("the complaints are %q, want one with %q", got, test.want)
		})
	}
}

func TestInvalidOption(t *testing.T) {
	for said, want := range map[string]string{
		"/selftest/msg_zerocopy: invalid option -- 'n'\n": "-n",
		"tx=3 (0 MB) txc=3 zc=y\n":                        "",
	} {
		if got := invalidOption(said); got != want {
			t.Errorf("%q: %q, want %q", said, got, want)
		}
	}
}

func TestSocketTable(t *testing.T) {
	const table = `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0200A8C0:1F40 00000000:0000 0A 00000000:00000001 00:00000000 00000000     0        0 1234 1
   1: 0200A8C0:1F40 0100A8C0:A000 01 00000000:00000A00 00:00000000 00000000     0        0 1235 1
   2: 0200A8C0:A000 0100A8C0:1F40 01 00000000:00000B00 00:00000000 00000000     0        0 1236 1
 broken
`
	got := socketTable{port: 8000}.parse([]byte(table))
	want := []tableLine{{listening: true, unread: 1}, {unread: 0xa00}}
	if !slices.Equal(got, want) {
		t.Errorf("found %v, want %v", got, want)
	}
}
