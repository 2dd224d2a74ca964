package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/system"

	"github.com/minke-os/minke/engine"
	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/oci"
)

// fake is an engine with one container, web; what a test does not expect to be
// called panics.
type fake struct {
	Engine
	logs    func(ctx context.Context, stdout, stderr io.Writer) error
	stats   []container.StatsResponse
	statErr error
	past    []events.Message
	next    chan events.Message
}

func (f fake) Version() system.VersionResponse { return system.VersionResponse{Version: "1.2.3"} }

func (f fake) ContainerInspect(name string, _ bool) (container.InspectResponse, error) {
	if name != "web" {
		return container.InspectResponse{}, errdef.NotFound.Errorf("No such container: %s", name)
	}
	return container.InspectResponse{ID: "id", NetworkSettings: &container.NetworkSettings{Networks: map[string]*network.EndpointSettings{
		"bridge": {IPAddress: netip.MustParseAddr("172.17.0.2"), Gateway: netip.MustParseAddr("172.17.0.1"), IPPrefixLen: 16},
	}}}, nil
}

func (f fake) ImageList(o engine.ImageListOptions) ([]image.Summary, error) {
	return []image.Summary{{ID: "sha256:1", Size: 7, RepoTags: o.Filters["reference"]}}, nil
}

func (f fake) ImageInspect(string, oci.Platform) (engine.ImageDescription, error) {
	c := &dockerspec.DockerOCIImageConfig{}
	c.Volumes = map[string]struct{}{"/v": {}}
	return engine.ImageDescription{InspectResponse: image.InspectResponse{Config: c}}, nil
}

func (f fake) NetworkList(engine.Filters) ([]network.Network, error) {
	return make([]network.Network, 1), nil
}

func (f fake) ContainerLogs(string, engine.LogOptions) (engine.Logs, error) {
	return engine.Logs{Copy: f.logs}, nil
}

func (f fake) ContainerStats(_ context.Context, _ string, _ engine.StatsOptions, emit func(container.StatsResponse) error) error {
	for _, s := range f.stats {
		if err := emit(s); err != nil {
			return err
		}
	}
	return f.statErr
}

func (f fake) Events() ([]events.Message, <-chan events.Message, func()) {
	return f.past, f.next, func() {}
}

func serve(t *testing.T, e Engine) *httptest.Server {
	t.Helper()
	s := httptest.NewServer(New(e, slog.New(slog.DiscardHandler)))
	t.Cleanup(s.Close)
	return s
}

func get(t *testing.T, url string) (*http.Response, string) {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("GET %s: %v", url, err)
	}
	return resp, string(body)
}

func TestStatusOf(t *testing.T) {
	tests := []struct {
		err  error
		want int
	}{
		{errdef.Invalid.Errorf("x"), 400},
		{errdef.Unauthorized.Errorf("x"), 401},
		{errdef.Forbidden.Errorf("x"), 403},
		{errdef.NotFound.Errorf("x"), 404},
		{errdef.Conflict.Errorf("x"), 409},
		{errdef.Busy.Errorf("x"), 409},
		{errdef.NotModified.Errorf("x"), 304},
		{errdef.Unavailable.Errorf("x"), 503},
		{errdef.Unsupported.Errorf("x"), 501},
		{errors.New("x"), 500},
		{fmt.Errorf("more: %w", errdef.NotFound.Errorf("x")), 404},
		{errdef.Invalid.Errorf("outer: %w", errdef.NotFound.Errorf("x")), 400},
	}
	for _, tt := range tests {
		if got := statusOf(tt.err); got != tt.want {
			t.Errorf("statusOf(%v) = %d, want %d", tt.err, got, tt.want)
		}
	}
}

func TestCutVersion(t *testing.T) {
	newest := minor(MaxVersion)
	tests := []struct {
		path string
		v    version
		rest string
		ok   bool
	}{
		{"/v1.41/info", 41, "/info", true},
		{"/v1.22/containers/web/json", 22, "/containers/web/json", true},
		{"/v" + MaxVersion + "/info", newest, "/info", true},
		{"/info", newest, "/info", true},
		{"/volumes", newest, "/volumes", true},
		{"/version", newest, "/version", true},
		{"/v1.21/info", 0, "", false},
		{"/v1.999/info", 0, "", false},
		{"/v2.0/info", 0, "", false},
	}
	for _, tt := range tests {
		v, rest, err := cutVersion(tt.path)
		if (err == nil) != tt.ok || tt.ok && (v != tt.v || rest != tt.rest) {
			t.Errorf("cutVersion(%q) = %d, %q, %v; want %d, %q, ok %v", tt.path, v, rest, err, tt.v, tt.rest, tt.ok)
		}
	}
}

func FuzzCutVersion(f *testing.F) {
	f.Add("/v1.41/info")
	f.Add("/v/v1.")
	f.Fuzz(func(t *testing.T, path string) {
		v, rest, err := cutVersion(path)
		if err == nil && (v < minor(MinVersion) || v > minor(MaxVersion) || strings.HasPrefix(path, "/") && !strings.HasPrefix(rest, "/")) {
			t.Errorf("cutVersion(%q) = %d, %q", path, v, rest)
		}
	})
}

func TestFlagsOfTheQuery(t *testing.T) {
	for query, want := range map[string]bool{
		"": false, "?x": false, "?x=": false, "?x=0": false, "?x=no": false, "?x=False": false, "?x=none": false,
		"?x=1": true, "?x=true": true, "?x=anything": true,
	} {
		if got := boolParam(httptest.NewRequest("GET", "/"+query, nil), "x"); got != want {
			t.Errorf("boolParam of %q = %v, want %v", query, got, want)
		}
	}
}

func TestBodies(t *testing.T) {
	tests := []struct {
		name, contentType, body string
		optional, ok            bool
	}{
		{"json", "application/json", `{"Cmd":["a"]}`, false, true},
		{"json-with-charset", "application/json; charset=utf-8", `{}`, false, true},
		{"text", "text/plain", `{}`, false, false},
		{"no-type", "", `{}`, false, false},
		{"nothing-where-something-is-needed", "application/json", "", false, false},
		{"nothing-where-that-is-fine", "", "", true, true},
		{"two-values", "application/json", `{} {}`, false, false},
		{"half", "application/json", `{"Cmd":`, false, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := httptest.NewRequest("POST", "/", strings.NewReader(tt.body))
			r.Header.Set("Content-Type", tt.contentType)
			var v container.Config
			if err := readJSON(r, &v, tt.optional); (err == nil) != tt.ok || err != nil && !errdef.Is(err, errdef.Invalid) {
				t.Errorf("readJSON = %v, ok %v wanted", err, tt.ok)
			}
		})
	}
}

func TestFramesAreWhatClientsTakeApart(t *testing.T) {
	var wire, stdout, stderr bytes.Buffer
	out, errOut := outputs(&wire, false)
	fmt.Fprint(out, "one")
	fmt.Fprint(errOut, "two")
	fmt.Fprint(out, "")
	fmt.Fprint(out, strings.Repeat("x", 100_000))
	if _, err := stdcopy.StdCopy(&stdout, &stderr, &wire); err != nil {
		t.Fatal(err)
	}
	if stdout.Len() != 3+100_000 || stderr.String() != "two" {
		t.Errorf("stdout has %d bytes, stderr %q", stdout.Len(), stderr.String())
	}
}

// Requests as docker-compose 1.29 (1.22 and up) and docker 20.10 (1.41) send
// them, and what they read of the answers.
func TestOldClientsFindWhatTheyRead(t *testing.T) {
	s := serve(t, fake{})
	tests := []struct {
		path   string
		status int
		want   []string
	}{
		{"/_ping", 200, []string{"OK"}},
		{"/v1.22/version", 200, []string{`"ApiVersion":"` + MaxVersion + `"`, `"MinAPIVersion":"1.22"`}},
		{"/v1.22/containers/web/json", 200, []string{`"IPAddress":"172.17.0.2"`, `"Gateway":"172.17.0.1"`, `"IPPrefixLen":16`, `"Networks":{"bridge":`}},
		{"/v1.41/containers/web/json", 200, []string{`"IPAddress":"172.17.0.2"`, `"SecondaryIPAddresses":null`}},
		{"/containers/web/json", 200, []string{`"IPAddress":"172.17.0.2"`}},
		{"/v1.22/containers/nosuch/json", 404, []string{`{"message":"No such container: nosuch"}`}},
		{"/v1.22/images/json?filter=busybox", 200, []string{`"VirtualSize":7`, `"RepoTags":["busybox"]`}},
		{"/v1.41/images/json", 200, []string{`"RepoTags":["<none>:<none>"]`}},
		{"/v1.41/images/busybox/json", 200, []string{`"ContainerConfig":{`, `"Labels":null`, `"Volumes":{"/v":{}}`}},
		{"/v1.50/images/busybox/json", 200, []string{`"Config":{"Volumes":{"/v":{}}}`}},
		{"/images/busybox/json", 200, []string{`"ContainerConfig":{`, `"Volumes":{"/v":{}}`}},
		{"/v1.41/networks", 200, []string{`"Containers":{}`}},
		{"/v1.41/images/json?filter=busybox", 200, []string{`"VirtualSize":7`, `"RepoTags":["<none>:<none>"]`}},
		{"/v1.21/version", 400, []string{"client version 1.21 is too old. Minimum supported API version is 1.22"}},
		{"/v1.99/version", 400, []string{"client version 1.99 is too new. Maximum supported API version is " + MaxVersion}},
		{"/v1.41/nosuch", 404, []string{"page not found"}},
		{"/v1.41/swarm", 503, []string{"This node is not a swarm manager"}},
	}
	for _, tt := range tests {
		resp, body := get(t, s.URL+tt.path)
		if resp.StatusCode != tt.status {
			t.Errorf("GET %s: status %d, want %d: %s", tt.path, resp.StatusCode, tt.status, body)
		}
		for _, want := range tt.want {
			if !strings.Contains(body, want) {
				t.Errorf("GET %s: %s\nwant %s in it", tt.path, body, want)
			}
		}
	}
}

func TestLogsThatBreakOffEndWithoutAMessageInTheStream(t *testing.T) {
	s := serve(t, fake{logs: func(_ context.Context, stdout, _ io.Writer) error {
		fmt.Fprint(stdout, "line\n")
		return errors.New("the disk is gone")
	}})
	resp, body := get(t, s.URL+"/v1.41/containers/web/logs?stdout=1")
	if resp.StatusCode != 200 || body != "\x01\x00\x00\x00\x00\x00\x00\x05line\n" {
		t.Errorf("status %d, body %q", resp.StatusCode, body)
	}
	for v, want := range map[string]string{"1.41": "application/vnd.docker.raw-stream", "1.42": "application/vnd.docker.multiplexed-stream"} {
		if resp, _ := get(t, s.URL+"/v"+v+"/containers/web/logs?stdout=1"); resp.Header.Get("Content-Type") != want {
			t.Errorf("content type at %s: %s, want %s", v, resp.Header.Get("Content-Type"), want)
		}
	}
}

func TestStatsFailBeforeTheFirstSampleWithAStatusAndThenByBreakingOff(t *testing.T) {
	failing := errdef.NotFound.Errorf("No such container: web")
	if resp, body := get(t, serve(t, fake{statErr: failing}).URL+"/containers/web/stats"); resp.StatusCode != 404 || !strings.Contains(body, "No such container") {
		t.Errorf("status %d, %s", resp.StatusCode, body)
	}
	if resp, _ := get(t, serve(t, fake{}).URL+"/containers/web/stats?stream=1&one-shot=1"); resp.StatusCode != 400 {
		t.Errorf("stream and one-shot: status %d, want 400", resp.StatusCode)
	}
	s := serve(t, fake{stats: []container.StatsResponse{{ID: "id"}}, statErr: errors.New("lost")})
	resp, err := http.Get(s.URL + "/containers/web/stats")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var sample container.StatsResponse
	dec := json.NewDecoder(resp.Body)
	if err := dec.Decode(&sample); err != nil || sample.ID != "id" {
		t.Fatalf("first sample %+v, %v", sample, err)
	}
	if err := dec.Decode(&sample); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("after it: %v, want %v", err, io.ErrUnexpectedEOF)
	}
}

func TestEventsOfThePastThenThePresent(t *testing.T) {
	message := func(a events.Action, typ events.Type, second int64) events.Message {
		return events.Message{Type: typ, Action: a, Scope: "local", Time: second, TimeNano: second * 1e9,
			Actor: events.Actor{ID: "0123456789", Attributes: map[string]string{"name": "web", "image": "busybox", "a": "b"}}}
	}
	past := []events.Message{message("create", "container", 10), message("start", "container", 20), message("connect", "network", 30)}
	next := make(chan events.Message, 1)
	next <- message("exec_create: ls -l", "container", time.Now().Unix())
	close(next) // as for a listener that fell behind
	s := serve(t, fake{past: past, next: next})
	_, body := get(t, s.URL+`/events?since=15&filters={"container":["web"],"label":["a=b"],"event":["start","exec_create"]}`)
	var got []string
	for dec := json.NewDecoder(strings.NewReader(body)); dec.More(); {
		var m struct{ Status, ID, From string }
		if err := dec.Decode(&m); err != nil {
			t.Fatal(err)
		}
		got = append(got, m.Status+" "+m.ID+" "+m.From)
	}
	if want := "start 0123456789 busybox|exec_create: ls -l 0123456789 busybox"; strings.Join(got, "|") != want {
		t.Errorf("events %q, want %q", got, want)
	}
	if resp, _ := get(t, s.URL+"/events?since=20&until=10"); resp.StatusCode != 400 {
		t.Errorf("since after until: status %d, want 400", resp.StatusCode)
	}
}

// The examples of Docker's API say "Entrypoint": "".
func TestACommandMayBeOneWord(t *testing.T) {
	r := httptest.NewRequest("POST", "/containers/create", strings.NewReader(`{"Image":"a","Cmd":"date","Entrypoint":""}`))
	r.Header.Set("Content-Type", "application/json")
	var req createRequest
	if err := readJSON(r, &req, false); err != nil {
		t.Fatal(err)
	}
	if err := req.settle(); err != nil || len(req.Config.Cmd) != 1 || req.Config.Cmd[0] != "date" || len(req.Config.Entrypoint) != 1 {
		t.Errorf("got %q %q, %v; want one word each", req.Config.Cmd, req.Config.Entrypoint, err)
	}
}

func FuzzCreateBody(f *testing.F) {
	f.Add([]byte(`{"Image":"a","MacAddress":"02:42:ac:11:00:05","HostConfig":{"NetworkMode":"b"},"NetworkingConfig":{"EndpointsConfig":{"b":null}}}`))
	f.Add([]byte(`{"MacAddress":"02:42:ac:11:00:05","NetworkingConfig":{"EndpointsConfig":{"default":{}}}}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		r := httptest.NewRequest("POST", "/containers/create", bytes.NewReader(body))
		r.Header.Set("Content-Type", "application/json")
		var req createRequest
		if readJSON(r, &req, false) == nil {
			req.settle()
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		var exec container.ExecCreateRequest
		readJSON(r, &exec, false)
	})
}
