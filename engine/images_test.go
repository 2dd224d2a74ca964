package engine

import (
	"testing"

	"github.com/minke-os/minke/engine/store"
	"github.com/minke-os/minke/oci"
)

// An image with several names is listed under those that were asked for.
func TestReferenceFilterLeavesOutOtherNames(t *testing.T) {
	parse := func(names ...string) (refs []oci.Reference) {
		for _, n := range names {
			ref, err := oci.ParseReference(n)
			if err != nil {
				t.Fatal(err)
			}
			refs = append(refs, ref)
		}
		return refs
	}
	tests := []struct {
		pattern string
		want    []string
	}{
		{"base", []string{"base:1", "base:2"}},
		{"*:1", []string{"base:1"}},
		{"shop/*", []string{"shop/web:1"}},
		{"docker.io/library/base:2", []string{"base:2"}},
		{"nothing", nil},
	}
	for _, tt := range tests {
		img := store.Image{Tags: parse("base:1", "base:2", "shop/web:1")}
		ok := matchReference([]string{tt.pattern}, &img)
		if got := familiar(img.Tags); ok != (len(tt.want) > 0) || len(got) != len(tt.want) || len(got) > 0 && got[0] != tt.want[0] {
			t.Errorf("reference=%s: %v, %v; want %v", tt.pattern, ok, got, tt.want)
		}
	}
}
