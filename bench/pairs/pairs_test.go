package pairs

import (
	"archive/tar"
	"os"
	"path/filepath"
	"testing"
)

func TestFreshCountsNewContentOnce(t *testing.T) {
	dir := t.TempDir()
	archive := func(version int, files map[string]string) string {
		layer, path := filepath.Join(dir, "layer"), filepath.Join(dir, []string{"", "old", "new"}[version])
		err := writeTar(layer, func(w *tar.Writer) error {
			for name, text := range files {
				if err := file(w, name, []byte(text), when(version)); err != nil {
					return err
				}
			}
			return nil
		})
		if err == nil {
			err = writeArchive(path, tag("x", version), when(version), []string{layer})
		}
		if err != nil {
			t.Fatal(err)
		}
		return path
	}
	old := archive(1, map[string]string{"same": "same", "renamed": "content"})
	later := archive(2, map[string]string{"same": "same", "name": "content", "new": "12345", "again": "12345"})
	if got, err := fresh(old, later); err != nil || got != 5 {
		t.Errorf("fresh = %d, %v; want 5", got, err)
	}
}

func TestWhatIsThereIsNotMadeAgain(t *testing.T) {
	m := maker{dir: t.TempDir()}
	path := filepath.Join(m.dir, "x")
	for n := range 2 {
		err := m.once(path, func(tmp string) error {
			if n > 0 {
				t.Error("made twice")
			}
			return os.WriteFile(tmp, nil, 0o644)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}
