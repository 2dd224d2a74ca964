package store

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/minke-os/minke/internal/overlay"
	"github.com/minke-os/minke/internal/testenv"
	"github.com/minke-os/minke/oci"
)

// A container is a mount with an upper directory.
type container struct {
	mount overlay.Mount
	root  *os.Root
	path  string
}

func newContainer(t *testing.T, s *Store, top oci.ChainID) container {
	t.Helper()
	m, err := s.Mount(top)
	if err != nil {
		t.Fatal(err)
	}
	base := testenv.DiskDir(t)
	m.Upper, m.Work = filepath.Join(base, "upper"), filepath.Join(base, "work")
	for _, d := range []string{m.Upper, m.Work} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
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
	return container{m, root, overlay.Path(f)}
}

func must(t testing.TB, errs ...error) {
	t.Helper()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
}

// move is mv: without redirects the kernel leaves it to programs to copy.
func move(r *os.Root, from, to string) error {
	err := r.Rename(from, to)
	if !errors.Is(err, unix.EXDEV) {
		return err
	}
	err = fs.WalkDir(r.FS(), from, func(p string, d fs.DirEntry, err error) error {
		dst := to + strings.TrimPrefix(p, from)
		if err != nil || d.IsDir() {
			return errors.Join(err, r.Mkdir(dst, 0o755))
		}
		b, err := r.ReadFile(p)
		return errors.Join(err, r.WriteFile(dst, b, 0o644))
	})
	return errors.Join(err, r.RemoveAll(from))
}

func TestCommitTakesWhatAContainerChanged(t *testing.T) {
	both(t, func(t *testing.T, s *Store) {
		base := add(t, s, "", tarOf(t,
			dir("etc"), file("etc/conf", "old"), file("etc/same", "same"), file("etc/mode", "mode"), file("etc/gone", "gone"),
			dir("ren"), dir("ren/sub"), file("ren/sub/f", "renamed"), dir("del"), file("del/f", "f"),
			dir("opq"), file("opq/f", "f"), file("was-file", "f"), dir("untouched")))
		c := newContainer(t, s, base.ChainID)
		r := c.root
		must(t, r.WriteFile("etc/conf", []byte("newer"), 0o644), r.Remove("etc/gone"), r.Chmod("etc/mode", 0o600),
			move(r, "ren", "moved"), r.RemoveAll("del"), r.RemoveAll("opq"), r.Mkdir("opq", 0o755), r.WriteFile("opq/n", []byte("n"), 0o600),
			r.Remove("was-file"), r.Mkdir("was-file", 0o700), r.WriteFile("was-file/in", []byte("in"), 0o600),
			r.WriteFile("new", []byte("new"), 0o600), r.Link("new", "new-link"), r.Symlink("nowhere", "sym"),
			r.Mkdir("etc/.wh-like", 0o755))
		must(t, unix.Mknod(c.path+"/sock", unix.S_IFSOCK|0o600, 0))
		// A copy-up without a change is not a change.
		f, err := r.OpenFile("etc/same", os.O_RDWR, 0)
		must(t, err, f.Close())

		changes, err := s.Changes(c.mount.Upper, c.mount)
		must(t, err)
		var got []string
		for _, ch := range changes {
			got = append(got, "CAD"[ch.Kind:ch.Kind+1]+" "+ch.Path)
		}
		want := []string{
			"D /del", "C /etc", "A /etc/.wh-like", "C /etc/conf", "D /etc/gone", "C /etc/mode",
			"A /moved", "A /moved/sub", "A /moved/sub/f", "A /new", "A /new-link",
			"C /opq", "D /opq/f", "A /opq/n", "D /ren", "A /sym", "C /was-file", "A /was-file/in",
		}
		if !slices.Equal(got, want) {
			t.Errorf("Changes = %q\nwant      %q", got, want)
		}

		l, err := s.Commit(t.Context(), base.ChainID, c.mount.Upper, c.mount)
		must(t, err)
		root := look(t, s, l.ChainID)
		var a, b bytes.Buffer
		must(t, s.WriteTar(t.Context(), r, &a), s.WriteTar(t.Context(), root, &b))
		if !bytes.Equal(a.Bytes(), b.Bytes()) {
			t.Errorf("the committed image's tar differs from the container's: %d and %d bytes", b.Len(), a.Len())
		}
		if a, b := stat(t, root, "new"), stat(t, root, "new-link"); a.Ino != b.Ino {
			t.Errorf("new-link is inode %d, want that of new, %d", b.Ino, a.Ino)
		}
		if got := read(t, root, "etc/mode"); got != "mode" {
			t.Errorf("etc/mode, of which only metadata was in the upper directory, = %q", got)
		}
		again, err := s.Commit(t.Context(), base.ChainID, c.mount.Upper, c.mount)
		if err != nil || again.ChainID != l.ChainID {
			t.Errorf("second Commit = %s, %v; want %s as the first", again.ChainID, err, l.ChainID)
		}
	})
}

func TestCommitOfNothingIsAnEmptyLayer(t *testing.T) {
	both(t, func(t *testing.T, s *Store) {
		base := add(t, s, "", tarOf(t, file("a", "a")))
		c := newContainer(t, s, base.ChainID)
		l, err := s.Commit(t.Context(), base.ChainID, c.mount.Upper, c.mount)
		must(t, err)
		if l.Size != 0 {
			t.Errorf("size = %d, want 0", l.Size)
		}
		if got := read(t, look(t, s, l.ChainID), "a"); got != "a" {
			t.Errorf("a = %q", got)
		}
	})
}

// The kernel marks a renamed directory with a redirect, and the name it gets
// may have been that of another.
func TestRenamedDirectoryReplacesAnother(t *testing.T) {
	both(t, func(t *testing.T, s *Store) {
		base := add(t, s, "", tarOf(t, dir("a"), file("a/f", "from a"), file("a/g", "from a"), dir("b"), file("b/f", "from b"), file("b/h", "from b")))
		c := newContainer(t, s, base.ChainID)
		must(t, c.root.RemoveAll("b"), move(c.root, "a", "b"))
		if !has(filepath.Join(c.mount.Upper, "b"), "trusted.overlay.redirect") && len(c.mount.Data) > 0 {
			t.Errorf("the kernel made no redirect, so this test shows nothing")
		}
		l, err := s.Commit(t.Context(), base.ChainID, c.mount.Upper, c.mount)
		must(t, err)
		root := look(t, s, l.ChainID)
		if f, g := read(t, root, "b/f"), read(t, root, "b/g"); f != "from a" || g != "from a" {
			t.Errorf("b/f = %q, b/g = %q; want both from a", f, g)
		}
		gone(t, root, "b/h")
		gone(t, root, "a")
	})
}

func TestExportOfALayerHasNoFalseHardLinks(t *testing.T) {
	both(t, func(t *testing.T, s *Store) {
		l := add(t, s, "", tarOf(t, file("a", "same"), file("b", "same")))
		var out bytes.Buffer
		must(t, s.WriteTar(t.Context(), look(t, s, l.ChainID), &out))
		if n := strings.Count(out.String(), "same"); n != 2 {
			t.Errorf("the tar has the content of two equal files %d times", n)
		}
	})
}
