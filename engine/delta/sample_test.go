package delta

import (
	"bytes"
	"flag"
	"os"
	"testing"

	"github.com/minke-os/minke/oci"
)

var update = flag.Bool("update", false, "write a sample that is missing, for a new version of the format")

// TestStoredSamples applies deltas that earlier programs made. A change of the
// format that cannot read one needs another version.
func TestStoredSamples(t *testing.T) {
	for version, edit := range map[string]func([]member) []member{
		"version-1": func(m []member) []member { return m },
		"version-2": func(m []member) []member {
			return append(m, member{name: "notes.gz", data: stored(t, "new.gz")})
		},
		"version-3": func(m []member) []member {
			return append(m, member{name: "module.zst", data: stored(t, "new.zst")})
		},
	} {
		t.Run(version, func(t *testing.T) { storedSample(t, "testdata/"+version+".delta", edit) })
	}
}

// stored is a compressed file that no other version of the library may change.
func stored(t testing.TB, name string) string {
	t.Helper()
	b, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// plainMembers are those of version1 that are the same whatever library there is.
const plainMembers = 306

func storedSample(t *testing.T, sample string, edit func([]member) []member) {
	s := shelf{}
	before := version1()[:plainMembers]
	switch sample {
	case "testdata/version-2.delta":
		before = append(before, member{name: "notes.gz", data: stored(t, "old.gz")})
	case "testdata/version-3.delta":
		before = append(before, member{name: "module.zst", data: stored(t, "old.zst")})
	}
	base := layerOf(t, tarOf(t, before), s)
	m := version1()[:plainMembers]
	for i := range m {
		m[i].mtime++
	}
	m[301].data = edited(m[301].data, 777, "another version of the program")
	m = edit(append(m, member{name: "new", data: "sent whole"}))
	want := tarOf(t, m)
	if _, err := os.Stat(sample); *update && err != nil {
		data := makeDelta(t, layerOf(t, want, s), []Layer{base}, s)
		if err := os.WriteFile(sample, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	data, err := os.ReadFile(sample)
	if err != nil {
		t.Fatal(err)
	}
	if want := "testdata/version-" + string(data[versionAt]) + ".delta"; sample != want {
		t.Errorf("it is %s", want)
	}
	device := shelf{}
	layerOf(t, tarOf(t, before), device)
	got, err := apply(data, base.Records(), device)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("apply = %d bytes with the digest %s, %v; want %s", len(got), oci.FromBytes(got), err, oci.FromBytes(want))
	}
}
