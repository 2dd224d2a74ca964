package engine

import (
	"encoding/json"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/minke-os/minke/internal/errdef"
)

// Filters are what a client wants listed: values by key, any of which may match.
type Filters map[string][]string

// ParseFilters reads the query parameter in both of Docker's forms:
// {"label":["a"]} and, since API 1.22, {"label":{"a":true}}.
func ParseFilters(text string) (Filters, error) {
	if text == "" {
		return nil, nil
	}
	var sets map[string]map[string]bool
	if json.Unmarshal([]byte(text), &sets) == nil {
		f := Filters{}
		for key, values := range sets {
			f[key] = sortedKeys(values)
		}
		return f, nil
	}
	var f Filters
	if err := json.Unmarshal([]byte(text), &f); err != nil {
		return nil, errdef.Invalid.Errorf("invalid filter: %w", err)
	}
	return f, nil
}

// check refuses keys that are not known.
func (f Filters) check(known ...string) error {
	for key := range f {
		if !slices.Contains(known, key) {
			return errdef.Invalid.Errorf("invalid filter '%s'; known are %s", key, strings.Join(known, ", "))
		}
	}
	return nil
}

// any reports whether value is one of those asked for, or nothing was asked.
func (f Filters) any(key, value string) bool {
	return len(f[key]) == 0 || slices.Contains(f[key], value)
}

// some is any for an object with several values.
func (f Filters) some(key string, values []string) bool {
	return len(f[key]) == 0 || slices.ContainsFunc(values, func(v string) bool { return slices.Contains(f[key], v) })
}

func (f Filters) prefix(key, value string) bool {
	return len(f[key]) == 0 || slices.ContainsFunc(f[key], func(p string) bool { return strings.HasPrefix(value, p) })
}

// match takes the values as regular expressions, as Docker does for names; what
// is none is looked for as it is.
func (f Filters) match(key, value string) bool {
	return len(f[key]) == 0 || slices.ContainsFunc(f[key], func(p string) bool {
		re, err := regexp.Compile(p)
		if err != nil {
			return strings.Contains(value, p)
		}
		return re.MatchString(value)
	})
}

// Labels reports whether all labels asked for ("key" or "key=value") are there.
func (f Filters) Labels(key string, labels map[string]string) bool {
	for _, want := range f[key] {
		name, value, hasValue := strings.Cut(want, "=")
		got, ok := labels[name]
		if !ok || hasValue && got != value {
			return false
		}
	}
	return true
}

// unlabelled is the opposite of Labels, for label! in prune.
func (f Filters) unlabelled(key string, labels map[string]string) bool {
	return len(f[key]) == 0 || !f.Labels(key, labels)
}

// until is the point in time of a prune filter, a date or an age; zero if none.
func (f Filters) until() (time.Time, error) {
	if len(f["until"]) == 0 {
		return time.Time{}, nil
	}
	return ParseTime(f["until"][0], time.Now())
}

// is reports whether a boolean filter asks for true; asked whether it is there.
func (f Filters) is(key string) (value, asked bool, err error) {
	if len(f[key]) == 0 {
		return false, false, nil
	}
	switch f[key][0] {
	case "1", "true", "t", "True", "TRUE", "T":
		return true, true, nil
	case "0", "false", "f", "False", "FALSE", "F":
		return false, true, nil
	}
	return false, false, errdef.Invalid.Errorf("invalid filter '%s=[%s]'; want true or false", key, f[key][0])
}

// ParseTime reads what docker's --since and --until take: seconds since 1970
// with a fraction, RFC 3339, or an age such as 10m.
func ParseTime(s string, now time.Time) (time.Time, error) {
	if s == "" || s == "0" {
		return time.Time{}, nil
	}
	if d, err := time.ParseDuration(s); err == nil {
		return now.Add(-d), nil
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05", "2006-01-02T15:04", "2006-01-02Z07:00", "2006-01-02"} {
		if t, err := time.ParseInLocation(layout, s, time.Local); err == nil {
			return t, nil
		}
	}
	whole, fraction, _ := strings.Cut(s, ".")
	seconds, err := time.ParseDuration(whole + "s")
	if err != nil {
		return time.Time{}, errdef.Invalid.Errorf("invalid time %q; want RFC 3339, seconds since 1970, or an age such as 10m", s)
	}
	nanos, err := time.ParseDuration("0." + fraction + "0s")
	if err != nil {
		return time.Time{}, errdef.Invalid.Errorf("invalid time %q", s)
	}
	return time.Unix(int64(seconds/time.Second), int64(nanos)), nil
}
