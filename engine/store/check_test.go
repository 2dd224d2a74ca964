package store

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/internal/testenv"
	"github.com/minke-os/minke/oci"
)

// sound fails the test if the checker finds anything.
func sound(t testing.TB, s *Store) Report {
	t.Helper()
	r, err := s.Check(t.Context())
	must(t, err)
	for _, p := range r.Problems {
		t.Errorf("Check: %s", p.What)
	}
	return r
}

// oddities is a layer with everything that a checker could misread.
func oddities(t testing.TB) []byte {
	capability := file("usr/bin/ping", "ping")
	capability.PAXRecords = map[string]string{
		paxXattr + "security.capability":         "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00",
		paxXattr + "user.note":                   "a note",
		paxXattr + "trusted.overlay.opaque":      "y",
		paxXattr + "trusted.overlay.redirect":    "/elsewhere",
		"MINKE.unknown":                          "x",
		paxXattr + "security.nosuchmodule.label": "x",
	}
	return tarOf(t, dir("."), dir("usr"), dir("usr/bin"), dir("usr/lib"), symlink("lib", "usr/lib"), file("lib/through-a-link", "1"),
		capability, hardlink("bin-ping", "usr/bin/ping"), file("usr/bin/empty", ""), hardlink("usr/bin/empty2", "usr/bin/empty"),
		file("implied/by/this", strings.Repeat("x", 300<<10)), file("twice", "first"), file("twice", "second, which wins"),
		file("/absolute", "a"), file("./dotted", "d"), file("gone/.wh.file", ""), file("usr/.wh..wh..opq", ""), file(".wh..wh.plnk", ""), file(".wh.usr", ""),
		entry{tar.Header{Name: "fifo", Typeflag: tar.TypeFifo, Mode: 0o600}, ""},
		entry{tar.Header{Name: "null", Typeflag: tar.TypeChar, Mode: 0o666, Devmajor: 1, Devminor: 3}, ""},
		entry{tar.Header{Name: "setuid", Typeflag: tar.TypeReg, Mode: 0o4755, Uid: 1 << 20, Gid: 7}, "s"},
		symlink("dangling", "../../../nowhere"))
}

func TestCheckFindsNothingInASoundStore(t *testing.T) {
	both(t, func(t *testing.T, s *Store) {
		base := add(t, s, "", testenv.BusyboxTar(t))
		odd := add(t, s, base.ChainID, oddities(t))
		must(t, s.Tag(putImage(t, s, "odd", "", base, odd), ref(t, "odd")))
		r := sound(t, s)
		if r.Layers != 2 || r.Images != 1 || r.Objects == 0 || r.Bytes < base.Size {
			t.Errorf("Check looked at %+v, want two layers, an image and all content", r)
		}
	})
}

func TestCheckFindsWhatIsWrong(t *testing.T) {
	type victim struct {
		s    *Store
		l    Layer
		diff string // its directory
	}
	object := func(t *testing.T, v victim, body string) string {
		t.Helper()
		var path string
		must(t, readToc(v.s.layerPath(v.l.ChainID, "toc"), func([]byte) error { return nil }, func(c content) error {
			if c.digest == sumOf(body) {
				path = v.s.objectFile(c.object)
			}
			return nil
		}))
		return path
	}
	tests := []struct {
		name string
		do   func(t *testing.T, v victim) error
		want string
	}{
		{"object-with-other-bytes", func(t *testing.T, v victim) error { return os.WriteFile(object(t, v, "body"), []byte("bodY"), 0o644) }, "object"},
		{"object-cut-short", func(t *testing.T, v victim) error { return os.Truncate(object(t, v, "body"), 1) }, "object"},
		{"object-missing", func(t *testing.T, v victim) error { return os.Remove(object(t, v, "body")) }, "object"},
		{"toc-missing", func(t *testing.T, v victim) error { return os.Remove(v.s.layerPath(v.l.ChainID, "toc")) }, "toc"},
		{"toc-with-other-bytes", func(t *testing.T, v victim) error { return flip(v.s.layerPath(v.l.ChainID, "toc")) }, "layer"},
		{"file-missing", func(t *testing.T, v victim) error { return os.Remove(v.diff + "/d/file") }, "d/file: it is missing"},
		{"file-that-is-not-in-the-tar", func(t *testing.T, v victim) error { return os.WriteFile(v.diff+"/d/more", nil, 0o644) }, "d/more: it is not in the layer's tar"},
		{"other-mode", func(t *testing.T, v victim) error { return os.Chmod(v.diff+"/d", 0o700) }, "d: its mode is 700, not 755"},
		{"other-owner", func(t *testing.T, v victim) error { return os.Lchown(v.diff+"/link", 5, 0) }, "link: its owner is 5:0, not 0:0"},
		{"other-link", func(t *testing.T, v victim) error {
			os.Remove(v.diff + "/link")
			return os.Symlink("elsewhere", v.diff+"/link")
		}, "link: "},
		{"other-type", func(t *testing.T, v victim) error {
			os.Remove(v.diff + "/d/file")
			return os.Mkdir(v.diff+"/d/file", 0o755)
		}, "d/file: it is of another type"},
		{"hard-link-apart", func(t *testing.T, v victim) error {
			os.Remove(v.diff + "/hard")
			return os.Link(v.diff+"/d/other", v.diff+"/hard")
		}, "hard"},
		{"whiteout-missing", func(t *testing.T, v victim) error { return os.Remove(v.diff + "/deleted") }, "deleted: "},
		{"opacity-missing", func(t *testing.T, v victim) error { return unix.Removexattr(v.diff+"/d", opaqueAttr) }, "d: it must hide what is below"},
		{"content-of-another", func(t *testing.T, v victim) error {
			if v.s.links {
				os.Remove(v.diff + "/d/file")
				return os.WriteFile(v.diff+"/d/file", []byte("body"), 0o644)
			}
			return unix.Setxattr(v.diff+"/d/file", "trusted.overlay.redirect", []byte("/A/bcdefghijklmnopqrstu"), 0)
		}, "d/file: "},
		{"name-of-nothing", func(t *testing.T, v victim) error {
			return v.s.update(func(tb tables) error { return tb.names.Put([]byte("docker.io/library/lost:1"), []byte("sha256:00")) })
		}, "name docker.io/library/lost:1"},
		{"configuration-with-other-bytes", func(t *testing.T, v victim) error {
			id, _, err := v.s.Resolve("victim")
			must(t, err)
			return v.s.update(func(tb tables) error { return tb.configs.Put([]byte(id), []byte("{}")) })
		}, "its configuration is damaged"},
	}
	both(t, func(t *testing.T, s *Store) {
		base := add(t, s, "", testenv.BusyboxTar(t))
		must(t, s.Tag(putImage(t, s, "base", "", base), ref(t, "base")))
		in := tarOf(t, dir("d"), file("d/file", "body"), file("d/other", "other"), file("d/.wh..wh..opq", ""), hardlink("hard", "d/file"),
			symlink("link", "d/file"), file(".wh.deleted", ""))
		for _, tt := range tests {
			t.Run(tt.name, func(t *testing.T) {
				l := add(t, s, base.ChainID, in)
				top := add(t, s, l.ChainID, tarOf(t, file("top", "top")))
				must(t, s.Tag(putImage(t, s, "victim", "", base, l, top), ref(t, "victim")))
				sound(t, s)
				must(t, tt.do(t, victim{s, l, s.layerPath(l.ChainID, "diff")}))

				r, err := s.Check(t.Context())
				must(t, err)
				var all []string
				for _, p := range r.Problems {
					all = append(all, p.What)
				}
				if got := strings.Join(all, "\n"); !strings.Contains(got, tt.want) {
					t.Errorf("Check finds %q, want %q in it", got, tt.want)
				}
				_, err = s.Repair(t.Context(), r, nobody)
				must(t, err)
				sound(t, s)
				if _, _, err := s.Resolve("base"); err != nil {
					t.Errorf("the sound image is gone: %v", err)
				}

				l = add(t, s, base.ChainID, in) // as a pull would
				top = add(t, s, l.ChainID, tarOf(t, file("top", "top")))
				must(t, s.Tag(putImage(t, s, "victim", "", base, l, top), ref(t, "victim")))
				sound(t, s)
				if got := read(t, look(t, s, top.ChainID), "d/file"); got != "body" {
					t.Errorf("mended, d/file = %q", got)
				}
			})
		}
	})
}

func sumOf(s string) sum {
	return sha256.Sum256([]byte(s))
}

func flip(path string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	b[len(b)/2] ^= 0x10
	return os.WriteFile(path, b, 0o600)
}

func TestRepairLeavesWhatRuns(t *testing.T) {
	both(t, func(t *testing.T, s *Store) {
		l := add(t, s, "", tarOf(t, file("file", "body")))
		id := putImage(t, s, "running", "", l)
		must(t, os.Remove(s.layerPath(l.ChainID, "diff/file")))
		r, err := s.Check(t.Context())
		must(t, err)
		_, err = s.Repair(t.Context(), r, func(oci.ImageID) (string, bool) { return "web", true })
		if !errdef.Is(err, errdef.Conflict) || !strings.Contains(err.Error(), "web") {
			t.Errorf("Repair under a running container: %v, want a conflict that names it", err)
		}
		if _, err := s.Image(id); err != nil {
			t.Errorf("the image is gone: %v", err)
		}
	})
}

func TestRepairTakesADamagedObjectThatNoLayerHas(t *testing.T) {
	testenv.NeedRoot(t)
	s := openAt(t, testenv.DiskDir(t), Options{})
	if s.links {
		t.Skip("objects of hard-linked layers are known by tocs alone")
	}
	in := tarOf(t, file("file", "body"))
	l := add(t, s, "", in)
	must(t, os.WriteFile(s.objectFile(sumOf("body").name()), []byte("bodY"), 0o644))
	must(t, s.update(func(tb tables) error { return tb.layers.Delete([]byte(l.ChainID)) }))
	r, err := s.Check(t.Context())
	must(t, err)
	if len(r.Problems) != 1 {
		t.Errorf("Check finds %v, want the object", r.Problems)
	}
	_, err = s.Repair(t.Context(), r, nobody)
	must(t, err)
	l = add(t, s, "", in)
	var out bytes.Buffer
	must(t, s.LayerTar(t.Context(), l.ChainID, &out))
	sound(t, s)
}

func TestCheckFindsNothingWrongBesideWriters(t *testing.T) {
	both(t, func(t *testing.T, s *Store) {
		id := putImage(t, s, "base", "", add(t, s, "", tarOf(t, file("a", "a"))))
		must(t, s.Tag(id, ref(t, "base")))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			for ctx.Err() == nil {
				if err := s.Tag(id, ref(t, "other")); err != nil {
					done <- err
					return
				}
				if _, err := s.Remove("other", RemoveOptions{}, nobody); err != nil {
					done <- err
					return
				}
			}
			done <- nil
		}()
		for range 50 {
			sound(t, s)
		}
		cancel()
		must(t, <-done)
	})
}
