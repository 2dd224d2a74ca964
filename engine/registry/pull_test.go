package registry

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/internal/testenv"
	"github.com/minke-os/minke/oci"
)

var linuxAMD = oci.Platform{OS: "linux", Architecture: "amd64"}

// stored checks that an image is there with exactly the given layers.
func stored(t *testing.T, c *Client, id oci.ImageID, layers ...[]byte) {
	t.Helper()
	img, err := c.store.Image(id)
	if err != nil {
		t.Fatal(err)
	}
	diffs := diffIDs(img.Config)
	if len(diffs) != len(layers) {
		t.Fatalf("image has %d layers, want %d", len(diffs), len(layers))
	}
	for i, want := range layers {
		var got bytes.Buffer
		if err := c.store.LayerTar(t.Context(), oci.ChainOf(diffs[:i+1]), &got); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got.Bytes(), want) {
			t.Errorf("layer %d has other bytes than were put into the registry", i)
		}
	}
}

// empty checks that no image and, after GC, no layer is there.
func empty(t *testing.T, c *Client) {
	t.Helper()
	if all, err := c.store.Images(); err != nil || len(all) > 0 {
		t.Errorf("images after a failed pull: %v, %v; want none", all, err)
	}
	if _, err := c.store.GC(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestPullByTagAndDigest(t *testing.T) {
	testenv.NoGoroutineLeft(t)
	f := newFake(t)
	layers := [][]byte{tarOf(t, "plain", 100_000), tarOf(t, "gzip", 700_000), tarOf(t, "zstd", 90_000), tarOf(t, "d", 1)}
	d := f.imageFor(t, "a/b", "v1", linuxAMD, layers...)
	c := client(t, Options{})
	byTag, byDigest := f.host()+"/a/b:v1", f.host()+"/a/b@"+string(d.Digest)
	var l lines
	id, err := c.Pull(t.Context(), ref(t, byTag), PullOptions{Progress: l.add})
	if err != nil {
		t.Fatal(err)
	}
	stored(t, c, id, layers...)
	for _, name := range []string{byTag, byDigest, id.Short()} {
		if got, _, err := c.store.Resolve(name); got != id {
			t.Errorf("Resolve(%s) = %s, %v; want %s", name, got, err, id)
		}
	}
	if first, last := l.all[0], l.all[len(l.all)-2:]; first != "v1: Pulling from a/b" ||
		!slices.Equal(last, []string{"Digest: " + string(d.Digest), "Status: Downloaded newer image for " + byTag}) {
		t.Errorf("progress is\n%s", strings.Join(l.all, "\n"))
	}
	short := short(f.blobDigest(t, layers[1], 1))
	var ofOne []string
	for _, line := range l.all {
		if status, ok := strings.CutPrefix(line, short+": "); ok {
			ofOne = append(ofOne, status)
		}
	}
	if want := []string{"Pulling fs layer", "Verifying Checksum", "Download complete", "Pull complete"}; !slices.Equal(ofOne, want) {
		t.Errorf("progress of a layer = %q, want %q", ofOne, want)
	}

	l.all = nil
	asked := f.count("GET /v2/a/b/")
	if _, err := c.Pull(t.Context(), ref(t, byTag), PullOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Pull(t.Context(), ref(t, byDigest), PullOptions{Progress: l.add}); err != nil {
		t.Fatal(err)
	}
	if want := []string{string(d.Digest) + ": Pulling from a/b", "Digest: " + string(d.Digest), "Status: Image is up to date for " + byDigest}; !slices.Equal(l.all, want) {
		t.Errorf("progress of the second pull = %q, want %q", l.all, want)
	}
	if now := f.count("GET /v2/a/b/"); now != asked {
		t.Errorf("pulls of what is here fetched %d documents", now-asked)
	}
}

func (f *fake) blobDigest(t *testing.T, layer []byte, how int) oci.Digest {
	packed, _ := compressed(t, layer, how)
	return oci.FromBytes(packed)
}

func TestLayersThatAreHereAreNotFetched(t *testing.T) {
	f := newFake(t)
	base, top, other := tarOf(t, "base", 1000), tarOf(t, "top", 1000), tarOf(t, "other", 1000)
	f.imageFor(t, "x", "1", linuxAMD, base, top)
	f.imageFor(t, "x", "2", linuxAMD, base, other, other)
	f.imageFor(t, "x", "3", linuxAMD, top, base) // the other way round: other chains
	c := client(t, Options{})
	for _, tt := range []struct {
		tag    string
		layers [][]byte
		blobs  int // with the configuration
	}{
		{"1", [][]byte{base, top}, 3}, {"2", [][]byte{base, other, other}, 2}, {"3", [][]byte{top, base}, 1},
	} {
		before := f.count("GET /v2/x/blobs/")
		id, err := c.Pull(t.Context(), ref(t, f.host()+"/x:"+tt.tag), PullOptions{})
		if err != nil {
			t.Fatal(err)
		}
		stored(t, c, id, tt.layers...)
		if n := f.count("GET /v2/x/blobs/") - before; n != tt.blobs {
			t.Errorf("pull of tag %s fetched %d blobs, want %d", tt.tag, n, tt.blobs)
		}
	}
}

func TestPullsOfTheSameImageAtOnceBothSucceed(t *testing.T) {
	f := newFake(t)
	layers := [][]byte{tarOf(t, "a", 300_000), tarOf(t, "b", 300_000)}
	f.imageFor(t, "x", "1", linuxAMD, layers...)
	c := client(t, Options{})
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			if _, err := c.Pull(t.Context(), ref(t, f.host()+"/x:1"), PullOptions{}); err != nil {
				t.Errorf("Pull: %v", err)
			}
		})
	}
	wg.Wait()
	id, _, err := c.store.Resolve(f.host() + "/x:1")
	if err != nil {
		t.Fatal(err)
	}
	stored(t, c, id, layers...)
}

func TestIndexGivesTheImageForThePlatform(t *testing.T) {
	f := newFake(t)
	var entries []descriptor
	for _, p := range []string{"linux/amd64", "linux/arm/v6", "linux/arm64/v8", "linux/arm/v7"} {
		platform, err := oci.ParsePlatform(p)
		if err != nil {
			t.Fatal(err)
		}
		entries = append(entries, f.imageFor(t, "x", "", platform, tarOf(t, strings.ReplaceAll(p, "/", "-"), 10)))
	}
	entries = append(entries, descriptor{Digest: entries[0].Digest, Platform: &oci.Platform{OS: "unknown", Architecture: "unknown"}})
	index := f.putDocument(t, "x", "multi", map[string]any{"schemaVersion": 2, "mediaType": dockerList, "manifests": entries})
	c := client(t, Options{})
	name := f.host() + "/x:multi"
	for _, p := range []string{"linux/arm64", "linux/arm/v6"} {
		platform, _ := oci.ParsePlatform(p)
		id, err := c.Pull(t.Context(), ref(t, name), PullOptions{Platform: platform})
		if err != nil {
			t.Fatal(err)
		}
		img, err := c.store.Image(id)
		if err != nil {
			t.Fatal(err)
		}
		if img.Config.Architecture != platform.Architecture || len(img.Digests) != 1 || img.Digests[0].Digest != index.Digest {
			t.Errorf("Pull for %s gives an image for %s with digests %v, want that of the index, %s", p, img.Config.Architecture, img.Digests, index.Digest)
		}
	}
	_, err := c.Pull(t.Context(), ref(t, name), PullOptions{Platform: oci.Platform{OS: "linux", Architecture: "riscv64"}})
	if want := "no matching manifest for linux/riscv64 in the manifest list entries; it has linux/amd64, linux/arm/v6, linux/arm64, linux/arm/v7"; !errdef.Is(err, errdef.NotFound) || err.Error() != want {
		t.Errorf("Pull for riscv64 = %v, want %s", err, want)
	}
	single := f.imageFor(t, "x", "one", linuxAMD, tarOf(t, "f", 10))
	_, err = c.Pull(t.Context(), ref(t, f.host()+"/x@"+string(single.Digest)), PullOptions{Platform: oci.Platform{OS: "linux", Architecture: "arm64"}})
	if !errdef.Is(err, errdef.NotFound) || !strings.Contains(err.Error(), "wanted linux/arm64, actual: linux/amd64") {
		t.Errorf("Pull of an amd64 image for arm64 = %v, want a refusal", err)
	}
}

func TestPlatformsFallBack(t *testing.T) {
	at := func(names ...string) (out []descriptor) {
		for _, n := range names {
			parts := strings.Split(n, "/")
			p := oci.Platform{OS: parts[0], Architecture: parts[1]}
			if len(parts) > 2 {
				p.Variant = parts[2]
			}
			out = append(out, descriptor{MediaType: n, Platform: &p})
		}
		return out
	}
	tests := []struct {
		name string
		on   oci.Platform
		has  []descriptor
		want string // "" for none
	}{
		{"the-best-variant-wins", oci.Platform{OS: "linux", Architecture: "arm", Variant: "v7"}, at("linux/arm/v5", "linux/arm/v6", "linux/arm/v7"), "linux/arm/v7"},
		{"v7-runs-v6", oci.Platform{OS: "linux", Architecture: "arm", Variant: "v7"}, at("linux/arm/v5", "linux/arm/v6"), "linux/arm/v6"},
		{"v6-does-not-run-v7", oci.Platform{OS: "linux", Architecture: "arm", Variant: "v6"}, at("linux/arm/v7", "linux/arm/v5"), "linux/arm/v5"},
		{"arm-without-variant-is-v7", oci.Platform{OS: "linux", Architecture: "arm", Variant: "v7"}, at("linux/arm"), "linux/arm"},
		{"v6-does-not-run-arm-without-variant", oci.Platform{OS: "linux", Architecture: "arm", Variant: "v6"}, at("linux/arm"), ""},
		{"arm64-with-v8-is-arm64", oci.Platform{OS: "linux", Architecture: "arm64"}, at("linux/arm/v7", "linux/arm64/v8"), "linux/arm64/v8"},
		{"arm64-runs-arm", oci.Platform{OS: "linux", Architecture: "arm64"}, at("linux/amd64", "linux/arm/v6", "linux/arm/v7"), "linux/arm/v7"},
		{"amd64-runs-386-last", oci.Platform{OS: "linux", Architecture: "amd64"}, at("linux/386", "linux/amd64"), "linux/amd64"},
		{"amd64-does-not-run-v3", oci.Platform{OS: "linux", Architecture: "amd64"}, at("linux/amd64/v3"), ""},
		{"other-systems-do-not-count", oci.Platform{OS: "linux", Architecture: "amd64"}, at("windows/amd64"), ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, ok := choose(tt.has, tt.on)
			if ok != (tt.want != "") || got.MediaType != tt.want {
				t.Errorf("choose(%v) = %q, %v; want %q", tt.on, got.MediaType, ok, tt.want)
			}
		})
	}
}

func TestTagsAreListedPageByPage(t *testing.T) {
	f := newFake(t)
	for _, tag := range []string{"b", "a", "c"} {
		f.imageFor(t, "x", tag, linuxAMD, tarOf(t, tag, 1))
	}
	c := client(t, Options{})
	got, err := c.Tags(t.Context(), ref(t, f.host()+"/x"), Credentials{})
	if want := []string{"a", "b", "c"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("Tags = %v, %v; want %v", got, err, want)
	}
}

func TestInspectDescribesWithoutPulling(t *testing.T) {
	f := newFake(t)
	d := f.imageFor(t, "x", "1", linuxAMD, tarOf(t, "f", 10))
	c := client(t, Options{})
	got, err := c.Inspect(t.Context(), ref(t, f.host()+"/x:1"), Credentials{})
	if err != nil || got.Digest != d.Digest || got.Size != d.Size || got.MediaType != ociManifest || !slices.Equal(got.Platforms, []oci.Platform{linuxAMD}) {
		t.Errorf("Inspect = %+v, %v; want %+v", got, err, d)
	}
	empty(t, c)
}

func TestCancelledPullStopsAndLeavesNothing(t *testing.T) {
	testenv.NoGoroutineLeft(t)
	f := newFake(t)
	f.imageFor(t, "x", "1", linuxAMD, tarOf(t, "f", 1<<20), tarOf(t, "g", 1<<20))
	ctx, cancel := context.WithCancel(t.Context())
	f.spoil = func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, "/blobs/") || f.count("GET /v2/x/blobs/") < 2 {
			return false
		}
		cancel()
		<-r.Context().Done() // the client has hung up
		return true
	}
	c := client(t, Options{})
	_, err := c.Pull(ctx, ref(t, f.host()+"/x:1"), PullOptions{})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("Pull = %v, want context.Canceled", err)
	}
	empty(t, c)
}
