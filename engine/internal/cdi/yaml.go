package cdi

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"
)

// parseYAML reads the YAML that programs write specifications in: block
// mappings and lists, plain and quoted words on one line, comments. What is not
// that is an error, never read wrongly. A whole YAML library would be the
// largest part of minked that few devices ever use.
func parseYAML(text string) (any, error) {
	p := yamlParser{}
	for i, raw := range strings.Split(text, "\n") {
		raw = strings.TrimSuffix(raw, "\r")
		if !utf8.ValidString(raw) || strings.ContainsFunc(raw, func(r rune) bool { return r < ' ' || r >= 0x7f && r <= 0xa0 || r == 0xfeff }) {
			return nil, fmt.Errorf("line %d: control characters are not understood here", i+1)
		}
		line := strings.TrimLeft(raw, " ")
		if line == "" || line[0] == '#' || line == "---" && i == 0 {
			continue
		}
		p.lines = append(p.lines, yamlLine{i + 1, len(raw) - len(line), strings.TrimRight(line, " ")})
	}
	if len(p.lines) == 0 {
		return nil, nil
	}
	v, err := p.block(p.lines[0].indent, 0)
	if err == nil && p.at < len(p.lines) {
		err = p.bad("indentation")
	}
	return v, err
}

type yamlLine struct {
	number, indent int
	text           string
}

type yamlParser struct {
	lines []yamlLine
	at    int
}

func (p *yamlParser) bad(what string) error {
	n := 0
	if p.at < len(p.lines) {
		n = p.lines[p.at].number
	}
	return fmt.Errorf("line %d: this %s of YAML is not understood here; write the file as JSON", n, what)
}

const maxDepth = 100

// block reads the mapping or list whose lines begin at indent.
func (p *yamlParser) block(indent, depth int) (any, error) {
	if depth > maxDepth {
		return nil, p.bad("depth")
	}
	if isItem(p.lines[p.at].text) {
		return p.list(indent, depth)
	}
	if _, _, ok := cutKey(p.lines[p.at].text); ok {
		return p.mapping(indent, depth)
	}
	return nil, p.bad("form")
}

func isItem(s string) bool { return s == "-" || strings.HasPrefix(s, "- ") }

func (p *yamlParser) list(indent, depth int) (any, error) {
	out := []any{}
	for p.at < len(p.lines) && p.lines[p.at].indent == indent && isItem(p.lines[p.at].text) {
		l := &p.lines[p.at]
		rest := strings.TrimLeft(l.text[1:], " ")
		var v any
		var err error
		switch _, _, isMap := cutKey(rest); {
		case rest == "" || rest[0] == '#':
			p.at++
			v, err = p.nested(indent+1, depth)
		case isItem(rest) || isMap: // the block begins behind the dash
			l.indent, l.text = l.indent+len(l.text)-len(rest), rest
			v, err = p.block(l.indent, depth+1)
		default:
			if v, err = p.scalar(rest); err == nil {
				p.at++
			}
		}
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, nil
}

func (p *yamlParser) mapping(indent, depth int) (any, error) {
	out := map[string]any{}
	for p.at < len(p.lines) && p.lines[p.at].indent == indent && !isItem(p.lines[p.at].text) {
		key, rest, ok := cutKey(p.lines[p.at].text)
		if !ok {
			return nil, p.bad("form")
		}
		if _, twice := out[key]; twice {
			return nil, p.bad("repeated key")
		}
		var v any
		var err error
		if rest == "" || rest[0] == '#' {
			p.at++
			// A list may stand as far left as its key.
			if p.at < len(p.lines) && p.lines[p.at].indent == indent && isItem(p.lines[p.at].text) {
				v, err = p.list(indent, depth+1)
			} else {
				v, err = p.nested(indent+1, depth)
			}
		} else if v, err = p.scalar(rest); err == nil {
			p.at++
		}
		if err != nil {
			return nil, err
		}
		out[key] = v
	}
	return out, nil
}

// nested reads what stands deeper, or nothing.
func (p *yamlParser) nested(least, depth int) (any, error) {
	if p.at >= len(p.lines) || p.lines[p.at].indent < least {
		return nil, nil
	}
	return p.block(p.lines[p.at].indent, depth+1)
}

var keyForm = regexp.MustCompile(`^([A-Za-z][A-Za-z0-9_./-]*):(?: +(.*))?$`)

// cutKey divides "key: rest". Keys that YAML would take for something else than
// a word are none.
func cutKey(s string) (key, rest string, ok bool) {
	m := keyForm.FindStringSubmatch(s)
	if m == nil || !isWord(m[1]) {
		return "", "", false
	}
	return m[1], m[2], true
}

var (
	number  = regexp.MustCompile(`^(0|-?[1-9][0-9]{0,17})$`)
	octal   = regexp.MustCompile(`^0o?[0-7]{1,11}$`)
	comment = regexp.MustCompile(` +#.*$`)
	// Words that need no quotes and mean nothing but themselves.
	word = regexp.MustCompile(`^([A-Za-z/_]|\.\.?/|--?[A-Za-z/_])[ -~]*$`)
	// Versions and the like: not a number, for it has two dots or a letter.
	version = regexp.MustCompile(`^[0-9]+\.[0-9]+\.[0-9]+$`)
)

func isWord(s string) bool {
	switch strings.ToLower(s) {
	case "null", "true", "false", "yes", "no", "on", "off", "y", "n":
		return false
	}
	return word.MatchString(s) && !strings.Contains(s, ": ") && !strings.Contains(s, " #") && s[len(s)-1] != ':'
}

func (p *yamlParser) scalar(s string) (any, error) {
	switch s[0] {
	case '"':
		end := strings.LastIndexByte(s, '"')
		if tail := s[end+1:]; tail != "" && !comment.MatchString(tail) {
			return nil, p.bad("text after a quoted word")
		}
		var out string
		// What YAML and JSON escape alike.
		if end == 0 || json.Unmarshal([]byte(s[:end+1]), &out) != nil {
			return nil, p.bad("quoted word")
		}
		return out, nil
	case '\'':
		body := strings.ReplaceAll(s[1:], "''", "\x00")
		body, tail, ok := strings.Cut(body, "'")
		if !ok || tail != "" && !comment.MatchString(tail) {
			return nil, p.bad("quoted word")
		}
		return strings.ReplaceAll(body, "\x00", "'"), nil
	}
	s = comment.ReplaceAllString(s, "")
	switch {
	case s == "[]":
		return []any{}, nil
	case s == "{}":
		return map[string]any{}, nil
	case s == "null" || s == "~":
		return nil, nil
	case s == "true" || s == "false":
		return s == "true", nil
	case number.MatchString(s):
		return strconv.ParseInt(s, 10, 64)
	case octal.MatchString(s):
		return strconv.ParseInt(strings.TrimPrefix(s[1:], "o"), 8, 64)
	case version.MatchString(s) || isWord(s):
		return s, nil
	}
	return nil, p.bad("word (" + s + ")")
}
