package buildcache

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/minke-os/minke/internal/errdef"
)

func open(t *testing.T, root string) *Cache {
	t.Helper()
	c, err := Open(root)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func use(t *testing.T, c *Cache, w Want) (string, func()) {
	t.Helper()
	dir, release, err := c.Use(t.Context(), w)
	if err != nil {
		t.Fatalf("Use(%+v): %v", w, err)
	}
	return dir, release
}

func TestDirectoriesAreFoundAgain(t *testing.T) {
	root := t.TempDir()
	filled := 0
	w := Want{ID: "/root/.cache", Mode: 0o750, UID: os.Getuid(), GID: os.Getgid(), Fill: func(dir string) error {
		filled++
		return os.WriteFile(filepath.Join(dir, "base"), []byte("x"), 0o644)
	}}
	dir, release := use(t, open(t, root), w)
	if err := os.WriteFile(filepath.Join(dir, "made"), make([]byte, 10000), 0o644); err != nil {
		t.Fatal(err)
	}
	release()
	c := open(t, root) // as after a restart
	again, release := use(t, c, w)
	defer release()
	if fi, err := os.Stat(filepath.Join(again, "made")); again != dir || err != nil || fi.Size() != 10000 || filled != 1 {
		t.Errorf("second use: %s, %v, filled %d times; want %s with its file, filled once", again, err, filled, dir)
	}
	if fi, err := os.Stat(dir); err != nil || fi.Mode().Perm() != 0o750 {
		t.Errorf("mode of the directory = %v, %v", fi.Mode(), err)
	}
	list, err := c.List()
	if err != nil || len(list) != 1 || list[0].ID != w.ID || list[0].Uses != 2 || !list[0].InUse || list[0].Size < 10000 {
		t.Errorf("List = %+v, %v", list, err)
	}
}

func TestSharing(t *testing.T) {
	c := open(t, t.TempDir())
	a, releaseA := use(t, c, Want{ID: "x"})
	b, releaseB := use(t, c, Want{ID: "x"})
	if a != b {
		t.Errorf("shared: %s and %s", a, b)
	}
	other, releaseOther := use(t, c, Want{ID: "x", Sharing: Private})
	if other == a {
		t.Errorf("private: both have %s", a)
	}
	releaseOther()
	got := make(chan string)
	go func() {
		dir, release, err := c.Use(context.Background(), Want{ID: "x", Sharing: Locked})
		if err != nil {
			dir = err.Error()
		} else {
			release()
		}
		got <- dir
	}()
	releaseA()
	select {
	case dir := <-got:
		t.Errorf("locked got %s while another build uses it", dir)
	default:
	}
	releaseB()
	if dir := <-got; dir != a {
		t.Errorf("locked got %s, want %s", dir, a)
	}
	_, release := use(t, c, Want{ID: "x", Sharing: Locked})
	defer release()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := c.Use(ctx, Want{ID: "x"}); !errors.Is(err, context.Canceled) {
		t.Errorf("Use of what is locked = %v after the build was cancelled", err)
	}
}

func TestRemoveTakesWhatNobodyUses(t *testing.T) {
	root := t.TempDir()
	c := open(t, root)
	_, release := use(t, c, Want{ID: "x"})
	list, _ := c.List()
	if err := c.Remove(list[0].Key); !errdef.Is(err, errdef.Busy) {
		t.Errorf("Remove of a directory in use = %v", err)
	}
	release()
	if err := c.Remove(list[0].Key); err != nil {
		t.Errorf("Remove: %v", err)
	}
	if left, _ := os.ReadDir(root); len(left) != 0 {
		t.Errorf("%v is left", left)
	}
}

func TestOpenClearsWhatACrashLeft(t *testing.T) {
	root := t.TempDir()
	for _, name := range []string{"new-1/data", "gone-2/data"} {
		if err := os.MkdirAll(filepath.Join(root, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	open(t, root)
	if left, _ := os.ReadDir(root); len(left) != 0 {
		t.Errorf("%v is left", left)
	}
}

func TestAFailedFillLeavesNothing(t *testing.T) {
	root := t.TempDir()
	c := open(t, root)
	_, _, err := c.Use(t.Context(), Want{ID: "x", Fill: func(string) error { return os.ErrPermission }})
	if left, _ := os.ReadDir(root); !errors.Is(err, os.ErrPermission) || len(left) != 0 {
		t.Errorf("Use = %v and leaves %v", err, left)
	}
	use(t, c, Want{ID: "x", Sharing: Locked}) // nobody uses it
}
