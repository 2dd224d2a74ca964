package store

import (
	"bufio"
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/minke-os/minke/internal/testenv"
)

// Whatever the bytes, AddLayer writes nothing outside the store, and what it
// takes it gives back.
func FuzzAddLayer(f *testing.F) {
	testenv.NeedRoot(f)
	f.Add(tarOf(f, dir("a"), file("a/b", "c"), symlink("l", "a"), file("l/d", "e"), hardlink("h", "a/b")))
	f.Add(tarOf(f, file("a/.wh.b", ""), file(".wh..wh..opq", ""), symlink("x", "/"), file("x/y", "z")))
	f.Add([]byte{})
	base := testenv.DiskDir(f)
	s := openAt(f, filepath.Join(mkdir(f, base, "root")), Options{MaxLayer: 1 << 20})
	f.Fuzz(func(t *testing.T, in []byte) {
		l, err := s.AddLayer(t.Context(), "", bytes.NewReader(in))
		if err == nil {
			tarBack(t, s, l, in)
		}
		checkStaging(t, s)
		if names, err := os.ReadDir(base); err != nil || len(names) != 1 {
			t.Fatalf("beside the store there is %v, %v", names, err)
		}
	})
}

func mkdir(t testing.TB, base, name string) string {
	t.Helper()
	p := filepath.Join(base, name)
	if err := os.Mkdir(p, 0o755); err != nil {
		t.Fatal(err)
	}
	return p
}

func FuzzToc(f *testing.F) {
	f.Add([]byte("S\x03abcE"))
	f.Add([]byte("F\x05" + strings.Repeat("d", 32) + "\x16" + strings.Repeat("n", 22) + "E"))
	f.Fuzz(func(t *testing.T, in []byte) {
		err := decodeToc(bufio.NewReader(bytes.NewReader(in)),
			func(p []byte) error {
				if len(p) > maxSegment {
					t.Errorf("segment of %d bytes", len(p))
				}
				return nil
			},
			func(c content) error {
				if c.size < 0 || len(c.object) > 255 {
					t.Errorf("content %+v", c)
				}
				return nil
			})
		if errors.Is(err, fs.ErrNotExist) {
			t.Error(err)
		}
	})
}
