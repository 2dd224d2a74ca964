package tarfs

import (
	"archive/tar"
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/internal/testenv"
	"github.com/minke-os/minke/internal/userns"
)

func rootOf(t testing.TB, dir string) *os.Root {
	t.Helper()
	r, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

func tarOf(t testing.TB, entries ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range entries {
		data := ""
		if h.Typeflag == tar.TypeReg {
			data = "data of " + h.Name
			h.Size = int64(len(data))
		}
		if h.Mode == 0 {
			h.Mode = 0o755
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		w.Write([]byte(data))
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestHostileNamesStayInside(t *testing.T) {
	reg := func(name string) tar.Header { return tar.Header{Name: name, Typeflag: tar.TypeReg} }
	link := func(name, to string) tar.Header {
		return tar.Header{Name: name, Linkname: to, Typeflag: tar.TypeSymlink}
	}
	tests := []struct {
		name    string
		entries []tar.Header
		refused bool
		inside  string // a file that must be there afterwards
	}{
		{"dots", []tar.Header{reg("../outside")}, true, ""},
		{"dots-within", []tar.Header{reg("a/../../outside")}, true, ""},
		{"absolute-is-below-the-root", []tar.Header{reg("/outside")}, false, "outside"},
		{"through-a-link-that-was-planted", []tar.Header{link("l", ".."), reg("l/outside")}, true, ""},
		{"through-an-absolute-link", []tar.Header{link("l", "/"), reg("l/outside")}, true, ""},
		{"over-a-link", []tar.Header{link("l", "../outside"), reg("l")}, false, "l"},
		{"hard-link-to-the-outside", []tar.Header{{Name: "h", Linkname: "../secret", Typeflag: tar.TypeLink}}, true, ""},
		{"hard-link-through-a-link", []tar.Header{link("l", ".."), {Name: "h", Linkname: "l/secret", Typeflag: tar.TypeLink}}, true, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			parent := t.TempDir()
			if err := os.WriteFile(filepath.Join(parent, "secret"), []byte("secret"), 0o600); err != nil {
				t.Fatal(err)
			}
			dir := filepath.Join(parent, "root")
			if err := os.Mkdir(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			for i := range tt.entries {
				tt.entries[i].Uid, tt.entries[i].Gid = os.Getuid(), os.Getgid()
			}
			err := Extract(bytes.NewReader(tarOf(t, tt.entries...)), rootOf(t, dir), Options{})
			if (err != nil) != tt.refused {
				t.Errorf("Extract = %v, refused: %v wanted", err, tt.refused)
			}
			if _, err := os.Lstat(filepath.Join(parent, "outside")); err == nil {
				t.Error("a file was made outside of the root")
			}
			if tt.inside != "" {
				if fi, err := os.Lstat(filepath.Join(dir, tt.inside)); err != nil || !fi.Mode().IsRegular() {
					t.Errorf("%s: %v, want a file", tt.inside, err)
				}
			}
		})
	}
}

func TestRoundTripKeepsEverything(t *testing.T) {
	testenv.NeedRoot(t)
	from, to := t.TempDir(), t.TempDir()
	past := time.Date(2001, 2, 3, 4, 5, 6, 0, time.UTC)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.MkdirAll(filepath.Join(from, "d/sub"), 0o750))
	must(os.WriteFile(filepath.Join(from, "d/f"), []byte("content"), 0o600))
	must(os.Chmod(filepath.Join(from, "d/f"), 0o640|os.ModeSetuid))
	must(os.Lchown(filepath.Join(from, "d/f"), 1000, 1001))
	must(os.Chmod(filepath.Join(from, "d/f"), 0o640|os.ModeSetuid))
	must(os.Link(filepath.Join(from, "d/f"), filepath.Join(from, "d/hard")))
	must(os.Symlink("../nowhere", filepath.Join(from, "d/soft")))
	must(os.Chtimes(filepath.Join(from, "d/f"), past, past))
	must(os.Chtimes(filepath.Join(from, "d/sub"), past, past))

	var b bytes.Buffer
	must(Write(&b, rootOf(t, from), "d", "d", userns.Mapping{}))
	must(Extract(&b, rootOf(t, to), Options{}))
	want, got := listing(t, from), listing(t, to)
	if got != want {
		t.Errorf("after the trip:\n%s\nbefore:\n%s", got, want)
	}
	a, err := os.Stat(filepath.Join(to, "d/f"))
	must(err)
	h, err := os.Stat(filepath.Join(to, "d/hard"))
	must(err)
	if !os.SameFile(a, h) {
		t.Error("two names of one file became two files")
	}
}

// listing is all of a tree that matters, as text.
func listing(t *testing.T, dir string) string {
	t.Helper()
	var out bytes.Buffer
	if err := Write(&out, rootOf(t, dir), "d", "d", userns.Mapping{}); err != nil {
		t.Fatal(err)
	}
	var found []string
	for r := tar.NewReader(&out); ; {
		h, err := r.Next()
		if err != nil {
			break
		}
		fi := h.FileInfo()
		when := ""
		if !fi.IsDir() && fi.Mode()&fs.ModeSymlink == 0 || h.Name == "d/sub/" {
			when = h.ModTime.UTC().String()
		}
		found = append(found, strings.Join([]string{h.Name, fi.Mode().String(), when}, " "))
	}
	slices.Sort(found)
	return strings.Join(found, "\n")
}

func TestKeepTypeRefusesADirectoryInPlaceOfAFile(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "x"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	archive := tarOf(t, tar.Header{Name: "x", Typeflag: tar.TypeDir, Uid: os.Getuid(), Gid: os.Getgid()})
	if err := Extract(bytes.NewReader(archive), rootOf(t, dir), Options{KeepType: true}); err == nil {
		t.Error("a file gave way to a directory")
	}
	if err := Extract(bytes.NewReader(archive), rootOf(t, dir), Options{}); err != nil {
		t.Errorf("without KeepType: %v", err)
	}
}

func TestWhatIsNoTarIsInvalid(t *testing.T) {
	if err := Extract(strings.NewReader(strings.Repeat("junk", 1000)), rootOf(t, t.TempDir()), Options{}); !errdef.Is(err, errdef.Invalid) {
		t.Errorf("Extract = %v, want kind %v", err, errdef.Invalid)
	}
}

func FuzzExtract(f *testing.F) {
	f.Add(tarOf(f, tar.Header{Name: "a/b", Typeflag: tar.TypeReg}, tar.Header{Name: "l", Linkname: "..", Typeflag: tar.TypeSymlink}, tar.Header{Name: "l/x", Typeflag: tar.TypeReg}))
	f.Fuzz(func(t *testing.T, data []byte) {
		parent := t.TempDir()
		dir := filepath.Join(parent, "root")
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		Extract(bytes.NewReader(data), rootOf(t, dir), Options{Owner: &Owner{os.Getuid(), os.Getgid()}})
		if names, err := os.ReadDir(parent); err != nil || len(names) != 1 {
			t.Errorf("beside the root: %v, %v", names, err)
		}
	})
}
