package dockerfile

import (
	"errors"
	"fmt"
	"strings"
	"unicode"

	"github.com/moby/buildkit/frontend/dockerfile/shell"
)

// A reader takes a file apart into instructions.
type reader struct {
	rest string
	line int // how many are read

	first    int    // line of the current instruction
	text     string // the current instruction on one line
	err      error
	warnings []string

	escape     rune
	directives map[string]bool // seen so far; nil once there can be no more
}

func newReader(text []byte) *reader {
	return &reader{rest: strings.TrimPrefix(string(text), "\ufeff"), escape: '\\', directives: map[string]bool{}}
}

// raw takes the next line, with its end.
func (r *reader) raw() (string, bool) {
	if r.rest == "" {
		return "", false
	}
	i := strings.IndexByte(r.rest, '\n') + 1
	if i == 0 {
		i = len(r.rest)
	}
	line := r.rest[:i]
	r.rest = r.rest[i:]
	r.line++
	return line, true
}

// next goes to the next instruction, and reports whether there is one.
func (r *reader) next() bool {
	for r.err == nil {
		line, ok := r.raw()
		if !ok {
			return false
		}
		line = strings.TrimLeftFunc(withoutEnd(line), unicode.IsSpace)
		r.first = r.line
		if r.err = r.directive(line); r.err != nil {
			return false
		}
		if isComment(line) || line == "" {
			continue
		}
		r.join(line)
		return true
	}
	return false
}

// join puts the lines together that line begins.
func (r *reader) join(line string) {
	var sb strings.Builder
	line, more := r.continued(line)
	sb.WriteString(line)
	empty := false
	for more {
		line, ok := r.raw()
		if !ok {
			break
		}
		line = withoutEnd(line)
		if isComment(line) {
			continue
		}
		if strings.TrimSpace(line) == "" {
			empty = true
			continue
		}
		line, more = r.continued(line)
		sb.WriteString(line)
	}
	r.text = sb.String()
	if empty {
		r.warnings = append(r.warnings, "Empty continuation line found in: "+r.text)
	}
}

// continued reports whether a line goes on, which is when it ends with an
// escape character that is not itself escaped, and takes that off.
func (r *reader) continued(line string) (string, bool) {
	escape := string(r.escape)
	start, ok := strings.CutSuffix(strings.TrimRight(line, " \t"), escape)
	if !ok || strings.HasSuffix(start, escape) {
		return line, false
	}
	return start, true
}

// directive reads "# escape=`", which only counts at the top of the file.
func (r *reader) directive(line string) error {
	if r.directives == nil {
		return nil
	}
	comment, ok := strings.CutPrefix(line, "#")
	name, value, isDirective := strings.Cut(comment, "=")
	name = strings.ToLower(strings.TrimSpace(name))
	if !ok || !isDirective || value == "" || name != "syntax" && name != "escape" && name != "check" {
		r.directives = nil
		return nil
	}
	if r.directives[name] {
		return fmt.Errorf("only one %s parser directive can be used", name)
	}
	r.directives[name] = true
	if name != "escape" {
		return nil
	}
	if value = strings.TrimSpace(value); value != "`" && value != `\` {
		return fmt.Errorf("invalid escape token '%s' does not match ` or \\", value)
	}
	r.escape = rune(value[0])
	return nil
}

func isComment(line string) bool {
	return strings.HasPrefix(strings.TrimLeftFunc(line, unicode.IsSpace), "#")
}

func withoutEnd(line string) string { return strings.TrimRight(line, "\r\n") }

// A Heredoc is a file in the Dockerfile.
type Heredoc struct {
	Name   string
	Expand bool // its variables: not when the name was quoted
	Chomp  bool // leading tabs
	Text   string
}

// Content is the text as a file has it.
func (h Heredoc) Content() string {
	if !h.Chomp {
		return h.Text
	}
	var sb strings.Builder
	for line := range strings.Lines(h.Text) {
		sb.WriteString(strings.TrimLeft(line, "\t"))
	}
	return sb.String()
}

// heredocs reads the here-documents that the instruction's words announce.
func (r *reader) heredocs() ([]Heredoc, error) {
	lex := shell.NewLex('\\')
	lex.RawQuotes, lex.RawEscapes, lex.SkipUnsetEnv = true, true, true
	words, _ := lex.ProcessWords(r.text, none) // what is no word announces nothing
	var docs []Heredoc
	for _, w := range words {
		h, ok, err := announced(w)
		if err != nil {
			return nil, err
		}
		if ok {
			docs = append(docs, h)
		}
	}
	for i := range docs {
		if err := r.read(&docs[i]); err != nil {
			return nil, err
		}
	}
	return docs, nil
}

func (r *reader) read(h *Heredoc) error {
	var sb strings.Builder
	for {
		line, ok := r.raw()
		if !ok {
			return errors.New("unterminated heredoc: a line with just " + h.Name + " is missing")
		}
		end := withoutEnd(line)
		if h.Chomp {
			end = strings.TrimLeft(end, "\t")
		}
		if end == h.Name {
			h.Text = sb.String()
			return nil
		}
		sb.WriteString(line)
	}
}

var none = shell.EnvsFromSlice(nil)

// announced reads a word such as <<EOF, <<-EOF or 3<<"EOF".
func announced(word string) (h Heredoc, ok bool, err error) {
	rest, ok := strings.CutPrefix(strings.TrimLeft(word, "0123456789"), "<<")
	if !ok {
		return h, false, nil
	}
	rest, h.Chomp = strings.CutPrefix(rest, "-")
	rest = strings.TrimLeft(rest, "\t\n\f\r ")
	if rest == "" || strings.Contains(rest, "<") {
		return h, false, nil
	}
	lex := shell.NewLex('\\')
	lex.SkipUnsetEnv = true
	words, err := lex.ProcessWords(rest, none)
	if err != nil || len(words) != 1 {
		return h, false, err
	}
	h.Name = words[0]
	lex.RawQuotes = true
	raw, err := lex.ProcessWords(rest, none)
	if err != nil || len(raw) != 1 {
		return h, false, err
	}
	h.Expand = quotes(raw[0]) == quotes(h.Name)
	return h, true, nil
}

func quotes(s string) int { return strings.Count(s, `'`) + strings.Count(s, `"`) }
