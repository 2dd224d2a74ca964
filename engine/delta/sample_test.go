package delta

import (
	"bytes"
	"flag"
	"os"
	"testing"

	"github.com/minke-os/minke/oci"
)

var update = flag.Bool("update", false, "write testdata anew, for a new version of the format")

// TestStoredSample applies a delta that an earlier program made. A change of the
// format that cannot read it needs another version.
func TestStoredSample(t *testing.T) {
	s := shelf{}
	base := layerOf(t, tarOf(t, version1()), s)
	m := version1()
	for i := range m {
		m[i].mtime++
	}
	m[301].data = edited(m[301].data, 777, "another version of the program")
	m = append(m, member{name: "new", data: "sent whole"})
	want := tarOf(t, m)
	const sample = "testdata/version-1.delta"
	if *update {
		data := makeDelta(t, layerOf(t, want, s), []Layer{base}, s)
		if err := os.WriteFile(sample, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	data, err := os.ReadFile(sample)
	if err != nil {
		t.Fatal(err)
	}
	device := shelf{}
	layerOf(t, tarOf(t, version1()), device)
	got, err := apply(data, base.Records(), device)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("apply = %d bytes with the digest %s, %v; want %s", len(got), oci.FromBytes(got), err, oci.FromBytes(want))
	}
}
