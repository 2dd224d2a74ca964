package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/oci"
)

func nobody(oci.ImageID) (string, bool) { return "", false }

func TestGCTakesWhatNobodyNeeds(t *testing.T) {
	both(t, func(t *testing.T, s *Store) {
		shared := file("shared", strings.Repeat("s", 9000))
		keep := add(t, s, "", tarOf(t, shared, file("mine", "k")))
		drop := add(t, s, "", tarOf(t, shared, file("own", strings.Repeat("own", 9000))))
		leased := add(t, s, drop.ChainID, tarOf(t, file("leased", "l")))
		must(t, s.Tag(putImage(t, s, "keep", "", keep), ref(t, "keep")))
		must(t, s.Tag(putImage(t, s, "drop", "", drop), ref(t, "drop")))
		release, err := s.Lease(leased.ChainID)
		must(t, err)

		_, err = s.Remove("drop", RemoveOptions{}, nobody)
		must(t, err)
		if n, err := s.GC(t.Context()); n != 0 || err != nil {
			t.Errorf("GC = %d, %v while the layer is below a leased one; want nothing", n, err)
		}
		release()
		before, err := s.Usage()
		must(t, err)
		n, err := s.GC(t.Context())
		must(t, err)
		after, err := s.Usage()
		must(t, err)
		if n < 27000 || before-after != n {
			t.Errorf("GC says %d bytes, usage went from %d to %d", n, before, after)
		}
		for _, l := range []Layer{drop, leased} {
			if _, err := s.Layer(l.ChainID); !errdef.Is(err, errdef.NotFound) {
				t.Errorf("Layer = %v after GC, want not found", err)
			}
		}
		root := look(t, s, keep.ChainID)
		if read(t, root, "mine") != "k" || len(read(t, root, "shared")) != 9000 {
			t.Errorf("GC took what another image needs")
		}
		checkStaging(t, s)
	})
}

func TestGCTakesObjectsOfAnEarlierLayout(t *testing.T) {
	both(t, func(t *testing.T, s *Store) {
		old := s.path("files", "A")
		must(t, os.Mkdir(old, 0o700))
		must(t, os.WriteFile(old+"/object", nil, 0o600))
		_, err := s.GC(t.Context())
		must(t, err)
		if _, err := os.Lstat(old); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is there after GC: %v", old, err)
		}
	})
}

func TestLeaseKeepsWhatIsAddedUnderIt(t *testing.T) {
	both(t, func(t *testing.T, s *Store) {
		release, err := s.Lease("")
		must(t, err)
		l := add(t, s, "", tarOf(t, file("a", "a")))
		_, err = s.GC(t.Context())
		must(t, err)
		putImage(t, s, "image", "", l)
		release()
		_, err = s.GC(t.Context())
		must(t, err)
		if got := read(t, look(t, s, l.ChainID), "a"); got != "a" {
			t.Errorf("a = %q", got)
		}
	})
}

// Adding and collecting at once must not lose an object, whichever is first.
func TestGCRunsBesideAdding(t *testing.T) {
	both(t, func(t *testing.T, s *Store) {
		ctx, stop := context.WithCancel(t.Context())
		var collecting sync.WaitGroup
		collecting.Go(func() {
			for ctx.Err() == nil {
				if _, err := s.GC(context.Background()); err != nil {
					t.Errorf("GC: %v", err)
				}
			}
		})
		var adding sync.WaitGroup
		for w := range 2 {
			adding.Go(func() {
				for i := range 12 {
					var entries []entry
					for range 10 { // from few contents, so that layers come and go with the same
						n := rand.IntN(12)
						entries = append(entries, file(fmt.Sprintf("f%d", n), strings.Repeat(fmt.Sprint(n), 100)))
					}
					entries = append(entries, file("who", fmt.Sprint(w, i)))
					in := tarOf(t, entries...)
					release, _ := s.Lease("")
					l, err := s.AddLayer(context.Background(), "", bytes.NewReader(in))
					if err != nil {
						t.Errorf("AddLayer: %v", err)
					} else {
						tarBack(t, s, l, in)
					}
					release()
				}
			})
		}
		adding.Wait()
		stop()
		collecting.Wait()
	})
}

func TestSharedContentIsFoundInWhateverLayer(t *testing.T) {
	both(t, func(t *testing.T, s *Store) {
		base := add(t, s, "", tarOf(t, file("base", strings.Repeat("b", 1000))))
		// A rebuild: the same content in another layer, beside new content.
		v1 := add(t, s, base.ChainID, tarOf(t, file("lib", strings.Repeat("l", 100)), file("app", strings.Repeat("1", 10))))
		v2 := add(t, s, base.ChainID, tarOf(t, file("lib", strings.Repeat("l", 100)), file("app", strings.Repeat("2", 20))))
		other := add(t, s, "", tarOf(t, file("other", "o"), file("copy", "o")))
		a, b, c := putImage(t, s, "a", "", base, v1), putImage(t, s, "b", "", base, v2), putImage(t, s, "c", "", other)
		got, err := s.Shared(map[oci.ImageID]oci.ChainID{a: v1.ChainID, b: v2.ChainID, c: other.ChainID})
		must(t, err)
		if got[a] != 1100 || got[b] != 1100 || got[c] != 0 {
			t.Errorf("shared are %d, %d and %d bytes; want 1100, 1100 and 0", got[a], got[b], got[c])
		}
	})
}
