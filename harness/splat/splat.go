// SPDX-License-Identifier: BSD-3-Clause

// Package splat reads kernel console logs and finds what the kernel complained
// about: oopses, warnings, sanitizer reports, lock and RCU faults, hangs, leaks
// and panics. A test that passed on a kernel that printed one of these did not
// pass.
//
// A [Scanner] takes the log as it is written and hands out each [Splat] when its
// report is complete. A [Decoder] turns the function+offset pairs of a report
// into files and lines, from the line tables of the vmlinux that was booted.
package splat

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"regexp"
	"strings"

	"github.com/zcvet/zcvet/harness/verdict"
)

// Kind is the family a splat belongs to, as run.json stores it.
type Kind string

// The kinds.
const (
	Oops      Kind = "oops"      // the kernel faulted: NULL dereference, page fault, general protection, divide error
	Bug       Kind = "bug"       // BUG() or BUG_ON()
	Warning   Kind = "warning"   // WARN() and its relatives
	Panic     Kind = "panic"     // a panic with no report before it that explains it
	KASAN     Kind = "kasan"     // address sanitizer
	KMSAN     Kind = "kmsan"     // uninitialised memory
	KCSAN     Kind = "kcsan"     // data race
	KFENCE    Kind = "kfence"    // sampled memory errors
	UBSAN     Kind = "ubsan"     // undefined behaviour
	Lockdep   Kind = "lockdep"   // lock order, lock state, suspicious RCU usage, bad lock
	Atomic    Kind = "atomic"    // sleeping or scheduling where that is forbidden
	Refcount  Kind = "refcount"  // refcount_t saturated
	List      Kind = "list"      // corrupted list_head
	Slab      Kind = "slab"      // corrupted slab object
	Page      Kind = "page"      // bad page state, page map or counter
	Leak      Kind = "leak"      // kmemleak
	Netdev    Kind = "netdev"    // a network device that never loses its last reference
	RCUStall  Kind = "rcu-stall" // grace period does not end
	HungTask  Kind = "hung-task" // task blocked for minutes
	Lockup    Kind = "lockup"    // soft or hard lockup, workqueue lockup
	Hang      Kind = "hang"      // the harness, not the kernel, noticed the silence
	Alloc     Kind = "alloc"     // page allocation failure; only if asked for
	Truncated Kind = "truncated" // a report began and the log ended before it said what it is

	// Unreadable is a console that cannot be scanned from here on: whatever the
	// kernel says on it, nobody will know.
	Unreadable Kind = "unreadable"
)

// hangs tells whether a report of this kind shows what processors or tasks were
// doing, so that NMI backtraces belong to it.
func (k Kind) hangs() bool {
	switch k {
	case RCUStall, HungTask, Lockup, Hang:
		return true
	}
	return false
}

// Frame is one function of a stack, as the console shows it and, once decoded,
// as the source has it.
type Frame struct {
	Function string // as printed, with suffixes such as .isra.0
	Offset   uint64 // into the function, bytes
	Size     uint64 // of the function as kallsyms sees it, bytes
	Module   string // empty for vmlinux
	// Exact is true for an instruction pointer; in all other frames Offset is
	// a return address, which may already belong to the next line.
	Exact bool
	// File is relative to the root of the kernel source, empty until decoded.
	File string
	Line int
	// Inlined are the functions the compiler folded into this one at that
	// place, innermost first; File and Line are those of the innermost.
	// Empty when nothing was inlined there or the vmlinux does not tell.
	Inlined []Inline
}

// Inline is one call that was inlined.
type Inline struct {
	Function string // the inlined function
	// File and Line are the place it was called from.
	File string
	Line int
}

// String formats f like the console does, with the source line if known.
func (f Frame) String() string {
	text := fmt.Sprintf("%s+0x%x/0x%x", f.Function, f.Offset, f.Size)
	if f.Module != "" {
		text += " [" + f.Module + "]"
	}
	if f.File != "" {
		text += fmt.Sprintf(" (%s:%d)", f.File, f.Line)
	}
	return text
}

// Splat is one report of the kernel.
type Splat struct {
	// Title names the fault as its subject line on a mailing list would, and
	// holds nothing that differs from one run to the next (addresses, process
	// ids, processors).
	Title string
	Kind  Kind
	// Function is where the fault is to be looked for: the function at the
	// instruction pointer, or the first caller outside the machinery that
	// checks and reports.
	Function string
	// Frames begins with Function's.
	Frames []Frame
	// Site is "file:line" as a WARN, BUG or UBSAN report states it about its
	// own macro; empty for other reports.
	Site string
	// Taint is the letters after "Tainted:", empty when the kernel was clean.
	Taint string
	// Case is what SetCase was told last when the report began.
	Case string
	// Line is where in the log the report begins, counted from 1.
	Line int
	// Text is the report without timestamps.
	Text string
	// Partial is true when the report has no end: the log stopped, or
	// something else began.
	Partial bool
	// UserAccess is true for an oops on reading or writing an address of user
	// space, which a kernel may do by its helpers only: SMAP found it, and
	// without SMAP it would have gone unseen.
	UserAccess bool
}

// fingerprintDepth is how many functions tell two splats of one title apart.
// Deeper frames vary with the road into the kernel, not with the fault.
const fingerprintDepth = 5

// Fingerprint is a short name for the fault: equal for two reports of one fault
// in different runs, different as soon as one of the first five functions is.
func (s *Splat) Fingerprint() string {
	hash := sha256.New()
	fmt.Fprintln(hash, s.Kind)
	named := 0
	for _, frame := range s.Frames {
		if named == fingerprintDepth {
			break
		}
		fmt.Fprintln(hash, baseName(frame.Function))
		named++
	}
	if named == 0 {
		fmt.Fprintln(hash, s.Title)
	}
	return hex.EncodeToString(hash.Sum(nil))[:12]
}

// compilerSuffix is what GCC and clang append to the clones of a function.
var compilerSuffix = regexp.MustCompile(`\.(?:isra|part|constprop|cold|llvm|lto_priv)\b.*$`)

// baseName is the name of a function in the source.
func baseName(function string) string {
	return compilerSuffix.ReplaceAllString(strings.TrimPrefix(function, "__pfx_"), "")
}

// Blame tells which patch last touched a line; ok is false when the series did
// not touch it.
type Blame func(file string, line int) (patch string, ok bool)

// Verdict converts a decoded splat to its form in run.json. Blame may be nil.
//
// File, Line and Patch are those of the innermost line of the faulting function
// that the series touched: a fault inside an inlined helper of the kernel is
// usually the fault of the patched line that called it. If the series touched
// none, they are where the fault happened, without a patch; Frames shows every
// caller with its patch.
func (s *Splat) Verdict(blame Blame) verdict.Splat {
	out := verdict.Splat{
		Title: s.Title, Kind: string(s.Kind), Case: s.Case, Function: s.Function,
		Text: s.Text, Fingerprint: s.Fingerprint(),
	}
	for i, frame := range s.Frames {
		places := frame.places()
		for _, place := range places {
			if blame != nil && place.File != "" {
				place.Patch, _ = blame(place.File, place.Line)
			}
			out.Frames = append(out.Frames, place)
			if i == 0 && (out.File == "" || out.Patch == "" && place.Patch != "") {
				out.File, out.Line, out.Patch = place.File, place.Line, place.Patch
			}
		}
	}
	if out.File == "" && s.Site != "" && len(s.Frames) == 0 {
		out.File, out.Line = splitSite(s.Site)
		if blame != nil {
			out.Patch, _ = blame(out.File, out.Line)
		}
	}
	return out
}

// places unfolds the inlined functions of a frame, innermost first.
func (f Frame) places() []verdict.Frame {
	var places []verdict.Frame
	file, line := f.File, f.Line
	for _, inline := range f.Inlined {
		places = append(places, verdict.Frame{Function: inline.Function, File: file, Line: line, Inlined: true})
		file, line = inline.File, inline.Line
	}
	return append(places, verdict.Frame{Function: f.Function, File: file, Line: line})
}
