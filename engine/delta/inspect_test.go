package delta

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/minke-os/minke/oci"
)

func TestAReportAccountsForEveryByte(t *testing.T) {
	s := shelf{}
	base := layerOf(t, tarOf(t, version1()), s)
	m := version1()
	m[301].data = program[:1000] + strings.Repeat("inserted", 40) + program[1000:]
	m = append(m, member{name: "new", data: noise(8, 5000)})
	data := makeDelta(t, layerOf(t, tarOf(t, m), s), []Layer{base}, s)
	d, r, err := Inspect(t.Context(), bytes.NewReader(data), &scratch{}, func(oci.DiffID) Records { return base.Records() }, 9)
	if err != nil {
		t.Fatal(err)
	}
	if sum := r.Header + r.Skeleton + r.Contents.Total(); sum != int64(len(data)) || d.Size() != sum {
		t.Errorf("the report has %d bytes in all, want the delta's %d: %+v", sum, len(data), r)
	}
	if len(r.Files) != 2 {
		t.Fatalf("the report has the files %+v, want two", r.Files)
	}
	fresh, changed := r.Files[0], r.Files[1] // what costs most is first
	if changed.Path != "usr/bin/program" || changed.Base.Digest != oci.FromBytes([]byte(version1()[301].data)) || changed.Cost.Whole != 0 || changed.Cost.Added == 0 {
		t.Errorf("the changed file is reported as %+v", changed)
	}
	if fresh.Path != "new" || fresh.Base != (Content{}) || fresh.Cost.Whole < 4900 || fresh.Cost.Total() != fresh.Cost.Whole {
		t.Errorf("the new file is reported as %+v", fresh)
	}
	_, few, err := Inspect(t.Context(), bytes.NewReader(data), &scratch{}, func(oci.DiffID) Records { return base.Records() }, 1)
	if err != nil || few.Count != 2 || few.Contents != r.Contents || len(few.Files) != 1 || few.Files[0] != fresh {
		t.Errorf("asked for one file, the report is %+v, %v; want the new one and the same sums as %+v", few, err, r)
	}
	_, r, err = Inspect(t.Context(), bytes.NewReader(data), &scratch{}, func(oci.DiffID) Records { return nil }, 9)
	if err != nil || len(r.Files) != 2 || r.Files[0].Path != "" {
		t.Errorf("without its base the delta is reported as %+v, %v; want files without paths", r, err)
	}
}

// Changed lines are rather added than made of what differs in them, and where
// addresses have changed in a program it is the other way round.
func TestTheCheaperOfDifferencesAndAddedBytes(t *testing.T) {
	var old, new strings.Builder
	var code, moved []byte
	for i := range 400 {
		line := fmt.Sprintf("const v%d = f(%x);\n", i, noise(uint64(i), 6))
		old.WriteString(line)
		if i%20 == 10 {
			line = fmt.Sprintf("const v%d = f(%x);\n", i, noise(uint64(i+1000), 6))
		}
		new.WriteString(line)
		call := append([]byte(noise(uint64(i), 12)), 7, byte(i), byte(i/3), 0x40)
		code = append(code, call...)
		call[13] += 16
		moved = append(moved, call...)
	}
	s := shelf{}
	base := layerOf(t, tarOf(t, []member{{name: "text", data: old.String()}, {name: "code", data: string(code)}}), s)
	target := layerOf(t, tarOf(t, []member{{name: "text", data: new.String()}, {name: "code", data: string(moved)}}), s)
	_, r, err := Inspect(t.Context(), bytes.NewReader(makeDelta(t, target, []Layer{base}, s)), &scratch{}, func(oci.DiffID) Records { return base.Records() }, 9)
	if err != nil {
		t.Fatal(err)
	}
	costs := map[string]Cost{}
	for _, f := range r.Files {
		costs[f.Path] = f.Cost
	}
	if c := costs["text"]; c.Added == 0 || c.Changes > c.Added/10 {
		t.Errorf("changed lines cost %+v, want added bytes", c)
	}
	if c := costs["code"]; c.Changes == 0 || c.Added > c.Changes/10 {
		t.Errorf("changed addresses cost %+v, want differences", c)
	}
}

// Whatever Apply refuses as not well-formed Inspect survives.
func FuzzInspect(f *testing.F) {
	s := shelf{}
	old := layerOf(f, tarOf(f, []member{{name: "a", data: document}}), s)
	data := makeDelta(f, layerOf(f, tarOf(f, []member{{name: "a", data: edited(document, 99, "changed")}, {name: "c", data: "new"}}), s), []Layer{old}, s)
	f.Add(data)
	f.Fuzz(func(t *testing.T, data []byte) {
		Inspect(t.Context(), bytes.NewReader(data), &scratch{}, func(oci.DiffID) Records { return old.Records() }, 9)
	})
}
