// SPDX-License-Identifier: BSD-3-Clause

package reporttest

import (
	"github.com/zcvet/zcvet/harness/check"
	"github.com/zcvet/zcvet/harness/verdict"
)

// Checks is a series of two patches of which one has a bit of everything.
func Checks() *check.Report {
	r := &check.Report{
		Command: "zcvet check --kernel 6.12 --series mine", Started: "2026-11-24T12:00:00Z", Seconds: 83.2,
		Kernel: verdict.Kernel{Version: "6.12.95"},
		Series: verdict.Series{Name: "net: count | scattered data", Revision: 2, Patches: make([]verdict.Patch, 2)},
		Whole: []check.Result{
			{Name: check.Cover, Status: check.Pass, Summary: "not needed for 2"},
			{Name: check.Uapi, Status: check.Fail, Summary: "arch/mips/include/uapi/asm/socket.h: does not define SCM_NEW", Messages: []check.Message{
				{File: "arch/mips/include/uapi/asm/socket.h", Text: "does not define SCM_NEW"},
			}},
		},
		Patches: []check.Patch{
			{Number: 1, Subject: "net: count_it", File: "0001.patch", Results: []check.Result{
				{Name: check.Apply, Status: check.Pass, Summary: "clean"},
				{Name: check.Build, Status: check.Pass, Summary: "kernel k1 from the cache", Cached: true},
			}},
			{Number: 2, Subject: "udp: use it", File: "0002.patch", Results: []check.Result{
				{Name: check.Apply, Status: check.Pass, Summary: "clean"},
				{Name: check.Checkpatch, Status: check.Warn, Summary: "1 message: CHECK: Alignment", Seconds: 1.4},
				{
					Name: check.Warnings, Status: check.Fail, Summary: "2 new messages, first net/ipv4/udp.c:12: warning: unused variable 'a' [-Wunused-variable]",
					Log: "logs/0002-warnings.log", Seconds: 31.5,
					Messages: []check.Message{
						{File: "net/ipv4/udp.c", Line: 12, Text: "warning: unused variable 'a' [-Wunused-variable]"},
						{File: "net/ipv4/udp.c", Line: 30, Text: "warning: 'b' set but not used [-Wunused-but-set-variable]"},
					},
				},
				{Name: check.Clang, Status: check.Skip, Summary: "clang is not installed: sudo apt-get install clang"},
			}},
		},
	}
	r.Decide(nil)
	return r
}
