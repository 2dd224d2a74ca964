package build

import (
	"strconv"
	"strings"

	"github.com/minke-os/minke/internal/errdef"
)

// A modeChange is what --chmod does to the mode of a file or directory.
type modeChange func(mode int64, dir bool) int64

// parseMode reads what chmod(1) reads: an octal number, or clauses such as
// u=rwX,go-w.
func parseMode(text string) (modeChange, error) {
	if n, err := strconv.ParseInt(text, 8, 64); err == nil && n >= 0 && n <= 0o7777 {
		return func(int64, bool) int64 { return n }, nil
	}
	var changes []modeChange
	for clause := range strings.SplitSeq(text, ",") {
		more, ok := parseClause(clause)
		if !ok {
			return nil, errdef.Invalid.Errorf("invalid chmod parameter: '%s'. it should be octal string and between 0 and 07777, or as u=rwX,go-w", text)
		}
		changes = append(changes, more...)
	}
	return func(mode int64, dir bool) int64 {
		for _, c := range changes {
			mode = c(mode, dir)
		}
		return mode
	}, nil
}

// parseClause reads who, then one or more operators with permissions.
func parseClause(s string) (changes []modeChange, ok bool) {
	const operators = "+-="
	at := strings.IndexAny(s, operators)
	if at < 0 {
		return nil, false
	}
	var who int64
	for _, c := range s[:at] {
		bits, known := map[rune]int64{'u': 0o4700, 'g': 0o2070, 'o': 0o1007, 'a': 0o7777}[c]
		if !known {
			return nil, false
		}
		who |= bits
	}
	if who == 0 {
		who = 0o7777
	}
	for s = s[at:]; s != ""; {
		operator := s[0]
		s = s[1:]
		end := strings.IndexAny(s, operators)
		if end < 0 {
			end = len(s)
		}
		c, ok := parseBits(who, operator, s[:end])
		if !ok {
			return nil, false
		}
		changes, s = append(changes, c), s[end:]
	}
	return changes, true
}

func parseBits(who int64, operator byte, letters string) (modeChange, bool) {
	var bits int64
	search := false // X: execute for directories and for what somebody may execute
	for _, c := range letters {
		switch c {
		case 'r':
			bits |= 0o444
		case 'w':
			bits |= 0o222
		case 'x':
			bits |= 0o111
		case 's':
			bits |= 0o6000
		case 't':
			bits |= 0o1000
		case 'X':
			search = true
		default:
			return nil, false
		}
	}
	return func(mode int64, dir bool) int64 {
		b := bits
		if search && (dir || mode&0o111 != 0) {
			b |= 0o111
		}
		switch b &= who; operator {
		case '+':
			return mode | b
		case '-':
			return mode &^ b
		}
		return mode&^(who&0o777) | b
	}, true
}
