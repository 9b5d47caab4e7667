// SPDX-License-Identifier: BSD-3-Clause

package dependency

import (
	"slices"
	"strings"
)

// Values are the values of a .config: symbol names, without CONFIG_, to y, m, n,
// a number or the text of a string. A symbol that is missing counts as n.
type Values map[string]string

// tristate is the kernel's three-valued logic: and is min, or is max.
type tristate int

const (
	no tristate = iota
	module
	yes
)

// token is one word of an expression.
type token struct {
	kind tokenKind
	text string
}

type tokenKind int

const (
	end      tokenKind = iota
	symbol             // NAME, a number, y, m or n
	quoted             // "text"
	macro              // $(cc-option,…): known to the compiler only
	operator           // ( ) ! && || = != < <= > >=
)

// tokens splits an expression. Anything unexpected becomes an operator that no
// rule takes, and so ends the evaluation there.
func tokens(text string) []token {
	var list []token
	for i := 0; i < len(text); {
		rest := text[i:]
		switch c := text[i]; {
		case c == ' ' || c == '\t':
			i++
		case strings.HasPrefix(rest, "&&"), strings.HasPrefix(rest, "||"), strings.HasPrefix(rest, "!="),
			strings.HasPrefix(rest, "<="), strings.HasPrefix(rest, ">="):
			list = append(list, token{operator, rest[:2]})
			i += 2
		case c == '"' || c == '\'':
			length := strings.IndexByte(rest[1:], c)
			if length < 0 {
				length = len(rest) - 1
				rest += string(c)
			}
			list = append(list, token{quoted, rest[1 : 1+length]})
			i += length + 2
		case strings.HasPrefix(rest, "$("):
			length := macroLength(rest)
			list = append(list, token{macro, rest[:length]})
			i += length
		case isWord(c):
			length := 1
			for length < len(rest) && isWord(rest[length]) {
				length++
			}
			list = append(list, token{symbol, rest[:length]})
			i += length
		default:
			list = append(list, token{operator, rest[:1]})
			i++
		}
	}
	return list
}

// macroLength is the length of the $(…) that text starts with, nested ones
// included.
func macroLength(text string) int {
	depth := 0
	for i := range len(text) {
		switch text[i] {
		case '(':
			depth++
		case ')':
			if depth--; depth == 0 {
				return i + 1
			}
		}
	}
	return len(text)
}

func isWord(c byte) bool {
	return c == '_' || c == '-' || c == '.' || c == '/' ||
		(c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z')
}

// parser evaluates an expression while it reads it; expressions are short.
type parser struct {
	tokens []token
	values Values
}

func evaluate(text string, values Values) tristate {
	p := &parser{tokens: tokens(text), values: values}
	return p.or()
}

func (p *parser) peek() token {
	if len(p.tokens) == 0 {
		return token{}
	}
	return p.tokens[0]
}

// take consumes the operator if it comes next.
func (p *parser) take(operators ...string) (string, bool) {
	next := p.peek()
	if next.kind != operator || !slices.Contains(operators, next.text) {
		return "", false
	}
	p.tokens = p.tokens[1:]
	return next.text, true
}

func (p *parser) or() tristate {
	value := p.and()
	for {
		if _, ok := p.take("||"); !ok {
			return value
		}
		value = max(value, p.and())
	}
}

func (p *parser) and() tristate {
	value := p.not()
	for {
		if _, ok := p.take("&&"); !ok {
			return value
		}
		value = min(value, p.not())
	}
}

func (p *parser) not() tristate {
	negations := 0
	for {
		if _, ok := p.take("!"); !ok {
			break
		}
		negations++
	}
	value := p.compare()
	if negations%2 == 1 {
		value = yes - value
	}
	return value
}

func (p *parser) compare() tristate {
	if _, ok := p.take("("); ok {
		value := p.or()
		p.take(")")
		return value
	}
	left := p.peek()
	if left.kind == end || left.kind == operator {
		return yes // not an expression we understand; blame nothing on it
	}
	p.tokens = p.tokens[1:]
	if op, ok := p.take("=", "!=", "<", "<=", ">", ">="); ok {
		right := p.peek()
		if right.kind == end || right.kind == operator {
			return yes
		}
		p.tokens = p.tokens[1:]
		if left.kind == macro || right.kind == macro {
			return yes
		}
		return compare(p.text(left), op, p.text(right))
	}
	if left.kind == macro {
		return yes // what the compiler can do shows in the symbols defined from it
	}
	switch p.text(left) {
	case "y":
		return yes
	case "m":
		return module
	}
	return no
}

// text is the value of a token as a string; an undefined symbol is n as a truth
// and its own name in a comparison, as numbers and y are.
func (p *parser) text(t token) string {
	if t.kind == quoted {
		return t.text
	}
	if value, ok := p.values[t.text]; ok {
		return strings.Trim(value, `"`)
	}
	if isSymbol(t.text) {
		return "n"
	}
	return t.text
}

// isSymbol tells a symbol's name from a constant.
func isSymbol(word string) bool {
	return strings.ContainsAny(word, "ABCDEFGHIJKLMNOPQRSTUVWXYZ") && !strings.HasPrefix(word, "0x")
}

func compare(left, op, right string) tristate {
	var order int
	if len(left) != len(right) && isNumber(left) && isNumber(right) {
		order = len(left) - len(right)
	} else {
		order = strings.Compare(left, right)
	}
	var holds bool
	switch op {
	case "=":
		holds = left == right
	case "!=":
		holds = left != right
	case "<":
		holds = order < 0
	case "<=":
		holds = order <= 0
	case ">":
		holds = order > 0
	case ">=":
		holds = order >= 0
	}
	if holds {
		return yes
	}
	return no
}

func isNumber(text string) bool {
	return text != "" && strings.Trim(text, "0123456789") == ""
}

// mentioned lists the symbols of an expression once each, in order.
func mentioned(text string) []string {
	var names []string
	for _, t := range tokens(text) {
		if t.kind == symbol && isSymbol(t.text) && !slices.Contains(names, t.text) {
			names = append(names, t.text)
		}
	}
	return names
}
