package store

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.etcd.io/bbolt"

	"github.com/minke-os/minke/internal/overlay"
	"github.com/minke-os/minke/internal/testenv"
	"github.com/minke-os/minke/oci"
)

// both runs a test with metadata inodes and with hard links: what holds for
// one must hold for the other.
func both(t *testing.T, f func(t *testing.T, s *Store)) {
	testenv.NeedRoot(t)
	for _, links := range []bool{false, true} {
		name := "metadata-inodes"
		if links {
			name = "hard-links"
		}
		t.Run(name, func(t *testing.T) {
			s := openAt(t, testenv.DiskDir(t), Options{Links: links})
			if s.links != links {
				t.Skip("this kernel has no data-only layers (Linux 6.5 or newer)")
			}
			f(t, s)
			checkStaging(t, s)
		})
	}
}

func openAt(t testing.TB, dir string, o Options) *Store {
	t.Helper()
	db, err := bbolt.Open(filepath.Join(dir, "minke.db"), 0o600, &bbolt.Options{Timeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	s, err := Open(dir, db, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func checkStaging(t *testing.T, s *Store) {
	t.Helper()
	left, err := os.ReadDir(s.path("staging"))
	if err != nil || len(left) > 0 {
		t.Errorf("staging holds %v, %v; want nothing", left, err)
	}
	if len(s.pins)+len(s.pinSets) > 0 {
		t.Errorf("objects %v are still pinned, and those in %d sets", s.pins, len(s.pinSets))
	}
}

// An entry is one tar entry; its body is a regular file's content.
type entry struct {
	tar.Header
	body string
}

func file(name, body string) entry {
	return entry{tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, ModTime: time.Unix(1700000000, 0)}, body}
}

func dir(name string) entry {
	return entry{tar.Header{Name: name + "/", Typeflag: tar.TypeDir, Mode: 0o755, ModTime: time.Unix(1600000000, 0)}, ""}
}

func symlink(name, target string) entry {
	return entry{tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: target, Mode: 0o777}, ""}
}

func hardlink(name, target string) entry {
	return entry{tar.Header{Name: name, Typeflag: tar.TypeLink, Linkname: target, Mode: 0o644}, ""}
}

func tarOf(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, e := range entries {
		h := e.Header
		h.Size = int64(len(e.body))
		if err := w.WriteHeader(&h); err != nil {
			t.Fatalf("%s: %v", h.Name, err)
		}
		if _, err := io.WriteString(w, e.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func add(t testing.TB, s *Store, parent oci.ChainID, tar []byte) Layer {
	t.Helper()
	l, err := s.AddLayer(t.Context(), parent, bytes.NewReader(tar))
	if err != nil {
		t.Fatal(err)
	}
	if want := oci.DiffID(oci.FromBytes(tar)); l.DiffID != want {
		t.Errorf("DiffID = %s, want %s", l.DiffID, want)
	}
	return l
}

// look opens a view of a stack of layers.
func look(t testing.TB, s *Store, top oci.ChainID) *os.Root {
	t.Helper()
	m, err := s.Mount(top)
	if err != nil {
		t.Fatal(err)
	}
	return open(t, m)
}

func open(t testing.TB, m overlay.Mount) *os.Root {
	t.Helper()
	f, err := m.Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	root, err := os.OpenRoot(overlay.Path(f))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	return root
}

func read(t testing.TB, root *os.Root, name string) string {
	t.Helper()
	b, err := root.ReadFile(name)
	if err != nil {
		t.Errorf("read %s: %v", name, err)
	}
	return string(b)
}

// putImage records an image of the layers with a configuration that says what.
func putImage(t testing.TB, s *Store, what string, parent oci.ImageID, layers ...Layer) oci.ImageID {
	t.Helper()
	diffs := []string{}
	for _, l := range layers {
		diffs = append(diffs, string(l.DiffID))
	}
	config, err := json.Marshal(map[string]any{
		"architecture": "amd64", "os": "linux", "author": what,
		"rootfs": map[string]any{"type": "layers", "diff_ids": diffs},
	})
	if err != nil {
		t.Fatal(err)
	}
	id, err := s.PutImage(t.Context(), config, parent)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func ref(t testing.TB, s string) oci.Reference {
	t.Helper()
	r, err := oci.ParseReference(s)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestLayerShowsItsFilesAndGivesItsTarBack(t *testing.T) {
	both(t, func(t *testing.T, s *Store) {
		tar := testenv.BusyboxTar(t)
		l := add(t, s, "", tar)
		root := look(t, s, l.ChainID)
		want, err := os.ReadFile(testenv.Busybox(t))
		if err != nil {
			t.Fatal(err)
		}
		if got := read(t, root, "bin/sh"); got != string(want) {
			t.Errorf("bin/sh has %d bytes, want busybox's %d", len(got), len(want))
		}
		if got := read(t, root, "etc/passwd"); !strings.HasPrefix(got, "root:x:0:0:") {
			t.Errorf("etc/passwd = %q", got)
		}
		var out bytes.Buffer
		if err := s.LayerTar(t.Context(), l.ChainID, &out); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(out.Bytes(), tar) {
			t.Errorf("LayerTar gives %d bytes that differ from the %d added", out.Len(), len(tar))
		}
	})
}

func TestImagesAreFoundByNameAndID(t *testing.T) {
	both(t, func(t *testing.T, s *Store) {
		l := add(t, s, "", tarOf(t, file("a", "1")))
		id := putImage(t, s, "one", "", l)
		if err := s.Tag(id, ref(t, "redis:7")); err != nil {
			t.Fatal(err)
		}
		digest := "redis@" + oci.Prefix + strings.Repeat("ab", 32)
		if err := s.Tag(id, ref(t, digest)); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"redis:7", "docker.io/library/redis:7", digest, string(id), id.Hex(), id.Short(), id.Hex()[:1]} {
			got, _, err := s.Resolve(name)
			if err != nil || got != id {
				t.Errorf("Resolve(%q) = %s, %v; want %s", name, got, err, id)
			}
		}
		img, err := s.Image(id)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(img.Tags, []oci.Reference{ref(t, "redis:7")}) || !slices.Equal(img.Digests, []oci.Reference{ref(t, digest)}) {
			t.Errorf("image has tags %v and digests %v", img.Tags, img.Digests)
		}
		if _, _, err := s.Resolve("redis"); err == nil || err.Error() != "No such image: redis:latest" {
			t.Errorf("Resolve(redis) fails with %v, want No such image: redis:latest", err)
		}
	})
}
