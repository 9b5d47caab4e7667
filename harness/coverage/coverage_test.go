// SPDX-License-Identifier: BSD-3-Clause

package coverage

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/zcvet/zcvet/guest/link"
	"github.com/zcvet/zcvet/harness/series"
	"github.com/zcvet/zcvet/harness/source"
	"github.com/zcvet/zcvet/harness/tree"
	"github.com/zcvet/zcvet/harness/verdict"
)

// The series adds to a function that was there, a function that is called, one
// that is not, an inline one in a header, a file that is not compiled, and a tool.
const diff = `diff --git a/include/half.h b/include/half.h
--- a/include/half.h
+++ b/include/half.h
@@ -1 +1,5 @@
 /* half */
+static inline int half(int n)
+{
+	return n / 2;
+}
diff --git a/net/core/count.c b/net/core/count.c
--- a/net/core/count.c
+++ b/net/core/count.c
@@ -1,6 +1,18 @@
 #include "../../include/half.h"
+
+int twice(int n)
+{
+	if (n > 1000)
+		return 1000;
+	return 2 * half(2 * n);
+}
+
+int never(int n)
+{
+	return n - 1;
+}
 
 int count(int n)
 {
-	return n;
+	return twice(n);
 }
diff --git a/net/rds/lost.c b/net/rds/lost.c
new file mode 100644
--- /dev/null
+++ b/net/rds/lost.c
@@ -0,0 +1 @@
+int lost;
diff --git a/tools/testing/check.c b/tools/testing/check.c
new file mode 100644
--- /dev/null
+++ b/tools/testing/check.c
@@ -0,0 +1 @@
+int main(void) { return 0; }
`

var pristine = map[string]string{
	"include/half.h":   "/* half */\n",
	"net/core/count.c": "#include \"../../include/half.h\"\n\nint count(int n)\n{\n\treturn n;\n}\n",
	"net/core/main.c":  "#include <stdlib.h>\nint count(int);\nint main(int c, char **v)\n{\n\tint i, sum = 0;\n\tfor (i = 0; i < atoi(v[1]); i++)\n\t\tsum += count(i);\n\treturn sum < 0;\n}\n",
	"net/core/Kbuild":  "obj-y := count.o",
	"net/Makefile":     "obj-y += rds/lost.o\n",
	"net/rds/x.h":      "\n",
	"Makefile":         "VERSION = 6\n",
}

func write(t *testing.T, dir string, files map[string][]byte) {
	t.Helper()
	for name, content := range files {
		full := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(full, content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func patched(t *testing.T) *tree.Tree {
	t.Helper()
	dir := t.TempDir()
	files := map[string][]byte{}
	for name, text := range pristine {
		files[name] = []byte(text)
	}
	write(t, dir, files)
	applied, err := tree.Apply(t.Context(), &source.Kernel{Version: "6.12.1", ID: "test", Dir: dir},
		&series.Series{Name: "test", Patches: []series.Patch{{Subject: "net: count twice", File: "0001.patch", Diff: []byte(diff)}}}, tree.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return applied
}

func TestInstrument(t *testing.T) {
	before := patched(t)
	after, err := Instrument(before)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		// Kbuild wins over Makefile, and its last line had no end.
		"net/core/Kbuild": "obj-y := count.o\nGCOV_PROFILE_count.o := y\n",
		// The directory of the file has no Makefile.
		"net/Makefile": "obj-y += rds/lost.o\n\nGCOV_PROFILE_rds/lost.o := y\n",
	} {
		if diff := cmp.Diff(want, string(after.Overlay[name])); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
	if len(after.Overlay) != len(before.Overlay)+2 {
		t.Errorf("%d files differ, %d before", len(after.Overlay), len(before.Overlay))
	}
	if after.ID == before.ID {
		t.Error("the instrumented tree has the id of the other: a cached kernel without counters would be taken for one with them")
	}
}

// run compiles the patched tree as kbuild would, runs it, and returns the notes
// and the counters.
func run(t *testing.T, from *tree.Tree, calls string) (notes string, counters link.Counters) {
	t.Helper()
	if _, err := exec.LookPath("gcov"); err != nil {
		t.Skip("needs gcc and gcov")
	}
	root := t.TempDir()
	files := map[string][]byte{"build/net/core/.keep": nil}
	for name, text := range pristine {
		files[name] = []byte(text)
	}
	for name, content := range from.Overlay {
		files[name] = content
	}
	write(t, root, files)
	build := filepath.Join(root, "build")
	for _, command := range []string{
		"gcc -fprofile-arcs -ftest-coverage -c -o net/core/count.o ../net/core/count.c",
		"gcc --coverage -o program net/core/count.o ../net/core/main.c",
		"./program " + calls,
	} {
		words := strings.Fields(command)
		step := exec.Command(words[0], words[1:]...)
		step.Dir = build
		if output, err := step.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", command, err, output)
		}
	}
	data, err := os.ReadFile(filepath.Join(build, "net/core/count.gcda"))
	if err != nil {
		t.Fatal(err)
	}
	return build, link.Counters{Files: []link.CountersFile{
		{Path: "/sys/kernel/debug/gcov/some/where/build/net/core/count.gcda", Data: data},
		{Path: "/sys/kernel/debug/gcov/some/where/build/net/core/other.gcda", Data: []byte("not asked for")},
	}}
}

func TestMeasure(t *testing.T) {
	from := patched(t)
	notes, first := run(t, from, "3")
	_, second := run(t, from, "2")
	second.Files[0].Data = first.Files[0].Data // the compilation differs, the counters must fit the notes
	got, err := Measure(t.Context(), from, notes, []link.Counters{first, second})
	if err != nil {
		t.Fatal(err)
	}
	line := func(file string, number int, text string, count int64) verdict.CoveredLine {
		return verdict.CoveredLine{File: file, Line: number, Patch: "net: count twice", Text: text, Count: count}
	}
	want := &verdict.Coverage{
		Executable: 9, Executed: 6,
		Lines: []verdict.CoveredLine{
			line("include/half.h", 2, "static inline int half(int n)", 6),
			line("include/half.h", 4, "return n / 2;", 6),
			line("net/core/count.c", 3, "int twice(int n)", 6),
			line("net/core/count.c", 5, "if (n > 1000)", 6),
			line("net/core/count.c", 6, "return 1000;", 0),
			line("net/core/count.c", 7, "return 2 * half(2 * n);", 6),
			line("net/core/count.c", 10, "int never(int n)", 0),
			line("net/core/count.c", 12, "return n - 1;", 0),
			line("net/core/count.c", 17, "return twice(n);", 6),
		},
		Missing: []string{"net/rds/lost.c is not compiled in this configuration"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestMeasureRefusesCountersOfAnotherKernel(t *testing.T) {
	from := patched(t)
	notes, _ := run(t, from, "1")
	other := from.With(map[string][]byte{"net/core/count.c": []byte("int count(int n)\n{\n\treturn n ? n : 3;\n}\n")})
	_, counters := run(t, other, "1")
	_, err := Measure(t.Context(), from, notes, []link.Counters{counters})
	if err == nil || !strings.Contains(err.Error(), "not those of the kernel") {
		t.Errorf("got %v, want a refusal", err)
	}
}

func TestMeasureWithoutNotes(t *testing.T) {
	counters := link.Counters{Files: []link.CountersFile{{Path: "/x/net/core/count.gcda"}}}
	if _, err := Measure(t.Context(), patched(t), t.TempDir(), []link.Counters{counters}); err == nil || !strings.Contains(err.Error(), "count.gcno") {
		t.Errorf("got %v, want an error that names what is missing", err)
	}
}

func TestInSource(t *testing.T) {
	for _, test := range []struct{ build, name, want string }{
		{"/w/linux/build", "../net/core/sock.c", "net/core/sock.c"},
		{"/w/linux/build", "./include/generated/x.h", "build/include/generated/x.h"},
		{"/w/linux/build", "/w/linux/include/net/sock.h", "include/net/sock.h"},
		{"/w/linux/build", "/usr/lib/gcc/x.h", ""},
		{"/w/linux/build", "../../elsewhere.c", ""},
	} {
		if got, ok := inSource(test.build, test.name); got != test.want || ok != (test.want != "") {
			t.Errorf("%s from %s: %q, %v; want %q", test.name, test.build, got, ok, test.want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"current_working_directory":"/w/build","files":[{"file":"../a.c","lines":[{"line_number":3,"count":9223372036854775807}]}]}`))
	f.Add([]byte(`{"files":[{"file":"","lines":[{"line_number":-1,"count":1e30}]}]}`))
	f.Fuzz(func(t *testing.T, output []byte) {
		counts := map[place]int64{}
		if parse(output, counts) != nil {
			return
		}
		for at, count := range counts {
			if at.line < 1 || count < 0 || filepath.IsAbs(at.file) {
				t.Errorf("%+v: %d", at, count)
			}
		}
	})
}
