package errdef

import (
	"fmt"
	"io"
	"testing"
)

func TestOutermostKindWins(t *testing.T) {
	err := fmt.Errorf("pull: %w", Conflict.Errorf("name: %w", NotFound.Wrap(io.EOF)))
	if got := Of(err); got != Conflict {
		t.Errorf("Of(%v) = %s, want %s", err, got, Conflict)
	}
	if got, want := err.Error(), "pull: name: EOF"; got != want {
		t.Errorf("text = %q, want %q", got, want)
	}
	if got := Of(io.EOF); got != Internal {
		t.Errorf("Of(EOF) = %s, want %s", got, Internal)
	}
	if Wrapped := NotFound.Wrap(nil); Wrapped != nil {
		t.Errorf("Wrap(nil) = %v, want nil", Wrapped)
	}
}
