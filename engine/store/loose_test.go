package store

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/minke-os/minke/engine/delta"
	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/internal/testenv"
	"github.com/minke-os/minke/oci"
)

// deltaOf makes a delta between two layers of a store.
func deltaOf(t testing.TB, s *Store, from, to Layer) []byte {
	t.Helper()
	l, err := s.Loose()
	must(t, err)
	defer l.Close()
	scratch, err := s.TempFile()
	must(t, err)
	defer scratch.Close()
	var out bytes.Buffer
	layer := func(l Layer) delta.Layer {
		return delta.Layer{DiffID: l.DiffID, Records: func() delta.Records { return s.Records(l.ChainID) }}
	}
	_, err = delta.Make(t.Context(), &out, layer(to), []delta.Layer{layer(from)}, func(c delta.Content) (delta.File, error) { return l.Open(c) }, scratch, delta.Options{})
	must(t, err)
	return out.Bytes()
}

func readDelta(t testing.TB, s *Store, data []byte) *delta.Delta {
	t.Helper()
	scratch, err := s.TempFile()
	must(t, err)
	t.Cleanup(func() { scratch.Close() })
	d, err := delta.Read(bytes.NewReader(data), scratch)
	must(t, err)
	return d
}

// missing are the segments that bring what is not here.
func missing(t testing.TB, d *delta.Delta, l *Loose) (out []delta.Segment) {
	t.Helper()
	for seg, err := range d.Segments() {
		must(t, err)
		lacks, err := seg.Missing(l.Has)
		must(t, err)
		if lacks {
			out = append(out, seg)
		}
	}
	return out
}

func random(seed uint64, n int) string {
	r := rand.New(rand.NewPCG(seed, 7))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return string(b)
}

func versions(t testing.TB) (one, two []byte) {
	program, other := random(1, 700_000), random(2, 5_000_000)
	one = tarOf(t, dir("bin"), file("bin/program", program), file("bin/other", other), file("empty", ""), file("same", "same"))
	two = tarOf(t, dir("bin"), file("bin/program", program[:1000]+"changed"+program[1000:]), file("bin/other", "x"+other), file("empty", ""), file("same", "same"), file("new", random(3, 300_000)))
	return one, two
}

func TestDeltaAddsALayer(t *testing.T) {
	both(t, func(t *testing.T, s *Store) {
		one, two := versions(t)
		from := add(t, s, "", one)
		release, err := s.Lease(from.ChainID)
		must(t, err)
		defer release()
		data := func() []byte {
			maker := openAt(t, testenv.DiskDir(t), Options{Links: s.links})
			return deltaOf(t, maker, add(t, maker, "", one), add(t, maker, "", two))
		}()
		d := readDelta(t, s, data)
		section := func(p delta.Section) io.Reader { return bytes.NewReader(data[p.Offset:][:p.Length]) }

		// It breaks off after the first segment, and what came is kept.
		l, err := s.Loose()
		must(t, err)
		segments := missing(t, d, l)
		if len(segments) < 2 {
			t.Fatalf("%d segments, want several", len(segments))
		}
		var a delta.Applier
		defer a.Close()
		apply := func(seg delta.Segment) {
			t.Helper()
			must(t, a.Apply(d, seg, section(seg.Section), func(c delta.Content) (delta.File, error) { return l.Open(c) }, l.Create))
		}
		apply(segments[0])
		must(t, l.Close())
		_, err = s.GC(t.Context())
		must(t, err)

		l, err = s.Loose()
		must(t, err)
		if left := missing(t, d, l); len(left) != len(segments)-1 {
			t.Errorf("%d of %d segments are missing after a break, want all but the first", len(left), len(segments))
		}
		for _, seg := range missing(t, d, l) {
			apply(seg)
		}
		got, err := s.AddDelta(t.Context(), from.ChainID, d, section(d.Skeleton), l)
		must(t, err)
		must(t, l.Done())
		if got.DiffID != d.Target {
			t.Errorf("AddDelta = %s, want %s", got.DiffID, d.Target)
		}
		tarBack(t, s, got, two)
		sound(t, s)
	})
}

func TestLooseContentsGoInTime(t *testing.T) {
	both(t, func(t *testing.T, s *Store) {
		c := delta.Content{Digest: sumOf("loose").digest(), Size: 5}
		l, err := s.Loose()
		must(t, err)
		f, err := l.Create(c)
		must(t, err)
		fmt.Fprint(f, "loose")
		must(t, f.Close(), l.Close())
		has := func() bool {
			l, err := s.Loose()
			must(t, err)
			defer l.Close()
			return l.Has(c)
		}
		if _, err := s.GC(t.Context()); err != nil || !has() {
			t.Errorf("GC took what an update may still need (%v)", err)
		}
		live := map[string]struct{}{}
		must(t, s.looseObjects(time.Now().Add(looseFor+time.Hour), live))
		if _, err := s.GC(t.Context()); err != nil || has() {
			t.Errorf("GC left what nobody has asked for in all that time (%v)", err)
		}
	})
}

// What one update has brought and finished with is no longer spared, also what it
// found from an attempt before; what others have brought is.
func TestDoneForgetsWhatTheLayerHas(t *testing.T) {
	both(t, func(t *testing.T, s *Store) {
		content := func(text string) delta.Content {
			return delta.Content{Digest: sumOf(text).digest(), Size: int64(len(text))}
		}
		bring := func(l *Loose, text string) {
			t.Helper()
			f, err := l.Create(content(text))
			must(t, err)
			fmt.Fprint(f, text)
			must(t, f.Close())
		}
		first, err := s.Loose()
		must(t, err)
		bring(first, "first")
		bring(first, "another update's")
		must(t, first.Close())
		second, err := s.Loose()
		must(t, err)
		bring(second, "second")
		bring(second, "second") // as a delta may have it that nobody of us has made
		if !second.Has(content("first")) || !second.Has(content("second")) {
			t.Fatal("what was brought is not there")
		}
		_, err = s.GC(t.Context())
		must(t, err)
		if !second.Has(content("second")) {
			t.Error("GC took what is being brought")
		}
		must(t, second.flush(), second.Done())
		_, err = s.GC(t.Context())
		must(t, err)
		l, err := s.Loose()
		must(t, err)
		defer l.Close()
		for text, want := range map[string]bool{"first": false, "second": false, "another update's": true} {
			if got := l.Has(content(text)); got != want {
				t.Errorf("after Done and GC, Has(%q) = %v, want %v", text, got, want)
			}
		}
	})
}

func TestGCTakesNothingThatIsPinnedMeanwhile(t *testing.T) {
	both(t, func(t *testing.T, s *Store) {
		l, err := s.Loose()
		must(t, err)
		c := delta.Content{Digest: sumOf("found").digest(), Size: 5}
		f, err := l.Create(c)
		must(t, err)
		fmt.Fprint(f, "found")
		must(t, f.Close(), l.flush(), l.Done()) // as if a layer had it
		name := sumOf("found").name()

		must(t, s.beginGC())
		l, err = s.Loose()
		must(t, err)
		if !l.Has(c) {
			t.Fatal("it is not there")
		}
		must(t, l.Close())
		_, err = s.removeObject(name)
		must(t, err)
		s.endGC()
		if n := objects(t, s); n != 1 {
			t.Errorf("%d objects, want the one that was pinned while GC ran", n)
		}
		_, err = s.GC(t.Context())
		must(t, err)
		if n := objects(t, s); n != 0 {
			t.Errorf("%d objects are left", n)
		}
	})
}

func TestAPinSetHasWhatWasAdded(t *testing.T) {
	var p pinSet
	const n, others = 200_000, 20_000
	name := func(i int) string { return sumOf(fmt.Sprint(i)).name() }
	for i := range n {
		p.add(name(i))
	}
	more := 0
	for i := range n + others {
		switch has := p.has(name(i)); {
		case i < n && !has:
			t.Fatalf("the set has lost name %d", i)
		case i >= n && has:
			more++
		}
	}
	if more > others/10 {
		t.Errorf("of %d other names the set has %d", others, more)
	}
}

func TestAnAbortedContentIsNotThere(t *testing.T) {
	both(t, func(t *testing.T, s *Store) {
		c := delta.Content{Digest: sumOf("loose").digest(), Size: 5}
		l, err := s.Loose()
		must(t, err)
		f, err := l.Create(c)
		must(t, err)
		fmt.Fprint(f, "lo")
		f.Abort()
		if l.Has(c) {
			t.Error("it is there")
		}
		must(t, l.Close())
		if n := objects(t, s); n != 0 {
			t.Errorf("%d objects are left", n)
		}
	})
}

// image records an image of one layer.
func imageOf(t testing.TB, s *Store, tar []byte) Image {
	t.Helper()
	l := add(t, s, "", tar)
	id, err := s.PutImage(t.Context(), fmt.Appendf(nil, `{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":[%q]}}`, l.DiffID), "")
	must(t, err)
	img, err := s.Image(id)
	must(t, err)
	return img
}

func TestRsyncDeltaMakesItsImage(t *testing.T) {
	both(t, func(t *testing.T, s *Store) {
		one, two := versions(t)
		base, target := imageOf(t, s, one), imageOf(t, s, two)
		id, err := s.MakeRsyncDelta(t.Context(), base, target, func(oci.DiffID, string) {})
		must(t, err)
		ref, err := oci.ParseReference("app:delta")
		must(t, err)
		must(t, s.Tag(id, ref))
		d, err := s.Image(id)
		must(t, err)
		if !IsRsyncDelta(d) || IsRsyncDelta(base) || d.Size > 400_000 {
			t.Errorf("the delta has %d bytes for %d; want hardly more than the new file", d.Size, target.Size)
		}
		_, err = s.Remove(string(target.ID), RemoveOptions{}, nobody)
		must(t, err)
		_, err = s.GC(t.Context())
		must(t, err)
		got, err := s.ApplyRsyncDelta(t.Context(), d)
		if err != nil || got != target.ID {
			t.Fatalf("ApplyRsyncDelta = %s, %v; want %s", got, err, target.ID)
		}
		if named, _, err := s.Resolve("app:delta"); named != target.ID {
			t.Errorf("app:delta is %s, %v; want the image", named, err)
		}
		img, err := s.Image(got)
		must(t, err)
		l, err := s.Layer(oci.ChainOf(diffsOf(img)))
		must(t, err)
		tarBack(t, s, l, two)
		_, err = s.Remove(string(base.ID), RemoveOptions{Force: true}, nobody)
		must(t, err)
		if _, err := s.ApplyRsyncDelta(t.Context(), d); !errdef.Is(err, errdef.NotFound) {
			t.Errorf("without its base: %v, want NotFound", err)
		}
	})
}
