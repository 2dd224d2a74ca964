package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// A supervisor is one that plays back answers of /v2/state/status, the last
// one for ever.
type supervisor struct {
	mu       sync.Mutex // guards the fields below
	statuses []string
	target   map[string]any
	started  []string
}

func (s *supervisor) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	body, _ := io.ReadAll(r.Body)
	switch r.Method + " " + r.URL.Path {
	case "GET /v2/local/device-info":
		io.WriteString(w, `{"info":{"arch":"aarch64","deviceType":"raspberrypi4-64"}}`)
	case "GET /v2/local/target-state":
		io.WriteString(w, `{"state":{"local":{"name":"bench","config":{"A":"1"},"apps":{"1":{}}}}}`)
	case "POST /v2/local/target-state":
		json.Unmarshal(body, &s.target)
		io.WriteString(w, `{"status":"success","message":"OK"}`)
	case "POST /v2/applications/1/start-service":
		s.started = append(s.started, string(body))
	case "GET /v2/state/status":
		io.WriteString(w, s.statuses[0])
		if len(s.statuses) > 1 {
			s.statuses = s.statuses[1:]
		}
	default:
		if strings.HasSuffix(r.URL.Path, "/_ping") || strings.HasSuffix(r.URL.Path, "/images/x/json") {
			io.WriteString(w, "{}") // the engine, which has the image
			return
		}
		w.WriteHeader(http.StatusNotFound)
	}
}

func status(state, container string) string {
	return fmt.Sprintf(`{"appState":%q,"containers":[{"serviceName":"web","containerId":"c1",%s}],"images":[]}`, state, container)
}

func TestUp(t *testing.T) {
	applied := func(c string) string { return status("applied", c) }
	tests := []struct {
		name     string
		statuses []string
		code     int
		stdout   string
		stderr   []string // in this order
	}{
		{"already-running", []string{applied(`"status":"Running"`)}, 0, "✓ shop runs.\n  web          http://127.0.0.1:8080\n", []string{"web  running"}},
		{"waits-for-health", []string{status("applying", `"status":"Starting"`), applied(`"status":"Running","health":"starting"`), applied(`"status":"Running","health":"healthy"`)},
			0, "✓ shop runs.\n  web          http://127.0.0.1:8080\n", []string{"web  starting", "web  checking health", "web  healthy"}},
		{"starts-what-was-stopped", []string{applied(`"status":"exited","exitCode":137`), applied(`"status":"Running"`)}, 0,
			"✓ shop runs.\n  web          http://127.0.0.1:8080\n", []string{"web  exited (137)", "web  running"}},
		{"a-crash-loop-is-an-error", []string{applied(`"status":"restarting","exitCode":3,"restarts":4`)}, 1, "",
			[]string{`minke: service web exits again and again, last with code 3; see "minke logs web"`}},
		{"the-reason-is-shown", []string{`{"appState":"applying","containers":[],"images":[],"error":"Lockfile exists for { appId: 1, service: web }"}`}, 1, "",
			[]string{"web  waiting", "minke: not everything runs after 600ms: Lockfile exists for { appId: 1, service: web } (up --force overrides it)"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := &supervisor{statuses: tt.statuses}
			srv := httptest.NewServer(s)
			defer srv.Close()
			dir := filepath.Join(t.TempDir(), "shop")
			if err := os.Mkdir(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			file := "services:\n  web:\n    image: x\n    ports: [\"127.0.0.1:8080:80\"]\n"
			if err := os.WriteFile(filepath.Join(dir, "docker-compose.yml"), []byte(file), 0o644); err != nil {
				t.Fatal(err)
			}
			wait := "30s"
			if tt.name == "the-reason-is-shown" {
				wait = "600ms"
			}
			code, stdout, stderr := run(t, nil, "minke", "-H", "tcp://"+srv.Listener.Addr().String(), "--supervisor", srv.URL, "up", "--wait", wait, dir)
			if code != tt.code || stdout != tt.stdout {
				t.Errorf("exit %d, prints %q; want %d, %q\n%s", code, stdout, tt.code, tt.stdout, stderr)
			}
			rest := stderr
			for _, want := range tt.stderr {
				i := strings.Index(rest, want)
				if i < 0 {
					t.Fatalf("stderr is\n%s\nwant %q there, in order", stderr, tt.stderr)
				}
				rest = rest[i+len(want):]
			}
			local := s.target["local"].(map[string]any)
			app := local["apps"].(map[string]any)["1"].(map[string]any)
			if local["name"] != "bench" || app["name"] != "shop" {
				t.Errorf("posted target %v", s.target)
			}
			if tt.name == "starts-what-was-stopped" && len(s.started) != 1 {
				t.Errorf("started %q, want web once", s.started)
			}
		})
	}
}
