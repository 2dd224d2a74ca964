package engine

import (
	"reflect"
	"testing"
)

func TestParseCPUs(t *testing.T) {
	tests := []struct {
		list string
		want []int
		ok   bool
	}{
		{"", nil, true},
		{"0", []int{0}, true},
		{"0-2,7", []int{0, 1, 2, 7}, true},
		{"3-1", nil, false},
		{"x", nil, false},
		{"0-", nil, false},
		{"0-60000", nil, false},
	}
	for _, tt := range tests {
		got, err := parseCPUs(tt.list)
		if (err == nil) != tt.ok || !reflect.DeepEqual(got, tt.want) {
			t.Errorf("parseCPUs(%q) = %v, %v; want %v, ok %v", tt.list, got, err, tt.want, tt.ok)
		}
	}
}
