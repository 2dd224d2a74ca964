package registry

import "strings"

// A challenge is one way in that a WWW-Authenticate header offers.
type challenge struct {
	scheme string            // lower case: "bearer", "basic"
	params map[string]string // names in lower case
}

// parseChallenges reads WWW-Authenticate headers, each of which may have
// several challenges (RFC 9110, section 11.6.1). What it cannot read it skips.
func parseChallenges(headers []string) []challenge {
	var out []challenge
	for _, h := range headers {
		s := scanner{rest: h}
		for s.rest != "" {
			word := s.token()
			if word == "" {
				s.skip()
				continue
			}
			if s.equals() { // a parameter of the last challenge
				value := s.value()
				if n := len(out); n > 0 {
					out[n-1].params[strings.ToLower(word)] = value
				}
				continue
			}
			out = append(out, challenge{strings.ToLower(word), map[string]string{}})
		}
	}
	return out
}

// A scanner reads the words of a header.
type scanner struct{ rest string }

const tokenChars = "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"

// token reads a word, "" if there is none.
func (s *scanner) token() string {
	s.rest = strings.TrimLeft(s.rest, " \t,")
	n := len(s.rest) - len(strings.TrimLeft(s.rest, tokenChars))
	word := s.rest[:n]
	s.rest = s.rest[n:]
	return word
}

func (s *scanner) equals() bool {
	after, ok := strings.CutPrefix(strings.TrimLeft(s.rest, " \t"), "=")
	if ok {
		s.rest = strings.TrimLeft(after, " \t")
	}
	return ok
}

// value reads a word or a quoted string.
func (s *scanner) value() string {
	if !strings.HasPrefix(s.rest, `"`) {
		return s.token()
	}
	var b strings.Builder
	for i := 1; i < len(s.rest); i++ {
		switch c := s.rest[i]; c {
		case '"':
			s.rest = s.rest[i+1:]
			return b.String()
		case '\\':
			if i++; i < len(s.rest) {
				b.WriteByte(s.rest[i])
			}
		default:
			b.WriteByte(c)
		}
	}
	s.rest = ""
	return b.String()
}

// skip passes over a byte that belongs to nothing.
func (s *scanner) skip() {
	if s.rest != "" {
		s.rest = s.rest[1:]
	}
}
