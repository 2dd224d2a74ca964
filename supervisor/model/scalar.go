package model

import (
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// Bool reads a device variable's value; ok is false if it is neither true nor
// false.
func Bool(text string) (value, ok bool) {
	if Truthy(text) {
		return true, true
	}
	return false, text == "0" || strings.EqualFold(text, "false") || strings.EqualFold(text, "off")
}

// Truthy is the supervisor's one rule for booleans in JSON, labels and
// variables. What is neither true nor false counts as not true.
func Truthy(v any) bool {
	switch v := v.(type) {
	case bool:
		return v
	case float64:
		return v == 1
	case int:
		return v == 1
	case string:
		s := strings.ToLower(v)
		return s == "1" || s == "true" || s == "on"
	}
	return false
}

var integer = regexp.MustCompile(`^-?[0-9]+(\.0*)?$`)

// Int reads 12, "12" and "12.0".
func Int(v any) (int, bool) {
	switch v := v.(type) {
	case int:
		return v, true
	case float64:
		if v != math.Trunc(v) || math.Abs(v) > 1<<53 {
			return 0, false
		}
		return int(v), true
	case string:
		if !integer.MatchString(v) {
			return 0, false
		}
		whole, _, _ := strings.Cut(v, ".")
		n, err := strconv.Atoi(whole)
		return n, err == nil
	}
	return 0, false
}

// IsVariable reports whether a device variable may have this name.
func IsVariable(name string) bool { return configKey.MatchString(name) }

// Str reads a string that says something.
func Str(v any) (string, bool) {
	s, ok := v.(string)
	return s, ok && s != "" && s != "null" && s != "undefined"
}

// text is how a scalar is written into an environment or a label.
func text(v any) (string, bool) {
	switch v := v.(type) {
	case nil:
		return "", true
	case string:
		return v, true
	case bool:
		return strconv.FormatBool(v), true
	case float64:
		return strconv.FormatFloat(v, 'f', -1, 64), true
	}
	return "", false
}

var byteSize = regexp.MustCompile(`^([0-9]+)([bkmg]?)b?$`)

// bytesOf reads 1024, "64m", "1GB". Anything else is the default.
func bytesOf(v any, def int64) int64 {
	if n, ok := Int(v); ok {
		return int64(n)
	}
	s, _ := v.(string)
	m := byteSize.FindStringSubmatch(strings.ToLower(s))
	if m == nil {
		return def
	}
	n, err := strconv.ParseInt(m[1], 10, 64)
	shift := map[string]uint{"k": 10, "m": 20, "g": 30}[m[2]]
	if err != nil || n > math.MaxInt64>>shift {
		return def
	}
	return n << shift
}

// duration reads "1m30s" and, as the engine does, a bare number of nanoseconds.
func duration(v any) (time.Duration, error) {
	if n, ok := Int(v); ok {
		return time.Duration(n), nil
	}
	s, ok := v.(string)
	if !ok {
		return 0, fmt.Errorf("want a duration such as 30s, not %v", v)
	}
	d, err := time.ParseDuration(s)
	if err != nil {
		return 0, fmt.Errorf("want a duration such as 30s, not %q", s)
	}
	return d, nil
}

// snake turns camelCase into snake_case: fleet servers send either.
func snake(s string) string {
	var b strings.Builder
	for i, r := range s {
		if unicode.IsUpper(r) && i > 0 {
			b.WriteByte('_')
		}
		b.WriteRune(unicode.ToLower(r))
	}
	return b.String()
}

// snakeKeys is m with its own keys in snake_case; values are left alone.
func snakeKeys(m map[string]any) map[string]any {
	out := make(map[string]any, len(m))
	for k, v := range m {
		out[snake(k)] = v
	}
	return out
}
