package registry

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"go.etcd.io/bbolt"

	"github.com/minke-os/minke/engine/store"
	"github.com/minke-os/minke/internal/testenv"
	"github.com/minke-os/minke/oci"
)

// A fake is a registry in memory whose answers a test can spoil.
type fake struct {
	*httptest.Server
	// spoil answers in place of the registry if it returns true.
	spoil func(w http.ResponseWriter, r *http.Request) bool

	mu        sync.Mutex
	blobs     map[string][]byte // repository/digest
	manifests map[string]document
	uploads   map[string][]byte
	asked     []string // method and path of each request
}

type document struct {
	mediaType string
	raw       []byte
}

func newFake(t testing.TB) *fake {
	f := &fake{blobs: map[string][]byte{}, manifests: map[string]document{}, uploads: map[string][]byte{}}
	f.Server = httptest.NewServer(f)
	t.Cleanup(f.Close)
	return f
}

// count is how many requests began with the given text.
func (f *fake) count(prefix string) (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, a := range f.asked {
		if strings.HasPrefix(a, prefix) {
			n++
		}
	}
	return n
}

func (f *fake) host() string { return strings.TrimPrefix(f.URL, "http://") }

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	f.asked = append(f.asked, r.Method+" "+r.URL.Path)
	f.mu.Unlock()
	if f.spoil != nil && f.spoil(w, r) {
		return
	}
	f.serve(w, r)
}

func (f *fake) serve(w http.ResponseWriter, r *http.Request) {
	rest := strings.TrimPrefix(r.URL.Path, "/v2/")
	for kind, serve := range map[string]func(http.ResponseWriter, *http.Request, string, string){
		"/manifests/": f.manifest, "/blobs/uploads/": f.upload, "/blobs/": f.blob,
	} {
		if repo, what, ok := strings.Cut(rest, kind); ok && (kind != "/blobs/" || !strings.HasPrefix(what, "uploads/")) {
			serve(w, r, repo, what)
			return
		}
	}
	if repo, ok := strings.CutSuffix(rest, "/tags/list"); ok {
		f.tags(w, r, repo)
		return
	}
	if rest != "" { // the ping
		http.NotFound(w, r) // as a registry that knows nothing of referrers
	}
}

// tags gives one tag a page.
func (f *fake) tags(w http.ResponseWriter, r *http.Request, repo string) {
	var all []string
	for k := range f.manifests {
		if tag, ok := strings.CutPrefix(k, repo+"/"); ok && !strings.HasPrefix(tag, oci.Prefix) {
			all = append(all, tag)
		}
	}
	slices.Sort(all)
	all = slices.DeleteFunc(all, func(s string) bool { return s <= r.URL.Query().Get("last") })
	if len(all) > 1 {
		w.Header().Set("Link", fmt.Sprintf(`<%s?last=%s>; rel="next"`, r.URL.Path, all[0]))
	}
	json.NewEncoder(w).Encode(map[string]any{"tags": all[:min(1, len(all))]})
}

func refuse(w http.ResponseWriter, status int, code, message string) {
	w.WriteHeader(status)
	fmt.Fprintf(w, `{"errors":[{"code":%q,"message":%q}]}`, code, message)
}

func (f *fake) manifest(w http.ResponseWriter, r *http.Request, repo, ref string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if r.Method == http.MethodPut {
		raw, _ := io.ReadAll(r.Body)
		d := document{r.Header.Get("Content-Type"), raw}
		f.manifests[repo+"/"+ref], f.manifests[repo+"/"+string(oci.FromBytes(raw))] = d, d
		w.WriteHeader(http.StatusCreated)
		return
	}
	d, ok := f.manifests[repo+"/"+ref]
	if !ok {
		refuse(w, http.StatusNotFound, "MANIFEST_UNKNOWN", "manifest unknown")
		return
	}
	w.Header().Set("Content-Type", d.mediaType)
	w.Header().Set("Docker-Content-Digest", string(oci.FromBytes(d.raw)))
	w.Write(d.raw)
}

func (f *fake) blob(w http.ResponseWriter, r *http.Request, repo, d string) {
	f.mu.Lock()
	b, ok := f.blobs[repo+"/"+d]
	f.mu.Unlock()
	if !ok {
		refuse(w, http.StatusNotFound, "BLOB_UNKNOWN", "blob unknown to registry")
		return
	}
	w.Header().Set("ETag", `"`+d+`"`)
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b))
}

func (f *fake) upload(w http.ResponseWriter, r *http.Request, repo, id string) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	q := r.URL.Query()
	if from, ok := f.blobs[q.Get("from")+"/"+q.Get("mount")]; ok {
		f.blobs[repo+"/"+q.Get("mount")] = from
		w.WriteHeader(http.StatusCreated)
		return
	}
	if r.Method == http.MethodPost {
		id = rand.Text()
	}
	w.Header().Set("Location", "/v2/"+repo+"/blobs/uploads/"+id+"?state=x")
	f.uploads[id] = append(f.uploads[id], body...)
	if r.Method != http.MethodPut {
		w.WriteHeader(http.StatusAccepted)
		return
	}
	d := q.Get("digest")
	if string(oci.FromBytes(f.uploads[id])) != d || q.Get("state") != "x" {
		refuse(w, http.StatusBadRequest, "DIGEST_INVALID", "provided digest did not match uploaded content")
		return
	}
	f.blobs[repo+"/"+d] = f.uploads[id]
	w.WriteHeader(http.StatusCreated)
}

// put adds a blob and describes it.
func (f *fake) put(repo string, b []byte, mediaType string) descriptor {
	d := oci.FromBytes(b)
	f.blobs[repo+"/"+string(d)] = b
	return descriptor{MediaType: mediaType, Size: int64(len(b)), Digest: d}
}

// putDocument adds a manifest under its digest and a tag.
func (f *fake) putDocument(t testing.TB, repo, tag string, v any) descriptor {
	t.Helper()
	raw, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	var head struct{ MediaType string }
	json.Unmarshal(raw, &head)
	d := document{head.MediaType, raw}
	digest := oci.FromBytes(raw)
	f.manifests[repo+"/"+string(digest)] = d
	if tag != "" {
		f.manifests[repo+"/"+tag] = d
	}
	return descriptor{MediaType: head.MediaType, Size: int64(len(raw)), Digest: digest}
}

// imageFor adds an image of the given layers, tars that are compressed by
// their number: not at all, by gzip, by zstd, and so on.
func (f *fake) imageFor(t testing.TB, repo, tag string, p oci.Platform, layers ...[]byte) descriptor {
	t.Helper()
	type rootfs struct {
		Type    string   `json:"type"`
		DiffIDs []string `json:"diff_ids"`
	}
	config := struct {
		oci.Platform
		Rootfs rootfs `json:"rootfs"`
	}{p, rootfs{Type: "layers"}}
	m := map[string]any{"schemaVersion": 2, "mediaType": ociManifest}
	var ls []descriptor
	for i, l := range layers {
		config.Rootfs.DiffIDs = append(config.Rootfs.DiffIDs, string(oci.FromBytes(l)))
		packed, mediaType := compressed(t, l, i%3)
		ls = append(ls, f.put(repo, packed, mediaType))
	}
	raw, err := json.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	m["config"], m["layers"] = f.put(repo, raw, ociConfig), ls
	d := f.putDocument(t, repo, tag, m)
	d.Platform = &p
	return d
}

func compressed(t testing.TB, b []byte, how int) ([]byte, string) {
	t.Helper()
	var out bytes.Buffer
	var w io.WriteCloser
	switch how {
	case 0:
		return b, "application/vnd.oci.image.layer.v1.tar"
	case 1:
		w = gzip.NewWriter(&out)
	case 2:
		w, _ = zstd.NewWriter(&out)
	}
	w.Write(b)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes(), []string{"", ociLayer, ociZstdLayer}[how]
}

// tarOf is a layer with one file of random bytes, which no compression makes
// small.
func tarOf(t testing.TB, name string, size int) []byte {
	t.Helper()
	body := make([]byte, size)
	rand.Read(body)
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(size), Typeflag: tar.TypeReg})
	w.Write(body)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// client makes a client with an empty store.
func client(t testing.TB, o Options) *Client {
	t.Helper()
	testenv.NeedRoot(t)
	dir := testenv.DiskDir(t)
	db, err := bbolt.Open(filepath.Join(dir, "minke.db"), 0o600, &bbolt.Options{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	s, err := store.Open(dir, db, store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.Close()
		db.Close()
	})
	if o.Pause == 0 {
		o.Pause = time.Millisecond
	}
	if o.CertDir == "" {
		o.CertDir = t.TempDir()
	}
	c, err := New(s, db, o)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func ref(t testing.TB, s string) oci.Reference {
	t.Helper()
	r, err := oci.ParseReference(s)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// lines collects progress.
type lines struct {
	mu  sync.Mutex
	all []string
}

func (l *lines) add(p Progress) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if p.Total > 0 {
		return // told by the clock
	}
	l.all = append(l.all, strings.TrimPrefix(p.ID+": "+p.Status, ": "))
}
