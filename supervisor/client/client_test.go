package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	moby "github.com/moby/moby/client"

	"github.com/minke-os/minke/internal/testenv"
)

// serve gives the address of an engine that speaks a version of the API.
func serve(t *testing.T, version string, answer http.HandlerFunc) string {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if version != "" {
			w.Header().Set("Api-Version", version)
		}
		if r.URL.Path == "/_ping" {
			io.WriteString(w, "OK")
			return
		}
		answer(w, r)
	}))
	s.Listener.Close()
	s.Listener = l
	s.Start()
	t.Cleanup(s.Close)
	return "unix://" + socket
}

func newClient(t *testing.T, o Options) *Client {
	t.Helper()
	c, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// TestRequestsAndResultsAreThoseOfMobysClient makes each call with both clients
// of an engine that repeats what it was asked.
func TestRequestsAndResultsAreThoseOfMobysClient(t *testing.T) {
	var got []string
	answers := map[string]string{
		"GET /containers/json":      `[{"Id":"c","Names":["/n"],"State":"running"}]`,
		"GET /containers/c/json":    `{"Id":"c","Name":"/n","State":{"Status":"running"},"HostConfig":{"Binds":["a:/b"]}}`,
		"POST /containers/create":   `{"Id":"new","Warnings":["w"]}`,
		"POST /containers/c/update": `{"Warnings":["w"]}`,
		"GET /containers/c/logs":    "line",
		"GET /networks":             `[{"Name":"n","Id":"i","IPAM":{"Config":[{"Subnet":"10.1.0.0/16"}]}}]`,
		"POST /networks/create":     `{"Id":"i"}`,
		"GET /volumes":              `{"Volumes":[{"Name":"v","Driver":"local"}]}`,
		"POST /volumes/create":      `{"Name":"v","Driver":"local"}`,
		"GET /images/json":          `[{"Id":"sha256:1","RepoTags":["a:1"]}]`,
		"GET /images/r.io/a:1/json": `{"Id":"sha256:1","RepoTags":["a:1"]}`,
		"DELETE /images/a:1":        `[{"Untagged":"a:1"}]`,
		"POST /images/create":       "{\"id\":\"l\",\"status\":\"Downloading\",\"progressDetail\":{\"current\":1,\"total\":2}}\n{\"errorDetail\":{\"message\":\"gone\"}}\n",
		"GET /info":                 `{"DockerRootDir":"/data","DriverStatus":[["a","b"]]}`,
		"GET /events":               "{\"Type\":\"container\",\"Action\":\"start\"}\n",
	}
	host := serve(t, "1.56", func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		path := strings.TrimPrefix(r.URL.Path, "/v1.56")
		got = append(got, fmt.Sprintf("%s %s %s %s %q %s", r.Method, r.URL.Path, r.URL.RawQuery, r.Header.Get("X-Registry-Auth"), r.Header.Get("Content-Type"), body))
		io.WriteString(w, answers[r.Method+" "+path])
	})
	ours := newClient(t, Options{Host: host})
	theirs, err := moby.New(moby.WithHost(host))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { theirs.Close() })

	ctx := t.Context()
	config := &container.Config{Image: "a", Env: []string{"x=1"}}
	hostConfig := &container.HostConfig{Binds: []string{"a:/b"}}
	networking := &network.NetworkingConfig{EndpointsConfig: map[string]*network.EndpointSettings{"n": {Aliases: []string{"x"}}}}
	ipam := &network.IPAM{Config: []network.IPAMConfig{{Subnet: netip.MustParsePrefix("10.1.0.0/16")}}}
	policy, seconds := &container.RestartPolicy{Name: "always"}, 0
	calls := []struct {
		name         string
		ours, theirs func() (any, error)
	}{
		{"container-list", func() (any, error) {
			return ours.ContainerList(ctx, ContainerListOptions{All: true, Filters: make(Filters).Add("label", "a", "b").Add("name", "c")})
		}, func() (any, error) {
			return theirs.ContainerList(ctx, moby.ContainerListOptions{All: true, Filters: make(moby.Filters).Add("label", "a", "b").Add("name", "c")})
		}},
		{"container-list-of-the-running", func() (any, error) { return ours.ContainerList(ctx, ContainerListOptions{}) }, func() (any, error) { return theirs.ContainerList(ctx, moby.ContainerListOptions{}) }},
		{"container-inspect", func() (any, error) {
			res, err := ours.ContainerInspect(ctx, "c", ContainerInspectOptions{})
			return res.Container, err
		}, func() (any, error) {
			res, err := theirs.ContainerInspect(ctx, "c", moby.ContainerInspectOptions{})
			return res.Container, err
		}},
		{"container-create", func() (any, error) {
			return ours.ContainerCreate(ctx, ContainerCreateOptions{Name: "n", Config: config, HostConfig: hostConfig, NetworkingConfig: networking})
		}, func() (any, error) {
			return theirs.ContainerCreate(ctx, moby.ContainerCreateOptions{Name: "n", Config: config, HostConfig: hostConfig, NetworkingConfig: networking})
		}},
		{"container-start", func() (any, error) { return ours.ContainerStart(ctx, "c", ContainerStartOptions{}) }, func() (any, error) { return theirs.ContainerStart(ctx, "c", moby.ContainerStartOptions{}) }},
		{"info", func() (any, error) { return ours.Info(ctx, InfoOptions{}) }, func() (any, error) { return theirs.Info(ctx, moby.InfoOptions{}) }},
		{"container-stop-within", func() (any, error) { return ours.ContainerStop(ctx, "c", ContainerStopOptions{Timeout: &seconds}) }, func() (any, error) {
			return theirs.ContainerStop(ctx, "c", moby.ContainerStopOptions{Timeout: &seconds})
		}},
		{"container-stop", func() (any, error) { return ours.ContainerStop(ctx, "c", ContainerStopOptions{}) }, func() (any, error) { return theirs.ContainerStop(ctx, "c", moby.ContainerStopOptions{}) }},
		{"container-remove", func() (any, error) {
			return ours.ContainerRemove(ctx, "c", ContainerRemoveOptions{RemoveVolumes: true, Force: true})
		}, func() (any, error) {
			return theirs.ContainerRemove(ctx, "c", moby.ContainerRemoveOptions{RemoveVolumes: true, Force: true})
		}},
		{"container-rename", func() (any, error) { return ours.ContainerRename(ctx, "c", ContainerRenameOptions{NewName: "m"}) }, func() (any, error) {
			return theirs.ContainerRename(ctx, "c", moby.ContainerRenameOptions{NewName: "m"})
		}},
		{"container-update", func() (any, error) {
			return ours.ContainerUpdate(ctx, "c", ContainerUpdateOptions{RestartPolicy: policy})
		}, func() (any, error) {
			return theirs.ContainerUpdate(ctx, "c", moby.ContainerUpdateOptions{RestartPolicy: policy})
		}},
		{"container-logs", func() (any, error) {
			return text(ours.ContainerLogs(ctx, "c", ContainerLogsOptions{ShowStdout: true, ShowStderr: true, Timestamps: true, Follow: true, Since: "1.5", Tail: "9"}))
		}, func() (any, error) {
			return text(theirs.ContainerLogs(ctx, "c", moby.ContainerLogsOptions{ShowStdout: true, ShowStderr: true, Timestamps: true, Follow: true, Since: "1.5", Tail: "9"}))
		}},
		{"network-list", func() (any, error) { return ours.NetworkList(ctx, NetworkListOptions{}) }, func() (any, error) { return theirs.NetworkList(ctx, moby.NetworkListOptions{}) }},
		{"network-create", func() (any, error) {
			res, err := ours.NetworkCreate(ctx, "n", NetworkCreateOptions{Driver: "bridge", EnableIPv6: new(true), IPAM: ipam, Internal: true, Attachable: true, ConfigOnly: true, Options: map[string]string{"o": "1"}, Labels: map[string]string{"l": "1"}})
			return res.ID, err
		}, func() (any, error) {
			res, err := theirs.NetworkCreate(ctx, "n", moby.NetworkCreateOptions{Driver: "bridge", EnableIPv6: new(true), IPAM: ipam, Internal: true, Attachable: true, ConfigOnly: true, Options: map[string]string{"o": "1"}, Labels: map[string]string{"l": "1"}})
			return res.ID, err
		}},
		{"network-remove", func() (any, error) { return ours.NetworkRemove(ctx, "n", NetworkRemoveOptions{}) }, func() (any, error) { return theirs.NetworkRemove(ctx, "n", moby.NetworkRemoveOptions{}) }},
		{"network-connect", func() (any, error) {
			return ours.NetworkConnect(ctx, "n", NetworkConnectOptions{Container: "c", EndpointConfig: networking.EndpointsConfig["n"]})
		}, func() (any, error) {
			return theirs.NetworkConnect(ctx, "n", moby.NetworkConnectOptions{Container: "c", EndpointConfig: networking.EndpointsConfig["n"]})
		}},
		{"volume-list", func() (any, error) {
			res, err := ours.VolumeList(ctx, VolumeListOptions{Filters: make(Filters).Add("label", "a")})
			return res.Items, err
		}, func() (any, error) {
			res, err := theirs.VolumeList(ctx, moby.VolumeListOptions{Filters: make(moby.Filters).Add("label", "a")})
			return res.Items, err
		}},
		{"volume-create", func() (any, error) {
			return ours.VolumeCreate(ctx, VolumeCreateOptions{Name: "v", Driver: "local", DriverOpts: map[string]string{"o": "1"}, Labels: map[string]string{"l": "1"}})
		}, func() (any, error) {
			return theirs.VolumeCreate(ctx, moby.VolumeCreateOptions{Name: "v", Driver: "local", DriverOpts: map[string]string{"o": "1"}, Labels: map[string]string{"l": "1"}})
		}},
		{"volume-remove", func() (any, error) { return ours.VolumeRemove(ctx, "v", VolumeRemoveOptions{}) }, func() (any, error) { return theirs.VolumeRemove(ctx, "v", moby.VolumeRemoveOptions{}) }},
		{"image-list", func() (any, error) { return ours.ImageList(ctx, ImageListOptions{All: true}) }, func() (any, error) { return theirs.ImageList(ctx, moby.ImageListOptions{All: true}) }},
		{"image-inspect", func() (any, error) { return ours.ImageInspect(ctx, "r.io/a:1") }, func() (any, error) { return theirs.ImageInspect(ctx, "r.io/a:1") }},
		{"image-remove", func() (any, error) { return ours.ImageRemove(ctx, "a:1", ImageRemoveOptions{Force: true}) }, func() (any, error) { return theirs.ImageRemove(ctx, "a:1", moby.ImageRemoveOptions{Force: true}) }},
		{"image-pull", func() (any, error) { return pull(ours.ImagePull(ctx, "a", ImagePullOptions{RegistryAuth: "YQ=="})) }, func() (any, error) {
			return pull(theirs.ImagePull(ctx, "a", moby.ImagePullOptions{RegistryAuth: "YQ=="}))
		}},
		{"image-pull-by-digest", func() (any, error) {
			return pull(ours.ImagePull(ctx, "r.io:5000/b/a:1@sha256:"+strings.Repeat("ab", 32), ImagePullOptions{}))
		}, func() (any, error) {
			return pull(theirs.ImagePull(ctx, "r.io:5000/b/a:1@sha256:"+strings.Repeat("ab", 32), moby.ImagePullOptions{}))
		}},
		{"events", func() (any, error) {
			res := ours.Events(ctx, EventsListOptions{Filters: make(Filters).Add("type", "container")})
			return <-res.Messages, <-res.Err
		}, func() (any, error) {
			res := theirs.Events(ctx, moby.EventsListOptions{Filters: make(moby.Filters).Add("type", "container")})
			return <-res.Messages, <-res.Err
		}},
	}
	for _, tt := range calls {
		t.Run(tt.name, func(t *testing.T) {
			got = nil
			want, wantErr := tt.theirs()
			asked := got
			got = nil
			res, err := tt.ours()
			if wantErr == nil && err != nil || wantErr != nil && (err == nil || err.Error() != wantErr.Error()) {
				t.Fatalf("error = %v, want %v", err, wantErr)
			}
			if !reflect.DeepEqual(got, asked) {
				t.Errorf("the request is\n%s\nwant\n%s", got, asked)
			}
			if a, b := plain(t, res), plain(t, want); a != b {
				t.Errorf("the result is\n%s\nwant\n%s", a, b)
			}
		})
	}
}

// plain is a value without the names of its types.
func plain(t *testing.T, v any) string {
	t.Helper()
	out, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

func text(r io.ReadCloser, err error) (any, error) {
	if err != nil {
		return nil, err
	}
	defer r.Close()
	out, err := io.ReadAll(r)
	return string(out), err
}

func pull(r ImagePullResponse, err error) (any, error) {
	if err != nil {
		return nil, err
	}
	defer r.Close()
	var list []any
	for msg, err := range r.JSONMessages(context.Background()) {
		list = append(list, msg)
		if err != nil {
			return list, err
		}
	}
	return list, nil
}

func TestErrorsOfTheEngineHaveTheirKind(t *testing.T) {
	var status int
	var body string
	c := newClient(t, Options{Host: serve(t, "1.56", func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		io.WriteString(w, body)
	})})
	tests := []struct {
		status int
		body   string
		kind   error // nil is success
		want   string
	}{
		{304, "", nil, ""},
		{204, "", nil, ""},
		{404, `{"message":"No such container: c"}`, cerrdefs.ErrNotFound, "Error response from daemon: No such container: c"},
		{409, `{"message":"in use"}`, cerrdefs.ErrConflict, "Error response from daemon: in use"},
		{400, "plain\n", cerrdefs.ErrInvalidArgument, "Error response from daemon: plain"},
		{301, "", cerrdefs.ErrInvalidArgument, "Error response from daemon: POST /v1.56/containers/c/start: 301 Moved Permanently"},
		{418, `{}`, cerrdefs.ErrInvalidArgument, "Error response from daemon: {}"},
		{401, `{"message":"m"}`, cerrdefs.ErrUnauthenticated, "Error response from daemon: m"},
		{403, `{"message":"m"}`, cerrdefs.ErrPermissionDenied, "Error response from daemon: m"},
		{429, `{"message":"m"}`, cerrdefs.ErrResourceExhausted, "Error response from daemon: m"},
		{501, `{"message":"m"}`, cerrdefs.ErrNotImplemented, "Error response from daemon: m"},
		{503, `{"message":"m"}`, cerrdefs.ErrUnavailable, "Error response from daemon: m"},
		{507, `{"message":"no space left on device"}`, cerrdefs.ErrInternal, "Error response from daemon: no space left on device"},
	}
	for _, tt := range tests {
		status, body = tt.status, tt.body
		_, err := c.ContainerStart(t.Context(), "c", ContainerStartOptions{})
		if !errors.Is(err, tt.kind) || err != nil && err.Error() != tt.want {
			t.Errorf("%d %s: %v, want %q, %v", tt.status, tt.body, err, tt.want, tt.kind)
		}
	}
}

func TestVersionIsTheLowerOfBoth(t *testing.T) {
	tests := []struct{ engine, want string }{{"1.41", "1.41"}, {"1.56", "1.56"}, {"1.99", MaxVersion}, {"2.0", MaxVersion}, {"", MaxVersion}, {"1.9", ""}, {"1.39", ""}}
	for _, tt := range tests {
		var asked []string
		c := newClient(t, Options{Host: serve(t, tt.engine, func(_ http.ResponseWriter, r *http.Request) { asked = append(asked, r.URL.Path) })})
		for range 2 {
			_, err := c.ContainerStart(t.Context(), "c", ContainerStartOptions{})
			if tt.want == "" {
				if err == nil || !strings.Contains(err.Error(), "update the engine") {
					t.Errorf("version %s: %v, want to be told to update the engine", tt.engine, err)
				}
			} else if path := "/v" + tt.want + "/containers/c/start"; err != nil || asked[len(asked)-1] != path {
				t.Errorf("version %s: asked for %v, %v, want %s", tt.engine, asked, err, path)
			}
		}
	}
}

func TestAnEngineThatDoesNotAnswerIsNamed(t *testing.T) {
	host := "unix://" + filepath.Join(t.TempDir(), "none")
	_, err := newClient(t, Options{Host: host}).ImageList(t.Context(), ImageListOptions{})
	if !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "cannot connect to the engine at "+host+"; is it running?") {
		t.Errorf("error = %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := newClient(t, Options{Host: host}).ImageList(ctx, ImageListOptions{}); err != context.Canceled {
		t.Errorf("error = %v, want the context's", err)
	}
	for _, host := range []string{"", "/run/x.sock", "unix://", "ssh://a"} {
		if _, err := New(Options{Host: host}); err == nil || !strings.Contains(err.Error(), "give unix:///path/to/socket") {
			t.Errorf("New(%q): %v", host, err)
		}
	}
}

func TestAnEmptyNameAsksNothing(t *testing.T) {
	c := newClient(t, Options{Host: serve(t, "1.56", func(_ http.ResponseWriter, r *http.Request) { t.Errorf("%s %s was asked", r.Method, r.URL) })})
	for _, name := range []string{"", " ", "/"} {
		if _, err := c.ContainerRemove(t.Context(), name, ContainerRemoveOptions{}); !cerrdefs.IsInvalidArgument(err) {
			t.Errorf("removing %q: %v", name, err)
		}
	}
}

func TestHeadersAndDialerAreUsed(t *testing.T) {
	testenv.NoGoroutineLeft(t)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, `{"Id":%q}`, r.Header.Get("X-Minke-Priority")+" "+r.Host)
	}))
	defer s.Close()
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", s.Listener.Addr().String())
	}
	c := newClient(t, Options{Host: "unix:///in-process", Dial: dial, Headers: map[string]string{"X-Minke-Priority": "low"}})
	defer c.Close()
	if img, err := c.ImageInspect(t.Context(), "a"); err != nil || img.ID != "low engine" {
		t.Errorf("inspect = %q, %v", img.ID, err)
	}
	direct := newClient(t, Options{Host: "tcp://" + s.Listener.Addr().String()})
	defer direct.Close()
	if img, err := direct.ImageInspect(t.Context(), "a"); err != nil || img.ID != " "+s.Listener.Addr().String() {
		t.Errorf("inspect over TCP = %q, %v", img.ID, err)
	}
}
