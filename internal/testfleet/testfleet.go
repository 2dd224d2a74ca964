// Package testfleet is a fleet server for tests: as much of balena's device API
// as a device calls, with faults on demand. It remembers what devices said and
// when.
package testfleet

import (
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// Provisioning is the key that devices register with.
const Provisioning = "provisioning"

// DeviceID is the server's number of the one device that there is.
const DeviceID = 77

// A Fleet is a running server. Its methods may be called at any time.
type Fleet struct {
	*httptest.Server
	t   testing.TB
	mux *http.ServeMux

	mu         sync.Mutex // guards the fields below
	n          int        // of the target
	target     string
	keys       map[string]bool // of the device, that are known
	known      bool            // the device is registered, whoever did it
	registered map[string]any
	state      map[string]any // as reported
	tags       map[string]string
	logs       []Line
	headers    http.Header // of the last log stream
	polls      []Poll
	reports    []Report
	pinned     []string
	variables  []string // that devices made, name=value
	fault      func(*http.Request) Fault
}

// A Fault is what a request gets instead of its answer; the zero one is none.
type Fault struct {
	Status int  // to answer
	Cut    bool // or the connection ends without an answer
}

// A Poll is a request for the target state.
type Poll struct {
	At     time.Time
	Match  string // If-None-Match
	Answer int
}

// A Report is one of the device's current state.
type Report struct {
	At    time.Time
	State map[string]any
}

// A Line is one of the log stream.
type Line struct {
	Message   string
	Timestamp int64
	IsSystem  bool
	IsStdErr  bool
	ServiceID int
}

// Start serves on l, or on loopback if l is nil, until the test ends.
func Start(t testing.TB, l net.Listener) *Fleet {
	mux := http.NewServeMux()
	f := &Fleet{t: t, mux: mux, keys: map[string]bool{}, state: map[string]any{}, tags: map[string]string{}}
	mux.HandleFunc("POST /device/register", f.register)
	mux.HandleFunc("GET /v7/device", f.find)
	mux.HandleFunc("POST /api-key/device/{id}/device-key", f.exchange)
	mux.HandleFunc("GET /device/v3/{uuid}/state", f.poll)
	mux.HandleFunc("PATCH /device/v3/state", f.report)
	mux.HandleFunc("POST /device/v2/{uuid}/log-stream", f.logStream)
	mux.HandleFunc("GET /v7/device_tag", f.listTags)
	mux.HandleFunc("PATCH /device/v3/tags", f.setTags)
	mux.HandleFunc("POST /v7/device_config_variable", f.setVariable)
	mux.HandleFunc("GET /v7/release", f.findRelease)
	mux.HandleFunc("PATCH /v7/device("+fmt.Sprint(DeviceID)+")", f.pin)
	f.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.mu.Lock()
		fault := f.fault
		f.mu.Unlock()
		var x Fault
		if fault != nil {
			x = fault(r)
		}
		switch {
		case x.Cut:
			// An aborted handler would read the body first, which may have no end.
			c, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				panic(http.ErrAbortHandler)
			}
			c.Close()
		case x.Status != 0:
			if r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, "/state") {
				f.polled(r, x.Status)
			}
			w.WriteHeader(x.Status)
		default:
			mux.ServeHTTP(w, r)
		}
	}))
	if l != nil {
		f.Listener.Close()
		f.Listener = l
	}
	f.Server.Start()
	t.Cleanup(func() { f.CloseClientConnections(); f.Close() })
	return f
}

// Faults has every request ask f first; nil ends that.
func (f *Fleet) Faults(fault func(*http.Request) Fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fault = fault
}

// Away is a Fault for every request: the cable is out.
func Away(*http.Request) Fault { return Fault{Cut: true} }

// Knows makes the server know the device already, by another key than its own.
func (f *Fleet) Knows() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.known = true
}

func bearer(r *http.Request) string {
	return strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
}

func (f *Fleet) register(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case bearer(r) != Provisioning:
		http.Error(w, "who are you", http.StatusUnauthorized)
		return
	case f.known:
		http.Error(w, "uuid must be unique", http.StatusConflict)
		return
	}
	f.known, f.registered = true, map[string]any{}
	json.NewDecoder(r.Body).Decode(&f.registered)
	f.keys[fmt.Sprint(f.registered["api_key"])] = true
	w.WriteHeader(http.StatusCreated)
	fmt.Fprintf(w, `{"id":%d,"uuid":%q,"api_key":%q}`, DeviceID, f.registered["uuid"], f.registered["api_key"])
}

func (f *Fleet) find(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case !f.keys[bearer(r)] && bearer(r) != Provisioning:
		w.WriteHeader(http.StatusUnauthorized)
	case !f.known:
		io.WriteString(w, `{"d":[]}`)
	default:
		fmt.Fprintf(w, `{"d":[{"id":%d}]}`, DeviceID)
	}
}

func (f *Fleet) exchange(w http.ResponseWriter, r *http.Request) {
	var body struct{ APIKey string }
	json.NewDecoder(r.Body).Decode(&body)
	f.mu.Lock()
	defer f.mu.Unlock()
	if bearer(r) != Provisioning || r.PathValue("id") != fmt.Sprint(DeviceID) {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	f.keys[body.APIKey] = true
}

func (f *Fleet) isDevice(w http.ResponseWriter, r *http.Request) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.keys[bearer(r)] {
		w.WriteHeader(http.StatusUnauthorized)
		return false
	}
	return true
}

func (f *Fleet) polled(r *http.Request, answer int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.polls = append(f.polls, Poll{At: time.Now(), Match: r.Header.Get("If-None-Match"), Answer: answer})
}

func (f *Fleet) poll(w http.ResponseWriter, r *http.Request) {
	if !f.isDevice(w, r) {
		return
	}
	f.mu.Lock()
	etag, target := fmt.Sprintf(`"%d"`, f.n), f.target
	f.mu.Unlock()
	if r.Header.Get("If-None-Match") == etag {
		f.polled(r, http.StatusNotModified)
		w.WriteHeader(http.StatusNotModified)
		return
	}
	f.polled(r, http.StatusOK)
	w.Header().Set("ETag", etag)
	io.WriteString(w, strings.ReplaceAll(target, "UUID", r.PathValue("uuid")))
}

func (f *Fleet) report(w http.ResponseWriter, r *http.Request) {
	if !f.isDevice(w, r) {
		return
	}
	var body map[string]map[string]any
	if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
		f.t.Errorf("report: %v", err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, state := range body {
		f.reports = append(f.reports, Report{time.Now(), state})
		maps.Copy(f.state, state)
	}
}

func (f *Fleet) logStream(_ http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	f.headers = r.Header.Clone()
	f.mu.Unlock()
	z, err := gzip.NewReader(r.Body)
	if err != nil {
		return
	}
	dec := json.NewDecoder(z)
	for {
		var line Line
		if dec.Decode(&line) != nil {
			return
		}
		f.mu.Lock()
		f.logs = append(f.logs, line)
		f.mu.Unlock()
	}
}

func (f *Fleet) listTags(w http.ResponseWriter, _ *http.Request) {
	var list []string
	tags := f.Tags()
	for _, k := range slices.Sorted(maps.Keys(tags)) {
		list = append(list, fmt.Sprintf(`{"id":1,"tag_key":%q,"value":%q}`, k, tags[k]))
	}
	fmt.Fprintf(w, `{"d":[%s]}`, strings.Join(list, ","))
}

func (f *Fleet) setTags(_ http.ResponseWriter, r *http.Request) {
	var body map[string]map[string]string
	if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
		f.t.Errorf("tags: %v", err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, tags := range body {
		maps.Copy(f.tags, tags)
	}
}

// findRelease knows one release: commit c1 is number 10.
func (f *Fleet) findRelease(w http.ResponseWriter, r *http.Request) {
	if strings.Contains(r.URL.Query().Get("$filter"), "(commit eq 'c1')") {
		io.WriteString(w, `{"d":[{"id":10}]}`)
		return
	}
	io.WriteString(w, `{"d":[]}`)
}

func (f *Fleet) pin(_ http.ResponseWriter, r *http.Request) {
	var body map[string]any
	if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
		f.t.Errorf("pin: %v", err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.pinned = append(f.pinned, fmt.Sprintf("%v before poll %d", body["is_pinned_on__release"], len(f.polls)))
}

// Pinned tells the releases to which the device was pinned, and when, such as
// "10 before poll 0".
func (f *Fleet) Pinned() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.pinned)
}

func (f *Fleet) setVariable(w http.ResponseWriter, r *http.Request) {
	var body struct{ Name, Value string }
	if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
		f.t.Errorf("variable: %v", err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.variables = append(f.variables, body.Name+"="+body.Value)
	w.WriteHeader(http.StatusCreated)
}

// Variables are those that devices made, as name=value.
func (f *Fleet) Variables() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.variables)
}

// HandleFunc adds to what the server answers.
func (f *Fleet) HandleFunc(pattern string, h http.HandlerFunc) { f.mux.HandleFunc(pattern, h) }

// Wants changes the target state. UUID in it stands for the device's.
func (f *Fleet) Wants(target string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.n++
	f.target = target
}

// Registered is the body with which the device registered.
func (f *Fleet) Registered() map[string]any {
	f.mu.Lock()
	defer f.mu.Unlock()
	return maps.Clone(f.registered)
}

// Tags are those that the device has sent.
func (f *Fleet) Tags() map[string]string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return maps.Clone(f.tags)
}

// Reported reads the state at a path of keys.
func (f *Fleet) Reported(keys ...string) any {
	f.mu.Lock()
	defer f.mu.Unlock()
	var v any = f.state
	for _, k := range keys {
		m, _ := v.(map[string]any)
		v = m[k]
	}
	return v
}

// Heard reports whether a line of the log stream has the text.
func (f *Fleet) Heard(text string) bool {
	return slices.ContainsFunc(f.Lines(), func(l Line) bool { return strings.Contains(l.Message, text) })
}

// Lines are those of all log streams.
func (f *Fleet) Lines() []Line {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.logs)
}

// LogHeaders are those of the last log stream.
func (f *Fleet) LogHeaders() http.Header {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.headers.Clone()
}

// Polls are those that were answered.
func (f *Fleet) Polls() []Poll {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.polls)
}

// Reports are those that were accepted.
func (f *Fleet) Reports() []Report {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.reports)
}
