package registry

import (
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/internal/testenv"
	"github.com/minke-os/minke/oci"
)

// retag gives an image a name in another registry or repository.
func retag(t *testing.T, c *Client, from, to string) oci.Reference {
	t.Helper()
	id, _, err := c.store.Resolve(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.store.Tag(id, ref(t, to)); err != nil {
		t.Fatal(err)
	}
	return ref(t, to)
}

// pulled is a client that has pulled an image of three layers from f.
func pulled(t *testing.T, f *fake) (c *Client, name string, layers [][]byte) {
	t.Helper()
	layers = [][]byte{tarOf(t, "a", 300_000), tarOf(t, "b", 300_000), tarOf(t, "c", 50_000)}
	f.imageFor(t, "x", "1", linuxAMD, layers...)
	name = f.host() + "/x:1"
	c = client(t, Options{Stall: 300 * time.Millisecond})
	if _, err := c.Pull(t.Context(), ref(t, name), PullOptions{}); err != nil {
		t.Fatal(err)
	}
	return c, name, layers
}

func (l *lines) statuses() (out []string) {
	for _, line := range l.all {
		if _, status, _ := strings.Cut(line, ": "); status != "Preparing" && status != "Waiting" && !slices.Contains(out, status) {
			out = append(out, status)
		}
	}
	return out
}

func TestPushedImagesCanBePulledAgain(t *testing.T) {
	testenv.NoGoroutineLeft(t)
	from, to := newFake(t), newFake(t)
	c, name, layers := pulled(t, from)
	there := retag(t, c, name, to.host()+"/me/app:2")
	var l lines
	done, err := c.Push(t.Context(), there, PushOptions{Progress: l.add})
	if err != nil {
		t.Fatal(err)
	}
	if got := l.statuses(); !slices.Equal(got, []string{"Pushed"}) {
		t.Errorf("progress of a first push has %q, want every layer pushed", got)
	}
	other := client(t, Options{})
	id, err := other.Pull(t.Context(), there, PullOptions{})
	if err != nil {
		t.Fatal(err)
	}
	stored(t, other, id, layers...)
	img, err := other.store.Image(id)
	if err != nil || img.Digests[0].Digest != done.Digest {
		t.Errorf("pulled digests %v, %v; pushed %s", img.Digests, err, done.Digest)
	}
	byDigest := there
	byDigest.Tag, byDigest.Digest = "", done.Digest
	if _, _, err := c.store.Resolve(byDigest.String()); err != nil {
		t.Errorf("after the push: %v, want the image to be known by its digest", err)
	}

	l.all = nil
	again, err := c.Push(t.Context(), there, PushOptions{Progress: l.add})
	if got := l.statuses(); err != nil || again != done || !slices.Equal(got, []string{"Layer already exists"}) {
		t.Errorf("the second push = %v, %v, with %q; want %v and nothing sent", again, err, got, done)
	}
	l.all = nil
	if _, err := c.Push(t.Context(), retag(t, c, name, to.host()+"/you/app:3"), PushOptions{Progress: l.add}); err != nil {
		t.Fatal(err)
	}
	if got := l.statuses(); !slices.Equal(got, []string{"Mounted from me/app"}) {
		t.Errorf("progress of a push beside it has %q, want every layer mounted", got)
	}
}

func TestPulledImagesGoBackWithTheirBlobs(t *testing.T) {
	f := newFake(t)
	c, name, layers := pulled(t, f)
	var l lines
	if _, err := c.Push(t.Context(), ref(t, name), PushOptions{Progress: l.add}); err != nil {
		t.Fatal(err)
	}
	if got := l.statuses(); !slices.Equal(got, []string{"Layer already exists"}) {
		t.Errorf("progress has %q, want nothing sent", got)
	}
	m, err := parseManifest(f.manifests["x/1"].raw, "")
	if err != nil {
		t.Fatal(err)
	}
	for i, d := range m.Layers {
		if want := f.blobDigest(t, layers[i], i); d.Digest != want {
			t.Errorf("layer %d went back as %s, came as %s", i, d.Digest, want)
		}
	}
	if m.MediaType != ociManifest { // it has a zstd layer
		t.Errorf("the manifest is %s, want %s", m.MediaType, ociManifest)
	}
}

func TestPushOverBadLines(t *testing.T) {
	tests := []struct {
		name string
		do   func(w http.ResponseWriter, r *http.Request, nth int) bool
		kind errdef.Kind
		text string
	}{
		{"a-broken-upload-begins-anew", func(w http.ResponseWriter, r *http.Request, nth int) bool {
			if nth > 1 {
				return false
			}
			r.Body.Read(make([]byte, 1000))
			panic(http.ErrAbortHandler)
		}, "", ""},
		{"a-busy-registry-is-asked-again", func(w http.ResponseWriter, r *http.Request, nth int) bool {
			if nth > 2 {
				return false
			}
			w.WriteHeader(http.StatusServiceUnavailable)
			return true
		}, "", ""},
		{"a-registry-that-takes-nothing-is-given-up", func(w http.ResponseWriter, r *http.Request, nth int) bool {
			silent, _, err := w.(http.Hijacker).Hijack()
			if err != nil {
				t.Error(err)
			}
			t.Cleanup(func() { silent.Close() })
			return true
		}, errdef.Unavailable, "registry"},
		{"who-may-not-push-is-told", func(w http.ResponseWriter, r *http.Request, nth int) bool {
			refuse(w, http.StatusForbidden, "DENIED", "requested access to the resource is denied")
			return true
		}, errdef.Forbidden, "denied: requested access to the resource is denied"},
		{"who-must-log-in-is-told", func(w http.ResponseWriter, r *http.Request, nth int) bool {
			refuse(w, http.StatusUnauthorized, "UNAUTHORIZED", "authentication required")
			return true
		}, errdef.Unauthorized, "unauthorized: authentication required"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			from, to := newFake(t), newFake(t)
			c, name, _ := pulled(t, from)
			var nth atomic.Int64
			to.spoil = func(w http.ResponseWriter, r *http.Request) bool {
				return r.Method == http.MethodPatch && tt.do(w, r, int(nth.Add(1)))
			}
			_, err := c.Push(t.Context(), retag(t, c, name, to.host()+"/y:1"), PushOptions{})
			if tt.kind == "" && err != nil || tt.kind != "" && (!errdef.Is(err, tt.kind) || !strings.Contains(err.Error(), tt.text)) {
				t.Errorf("Push = %v (%s), want kind %q with %q", err, errdef.Of(err), tt.kind, tt.text)
			}
			if _, ok := to.manifests["y/1"]; ok != (tt.kind == "") {
				t.Errorf("the registry has a manifest: %v", ok)
			}
		})
	}
}

func TestPushAsksForAllRightsAtOnce(t *testing.T) {
	f, ts := newFake(t), newTokenServer(t)
	c, name, _ := pulled(t, f)
	f.spoil = ts.guard(always)
	if _, err := c.Push(t.Context(), retag(t, c, name, f.host()+"/y:1"), PushOptions{}); err != nil {
		t.Fatal(err)
	}
	if want := []string{"repository:y:pull,push", "repository:x:pull"}; len(ts.asked) != 1 || !slices.Equal(ts.asked[0]["scope"], want) {
		t.Errorf("tokens were asked for with %v, want one for %q", ts.asked, want)
	}
}

func TestMemoryKeepsTheLatestAndForgetsWhatIsGone(t *testing.T) {
	c := client(t, Options{})
	a, b := oci.DiffID(oci.FromBytes([]byte("a"))), oci.DiffID(oci.FromBytes([]byte("b")))
	for i := range maxKnown + 3 {
		if err := c.blobs.learn(map[oci.DiffID]known{a: {Repository: strings.Repeat("r", i+1)}, b: {Repository: "r"}}, nil); err != nil {
			t.Fatal(err)
		}
	}
	if got := c.blobs.of(a); len(got) != maxKnown || len(got[0].Repository) != maxKnown+3 {
		t.Errorf("known of a = %v, want the latest %d", got, maxKnown)
	}
	if got := c.blobs.of(b); len(got) != 1 {
		t.Errorf("known of b = %v, want one for its repository", got)
	}
	if err := c.blobs.learn(nil, map[oci.DiffID]bool{b: true}); err != nil {
		t.Fatal(err)
	}
	if got := c.blobs.of(a); got != nil {
		t.Errorf("known of a layer that is gone = %v, want nothing", got)
	}
}

func TestPulledImagesGoBackUnderTheirDigest(t *testing.T) {
	f := newFake(t)
	c, name, _ := pulled(t, f)
	want := oci.FromBytes(f.manifests["x/1"].raw)
	for _, to := range []string{name, f.host() + "/beside:2"} {
		done, err := c.Push(t.Context(), retag(t, c, name, to), PushOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if got := f.manifests[strings.Replace(strings.TrimPrefix(to, f.host()+"/"), ":", "/", 1)]; done.Digest != want || oci.FromBytes(got.raw) != want || got.mediaType != ociManifest {
			t.Errorf("pushed to %s it is %s, a %s; it came as %s", to, done.Digest, got.mediaType, want)
		}
	}
	// Elsewhere its layers must be compressed anew, and the manifest says so.
	other := newFake(t)
	there := retag(t, c, name, other.host()+"/x:1")
	done, err := c.Push(t.Context(), there, PushOptions{})
	if err != nil || done.Digest == want {
		t.Errorf("pushed to another registry it is %s, %v; its layers cannot be the same", done.Digest, err)
	}
	if again, err := c.Push(t.Context(), there, PushOptions{}); err != nil || again != done {
		t.Errorf("pushed there again it is %v, %v; want %v", again, err, done)
	}
}

func TestAnIndexGoesBackWhenAllOfItIsHere(t *testing.T) {
	f := newFake(t)
	arm := oci.Platform{OS: "linux", Architecture: "arm64"}
	shared := tarOf(t, "shared", 50_000)
	members := []descriptor{
		f.imageFor(t, "x", "", linuxAMD, shared, tarOf(t, "amd", 50_000)),
		f.imageFor(t, "x", "", arm, shared, tarOf(t, "arm", 50_000)),
	}
	f.putDocument(t, "x", "1", map[string]any{"schemaVersion": 2, "mediaType": ociIndex, "manifests": members})
	index := oci.FromBytes(f.manifests["x/1"].raw)
	name := f.host() + "/x:1"
	c := client(t, Options{})
	pull := func(p oci.Platform) {
		t.Helper()
		if _, err := c.Pull(t.Context(), ref(t, name), PullOptions{Platform: p}); err != nil {
			t.Fatal(err)
		}
	}
	pull(linuxAMD)
	done, err := c.Push(t.Context(), retag(t, c, name, f.host()+"/one:1"), PushOptions{})
	if err != nil || done.Digest != members[0].Digest {
		t.Errorf("with one image of the index here the push is %s, %v; want that image's %s", done.Digest, err, members[0].Digest)
	}
	pull(arm)
	done, err = c.Push(t.Context(), retag(t, c, name, f.host()+"/all:1"), PushOptions{})
	if err != nil || done.Digest != index {
		t.Errorf("with all of the index here the push is %s, %v; want the index %s", done.Digest, err, index)
	}
	for _, d := range members {
		if got := f.manifests["all/"+string(d.Digest)]; oci.FromBytes(got.raw) != d.Digest {
			t.Errorf("the registry has not got %s of the index", d.Digest)
		}
	}
}
