package contract

import (
	"cmp"
	"strconv"
	"strings"
)

// A version is three numbers and what comes before a release, such as rc.1. A
// build, after +, does not count.
type version struct {
	n   [3]int
	pre string
}

// parseVersion reads 2.113.15, v2.0.0-rc1 and, as operating systems write them,
// 12 or 24.04. given says how many of the three numbers there were; x and *
// end them.
func parseVersion(s string) (v version, given int, ok bool) {
	s, _, _ = strings.Cut(strings.TrimPrefix(strings.TrimPrefix(strings.TrimSpace(s), "v"), "="), "+")
	core, pre, hasPre := strings.Cut(s, "-")
	parts := strings.Split(core, ".")
	if len(parts) > 3 {
		return v, 0, false
	}
	for i, p := range parts {
		if p == "x" || p == "X" || p == "*" {
			return v, i, !hasPre
		}
		n, err := strconv.ParseUint(p, 10, 31)
		if err != nil {
			return v, 0, false
		}
		v.n[i] = int(n)
	}
	if hasPre {
		for id := range strings.SplitSeq(pre, ".") {
			if id == "" || strings.Trim(id, "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-") != "" {
				return v, 0, false
			}
		}
	}
	v.pre = pre
	return v, len(parts), true
}

func (v version) compare(w version) int {
	for i := range v.n {
		if c := cmp.Compare(v.n[i], w.n[i]); c != 0 {
			return c
		}
	}
	if v.pre == "" || w.pre == "" { // what precedes a release is less than it
		return cmp.Compare(len(w.pre), len(v.pre))
	}
	a, b := strings.Split(v.pre, "."), strings.Split(w.pre, ".")
	for i := range min(len(a), len(b)) {
		if c := comparePre(a[i], b[i]); c != 0 {
			return c
		}
	}
	return cmp.Compare(len(a), len(b))
}

// comparePre puts numbers before words.
func comparePre(a, b string) int {
	n, err1 := strconv.Atoi(a)
	m, err2 := strconv.Atoi(b)
	switch {
	case err1 == nil && err2 == nil:
		return cmp.Compare(n, m)
	case err1 == nil:
		return -1
	case err2 == nil:
		return 1
	}
	return cmp.Compare(a, b)
}

// Satisfies reports whether a version is in a range as npm writes them:
// 1.2.3, >=1.2 <3, ^1.2, ~1.2, 1.x, 1.2 - 2.0, and alternatives between ||. A
// range that is none has no versions.
//
// A version before a release is compared like any other, so that 2.1.0-rc1 is
// in >=2.0.0 and not in <2.1.0-rc1; npm wants it named. ^2.0.0 does not reach
// to 3.0.0-rc1.
func Satisfies(of, in string) bool {
	v, _, ok := parseVersion(of)
	if !ok {
		return false
	}
	found := false
	for alternative := range strings.SplitSeq(in, "||") {
		tests, ok := comparators(alternative)
		if !ok {
			return false
		}
		all := true
		for _, t := range tests {
			all = all && t(v)
		}
		found = found || all
	}
	return found
}

type comparator func(version) bool

// comparators reads one alternative; all of them must hold. ok is false if it
// is none.
func comparators(s string) (out []comparator, ok bool) {
	words := strings.Fields(s)
	for i := 0; i < len(words); i++ {
		word := words[i]
		if i+2 < len(words) && words[i+1] == "-" {
			low, _, ok1 := parseVersion(word) // numbers that are missing are 0
			high, given, ok2 := parseVersion(words[i+2])
			if !ok1 || !ok2 {
				return nil, false
			}
			out = append(out, atLeast(low), upTo(high, given))
			i += 2
			continue
		}
		rest := strings.TrimLeft(word, "<>=^~")
		op := word[:len(word)-len(rest)]
		if rest == "" { // a blank between the sign and the version
			if i++; i == len(words) {
				return nil, false
			}
			rest = words[i]
		}
		v, given, ok := parseVersion(rest)
		if !ok {
			return nil, false
		}
		tests, ok := compared(op, v, given)
		if !ok {
			return nil, false
		}
		out = append(out, tests...)
	}
	return out, true // none is any
}

func atLeast(low version) comparator { return func(v version) bool { return v.compare(low) >= 0 } }
func below(high version) comparator  { return func(v version) bool { return v.compare(high) < 0 } }

// upTo includes a version of which the first numbers are given, and so all that
// begin with these.
func upTo(high version, given int) comparator {
	switch {
	case given == 0:
		return func(version) bool { return true }
	case given == 3:
		return func(v version) bool { return v.compare(high) <= 0 }
	}
	return below(next(high, given-1))
}

// next is the version at which the number at i has changed. Nothing precedes
// it, not even what precedes its release.
func next(v version, i int) version {
	v.n[i]++
	for j := i + 1; j < 3; j++ {
		v.n[j] = 0
	}
	v.pre = "0"
	return v
}

func compared(op string, v version, given int) ([]comparator, bool) {
	switch op {
	case ">=":
		return []comparator{atLeast(v)}, true
	case "<":
		if given < 3 { // <2 leaves out what precedes 2.0.0, too
			v.pre = "0"
		}
		return []comparator{below(v)}, true
	case "<=":
		return []comparator{upTo(v, given)}, true
	case ">":
		inside := upTo(v, given)
		return []comparator{func(v version) bool { return !inside(v) }}, true
	case "", "=":
		return []comparator{atLeast(v), upTo(v, given)}, true
	case "~", "~>":
		if given == 0 {
			return nil, true
		}
		return []comparator{atLeast(v), below(next(v, min(given, 2)-1))}, true
	case "^":
		if given == 0 {
			return nil, true
		}
		// What may change is right of the first number that is not 0.
		i := 0
		for i < given-1 && v.n[i] == 0 {
			i++
		}
		return []comparator{atLeast(v), below(next(v, i))}, true
	}
	return nil, false
}
