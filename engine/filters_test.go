package engine

import (
	"reflect"
	"testing"
	"time"
)

func TestParseFilters(t *testing.T) {
	tests := []struct {
		text string
		want Filters
		ok   bool
	}{
		{"", nil, true},
		{`{"label":["b","a"]}`, Filters{"label": {"b", "a"}}, true},
		{`{"label":{"b":true,"a":true}}`, Filters{"label": {"a", "b"}}, true},
		{`{}`, Filters{}, true},
		{`{"label":"a"}`, nil, false},
		{`[`, nil, false},
	}
	for _, tt := range tests {
		got, err := ParseFilters(tt.text)
		if (err == nil) != tt.ok || !reflect.DeepEqual(got, tt.want) {
			t.Errorf("ParseFilters(%s) = %v, %v; want %v, ok %v", tt.text, got, err, tt.want, tt.ok)
		}
	}
}

func TestFiltersMatch(t *testing.T) {
	labels := map[string]string{"a": "1", "b": ""}
	f := Filters{"name": {"^we", "*bad"}, "label": {"a=1", "b"}, "id": {"abc"}, "status": {"running", "paused"}}
	tests := []struct {
		what      string
		got, want bool
	}{
		{"name by pattern", f.match("name", "web"), true},
		{"name by no pattern", f.match("name", "xweb"), false},
		{"what is no pattern, as it is", f.match("name", "x*bady"), true},
		{"all labels", f.Labels("label", labels), true},
		{"another value", Filters{"label": {"a=2"}}.Labels("label", labels), false},
		{"no such label", Filters{"label": {"c"}}.Labels("label", labels), false},
		{"label!", Filters{"label!": {"a"}}.unlabelled("label!", labels), false},
		{"label! of none", Filters{}.unlabelled("label!", labels), true},
		{"prefix", f.prefix("id", "abcdef"), true},
		{"no prefix", f.prefix("id", "ab"), false},
		{"any of two", f.any("status", "paused"), true},
		{"none of two", f.any("status", "exited"), false},
		{"nothing asked", f.any("driver", "x"), true},
	}
	for _, tt := range tests {
		if tt.got != tt.want {
			t.Errorf("%s: %v, want %v", tt.what, tt.got, tt.want)
		}
	}
}

func FuzzParseFilters(f *testing.F) {
	f.Add(`{"label":["a"]}`)
	f.Add(`{"label":{"a":true}}`)
	f.Fuzz(func(t *testing.T, text string) {
		if got, err := ParseFilters(text); err == nil {
			got.match("name", "web")
			got.Labels("label", map[string]string{"a": "b"})
		}
	})
}

func TestParseTime(t *testing.T) {
	now := time.Date(2024, 5, 1, 12, 0, 0, 0, time.UTC)
	tests := []struct {
		text string
		want time.Time
		ok   bool
	}{
		{"", time.Time{}, true},
		{"0", time.Time{}, true},
		{"10m", now.Add(-10 * time.Minute), true},
		{"1714564800", now, true},
		{"1714564800.000000001", now.Add(1), true},
		{"1714564800.5", now.Add(time.Second / 2), true},
		{"2024-05-01T12:00:00Z", now, true},
		{"2024-05-01T14:00:00.5+02:00", now.Add(time.Second / 2), true},
		{"yesterday", time.Time{}, false},
		{"17145648.x", time.Time{}, false},
	}
	for _, tt := range tests {
		got, err := ParseTime(tt.text, now)
		if (err == nil) != tt.ok || !got.Equal(tt.want) {
			t.Errorf("ParseTime(%q) = %v, %v; want %v, ok %v", tt.text, got, err, tt.want, tt.ok)
		}
	}
}

func FuzzParseTime(f *testing.F) {
	for _, s := range []string{"10m", "1714564800.5", "2024-05-01", "-1", "9999999999999999999"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if got, err := ParseTime(s, time.Unix(0, 0)); err != nil && !got.IsZero() {
			t.Errorf("ParseTime(%q) = %v and %v", s, got, err)
		}
	})
}
