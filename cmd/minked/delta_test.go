package main

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"testing"

	"github.com/moby/moby/client"

	"github.com/minke-os/minke/internal/testdaemon"
)

// A line is a way to the registry on which somebody counts what comes back, and
// that breaks after some of it.
type line struct {
	addr string

	mu     sync.Mutex
	n      int64 // bytes that came back
	breaks []int64
	broken func() // called at each break
}

func newLine(t *testing.T, d *testdaemon.Daemon, registry string) *line {
	t.Helper()
	l := &line{addr: "127.0.0.1:5001"}
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: registry})
	proxy.Transport = &http.Transport{DialContext: d.Dial}
	var listener net.Listener
	if err := d.InNetNS(func() (err error) {
		listener, err = net.Listen("tcp", l.addr)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		proxy.ServeHTTP(&counted{w, l}, r)
	})}
	go s.Serve(listener)
	t.Cleanup(func() { s.Close() })
	return l
}

// counted is an answer on the line.
type counted struct {
	http.ResponseWriter
	l *line
}

func (c *counted) Write(p []byte) (int, error) {
	c.l.mu.Lock()
	c.l.n += int64(len(p))
	breaks := len(c.l.breaks) > 0 && c.l.n >= c.l.breaks[0]
	if breaks {
		c.l.breaks = c.l.breaks[1:]
	}
	broken := c.l.broken
	c.l.mu.Unlock()
	if breaks {
		if broken != nil {
			broken()
		}
		panic(http.ErrAbortHandler)
	}
	return c.ResponseWriter.Write(p)
}

func (c *counted) Flush() { c.ResponseWriter.(http.Flusher).Flush() }

// came takes the count and begins a new one, with breaks.
func (l *line) came(breaks ...int64) int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := l.n
	l.n, l.breaks = 0, breaks
	return n
}

func randomBytes(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, 5))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// putFiles makes an image with some files on top of busybox.
func putFiles(t *testing.T, d *testdaemon.Daemon, name string, files map[string][]byte) {
	t.Helper()
	id := d.Create(testdaemon.Spec{Config: sh("true")})
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for file, data := range files {
		w.WriteHeader(&tar.Header{Name: file, Mode: 0o644, Size: int64(len(data))})
		w.Write(data)
	}
	w.Close()
	ctx := t.Context()
	if _, err := d.CopyToContainer(ctx, id, client.CopyToContainerOptions{DestinationPath: "/", Content: &buf}); err != nil {
		t.Fatal(err)
	}
	if _, err := d.ContainerCommit(ctx, id, client.ContainerCommitOptions{Reference: name}); err != nil {
		t.Fatal(err)
	}
	if _, err := d.ContainerRemove(ctx, id, client.ContainerRemoveOptions{}); err != nil {
		t.Fatal(err)
	}
}

func pushImage(t *testing.T, d *testdaemon.Daemon, name string) {
	t.Helper()
	r, err := d.ImagePush(t.Context(), name, client.ImagePushOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := r.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func pullImage(t *testing.T, d *testdaemon.Daemon, name string) error {
	t.Helper()
	r, err := d.ImagePull(context.Background(), name, client.ImagePullOptions{})
	if err != nil {
		return err
	}
	defer r.Close()
	return r.Wait(context.Background())
}

// TestUpdateByDelta brings a device from one version to the next over a line
// that breaks, and once the daemon dies on the way.
func TestUpdateByDelta(t *testing.T) {
	t.Parallel()
	d := testdaemon.Start(t)
	registry := startRegistry(t, d)
	ctx := t.Context()
	program := randomBytes(1, 5<<20)
	one, two := registry+"/app:1", registry+"/app:2"
	putFiles(t, d, one, map[string][]byte{"program": program, "version": []byte("1\n")})
	putFiles(t, d, two, map[string][]byte{
		"program": append([]byte("changed"), program...), "version": []byte("2\n"),
		"new1": randomBytes(2, 3<<20), "new2": randomBytes(3, 3<<20), "new3": randomBytes(4, 3<<20),
	})
	pushImage(t, d, one)
	pushImage(t, d, two)
	out := post(t, d, "/minke/delta?"+url.Values{"base": {one}, "target": {two}, "push": {two}}.Encode())
	if !strings.Contains(out, `"Path":"program"`) || !strings.Contains(out, "digest: sha256:") {
		t.Fatalf("POST /minke/delta says %s", out)
	}
	// Whoever asks what the delta costs hears the same: who makes it, who finds it
	// in the registry, and who has it as a file.
	file := raw(t, d, http.MethodGet, "/minke/delta?"+url.Values{"base": {one}, "target": {two}}.Encode(), "")
	report := raw(t, d, http.MethodGet, "/minke/delta/report?"+url.Values{"image": {two}}.Encode(), "")
	if ofFile := raw(t, d, http.MethodPost, "/minke/delta/report", file); ofFile != report {
		t.Errorf("the report on the file is %s\non the registry's %s", ofFile, report)
	}
	if inner := strings.Trim(report, "[]\n"); !strings.Contains(out, inner) || !strings.Contains(inner, `"Path":"program","Digest":"sha256:`) || !strings.Contains(inner, `"Base":"program"`) {
		t.Errorf("the report on the delta is %s", report)
	}
	forget := func() {
		t.Helper()
		for _, name := range []string{two, strings.Replace(two, registry, "127.0.0.1:5001", 1)} {
			d.ImageRemove(ctx, name, client.ImageRemoveOptions{Force: true})
		}
		if _, err := d.ImagePrune(ctx, client.ImagePruneOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	forget()
	l := newLine(t, d, registry)
	update := l.addr + "/app:2"
	const news, layer = 9 << 20, 14 << 20

	l.came(2<<20, 5<<20)
	if err := pullImage(t, d, update); err != nil {
		t.Fatal(err)
	}
	// What a connection had taken ahead of a break comes again.
	if n := l.came(); n < news || n > news+3<<20 {
		t.Errorf("%d bytes came for an update of %d", n, news)
	}
	runs := func() {
		t.Helper()
		c := sh("cat /version; cat /program /new1 /new2 /new3 | wc -c")
		c.Image = update
		if out, errs, _ := d.Run(testdaemon.Spec{Config: c}); out != fmt.Sprintf("2\n%d\n", 7+layer) {
			t.Errorf("the new version prints %q, %s", out, errs)
		}
	}
	runs()

	// Again, and the daemon dies after two thirds.
	forget()
	l.came(7 << 20)
	l.broken = d.Kill
	if err := pullImage(t, d, update); err == nil {
		t.Fatal("the pull outlived its daemon")
	}
	l.mu.Lock()
	l.broken = nil
	l.mu.Unlock()
	d.Up()
	l.came()
	if err := pullImage(t, d, update); err != nil {
		t.Fatal(err)
	}
	t.Logf("after the daemon's death %d bytes came", l.came())
	runs()
	if out := post(t, d, "/minke/store/check"); !strings.Contains(out, `"Problems":[]`) {
		t.Errorf("the store: %s", out)
	}
}

// post makes a request that Docker's client has no words for.
func post(t *testing.T, d *testdaemon.Daemon, path string) string {
	t.Helper()
	return raw(t, d, http.MethodPost, path, "")
}

func raw(t *testing.T, d *testdaemon.Daemon, method, path, body string) string {
	t.Helper()
	dial := d.Dialer()
	c := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) }}}
	req, err := http.NewRequestWithContext(t.Context(), method, "http://engine"+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	out, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s: %s, %v", path, resp.Status, out, err)
	}
	return string(out)
}
