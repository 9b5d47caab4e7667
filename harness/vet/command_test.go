// SPDX-License-Identifier: BSD-3-Clause

package vet

import (
	"testing"

	"github.com/zcvet/zcvet/harness/suite"
	"github.com/zcvet/zcvet/harness/verdict"
)

func TestRunCommand(t *testing.T) {
	plain := Options{Kernel: "6.12", Series: "none", Config: "default", Accelerator: "auto", Suite: suite.Everything, Seed: 1}
	changed := plain
	changed.Series, changed.Revision, changed.NoFuzz = "my series", 3, true
	changed.Config, changed.Accelerator, changed.CPU, changed.SMAPOff = "debug", "tcg", "max,la57=off", true
	changed.Suite, changed.Seed, changed.Policy = "scm,!udp", 7, verdict.Policy{Strict: true}
	for _, test := range []struct{ name, got, want string }{
		{"defaults are not written", plain.RunCommand(), "zcvet run --kernel 6.12 --series none"},
		{
			"everything else is", changed.RunCommand(),
			"zcvet run --kernel 6.12 --no-fuzz --config debug --accel tcg --cpu max,la57=off --smap off --series 'my series' --rev 3 --suite 'scm,!udp' --seed 7 --strict",
		},
		{
			"a case alone has the same kernel", changed.caseCommand("option/values/tcp/ipv4/lo"),
			"zcvet run --kernel 6.12 --no-fuzz --config debug --accel tcg --cpu max,la57=off --smap off --series 'my series' --rev 3 --suite option/values/tcp/ipv4/lo --seed 7",
		},
	} {
		if test.got != test.want {
			t.Errorf("%s:\n got %s\nwant %s", test.name, test.got, test.want)
		}
	}
}
