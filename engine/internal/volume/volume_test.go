package volume

import (
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"go.etcd.io/bbolt"

	"github.com/minke-os/minke/internal/errdef"
)

func open(t *testing.T) *Store {
	t.Helper()
	dir := t.TempDir()
	db, err := bbolt.Open(filepath.Join(dir, "db"), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	s, err := Open(Options{Root: filepath.Join(dir, "volumes"), DB: db})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func create(t *testing.T, s *Store, name string) {
	t.Helper()
	if _, err := s.Create(Volume{Name: name}); err != nil {
		t.Fatal(err)
	}
}

func TestBadNamesAndOptionsAreRefused(t *testing.T) {
	s := open(t)
	for _, v := range []Volume{{Name: ""}, {Name: "a"}, {Name: "../x"}, {Name: "a/b"}, {Name: "ok", Options: map[string]string{"colour": "red"}}} {
		if _, err := s.Create(v); !errdef.Is(err, errdef.Invalid) {
			t.Errorf("Create(%+v) = %v, want an Invalid error", v, err)
		}
	}
	if all, _ := s.List(); len(all) != 0 {
		t.Errorf("refused volumes are listed: %v", all)
	}
}

func TestTwoContainersThatStartTogetherCopyUpOnce(t *testing.T) {
	s := open(t)
	create(t, s, "data")
	var calls int
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			err := s.CopyUp("data", func(dir string) error {
				calls++ // guarded by the store, which the race detector checks
				return os.WriteFile(filepath.Join(dir, "seed"), nil, 0o600)
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if calls != 1 {
		t.Errorf("content was copied %d times, want once", calls)
	}
}

func TestFailedCopyUpLeavesNothingAndIsTriedAgain(t *testing.T) {
	s := open(t)
	create(t, s, "data")
	broken := errors.New("broken")
	err := s.CopyUp("data", func(dir string) error {
		os.WriteFile(filepath.Join(dir, "half"), nil, 0o600)
		return broken
	})
	if !errors.Is(err, broken) {
		t.Fatalf("CopyUp = %v, want %v", err, broken)
	}
	if left, _ := os.ReadDir(s.Path("data")); len(left) != 0 {
		t.Errorf("half a copy is left: %v", left)
	}
	again := false
	if err := s.CopyUp("data", func(string) error { again = true; return nil }); err != nil || !again {
		t.Errorf("second CopyUp: called %v, %v; want a new try", again, err)
	}
}

func TestRemovedVolumeIsGoneWithItsData(t *testing.T) {
	s := open(t)
	create(t, s, "data")
	if err := s.Remove("data"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get("data"); !errdef.Is(err, errdef.NotFound) {
		t.Errorf("Get after Remove = %v, want NotFound", err)
	}
	if _, err := os.Stat(s.Path("data")); !os.IsNotExist(err) {
		t.Errorf("data is still there: %v", err)
	}
}

func TestVolumeThatStandsForAHostDirectory(t *testing.T) {
	s, host := open(t), t.TempDir()
	options := map[string]string{"type": "none", "o": "bind", "device": host}
	if _, err := s.Create(Volume{Name: "bound", Options: options}); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(s.Path("bound"), "f"), []byte("data"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove("bound"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(host, "f")); err != nil {
		t.Errorf("the directory of the host went with the volume: %v", err)
	}
}

func TestALinkThatACrashLeftLeadsNoNewVolumeAway(t *testing.T) {
	s, host := open(t), t.TempDir()
	if err := os.MkdirAll(filepath.Dir(s.Path("new")), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(host, s.Path("new")); err != nil {
		t.Fatal(err)
	}
	create(t, s, "new")
	if fi, err := os.Lstat(s.Path("new")); err != nil || !fi.IsDir() {
		t.Errorf("the new volume's data is %v, %v; want a directory of its own", fi, err)
	}
}
