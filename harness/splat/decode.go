// SPDX-License-Identifier: BSD-3-Clause

package splat

import (
	"cmp"
	"debug/dwarf"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"sync"
)

// Decoder turns frames into source lines with the vmlinux that was booted. The
// console names places as symbol+offset, so neither address randomisation nor
// the load address matters.
//
// Nothing is read before the first Decode: most runs have no splat. A Decoder
// may be used by several goroutines.
type Decoder struct {
	path  string
	roots []string

	once sync.Once
	err  error
	file *elf.File
	data *dwarf.Data
	// symbols are the functions by name; static functions may share one.
	symbols map[string][]symbol
	units   []unit // by lowest address
}

// symbol is a function in the ELF symbol table.
type symbol struct {
	address uint64
	size    uint64 // as the symbol table says
	reach   uint64 // distance to the next symbol: what kallsyms takes for the size
}

// unit is a stretch of addresses of one compilation unit.
type unit struct {
	low, high uint64
	entry     *dwarf.Entry
}

// NewDecoder returns a decoder for a vmlinux with DWARF line tables. Source
// files are reported relative to the root of the kernel source, which is found
// from where init/main.c was compiled; roots are further prefixes to take off.
func NewDecoder(vmlinux string, roots ...string) *Decoder {
	return &Decoder{path: vmlinux, roots: roots}
}

// Decode fills File, Line and Inlined of every frame it can. A frame it cannot
// decode (a module's, or one that the vmlinux does not have) stays as it is; the
// error tells only that the vmlinux could not be read, and is the same on every
// call.
func (d *Decoder) Decode(s *Splat) error {
	if len(s.Frames) == 0 {
		return nil
	}
	if d.once.Do(func() { d.err = d.open() }); d.err != nil {
		return d.err
	}
	for i := range s.Frames {
		if s.Frames[i].Module == "" {
			d.frame(&s.Frames[i])
		}
	}
	return nil
}

// Close releases the vmlinux; the decoder cannot be used afterwards.
func (d *Decoder) Close() error {
	d.once.Do(func() { d.err = errors.New("decoder is closed") })
	if d.file == nil {
		return nil
	}
	file := d.file
	d.file = nil
	return file.Close()
}

func (d *Decoder) open() error {
	file, err := elf.Open(d.path)
	if err != nil {
		return fmt.Errorf("symbols of %s: %w", d.path, err)
	}
	d.file = file
	if err := d.readSymbols(); err != nil {
		return fmt.Errorf("symbols of %s: %w", d.path, err)
	}
	if d.data, err = file.DWARF(); err != nil {
		return fmt.Errorf("line tables of %s: %w", d.path, err)
	}
	if err := d.readUnits(); err != nil {
		return fmt.Errorf("line tables of %s: %w", d.path, err)
	}
	return nil
}

func (d *Decoder) readSymbols() error {
	table, err := d.file.Symbols()
	if err != nil {
		return err
	}
	code := slices.DeleteFunc(table, func(s elf.Symbol) bool {
		if kind := elf.ST_TYPE(s.Info); kind != elf.STT_FUNC && kind != elf.STT_NOTYPE {
			return true
		}
		if s.Name == "" || s.Section == elf.SHN_UNDEF || int(s.Section) >= len(d.file.Sections) {
			return true
		}
		return d.file.Sections[s.Section].Flags&elf.SHF_EXECINSTR == 0
	})
	slices.SortFunc(code, func(a, b elf.Symbol) int { return cmp.Compare(a.Value, b.Value) })
	d.symbols = make(map[string][]symbol, len(code))
	for i, s := range code {
		reach := uint64(0)
		for _, next := range code[i+1:] {
			if next.Value > s.Value {
				reach = next.Value - s.Value
				break
			}
		}
		d.symbols[s.Name] = append(d.symbols[s.Name], symbol{address: s.Value, size: s.Size, reach: reach})
	}
	return nil
}

func (d *Decoder) readUnits() error {
	reader := d.data.Reader()
	for {
		entry, err := reader.Next()
		if err != nil {
			return err
		}
		if entry == nil {
			break
		}
		if entry.Tag != dwarf.TagCompileUnit {
			reader.SkipChildren()
			continue
		}
		name, _ := entry.Val(dwarf.AttrName).(string)
		directory, _ := entry.Val(dwarf.AttrCompDir).(string)
		if root, ok := strings.CutSuffix(name, "init/main.c"); ok {
			d.roots = append(d.roots, absolute(root+".", directory))
		}
		ranges, err := d.data.Ranges(entry)
		if err != nil {
			return err
		}
		for _, r := range ranges {
			d.units = append(d.units, unit{low: r[0], high: r[1], entry: entry})
		}
		reader.SkipChildren()
	}
	slices.SortFunc(d.units, func(a, b unit) int { return cmp.Compare(a.low, b.low) })
	// The longest root first: a build directory may lie inside the source.
	slices.SortFunc(d.roots, func(a, b string) int { return len(b) - len(a) })
	return nil
}

// frame decodes one frame, if it can.
func (d *Decoder) frame(f *Frame) {
	address, ok := d.address(f)
	if !ok {
		return
	}
	at, found := slices.BinarySearchFunc(d.units, address, func(u unit, address uint64) int {
		switch {
		case u.high <= address:
			return -1
		case u.low > address:
			return 1
		}
		return 0
	})
	if !found {
		return
	}
	entry := d.units[at].entry
	lines, err := d.data.LineReader(entry)
	if err != nil || lines == nil {
		return
	}
	line, found := lineAt(lines, address)
	if !found || line.File == nil {
		return
	}
	directory, _ := entry.Val(dwarf.AttrCompDir).(string)
	f.File, f.Line = d.relative(line.File.Name, directory), line.Line
	f.Inlined = d.inlined(entry, address, lines.Files(), directory)
}

// lineAt finds the line of an address. LineReader.SeekPC does not do: it takes
// the whole table for sorted, and a kernel file has a sequence for each of its
// sections.
func lineAt(lines *dwarf.LineReader, address uint64) (dwarf.LineEntry, bool) {
	var before, next dwarf.LineEntry
	for begun := false; ; begun = !next.EndSequence {
		if err := lines.Next(&next); err != nil {
			return dwarf.LineEntry{}, false
		}
		if begun && before.Address <= address && address < next.Address {
			return before, true
		}
		before = next
	}
}

// address finds where the frame points to.
func (d *Decoder) address(f *Frame) (uint64, bool) {
	candidates := d.symbols[f.Function]
	for _, matches := range []func(symbol) bool{
		func(s symbol) bool { return s.reach == f.Size },
		func(s symbol) bool { return s.size == f.Size },
		// Markers that kallsyms drops lie between two functions.
		func(s symbol) bool { return len(candidates) == 1 && f.Offset <= max(s.size, s.reach, f.Size) },
	} {
		for _, s := range candidates {
			if !matches(s) {
				continue
			}
			address := s.address + f.Offset
			if !f.Exact && f.Offset > 0 {
				// A return address is behind the call, and the call may be
				// the last instruction of its line.
				address--
			}
			return address, true
		}
	}
	return 0, false
}

// inlined returns the calls the compiler inlined at an address, innermost first.
func (d *Decoder) inlined(entry *dwarf.Entry, address uint64, files []*dwarf.LineFile, directory string) []Inline {
	reader := d.data.Reader()
	reader.Seek(entry.Offset)
	if _, err := reader.Next(); err != nil {
		return nil
	}
	var calls []Inline
	for depth := 1; depth > 0; {
		child, err := reader.Next()
		if err != nil || child == nil {
			break
		}
		if child.Tag == 0 {
			// The end of the children of something that covers the address:
			// nothing outside it can cover it too.
			depth--
			if len(calls) > 0 {
				break
			}
			continue
		}
		scope := child.Tag == dwarf.TagSubprogram || child.Tag == dwarf.TagInlinedSubroutine || child.Tag == dwarf.TagLexDwarfBlock
		if !scope || !d.covers(child, address) {
			reader.SkipChildren()
			continue
		}
		if child.Tag == dwarf.TagInlinedSubroutine {
			line, _ := child.Val(dwarf.AttrCallLine).(int64)
			call := Inline{Function: d.name(child, 0), Line: int(line)}
			if file, ok := child.Val(dwarf.AttrCallFile).(int64); ok && file >= 0 && int(file) < len(files) && files[file] != nil {
				call.File = d.relative(files[file].Name, directory)
			}
			calls = append(calls, call)
		}
		if !child.Children {
			break
		}
		depth++
	}
	slices.Reverse(calls)
	return calls
}

func (d *Decoder) covers(entry *dwarf.Entry, address uint64) bool {
	ranges, err := d.data.Ranges(entry)
	if err != nil {
		return false
	}
	return slices.ContainsFunc(ranges, func(r [2]uint64) bool { return r[0] <= address && address < r[1] })
}

// name follows an entry to the one that has the name of the function. Depth
// bounds the way: a broken file may go in circles.
func (d *Decoder) name(entry *dwarf.Entry, depth int) string {
	if name, ok := entry.Val(dwarf.AttrName).(string); ok || depth > 4 {
		return name
	}
	for _, attribute := range []dwarf.Attr{dwarf.AttrAbstractOrigin, dwarf.AttrSpecification} {
		offset, ok := entry.Val(attribute).(dwarf.Offset)
		if !ok {
			continue
		}
		reader := d.data.Reader()
		reader.Seek(offset)
		if origin, err := reader.Next(); err == nil && origin != nil {
			return d.name(origin, depth+1)
		}
	}
	return ""
}

// relative makes a file of the line table relative to the root of the source.
func (d *Decoder) relative(file, directory string) string {
	path := absolute(file, directory)
	for _, root := range d.roots {
		if rest, ok := strings.CutPrefix(path, strings.TrimSuffix(root, "/")+"/"); ok && root != "" {
			return rest
		}
	}
	if !filepath.IsAbs(file) {
		// The compiler was told to shorten the names, or the tree is unknown.
		name, _ := splitSite(file + ":0")
		return filepath.Clean(name)
	}
	return path
}

func absolute(file, directory string) string {
	if filepath.IsAbs(file) {
		return filepath.Clean(file)
	}
	return filepath.Join(directory, file)
}

var _ io.Closer = (*Decoder)(nil)
