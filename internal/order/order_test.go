package order

import (
	"cmp"
	"slices"
	"testing"
)

func TestBySortsAndKeepsTheOrderOfEquals(t *testing.T) {
	type item struct{ key, was int }
	for n := range 100 {
		var got []item
		for i := range n {
			got = append(got, item{key: i * 7919 % 13, was: i})
		}
		want := slices.Clone(got)
		byKey := func(a, b item) int { return cmp.Compare(a.key, b.key) }
		slices.SortStableFunc(want, byKey)
		if By(got, byKey); !slices.Equal(got, want) {
			t.Fatalf("By gives %v, want %v", got, want)
		}
	}
}
