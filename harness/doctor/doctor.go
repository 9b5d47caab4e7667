// SPDX-License-Identifier: BSD-3-Clause

// Package doctor looks at the machine zcvet runs on and says what is missing,
// what is slow, and what to do about it.
package doctor

import (
	"bufio"
	"context"
	_ "embed" // for packages.txt
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"golang.org/x/sys/unix"

	"github.com/zcvet/zcvet/harness/contract"
	"github.com/zcvet/zcvet/harness/fault"
)

// What a run needs, with room to spare: the source, the build tree and the
// image of one kernel; QEMU's guest and the compilers side by side.
const (
	minDisk   = 6 << 30 // bytes
	minMemory = 2 << 30 // bytes
	minQEMU   = 7       // major version: PVH boot of a vmlinux on microvm with virtio-mmio v1
)

// toolTimeout bounds a tool that is asked for its version.
const toolTimeout = 10 * time.Second

// Check is one thing that was looked at.
type Check struct {
	Name string `json:"name"`
	OK   bool   `json:"ok"`
	// Required is false for what a run can do without.
	Required bool   `json:"required"`
	Detail   string `json:"detail"` // the version found, or what is wrong
	Fix      string `json:"fix,omitempty"`
	// Package is the Debian package that would bring it, if one would.
	Package string `json:"package,omitempty"`
}

// Set names a purpose for which tools are needed.
type Set string

// The sets of packages.txt.
const (
	Run      Set = "run"      // zcvet run and everything like it
	Test     Set = "test"     // the project's own tests
	Lint     Set = "lint"     // make lint
	Browser  Set = "browser"  // one test of make test, which is skipped without it
	Optional Set = "optional" // used when there
)

// Host is the machine as the checks see it. The zero value of every field means
// the real one; tests replace them.
type Host struct {
	LookPath func(name string) (string, error)
	Stat     func(path string) (fs.FileInfo, error)
	// Output runs a command and returns what it printed.
	Output func(ctx context.Context, name string, args ...string) (string, error)
	// OpenKVM opens and closes /dev/kvm for reading and writing.
	OpenKVM func() error
	// FreeDisk is the space left for unprivileged users where path is, or
	// would be, in bytes.
	FreeDisk func(path string) (uint64, error)
	// Memory is what could be used without swapping, in bytes.
	Memory func() (uint64, error)
	Cores  func() int
	Groups func() []string
}

// Options says what to look for.
type Options struct {
	CacheDir string // where zcvet keeps kernels; its disk is checked
	Sets     []Set  // empty means Run and Optional
	Host     Host
}

//go:embed packages.txt
var packageTable string

// requirement is a line of packages.txt.
type requirement struct {
	sets     []Set
	found    string // a command, or a file if it begins with "/"
	pkg      string
	purpose  string
	optional bool
}

func parseTable(table string) ([]requirement, error) {
	var list []requirement
	scanner := bufio.NewScanner(strings.NewReader(table))
	for number := 1; scanner.Scan(); number++ {
		fields := strings.Fields(scanner.Text())
		if len(fields) == 0 || strings.HasPrefix(fields[0], "#") {
			continue
		}
		if len(fields) < 4 {
			return nil, fmt.Errorf("packages.txt line %d: want SETS FOUND PACKAGE PURPOSE", number)
		}
		r := requirement{found: fields[1], pkg: fields[2], purpose: strings.Join(fields[3:], " ")}
		for set := range strings.SplitSeq(fields[0], ",") {
			r.sets = append(r.sets, Set(set))
			if !slices.Contains([]Set{Run, Test, Lint, Browser, Optional}, Set(set)) {
				return nil, fmt.Errorf("packages.txt line %d: unknown set %q", number, set)
			}
		}
		r.optional = slices.Contains(r.sets, Optional)
		list = append(list, r)
	}
	return list, scanner.Err()
}

// Examine looks at the machine. It never fails: what it cannot find out is a
// check that is not OK.
func Examine(ctx context.Context, options Options) []Check {
	host := options.Host.orReal()
	if len(options.Sets) == 0 {
		options.Sets = []Set{Run, Optional}
	}
	checks := []Check{host.golang(ctx)}
	table, err := parseTable(packageTable)
	if err != nil {
		checks = append(checks, Check{Name: "packages", Required: true, Detail: err.Error()})
	}
	for _, r := range table {
		wanted := slices.ContainsFunc(r.sets, func(set Set) bool { return slices.Contains(options.Sets, set) })
		if wanted {
			checks = append(checks, host.tool(ctx, r))
		}
	}
	return append(checks, host.kvm(), host.disk(options.CacheDir), host.memory(), host.cores())
}

// golang checks for the Go command: the agent is compiled on the way.
func (h Host) golang(ctx context.Context) Check {
	check := Check{Name: "go", Required: true, Fix: "install Go 1.26 or newer from https://go.dev/dl/"}
	version, err := h.Output(ctx, "go", "env", "GOVERSION")
	if err != nil {
		check.Detail = err.Error()
		return check
	}
	check.Detail = strings.TrimSpace(version)
	var major, minor int
	if _, err := fmt.Sscanf(check.Detail, "go%d.%d", &major, &minor); err == nil && (major > 1 || minor >= 26) {
		check.OK, check.Fix = true, ""
	}
	return check
}

var versionNumber = regexp.MustCompile(`\d+(?:\.\d+)+`)

// tool checks for a line of packages.txt.
func (h Host) tool(ctx context.Context, r requirement) Check {
	check := Check{Name: r.found, Required: !r.optional, Package: r.pkg}
	fix := "sudo apt-get install " + r.pkg
	if strings.HasPrefix(r.found, "/") {
		check.Name = r.pkg
		if _, err := h.Stat(r.found); err != nil {
			check.Detail, check.Fix = fmt.Sprintf("no %s (%s)", r.found, r.purpose), fix
			return check
		}
		check.OK, check.Detail = true, r.found
		return check
	}
	path, err := h.LookPath(r.found)
	if err != nil {
		check.Detail, check.Fix = "missing: "+r.purpose, fix
		return check
	}
	check.OK, check.Detail = true, path
	if r.found != "qemu-system-x86_64" {
		return check
	}
	check.Name = "qemu"
	output, err := h.Output(ctx, path, "--version")
	version := versionNumber.FindString(output)
	if err != nil || version == "" {
		check.OK, check.Detail, check.Fix = false, fmt.Sprintf("%s does not tell its version: %v", path, err), fix
		return check
	}
	check.Detail = version
	major, _, _ := strings.Cut(version, ".")
	if number, err := strconv.Atoi(major); err == nil && number < minQEMU {
		check.OK, check.Fix = false, fmt.Sprintf("QEMU %d or newer is needed; %s is too old", minQEMU, version)
	}
	return check
}

// kvm checks whether /dev/kvm may be used. That it opens does not mean that it
// runs guests: the probe boot of a run finds that out.
func (h Host) kvm() Check {
	check := Check{Name: "kvm"}
	err := h.OpenKVM()
	switch {
	case err == nil:
		check.OK, check.Detail = true, "/dev/kvm opens; whether it runs guests is found out by a probe boot"
	case errors.Is(err, fs.ErrNotExist):
		check.Detail = "no /dev/kvm: runs use TCG, about four times slower"
		check.Fix = "enable virtualisation in the firmware, or nested virtualisation of this VM"
	case errors.Is(err, fs.ErrPermission):
		check.Detail = "/dev/kvm is there but this user may not open it: runs use TCG"
		check.Fix = "sudo usermod -aG kvm $USER and log in again; on a CI runner: make kvm-permissions"
		if slices.Contains(h.Groups(), "kvm") {
			check.Fix = "you are in group kvm, but the device does not belong to it: make kvm-permissions installs the udev rule"
		}
	default:
		check.Detail = "/dev/kvm: " + err.Error()
		check.Fix = "runs use TCG; dmesg may tell why"
	}
	return check
}

func (h Host) disk(dir string) Check {
	check := Check{Name: "disk", Required: true}
	free, err := h.FreeDisk(dir)
	if err != nil {
		check.Detail = err.Error()
		check.Fix = "point ZCVET_CACHE at a directory that can be written"
		return check
	}
	check.Detail = fmt.Sprintf("%s free in %s", humanize.IBytes(free), dir)
	if check.OK = free >= minDisk; !check.OK {
		check.Fix = fmt.Sprintf("a kernel and its build need about %s: zcvet cache prune, or point ZCVET_CACHE elsewhere", humanize.IBytes(minDisk))
	}
	return check
}

func (h Host) memory() Check {
	check := Check{Name: "memory", Required: true}
	available, err := h.Memory()
	if err != nil {
		check.Detail = err.Error()
		return check
	}
	check.Detail = humanize.IBytes(available) + " available"
	if check.OK = available >= minMemory; !check.OK {
		check.Fix = fmt.Sprintf("the guest and the compilers need %s", humanize.IBytes(minMemory))
	}
	return check
}

func (h Host) cores() Check {
	cores := h.Cores()
	check := Check{Name: "cores", OK: cores >= 2, Detail: strconv.Itoa(cores)}
	if !check.OK {
		check.Fix = "with one core host and guest take turns; expect time-outs to be stretched"
	}
	return check
}

// Err returns an infrastructure error when something required is missing, with
// the command that brings it.
func Err(checks []Check) error {
	var missing, packages, fixes []string
	for _, check := range checks {
		if check.OK || !check.Required {
			continue
		}
		missing = append(missing, check.Name)
		if check.Package != "" {
			packages = append(packages, check.Package)
		} else if check.Fix != "" {
			fixes = append(fixes, check.Fix)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	if len(packages) > 0 {
		fixes = append([]string{"sudo apt-get install --no-install-recommends " + strings.Join(slices.Compact(packages), " ")}, fixes...)
	}
	return fault.New(fault.Infrastructure, "this machine lacks %s", strings.Join(missing, ", ")).
		WithAdvice("%s", strings.Join(fixes, "; "))
}

// WriteTable writes the checks for people.
func WriteTable(w io.Writer, checks []Check) error {
	width := 0
	for _, check := range checks {
		width = max(width, len(check.Name))
	}
	out := bufio.NewWriter(w)
	for _, check := range checks {
		mark := "ok"
		switch {
		case !check.OK && check.Required:
			mark = "MISSING"
		case !check.OK:
			mark = "-"
		}
		fmt.Fprintf(out, "%-8s %-*s  %s\n", mark, width, check.Name, check.Detail)
		if check.Fix != "" {
			fmt.Fprintf(out, "%-8s %-*s  -> %s\n", "", width, "", check.Fix)
		}
	}
	return out.Flush()
}

// WriteJSON writes the checks for scripts, as an array.
func WriteJSON(w io.Writer, checks []Check) error {
	return contract.Write(w, checks)
}

// orReal fills in the functions that look at the real machine.
func (h Host) orReal() Host {
	if h.LookPath == nil {
		h.LookPath = exec.LookPath
	}
	if h.Stat == nil {
		h.Stat = os.Stat
	}
	if h.Output == nil {
		h.Output = output
	}
	if h.OpenKVM == nil {
		h.OpenKVM = openKVM
	}
	if h.FreeDisk == nil {
		h.FreeDisk = freeDisk
	}
	if h.Memory == nil {
		h.Memory = availableMemory
	}
	if h.Cores == nil {
		h.Cores = runtime.NumCPU
	}
	if h.Groups == nil {
		h.Groups = groups
	}
	return h
}

func output(ctx context.Context, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, toolTimeout)
	defer cancel()
	command := exec.CommandContext(ctx, name, args...)
	command.WaitDelay = time.Second
	text, err := command.Output()
	return string(text), err
}

func openKVM() error {
	device, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return device.Close()
}

// freeDisk looks at the nearest directory that exists: the cache is made by the
// first run.
func freeDisk(path string) (uint64, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return 0, err
	}
	for {
		var status unix.Statfs_t
		err := unix.Statfs(path, &status)
		if err == nil {
			return status.Bavail * uint64(status.Bsize), nil
		}
		if parent := filepath.Dir(path); errors.Is(err, unix.ENOENT) && parent != path {
			path = parent
			continue
		}
		return 0, &fs.PathError{Op: "statfs", Path: path, Err: err}
	}
}

func availableMemory() (uint64, error) {
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		var kilobytes uint64
		if _, err := fmt.Sscanf(line, "MemAvailable: %d kB", &kilobytes); err == nil {
			return kilobytes << 10, nil
		}
	}
	return 0, errors.New("/proc/meminfo has no MemAvailable")
}

func groups() []string {
	current, err := user.Current()
	if err != nil {
		return nil
	}
	ids, err := current.GroupIds()
	if err != nil {
		return nil
	}
	var names []string
	for _, id := range ids {
		if group, err := user.LookupGroupId(id); err == nil {
			names = append(names, group.Name)
		}
	}
	return names
}
