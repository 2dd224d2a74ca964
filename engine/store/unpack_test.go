package store

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strings"
	"testing"

	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/internal/testenv"
	"github.com/minke-os/minke/oci"
)

// known is a tar with all that recognizing goes through: a header after another,
// small and empty files, big ones, one with holes, what follows the end.
func known(t testing.TB) []byte {
	return tarOf(t, dir("d"), file("d/small", "some bytes"), file("d/empty", ""), file("big", random(1, 3*chunk+17)),
		file("holes", strings.Repeat("\x00", 2*chunk)+"end"), symlink("link", "big"), file("last", random(2, 70<<10)))
}

func unpack(t testing.TB, s *Store, tar []byte) *Unpacked {
	t.Helper()
	u, err := s.Unpack(t.Context(), bytes.NewReader(tar))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(u.Close)
	return u
}

func TestUnpackRecognizesALayer(t *testing.T) {
	both(t, func(t *testing.T, s *Store) {
		in := known(t)
		bottom := add(t, s, "", tarOf(t, file("bottom", "b")))
		l := add(t, s, bottom.ChainID, in)
		u := unpack(t, s, in)
		if u.a != nil || u.DiffID != l.DiffID {
			t.Errorf("a known tar was unpacked: %v as %s; want it recognized as %s", u.a != nil, u.DiffID, l.DiffID)
		}
		placed, err := u.Place(t.Context(), "")
		if err != nil || placed.ChainID != oci.Chain("", l.DiffID) {
			t.Fatalf("placed elsewhere as %v, %v", placed, err)
		}
		tarBack(t, s, placed, in)
		sound(t, s)
	})
}

// Whatever byte makes the difference, the layer is the tar's and no other.
func TestUnpackTakesATarThatPartsFromALayer(t *testing.T) {
	both(t, func(t *testing.T, s *Store) {
		in := known(t)
		add(t, s, "", in)
		cases := map[string][]byte{
			"more at the end":  append(bytes.Clone(in), make([]byte, 512)...),
			"less at the end":  in[:len(in)-512],
			"another ending":   append(bytes.Clone(in[:len(in)-512]), bytes.Repeat([]byte("x"), 512)...),
			"another file":     tarOf(t, dir("d"), file("d/small", "other bytes"), file("d/empty", "")),
			"a short one":      in[:1024],
			"nothing but ends": make([]byte, 1024),
		}
		for _, at := range []int{recognizeBy + 1, len(in) / 3, len(in) / 2, len(in) - 60<<10} {
			b := bytes.Clone(in)
			b[at] ^= 1
			cases[fmt.Sprintf("a flipped bit at %d", at)] = b
		}
		for what, tar := range cases {
			u, err := s.Unpack(t.Context(), bytes.NewReader(tar))
			if errdef.Is(err, errdef.Invalid) {
				continue // a header with a flipped bit
			}
			if err != nil {
				t.Errorf("%s: %v", what, err)
				continue
			}
			if want := oci.DiffID(oci.FromBytes(tar)); u.DiffID != want {
				t.Errorf("%s: unpacked as %s, want %s", what, u.DiffID, want)
			}
			l, err := u.Place(t.Context(), "")
			if err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			tarBack(t, s, l, tar)
		}
		checkStaging(t, s)
		sound(t, s)
	})
}

func FuzzRecognize(f *testing.F) {
	testenv.NeedRoot(f)
	s := openAt(f, testenv.DiskDir(f), Options{})
	in := known(f)
	add(f, s, "", in)
	f.Add(uint32(recognizeBy+5), byte(1), uint32(len(in)))
	f.Add(uint32(len(in)-600), byte(9), uint32(len(in)-512))
	f.Fuzz(func(t *testing.T, at uint32, by byte, size uint32) {
		tar := bytes.Clone(in[:int(size)%(len(in)+1)])
		if len(tar) > 0 {
			tar[int(at)%len(tar)] ^= by
		}
		u, err := s.Unpack(t.Context(), bytes.NewReader(tar))
		if err != nil {
			return // not a tar any more
		}
		defer u.Close()
		if want := oci.DiffID(oci.FromBytes(tar)); u.DiffID != want {
			t.Errorf("unpacked as %s, want %s", u.DiffID, want)
		}
		if same := bytes.Equal(tar, in); same != (u.a == nil) {
			t.Errorf("recognized: %v; the same bytes: %v", u.a == nil, same)
		}
	})
}

func TestAFailingTarIsNotTakenForALayer(t *testing.T) {
	testenv.NeedRoot(t)
	s := openAt(t, testenv.DiskDir(t), Options{})
	in := known(t)
	add(t, s, "", in)
	for range 20 {
		n := rand.IntN(len(in) + 1)
		broken := errors.New("connection reset")
		r := io.MultiReader(bytes.NewReader(in[:n]), failing{broken})
		if u, err := s.Unpack(t.Context(), r); !errors.Is(err, broken) {
			t.Errorf("cut after %d bytes of %d: %v, %v; want the reader's error", n, len(in), u, err)
		}
	}
	checkStaging(t, s)
}

// What waits to be placed goes when it is given up, with its objects.
func TestClosedUnplacedLayerLeavesNothing(t *testing.T) {
	both(t, func(t *testing.T, s *Store) {
		u := unpack(t, s, known(t))
		u.Close()
		if _, err := s.GC(t.Context()); err != nil {
			t.Fatal(err)
		}
		checkEmpty(t, s)
	})
}

func TestPlacedLayerInheritsImpliedDirectories(t *testing.T) {
	both(t, func(t *testing.T, s *Store) {
		tmp := dir("tmp")
		tmp.Mode = 0o1777
		bottom := add(t, s, "", tarOf(t, tmp))
		l, err := unpack(t, s, tarOf(t, file("tmp/x", "x"))).Place(t.Context(), bottom.ChainID)
		if err != nil {
			t.Fatal(err)
		}
		if st := stat(t, look(t, s, l.ChainID), "tmp"); st.Mode&0o7777 != 0o1777 {
			t.Errorf("tmp has mode %o, want 1777", st.Mode&0o7777)
		}
	})
}

// A layer that has lost an object is whole again when its tar comes by.
func TestUnpackBesideADamagedLayer(t *testing.T) {
	testenv.NeedRoot(t)
	s := openAt(t, testenv.DiskDir(t), Options{})
	in := known(t)
	add(t, s, "", in)
	if err := os.Remove(s.objectFile(sumOf(random(1, 3*chunk+17)).name())); err != nil {
		t.Fatal(err)
	}
	if _, err := unpack(t, s, in).Place(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	sound(t, s)
}
