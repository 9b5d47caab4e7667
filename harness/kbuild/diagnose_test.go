// SPDX-License-Identifier: BSD-3-Clause

package kbuild

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestDiagnose(t *testing.T) {
	for _, test := range []struct {
		log, want, symbol string
		machine           bool
	}{
		{log: "gcc-error", want: "net/core/skbuff.c:4107: 'struct sk_buff' has no member named 'zc_hi'"},
		{log: "gcc-included", want: "include/linux/skbuff.h:612: expected ';' before 'struct'"},
		{log: "gcc-fatal", want: "net/core/sock.c:30: net/zc_notification.h: No such file or directory"},
		{log: "clang-error", want: "net/ipv4/udp.c:1201: call to undeclared function 'zc_drain'; ISO C99 and later do not support implicit function declarations [-Wimplicit-function-declaration]"},
		{log: "assembler", want: "arch/x86/lib/copy_user_64.S:64: no such instruction: `moov %rdx,%rcx'"},
		{log: "undefined-line", want: "net/core/skbuff.c:1893: undefined reference to `zc_notification_copy'", symbol: "zc_notification_copy"},
		{log: "undefined-section", want: "sock.c: undefined reference to `zc_notification_copy'", symbol: "zc_notification_copy"},
		{log: "multiple-definition", want: "net/ipv4/tcp.c:88: multiple definition of `zc_drain'", symbol: "zc_drain"},
		{log: "lld", want: "undefined symbol: zc_notification_copy", symbol: "zc_notification_copy"},
		{log: "modpost", want: `modpost: "zc_notification_copy" [net/rds/rds.ko] undefined!`, symbol: "zc_notification_copy"},
		{log: "kconfig-syntax", want: "net/Kconfig:55: syntax error"},
		{log: "kconfig-recursive", want: "net/Kconfig:60: error: recursive dependency detected!"},
		{log: "missing-rule", want: "No rule to make target 'net/core/zc_notification.o', needed by 'net/core/built-in.a'"},
		{log: "makefile", want: "net/core/Makefile:12: missing separator"},
		{log: "objtool", want: "net/core/skbuff.o: objtool: skb_copy_ubufs+0x12: call to copy_to_user() with UACCESS enabled"},
		{log: "out-of-memory", want: "Killed signal terminated program cc1", machine: true},
		{log: "disk-full", want: "No space left on device", machine: true},
		{log: "terminated", want: "the compiler was ended by a signal: Terminated", machine: true},
		{log: "only-make", want: "make[2]: *** [../scripts/Makefile.vmlinux:34: vmlinux] Error 1"},
		{log: "nothing", want: "make failed without saying why"},
	} {
		t.Run(test.log, func(t *testing.T) {
			text, err := os.ReadFile(filepath.Join("testdata", "diagnose", test.log+".txt"))
			if err != nil {
				t.Fatal(err)
			}
			got := Diagnose(strings.Split(strings.TrimSuffix(string(text), "\n"), "\n"), "/cache/work/k/linux")
			if got.String() != test.want || got.Symbol != test.symbol || got.Machine != test.machine {
				t.Errorf("got  %q, symbol %q, machine %v\nwant %q, symbol %q, machine %v",
					got, got.Symbol, got.Machine, test.want, test.symbol, test.machine)
			}
		})
	}
}

func TestExcerptShowsTheWayAndTheSource(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("testdata", "diagnose", "gcc-included.txt"))
	if err != nil {
		t.Fatal(err)
	}
	all := strings.TrimSpace(string(text))
	want := all[:strings.LastIndex(all, "\nmake[4]")]
	if got := Diagnose(strings.Split(all, "\n"), "").Excerpt; got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// The output comes from a compiler that a patch's Makefile may have replaced.
func FuzzDiagnose(f *testing.F) {
	logs, err := filepath.Glob(filepath.Join("testdata", "diagnose", "*.txt"))
	if err != nil {
		f.Fatal(err)
	}
	for _, log := range logs {
		text, err := os.ReadFile(log)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(text))
	}
	f.Fuzz(func(t *testing.T, text string) {
		diagnosis := Diagnose(strings.Split(text, "\n"), "/source")
		if diagnosis.String() == "" || diagnosis.Line < 0 || strings.HasPrefix(diagnosis.File, "../") {
			t.Errorf("%#v", diagnosis)
		}
		if strings.Contains(diagnosis.String(), "\n") {
			t.Errorf("more than one line: %q", diagnosis)
		}
	})
}
