package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"

	"github.com/minke-os/minke/internal/testdaemon"
)

// TestFleetUpdateByBalenasDelta has a fleet server and its delta server send a
// device from one release to the next, in images that balenaEngine could have
// made.
func TestFleetUpdateByBalenasDelta(t *testing.T) {
	t.Parallel()
	d := testdaemon.Start(t)
	registry := startRegistry(t, d)
	ctx := t.Context()
	program := randomBytes(7, 5<<20)
	one, two, delta := registry+"/app:1", registry+"/app:2", registry+"/app:delta"
	putFiles(t, d, one, map[string][]byte{"program": program, "version": []byte("1\n")})
	putFiles(t, d, two, map[string][]byte{"program": append([]byte("changed"), program...), "version": []byte("2\n")})
	post(t, d, "/images/delta?"+url.Values{"src": {one}, "dest": {two}, "t": {delta}}.Encode())
	const counted = "127.0.0.1:5001"
	byDigest := map[string]string{} // as the fleet names images
	for _, name := range []string{one, two, delta} {
		r, err := d.ImagePush(ctx, name, client.ImagePushOptions{})
		if err == nil {
			err = r.Wait(ctx)
		}
		if err != nil {
			t.Fatal(err)
		}
		img, err := d.ImageInspect(ctx, name)
		if err != nil || len(img.RepoDigests) == 0 {
			t.Fatalf("%s after its push: %v, %v", name, img.RepoDigests, err)
		}
		byDigest[name] = strings.Replace(img.RepoDigests[0], registry, counted, 1)
	}
	for _, name := range []string{one, two, delta} {
		if _, err := d.ImageRemove(ctx, name, client.ImageRemoveOptions{Force: true}); err != nil {
			t.Fatal(err)
		}
	}
	l := newLine(t, d, registry)

	var mu sync.Mutex
	commit, image, config := "c1", byDigest[one], ""
	mux := http.NewServeMux()
	mux.HandleFunc("GET /device/v3/abcd/state", func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		fmt.Fprintf(w, `{"abcd":{"name":"porch","config":{%s},"apps":{"aaaa":{"id":1,"name":"garden","class":"fleet","releases":{%q:{"id":1,"services":{
		 "web":{"id":1,"image_id":1,"image":%q,"environment":{},"labels":{},"composition":{"command":["sh","-c","cat /version; exec sleep 1000"],"tty":false,"stop_signal":"SIGKILL"}}}}}}}}}`, config, commit, image)
	})
	mux.HandleFunc("GET /auth/v1/token", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, `{"token":"t"}`) })
	mux.HandleFunc("GET /deltas/api/v3/delta", func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("src") != byDigest[one] || r.URL.Query().Get("dest") != byDigest[two] {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		fmt.Fprintf(w, `{"name":"%s/app:delta"}`, counted)
	})
	mux.HandleFunc("/", func(http.ResponseWriter, *http.Request) {})
	var listener net.Listener
	if err := d.InNetNS(func() (err error) {
		listener, err = net.Listen("tcp", "127.0.0.1:6000")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	fleet := &http.Server{Handler: mux}
	go fleet.Serve(listener)
	t.Cleanup(func() { fleet.Close() })

	boot := t.TempDir()
	if err := os.WriteFile(filepath.Join(boot, "config.json"), []byte(`{"apiEndpoint":"http://127.0.0.1:6000","deltaEndpoint":"http://127.0.0.1:6000/deltas",
	 "uuid":"abcd","deviceApiKey":"k","deviceId":7,"registered_at":1,"applicationId":1}`), 0o600); err != nil {
		t.Fatal(err)
	}
	d.Stop()
	d.Up("--supervisor=true", "--boot-dir", boot)
	defer func() { // else it makes its containers anew as they are removed
		d.Stop()
		d.Up("--supervisor=false")
	}()
	runs := func(version string) container.InspectResponse {
		t.Helper()
		for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
			list, err := d.ContainerList(ctx, client.ContainerListOptions{Filters: make(client.Filters).Add("label", "io.balena.service-name=web")})
			if err == nil && len(list.Items) == 1 && strings.Contains(d.Logs(list.Items[0].ID), version+"\n") {
				return d.Inspect(list.Items[0].ID)
			}
		}
		t.Fatalf("version %s does not run; log:\n%s", version, d.Log())
		return container.InspectResponse{}
	}
	runs("1")
	if n := l.came(); n < 5<<20 {
		t.Errorf("%d bytes came for the first release, want the whole image", n)
	}

	mu.Lock()
	commit, image, config = "c2", byDigest[two], `"RESIN_SUPERVISOR_DELTA":"1"`
	mu.Unlock()
	raw, err := os.ReadFile(filepath.Join(d.Dir, "data", "supervisor", "device.json"))
	var stored struct{ GlobalKey string }
	if err == nil {
		err = json.Unmarshal(raw, &stored)
	}
	if err != nil {
		t.Fatal(err)
	}
	c := http.Client{Transport: &http.Transport{DialContext: d.Dial, DisableKeepAlives: true}}
	resp, err := c.Post("http://127.0.0.1:48484/v1/update?apikey="+stored.GlobalKey, "application/json", nil)
	if err != nil || resp.StatusCode != http.StatusNoContent {
		t.Fatalf("update: %v, %v", resp, err)
	}
	resp.Body.Close()
	runs("2")
	if n := l.came(); n > 1<<20 {
		t.Errorf("%d bytes came for an update of a few, want a delta", n)
	}
	if out := post(t, d, "/minke/store/check"); !strings.Contains(out, `"Problems":[]`) {
		t.Errorf("the store: %s", out)
	}
}
