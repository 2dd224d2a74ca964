//go:build linux

package powercut

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"github.com/minke-os/minke/engine/archive"
	"github.com/minke-os/minke/engine/delta"
	"github.com/minke-os/minke/engine/registry"
	"github.com/minke-os/minke/engine/store"
	"github.com/minke-os/minke/internal/testenv"
	"github.com/minke-os/minke/oci"
)

// updates is how many versions there are that only a delta from version 0 makes.
const updates = 3

// updated is a version's layer: much stays, a program is changed, and large
// files are new. Its delta has more than one segment.
func updated(version int) []byte {
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	add := func(name string, body []byte) {
		tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(body))})
		tw.Write(body)
	}
	for i := range 20 {
		add(fmt.Sprintf("share/%d", i), content(3, i, 100<<(i/2)))
	}
	add("bin/program", slices.Concat([]byte(fmt.Sprintf("version %d", version)), content(3, 100, 400<<10)))
	for i := range 5 * min(version, 1) {
		add(fmt.Sprintf("data/%d", i), content(4, version*10+i, 1000<<10))
	}
	add("etc/version", fmt.Appendf(nil, "This is version %d.\n", version))
	tw.Close()
	return buf.Bytes()
}

// serveDeltas is a registry with an image whose later versions have lost their
// layers: only deltas from version 0 make them. While the line is thin every
// second transfer of a delta breaks off, and all pause longer than contents stay
// in memory.
func serveDeltas(t testing.TB, thin *atomic.Bool) string {
	t.Helper()
	db, err := bbolt.Open(filepath.Join(t.TempDir(), "minke.db"), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	s, err := store.Open(testenv.DiskDir(t), db, store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	im := images{docs: map[string][]byte{}, blobs: map[string][]byte{}}
	var base store.Image
	for v := range updates + 1 {
		layer := updated(v)
		digest := im.add(t, fmt.Sprint(v), layer)
		img := known(t, s, layer)
		if v == 0 {
			base = img
			continue
		}
		delete(im.blobs, string(oci.FromBytes(zipped(layer))))
		file := deltaFile(t, s, base, img)
		im.blobs[fileOf(v)] = file
		for name, b := range members(t, file) {
			if name == "index.json" { // where registries without a list of referrers have them
				im.docs["sha256-"+digest.Hex()] = b
				continue
			}
			im.blobs[oci.Prefix+filepath.Base(name)], im.docs[oci.Prefix+filepath.Base(name)] = b, b
		}
	}
	breaks := false
	im.line = func(w http.ResponseWriter, r *http.Request, blob []byte) http.ResponseWriter {
		if !thin.Load() || !delta.Is(blob) || strings.HasPrefix(r.Header.Get("Range"), "bytes=0-") {
			return w
		}
		breaks = !breaks
		return &thinLine{ResponseWriter: w, pause: len(blob) / 2, breaks: breaks}
	}
	return im.serve(t)
}

func known(t testing.TB, s *store.Store, layer []byte) store.Image {
	t.Helper()
	if _, err := s.AddLayer(t.Context(), "", bytes.NewReader(layer)); err != nil {
		t.Fatal(err)
	}
	id, err := s.PutImage(t.Context(), configOf([][]byte{layer}), "")
	if err != nil {
		t.Fatal(err)
	}
	img, err := s.Image(id)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// fileOf is where a delta is that a stick would bring.
func fileOf(version int) string { return fmt.Sprintf("update-%d", version) }

func deltaFile(t testing.TB, s *store.Store, base, target store.Image) []byte {
	t.Helper()
	d, err := s.MakeDelta(t.Context(), base, target, store.DeltaOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	var buf bytes.Buffer
	if err := archive.SaveDelta(&buf, d); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func members(t testing.TB, archive []byte) map[string][]byte {
	t.Helper()
	all := map[string][]byte{}
	for tr := tar.NewReader(bytes.NewReader(archive)); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		if all[h.Name], err = io.ReadAll(tr); err != nil {
			t.Fatal(err)
		}
	}
}

// A thinLine pauses after so many bytes, and may break off some time later.
type thinLine struct {
	http.ResponseWriter
	pause, sent int
	breaks      bool
}

func (l *thinLine) Write(p []byte) (int, error) {
	if l.sent += len(p); l.breaks && l.sent > l.pause*3/2 {
		panic(http.ErrAbortHandler)
	}
	if l.sent > l.pause && l.sent-len(p) <= l.pause {
		l.ResponseWriter.(http.Flusher).Flush()
		time.Sleep(1100 * time.Millisecond) // what has come is now synced; see store.Loose
	}
	return l.ResponseWriter.Write(p)
}

// update brings a version onto the device by a delta, over a line that breaks or
// from a file. What it had of that version goes first.
func (w *worker) update(ctx context.Context, i int) error {
	if i == 0 {
		return w.get("app:0", func() (oci.ImageID, error) { return w.pull(ctx, "app:0") })
	}
	version := 1 + i%updates
	name := fmt.Sprintf("app:%d", version)
	if slices.Contains(w.have, name) {
		if err := w.drop(ctx, name); err != nil {
			return err
		}
	}
	return w.get(name, func() (oci.ImageID, error) {
		if i%3 == 0 {
			return w.loadDelta(ctx, version)
		}
		if _, err := w.pull(ctx, name); err == nil {
			return "", errors.New("the line did not break")
		}
		if _, err := w.s.GC(ctx); err != nil {
			return "", err
		}
		return w.pull(ctx, name)
	})
}

func (w *worker) loadDelta(ctx context.Context, version int) (oci.ImageID, error) {
	resp, err := http.Get("http://" + w.Registry + "/v2/app/blobs/" + fileOf(version))
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	if err := archive.Load(ctx, w.s, resp.Body, archive.LoadOptions{}); err != nil {
		return "", err
	}
	id := imageOf(version)
	return id, w.tag(id, fmt.Sprintf("app:%d", version))
}

func imageOf(version int) oci.ImageID {
	return oci.ImageID(oci.FromBytes(configOf([][]byte{updated(version)})))
}

// finishes brings the device up to date after a power cut, and says what is
// wrong then. The registry is near: what is silent for seconds will not come.
func (e examination) finishes(ctx context.Context, s *store.Store, db *bbolt.DB) error {
	c, err := registry.New(s, db, registry.Options{Stall: 20 * time.Second, Tries: 2})
	if err != nil {
		return err
	}
	for v := range updates + 1 {
		ref, err := oci.ParseReference(fmt.Sprintf("%s/app:%d", e.Script.Registry, v))
		if err != nil {
			return err
		}
		id, err := c.Pull(ctx, ref, registry.PullOptions{})
		if err != nil {
			return fmt.Errorf("update after the power cut: %w", err)
		}
		if want := imageOf(v); id != want {
			return fmt.Errorf("update after the power cut: %s, want %s", id, want)
		}
		if err := whole(ctx, s, id); err != nil {
			return fmt.Errorf("version %d after the power cut: %w", v, err)
		}
	}
	r, err := s.Check(ctx)
	if err == nil && len(r.Problems) > 0 {
		err = fmt.Errorf("after the update: %s; the first: %s", r.Summary(), r.Problems[0].What)
	}
	return err
}

// A power cut in the middle of an update by delta takes no image, and the
// update can be finished after it.
func TestNoUpdateIsLostToAPowerCut(t *testing.T) {
	need(t)
	cutAll(t, ext4, max(long, 20), script{Steps: 4, Deltas: true})
}

func TestADeltaThatIsNotSyncedIsCaught(t *testing.T) {
	need(t)
	if long == 0 {
		t.Skip("takes a minute: make test-powercut")
	}
	caught(t, script{Seed: 7, Steps: 4, Deltas: true}, unix.SYS_SYNCFS)
}
