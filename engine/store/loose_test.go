package store

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/minke-os/minke/engine/delta"
	"github.com/minke-os/minke/internal/testenv"
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
		d, err := delta.Read(bytes.NewReader(data))
		must(t, err)
		section := func(p delta.Section) io.Reader { return bytes.NewReader(data[p.Offset:][:p.Length]) }

		// It breaks off after the first segment, and what came is kept.
		l, err := s.Loose()
		must(t, err)
		segments := d.Missing(l.Has)
		if len(segments) < 2 {
			t.Fatalf("%d segments, want several", len(segments))
		}
		apply := func(seg delta.Segment) {
			t.Helper()
			must(t, d.Apply(seg, section(seg.Section), func(c delta.Content) (delta.File, error) { return l.Open(c) }, l.Create))
		}
		apply(segments[0])
		must(t, l.Close())
		_, err = s.GC(t.Context())
		must(t, err)

		l, err = s.Loose()
		must(t, err)
		if left := d.Missing(l.Has); len(left) != len(segments)-1 {
			t.Errorf("%d of %d segments are missing after a break, want all but the first", len(left), len(segments))
		}
		for _, seg := range d.Missing(l.Has) {
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
