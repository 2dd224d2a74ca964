// Package term is the terminal that a command talks to, or the pipes.
//
// Results go to Out, everything else to Err, so that output can be piped.
// Colours and redrawn lines appear only on a terminal, and never when NO_COLOR
// is set.
package term

import (
	"fmt"
	"io"
	"os"

	"golang.org/x/term"
)

// Streams are a command's input and outputs.
type Streams struct {
	In  io.Reader
	Out io.Writer
	Err io.Writer
	// Color and Live allow colours and redrawn lines on Err and Out.
	Color bool
	Live  bool
}

// Std is the process's own. plain is that the user wants no colours.
func Std(plain bool) Streams {
	live := term.IsTerminal(int(os.Stdout.Fd())) && term.IsTerminal(int(os.Stderr.Fd()))
	return Streams{In: os.Stdin, Out: os.Stdout, Err: os.Stderr, Live: live, Color: live && !plain}
}

// Width is the terminal's, 80 if there is none.
func (s Streams) Width() int {
	w, _, ok := s.Size()
	if !ok || w == 0 {
		return 80
	}
	return w
}

// Size is the terminal's, if Out is one.
func (s Streams) Size() (width, height int, ok bool) {
	f, isFile := s.Out.(*os.File)
	if !isFile {
		return 0, 0, false
	}
	w, h, err := term.GetSize(int(f.Fd()))
	return w, h, err == nil
}

// InputIsTerminal reports whether a person types.
func (s Streams) InputIsTerminal() bool {
	f, ok := s.In.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// OutputIsTerminal reports whether a person reads.
func (s Streams) OutputIsTerminal() bool {
	f, ok := s.Out.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// Raw sends every key to the container until restore is called.
func (s Streams) Raw() (restore func(), err error) {
	f, ok := s.In.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return func() {}, nil
	}
	old, err := term.MakeRaw(int(f.Fd()))
	if err != nil {
		return nil, fmt.Errorf("set the terminal to raw mode: %w", err)
	}
	return func() { term.Restore(int(f.Fd()), old) }, nil
}

// Colours of ECMA-48 that can be read on light and dark ground.
const (
	Red    = 31
	Green  = 32
	Yellow = 33
	Blue   = 34
	Purple = 35
	Cyan   = 36
	Dim    = 2
	Bold   = 1
)

// Paint colours s if colours are wanted.
func (s Streams) Paint(color int, text string) string {
	if !s.Color {
		return text
	}
	return fmt.Sprintf("\x1b[%dm%s\x1b[0m", color, text)
}
