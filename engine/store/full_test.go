package store

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/internal/testenv"
)

// exhaust leaves not a block free below dir.
func exhaust(t testing.TB, dir string) {
	t.Helper()
	f, err := os.Create(dir + "/filler")
	must(t, err)
	defer f.Close()
	for size := 1 << 20; size >= 512; {
		if _, err := f.Write(make([]byte, size)); errors.Is(err, unix.ENOSPC) {
			size /= 2
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Sync(); err != nil && !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
}

func TestAFullDiskRefusesLayersAndLetsThemGo(t *testing.T) {
	both(t, func(t *testing.T, like *Store) {
		dir := disk(t, 24<<20, "mkfs.ext4", "-q", "-m", "0")
		db, err := bbolt.Open(dir+"/minke.db", 0o600, nil)
		must(t, err)
		defer db.Close()
		s, err := Open(dir, db, Options{Links: like.links})
		must(t, err)
		defer s.Close()
		id := putImage(t, s, "keep", "", add(t, s, "", testenv.BusyboxTar(t)))
		must(t, s.Tag(id, ref(t, "keep")))
		for i := range 3 {
			name := fmt.Sprint("drop", i)
			must(t, s.Tag(putImage(t, s, name, "", add(t, s, "", tarOf(t, file(name, strings.Repeat(name, 100<<10))))), ref(t, name)))
		}
		exhaust(t, dir)

		_, err = s.AddLayer(t.Context(), "", bytes.NewReader(tarOf(t, file("more", strings.Repeat("more", 1<<20)))))
		if !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "no space left on device") {
			t.Errorf("AddLayer on a full disk: %v, want no space left on device", err)
		}
		for i := range 3 {
			if _, err := s.Remove(fmt.Sprint("drop", i), RemoveOptions{}, nobody); err != nil {
				t.Errorf("Remove on a full disk: %v", err)
			}
		}
		freed, err := s.GC(t.Context())
		if err != nil || freed < 1<<20 {
			t.Errorf("GC on a full disk frees %d bytes, %v", freed, err)
		}
		checkStaging(t, s)
		sound(t, s)
		if _, err := s.Image(id); err != nil {
			t.Errorf("the image that stays: %v", err)
		}
	})
}

// An endless tar of empty files, or of holes, must not take a device's memory
// and time.
func TestBombsAreRefused(t *testing.T) {
	s := openAt(t, disk(t, 16<<20, "mkfs.ext4", "-q"), Options{})
	bomb := func(w io.Writer) error {
		tw := tar.NewWriter(w)
		h := tar.Header{Typeflag: tar.TypeReg, Name: "zeros", Mode: 0o644, Size: 1 << 20}
		for {
			if err := tw.WriteHeader(&h); err != nil {
				return err
			}
			if _, err := tw.Write(make([]byte, 1<<20)); err != nil {
				return err
			}
		}
	}
	if l, err := s.AddPacked(t.Context(), "", bomb); !errdef.Is(err, errdef.Invalid) || !strings.Contains(err.Error(), "unpacks to more than") {
		t.Errorf("AddLayer of endless zeros = %v, %v", l, err)
	}
	long := file(strings.Repeat("d/", 4000)+"f", "")
	if l, err := s.AddLayer(t.Context(), "", bytes.NewReader(tarOf(t, long))); !errdef.Is(err, errdef.Invalid) {
		t.Errorf("AddLayer of a path of 8 kB = %v, %v", l, err)
	}
	noise := func(w io.Writer) error {
		tw := tar.NewWriter(w)
		for i := range 4000 { // 8 MB of files, which are not on this disk
			body := fmt.Sprintf("%d%s", i, strings.Repeat("x", 4000))
			if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprint(i), Size: int64(len(body))}); err != nil {
				return err
			}
			if _, err := io.WriteString(tw, body); err != nil {
				return err
			}
		}
		return tw.Close()
	}
	if l, err := s.AddPacked(t.Context(), "", noise); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("AddLayer of more than the disk has = %v, %v; want no space left on device", l, err)
	}
	checkStaging(t, s)
}
