// Package dockerfile reads Dockerfiles.
//
// The language is the one that docs.docker.com/reference/dockerfile describes,
// with the quirks of BuildKit's frontend, whose own parser is the oracle of the
// tests. It is not linked: it brings protobuf along, 1.5 MB of program. What
// BuildKit does to words with variables is taken from there.
//
//	file.go          comments, directives, continued lines, here-documents
//	words.go         an instruction's words and flags
//	parse.go         each instruction's syntax
//	instructions.go  what comes of it
//	mount.go         RUN --mount
//
// The package is pure. What it returns belongs to the caller; Expand changes it.
package dockerfile

import (
	"errors"
	"fmt"
	"strings"
)

// A File is a Dockerfile in its parts.
type File struct {
	Warnings []string
	Escape   rune   // the character that escapes and continues lines
	Global   []*Arg // before the first FROM
	Stages   []Stage
}

// A Stage is FROM and what follows it.
type Stage struct {
	Name     string // in lower case; "" without AS
	Base     string // a stage, an image or scratch
	Platform string // "" is that of the build
	Source   string // the FROM itself, as written
	Commands []Instruction
}

// An Error is in a line of the file.
type Error struct {
	Line int // the instruction's first, from 1
	Err  error
}

func (e *Error) Error() string {
	return fmt.Sprintf("dockerfile parse error on line %d: %v", e.Line, e.Err)
}
func (e *Error) Unwrap() error { return e.Err }

// Parse reads a Dockerfile. Its errors are *Error.
func Parse(text []byte) (*File, error) {
	f := &File{}
	r := newReader(text)
	n := 0
	for r.next() {
		n++
		if err := f.add(r); err != nil {
			return nil, &Error{r.first, err}
		}
	}
	f.Warnings, f.Escape = r.warnings, r.escape
	if r.err != nil {
		return nil, &Error{r.first, r.err}
	}
	if n == 0 {
		return nil, &Error{r.line, errors.New("file with no instructions")}
	}
	return f, nil
}

func (f *File) add(r *reader) error {
	s, err := r.statement()
	if err != nil {
		return err
	}
	if s.is("FROM") {
		stage, err := s.from()
		f.Stages = append(f.Stages, stage)
		return err
	}
	c, err := s.instruction()
	if err != nil {
		return err
	}
	arg, isArg := c.(*Arg)
	switch {
	case len(f.Stages) > 0:
		last := &f.Stages[len(f.Stages)-1]
		last.Commands = append(last.Commands, c)
	case isArg:
		f.Global = append(f.Global, arg)
	default:
		return fmt.Errorf("no build stage in current context: %s comes before the first FROM", strings.ToUpper(s.name))
	}
	return nil
}

// Instructions reads instructions that belong to no stage: what ONBUILD has
// noted, the changes of "docker commit". FROM is none.
func Instructions(text string) (list []Instruction, escape rune, err error) {
	r := newReader([]byte(text))
	for r.next() {
		s, err := r.statement()
		if err != nil {
			return nil, 0, err
		}
		if s.is("FROM") {
			return nil, 0, errors.New("FROM is not allowed here")
		}
		c, err := s.instruction()
		if err != nil {
			return nil, 0, err
		}
		list = append(list, c)
	}
	if r.err == nil && len(list) == 0 {
		r.err = errors.New("there is no instruction")
	}
	return list, r.escape, r.err
}
