// SPDX-License-Identifier: BSD-3-Clause

package debugfs

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/zcvet/zcvet/guest/link"
)

const (
	// minimumAge is how old an object must be before kmemleak takes it for lost
	// (MSECS_MIN_AGE in mm/kmemleak.c), with a tick more.
	minimumAge = 5*time.Second + 50*time.Millisecond
	// maxLeaks bounds the objects that are passed on; a leak that every case
	// makes is found as well by a few.
	maxLeaks = 32
	// maxLeakText bounds the description of one object, in bytes.
	maxLeakText = 8 << 10
)

// errNoKmemleak tells a kernel without CONFIG_DEBUG_KMEMLEAK.
var errNoKmemleak = errors.New("the kernel was not built to look for leaked memory")

// HasKmemleak returns nil on a kernel that looks for leaks, and otherwise the
// reason.
func HasKmemleak(root string) error { return has(filepath.Join(root, "kmemleak"), errNoKmemleak) }

// FindLeaks scans the kernel's memory and returns the objects to which no pointer
// is left. It takes some seconds.
func FindLeaks(root string) link.Leaks {
	if err := HasKmemleak(root); err != nil {
		return link.Leaks{Error: err.Error()}
	}
	return findLeaks(kmemleakFile(filepath.Join(root, "kmemleak")))
}

// detector is what finding leaks asks of the kernel, so that a test can stand in
// for it.
type detector interface {
	scan() error
	report() (io.ReadCloser, error)
	// clock reads the kernel's count of ticks, and when it was read.
	clock() (reading, error)
	sleep(time.Duration)
}

// kmemleakFile is the real detector: written to, the file takes commands; read, it
// is the report.
type kmemleakFile string

func (f kmemleakFile) scan() error                    { return os.WriteFile(string(f), []byte("scan"), 0) }
func (f kmemleakFile) report() (io.ReadCloser, error) { return os.Open(string(f)) }
func (kmemleakFile) sleep(pause time.Duration)        { time.Sleep(pause) }

func (kmemleakFile) clock() (reading, error) {
	const timers = "/proc/timer_list"
	text, err := os.ReadFile(timers)
	if err != nil {
		return reading{}, err
	}
	at := link.Now()
	match := jiffiesLine.FindSubmatch(text)
	if match == nil {
		return reading{}, fmt.Errorf("%s does not have the count of ticks", timers)
	}
	count, err := strconv.ParseUint(string(match[1]), 10, 64)
	return reading{count, at}, err
}

var jiffiesLine = regexp.MustCompile(`(?m)^ *jiffies: (\d+)$`)

// findLeaks needs two scans. The first one finds nothing: it only notes the
// checksum of what seems lost, because what still changes is in use. The second
// one, when everything that the last case allocated is old enough, finds it. So the
// wait is needed once for a run and not for each case.
func findLeaks(d detector) link.Leaks {
	var found link.Leaks
	fail := func(err error) link.Leaks {
		found.Error = fmt.Sprintf("kmemleak: %v", err)
		return found
	}
	first, err := d.clock()
	if err != nil {
		return fail(err)
	}
	if err := d.scan(); err != nil {
		return fail(err)
	}
	d.sleep(minimumAge)
	second, err := d.clock()
	if err != nil {
		return fail(err)
	}
	if err := d.scan(); err != nil {
		return fail(err)
	}
	report, err := d.report()
	if err != nil {
		return fail(err)
	}
	defer func() { _ = report.Close() }()
	objects, err := parseObjects(report)
	found.Total = len(objects)
	for _, object := range objects[:min(len(objects), maxLeaks)] {
		found.Leaks = append(found.Leaks, link.Leak{
			Allocated: second.timeOf(object.jiffies, frequency(first, second)),
			Text:      object.text,
		})
	}
	if err != nil {
		return fail(err)
	}
	return found
}

// reading is the kernel's count of ticks and the time at which it was read, by
// link.Now.
type reading struct {
	jiffies uint64
	at      time.Duration
}

// timeOf is when the count was that of an object; a tick later, as the count is
// rounded down.
func (r reading) timeOf(jiffies uint64, hz float64) time.Duration {
	ticks := float64(int64(r.jiffies-jiffies)) - 1
	return r.at - time.Duration(ticks/hz*float64(time.Second))
}

// frequencies are those that a kernel can be configured for.
var frequencies = []float64{100, 250, 300, 1000}

// frequency tells how many ticks a second has.
func frequency(first, second reading) float64 {
	measured := float64(second.jiffies-first.jiffies) / (second.at - first.at).Seconds()
	return slices.MinFunc(frequencies, func(a, b float64) int {
		return int(math.Copysign(1, math.Abs(a-measured)-math.Abs(b-measured)))
	})
}

// object is one entry of kmemleak's report.
type object struct {
	jiffies uint64 // when it was allocated
	text    string
}

var objectJiffies = regexp.MustCompile(`^  comm .*, jiffies (\d+)`)

// parseObjects reads kmemleak's report.
func parseObjects(report io.Reader) ([]object, error) {
	var objects []object
	var text bytes.Buffer
	lines := bufio.NewScanner(report)
	for lines.Scan() {
		line := lines.Text()
		if strings.HasPrefix(line, "unreferenced object ") {
			objects = append(objects, object{})
			text.Reset()
		}
		if len(objects) == 0 {
			continue
		}
		current := &objects[len(objects)-1]
		if match := objectJiffies.FindStringSubmatch(line); match != nil {
			count, err := strconv.ParseUint(match[1], 10, 64)
			if err != nil {
				return nil, fmt.Errorf("%q: %w", line, err)
			}
			current.jiffies = count
		}
		if text.Len()+len(line) < maxLeakText {
			text.WriteString(line + "\n")
			current.text = text.String()
		}
	}
	return objects, lines.Err()
}
