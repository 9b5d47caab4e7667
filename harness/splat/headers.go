// SPDX-License-Identifier: BSD-3-Clause

package splat

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// ending says how the end of a report is recognised.
type ending int

const (
	// endTrace: at the "---[ end trace" line.
	endTrace ending = iota
	// endBar: at the line of equal signs that closes a sanitizer's report.
	endBar
	// endStack: where the stack dump ends, because nothing marks it.
	endStack
	// endDump: where the stack dump of the report itself ends; the stacks
	// before it are history (how a lock was taken, who freed an object).
	endDump
	// endQuiet: when something else is printed for a while. Reports of hangs
	// consist of many stacks.
	endQuiet
	// endLine: the header is all there is.
	endLine
)

// header recognises the first line of a report.
type header struct {
	pattern *regexp.Regexp
	kind    Kind
	end     ending
	// title is the stable part of the title; $1 and so on stand for groups.
	title string
	// in says that the title gets " in FUNCTION" once that is known.
	in bool
	// site and function are the numbers of the groups that hold "file:line"
	// and the faulting frame, 0 for none.
	site, function int
}

// source names a line the way a report does.
const source = `([\w./+-]+:\d+)`

// headers is tried in this order; the first match wins. The texts are those of
// Linux 6.1 to 7.2.
var headers = []header{
	{kind: KASAN, end: endBar, title: "BUG: KASAN: $1", in: true, function: 2, pattern: regexp.MustCompile(`^BUG: KASAN: ([\w -]+?) in (\S+)`)},
	{kind: KASAN, end: endBar, title: "BUG: KASAN: $1", in: true, pattern: regexp.MustCompile(`^BUG: KASAN: ([\w-]+)`)},
	{kind: KMSAN, end: endBar, title: "BUG: KMSAN: $1", in: true, function: 2, pattern: regexp.MustCompile(`^BUG: KMSAN: ([\w -]+?) in (\S+)`)},
	{kind: KFENCE, end: endBar, title: "BUG: KFENCE: $1", in: true, function: 2, pattern: regexp.MustCompile(`^BUG: KFENCE: ([\w -]+?) in (\S+)`)},
	{kind: KCSAN, end: endBar, title: "BUG: KCSAN: $1 in $2 / $3", function: 2, pattern: regexp.MustCompile(`^BUG: KCSAN: ([\w -]+?) in (\S+) / (\S+)`)},
	{kind: KCSAN, end: endBar, title: "BUG: KCSAN: $1", in: true, function: 2, pattern: regexp.MustCompile(`^BUG: KCSAN: ([\w -]+?) in (\S+)`)},
	{kind: UBSAN, end: endTrace, title: "UBSAN: $1", in: true, site: 2, pattern: regexp.MustCompile(`^UBSAN: ([\w-]+) in ` + source)},
	{kind: UBSAN, end: endTrace, title: "UBSAN: $1", in: true, pattern: regexp.MustCompile(`^(?:Oops|Internal error): UBSAN: ([\w -]+)`)},

	{kind: Oops, end: endTrace, title: "BUG: kernel NULL pointer dereference", in: true, pattern: regexp.MustCompile(`^BUG: (?:unable to handle )?kernel NULL pointer dereference`)},
	{kind: Oops, end: endTrace, title: "BUG: unable to handle page fault", in: true, pattern: regexp.MustCompile(`^BUG: unable to handle (?:page fault for address|kernel paging request)`)},
	{kind: Oops, end: endTrace, title: "BUG: $1 stack guard page was hit", in: true, pattern: regexp.MustCompile(`^BUG: (\w+) stack guard page was hit`)},
	{kind: Oops, end: endTrace, title: "general protection fault", in: true, pattern: regexp.MustCompile(`^(?:Oops: )?general protection (?:fault|faul)\b.*\[#\d+\]`)},
	{kind: Oops, end: endTrace, title: "$1", in: true, pattern: regexp.MustCompile(`^(?:Oops: )?(divide error|invalid opcode|stack segment|double fault|int3|bounds|alignment check|control protection fault|overflow|Bad pagetable)\b.*\[#\d+\]`)},
	{kind: Oops, end: endTrace, title: "Oops", in: true, pattern: regexp.MustCompile(`^(?:Oops|Thread overran stack)\b.*\[#\d+\]`)},
	{kind: Bug, end: endTrace, title: "kernel BUG at $1", in: true, site: 1, pattern: regexp.MustCompile(`^kernel BUG at ` + source + `!`)},

	{kind: Warning, end: endTrace, title: "WARNING at $1", in: true, site: 1, function: 2, pattern: regexp.MustCompile(`^WARNING: CPU: \d+ PID: \d+ at ` + source + ` (\S+)`)},
	{kind: Warning, end: endTrace, title: "WARNING", in: true, function: 1, pattern: regexp.MustCompile(`^WARNING: CPU: \d+ PID: \d+ at (\S+)`)},
	// Since 6.18 the processor comes last, and the condition may be shown.
	{kind: Warning, end: endTrace, title: "WARNING at $1", in: true, site: 1, function: 2, pattern: regexp.MustCompile(`^WARNING: (?:\[.*\] )?` + source + ` at (\S+?),? CPU#`)},
	{kind: Warning, end: endTrace, title: "WARNING", in: true, function: 1, pattern: regexp.MustCompile(`^WARNING: (?:\[.*\] )?(?:at )?([\w.]+\+0x\S+?),? CPU#`)},

	{kind: Lockdep, end: endDump, title: "possible circular locking dependency", in: true, pattern: regexp.MustCompile(`^WARNING: possible circular locking dependency detected`)},
	{kind: Lockdep, end: endDump, title: "possible recursive locking", in: true, pattern: regexp.MustCompile(`^WARNING: possible recursive locking detected`)},
	{kind: Lockdep, end: endDump, title: "possible irq lock inversion dependency", in: true, pattern: regexp.MustCompile(`^WARNING: possible irq lock inversion dependency detected`)},
	{kind: Lockdep, end: endDump, title: "$1-safe -> $2-unsafe lock order", in: true, pattern: regexp.MustCompile(`^WARNING: (\w+)-safe -> (\w+)-unsafe lock order detected`)},
	{kind: Lockdep, end: endDump, title: "inconsistent lock state", in: true, pattern: regexp.MustCompile(`^WARNING: inconsistent lock state`)},
	{kind: Lockdep, end: endDump, title: "suspicious RCU usage", in: true, pattern: regexp.MustCompile(`^WARNING: suspicious RCU usage`)},
	{kind: Lockdep, end: endDump, title: "bad unlock balance", in: true, pattern: regexp.MustCompile(`^WARNING: bad unlock balance detected`)},
	{kind: Lockdep, end: endDump, title: "$1", in: true, pattern: regexp.MustCompile(`^WARNING: ([Nn]ested lock was not taken|bad contention detected|held lock freed|chain_key collision|lock held when returning to user space)`)},
	{kind: Lockdep, end: endDump, title: "task still has locks held", in: true, pattern: regexp.MustCompile(`^WARNING: .+/\d+ still has locks held!`)},
	{kind: Lockdep, end: endDump, title: "invalid wait context", in: true, pattern: regexp.MustCompile(`^\[ BUG: Invalid wait context \]`)},
	{kind: Lockdep, end: endStack, title: "trying to register non-static key", in: true, pattern: regexp.MustCompile(`^INFO: trying to register non-static key`)},
	// From here on lockdep is off and every later report would be missing.
	{kind: Lockdep, end: endStack, title: "BUG: MAX_$1 too low", pattern: regexp.MustCompile(`^BUG: MAX_(\w+) too (?:low|small)`)},
	{kind: Lockdep, end: endStack, title: "BUG: $1 $2", in: true, pattern: regexp.MustCompile(`^BUG: (spinlock|rwlock|mutex|rwsem) ([\w -]+?)(?: on CPU#|,|$)`)},

	{kind: Atomic, end: endStack, title: "BUG: sleeping function called from invalid context", in: true, pattern: regexp.MustCompile(`^BUG: sleeping function called from invalid context`)},
	{kind: Atomic, end: endStack, title: "BUG: scheduling while atomic", in: true, pattern: regexp.MustCompile(`^BUG: scheduling while atomic`)},
	{kind: Atomic, end: endStack, title: "BUG: scheduling in a non-blocking section", in: true, pattern: regexp.MustCompile(`^BUG: scheduling in a non-blocking section`)},
	{kind: Atomic, end: endStack, title: "BUG: using $1 in preemptible code", in: true, pattern: regexp.MustCompile(`^BUG: using (\S+) in preemptible`)},
	{kind: Atomic, end: endStack, title: "BUG: assuming $1 context", in: true, pattern: regexp.MustCompile(`^BUG: assuming ([\w -]+) context at`)},
	{kind: Atomic, end: endStack, title: "BUG: workqueue leaked $1", in: true, pattern: regexp.MustCompile(`^BUG: workqueue leaked ([\w, ]+):`)},

	{kind: Slab, end: endDump, title: "BUG $1: $2", in: true, pattern: regexp.MustCompile(`^BUG (\S+) \([^()]*\): (.+?)\.?$`)},
	{kind: Page, end: endStack, title: "BUG: Bad $1", in: true, pattern: regexp.MustCompile(`^BUG: Bad (page state|page map|page cache) in process`)},
	{kind: Page, end: endLine, title: "BUG: Bad rss-counter state", pattern: regexp.MustCompile(`^BUG: Bad rss-counter state`)},
	{kind: Page, end: endLine, title: "BUG: non-zero pgtables_bytes on freeing mm", pattern: regexp.MustCompile(`^BUG: non-zero pgtables_bytes`)},

	{kind: Lockup, end: endQuiet, title: "BUG: soft lockup", in: true, pattern: regexp.MustCompile(`^BUG: soft lockup - CPU#\d+`)},
	{kind: Lockup, end: endQuiet, title: "hard LOCKUP", in: true, pattern: regexp.MustCompile(`^(?:CPU\d+: )?Watchdog detected hard LOCKUP`)},
	{kind: Lockup, end: endQuiet, title: "BUG: workqueue lockup", in: true, pattern: regexp.MustCompile(`^BUG: workqueue lockup`)},
	{kind: RCUStall, end: endQuiet, title: "INFO: $1 self-detected stall", in: true, pattern: regexp.MustCompile(`^INFO: (\w+) self-detected stall on CPU`)},
	{kind: RCUStall, end: endQuiet, title: "INFO: $1 detected $2stalls", in: true, pattern: regexp.MustCompile(`^INFO: (\w+) detected (expedited )?stalls on (?:CPUs/)?tasks`)},
	{kind: HungTask, end: endQuiet, title: "INFO: task hung", in: true, pattern: regexp.MustCompile(`^INFO: task .+:\d+ (?:is )?blocked (?:on a .+ )?for more than \d+ seconds`)},

	{kind: Leak, end: endStack, title: "memory leak", in: true, pattern: regexp.MustCompile(`^unreferenced object 0x[0-9a-f]+ \(size \d+\):`)},
	{kind: Leak, end: endLine, title: "kmemleak: new suspected memory leaks", pattern: regexp.MustCompile(`^kmemleak: \d+ new suspected memory leaks`)},
	{kind: Netdev, end: endLine, title: "unregister_netdevice: waiting for $1 to become free", pattern: regexp.MustCompile(`^unregister_netdevice: waiting for (\S+) to become free`)},

	{kind: Panic, end: endTrace, title: "Kernel panic - not syncing: $1", pattern: regexp.MustCompile(`^Kernel panic - not syncing: (.*?)(?: exitcode=.*|\. .*)?$`)},
	// A BUG: line that none of the above knows is still a report.
	{kind: Bug, end: endStack, title: "BUG: $1", in: true, pattern: regexp.MustCompile(`^BUG: (.{4,100})$`)},
}

// allocFailure is recognised only with Options.AllocFailures: a kernel under
// memory pressure prints it although nothing is wrong.
var allocFailure = header{kind: Alloc, end: endStack, title: "page allocation failure", in: true, pattern: regexp.MustCompile(`page allocation failure: order:\d+`)}

// subsystem is the prefix some reports carry in front of what headers matches.
var subsystem = regexp.MustCompile(`^(?:(?:NMI )?[Ww]atchdog: |rcu: |Fault: )+`)

// openings are what the patterns of headers begin with. Nearly every line of a
// log is turned away here, which makes the scanner several times faster.
var openings = []string{
	"BUG", "WARNING: ", "INFO: ", "UBSAN: ", "Oops", "Internal error: ", "kernel BUG at ", "Kernel panic", "[ BUG: ",
	"CPU", "Watchdog ", "unreferenced object ", "kmemleak: ", "unregister_netdevice: ",
}

func mayOpen(line string) bool {
	// Before 6.10 the trap's name comes first: "divide error: 0000 [#1] SMP".
	return slices.ContainsFunc(openings, func(opening string) bool { return strings.HasPrefix(line, opening) }) ||
		strings.Contains(line, "[#")
}

// matchHeader returns the header line begins, with its groups.
func matchHeader(line string, options Options) (*header, []string) {
	if strings.Contains(line, ": ") {
		line = line[len(subsystem.FindString(line)):]
	}
	if !mayOpen(line) && !options.AllocFailures {
		return nil, nil
	}
	for i := range headers {
		if groups := headers[i].pattern.FindStringSubmatch(line); groups != nil {
			return &headers[i], groups
		}
	}
	if options.AllocFailures {
		if groups := allocFailure.pattern.FindStringSubmatch(line); groups != nil {
			return &allocFailure, groups
		}
	}
	return nil, nil
}

// volatile is what titles must not hold, because it differs between two
// reports of one fault.
var volatile = regexp.MustCompile(`\b(?:0x)?[0-9a-f]{8,16}\b|\b0x[0-9a-f]+\b`)

// expand fills the groups into the title.
func (h *header) expand(groups []string) string {
	title := h.title
	for i := len(groups) - 1; i > 0; i-- {
		group := groups[i]
		if i == h.function || strings.Contains(group, "+0x") {
			group, _, _ = strings.Cut(group, "+0x")
			group = baseName(group)
		}
		if i == h.site {
			file, line := splitSite(group)
			group = fmt.Sprintf("%s:%d", file, line)
		}
		title = strings.ReplaceAll(title, fmt.Sprintf("$%d", i), group)
	}
	title = volatile.ReplaceAllString(title, "…")
	return strings.TrimRight(strings.TrimSpace(title), ":.!")
}

// consequence matches panics that only repeat, as an order to stop, what a
// report before them said.
var consequence = regexp.MustCompile(`^(?:Fatal exception|Fatal machine check|.*panic_on_(?:warn|oops|taint)|.*warned too often|softlockup: hung tasks|hung_task: blocked tasks|Hard LOCKUP|RCU Stall|Aiee, killing interrupt handler|Attempted to kill (?:init|the idle task)|scheduling while atomic|NMI: Not continuing|.*[Uu]nrecovered)`)

// checks are the messages of the checks that end in a warning or a BUG, worth
// more as a title than the line of the check.
var checks = []struct {
	pattern *regexp.Regexp
	kind    Kind
}{
	{regexp.MustCompile(`refcount_t: [\w ;-]+`), Refcount},
	{regexp.MustCompile(`^(?:list_(?:add|del) (?:corruption|double add)|hlist_\w+ corruption|plist corruption)`), List},
	{regexp.MustCompile(`\bskb_(?:over|under)_panic\b`), Bug},
	{regexp.MustCompile(`^usercopy: Kernel memory (?:exposure|overwrite) attempt`), Bug},
	{regexp.MustCompile(`^ODEBUG: \w+ \w+`), Warning},
	{regexp.MustCompile(`^mem\w+: detected field-spanning (?:read|write)`), Warning},
	{regexp.MustCompile(`^(?:detected buffer overflow|\w+: detected buffer overflow)`), Bug},
}

// isOmen tells whether text is such a message: one that is printed before its
// BUG says "cut here".
func isOmen(text string) bool {
	for _, check := range checks {
		if check.pattern.MatchString(text) {
			return true
		}
	}
	return false
}
