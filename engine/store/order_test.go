package store

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
)

// Where the file system keeps order, objects are in files/ before their layer
// is: a layer that fails takes along those that are only its own.
func TestAFailedLayerTakesItsObjectsAlong(t *testing.T) {
	s := openAt(t, disk(t, 128<<20, "mkfs.ext4", "-q"), Options{})
	if !s.ordered {
		t.Fatal("ext4 with a journal is not known to keep order")
	}
	var entries []entry
	for i := range 120 {
		entries = append(entries, file(fmt.Sprint(i), strings.Repeat(fmt.Sprintf("%08d", i), 25<<10)))
	}
	whole := tarOf(t, entries...)
	if _, err := s.AddLayer(t.Context(), "", bytes.NewReader(whole[:len(whole)-5000])); err == nil {
		t.Fatal("a layer that broke off was added")
	}
	checkEmpty(t, s)
	shared := add(t, s, "", whole)
	if _, err := s.AddLayer(t.Context(), shared.ChainID, bytes.NewReader(whole[:len(whole)-5000])); err == nil {
		t.Fatal("a layer that broke off was added")
	}
	sound(t, s)
}
