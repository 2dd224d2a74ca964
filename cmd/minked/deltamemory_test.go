package main

import (
	"bytes"
	"compress/gzip"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"testing"

	"github.com/moby/moby/client"

	"github.com/minke-os/minke/internal/testdaemon"
)

// applying is what a delta may take above idle, in kB, whatever the image.
const applying = 10 << 10

// TestApplyingADeltaTakesLittleMemory holds a daemon that has just started to
// that, with many files, and a large one of which every 24th byte differs.
func TestApplyingADeltaTakesLittleMemory(t *testing.T) {
	t.Parallel()
	d := testdaemon.Start(t)
	registry := startRegistry(t, d)
	ctx := t.Context()
	program := randomBytes(1, 5<<20)
	notes := []byte(hex.EncodeToString(randomBytes(5, 400_000)))
	files := map[string][]byte{"program": program, "new": randomBytes(2, 3<<20), "notes.gz": gzipOf(notes)}
	for i := range 1000 {
		files[fmt.Sprintf("data/%d/%d", i/50, i)] = randomBytes(uint64(10+i), 600)
	}
	one, two := registry+"/app:1", registry+"/app:2"
	putFiles(t, d, one, files)
	changed := append([]byte("moved"), program...)
	for i := 5; i < len(changed); i += 24 {
		changed[i]++
	}
	files["program"], files["new"] = changed, randomBytes(3, 3<<20)
	files["notes.gz"] = gzipOf(append([]byte("changed"), notes...))
	for i := 0; i < 1000; i += 2 {
		name := fmt.Sprintf("data/%d/%d", i/50, i)
		files[name] = append([]byte("changed"), files[name]...)
	}
	putFiles(t, d, two, files)
	pushImage(t, d, two)
	query := url.Values{"base": {one}, "target": {two}}
	update := raw(t, d, http.MethodGet, "/minke/delta?"+query.Encode(), "")
	query.Set("push", two)
	post(t, d, "/minke/delta?"+query.Encode())
	if len(update) > 6<<20 {
		t.Fatalf("the delta has %d bytes: it is none", len(update))
	}
	for _, how := range []struct {
		name string
		get  func() error
	}{
		{"pull", func() error { return pullImage(t, d, two) }},
		{"load", func() error {
			r, err := d.ImageLoad(ctx, strings.NewReader(update))
			if err != nil {
				return err
			}
			_, err = io.Copy(io.Discard, r)
			return errors.Join(err, r.Close())
		}},
	} {
		if _, err := d.ImageRemove(ctx, two, client.ImageRemoveOptions{}); err != nil {
			t.Fatal(err)
		}
		d.Stop()
		d.Up()
		if _, err := d.ImageList(ctx, client.ImageListOptions{}); err != nil {
			t.Fatal(err)
		}
		// From here on the high-water mark counts anew, see proc_pid_clear_refs(5).
		if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", d.Pid()), []byte("5"), 0o200); err != nil {
			t.Skipf("needs to set the high-water mark back: %v", err)
		}
		idle := highWater(t, d.Pid())
		if err := how.get(); err != nil {
			t.Fatal(err)
		}
		if _, err := d.ImageInspect(ctx, two); err != nil {
			t.Fatal(err)
		}
		took := highWater(t, d.Pid()) - idle
		t.Logf("%s: %d kB above idle", how.name, took)
		if took > applying {
			t.Errorf("%s of the delta took %d kB above idle, want at most %d", how.name, took, applying)
		}
	}
}

func gzipOf(b []byte) []byte {
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	w.Write(b)
	w.Close()
	return buf.Bytes()
}

// highWater is the most memory that a process has had, in kB.
func highWater(t *testing.T, pid int) (kB int) {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(data), "VmHWM:")
	if _, err := fmt.Sscan(after, &kB); err != nil {
		t.Fatalf("no VmHWM in %q", data)
	}
	return kB
}
