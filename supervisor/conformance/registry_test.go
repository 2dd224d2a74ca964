package conformance

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/minke-os/minke/internal/testenv"
)

// A registry serves any image one asks for: busybox that waits for its end. Each
// name and tag is another image.
type registry struct {
	*httptest.Server
	base []byte // layer that all have

	mu    sync.Mutex // guards the fields below
	blobs map[string][]byte
	held  map[string]chan struct{} // by repository: its own layer comes half only, until that is closed
	stuck map[string]int           // how many downloads wait for that
}

func startRegistry(t *testing.T, l net.Listener) *registry {
	r := &registry{base: testenv.BusyboxTar(t), blobs: map[string][]byte{}, held: map[string]chan struct{}{}, stuck: map[string]int{}}
	r.Server = httptest.NewUnstartedServer(r)
	r.Listener.Close()
	r.Listener = l
	r.Start()
	t.Cleanup(func() { r.CloseClientConnections(); r.Close() })
	return r
}

// fill puts the registry's address into a target.
func (r *registry) fill(target string) string {
	return strings.ReplaceAll(target, "REGISTRY", r.Listener.Addr().String())
}

// hold stops downloads of a repository half way, until release is called.
func (r *registry) hold(repo string) (release func()) {
	gate := make(chan struct{})
	r.mu.Lock()
	defer r.mu.Unlock()
	r.held[repo] = gate
	return sync.OnceFunc(func() { close(gate) })
}

// waiting is how many downloads of a repository are held.
func (r *registry) waiting(repo string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.stuck[repo]
}

func (r *registry) count(repo string, n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stuck[repo] += n
}

func digest(b []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(b)) }

// add keeps a blob and describes it.
func (r *registry) addLocked(mediaType string, b []byte) obj {
	r.blobs[digest(b)] = b
	return obj{"mediaType": mediaType, "digest": digest(b), "size": len(b)}
}

const (
	manifestType = "application/vnd.oci.image.manifest.v1+json"
	layerType    = "application/vnd.oci.image.layer.v1.tar"
)

// manifest makes the image of a name. A repository called "volumes" declares one;
// that called "huge" has a layer of 60 MB.
func (r *registry) manifest(repo, tag string) []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	size := 300 << 10
	if repo == "huge" {
		size = 60 << 20
	}
	own := onlyFile("name", []byte(repo+":"+tag+strings.Repeat("\n", size)))
	config := obj{"Cmd": []string{"sh", "-c", "trap 'exit 0' TERM; sleep 1000000 & wait"}, "Env": []string{"PATH=/bin", "FROM=image"}}
	if repo == "volumes" {
		config["Volumes"] = obj{"/from-image": obj{}}
	}
	c := jsonOf(obj{"architecture": runtime.GOARCH, "os": "linux", "config": config,
		"rootfs": obj{"type": "layers", "diff_ids": []string{digest(r.base), digest(own)}}})
	return []byte(jsonOf(obj{"schemaVersion": 2, "mediaType": manifestType,
		"config": r.addLocked("application/vnd.oci.image.config.v1+json", []byte(c)),
		"layers": []obj{r.addLocked(layerType, r.base), r.addLocked(layerType, own)}}))
}

func (r *registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	path := strings.TrimPrefix(req.URL.Path, "/v2/")
	if path == "" {
		return
	}
	if repo, tag, ok := strings.Cut(path, "/manifests/"); ok {
		r.mu.Lock()
		body := r.blobs[tag] // by digest
		r.mu.Unlock()
		if body == nil {
			body = r.manifest(repo, tag)
			r.mu.Lock()
			r.addLocked(manifestType, body)
			r.mu.Unlock()
		}
		w.Header().Set("Content-Type", manifestType)
		w.Header().Set("Docker-Content-Digest", digest(body))
		w.Header().Set("Content-Length", fmt.Sprint(len(body)))
		if req.Method != http.MethodHead {
			w.Write(body)
		}
		return
	}
	repo, name, _ := strings.Cut(path, "/blobs/")
	r.mu.Lock()
	body, gate := r.blobs[name], r.held[repo]
	r.mu.Unlock()
	if body == nil {
		http.NotFound(w, req)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Length", fmt.Sprint(len(body)))
	if req.Method == http.MethodHead {
		return
	}
	if gate != nil && len(body) > 100<<10 && !bytes.Equal(body, r.base) {
		w.Write(body[:len(body)/2])
		w.(http.Flusher).Flush()
		body = body[len(body)/2:]
		r.count(repo, 1)
		defer r.count(repo, -1)
		select {
		case <-gate:
		case <-req.Context().Done():
			return
		}
	}
	w.Write(body)
}

func onlyFile(name string, content []byte) []byte {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(content))}) // a buffer takes all
	w.Write(content)
	w.Close()
	return buf.Bytes()
}
