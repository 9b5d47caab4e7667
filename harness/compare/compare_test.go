// SPDX-License-Identifier: BSD-3-Clause

package compare_test

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/zcvet/zcvet/harness/compare"
	"github.com/zcvet/zcvet/harness/fault"
	"github.com/zcvet/zcvet/harness/verdict"
)

// run makes a finished run of words such as "capacity=fail", "order=pass SHOULD".
func run(words ...string) *verdict.Run {
	r := &verdict.Run{}
	r.Series.ABI = "v8"
	for _, word := range words {
		name, status, _ := strings.Cut(word, "=")
		level := verdict.Must
		if rest, should := strings.CutSuffix(status, " SHOULD"); should {
			level, status = verdict.Should, rest
		}
		r.Cases = append(r.Cases, verdict.Case{ID: name + "/tcp", Name: name, Proto: "tcp", Level: level, Status: verdict.Status(status), Detail: "it says " + status})
	}
	r.Decide(verdict.Policy{}, nil)
	return r
}

func failed(class fault.Class) *verdict.Run {
	r := &verdict.Run{}
	r.Decide(verdict.Policy{}, fault.New(class, "the reason"))
	return r
}

func splat(r *verdict.Run, fingerprint, title, id string) *verdict.Run {
	r.Splats = append(r.Splats, verdict.Splat{Fingerprint: fingerprint, Title: title, Case: id})
	return r
}

// changes is the step as a reader would tell it.
func changes(step compare.Step) []string {
	var lines []string
	for _, change := range step.Changes {
		line := fmt.Sprintf("%s %s", change.Name, change.Kind)
		if change.Worse {
			line += " worse"
		}
		lines = append(lines, line)
	}
	for _, change := range step.Splats {
		lines = append(lines, fmt.Sprintf("splat %s %s", change.Splat.Title, change.Kind))
	}
	for _, change := range step.Findings {
		lines = append(lines, fmt.Sprintf("finding %s %s", change.Finding.Title, change.Kind))
	}
	for _, row := range step.Cost {
		lines = append(lines, fmt.Sprintf("cost %d %d", row.Without, row.With))
	}
	return lines
}

// costs is a run in which a send that does not use the series takes so many
// instructions.
func costs(instructions int64) *verdict.Run {
	r := run("cost/send-without-request=pass")
	r.Cases[0].Measurements = []verdict.Measurement{{Name: "plain", Instructions: instructions}}
	return r
}

func TestBetween(t *testing.T) {
	other := func(r *verdict.Run, abi string) *verdict.Run { r.Series.ABI = abi; return r }
	finding := func(r *verdict.Run, title string, level verdict.Level) *verdict.Run {
		r.Series.Findings = append(r.Series.Findings, verdict.Finding{Kind: "uapi-collision", Title: title, Level: level})
		return r
	}
	for _, test := range []struct {
		name          string
		before, after compare.Outcome
		strict        bool
		want          []string
		worse         bool
	}{
		{
			name:   "nothing",
			before: compare.Outcome{Run: run("a=pass", "b=skip")}, after: compare.Outcome{Run: run("a=pass", "b=skip")},
		},
		{
			name:   "broken",
			before: compare.Outcome{Run: run("a=pass", "b=pass", "c=pass")}, after: compare.Outcome{Run: run("a=fail", "b=crash", "c=timeout")},
			want: []string{"a broken worse", "b broken worse", "c broken worse"}, worse: true,
		},
		{
			name:   "a broken SHOULD",
			before: compare.Outcome{Run: run("a=pass SHOULD")}, after: compare.Outcome{Run: run("a=fail SHOULD")},
			want: []string{"a broken"},
		},
		{
			name:   "a broken SHOULD, strictly",
			before: compare.Outcome{Run: run("a=pass SHOULD")}, after: compare.Outcome{Run: run("a=fail SHOULD")},
			strict: true,
			want:   []string{"a broken worse"}, worse: true,
		},
		{
			name:   "fixed, and still failing in another way",
			before: compare.Outcome{Run: run("a=fail", "b=fail")}, after: compare.Outcome{Run: run("a=pass", "b=timeout")},
			want: []string{"a fixed", "b still-failing"},
		},
		{
			name:   "new, whether it was skipped or absent",
			before: compare.Outcome{Run: other(run("a=skip"), "")}, after: compare.Outcome{Run: run("a=pass", "b=pass")},
			want: []string{"a new", "b new"},
		},
		{
			name:   "new and failing",
			before: compare.Outcome{Run: other(run("a=skip"), "")}, after: compare.Outcome{Run: run("a=fail")},
			want: []string{"a new worse"}, worse: true,
		},
		{
			name:   "gone with the same interface",
			before: compare.Outcome{Run: run("a=pass", "b=fail", "c=pass")}, after: compare.Outcome{Run: run("a=skip", "b=skip")},
			want: []string{"a gone worse", "b gone", "c gone worse"}, worse: true,
		},
		{
			name:   "gone with another interface",
			before: compare.Outcome{Run: other(run("a=pass"), "v6")}, after: compare.Outcome{Run: other(run("a=skip"), "v7")},
			want: []string{"a gone"},
		},
		{
			name:   "repeated and confirmed",
			before: compare.Outcome{Run: run("a=pass"), Again: run("a=pass")}, after: compare.Outcome{Run: run("a=fail"), Again: run("a=crash")},
			want: []string{"a broken worse"}, worse: true,
		},
		{
			name:   "not confirmed by the later column",
			before: compare.Outcome{Run: run("a=pass"), Again: run("a=pass")}, after: compare.Outcome{Run: run("a=fail"), Again: run("a=pass")},
			want: []string{"a unstable"},
		},
		{
			name:   "not confirmed by the earlier column",
			before: compare.Outcome{Run: run("a=pass"), Again: run("a=fail")}, after: compare.Outcome{Run: run("a=fail"), Again: run("a=fail")},
			want: []string{"a unstable"},
		},
		{
			name:   "splats by fingerprint",
			before: compare.Outcome{Run: splat(splat(run("a=pass"), "1", "old", ""), "2", "both", "")},
			after:  compare.Outcome{Run: splat(splat(run("a=pass"), "2", "both, other words", ""), "3", "new", "")},
			want:   []string{"splat new new", "splat old gone"}, worse: true,
		},
		{
			name:   "a splat that the repetition of the earlier column has too",
			before: compare.Outcome{Run: run("a=pass"), Again: splat(run("a=pass"), "1", "rare", "")},
			after:  compare.Outcome{Run: splat(run("a=pass"), "1", "rare", "")},
		},
		{
			name:   "another splat of a case that fails in both",
			before: compare.Outcome{Run: splat(run("a=crash"), "1", "hang here", "a/tcp")},
			after:  compare.Outcome{Run: splat(run("a=crash"), "2", "hang there", "a/tcp")},
			want:   []string{"a still-failing", "splat hang there new", "splat hang here gone"},
		},
		{
			name:   "sends that do not use the series",
			before: compare.Outcome{Run: run("a=pass"), Cost: costs(10000)}, after: compare.Outcome{Run: run("a=pass"), Cost: costs(10200)},
			want: []string{"cost 10000 10200"}, worse: true,
		},
		{
			name:   "as dear as before",
			before: compare.Outcome{Run: costs(10000)}, after: compare.Outcome{Run: costs(10050)},
			want: []string{"cost 10000 10050"},
		},
		{
			name:   "findings",
			before: compare.Outcome{Run: finding(run("a=pass"), "old", verdict.Must)},
			after:  compare.Outcome{Run: finding(run("a=pass"), "taken", verdict.Must)},
			want:   []string{"finding taken new", "finding old gone"}, worse: true,
		},
		{
			name:   "a finding that is no more than a remark",
			before: compare.Outcome{Run: run("a=pass")},
			after:  compare.Outcome{Run: finding(run("a=pass"), "fuzz", verdict.Should)},
			want:   []string{"finding fuzz new"},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			step := compare.Between(test.before, test.after, test.strict)
			if d := cmp.Diff(test.want, changes(step)); d != "" {
				t.Errorf("changes (-want +got):\n%s", d)
			}
			if step.Worse != test.worse || (len(step.Reasons) > 0) != test.worse {
				t.Errorf("worse %v because of %q, want %v", step.Worse, step.Reasons, test.worse)
			}
		})
	}
}

func TestDiffering(t *testing.T) {
	got := compare.Differing(run("a=pass", "b=fail", "c=fail", "d=pass", "gone=pass"), run("new=pass", "a=fail", "b=pass", "c=crash", "d=pass"))
	want := []string{"new/tcp", "a/tcp", "b/tcp", "gone/tcp"}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("what has to be run again (-want +got):\n%s", d)
	}
}

func TestKeepsBothResults(t *testing.T) {
	step := compare.Between(
		compare.Outcome{Run: run("a=pass"), Again: run("a=pass")},
		compare.Outcome{Run: run("a=fail"), Again: run("a=crash")}, false)
	after := step.Changes[0].After
	if after.Status != verdict.Fail || after.Again == nil || after.Again.Status != verdict.Crash || after.Again.Detail != "it says crash" {
		t.Errorf("got %+v, again %+v", after, after.Again)
	}
}

func TestHasResults(t *testing.T) {
	interrupted := run("a=pass", "b=skip")
	interrupted.Cases[1].Detail = verdict.NotRun + "interrupted"
	interrupted.Decide(verdict.Policy{}, fault.New(fault.Infrastructure, "interrupted"))
	for _, test := range []struct {
		name string
		run  *verdict.Run
		want bool
	}{
		{"passed", run("a=pass"), true},
		{"failed", run("a=fail"), true},
		{"crashed", run("a=crash"), true},
		{"all skipped", run("a=skip"), true},
		{"does not apply", failed(fault.Apply), false},
		{"no boot", failed(fault.Boot), false},
		{"interrupted", interrupted, false},
	} {
		if got := compare.HasResults(test.run); got != test.want {
			t.Errorf("%s: %v, want %v", test.name, got, test.want)
		}
	}
}

// join compares runs of columns named base, v1, v2, …
func join(strict bool, runs ...*verdict.Run) *compare.Comparison {
	c := &compare.Comparison{}
	var outcomes []compare.Outcome
	for i, r := range runs {
		name := "base"
		if i > 0 {
			name = fmt.Sprintf("v%d", i)
		}
		c.Columns = append(c.Columns, compare.Column{Name: name, Exit: r.Exit, Totals: r.Totals})
		outcomes = append(outcomes, compare.Outcome{Run: r})
	}
	c.Join(outcomes, strict)
	return c
}

func TestJoinDecides(t *testing.T) {
	same := run("a=pass")
	for _, test := range []struct {
		name  string
		runs  []*verdict.Run
		steps [][2]int
		code  int
		why   string
	}{
		{"nothing worse", []*verdict.Run{same, run("a=pass")}, [][2]int{{0, 1}}, 0, ""},
		{"fixed", []*verdict.Run{run("a=fail"), run("a=pass")}, [][2]int{{0, 1}}, 0, ""},
		{"worse, then fixed", []*verdict.Run{same, run("a=fail"), run("a=pass")}, [][2]int{{0, 1}, {1, 2}}, 1, "v1 is worse than base: 1 case passed before and fails now"},
		{"one column does not apply", []*verdict.Run{same, failed(fault.Apply), run("a=pass")}, [][2]int{{0, 1}, {0, 2}}, 3, "v1 does not apply: the reason"},
		{"one does not apply and another is worse", []*verdict.Run{same, run("a=fail"), failed(fault.Apply)}, [][2]int{{0, 1}, {1, 2}}, 3, "v2 does not apply: the reason"},
		{"the first of two that cannot be compared", []*verdict.Run{same, failed(fault.Build), failed(fault.Apply)}, [][2]int{{0, 1}, {0, 2}}, 4, "v1 does not build: the reason"},
		{"the machine before all", []*verdict.Run{same, failed(fault.Build), failed(fault.Infrastructure)}, [][2]int{{0, 1}, {0, 2}}, 7, "v2 could not be tried: the reason"},
		{"no base", []*verdict.Run{failed(fault.Boot), run("a=pass"), run("a=pass")}, [][2]int{{-1, 1}, {1, 2}}, 5, "base does not boot: the reason"},
		{"all skipped is a result", []*verdict.Run{run("a=skip"), run("a=pass")}, [][2]int{{0, 1}}, 0, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := join(false, test.runs...)
			var steps [][2]int
			for _, step := range c.Steps {
				steps = append(steps, [2]int{step.Before, step.After})
				if comparable := c.Columns[step.After].Compared && step.Before >= 0; comparable != (step.Missing == "") {
					t.Errorf("step to %d: missing %q", step.After, step.Missing)
				}
			}
			if d := cmp.Diff(test.steps, steps); d != "" {
				t.Errorf("steps (-want +got):\n%s", d)
			}
			if c.Exit.Code != test.code || c.Exit.Error != test.why {
				t.Errorf("exit %d %q, want %d %q", c.Exit.Code, c.Exit.Error, test.code, test.why)
			}
		})
	}
}

func TestJoinSeesTheSameBinary(t *testing.T) {
	for _, test := range []struct {
		name  string
		alter func(*compare.Column)
		want  bool
	}{
		{"all the same", func(*compare.Column) {}, true},
		{"another binary", func(c *compare.Column) { c.Binary = "2" }, false},
		{"another interface", func(c *compare.Column) { c.Series.ABI = "v7" }, false},
		{"another number", func(c *compare.Column) { c.Series.Constant = 82 }, false},
	} {
		column := compare.Column{Binary: "1", Series: verdict.Series{ABI: "v8", Constant: 81}}
		other := column
		test.alter(&other)
		c := &compare.Comparison{Columns: []compare.Column{column, other}}
		c.Join([]compare.Outcome{{Run: run("a=pass")}, {Run: run("a=pass")}}, false)
		if c.Steps[0].Same != test.want {
			t.Errorf("%s: same %v, want %v", test.name, c.Steps[0].Same, test.want)
		}
	}
}

func TestFold(t *testing.T) {
	before, after := &verdict.Run{}, &verdict.Run{}
	for i, proto := range []string{"tcp", "udp"} {
		id := "counter/ids/" + proto
		c := verdict.Case{ID: id, Name: "counter/ids", Proto: proto, Level: verdict.Must, Status: verdict.Pass}
		before.Cases = append(before.Cases, c)
		c.Status, c.Detail = verdict.Fail, fmt.Sprintf("port %d: id %d, want %d", 4000+i, i+1, i)
		after.Cases = append(after.Cases, c)
	}
	other := verdict.Case{ID: "poll/edge", Name: "poll/edge", Level: verdict.Should, Status: verdict.Pass}
	before.Cases = append([]verdict.Case{other}, before.Cases...)
	other.Status = verdict.Fail
	after.Cases = append([]verdict.Case{other}, after.Cases...)
	step := compare.Between(compare.Outcome{Run: before}, compare.Outcome{Run: after}, false)
	folded := step.Fold(compare.Broken)
	if len(folded) != 2 || folded[0].Name != "counter/ids" || len(folded[0].Cases) != 2 || folded[0].After.Detail != "port 4000: id 1, want 0" {
		t.Errorf("folded into %d: %+v", len(folded), folded)
	}
	if len(step.Fold(compare.Fixed)) != 0 {
		t.Error("a kind that does not occur is folded into something")
	}
}

func TestWriteAndRead(t *testing.T) {
	c := join(false, run("a=pass", "b=fail"), run("a=fail", "b=pass"), failed(fault.Apply))
	var text bytes.Buffer
	if err := c.Write(&text); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(text.String(), ": null") {
		t.Errorf("a list is null:\n%s", text.String())
	}
	got, err := compare.Read(&text)
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Columns) != 3 || len(got.Steps) != 2 || got.Steps[0].Changes[0].Kind != compare.Broken {
		t.Errorf("read back %+v", got)
	}
	if _, err := compare.Read(strings.NewReader(`{"schema": 99}`)); err == nil {
		t.Error("another schema is taken")
	}
}
