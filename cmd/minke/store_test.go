//go:build linux

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/minke-os/minke/internal/testdaemon"
)

// busyboxObject is where the daemon has the content of its busybox.
func busyboxObject(t *testing.T, d *testdaemon.Daemon) string {
	t.Helper()
	all, err := filepath.Glob(filepath.Join(d.Dir, "data/files/*/*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range all {
		if st, err := os.Stat(path); err == nil && st.Size() > 500<<10 {
			return path
		}
	}
	t.Fatalf("no object has the size of a busybox among %d", len(all))
	return ""
}

func TestStoreCheckFindsAndRepairsDamage(t *testing.T) {
	d := testdaemon.Start(t)
	if out := minke(t, d, "store", "check"); !strings.Contains(out, "All is well.") {
		t.Errorf("store check of a sound store = %q", out)
	}
	f, err := os.OpenFile(busyboxObject(t, d), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	f.WriteAt([]byte("damaged"), 4096)
	f.Close()

	out, err := d.Command(t.Context(), "minke", "store", "check")
	if err == nil || !strings.Contains(out, "object ") || !strings.Contains(out, "--repair") {
		t.Errorf("store check of a damaged store = %v, %q; want it to fail, name an object and say what to do", err, out)
	}
	if out := minke(t, d, "store", "check", "--repair"); !strings.Contains(out, "Pull or load again: busybox:latest") {
		t.Errorf("store check --repair = %q, want it to say what to pull", out)
	}
	if out := minke(t, d, "store", "check"); !strings.Contains(out, "All is well.") {
		t.Errorf("store check after the repair = %q", out)
	}
}
