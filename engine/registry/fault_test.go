package registry

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/oci"
)

// spoiled is what a server does to the blobs of the layer under test.
type spoiled func(w http.ResponseWriter, r *http.Request, b []byte, nth int) bool

// dropped sends all that was asked for but the last half, and hangs up.
func dropped(w http.ResponseWriter, r *http.Request, b []byte) {
	from := 0
	fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &from)
	w.Header().Set("Content-Length", strconv.Itoa(len(b)-from))
	w.Header().Set("ETag", `"e"`)
	if from > 0 {
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(b)-1, len(b)))
		w.WriteHeader(http.StatusPartialContent)
	}
	w.Write(b[from : from+(len(b)-from)/2])
	w.(http.Flusher).Flush()
	panic(http.ErrAbortHandler)
}

func flipped(b []byte) []byte {
	b = bytes.Clone(b)
	b[len(b)*2/3] ^= 1
	return b
}

// TestSpoiledLayers pulls an image whose gzip layer comes in odd ways. Either
// all is well in the end, or there is no image and the error says why.
func TestSpoiledLayers(t *testing.T) {
	tests := []struct {
		name string
		do   spoiled
		kind errdef.Kind // "" when the pull succeeds
		text string
		asks int // for the layer; 0 for any number
	}{
		{"dropped-connections-are-taken-up-where-they-ended", func(w http.ResponseWriter, r *http.Request, b []byte, nth int) bool {
			if nth > 6 { // more often than tries without progress are allowed
				return false
			}
			dropped(w, r, b)
			return true
		}, "", "", 7},
		{"servers-without-ranges-may-send-all-again", func(w http.ResponseWriter, r *http.Request, b []byte, nth int) bool {
			r.Header.Del("Range")
			if nth == 1 {
				dropped(w, r, b)
			}
			w.Write(b)
			return true
		}, "", "", 2},
		{"connections-that-bring-nothing-are-given-up", func(w http.ResponseWriter, r *http.Request, b []byte, nth int) bool {
			panic(http.ErrAbortHandler)
		}, errdef.Unavailable, "no answer from registry", 0},
		{"silent-connections-are-cut-and-taken-up", func(w http.ResponseWriter, r *http.Request, b []byte, nth int) bool {
			if nth > 1 {
				return false
			}
			w.Header().Set("Content-Length", strconv.Itoa(len(b)))
			w.Write(b[:len(b)/2])
			w.(http.Flusher).Flush()
			<-r.Context().Done()
			return true
		}, "", "", 2},
		{"a-flipped-bit-makes-it-come-again", func(w http.ResponseWriter, r *http.Request, b []byte, nth int) bool {
			if nth > 1 {
				return false
			}
			w.Write(flipped(b))
			return true
		}, "", "", 2},
		{"a-blob-that-stays-wrong-is-refused", func(w http.ResponseWriter, r *http.Request, b []byte, nth int) bool {
			w.Write(flipped(b))
			return true
		}, errdef.Unavailable, "is damaged", 2},
		{"another-valid-layer-is-refused", func(w http.ResponseWriter, r *http.Request, b []byte, nth int) bool {
			other, _ := compressed(t, tarOf(t, "evil", 300_000), 1)
			w.Write(append(other, make([]byte, max(0, len(b)-len(other)))...)[:len(b)])
			return true
		}, errdef.Unavailable, "is damaged", 2},
		{"a-shorter-body-than-the-manifest-says-is-refused", func(w http.ResponseWriter, r *http.Request, b []byte, nth int) bool {
			w.Header().Set("Content-Length", "5")
			w.Write(b[:5])
			return true
		}, errdef.Unavailable, "5 bytes are to come", 2},
		{"a-lying-content-length-is-not-believed", func(w http.ResponseWriter, r *http.Request, b []byte, nth int) bool {
			if nth > 1 {
				return false
			}
			dropped(w, r, b)
			return true
		}, "", "", 2},
		{"busy-servers-are-asked-again", func(w http.ResponseWriter, r *http.Request, b []byte, nth int) bool {
			if nth > 3 {
				return false
			}
			w.WriteHeader([]int{500, 502, 503}[nth-1])
			return true
		}, "", "", 4},
		{"a-server-that-stays-broken-is-given-up", func(w http.ResponseWriter, r *http.Request, b []byte, nth int) bool {
			w.WriteHeader(http.StatusInternalServerError)
			return true
		}, errdef.Unavailable, "answered 500 Internal Server Error", maxTries},
		{"too-many-requests-wait-as-asked", func(w http.ResponseWriter, r *http.Request, b []byte, nth int) bool {
			if nth > 1 {
				return false
			}
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(http.StatusTooManyRequests)
			return true
		}, "", "", 2},
		{"too-long-a-wait-is-not-waited-for", func(w http.ResponseWriter, r *http.Request, b []byte, nth int) bool {
			w.Header().Set("Retry-After", "3600")
			refuse(w, http.StatusTooManyRequests, "TOOMANYREQUESTS", "you have reached your pull rate limit")
			return true
		}, errdef.Unavailable, "toomanyrequests: you have reached your pull rate limit", 1},
		{"a-range-from-elsewhere-is-not-taken", func(w http.ResponseWriter, r *http.Request, b []byte, nth int) bool {
			if nth == 1 {
				dropped(w, r, b)
			}
			if nth > 2 {
				return false
			}
			w.Header().Set("Content-Range", fmt.Sprintf("bytes 7-%d/%d", len(b)-1, len(b)))
			w.WriteHeader(http.StatusPartialContent)
			w.Write(b[7:])
			return true
		}, "", "", 3},
		{"a-missing-blob-is-an-error", func(w http.ResponseWriter, r *http.Request, b []byte, nth int) bool {
			refuse(w, http.StatusNotFound, "BLOB_UNKNOWN", "blob unknown to registry")
			return true
		}, errdef.NotFound, "blob unknown: blob unknown to registry", 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := newFake(t)
			layers := [][]byte{tarOf(t, "a", 10), tarOf(t, "b", 400_000)}
			f.imageFor(t, "x", "1", linuxAMD, layers...)
			path := "/v2/x/blobs/" + string(f.blobDigest(t, layers[1], 1))
			packed, _ := compressed(t, layers[1], 1)
			var nth atomic.Int64
			f.spoil = func(w http.ResponseWriter, r *http.Request) bool {
				return r.URL.Path == path && tt.do(w, r, packed, int(nth.Add(1)))
			}
			c := client(t, Options{Stall: 300 * time.Millisecond})
			id, err := c.Pull(t.Context(), ref(t, f.host()+"/x:1"), PullOptions{})
			if n := f.count("GET " + path); tt.asks != 0 && n != tt.asks {
				t.Errorf("the layer was asked for %d times, want %d", n, tt.asks)
			}
			if tt.kind == "" {
				if err != nil {
					t.Fatalf("Pull: %v", err)
				}
				stored(t, c, id, layers...)
				return
			}
			if !errdef.Is(err, tt.kind) || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("Pull = %v (%s), want an error of kind %s with %q", err, errdef.Of(err), tt.kind, tt.text)
			}
			empty(t, c)
		})
	}
}

// TestSpoiledImages pulls what no honest registry has.
func TestSpoiledImages(t *testing.T) {
	tests := []struct {
		name string
		make func(t *testing.T, f *fake)
		kind errdef.Kind
		text string
	}{
		{"a-manifest-of-gigabytes-is-not-read", func(t *testing.T, f *fake) {
			f.spoil = func(w http.ResponseWriter, r *http.Request) bool {
				for range 100 << 10 {
					if _, err := w.Write(make([]byte, 10<<10)); err != nil {
						return true
					}
				}
				return true
			}
		}, errdef.Invalid, "more than 4194304 bytes"},
		{"a-manifest-with-another-digest-is-refused", func(t *testing.T, f *fake) {
			f.spoil = func(w http.ResponseWriter, r *http.Request) bool {
				w.Header().Set("Docker-Content-Digest", string(oci.FromBytes([]byte("else"))))
				w.Write([]byte(`{"schemaVersion":2,"mediaType":"` + ociManifest + `"}`))
				return true
			}
		}, errdef.Unavailable, "is damaged"},
		{"schema-1-is-refused", func(t *testing.T, f *fake) {
			f.putDocument(t, "x", "1", map[string]any{"schemaVersion": 1})
		}, errdef.Unsupported, "schema 1"},
		{"what-is-no-image-is-refused", func(t *testing.T, f *fake) {
			f.putDocument(t, "x", "1", map[string]any{"schemaVersion": 2, "mediaType": ociManifest,
				"config": f.put("x", []byte("{}"), "application/vnd.cncf.helm.config.v1+json")})
		}, errdef.Unsupported, "not that of an image's configuration"},
		{"a-manifest-that-is-an-index-too-is-refused", func(t *testing.T, f *fake) {
			f.putDocument(t, "x", "1", map[string]any{"schemaVersion": 2, "mediaType": ociManifest,
				"config": f.put("x", []byte("{}"), ociConfig), "manifests": []descriptor{}})
		}, errdef.Invalid, "not what its media type"},
		{"a-wrong-diff-id-is-refused", func(t *testing.T, f *fake) {
			other := oci.FromBytes([]byte("else"))
			config := fmt.Sprintf(`{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":[%q]}}`, other)
			f.putDocument(t, "x", "1", map[string]any{"schemaVersion": 2, "mediaType": ociManifest,
				"config": f.put("x", []byte(config), ociConfig), "layers": []descriptor{f.put("x", tarOf(t, "f", 10), ociLayer)}})
		}, errdef.Invalid, "the image's configuration says sha256:"},
		{"a-configuration-without-diff-ids-is-refused", func(t *testing.T, f *fake) {
			f.putDocument(t, "x", "1", map[string]any{"schemaVersion": 2, "mediaType": ociManifest,
				"config": f.put("x", []byte(`{"os":"linux","architecture":"amd64"}`), ociConfig), "layers": []descriptor{f.put("x", tarOf(t, "f", 10), ociLayer)}})
		}, errdef.Invalid, "the configuration has 0 layers, the manifest 1"},
		{"a-layer-that-is-no-tar-is-refused", func(t *testing.T, f *fake) {
			f.imageFor(t, "x", "1", linuxAMD, []byte(strings.Repeat("no tar ", 1000)))
		}, errdef.Invalid, "layer "},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := newFake(t)
			tt.make(t, f)
			c := client(t, Options{Stall: 5 * time.Second})
			_, err := c.Pull(t.Context(), ref(t, f.host()+"/x:1"), PullOptions{Platform: linuxAMD})
			if !errdef.Is(err, tt.kind) || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("Pull = %v (%s), want an error of kind %s with %q", err, errdef.Of(err), tt.kind, tt.text)
			}
			empty(t, c)
		})
	}
}

func TestIndexesInIndexesEnd(t *testing.T) {
	f := newFake(t)
	d := f.imageFor(t, "x", "", linuxAMD, tarOf(t, "f", 10))
	for range 5 {
		d = f.putDocument(t, "x", "deep", map[string]any{"schemaVersion": 2, "mediaType": ociIndex, "manifests": []descriptor{d}})
		d.Platform = &linuxAMD
	}
	_, err := client(t, Options{}).Pull(t.Context(), ref(t, f.host()+"/x:deep"), PullOptions{Platform: linuxAMD})
	if !errdef.Is(err, errdef.Invalid) || !strings.Contains(err.Error(), "indexes in indexes") {
		t.Errorf("Pull = %v, want a refusal", err)
	}
}

func TestErrorsAreInDockersWords(t *testing.T) {
	tests := []struct {
		name    string
		status  int
		headers string
		body    string
		kind    errdef.Kind
		want    string
	}{
		{"unknown-tag", 404, "", `{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}`, errdef.NotFound,
			"manifest for HOST/x:1 not found: manifest unknown: manifest unknown"},
		{"unknown-repository", 404, "", `{"errors":[{"code":"NAME_UNKNOWN","message":"repository name not known to registry"}]}`, errdef.NotFound,
			"repository HOST/x not found: name unknown: repository name not known to registry"},
		{"denied", 403, "", `{"errors":[{"code":"DENIED","message":"requested access to the resource is denied"}]}`, errdef.NotFound,
			"pull access denied for HOST/x, repository does not exist or may require 'docker login': denied: requested access to the resource is denied"},
		{"token-does-not-allow-it", 401, `Bearer error="insufficient_scope"`, `{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}`, errdef.NotFound,
			"pull access denied for HOST/x, repository does not exist or may require 'docker login': denied: requested access to the resource is denied"},
		{"no-credentials", 401, `Basic realm="r"`, "", errdef.Unauthorized, "no basic auth credentials"},
		{"no-way-to-log-in", 401, "", "", errdef.Unauthorized, "HOST/x: unauthorized: authentication required; log in to HOST with an account that may read it"},
		{"not-json", 418, "", "<html>", errdef.Unavailable, "HOST/x:1: HOST answered 418 I'm a teapot"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := newFake(t)
			f.spoil = func(w http.ResponseWriter, r *http.Request) bool {
				challenge := tt.headers
				if strings.HasPrefix(challenge, "Bearer") {
					if r.URL.Path == "/token" {
						w.Write([]byte(`{"token":"t"}`))
						return true
					}
					challenge += `,realm="` + f.URL + `/token"`
				}
				if challenge != "" {
					w.Header().Set("WWW-Authenticate", challenge)
				}
				w.WriteHeader(tt.status)
				w.Write([]byte(tt.body))
				return true
			}
			_, err := client(t, Options{}).Pull(t.Context(), ref(t, f.host()+"/x:1"), PullOptions{})
			want := strings.ReplaceAll(tt.want, "HOST", f.host())
			if !errdef.Is(err, tt.kind) || err.Error() != want {
				t.Errorf("Pull = %v (%s), want %s (%s)", err, errdef.Of(err), want, tt.kind)
			}
		})
	}
}

func TestUnreachableRegistriesSayWhatToCheck(t *testing.T) {
	plain := newFake(t)
	encrypted := httptest.NewTLSServer(plain)
	defer encrypted.Close()
	for host, want := range map[string]string{
		"127.0.0.1:1":      "check that a registry listens there",
		"registry.invalid": "check the registry's name, and the device's DNS servers",
	} {
		_, err := client(t, Options{}).Pull(t.Context(), ref(t, host+"/x:1"), PullOptions{})
		if !errdef.Is(err, errdef.Unavailable) || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), host) {
			t.Errorf("Pull from %s = %v, want a hint: %s", host, err, want)
		}
	}
	c := client(t, Options{})
	for ep, want := range map[endpoint]string{
		{host: plain.host(), scheme: "https"}:                                  "speaks plain HTTP: start minked with --insecure-registry",
		{host: strings.TrimPrefix(encrypted.URL, "https://"), scheme: "https"}: "put the certificate of its authority into",
	} {
		err := c.at(t.Context(), ep, ref(t, "x"), Credentials{}, (&pulling{ref: ref(t, "x")}).from)
		if !errdef.Is(err, errdef.Unavailable) || !strings.Contains(err.Error(), want) {
			t.Errorf("pull from %v = %v, want a hint: %s", ep, err, want)
		}
	}
}

// TestRedirectsGetNoCredentials sends blobs to another host, as registries do.
func TestRedirectsGetNoCredentials(t *testing.T) {
	f := newFake(t)
	layers := [][]byte{tarOf(t, "f", 1000)}
	f.imageFor(t, "x", "1", linuxAMD, layers...)
	var leaked, served []string
	cdn := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		leaked = append(leaked, r.Header.Values("Authorization")...)
		served = append(served, r.URL.Path)
		f.serve(w, r)
	}))
	defer cdn.Close()
	f.spoil = func(w http.ResponseWriter, r *http.Request) bool {
		if user, pass, _ := r.BasicAuth(); user != "me" || pass != "secret" {
			w.Header().Set("WWW-Authenticate", `Basic realm="r"`)
			w.WriteHeader(http.StatusUnauthorized)
			return true
		}
		if strings.Contains(r.URL.Path, "/blobs/") {
			http.Redirect(w, r, cdn.URL+r.URL.Path, http.StatusTemporaryRedirect)
			return true
		}
		return false
	}
	c := client(t, Options{})
	id, err := c.Pull(t.Context(), ref(t, f.host()+"/x:1"), PullOptions{Credentials: Credentials{Username: "me", Password: "secret"}})
	if err != nil {
		t.Fatal(err)
	}
	stored(t, c, id, layers...)
	if len(served) != 2 || len(leaked) > 0 {
		t.Errorf("the other host served %d blobs, want 2, and was told %q", len(served), leaked)
	}
}

func TestForeignLayersComeFromTheirURLs(t *testing.T) {
	f, elsewhere := newFake(t), newFake(t)
	layer := tarOf(t, "f", 1000)
	f.imageFor(t, "x", "1", linuxAMD, layer)
	d := elsewhere.put("y", layer, "application/vnd.docker.image.rootfs.foreign.diff.tar")
	d.URLs = []string{elsewhere.URL + "/gone", elsewhere.URL + "/v2/y/blobs/" + string(d.Digest)}
	delete(f.blobs, "x/"+string(d.Digest))
	var m map[string]any
	json.Unmarshal(f.manifests["x/1"].raw, &m)
	m["layers"] = []descriptor{d}
	f.putDocument(t, "x", "1", m)
	elsewhere.spoil = func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == "/gone" {
			panic(http.ErrAbortHandler)
		}
		return false
	}
	c := client(t, Options{})
	id, err := c.Pull(t.Context(), ref(t, f.host()+"/x:1"), PullOptions{})
	if err != nil {
		t.Fatal(err)
	}
	stored(t, c, id, layer)
}

func TestMirrorsComeFirstAndTheOriginLast(t *testing.T) {
	mirror := newFake(t)
	layers := [][]byte{tarOf(t, "f", 1000)}
	mirror.imageFor(t, "library/x", "1", linuxAMD, layers...)
	var told []string
	mirror.spoil = func(_ http.ResponseWriter, r *http.Request) bool {
		told = append(told, r.Header.Values("Authorization")...)
		return false
	}
	c := client(t, Options{Mirrors: []string{"http://127.0.0.1:1", mirror.URL}})
	id, err := c.Pull(t.Context(), ref(t, "x:1"), PullOptions{Credentials: Credentials{Username: "me", Password: "secret", RegistryToken: "t"}})
	if err != nil {
		t.Fatal(err)
	}
	stored(t, c, id, layers...)
	if len(told) > 0 {
		t.Errorf("the mirror was told %q", told)
	}
	hosts := func(eps []endpoint) (out []string) {
		for _, ep := range eps {
			out = append(out, ep.host)
		}
		return out
	}
	if got, want := hosts(c.endpoints(t.Context(), hubDomain)), []string{"127.0.0.1:1", mirror.host(), hubHost}; !slices.Equal(got, want) {
		t.Errorf("endpoints of Docker Hub = %v, want %v", got, want)
	}
	if got, want := hosts(c.endpoints(t.Context(), "ghcr.io")), []string{"ghcr.io"}; !slices.Equal(got, want) {
		t.Errorf("endpoints of ghcr.io = %v, want %v", got, want)
	}
}

func TestSettingsAreChecked(t *testing.T) {
	for _, o := range []Options{{Mirrors: []string{"mirror.example"}}, {Mirrors: []string{"https://m/path"}}, {Insecure: []string{"http://x/"}}} {
		if _, err := New(nil, nil, o); !errdef.Is(err, errdef.Invalid) {
			t.Errorf("New(%+v) = %v, want it refused", o, err)
		}
	}
	c := client(t, Options{Insecure: []string{"a.example", "b.example:5000", "10.1.0.0/16"}})
	for host, want := range map[string]bool{
		"localhost": true, "localhost:5000": true, "127.3.2.1:80": true, "[::1]:5000": true,
		"a.example": true, "a.example:5000": true, "b.example:5000": true, "b.example": false, "10.1.2.3:5000": true, "10.2.0.1": false,
	} {
		if got := c.insecure(t.Context(), host); got != want {
			t.Errorf("insecure(%s) = %v, want %v", host, got, want)
		}
	}
}
