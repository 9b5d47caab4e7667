// SPDX-License-Identifier: BSD-3-Clause

package reproducer

import (
	"cmp"
	_ "embed"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"sync"
	"text/template"
	"unicode"

	"golang.org/x/sys/unix"

	"github.com/zcvet/zcvet/harness/paragraph"
	"github.com/zcvet/zcvet/harness/verdict"
)

// helpers is what programs are put together from: functions and variables, each
// under what it needs itself.
//
//go:embed helpers.c.tmpl
var helpers string

var parsed = sync.OnceValue(func() *template.Template { return template.Must(template.New("helpers").Parse(helpers)) })

var (
	identifier = regexp.MustCompile(`\w+`)
	noCode     = regexp.MustCompile(`(?s)/\*.*?\*/|"(?:\\.|[^"\\])*"`)
	definition = regexp.MustCompile(`(?m)^static [^=;(]*?\b(\w+)(?:\[[^\]]*\])?(?:\(|;| =)`)
)

// words are the identifiers in code.
func words(text string) map[string]bool {
	set := make(map[string]bool)
	for _, word := range identifier.FindAllString(noCode.ReplaceAllString(text, " "), -1) {
		set[word] = true
	}
	return set
}

// parts returns the helpers that a text needs, in the order of the file, with what
// these need.
func (p *program) parts(text string) (string, error) {
	var all strings.Builder
	about := struct {
		Once, Counted, Threads, Free bool
		// Local is what each thread has its own of.
		Local string
	}{Once: p.counting, Counted: p.counted(), Threads: p.threaded(), Free: p.unordered()}
	if about.Threads {
		about.Local = "__thread "
	}
	if err := parsed().Execute(&all, about); err != nil {
		return "", err
	}
	var needed []string
	used := words(text)
	for _, part := range slices.Backward(strings.Split(all.String(), "////\n")) {
		if slices.ContainsFunc(definition.FindAllStringSubmatch(part, -1), func(d []string) bool { return used[d[1]] }) {
			needed = append(needed, part)
			maps.Copy(used, words(part))
		}
	}
	slices.Reverse(needed)
	return strings.Join(needed, "\n"), nil
}

// headers are the headers of what the names stand for.
var headers = []struct {
	name  string
	needs *regexp.Regexp
}{
	{"arpa/inet.h", regexp.MustCompile(`\binet_pton\b`)},
	{"errno.h", regexp.MustCompile(`\berrno\b`)},
	{"fcntl.h", regexp.MustCompile(`\b(open|fcntl)\(`)},
	{"netinet/in.h", regexp.MustCompile(`\b(sockaddr_in6?|SOL_IPV?6?|IPV?6?_\w+)\b`)},
	{"netinet/tcp.h", regexp.MustCompile(`\b(SOL_TCP|TCP_\w+)\b`)},
	{"netinet/udp.h", regexp.MustCompile(`\b(SOL_UDP|UDP_\w+)\b`)},
	{"poll.h", regexp.MustCompile(`\bpollfd\b`)},
	{"pthread.h", regexp.MustCompile(`\bpthread_t\b`)},
	{"signal.h", regexp.MustCompile(`\bSIGALRM\b`)},
	{"stdarg.h", regexp.MustCompile(`\bva_list\b`)},
	{"stdio.h", regexp.MustCompile(`printf|puts`)},
	{"stdlib.h", regexp.MustCompile(`\bexit\(`)},
	{"string.h", regexp.MustCompile(`\b(str|mem)\w+\(`)},
	{"sys/epoll.h", regexp.MustCompile(`\bepoll_\w+\(`)},
	{"sys/mman.h", regexp.MustCompile(`\bmmap\(`)},
	{"sys/resource.h", regexp.MustCompile(`\bsetrlimit\(`)},
	{"sys/socket.h", regexp.MustCompile(``)},
	{"sys/syscall.h", regexp.MustCompile(`\bSYS_\w+\b`)},
	{"sys/time.h", regexp.MustCompile(`\btimeval\b`)},
	{"sys/wait.h", regexp.MustCompile(`\bwaitpid\(`)},
	{"time.h", regexp.MustCompile(`\bsock_extended_err\b`)}, // for the next
	{"linux/errqueue.h", regexp.MustCompile(`\bsock_extended_err\b`)},
	{"linux/io_uring.h", regexp.MustCompile(`\bio_uring_sqe\b`)},
	{"linux/time_types.h", regexp.MustCompile(`\b__kernel_timespec\b`)},
	{"linux/capability.h", regexp.MustCompile(`\b__user_cap_\w+\b`)},
	{"linux/vm_sockets.h", regexp.MustCompile(`\bsockaddr_vm\b`)},
	{"linux/types.h", regexp.MustCompile(`\bSCM_ZC_NOTIFICATION\b`)},
	{"unistd.h", regexp.MustCompile(`\b(close|usleep|sleep|dup|read|lseek|syscall|alarm|_exit|fork)\(`)},
}

// recent are names that a C library in use may lack.
var recent = map[string]int{
	"AF_VSOCK": unix.AF_VSOCK, "SOL_VSOCK": 287, "MSG_ZEROCOPY": unix.MSG_ZEROCOPY, "SO_ZEROCOPY": unix.SO_ZEROCOPY,
	"SO_TXTIME": unix.SO_TXTIME, "UDP_SEGMENT": unix.UDP_SEGMENT, "TCP_FASTOPEN_CONNECT": unix.TCP_FASTOPEN_CONNECT,
	"IPV6_2292PKTOPTIONS": unix.IPV6_2292PKTOPTIONS, "SO_EE_ORIGIN_ZEROCOPY": 5,
}

// zeroCopyInfo declares the interface for who has headers without it.
const zeroCopyInfo = `#ifdef SCM_ZC_NOTIFICATION
#include <linux/socket.h>
#else
#define SCM_ZC_NOTIFICATION %d

struct zc_info_elem {
	__u32	lo;
	__u32	hi;
	__u8	zerocopy;
	__u8	pad[3];
};

struct zc_info {
	__u32			size;
	struct zc_info_elem	arr[];
};
#endif
`

// ringType is what a program without liburing keeps of an io_uring.
const ringType = `
/* Requests to the kernel and completions of them, in memory shared with it. */
struct ring {
	int fd;
	unsigned int tail;
	struct io_uring_params p;
	char *submission, *completion;
	struct io_uring_sqe *requests;
};
`

// privileged is what only root may do.
var privileged = regexp.MustCompile(`\b(write_file|set_capabilities|SOCK_RAW|AF_PACKET|SO_MARK|SO_BINDTODEVICE)\b`)

func (p *program) render() ([]byte, error) {
	main, err := p.main()
	if err != nil {
		return nil, err
	}
	parts, err := p.parts(main)
	if err != nil {
		return nil, err
	}
	statics := p.statics(main+parts) + p.variables
	body := strings.Join([]string{statics, parts, main}, "\n")
	used := words(body)

	var text strings.Builder
	text.WriteString(p.comment(privileged.MatchString(body)))
	text.WriteString("#define _GNU_SOURCE\n")
	for _, header := range headers {
		if header.needs.MatchString(body) {
			fmt.Fprintf(&text, "#include <%s>\n", header.name)
		}
	}
	text.WriteString("\n")
	names := make([]string, 0, len(recent))
	for name := range recent {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		if used[name] {
			fmt.Fprintf(&text, "#ifndef %s\n#define %s %#x\n#endif\n", name, name, recent[name])
		}
	}
	if used["SCM_ZC_NOTIFICATION"] {
		fmt.Fprintf(&text, zeroCopyInfo, p.about.Style.Constant)
	}
	if used["ring_open"] {
		text.WriteString(ringType + "\n")
	}
	text.WriteString(strings.TrimLeft(body, "\n"))
	return []byte(text.String()), nil
}

// statics are the variables and numbers that a text needs.
func (p *program) statics(text string) string {
	used := words(text)
	var lines []string
	for _, number := range []struct {
		name  string
		value int64
	}{
		{"ZEROCOPY_SENDS", p.mostSends()}, {"MOST_ELEMENTS", p.elements}, {"MOST_CONTROL", p.control}, {"POINTS", int64(p.threads.points) + 1},
	} {
		if used[number.name] {
			lines = append(lines, fmt.Sprintf("#define %s %d", number.name, number.value))
		}
	}
	if len(lines) > 0 {
		lines = append(lines, "")
	}
	for _, variable := range []struct {
		name, kind string
		length     int64
	}{
		{"room", "char", p.room}, {"data", "char", p.data}, {"control", "char", p.control}, {"iov", "struct iovec", p.vectors}, {"many", "struct mmsghdr", p.many},
	} {
		if p.buffers[variable.name] || variable.name == "room" && used["room"] {
			attribute := ""
			if variable.name == "control" {
				attribute = " __attribute__((aligned(8)))"
			}
			local := ""
			if p.threaded() {
				local = "__thread "
			}
			lines = append(lines, fmt.Sprintf("static %s%s %s[%d]%s;", local, variable.kind, variable.name, max(variable.length, 1), attribute))
		}
	}
	if p.counting {
		lines = append(lines, "static int watched = -1;")
	}
	return strings.Join(lines, "\n") + "\n"
}

// dropUnused removes the assignment of a variable that nothing else uses.
func dropUnused(body []string, variable string) bool {
	assigned, at := variable+" = ", -1
	for i, line := range body {
		if !words(line)[variable] {
			continue
		}
		if at >= 0 || !strings.HasPrefix(line, assigned) || words(line[len(assigned):])[variable] {
			return false
		}
		at = i
	}
	if at >= 0 {
		body[at] = strings.TrimPrefix(body[at], assigned)
	}
	return true
}

// Parts of several programs.
const (
	hung = "static void hung(int signal)\n{\n\tprintf(\"FAULT: a call had not returned when signal %d came\\n\", signal);\n" +
		"\tfflush(stdout);\n\t_exit(1);\n}\n\n"
	openLog = `int log = open("/dev/kmsg", O_RDONLY | O_NONBLOCK);`
	seekLog = `must("/dev/kmsg", lseek(log, 0, SEEK_END));`
)

// catchHang has hung called when a call takes too long.
var catchHang = []string{"signal(SIGALRM, hung);", "alarm(30);"}

// scratch declares what a function fills in for its calls, counters names what it
// counts with.
func scratch(used map[string]bool) (lines []string) {
	if used["to"] {
		lines = append(lines, "struct sockaddr_storage to;")
	}
	if used["msg"] {
		lines = append(lines, "struct msghdr msg;")
	}
	return lines
}

func counters(used map[string]bool) (names []string) {
	for _, counter := range []string{"again", "turn", "part"} {
		if used[counter] {
			names = append(names, counter)
		}
	}
	return names
}

// readable refuses a program that nobody would read.
func readable(steps int) error {
	if steps > mostBlocks {
		return impossible("it takes %d different steps, too many to be read", steps)
	}
	return nil
}

// mostSends is how many zero-copy sends can be notified.
func (p *program) mostSends() int64 {
	if p.threaded() {
		return max(p.sends, p.zerocopies*p.repetitions())
	}
	return p.sends
}

func (p *program) main() (string, error) {
	if p.threaded() {
		if p.room+p.data > mostLocal {
			return "", impossible("several threads send or receive %d bytes at once", p.room+p.data)
		}
		main := p.mainOfThreads()
		return main, readable(p.written)
	}
	p.blocks = loops(p.blocks)
	if err := readable(len(p.blocks)); err != nil {
		return "", err
	}
	var text strings.Builder
	if p.hangs() {
		text.WriteString(hung)
	}
	text.WriteString("int main(void)\n{\n")
	var body []string
	for _, b := range p.blocks {
		body = append(body, b.text()...)
	}
	used := words(strings.Join(body, "\n"))
	lines := scratch(used)
	if p.complains() {
		lines = append(lines, openLog)
	}
	var kinds [2][]string
	var others []string
	for _, declaration := range p.declared {
		variable := strings.TrimLeft(declaration[strings.LastIndex(declaration, " ")+1:], "*")
		if dropUnused(body, variable) {
			continue
		}
		if name, isInt := strings.CutPrefix(declaration, "int "); isInt {
			kinds[0] = append(kinds[0], name)
		} else if !strings.HasPrefix(declaration, "char ") {
			others = append(others, declaration+";")
		} else {
			kinds[1] = append(kinds[1], strings.TrimPrefix(declaration, "char "))
		}
	}
	kinds[0] = append(kinds[0], counters(used)...)
	for i, kind := range []string{"int ", "char "} {
		for group := range slices.Chunk(kinds[i], 8) {
			lines = append(lines, kind+strings.Join(group, ", ")+";")
		}
	}
	lines = append(lines, others...)
	if len(lines) > 0 {
		lines = append(lines, "")
	}
	if p.complains() {
		lines = append(lines, seekLog)
	}
	if p.hangs() {
		lines = append(lines, catchHang...)
	}
	lines = append(lines, body...)
	lines = append(lines, "")
	lines = append(lines, p.verdict()...)
	writeLines(&text, lines)
	text.WriteString("}\n")
	return text.String(), nil
}

// complains tells whether the fault is that the kernel complains.
func (p *program) complains() bool {
	return p.about.Complaint != "" || p.about.Case.Status == verdict.Crash
}

// hangs tells whether the fault is that a call does not return.
func (p *program) hangs() bool { return p.about.Case.Status == verdict.Timeout && !p.complains() }

// verdict ends the program.
func (p *program) verdict() []string {
	if p.hangs() {
		return []string{`puts("every call returned: the fault does not show");`, "return 0;"}
	}
	shown, why := p.fault()
	return []string{
		fmt.Sprintf("if (%s) {", shown),
		fmt.Sprintf("\tputs(%s);", quote([]byte("FAULT: "+printable(why)))),
		"\treturn 1;",
		"}",
		`puts("the fault does not show");`,
		"return 0;",
	}
}

// fault is the condition for the fault to show, and what it is then.
func (p *program) fault() (shown, why string) {
	switch {
	case p.complains():
		return "complained(log)", "the kernel complained, see its log: " + p.failure
	case p.hangs():
		return "", "a call did not return"
	case p.counting:
		return "!exactly_once()", p.failure
	}
	return "!differs", "the kernel answered as recorded: " + p.failure
}

func (p *program) comment(root bool) string {
	c := p.about.Case
	var text strings.Builder
	text.WriteString("// SPDX-License-Identifier: BSD-3-Clause\n/*\n")
	write := func(words string) {
		for _, line := range wrap(words, 74) {
			text.WriteString(strings.TrimRight(" * "+line, " ") + "\n")
		}
	}
	write(c.ID + ": " + cmp.Or(p.failure, string(c.Status)))
	write("")
	about := "Seen on Linux " + cmp.Or(p.about.Kernel, "of an unknown version")
	if p.about.Series != "" {
		about += fmt.Sprintf(" with the series %q", p.about.Series)
	}
	if len(c.Covers) > 0 {
		about += "; it is about " + strings.Join(c.Covers, ", ") + " of zcvet's checklist"
	}
	write(about + ".")
	write("")
	flags := "-static "
	if p.layout.Narrow {
		flags = "-m32 " + flags
	}
	if p.threaded() {
		flags += "-pthread "
	}
	write("    gcc " + flags + "-o reproducer THIS-FILE && ./reproducer")
	write("")
	if p.layout.Narrow {
		write("It is about 32-bit tasks on a 64-bit kernel. What gcc needs for -m32 is in the package gcc-multilib of Debian and Ubuntu.")
		write("")
	}
	about = "It exits with 1 if the kernel has the fault, with 0 if it has not, and with 125 if that could not be found out, as git bisect run expects."
	switch {
	case p.complains():
		about += " The kernel has the fault as well if it kills the program or stops the machine."
	case p.counting:
		about += " The fault is that a zero-copy send is not notified exactly once."
	case !p.hangs():
		about += " The fault is that every call gives what was recorded; on a kernel without it one gives something else."
	}
	if root {
		about += " It needs root."
	}
	write(about)
	if p.threaded() {
		write("")
		write(p.aboutThreads())
	}
	write("")
	write("zcvet made it from the system calls of that case, which runs with")
	text.WriteString(" *     " + comment(p.about.Command) + "\n */\n")
	return text.String()
}

// wrap breaks a paragraph of a comment into lines. One that is indented is a line.
func wrap(text string, columns int) []string {
	if strings.HasPrefix(text, " ") {
		return []string{text}
	}
	return paragraph.Lines(comment(text), "", "", columns)
}

// printable is one line of a text of unknown origin.
func printable(text string) string {
	text = strings.Join(strings.Fields(strings.ToValidUTF8(text, "?")), " ")
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, text)
}

// comment is printable text that can stand in a comment.
func comment(text string) string {
	text = strings.NewReplacer("*/", "* /", "/*", "/ *").Replace(printable(text))
	for strings.Contains(text, "??") { // a trigraph begins so
		text = strings.ReplaceAll(text, "??", "?")
	}
	return text
}

// quote writes a C string. Every byte that means something in one is escaped, and
// those of a trigraph.
func quote(bytes []byte) string {
	var text strings.Builder
	text.WriteByte('"')
	for _, b := range bytes {
		if b < ' ' || b > '~' || b == '"' || b == '\\' || b == '?' {
			fmt.Fprintf(&text, "\\%03o", b)
			continue
		}
		text.WriteByte(b)
	}
	text.WriteByte('"')
	return text.String()
}
