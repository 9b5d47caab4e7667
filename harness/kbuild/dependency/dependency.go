// SPDX-License-Identifier: BSD-3-Clause

// Package dependency reads a kernel's Kconfig files far enough to say why a
// symbol did not get the value that was asked for. The kernel's own tool decides
// and says nothing; this one only explains its decision afterwards, so it may be
// simpler: what it does not understand it takes for satisfied.
package dependency

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
)

// Tree is what the Kconfig files of a kernel define.
type Tree struct {
	definitions map[string][]*definition
	selectors   map[string][]selector
	choices     int
}

// definition is one config block; a symbol may have several.
type definition struct {
	file   string
	line   int
	depend []string // expressions that must all hold, enclosing blocks included
	// prompted is true when a person can set the symbol, provided that
	// promptIf, if any, holds.
	prompted bool
	promptIf string
	choice   int // number of the choice it belongs to, 0 for none
}

// selector is a symbol that forces another one.
type selector struct{ name, condition string }

// Read reads the Kconfig files of a kernel tree for one architecture, such as
// "x86". A file that is sourced but missing is passed over, as one for another
// version's layout would be.
func Read(tree fs.FS, architecture string) (*Tree, error) {
	r := &reader{
		files:        tree,
		architecture: architecture,
		tree:         &Tree{definitions: map[string][]*definition{}, selectors: map[string][]selector{}},
		open:         map[string]bool{},
	}
	if err := r.file("Kconfig"); err != nil {
		return nil, fmt.Errorf("read Kconfig: %w", err)
	}
	return r.tree, nil
}

// Explain says in one clause why the symbol has not the wanted value, given the
// values that it and all others have got.
func (t *Tree) Explain(name, wanted string, values Values) string {
	definitions := t.definitions[name]
	if len(definitions) == 0 {
		return "this kernel has no such symbol"
	}
	if wanted == "n" {
		return t.explainSet(name, definitions, values)
	}
	// The definition that is nearest to being satisfied is the one to tell of.
	var best *definition
	var bestUnmet []string
	for _, d := range definitions {
		unmet := d.unmet(values)
		if best == nil || len(unmet) < len(bestUnmet) {
			best, bestUnmet = d, unmet
		}
	}
	place := fmt.Sprintf("%s:%d", best.file, best.line)
	if len(bestUnmet) > 0 {
		var clauses []string
		for _, expression := range bestUnmet {
			clauses = append(clauses, fmt.Sprintf("%s (%s)", expression, t.state(expression, values)))
		}
		return fmt.Sprintf("it depends on %s; see %s", strings.Join(clauses, " and on "), place)
	}
	if best.choice != 0 {
		for other, others := range t.definitions {
			if other != name && values[other] == "y" && slices.ContainsFunc(others, func(d *definition) bool { return d.choice == best.choice }) {
				return fmt.Sprintf("it is one of a choice that %s won; see %s", other, place)
			}
		}
	}
	if best.prompted && best.promptIf != "" && evaluate(best.promptIf, values) == no {
		return fmt.Sprintf("it can be set only if %s (%s); see %s", best.promptIf, t.state(best.promptIf, values), place)
	}
	if !best.prompted {
		if by := t.selecting(name); len(by) > 0 {
			return fmt.Sprintf("it cannot be set by itself, only through %s; see %s", strings.Join(by, ", "), place)
		}
		return fmt.Sprintf("it cannot be set, it follows from others; see %s", place)
	}
	return fmt.Sprintf("its dependencies hold, but it is %s; see %s", valueOf(name, values), place)
}

// explainSet says why a symbol that should be off is on.
func (t *Tree) explainSet(name string, definitions []*definition, values Values) string {
	var by []string
	for _, s := range t.selectors[name] {
		if valueOf(s.name, values) != "n" && (s.condition == "" || evaluate(s.condition, values) != no) {
			by = append(by, s.name)
		}
	}
	slices.Sort(by)
	if by = slices.Compact(by); len(by) > 0 {
		return "it is selected by " + strings.Join(by, ", ")
	}
	return fmt.Sprintf("it follows from others; see %s:%d", definitions[0].file, definitions[0].line)
}

// unmet lists the dependencies that do not hold, each as it is written.
func (d *definition) unmet(values Values) []string {
	var list []string
	for _, expression := range d.depend {
		if evaluate(expression, values) == no && !slices.Contains(list, expression) {
			list = append(list, expression)
		}
	}
	return list
}

// state gives the values of the symbols in an expression.
func (t *Tree) state(expression string, values Values) string {
	var states []string
	for _, name := range mentioned(expression) {
		if len(t.definitions[name]) == 0 {
			states = append(states, name+" does not exist")
			continue
		}
		states = append(states, name+"="+valueOf(name, values))
	}
	return strings.Join(states, ", ")
}

// selecting lists some symbols that select name.
func (t *Tree) selecting(name string) []string {
	var by []string
	for _, s := range t.selectors[name] {
		by = append(by, s.name)
	}
	slices.Sort(by)
	by = slices.Compact(by)
	const enough = 4
	if len(by) > enough {
		by = append(by[:enough], fmt.Sprintf("%d more", len(by)-enough))
	}
	return by
}

func valueOf(name string, values Values) string {
	if value, ok := values[name]; ok {
		return value
	}
	return "n"
}

// reader walks the files, with the blocks it is in on a stack.
type reader struct {
	files        fs.FS
	architecture string
	tree         *Tree
	blocks       []block
	open         map[string]bool // files being read, against loops
}

// block is an if, menu or choice that is open.
type block struct {
	keyword string
	depend  []string
	choice  int
}

func (r *reader) file(name string) error {
	if r.open[name] {
		return fmt.Errorf("%s sources itself", name)
	}
	r.open[name] = true
	defer delete(r.open, name)
	text, err := fs.ReadFile(r.files, name)
	if err != nil {
		return err
	}
	lines := strings.Split(string(text), "\n")
	var current *definition // of the config block being read
	var symbolName string
	inBlock := false // the last keyword opened a menu or choice: attributes are its own
	depth := len(r.blocks)
	for i := 0; i < len(lines); i++ {
		start := i
		line := lines[i]
		for strings.HasSuffix(line, "\\") && i+1 < len(lines) {
			i++
			line = line[:len(line)-1] + lines[i]
		}
		line = strings.TrimSpace(stripComment(line))
		keyword, rest, _ := strings.Cut(strings.Join(strings.Fields(line), " "), " ")
		switch keyword {
		case "config", "menuconfig":
			symbolName = rest
			current = &definition{file: name, line: start + 1}
			for _, b := range r.blocks {
				current.depend = append(current.depend, b.depend...)
				if b.keyword == "choice" {
					current.choice = b.choice
				}
			}
			inBlock = false
			r.tree.definitions[symbolName] = append(r.tree.definitions[symbolName], current)
		case "if":
			r.blocks = append(r.blocks, block{keyword: keyword, depend: []string{rest}})
			current, inBlock = nil, false
		case "menu":
			r.blocks = append(r.blocks, block{keyword: keyword})
			current, inBlock = nil, true
		case "choice":
			r.tree.choices++
			r.blocks = append(r.blocks, block{keyword: keyword, choice: r.tree.choices})
			current, inBlock = nil, true
		case "endif", "endmenu", "endchoice":
			if len(r.blocks) > depth {
				r.blocks = r.blocks[:len(r.blocks)-1]
			}
			current, inBlock = nil, false
		case "comment", "mainmenu":
			current, inBlock = nil, false
		case "source":
			current, inBlock = nil, false
			if err := r.source(rest); err != nil {
				return err
			}
		case "depends":
			expression := strings.TrimSpace(strings.TrimPrefix(rest, "on"))
			if current != nil {
				current.depend = append(current.depend, expression)
			} else if inBlock {
				last := &r.blocks[len(r.blocks)-1]
				last.depend = append(last.depend, expression)
			}
		case "bool", "tristate", "string", "int", "hex", "prompt":
			if current != nil && rest != "" {
				current.prompted = true
				current.promptIf = condition(rest)
			}
		case "select":
			if current != nil {
				target, _, _ := strings.Cut(rest, " ")
				r.tree.selectors[target] = append(r.tree.selectors[target], selector{symbolName, condition(rest)})
			}
		case "help", "---help---":
			i = skipHelp(lines, i)
		}
	}
	r.blocks = r.blocks[:min(depth, len(r.blocks))]
	return nil
}

// source reads the files that a source line names.
func (r *reader) source(pattern string) error {
	pattern = strings.Trim(pattern, `"`)
	pattern = strings.NewReplacer("$(SRCARCH)", r.architecture, "$(srctree)/", "", "$SRCARCH", r.architecture).Replace(pattern)
	if strings.Contains(pattern, "$") || !fs.ValidPath(path.Clean(pattern)) {
		return nil
	}
	names, err := fs.Glob(r.files, path.Clean(pattern))
	if err != nil {
		return nil // a bad pattern is the kernel's affair
	}
	for _, name := range names {
		if err := r.file(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// condition is what follows "if" in an attribute: `bool "prompt" if EXPERT`.
func condition(rest string) string {
	if quote := strings.LastIndexByte(rest, '"'); quote >= 0 && strings.HasPrefix(rest, `"`) {
		// The prompt may contain the word, and the condition may contain a string.
		if closing := strings.IndexByte(rest[1:], '"'); closing >= 0 {
			rest = rest[closing+2:]
		}
	}
	if expression, ok := strings.CutPrefix(strings.TrimSpace(rest), "if "); ok {
		return strings.TrimSpace(expression)
	}
	if _, expression, ok := strings.Cut(rest, " if "); ok {
		return strings.TrimSpace(expression)
	}
	return ""
}

// stripComment cuts a comment off, unless its # is within a string.
func stripComment(line string) string {
	inside := false
	for i := range len(line) {
		switch line[i] {
		case '"':
			inside = !inside
		case '#':
			if !inside {
				return line[:i]
			}
		}
	}
	return line
}

// skipHelp returns the index of the last line of the help text that starts after
// line i. The text lasts as long as it is indented like its first line.
func skipHelp(lines []string, i int) int {
	indentation := -1
	for i+1 < len(lines) {
		line := lines[i+1]
		if strings.TrimSpace(line) != "" {
			width := indent(line)
			if indentation < 0 {
				indentation = width
			}
			if width == 0 || width < indentation {
				return i
			}
		}
		i++
	}
	return i
}

func indent(line string) int {
	width := 0
	for _, c := range line {
		switch c {
		case ' ':
			width++
		case '\t':
			width += 8 - width%8
		default:
			return width
		}
	}
	return width
}
