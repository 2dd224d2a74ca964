package registry

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/minke-os/minke/engine/delta"
	"github.com/minke-os/minke/engine/store"
	"github.com/minke-os/minke/internal/testenv"
	"github.com/minke-os/minke/oci"
)

func noise(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, 3))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

func layerOf(t testing.TB, files map[string][]byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	var names []string
	for name := range files {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(files[name])), Typeflag: tar.TypeReg})
		w.Write(files[name])
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// An update is two versions of an image in a registry, and a delta between them.
type update struct {
	*fake
	base, one, two []byte // layers: one that both have, and the top of each
	delta          oci.Digest
	blob           oci.Digest // of the second version's top
}

const changed = 2_200_000 // bytes of a new file: two do not go into one segment

func newUpdate(t *testing.T, before func(f *fake)) *update {
	t.Helper()
	u := &update{fake: newFake(t)}
	program := noise(1, 600_000)
	u.base = layerOf(t, map[string][]byte{"base": noise(2, 10_000)})
	u.one = layerOf(t, map[string][]byte{"program": program, "same": noise(4, 500_000)})
	u.two = layerOf(t, map[string][]byte{"new": noise(5, changed), "new2": noise(6, changed), "program": slices.Concat([]byte("v2"), program), "same": noise(4, 500_000)})
	u.imageFor(t, "app", "v1", linuxAMD, u.base, u.one)
	u.imageFor(t, "app", "v2", linuxAMD, u.base, u.two)
	if before != nil {
		before(u.fake)
	}
	c := client(t, Options{})
	one, two := u.pull(t, c, "v1"), u.pull(t, c, "v2")
	d, err := c.store.MakeDelta(t.Context(), one, two, store.DeltaOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if len(d.Layers) != 1 || d.Layers[0].Size > 2*changed+10_000 {
		t.Fatalf("delta: %+v; want one layer of little more than the new files", d.Layers)
	}
	for range 2 { // again changes nothing
		if _, err := c.PushDelta(t.Context(), ref(t, u.host()+"/app:v2"), d, PushOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	u.delta = d.Layers[0].Digest
	u.blob = u.blobDigest(t, u.two, 1)
	u.asked = nil
	return u
}

func (u *update) pull(t *testing.T, c *Client, tag string) store.Image {
	t.Helper()
	id, err := c.Pull(t.Context(), ref(t, u.host()+"/app:"+tag), PullOptions{})
	if err != nil {
		t.Fatal(err)
	}
	img, err := c.store.Image(id)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func (u *update) asks(d oci.Digest) int { return u.count("GET /v2/app/blobs/" + string(d)) }

// arrived checks that the second version is there, and how it came.
func (u *update) arrived(t *testing.T, c *Client, deltas, blobs int) {
	t.Helper()
	stored(t, c, u.pull(t, c, "v2").ID, u.base, u.two)
	if d, b := u.asks(u.delta), u.asks(u.blob); d != deltas || b != blobs {
		t.Errorf("asked for the delta %d times and for the layer %d times, want %d and %d", d, b, deltas, blobs)
	}
}

// onDelta spoils the answers to requests for the delta.
func (u *update) onDelta(do func(w http.ResponseWriter, r *http.Request, b []byte, nth int) bool) {
	nth := 0
	u.spoil = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodGet || !strings.HasSuffix(r.URL.Path, "/blobs/"+string(u.delta)) {
			return false
		}
		nth++
		return do(w, r, u.blobs["app/"+string(u.delta)], nth)
	}
}

func TestPullTakesADelta(t *testing.T) {
	testenv.NoGoroutineLeft(t)
	u := newUpdate(t, nil)
	c := client(t, Options{})
	u.pull(t, c, "v1")
	u.arrived(t, c, 2, 0) // the header first
}

func TestRegistriesThatListReferrersAreAsked(t *testing.T) {
	list := []descriptor{}
	u := newUpdate(t, func(f *fake) {
		f.spoil = func(w http.ResponseWriter, r *http.Request) bool {
			if strings.Contains(r.URL.Path, "/referrers/") {
				json.NewEncoder(w).Encode(map[string]any{"schemaVersion": 2, "mediaType": ociIndex, "manifests": list})
				return true
			}
			if r.Method != http.MethodPut || !strings.Contains(r.URL.Path, "/manifests/sha256:") {
				return false
			}
			raw, _ := io.ReadAll(r.Body)
			r.Body = io.NopCloser(bytes.NewReader(raw))
			var m manifest
			if json.Unmarshal(raw, &m) == nil && m.ArtifactType == delta.ArtifactType && len(list) == 0 {
				list = append(list, descriptor{MediaType: ociManifest, Size: int64(len(raw)), Digest: oci.FromBytes(raw), ArtifactType: m.ArtifactType, Annotations: m.Annotations})
			}
			w.Header().Set("OCI-Subject", "sha256:x")
			return false
		}
	})
	for name := range u.manifests {
		if strings.HasPrefix(name, "app/sha256-") {
			t.Errorf("%s is made though the registry lists referrers", name)
		}
	}
	c := client(t, Options{})
	u.pull(t, c, "v1")
	u.arrived(t, c, 2, 0) // the header first
}

func TestWithoutTheBaseTheLayerIsFetched(t *testing.T) {
	u := newUpdate(t, nil)
	u.arrived(t, client(t, Options{}), 1, 1) // its header tells what it needs
}

func TestAnotherImageWithTheContentsIsABase(t *testing.T) {
	u := newUpdate(t, nil)
	u.imageFor(t, "app", "other", linuxAMD, layerOf(t, map[string][]byte{"elsewhere": noise(1, 600_000), "more": noise(4, 500_000)}))
	c := client(t, Options{})
	u.pull(t, c, "other")
	u.arrived(t, c, 2, 0)
}

func TestSpoiledDeltas(t *testing.T) {
	tests := []struct {
		name          string
		do            func(w http.ResponseWriter, r *http.Request, b []byte, nth int) bool
		deltas, blobs int
	}{
		{"taken-up-where-the-line-broke", func(w http.ResponseWriter, r *http.Request, b []byte, nth int) bool {
			if nth > 5 {
				return false
			}
			dropped(w, r, b)
			return true
		}, 6, 0},
		{"flipped-bit", func(w http.ResponseWriter, _ *http.Request, b []byte, _ int) bool {
			w.Write(flipped(b))
			return true
		}, 2, 1},
		{"gone", func(w http.ResponseWriter, _ *http.Request, b []byte, _ int) bool {
			refuse(w, http.StatusNotFound, "BLOB_UNKNOWN", "blob unknown to registry")
			return true
		}, 1, 1},
		{"something-else", func(w http.ResponseWriter, _ *http.Request, b []byte, _ int) bool {
			w.Write(noise(9, len(b)))
			return true
		}, 1, 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			testenv.NoGoroutineLeft(t)
			u := newUpdate(t, nil)
			c := client(t, Options{})
			u.pull(t, c, "v1")
			u.onDelta(tt.do)
			u.arrived(t, c, tt.deltas, tt.blobs)
		})
	}
}

func TestWhatCameBeforeABreakIsNotFetchedAgain(t *testing.T) {
	u := newUpdate(t, nil)
	c := client(t, Options{})
	u.pull(t, c, "v1")
	var ranges []string
	u.onDelta(func(w http.ResponseWriter, r *http.Request, b []byte, nth int) bool {
		ranges = append(ranges, r.Header.Get("Range"))
		if nth != 2 {
			return false
		}
		// All of the first segment comes, then the server says no for good.
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", headerAhead, len(b)-1, len(b)))
		w.Header().Set("Content-Length", fmt.Sprint(len(b)-headerAhead))
		w.WriteHeader(http.StatusPartialContent)
		w.Write(b[headerAhead : len(b)*2/3])
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	})
	refused := false
	inner := u.spoil
	u.spoil = func(w http.ResponseWriter, r *http.Request) bool {
		if !refused && len(ranges) == 2 && r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") {
			refuse(w, http.StatusForbidden, "DENIED", "no")
			refused = strings.HasSuffix(r.URL.Path, string(u.blob))
			return true
		}
		return inner(w, r)
	}
	if _, err := c.Pull(t.Context(), ref(t, u.host()+"/app:v2"), PullOptions{}); err == nil {
		t.Fatal("the pull succeeded though the registry said no")
	}
	if _, err := c.store.GC(t.Context()); err != nil {
		t.Fatal(err)
	}
	ranges = nil
	stored(t, c, u.pull(t, c, "v2").ID, u.base, u.two)
	if len(ranges) != 2 || ranges[0] != "bytes=0-65535" || !strings.HasPrefix(ranges[1], "bytes=2") {
		t.Errorf("the second pull asked for %q; want the beginning, and then only what had not come", ranges)
	}
}

func TestADeltaNeedsItsTargetInTheRegistry(t *testing.T) {
	u := newUpdate(t, nil)
	c := client(t, Options{})
	one, two := u.pull(t, c, "v1"), u.pull(t, c, "v2")
	d, err := c.store.MakeDelta(t.Context(), one, two, store.DeltaOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if _, err := c.PushDelta(t.Context(), ref(t, u.host()+"/app:v1"), d, PushOptions{}); err == nil || !strings.Contains(err.Error(), "push it first") {
		t.Errorf("PushDelta beside another image = %v, want to be told to push the image first", err)
	}
}
