package engine

import "testing"

func TestParseLink(t *testing.T) {
	tests := []struct {
		text string
		want link
		ok   bool
	}{
		{"db", link{"db", "db"}, true},
		{"db:database", link{"db", "database"}, true},
		{"/db:/web/database", link{"db", "database"}, true},
		{"", link{}, false},
		{"db:", link{}, false},
		{":x", link{}, false},
		{"a:b:c", link{}, false},
	}
	for _, tt := range tests {
		got, err := parseLink(tt.text)
		if (err == nil) != tt.ok || tt.ok && got != tt.want {
			t.Errorf("parseLink(%q) = %+v, %v; want %+v, ok %v", tt.text, got, err, tt.want, tt.ok)
		}
	}
}
