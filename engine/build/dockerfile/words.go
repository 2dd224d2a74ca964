package dockerfile

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/moby/buildkit/util/suggest"
)

// A statement is one instruction before its syntax is looked at.
type statement struct {
	name   string   // as written
	source string   // the whole, on one line
	flags  []string // --chown=1:2, without quotes
	args   string   // what follows them
	escape rune
	docs   []Heredoc
}

// statement takes the current instruction apart and reads its here-documents.
func (r *reader) statement() (statement, error) {
	s := split(r.text, r.escape)
	if !s.takesHeredocs() || !strings.Contains(r.text, "<<") {
		return s, nil
	}
	docs, err := r.heredocs()
	s.docs = docs
	return s, err
}

func split(line string, escape rune) statement {
	s := statement{source: strings.TrimSpace(line), escape: escape}
	s.name, s.args = cutSpace(s.source)
	s.args = strings.TrimSpace(s.args)
	for strings.HasPrefix(s.args, "--") {
		word, rest := cutWord(s.args, escape, true)
		s.args = strings.TrimSpace(rest)
		if word == "--" {
			break
		}
		s.flags = append(s.flags, word)
	}
	return s
}

func (s statement) is(name string) bool { return strings.EqualFold(s.name, name) }

// takesHeredocs is for RUN, COPY and ADD, and for them after ONBUILD.
func (s statement) takesHeredocs() bool {
	if s.is("ONBUILD") && s.args != "" {
		s = split(s.args, s.escape)
	}
	if _, isArray, err := s.array(); isArray || err != nil {
		return false
	}
	return s.is("RUN") || s.is("COPY") || s.is("ADD")
}

// space is what separates words that know no quotes.
const space = "\t\v\f\r "

func cutSpace(s string) (word, rest string) {
	i := strings.IndexAny(s, space)
	if i < 0 {
		return s, ""
	}
	return s[:i], strings.TrimLeft(s[i:], space)
}

// fields are the arguments between spaces.
func (s statement) fields() []string {
	return strings.FieldsFunc(s.args, func(c rune) bool { return strings.ContainsRune(space, c) })
}

// words are the arguments between spaces that are neither quoted nor escaped.
// The quotes and escapes stay, for who expands variables wants to know of them.
func (s statement) words() []string {
	var list []string
	for rest := strings.TrimLeftFunc(s.args, unicode.IsSpace); rest != ""; rest = strings.TrimLeftFunc(rest, unicode.IsSpace) {
		var word string
		if word, rest = cutWord(rest, s.escape, false); word != "" {
			list = append(list, word)
		}
	}
	return list
}

// cutWord takes a word off s. A plain one loses its quotes and escapes; even
// between single quotes, for BuildKit reads flags so.
func cutWord(s string, escape rune, plain bool) (word, rest string) {
	var sb strings.Builder
	var quote rune
	for i := 0; i < len(s); {
		c, n := utf8.DecodeRuneInString(s[i:])
		escapes := c == escape && (quote != '\'' || plain)
		opens := quote == 0 && (c == '"' || c == '\'')
		closes := quote != 0 && c == quote
		switch {
		case quote == 0 && unicode.IsSpace(c):
			return sb.String(), s[i:]
		case escapes && i+n == len(s):
			return sb.String(), "" // it escapes nothing
		case opens:
			quote = c
		case closes:
			quote = 0
		}
		if !plain || !escapes && !opens && !closes {
			sb.WriteString(s[i : i+n])
		}
		i += n
		if escapes {
			_, n = utf8.DecodeRuneInString(s[i:])
			sb.WriteString(s[i : i+n])
			i += n
		}
	}
	return sb.String(), ""
}

// array reads ["a", "b"]. What is no JSON is a line for the shell.
func (s statement) array() (list []string, ok bool, err error) {
	if !strings.HasPrefix(s.args, "[") {
		return nil, false, nil
	}
	var values []any
	if json.Unmarshal([]byte(s.args), &values) != nil {
		return nil, false, nil
	}
	for _, v := range values {
		text, ok := v.(string)
		if !ok {
			return nil, false, errors.New("when using JSON array syntax, arrays must be comprised of strings only")
		}
		list = append(list, text)
	}
	return list, true, nil
}

// list is an array or else fields.
func (s statement) list() ([]string, error) {
	list, ok, err := s.array()
	if !ok {
		list = s.fields()
	}
	return list, err
}

// A flags table says where the values of an instruction's flags go: *string,
// *[]string, *bool, or **bool where it matters whether it was given.
type flags map[string]any

// into reads the flags.
func (s statement) into(known flags) error {
	seen := map[string]bool{}
	for _, f := range s.flags {
		dashed, value, hasValue := strings.Cut(f, "=")
		name := dashed[2:]
		to, ok := known[name]
		if !ok {
			return didYouMean(fmt.Errorf("unknown flag: %s", dashed), name, names(known), true)
		}
		many, _ := to.(*[]string)
		if seen[name] && many == nil {
			return fmt.Errorf("duplicate flag specified: %s", dashed)
		}
		seen[name] = true
		truth := strings.ToLower(value)
		_, isBool := to.(*bool)
		_, isMaybe := to.(**bool)
		switch {
		case (isBool || isMaybe) && !hasValue:
			truth = "true"
		case value == "" && (isBool || isMaybe), !hasValue:
			return fmt.Errorf("missing a value on flag: %s", dashed)
		case (isBool || isMaybe) && truth != "true" && truth != "false":
			return fmt.Errorf("expecting boolean value for flag %s, not: %s", dashed, value)
		}
		switch to := to.(type) {
		case *string:
			*to = value
		case *[]string:
			*to = append(*to, value)
		case *bool:
			*to = truth == "true"
		case **bool:
			*to = new(truth == "true")
		}
	}
	return nil
}

func names(known flags) []string {
	var list []string
	for name := range known {
		list = append(list, name)
	}
	slices.Sort(list)
	return list
}

// didYouMean adds the nearest of the names to err, if one is near.
func didYouMean(err error, name string, names []string, exactCase bool) error {
	return suggest.WrapError(err, name, names, exactCase)
}
