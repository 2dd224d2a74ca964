package supervisor_test

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/minke-os/minke/internal/testfleet"
	"github.com/minke-os/minke/supervisor"
)

// deltaServer adds to a fleet server one that answers for the delta of each
// destination, one answer after the other: a status, or an image's name.
func deltaServer(f *testfleet.Fleet, answers map[string][]string) (asked func() []string) {
	var mu sync.Mutex // guards answers and requests
	var requests []string
	f.HandleFunc("GET /auth/v1/token", func(w http.ResponseWriter, r *http.Request) {
		user, _, _ := r.BasicAuth()
		if !strings.HasPrefix(user, "d_") {
			http.Error(w, "who are you", http.StatusUnauthorized)
			return
		}
		fmt.Fprintf(w, `{"token":"for %s"}`, strings.Join(r.URL.Query()["scope"], " "))
	})
	f.HandleFunc("GET /deltas/api/v3/delta", func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		mu.Lock()
		defer mu.Unlock()
		requests = append(requests, q.Get("src")+" > "+q.Get("dest")+" "+r.Header.Get("Authorization"))
		left := answers[q.Get("dest")]
		if len(left) == 0 {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		answers[q.Get("dest")] = left[1:]
		var status int
		if _, err := fmt.Sscan(left[0], &status); err == nil {
			w.WriteHeader(status)
			return
		}
		fmt.Fprintf(w, `{"name":%q}`, left[0])
	})
	return func() []string {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(requests)
	}
}

func TestImagesComeAsDeltasWhereTheVariableSaysSo(t *testing.T) {
	t.Parallel()
	const on = `"RESIN_SUPERVISOR_DELTA":"1","RESIN_SUPERVISOR_DELTA_RETRY_INTERVAL":"1","RESIN_SUPERVISOR_DELTA_RETRY_COUNT":"2"`
	image := func(n int) string { return fmt.Sprintf("fleet.example/v2/app%d@sha256:%064d", n, n) }
	m := manage(t, release("c1", "garden:1", "", ""), supervisor.Config{})
	asked := deltaServer(m.f, map[string][]string{
		image(3): {"504", "fleet.example/v2/app3:delta-2"},
		image(4): {"502", "504", "502", "fleet.example/v2/app4:delta-3"},
		image(5): {"fleet.example/v2/app5:delta-4"},
		image(6): {"fleet.example/v2/app6:delta-5"},
	})
	m.engine.mu.Lock()
	m.engine.deltas = map[string]bool{"fleet.example/v2/app6:delta-5": true}
	for n := range 10 {
		m.engine.registry[image(n)] = true
	}
	for _, delta := range []string{"app3:delta-2", "app6:delta-5"} { // that of app5 is not to be had
		m.engine.registry["fleet.example/v2/"+delta] = true
	}
	m.engine.mu.Unlock()

	tests := []struct {
		name, config string
		n            int
		asks         int    // for deltas
		runs         string // the engine's name
		heard        string
	}{
		{"without-the-variable-the-whole-image-comes", "", 1, 0, image(1), "Downloading image '" + image(1) + "'"},
		{"no-delta-on-the-server", on, 2, 1, image(2), "Failed to download delta for image '" + image(2) + "'"},
		{"a-delta-that-is-made-meanwhile", on, 3, 2, "fleet.example/v2/app3:delta-2", "Delta still processing remotely"},
		{"a-delta-that-takes-too-long", on, 4, 3, image(4), "Failed to download delta for image '" + image(4) + "'"},
		{"a-delta-that-cannot-be-pulled", on, 5, 1, image(5), "no registry has fleet.example/v2/app5:delta-4"},
		{"an-engine-without-deltas", on, 6, 1, image(6), "this engine knows no deltas"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			before := len(asked())
			m.f.Wants(release(fmt.Sprintf("c%d", tt.n+1), image(tt.n), "", tt.config))
			m.update()
			m.until("it runs", func() bool { return m.running()["web"] == tt.runs && m.running()["db"] == tt.runs })
			m.until("people are told", func() bool { return m.f.Heard(tt.heard) })
			asks := asked()[before:]
			if len(asks) != tt.asks {
				t.Errorf("asked for %q, want %d times", asks, tt.asks)
			}
			want := fmt.Sprintf("%s > %s Bearer for repository:v2/app%d:pull repository:v2/app%d:pull", image(tt.n-1), image(tt.n), tt.n, tt.n-1)
			for _, a := range asks {
				if a != want {
					t.Errorf("asked %s, want %s", a, want)
				}
			}
			m.until("images of releases before are gone", func() bool {
				m.engine.mu.Lock()
				defer m.engine.mu.Unlock()
				return len(m.engine.images) == 2 // this and the shed's
			})
		})
	}
	m.engine.mu.Lock()
	defer m.engine.mu.Unlock()
	i := slices.IndexFunc(m.engine.pulls, func(p string) bool { return strings.HasPrefix(p, "fleet.example/v2/app3:delta-2 ") })
	if i < 0 || !strings.Contains(m.engine.pulls[i], `"registrytoken":"for `) {
		t.Errorf("pulls %q, want a delta with the token that the server gave", m.engine.pulls)
	}
}
