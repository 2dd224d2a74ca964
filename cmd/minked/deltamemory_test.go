package main

import (
	"archive/tar"
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

	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/zstd"
	"github.com/moby/moby/client"

	"github.com/minke-os/minke/internal/testdaemon"
	"github.com/minke-os/minke/oci"
)

// applying is what a delta may take above idle, in kB, whatever the image.
const applying = 10 << 10

// TestApplyingADeltaTakesLittleMemory holds a daemon that has just started to
// that, with many files, and a large one of which every 24th byte differs.
func TestApplyingADeltaTakesLittleMemory(t *testing.T) {
	t.Parallel()
	d := testdaemon.Start(t, "--debug")
	registry := startRegistry(t, d)
	ctx := t.Context()
	program := randomBytes(1, 5<<20)
	notes := []byte(hex.EncodeToString(randomBytes(5, 400_000)))
	files := map[string][]byte{"program": program, "new": randomBytes(2, 3<<20), "notes.gz": gzipOf(notes), "notes.zst": zstdOf(notes[:400_000])}
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
	files["notes.zst"] = zstdOf(append([]byte("changed"), notes[:400_000]...))
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
		{"load", func() error { return loadImage(t, d, strings.NewReader(update)) }},
	} {
		if _, err := d.ImageRemove(ctx, two, client.ImageRemoveOptions{}); err != nil {
			t.Fatal(err)
		}
		takesAtMost(t, d, applying, how.name, how.get)
		if _, err := d.ImageInspect(ctx, two); err != nil {
			t.Fatal(err)
		}
	}
}

// What other jobs may take above idle, in kB.
const (
	adding     = 40 << 10 // plain pulls and loads of 200,000 files
	inspecting = 28 << 10 // whatever the delta: what an encoder takes, which weighs its parts
)

// TestManyFilesTakeLittleMemory is about a layer all of whose files are new to
// the device, half of them changed ones: what has to be known of each must not add
// up.
func TestManyFilesTakeLittleMemory(t *testing.T) {
	t.Parallel()
	n := 10_000
	if *soak {
		n = 200_000
	}
	d := testdaemon.Start(t, "--debug")
	registry := startRegistry(t, d)
	ctx := t.Context()
	one, two, plain := registry+"/many:1", registry+"/many:2", registry+"/plain:2"
	file := func(i int) []byte { return randomBytes(uint64(i), 200) }
	old := archiveOf(t, one, n/2, file)
	new := archiveOf(t, two, n, func(i int) []byte { return append(file(i), "changed"...) })
	for _, archive := range [][]byte{old, new} {
		takesAtMost(t, d, adding, "load", func() error { return loadImage(t, d, bytes.NewReader(archive)) })
	}
	if _, err := d.ImageTag(ctx, client.ImageTagOptions{Source: two, Target: plain}); err != nil {
		t.Fatal(err)
	}
	pushImage(t, d, two)
	pushImage(t, d, plain)
	query := url.Values{"base": {one}, "target": {two}}
	var update string
	takesAtMost(t, d, 140<<10+n*5/4, "making a delta", func() error { // four encoders, and 1 kB a file
		update = raw(t, d, http.MethodGet, "/minke/delta?"+query.Encode(), "")
		return nil
	})
	query.Set("push", two)
	post(t, d, "/minke/delta?"+query.Encode())
	takesAtMost(t, d, inspecting, "inspecting a delta", func() error {
		raw(t, d, http.MethodPost, "/minke/delta/report", update)
		return nil
	})
	for _, how := range []struct {
		name, image string
		most        int
		get         func() error
	}{
		{"pull of a delta", two, applying, func() error { return pullImage(t, d, two) }},
		{"load of a delta", two, applying, func() error { return loadImage(t, d, strings.NewReader(update)) }},
		{"plain pull", plain, adding, func() error { return pullImage(t, d, plain) }},
	} {
		for _, image := range []string{two, plain} {
			if _, err := d.ImageRemove(ctx, image, client.ImageRemoveOptions{}); err != nil && !errdefs.IsNotFound(err) {
				t.Fatal(err)
			}
		}
		takesAtMost(t, d, how.most, how.name, how.get)
		if _, err := d.ImageInspect(ctx, how.image); err != nil {
			t.Fatal(err)
		}
	}
}

// takesAtMost starts the daemon anew and holds a job to so many kB above idle.
func takesAtMost(t *testing.T, d *testdaemon.Daemon, most int, what string, job func() error) {
	t.Helper()
	d.Stop()
	d.Up()
	vars(t, d) // collects garbage
	// From here on the high-water mark counts anew, see proc_pid_clear_refs(5).
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", d.Pid()), []byte("5"), 0o200); err != nil {
		t.Skipf("needs to set the high-water mark back: %v", err)
	}
	idle := highWater(t, d.Pid())
	if err := job(); err != nil {
		t.Fatal(err)
	}
	took := highWater(t, d.Pid()) - idle
	t.Logf("%s: %d kB above idle", what, took)
	if took > most {
		t.Errorf("%s took %d kB above idle, want at most %d", what, took, most)
	}
}

func loadImage(t *testing.T, d *testdaemon.Daemon, r io.Reader) error {
	t.Helper()
	resp, err := d.ImageLoad(t.Context(), r)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, resp)
	return errors.Join(err, resp.Close())
}

// archiveOf is one of an image with one layer of n files.
func archiveOf(t *testing.T, image string, n int, file func(int) []byte) []byte {
	t.Helper()
	var layer, archive bytes.Buffer
	add := func(w *tar.Writer, name string, data []byte) {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(data))}); err != nil {
			t.Fatal(err)
		}
		w.Write(data)
	}
	w := tar.NewWriter(&layer)
	for i := range n {
		add(w, fmt.Sprintf("data/%d/%d", i/500, i), file(i))
	}
	w.Close()
	w = tar.NewWriter(&archive)
	add(w, "manifest.json", fmt.Appendf(nil, `[{"Config":"config.json","RepoTags":[%q],"Layers":["layer.tar"]}]`, image))
	add(w, "config.json", fmt.Appendf(nil, `{"os":"linux","architecture":%q,"rootfs":{"type":"layers","diff_ids":[%q]}}`, oci.Host().Architecture, oci.FromBytes(layer.Bytes())))
	add(w, "layer.tar", layer.Bytes())
	w.Close()
	return archive.Bytes()
}

func gzipOf(b []byte) []byte {
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	w.Write(b)
	w.Close()
	return buf.Bytes()
}

func zstdOf(b []byte) []byte {
	w, _ := zstd.NewWriter(nil) // without options nothing can be wrong
	return w.EncodeAll(b, nil)
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
