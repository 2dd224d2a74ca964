package delta

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/oci"
)

// A shelf has contents by digest, as the device's store does.
type shelf map[oci.Digest][]byte

type memory struct{ *bytes.Reader }

func (memory) Close() error { return nil }

func (s shelf) open(c Content) (File, error) {
	data, ok := s[c.Digest]
	if !ok {
		return nil, errdef.NotFound.Errorf("no content %s", c.Digest)
	}
	return memory{bytes.NewReader(data)}, nil
}

func (s shelf) read(c Content) (io.ReadCloser, error) {
	f, err := s.open(c)
	if err != nil {
		return nil, err
	}
	return io.NopCloser(io.NewSectionReader(f, 0, c.Size)), nil
}

// A sink puts a content on the shelf when it is complete.
type sink struct {
	bytes.Buffer
	c     Content
	shelf shelf
}

func (s *sink) Abort() {}

func (s *sink) Close() error {
	s.shelf[s.c.Digest] = s.Bytes()
	return nil
}

// layerOf divides a tar into records, as the store does, and puts the contents
// on the shelf.
func layerOf(t testing.TB, data []byte, s shelf) Layer {
	t.Helper()
	var records []Record
	from := 0
	in := bytes.NewReader(data)
	for tr := tar.NewReader(in); ; {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Size == 0 {
			continue
		}
		at := len(data) - in.Len()
		content := data[at : at+int(h.Size)]
		if _, err := io.Copy(io.Discard, tr); err != nil {
			t.Fatal(err)
		}
		c := Content{Digest: oci.FromBytes(content), Size: h.Size}
		s[c.Digest] = content
		records = append(records, Record{Bytes: data[from:at]}, Record{Content: &c})
		from = at + int(h.Size)
	}
	records = append(records, Record{Bytes: data[from:]})
	return Layer{DiffID: oci.DiffID(oci.FromBytes(data)), Records: func() Records {
		return func(yield func(Record, error) bool) {
			for _, r := range records {
				// In parts, as a store may give them.
				for ; r.Content == nil && len(r.Bytes) > 1000; r.Bytes = r.Bytes[1000:] {
					if !yield(Record{Bytes: r.Bytes[:1000]}, nil) {
						return
					}
				}
				if !yield(r, nil) {
					return
				}
			}
		}
	}}
}

type member struct {
	name  string
	data  string
	mtime int64
	kind  byte
	link  string
}

func tarOf(t testing.TB, members []member) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, m := range members {
		h := &tar.Header{Name: m.name, Mode: 0o755, Size: int64(len(m.data)), ModTime: time.Unix(m.mtime, 0), Typeflag: m.kind, Linkname: m.link}
		if m.kind == 0 {
			h.Typeflag = tar.TypeReg
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, m.data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func noise(seed uint64, n int) string {
	r := rand.New(rand.NewPCG(seed, 1))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return string(b)
}

// scratch is memory that can be written and read once from its beginning, or
// anywhere.
type scratch struct {
	bytes.Buffer
}

func (s *scratch) Seek(int64, int) (int64, error) { return 0, nil }

func (s *scratch) ReadAt(b []byte, at int64) (int, error) {
	return bytes.NewReader(s.Bytes()).ReadAt(b, at)
}

func read(data []byte) (*Delta, error) { return Read(bytes.NewReader(data), &scratch{}) }

func contentsOf(t testing.TB, d *Delta) (out []Content) {
	t.Helper()
	for _, s := range segmentsOf(t, d) {
		for c, err := range s.Contents() {
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, c)
		}
	}
	return out
}

func segmentsOf(t testing.TB, d *Delta) (out []Segment) {
	t.Helper()
	for s, err := range d.Segments() {
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, s)
	}
	return out
}

func makeDelta(t testing.TB, target Layer, bases []Layer, s shelf) []byte {
	t.Helper()
	var out bytes.Buffer
	_, err := Make(context.Background(), &out, target, bases, s.open, &scratch{}, Options{Workers: 2})
	if err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// apply makes the target with what is on the shelf.
func apply(data []byte, base Records, s shelf) ([]byte, error) {
	d, err := read(data)
	if err != nil {
		return nil, err
	}
	section := func(p Section) io.Reader { return io.NewSectionReader(bytes.NewReader(data), p.Offset, p.Length) }
	has := func(c Content) bool { _, ok := s[c.Digest]; return ok }
	var a Applier
	defer a.Close()
	for seg, err := range d.Segments() {
		missing := false
		if err == nil {
			missing, err = seg.Missing(has)
		}
		if err == nil && missing {
			err = a.Apply(d, seg, section(seg.Section), s.open, func(c Content) (Sink, error) { return &sink{c: c, shelf: s}, nil })
		}
		if err != nil {
			return nil, err
		}
	}
	var out bytes.Buffer
	err = d.WriteTar(context.Background(), &out, section(d.Skeleton), base, func(c Content, _ bool) (io.ReadCloser, error) { return s.read(c) })
	if got := oci.DiffID(oci.FromBytes(out.Bytes())); err == nil && got != d.Target {
		err = errdef.Invalid.Errorf("made %s in place of %s", got, d.Target)
	}
	return out.Bytes(), err
}

var (
	program  = noise(1, 200_000)
	document = strings.Repeat("All work and no play makes a dull device. ", 2000)
)

func version1() []member {
	m := []member{{name: "./", kind: tar.TypeDir, mtime: 1000}}
	for i := range 300 {
		m = append(m, member{name: fmt.Sprintf("usr/share/file%03d", i), data: noise(uint64(100+i), 500), mtime: 5000 + int64(i)})
	}
	return append(m,
		member{name: "usr/bin/program", data: program, mtime: 7000},
		member{name: "usr/lib/libfoo.so.1.2", data: noise(3, 50_000), mtime: 7000},
		member{name: "usr/lib/libfoo.so", kind: tar.TypeSymlink, link: "libfoo.so.1.2", mtime: 7001},
		member{name: "doc/" + strings.Repeat("long", 40) + "/page", data: document, mtime: 7002},
		member{name: "empty", mtime: 7003},
		member{name: "doc/notes.gz", data: string(gzipped(9, words(20_000)))},
		member{name: "lib/app.jar", data: string(zipped("x", words(20_000), "y", words(9000)))},
	)
}

func edited(s string, at int, with string) string { return s[:at] + with + s[at+len(with):] }

func TestRoundTrip(t *testing.T) {
	touched := func(m []member) []member { // as a rebuild on another day
		m = slices.Clone(m)
		for i := range m {
			m[i].mtime += 86400
		}
		return m
	}
	replaced := func(name string, f func(*member)) func([]member) []member {
		return func(m []member) []member {
			m = slices.Clone(m)
			i := slices.IndexFunc(m, func(m member) bool { return m.name == name })
			f(&m[i])
			return m
		}
	}
	tests := []struct {
		name string
		edit func([]member) []member
		most int // bytes of the delta
	}{
		{"nothing-changed", func(m []member) []member { return m }, 300},
		{"all-times-changed", touched, 400},
		{"a-few-bytes-of-a-program", replaced("usr/bin/program", func(m *member) { m.data = edited(m.data, 1234, "changed here") }), 500},
		{"bytes-inserted-everywhere", replaced("usr/bin/program", func(m *member) {
			var b strings.Builder
			for i := 0; i < len(m.data); i += 2000 {
				b.WriteString(m.data[i:min(i+2000, len(m.data))])
				b.WriteString("+")
			}
			m.data = b.String()
		}), 1500},
		{"renamed-and-changed", replaced("usr/lib/libfoo.so.1.2", func(m *member) {
			m.name, m.data = "usr/lib/libfoo.so.1.3", edited(m.data, 4000, "version 1.3")
		}), 600},
		{"moved", replaced("usr/bin/program", func(m *member) { m.name = "opt/other/tool" }), 500},
		{"moved-and-changed", replaced("usr/bin/program", func(m *member) { m.name, m.data = "opt/other/tool", "new head"+m.data[100:] }), 600},
		{"a-new-file", func(m []member) []member { return append(slices.Clone(m), member{name: "new", data: noise(9, 5000)}) }, 5600},
		{"compressed-inside", func(m []member) []member {
			m[306].data = string(gzipped(9, "A new head.\n"+words(20_000)))
			return m
		}, 900},
		{"archive-of-compressed", func(m []member) []member {
			m[307].data = string(zipped("x", words(20_000)+"more", "y", words(9000)))
			return m
		}, 2000},
		{"files-removed", func(m []member) []member { return append(slices.Clone(m[:50]), m[200:]...) }, 400},
		{"order-changed", func(m []member) []member { m = slices.Clone(m); slices.Reverse(m); return m }, 16000},
		{"everything-new", func([]member) []member { return []member{{name: "a", data: "b"}, {name: "c", data: "b"}} }, 400},
		{"empty-layer", func([]member) []member { return nil }, 300},
		{"large-file-of-windows", func(m []member) []member {
			return append(slices.Clone(m), member{name: "big", data: strings.Repeat(program, 16) + "end"})
		}, 1500},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := shelf{}
			base := layerOf(t, tarOf(t, version1()), s)
			want := tarOf(t, tt.edit(version1()))
			target := layerOf(t, want, s)
			data := makeDelta(t, target, []Layer{base}, s)
			if len(data) > tt.most {
				t.Errorf("the delta has %d bytes, want at most %d", len(data), tt.most)
			}
			device := shelf{}
			base = layerOf(t, tarOf(t, version1()), device)
			got, err := apply(data, base.Records(), device)
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("apply = %d bytes, %v; want the %d of the target", len(got), err, len(want))
			}
			if again := makeDelta(t, target, []Layer{base}, s); !bytes.Equal(again, data) {
				t.Error("made again it is another")
			}
		})
	}
}

func TestAnyImageWithTheContentsWillDo(t *testing.T) {
	s, device := shelf{}, shelf{}
	base := layerOf(t, tarOf(t, []member{{name: "app", data: program}}), s)
	want := tarOf(t, []member{{name: "app", data: edited(program, 10, "x")}})
	data := makeDelta(t, layerOf(t, want, s), []Layer{base}, s)
	layerOf(t, tarOf(t, []member{{name: "elsewhere/in/another/image", data: program}, {name: "more", data: "more"}}), device)
	if got, err := apply(data, nil, device); err != nil || !bytes.Equal(got, want) {
		t.Errorf("apply = %d bytes, %v", len(got), err)
	}
}

func TestWhatIsThereIsNotFetchedAgain(t *testing.T) {
	s := shelf{}
	var members []member
	for i := range 6 {
		members = append(members, member{name: fmt.Sprint(i), data: noise(uint64(i), 3<<20)})
	}
	want := tarOf(t, members)
	data := makeDelta(t, layerOf(t, want, s), nil, s)
	d, err := read(data)
	if err != nil {
		t.Fatal(err)
	}
	segments, contents := segmentsOf(t, d), contentsOf(t, d)
	if len(segments) != 6 || len(contents) != 6 || d.Count() != 6 || d.Size() != int64(len(data)) {
		t.Fatalf("%d segments with %d contents of %d, size %d of %d", len(segments), len(contents), d.Count(), d.Size(), len(data))
	}
	for i, s := range segments {
		missing, err := s.Missing(func(c Content) bool { return c != contents[3] })
		if err != nil || missing != (i == 3) {
			t.Errorf("segment %d: Missing = %v, %v; only the fourth is", i, missing, err)
		}
	}
}

func hostile(t testing.TB) (data []byte, base func() Records, s shelf) {
	s = shelf{}
	before := version1()[290:]
	before[16].data = string(gzipped(9, words(300)))
	before = append(before, member{name: "module.zst", data: stored(t, "old.zst")})
	old := layerOf(t, tarOf(t, before), s)
	m := version1()[290:]
	m[11].data = edited(m[11].data, 5000, "changed")
	m[16].data = string(gzipped(9, words(300)+"more"))
	m = append(m, member{name: "module.zst", data: stored(t, "new.zst")}, member{name: "new", data: "something new that is sent whole, and is long enough to be worth it"})
	data = makeDelta(t, layerOf(t, tarOf(t, m), s), []Layer{old}, s)
	return data, old.Records, s
}

// TestDamagedDeltasAreRefused cuts and flips at every place.
func TestDamagedDeltasAreRefused(t *testing.T) {
	data, base, s := hostile(t)
	d, err := read(data)
	if err != nil {
		t.Fatal(err)
	}
	if d.version != opensZstd {
		t.Fatal("nothing in it is opened")
	}
	device := func() shelf {
		have := shelf{}
		for k, v := range s {
			have[k] = v
		}
		for _, c := range contentsOf(t, d) {
			delete(have, c.Digest)
		}
		return have
	}
	if _, err := apply(data, base(), device()); err != nil {
		t.Fatalf("undamaged: %v", err)
	}
	for i := range data {
		if _, err := apply(data[:i], base(), device()); err == nil {
			t.Fatalf("cut after %d of %d bytes it is accepted", i, len(data))
		}
		flipped := bytes.Clone(data)
		flipped[i] ^= 1 << (i % 8)
		have := device()
		got, err := apply(flipped, base(), have)
		if err == nil && oci.DiffID(oci.FromBytes(got)) != d.Target {
			t.Fatalf("with byte %d changed it makes something else", i)
		}
		for digest, content := range have {
			if oci.FromBytes(content) != digest {
				t.Fatalf("with byte %d changed it leaves %s with other bytes", i, digest)
			}
		}
	}
	if _, err := apply(data, base(), shelf{}); err == nil {
		t.Error("without its bases it is accepted")
	}
}

func TestAnotherBaseIsNoBase(t *testing.T) {
	s := shelf{}
	base := layerOf(t, tarOf(t, version1()), s)
	data := makeDelta(t, layerOf(t, tarOf(t, version1()[1:]), s), []Layer{base}, s)
	if d, err := read(data); err != nil || d.Base != base.DiffID {
		t.Fatalf("Read = %+v, %v; want a delta with a base", d, err)
	}
	for _, other := range []Layer{layerOf(t, tarOf(t, version1()[:5]), s), layerOf(t, tarOf(t, version1()[200:]), s)} {
		if _, err := apply(data, other.Records(), s); !errdef.Is(err, errdef.Invalid) {
			t.Errorf("apply on another base = %v, want an Invalid error", err)
		}
	}
	if _, err := apply(data, nil, s); !errdef.Is(err, errdef.Invalid) {
		t.Errorf("apply without a base = %v, want an Invalid error", err)
	}
}

func TestPatchesThatLie(t *testing.T) {
	base := []byte("0123456789")
	patch := func(words ...any) *bytes.Buffer {
		var b []byte
		for _, w := range words {
			switch v := w.(type) {
			case int:
				b = append(b, byte(v))
			case string:
				b = append(b, v...)
			}
		}
		return bytes.NewBuffer(b)
	}
	tests := []struct {
		name  string
		patch *bytes.Buffer
		size  int64
		want  string // in the error
	}{
		{"copy-behind-the-base", patch(1, 4, 0, 16, 0), 4, "outside"},
		{"copy-before-the-base", patch(1, 4, 0, 1, 0), 4, "outside"},
		{"more-than-the-window", patch(1, 5, 0, 0, "\x00\x00\x00\x00\x00"), 4, "do not fit"},
		{"less-than-the-window", patch(1, 3, 0, 0, "\x00\x00\x00"), 4, "do not fill"},
		{"operation-of-nothing", patch(2, 0, 0, 0, 4, 0, 0), 4, "do not fit"},
		{"too-many-operations", patch(5), 4, "more operations"},
		{"more-differences-than-bytes", patch(1, 2, 2, 0, 3), 4, "more differences"},
		{"difference-behind-the-copy", patch(1, 2, 2, 0, 1, 2), 4, "behind"},
		{"cut-in-the-differences", patch(1, 4, 0, 0, 2, 0, 0, 1), 4, "unexpected EOF"},
		{"cut-in-what-is-added", patch(1, 2, 2, 0, 0, "x"), 4, "unexpected EOF"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var out bytes.Buffer
			err := applyPatch(&out, bufio.NewReader(tt.patch), bytes.NewReader(base), int64(len(base)), tt.size, &patchBuffers{})
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("applyPatch = %v, want %q", err, tt.want)
			}
		})
	}
}

func FuzzApply(f *testing.F) {
	s := shelf{}
	old := layerOf(f, tarOf(f, []member{{name: "a", data: document}, {name: "b", mtime: 7}, {name: "z.gz", data: string(gzipped(9, words(200)))}}), s)
	data := makeDelta(f, layerOf(f, tarOf(f, []member{{name: "a", data: edited(document, 99, "changed")}, {name: "c", data: "new"}, {name: "z.gz", data: string(gzipped(9, words(200)+"more"))}}), s), []Layer{old}, s)
	f.Add(data)
	f.Add([]byte(magic))
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := apply(data, old.Records(), maps.Clone(s))
		if err != nil {
			return
		}
		d, _ := read(data)
		if oci.DiffID(oci.FromBytes(got)) != d.Target {
			t.Error("accepted, and makes something else")
		}
	})
}

func FuzzPatch(f *testing.F) {
	f.Add([]byte("the old file has some bytes in it"), []byte("the new file has some other bytes in it"))
	f.Fuzz(func(t *testing.T, old, new []byte) {
		m := maker{o: Options{Memory: 1 << 20, Workers: 1}}
		for _, p := range m.patches(old, new, cost(new)) {
			var out bytes.Buffer
			if err := applyPatch(&out, bufio.NewReader(bytes.NewReader(p.b)), bytes.NewReader(old), int64(len(old)), int64(len(new)), &patchBuffers{}); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(out.Bytes(), new) {
				t.Fatalf("%q became %q", new, out.Bytes())
			}
		}
	})
}

func FuzzEntries(f *testing.F) {
	f.Add(tarOf(f, []member{{name: "d/", kind: tar.TypeDir}, {name: strings.Repeat("l", 120), mtime: 7, data: "content"}, {name: "x"}}), 700)
	f.Fuzz(func(t *testing.T, data []byte, at int) {
		if len(data) == 0 {
			return
		}
		// Whatever the bytes are, the records give them again.
		at = max(at, -at, 0) % len(data)
		c := Content{Digest: oci.FromBytes(data[at:]), Size: int64(len(data) - at)}
		records := func(yield func(Record, error) bool) {
			_ = yield(Record{Bytes: data[:at]}, nil) && yield(Record{Content: &c}, nil) && yield(Record{Bytes: data[:at]}, nil)
		}
		var got []byte
		for e, err := range entries(records) {
			if err != nil {
				t.Fatal(err)
			}
			got = e.appendFilled(got)
			if e.content != nil {
				got = append(got, data[at:]...)
				if e.padded {
					got = append(got, make([]byte, padding(e.content.Size))...)
				}
			}
		}
		if want := slices.Concat(data, data[:at]); !bytes.Equal(got, want) {
			t.Fatalf("%d bytes became %d others", len(want), len(got))
		}
	})
}

func TestErrorsOfOthersPassThrough(t *testing.T) {
	data, base, s := hostile(t)
	d, err := read(data)
	if err != nil {
		t.Fatal(err)
	}
	full := errors.New("no space left on device")
	for _, c := range contentsOf(t, d) {
		delete(s, c.Digest)
	}
	seg := segmentsOf(t, d)[0]
	var a Applier
	defer a.Close()
	err = a.Apply(d, seg, bytes.NewReader(data[seg.Offset:]), s.open, func(Content) (Sink, error) { return nil, full })
	if !errors.Is(err, full) {
		t.Errorf("Apply = %v, want the error of create", err)
	}
	err = d.WriteTar(t.Context(), io.Discard, bytes.NewReader(data[d.Skeleton.Offset:][:d.Skeleton.Length]), base(), func(Content, bool) (io.ReadCloser, error) { return nil, full })
	if !errors.Is(err, full) {
		t.Errorf("WriteTar = %v, want the error of contents", err)
	}
}
