// Package errdef has the few kinds of errors that callers act on.
//
// A kind is attached where the fact is known and read where it matters, once:
// the HTTP adapter maps it to a status code, the planner to "retry later". The
// text of an error is for people and is never matched.
package errdef

import (
	"errors"
	"fmt"
)

// A Kind says what a caller can do about an error.
type Kind string

const (
	Invalid      Kind = "invalid"      // the request is wrong; repeating it will not help
	Unauthorized Kind = "unauthorized" // credentials are missing or wrong
	Forbidden    Kind = "forbidden"    // refused, whoever asks
	NotFound     Kind = "not found"
	Conflict     Kind = "conflict"     // the state forbids it: a used name, a running container
	NotModified  Kind = "not modified" // already so
	Busy         Kind = "busy"         // somebody else holds it; repeating later may help
	Unavailable  Kind = "unavailable"  // this host or service cannot do it now
	Unsupported  Kind = "unsupported"  // this program does not do it
	Internal     Kind = "internal"     // everything else
)

type kindError struct {
	kind Kind
	err  error
}

func (e *kindError) Error() string { return e.err.Error() }
func (e *kindError) Unwrap() error { return e.err }

// Errorf is fmt.Errorf with a kind. An inner error keeps its own kind only if
// this one is asked for nothing: the outermost kind wins.
func (k Kind) Errorf(format string, args ...any) error {
	return &kindError{k, fmt.Errorf(format, args...)}
}

// Wrap gives err the kind k and leaves its text alone. Wrap(nil) is nil.
func (k Kind) Wrap(err error) error {
	if err == nil {
		return nil
	}
	return &kindError{k, err}
}

// Of is the outermost kind in err's chain, Internal if there is none.
func Of(err error) Kind {
	if e, ok := errors.AsType[*kindError](err); ok {
		return e.kind
	}
	return Internal
}

// Is reports whether err is of kind k.
func Is(err error, k Kind) bool { return err != nil && Of(err) == k }
