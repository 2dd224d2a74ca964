package jsonlog

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"
	"unicode/utf8"
)

// An Entry is one line of a log file: a line of output, or a piece of a long
// one.
type Entry struct {
	Stream string // "stdout" or "stderr"
	Time   time.Time
	Line   []byte // with its newline, if it had one
	Attrs  map[string]string
}

// Decode reads one line of a file, with or without its newline. Lines as this
// package writes them take a short way; whatever else is valid JSON is read,
// too, as other programs write the format with other fields and in other
// orders. The entry shares no memory with line.
func Decode(line []byte) (Entry, error) {
	if e, ok := decodeOwn(line); ok {
		return e, nil
	}
	var raw struct {
		Log    string            `json:"log"`
		Stream string            `json:"stream"`
		Time   time.Time         `json:"time"`
		Attrs  map[string]string `json:"attrs"`
	}
	if err := json.Unmarshal(line, &raw); err != nil {
		return Entry{}, fmt.Errorf("log entry: %w", err)
	}
	if raw.Time.IsZero() {
		return Entry{}, errors.New("log entry: no time")
	}
	return Entry{raw.Stream, raw.Time, []byte(raw.Log), raw.Attrs}, nil
}

// decodeOwn takes the fields in the order and the words in which appendEntry
// writes them.
func decodeOwn(b []byte) (e Entry, ok bool) {
	if b, ok = after(b, `{"log":"`); !ok {
		return e, false
	}
	e.Line, b, ok = unquote(b)
	if !ok {
		return e, false
	}
	if b, ok = after(b, `,"stream":"std`); !ok {
		return e, false
	}
	e.Stream = "stdout"
	if rest, ok := after(b, `err","time":"`); ok {
		e.Stream, b = "stderr", rest
	} else if b, ok = after(b, `out","time":"`); !ok {
		return e, false
	}
	text, b, ok := unquote(b)
	if !ok || string(b) != "}" && string(b) != "}\n" {
		return e, false
	}
	return e, e.Time.UnmarshalText(text) == nil
}

func after(b []byte, prefix string) ([]byte, bool) {
	if len(b) < len(prefix) || string(b[:len(prefix)]) != prefix {
		return b, false
	}
	return b[len(prefix):], true
}

// unquote reads a JSON string whose opening quote is gone, and what follows
// its closing one. It leaves the rare escapes to encoding/json.
func unquote(b []byte) (s, rest []byte, ok bool) {
	s = make([]byte, 0, len(b))
	for i := 0; i < len(b); i++ {
		switch c := b[i]; {
		case c == '"':
			return s, b[i+1:], utf8.Valid(s)
		case c < ' ':
			return nil, nil, false
		case c != '\\':
			s = append(s, c)
		default:
			if i++; i == len(b) {
				return nil, nil, false
			}
			r, n := unescape(b[i:])
			if n == 0 {
				return nil, nil, false
			}
			s = utf8.AppendRune(s, r)
			i += n - 1
		}
	}
	return nil, nil, false
}

// unescape reads what follows a backslash: the character and the length of
// its escape, 0 if it is none of ours.
func unescape(b []byte) (rune, int) {
	switch b[0] {
	case 'n':
		return '\n', 1
	case 't':
		return '\t', 1
	case 'r':
		return '\r', 1
	case '"', '\\':
		return rune(b[0]), 1
	case 'u':
		return unescapeHex(b)
	}
	return 0, 0
}

func unescapeHex(b []byte) (rune, int) {
	if len(b) < 5 {
		return 0, 0
	}
	var r rune
	for _, c := range b[1:5] {
		r <<= 4
		switch {
		case '0' <= c && c <= '9':
			r |= rune(c - '0')
		case 'a' <= c && c <= 'f':
			r |= rune(c - 'a' + 10)
		default:
			return 0, 0
		}
	}
	if !utf8.ValidRune(r) {
		return 0, 0 // half of a pair
	}
	return r, 5
}
