package cloud

import (
	"bufio"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/minke-os/minke/supervisor/logs"
)

// A server is a fleet server: our own stand-in, for a test to spoil.
type server struct {
	mu       sync.Mutex
	calls    []string // "method path", with the time in seconds since the start
	start    time.Time
	answer   func(r *http.Request, body string) (int, string, http.Header)
	bodies   map[string][]string // of a path
	lines    []string
	streams  int
	breakLog bool
	dialing  time.Duration // until a log stream has no route
}

func newServer() *server {
	return &server{start: time.Now(), bodies: map[string][]string{}}
}

func (s *server) RoundTrip(r *http.Request) (*http.Response, error) {
	path := r.URL.Path
	if strings.HasSuffix(path, "/log-stream") {
		return s.logs(r)
	}
	body := ""
	if r.Body != nil {
		b, _ := io.ReadAll(r.Body)
		body = string(b)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls = append(s.calls, fmt.Sprintf("%d %s %s", int(time.Since(s.start).Seconds()), r.Method, path))
	s.bodies[path] = append(s.bodies[path], body)
	status, answer, header := 200, "", http.Header{}
	if s.answer != nil {
		status, answer, header = s.answer(r, body)
	}
	if status == 0 {
		return nil, errors.New("no route to host")
	}
	if header == nil {
		header = http.Header{}
	}
	return &http.Response{StatusCode: status, Header: header, Body: io.NopCloser(strings.NewReader(answer))}, nil
}

func (s *server) logs(r *http.Request) (*http.Response, error) {
	s.mu.Lock()
	s.streams++
	broken, dialing := s.breakLog, s.dialing
	s.mu.Unlock()
	if time.Sleep(dialing); dialing > 0 {
		return nil, errors.New("no route to host")
	}
	if broken {
		return nil, errors.New("connection reset")
	}
	z, err := gzip.NewReader(r.Body)
	if err != nil {
		return nil, err
	}
	for sc := bufio.NewScanner(z); sc.Scan(); {
		s.mu.Lock()
		s.lines = append(s.lines, sc.Text())
		broken := s.breakLog
		s.mu.Unlock()
		if broken {
			return nil, errors.New("connection reset")
		}
	}
	return &http.Response{StatusCode: 200, Body: http.NoBody}, nil
}

// at are the seconds at which something was asked for.
func (s *server) at(what string) (out []int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.calls {
		var t int
		if rest, ok := strings.CutSuffix(c, " "+what); ok {
			fmt.Sscan(rest, &t)
			out = append(out, t)
		}
	}
	return out
}

// A device is what the link speaks for.
type device struct {
	mu       sync.Mutex
	id       Identity
	settings Settings
	targets  []string
	refuse   error
	report   map[string]any
	tags     map[string]string
	lines    chan logs.Message
	since    []time.Time
	reborn   int
	fleet    int // to be pinned
	commit   string
	intro    *Introduction // nil when the server has it
}

func newDevice() *device {
	return &device{
		id:       Identity{Endpoint: "https://api.example", UUID: "abcd", Key: "devicekey", ID: 7, Registered: true},
		settings: Settings{Interval: 15 * time.Minute, Instant: true, Logs: true, Timeout: time.Minute},
		report:   map[string]any{"status": "Idle"}, lines: make(chan logs.Message, 100),
	}
}

func (d *device) Identity() Identity { d.mu.Lock(); defer d.mu.Unlock(); return d.id }
func (d *device) Settings() Settings { d.mu.Lock(); defer d.mu.Unlock(); return d.settings }
func (d *device) Registered(id int) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.id.ID, d.id.Registered, d.id.Provisioning = id, true, ""
	return nil
}

func (d *device) Pin() (int, string) { d.mu.Lock(); defer d.mu.Unlock(); return d.fleet, d.commit }
func (d *device) Pinned() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.commit = ""
	return nil
}

func (d *device) Introduction() (Introduction, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.intro == nil {
		return Introduction{}, true
	}
	return *d.intro, false
}

func (d *device) Introduced() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.intro = nil
	return nil
}

func (d *device) Reborn() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.reborn++
	d.id.UUID = fmt.Sprintf("reborn%d", d.reborn)
	return nil
}

func (d *device) SetTarget(body []byte) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.targets = append(d.targets, string(body))
	return d.refuse
}

func (d *device) Report() map[string]any {
	d.mu.Lock()
	defer d.mu.Unlock()
	return maps.Clone(d.report)
}

func (d *device) set(k string, v any) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.report[k] = v
}

func (d *device) Tags() map[string]string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return maps.Clone(d.tags)
}

func (d *device) Tagged(t map[string]string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for k := range t {
		delete(d.tags, k)
	}
	return nil
}

func (d *device) Logs(ctx context.Context, since time.Time, emit func(logs.Message) error) error {
	d.mu.Lock()
	d.since = append(d.since, since)
	d.mu.Unlock()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case m := <-d.lines:
			if err := emit(m); err != nil {
				return err
			}
		}
	}
}

// link runs a link until the test ends.
func link(t *testing.T, s *server, d *device) *Link {
	t.Helper()
	l := New(Config{Device: d, Transport: s, UserAgent: "Supervisor/19.0.5", Supervisor: "19.0.5"})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run = %v", err)
		}
	})
	return l
}

const statePath = "GET /device/v3/abcd/state"

func TestPollsAreConditionalAndSpread(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, d := newServer(), newDevice()
		var conditions []string
		s.answer = func(r *http.Request, _ string) (int, string, http.Header) {
			if r.Method != http.MethodGet {
				return 200, "", nil
			}
			conditions = append(conditions, r.Header.Get("If-None-Match")+" "+r.Header.Get("Authorization"))
			if r.Header.Get("If-None-Match") == `"v1"` {
				return 304, "", nil
			}
			return 200, `{"abcd":{}}`, http.Header{"Etag": {`"v1"`}}
		}
		l := link(t, s, d)
		time.Sleep(32 * time.Minute)
		at := s.at(statePath)
		if len(at) != 3 || at[0] != 0 || at[1] < 900 || at[1] > 960 || at[2]-at[1] < 900 || at[2]-at[1] > 960 {
			t.Errorf("polls at %v s, want at once and then every 900 to 960 s", at)
		}
		if want := []string{" Bearer devicekey", `"v1" Bearer devicekey`, `"v1" Bearer devicekey`}; !slices.Equal(conditions, want) {
			t.Errorf("requests = %q, want %q", conditions, want)
		}
		if len(d.targets) != 1 {
			t.Errorf("%d targets came, want the one that changed", len(d.targets))
		}
		l.Poll()
		synctest.Wait()
		if n := len(s.at(statePath)); n != 4 {
			t.Errorf("%d polls after being told to, want 4", n)
		}
	})
}

func TestTroubleMakesPollsRare(t *testing.T) {
	for name, status := range map[string]int{"server-error": 500, "no-network": 0, "busy": 429} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, d := newServer(), newDevice()
				d.settings.Logs = false
				s.answer = func(*http.Request, string) (int, string, http.Header) { return status, "", nil }
				l := link(t, s, d)
				time.Sleep(2 * time.Minute)
				if at := s.at(statePath); !slices.Equal(at, []int{0, 15, 45, 105}) {
					t.Errorf("polls at %v s, want 0, 15, 45, 105", at)
				}
				time.Sleep(24 * time.Hour)
				if n := len(s.at(statePath)); n > 110 {
					t.Errorf("%d polls in a day of trouble, want one each quarter of an hour", n)
				}
				if l.Healthy() {
					t.Error("a day without an answer is healthy")
				}
				s.mu.Lock()
				s.answer = nil
				s.mu.Unlock()
				time.Sleep(20 * time.Minute)
				if !l.Healthy() {
					t.Error("it does not recover")
				}
			})
		})
	}
}

func TestARefusedTargetIsNotFetchedForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, d := newServer(), newDevice()
		d.refuse = errors.New("abcd.apps.x: bad\nabcd.name: worse")
		var said []string
		s.answer = func(r *http.Request, _ string) (int, string, http.Header) {
			if r.Header.Get("If-None-Match") != "" {
				return 304, "", nil
			}
			return 200, "{}", http.Header{"Etag": {"x"}}
		}
		l := New(Config{Device: d, Transport: s, System: func(text string) { said = append(said, text) }})
		if err := l.pollOnce(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := l.pollOnce(t.Context()); err != nil {
			t.Fatal(err)
		}
		want := []string{"Could not move to new release: abcd.apps.x: bad", "Could not move to new release: abcd.name: worse"}
		if len(d.targets) != 1 || !slices.Equal(said, want) {
			t.Errorf("%d targets, said %q; want one, and %q", len(d.targets), said, want)
		}
	})
}

func TestReportsSayWhatChanged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, d := newServer(), newDevice()
		d.set("cpu_usage", 5)
		l := link(t, s, d)
		time.Sleep(time.Second)
		apps := map[string]any{"x": map[string]any{"release_uuid": "c1"}}
		for range 5 {
			d.set("apps", apps)
			d.set("cpu_usage", 50)
			l.Stirred()
			time.Sleep(time.Second)
		}
		time.Sleep(20 * time.Second)
		path := "/device/v3/state"
		want := []string{`{"abcd":{"cpu_usage":5,"status":"Idle"}}`, `{"abcd":{"apps":{"x":{"release_uuid":"c1"}}}}`}
		if got := s.bodies[path]; !slices.Equal(got, want) {
			t.Errorf("reports %q, want %q", got, want)
		}
		if at := s.at("PATCH " + path); len(at) != 2 || at[1] < 10 {
			t.Errorf("reports at %v s, want ten between them", at)
		}
		time.Sleep(10 * time.Minute)
		if got := s.bodies[path]; len(got) != 3 || got[2] != `{"abcd":{"cpu_usage":50}}` {
			t.Errorf("after ten minutes %q, want the meters once more", got)
		}
		d.set("cpu_usage", 59) // the same step of 20
		time.Sleep(10 * time.Minute)
		if got := s.bodies[path]; len(got) != 3 {
			t.Errorf("a small change is reported: %q", got[3:])
		}
	})
}

func TestRetryAfterIsHeeded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, d := newServer(), newDevice()
		first := true
		s.answer = func(r *http.Request, _ string) (int, string, http.Header) {
			if r.Method == http.MethodPatch && first {
				first = false
				return 429, "", http.Header{"Retry-After": {"120"}}
			}
			return 200, "{}", nil
		}
		link(t, s, d)
		time.Sleep(5 * time.Minute)
		if at := s.at("PATCH /device/v3/state"); !slices.Equal(at, []int{0, 120}) {
			t.Errorf("reports at %v s, want 0 and 120", at)
		}
	})
}

func TestRegistration(t *testing.T) {
	type step struct {
		call   string
		status int
		answer string
	}
	tests := []struct {
		name   string
		steps  []step
		id     int
		reborn int
	}{
		{"new", []step{{"POST /device/register provkey", 201, `{"id":42}`}}, 42, 0},
		{"known-with-our-key", []step{
			{"POST /device/register provkey", 409, `"uuid" must be unique.`}, {"GET /v7/device devicekey", 200, `{"d":[{"id":43}]}`},
		}, 43, 0},
		{"known-without-our-key", []step{
			{"POST /device/register provkey", 409, ""}, {"GET /v7/device devicekey", 401, ""},
			{"GET /v7/device provkey", 200, `{"d":[{"id":44}]}`}, {"POST /api-key/device/44/device-key provkey", 200, ""},
		}, 44, 0},
		{"of-another-fleet", []step{
			{"POST /device/register provkey", 409, ""}, {"GET /v7/device devicekey", 200, `{"d":[]}`}, {"GET /v7/device provkey", 200, `{"d":[]}`},
			{"POST /device/register provkey", 201, `{"id":45}`},
		}, 45, 1},
		{"the-server-comes-back", []step{{"POST /device/register provkey", 500, ""}, {"POST /device/register provkey", 0, ""}, {"POST /device/register provkey", 201, `{"id":46}`}}, 46, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, d := newServer(), newDevice()
				d.id.ID, d.id.Registered, d.id.Provisioning, d.id.Fleet = 0, false, "provkey", 9
				n := 0
				s.answer = func(r *http.Request, body string) (int, string, http.Header) {
					if n == len(tt.steps) {
						return 200, "{}", nil
					}
					st := tt.steps[n]
					n++
					if call := r.Method + " " + r.URL.Path + " " + strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer "); call != st.call {
						t.Errorf("call %d is %s, want %s", n, call, st.call)
					}
					var sent struct {
						Application int
						Key         string `json:"api_key"`
					}
					if r.URL.Path == "/device/register" && (json.Unmarshal([]byte(body), &sent) != nil || sent.Application != 9 || sent.Key != "devicekey") {
						t.Errorf("registration sends %s", body)
					}
					return st.status, st.answer, nil
				}
				link(t, s, d)
				time.Sleep(2 * time.Minute)
				if id := d.Identity(); id.ID != tt.id || !id.Registered || d.reborn != tt.reborn || n != len(tt.steps) {
					t.Errorf("id %d, registered %v, %d new identities, %d calls; want %d, true, %d, %d", id.ID, id.Registered, d.reborn, n, tt.id, tt.reborn, len(tt.steps))
				}
			})
		})
	}
}

func TestLogsGoAndGoOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, d := newServer(), newDevice()
		link(t, s, d)
		say := func(text string) {
			d.lines <- logs.Message{Message: text, Timestamp: time.Now().UnixMilli(), ServiceID: 3, ServiceName: "web"}
			time.Sleep(time.Second)
		}
		say("one")
		say("two")
		if len(s.lines) != 2 || !strings.Contains(s.lines[0], `"message":"one"`) || strings.Contains(s.lines[0], "web") {
			t.Fatalf("the server has %q", s.lines)
		}
		time.Sleep(2 * time.Minute) // idle: the stream closes
		say("three")
		if len(s.lines) != 3 || s.streams != 2 {
			t.Errorf("%d lines on %d streams, want 3 on 2", len(s.lines), s.streams)
		}
		s.mu.Lock()
		s.breakLog = true
		s.mu.Unlock()
		say("four")
		say("five")
		sentAt := time.Now()
		time.Sleep(time.Hour)
		s.mu.Lock()
		s.breakLog = false
		s.mu.Unlock()
		time.Sleep(6 * time.Minute)
		last := d.since[len(d.since)-1]
		if last.After(sentAt) || sentAt.Sub(last) > 15*time.Second {
			t.Errorf("after an hour without a line it goes on from %v, want from just before %v", last, sentAt)
		}
		if n := len(d.since); n > 30 {
			t.Errorf("%d attempts in an hour, want one each five minutes", n)
		}
	})
}

// An hour without a network has pauses grow to a quarter of an hour.
func TestWhatWaitsGoesWhenTheNetworkIsBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, d := newServer(), newDevice()
		s.breakLog = true
		refused := 0
		s.answer = func(r *http.Request, _ string) (int, string, http.Header) {
			if strings.HasSuffix(r.URL.Path, "/tags") {
				refused++
				return 503, "", nil
			}
			return 0, "", nil
		}
		d.tags = map[string]string{"room": "cellar"}
		d.lines <- logs.Message{Message: "one", Timestamp: time.Now().UnixMilli()}
		l := link(t, s, d)
		time.Sleep(time.Hour + 100*time.Second)
		d.lines <- logs.Message{Message: "two", Timestamp: time.Now().UnixMilli()}
		before := refused
		s.mu.Lock()
		s.answer, s.breakLog = nil, false
		began, calls := int(time.Since(s.start).Seconds()), len(s.calls)
		s.mu.Unlock()
		l.Reconnected()
		time.Sleep(time.Second)
		for _, what := range []string{statePath, "PATCH /device/v3/state"} {
			if at := s.at(what); at[len(at)-1] != began {
				t.Errorf("%s at %v s, want it once more at %d", what, at, began)
			}
		}
		if len(s.lines) != 1 || !strings.Contains(s.lines[0], "two") {
			t.Errorf("lines %q, want the one that waits", s.lines)
		}
		if refused != before || len(s.calls) != calls+2 {
			t.Errorf("calls %q, want no other", s.calls[calls:])
		}
	})
}

// A connection that cannot be made takes the kernel seconds. What is said
// meanwhile has not been sent, and attempts become rare all the same.
func TestALineIsNotSentBeforeThereIsAConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, d := newServer(), newDevice()
		s.dialing = 3 * time.Second
		link(t, s, d)
		began := time.Now()
		go func() {
			for range 3600 {
				select {
				case d.lines <- logs.Message{Message: "tick", Timestamp: time.Now().UnixMilli()}:
				default: // in a pause nobody listens
				}
				time.Sleep(time.Second)
			}
		}()
		time.Sleep(time.Hour + time.Minute)
		if last := d.since[len(d.since)-1]; last.After(began) {
			t.Errorf("after %v without a connection it goes on from %v, %v after the first line", time.Hour, last, last.Sub(began))
		}
		if n := len(d.since); n > 30 {
			t.Errorf("%d attempts in an hour, want one each five minutes", n)
		}
	})
}

func TestTagsAreSentOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, d := newServer(), newDevice()
		fail := true
		s.answer = func(r *http.Request, _ string) (int, string, http.Header) {
			if strings.HasSuffix(r.URL.Path, "/tags") && fail {
				fail = false
				return 500, "", nil
			}
			return 200, "{}", nil
		}
		l := link(t, s, d)
		time.Sleep(time.Second)
		d.mu.Lock()
		d.tags = map[string]string{"room": "cellar"}
		d.mu.Unlock()
		l.TagsChanged()
		time.Sleep(time.Hour)
		if got := s.bodies["/device/v3/tags"]; len(got) != 2 || got[1] != `{"abcd":{"room":"cellar"}}` {
			t.Errorf("tags sent: %q, want once more after a failure", got)
		}
	})
}
