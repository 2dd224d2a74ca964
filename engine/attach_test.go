package engine

import (
	"bytes"
	"errors"
	"io"
	"testing"
	"testing/iotest"
)

func TestParseDetachKeys(t *testing.T) {
	tests := []struct {
		text string
		want []byte
		ok   bool
	}{
		{"", []byte{16, 17}, true},
		{"ctrl-p,ctrl-q", []byte{16, 17}, true},
		{"ctrl-a,x", []byte{1, 'x'}, true},
		{"CTRL-A", []byte{1}, true},
		{"ctrl-@,ctrl-[,ctrl-_", []byte{0, 27, 31}, true},
		{"ctrl-", nil, false},
		{"ctrl-aa", nil, false},
		{"ctrl-1", nil, false},
		{"a,,b", nil, false},
	}
	for _, tt := range tests {
		got, err := parseDetachKeys(tt.text)
		if (err == nil) != tt.ok || !bytes.Equal(got, tt.want) {
			t.Errorf("parseDetachKeys(%q) = %v, %v; want %v, ok %v", tt.text, got, err, tt.want, tt.ok)
		}
	}
}

func TestDetachKeysAreFoundAndNothingElseIsLost(t *testing.T) {
	keys := []byte("\x10\x11")
	tests := []struct {
		name, in, want string
		detached       bool
	}{
		{"plain", "hello", "hello", false},
		{"keys-alone", "\x10\x11", "", true},
		{"after-text", "ls\n\x10\x11more", "ls\n", true},
		{"first-key-then-another", "\x10x", "\x10x", false},
		{"first-key-twice", "\x10\x10\x11", "\x10", true},
		{"second-key-alone", "\x11a", "\x11a", false},
	}
	for _, tt := range tests {
		for how, r := range map[string]io.Reader{"at-once": bytes.NewReader([]byte(tt.in)), "byte-by-byte": iotest.OneByteReader(bytes.NewReader([]byte(tt.in)))} {
			t.Run(tt.name+"-"+how, func(t *testing.T) {
				var out bytes.Buffer
				err := copyInput(&out, r, keys, true)
				if errors.Is(err, ErrDetached) != tt.detached || out.String() != tt.want {
					t.Errorf("copied %q, %v; want %q, detached %v", out.String(), err, tt.want, tt.detached)
				}
			})
		}
	}
}

func TestWithoutATerminalThereAreNoDetachKeys(t *testing.T) {
	var out bytes.Buffer
	if err := copyInput(&out, bytes.NewReader([]byte("a\x10\x11b")), []byte("\x10\x11"), false); err != nil || out.String() != "a\x10\x11b" {
		t.Errorf("copied %q, %v", out.String(), err)
	}
}
