package supervisor_test

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	moby "github.com/moby/moby/client"

	"github.com/minke-os/minke/internal/testdaemon"
	"github.com/minke-os/minke/internal/testenv"
	"github.com/minke-os/minke/supervisor"
	"github.com/minke-os/minke/supervisor/client"
)

const testImage = "minke-supervisor-test:1"

// A device is a supervisor under test, reached only through HTTP.
type device struct {
	t    *testing.T
	base string
	stop func()
}

func start(t *testing.T, engine supervisor.Engine, dir, tmp string) *device {
	t.Helper()
	return startWith(t, supervisor.Config{Engine: engine, Dir: dir, HostTmp: tmp})
}

func startWith(t *testing.T, cfg supervisor.Config) *device {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	cfg.Listen, cfg.Version = []string{addr}, "19.0.5"
	s := supervisor.New(cfg)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	d := &device{t: t, base: "http://" + addr}
	stopped := false
	d.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run = %v", err)
		}
		http.DefaultTransport.(*http.Transport).CloseIdleConnections()
	}
	t.Cleanup(d.stop)
	d.until("the API answers", func() bool {
		resp, err := http.Get(d.base + "/ping")
		if err != nil {
			return false
		}
		resp.Body.Close()
		return true
	})
	return d
}

// until polls what only the outside can tell.
func (d *device) until(what string, ok func() bool) {
	d.t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			_, body := d.call("GET", "/v2/state/status", "")
			d.t.Fatalf("it does not come to pass that %s; status %s", what, body)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func (d *device) call(method, path, body string) (int, string) {
	d.t.Helper()
	req, err := http.NewRequest(method, d.base+path, strings.NewReader(body))
	if err != nil {
		d.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		d.t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		d.t.Fatal(err)
	}
	return resp.StatusCode, string(data)
}

// is checks an answer exactly.
func (d *device) is(method, path, body string, status int, want string) {
	d.t.Helper()
	gotStatus, got := d.call(method, path, body)
	if gotStatus != status || got != want {
		d.t.Errorf("%s %s %s = %d %s\nwant %d %s", method, path, body, gotStatus, got, status, want)
	}
}

// reason is why a service was stopped or replaced last.
func (d *device) reason(service string) string {
	d.t.Helper()
	_, body := d.call("GET", "/v2/applications/state", "")
	var apps map[string]struct {
		Services map[string]struct{ Reason, ReasonAt string }
	}
	if err := json.Unmarshal([]byte(body), &apps); err != nil {
		d.t.Fatalf("state %s: %v", body, err)
	}
	for _, app := range apps {
		if s, ok := app.Services[service]; ok {
			return s.Reason
		}
	}
	return ""
}

type status struct {
	AppState   string
	Release    string
	Error      string
	Containers []struct{ Status, ServiceName, ContainerID, Health string }
}

func (d *device) status() status {
	d.t.Helper()
	_, body := d.call("GET", "/v2/state/status", "")
	var s status
	if err := json.Unmarshal([]byte(body), &s); err != nil {
		d.t.Fatalf("status %s: %v", body, err)
	}
	return s
}

// apply posts a target and waits until it is reached; it returns container IDs
// by service.
func (d *device) apply(target string) map[string]string {
	d.t.Helper()
	d.is("POST", "/v2/local/target-state", target, 200, `{"status":"success","message":"OK"}`)
	return d.settled()
}

func (d *device) settled() map[string]string {
	d.t.Helper()
	var s status
	d.until("the target is reached", func() bool { s = d.status(); return s.AppState == "applied" })
	ids := map[string]string{}
	for _, c := range s.Containers {
		ids[c.ServiceName] = c.ContainerID
	}
	return ids
}

// target is two services, web after db; edit replaces text in it.
func target(edit ...string) string {
	const run = `"command":"sh -c 'trap \"exit 0\" TERM; while :; do sleep 0.1; done'","tty":false,"stop_grace_period":"2s"`
	text := `{"local":{"name":"bench","config":{"SUPERVISOR_LOCAL_MODE":"1"},"apps":{"1":{"name":"localapp","commit":"c1","releaseId":"7",
	"services":{
	 "1":{"serviceName":"web","serviceId":1,"imageId":1,"image":"` + testImage + `","environment":{"FOO":"bar"},"labels":{},"depends_on":["db"],` + run + `},
	 "2":{"serviceName":"db","serviceId":2,"imageId":2,"image":"` + testImage + `","environment":{},"labels":{},"volumes":["data:/data"],` + run + `}},
	"volumes":{"data":{}},"networks":{}}}}}`
	return strings.NewReplacer(edit...).Replace(text)
}

const empty = `{"local":{"name":"bench","config":{},"apps":{}}}`

// The acceptance suite: what holds for a supervisor on any engine.
func testDevice(t *testing.T, engine supervisor.Engine) {
	dir, tmp := t.TempDir(), t.TempDir()
	d := start(t, engine, dir, tmp)
	t.Cleanup(func() {
		// Leave the engine as it was found.
		last := start(t, engine, t.TempDir(), t.TempDir())
		last.apply(empty)
		last.stop()
		engine.VolumeRemove(context.Background(), "1_data", client.VolumeRemoveOptions{})
		engine.NetworkRemove(context.Background(), "supervisor0", client.NetworkRemoveOptions{})
	})
	defer d.stop()

	d.is("GET", "/ping", "", 200, "OK")
	d.is("GET", "/v1/healthy", "", 200, "OK")
	d.is("GET", "/v2/version", "", 200, `{"status":"success","version":"19.0.5"}`)
	d.is("GET", "/v2/state/status", "", 200, `{"status":"success","appState":"applied","overallDownloadProgress":null,"containers":[],"images":[]}`)
	d.is("POST", "/v1/restart", `{"appId":1}`, 503, `{"status":"failed","message":"application 1 is not in the target state"}`)
	d.is("POST", "/v1/restart", `{}`, 400, "Missing app id")
	d.is("POST", "/v1/purge", `{}`, 400, "Invalid or missing appId")

	first := d.apply(target())
	if len(first) != 2 {
		t.Fatalf("after the first target there are %v, want web and db", first)
	}
	d.is("GET", "/v2/device/name", "", 200, `{"status":"success","deviceName":"bench"}`)
	d.is("GET", "/v2/containerId?service=web", "", 200, `{"status":"success","containerId":"`+first["web"]+`"}`)
	d.is("GET", "/v2/containerId?serviceName=nosuch", "", 503, `{"status":"failed","message":"Could not find service with that name"}`)
	d.is("GET", "/v2/applications/9/state", "", 409, `{"status":"failed","message":"Application ID does not exist: 9"}`)
	d.is("GET", "/v2/applications/abc/state", "", 400, `{"status":"failed","message":"Invalid application ID: abc"}`)
	d.is("GET", "/v2/applications/1/state", "", 200, `{"commit":"c1","local":{"1":{"services":{"1":{"status":"Running","releaseId":7,"download_progress":null},"2":{"status":"Running","releaseId":7,"download_progress":null}}}}}`)
	d.is("GET", "/v2/applications/state", "", 200, `{"localapp":{"appId":1,"appUuid":"1","commit":"c1","updateStatus":"done","services":{"db":{"status":"Running","image":"`+testImage+`","downloadProgress":null,"releaseId":7},"web":{"status":"Running","image":"`+testImage+`","downloadProgress":null,"releaseId":7}}}}`)
	d.is("GET", "/v1/apps/1", "", 400, "Some v1 endpoints are only allowed on single-container apps")
	d.is("POST", "/v2/applications/1/stop-service", `{}`, 400, "serviceName or imageId parameters were not provided or the app is multi-container. Use the v2 service action endpoints.")
	d.is("POST", "/v2/applications/1/stop-service", `{"serviceName":"nosuch"}`, 404, "Service not found, a container must exist for this endpoint to work")

	t.Run("same-configuration-in-a-new-release-renames", func(t *testing.T) {
		if got := d.apply(target(`"c1"`, `"c2"`)); got["web"] != first["web"] || got["db"] != first["db"] {
			t.Errorf("containers = %v, want the same as before: %v", got, first)
		}
		c, err := engine.ContainerInspect(t.Context(), first["web"], client.ContainerInspectOptions{})
		if err != nil || c.Container.Name != "/web_1_7_c2" {
			t.Errorf("name = %s, %v; want /web_1_7_c2", c.Container.Name, err)
		}
	})
	t.Run("a-change-replaces-only-its-service", func(t *testing.T) {
		got := d.apply(target(`"FOO":"bar"`, `"FOO":"baz"`, `"c1"`, `"c2"`))
		if got["web"] == first["web"] || got["db"] != first["db"] {
			t.Errorf("containers = %v, want only web to differ from %v", got, first)
		}
		if why := d.reason("web"); why != "Env changed" {
			t.Errorf("reason of web is %q", why)
		}
		first = got
	})
	t.Run("a-stopped-service-stays-stopped", func(t *testing.T) {
		d.t = t
		d.is("POST", "/v2/applications/1/stop-service", `{"serviceName":"web"}`, 200, "OK")
		d.is("POST", "/v1/update", `{}`, 204, "")
		d.settled()
		if got := stateOf(t, engine, first["web"]); got != "exited" {
			t.Errorf("after stop and update web is %s, want exited", got)
		}
		d.is("POST", "/v2/applications/1/start-service", `{"serviceName":"web"}`, 200, "OK")
		if got := stateOf(t, engine, first["web"]); got != "running" {
			t.Errorf("after start web is %s, want running", got)
		}
	})
	t.Run("a-restarted-service-has-a-new-container", func(t *testing.T) {
		d.t = t
		d.is("POST", "/v2/applications/1/restart-service", `{"imageId":1}`, 200, "OK")
		got := d.settled()
		if got["web"] == first["web"] || got["db"] != first["db"] {
			t.Errorf("containers = %v, want only web to differ from %v", got, first)
		}
		if why := d.reason("web"); why != "a restart was asked for" {
			t.Errorf("reason of web is %q", why)
		}
		first = got
	})
	t.Run("a-lock-holds-restart-and-force-breaks-it", func(t *testing.T) {
		testenv.NeedRoot(t)
		d.t = t
		path := filepath.Join(tmp, "services", "1", "web", "updates.lock")
		if err := os.WriteFile(path, nil, 0o644); err != nil {
			t.Fatal(err)
		}
		d.is("POST", "/v1/restart", `{"appId":1}`, 423, `{"status":"failed","message":"Lockfile exists for { appId: 1, service: web }"}`)
		d.is("POST", "/v1/restart", `{"appId":"1","force":"true"}`, 200, "OK")
		if _, err := os.Stat(path); !os.IsNotExist(err) {
			t.Errorf("the lock is still there: %v", err)
		}
	})
	t.Run("purge-makes-volumes-anew", func(t *testing.T) {
		d.t = t
		before := createdAt(t, engine, "1_data")
		d.is("POST", "/v1/purge", `{"appId":1}`, 200, `{"Data":"OK","Error":""}`)
		if after := createdAt(t, engine, "1_data"); after == before || after == "" {
			t.Errorf("volume made at %q, before the purge at %q", after, before)
		}
	})
	t.Run("an-invalid-target-changes-nothing", func(t *testing.T) {
		d.t = t
		d.is("POST", "/v2/local/target-state", `{"local":{"apps":{"1":{"commit":"x","services":{"1":{"serviceName":"a b"}}}}}}`, 400,
			`{"status":"failed","message":"Invalid target state.\nlocal.apps.1.services.1: service name \"a b\": want letters, digits, '_', '.', '-'\nlocal.apps.1.services.1.image: missing"}`)
		code, _ := d.call("POST", "/v2/local/target-state", "{")
		if code != 503 {
			t.Errorf("malformed JSON = %d, want 503", code)
		}
		if got := d.settled(); len(got) != 2 {
			t.Errorf("containers = %v, want both as before", got)
		}
	})
	t.Run("logs-begin-at-once", func(t *testing.T) {
		resp, err := http.Get(d.base + "/v2/local/logs")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		line, err := bufio.NewReader(resp.Body).ReadString('\n')
		if want := `{"message":"Streaming logs","isSystem":true}` + "\n"; line != want || err != nil {
			t.Errorf("first line = %q, %v; want %q", line, err, want)
		}
	})
	t.Run("a-new-supervisor-goes-on-without-touching-anything", func(t *testing.T) {
		before := d.settled()
		d.stop()
		d2 := start(t, engine, dir, tmp)
		if got := d2.settled(); fmt.Sprint(got) != fmt.Sprint(before) {
			t.Errorf("containers = %v, want %v", got, before)
		}
		if got := d2.apply(empty); len(got) != 0 {
			t.Errorf("with nothing wanted there are %v", got)
		}
		d2.stop()
	})
}

func stateOf(t *testing.T, engine supervisor.Engine, id string) string {
	t.Helper()
	c, err := engine.ContainerInspect(t.Context(), id, client.ContainerInspectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return string(c.Container.State.Status)
}

func createdAt(t *testing.T, engine supervisor.Engine, name string) string {
	t.Helper()
	list, err := engine.VolumeList(t.Context(), client.VolumeListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range list.Items {
		if v.Name == name {
			made := v.CreatedAt + fmt.Sprint(v.Labels)
			// Engines tell the second; the directory knows better.
			if fi, err := os.Stat(v.Mountpoint); err == nil {
				made += fi.ModTime().String()
			}
			return made
		}
	}
	return ""
}

func TestDeviceOnAnEngineInMemory(t *testing.T) { testDevice(t, newFake(testImage)) }

func TestDeviceOnMinke(t *testing.T) {
	d := testdaemon.Start(t)
	buildTestImage(t, d.Client)
	testDevice(t, engineAt(t, d.Client.DaemonHost()))
}

func TestMain(m *testing.M) { testdaemon.Main(m) }

func TestDeviceOnARealEngine(t *testing.T) { testDevice(t, realEngine(t)) }

// realEngine is one that somebody started for the test, with its image.
func realEngine(t *testing.T) *client.Client {
	t.Helper()
	testenv.NeedRoot(t)
	host := os.Getenv("MINKE_TEST_ENGINE")
	if host == "" {
		t.Skip("needs an engine: set MINKE_TEST_ENGINE to its address, such as unix:///var/run/docker.sock")
	}
	engine := engineAt(t, host)
	list, err := engine.ContainerList(t.Context(), client.ContainerListOptions{All: true, Filters: make(client.Filters).Add("label", "io.balena.supervised")})
	if err != nil || len(list.Items) > 0 {
		t.Fatalf("%s has %d supervised containers, %v; the test needs an engine that nobody uses", host, len(list.Items), err)
	}
	docker, err := moby.New(moby.WithHost(host))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { docker.Close() })
	buildTestImage(t, docker)
	return engine
}

// engineAt is the client that the supervisor has.
func engineAt(t *testing.T, host string) *client.Client {
	t.Helper()
	engine, err := client.New(client.Options{Host: host})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(engine.Close)
	return engine
}

// buildTestImage makes a busybox image without a registry.
func buildTestImage(t *testing.T, engine *moby.Client) {
	t.Helper()
	busybox, err := os.ReadFile(testenv.Busybox(t))
	if err != nil {
		t.Fatal(err)
	}
	var body bytes.Buffer
	tw := tar.NewWriter(&body)
	for name, content := range map[string]string{
		"Dockerfile": "FROM scratch\nCOPY busybox /bin/busybox\nRUN [\"/bin/busybox\",\"--install\",\"-s\",\"/bin\"]\n",
		"busybox":    string(busybox),
	} {
		tw.WriteHeader(&tar.Header{Name: name, Mode: 0o755, Size: int64(len(content))})
		io.WriteString(tw, content)
	}
	tw.Close()
	res, err := engine.ImageBuild(t.Context(), &body, moby.ImageBuildOptions{Tags: []string{testImage}, Remove: true})
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	out, err := io.ReadAll(res.Body)
	if err != nil || bytes.Contains(out, []byte(`"error"`)) {
		t.Fatalf("build: %v\n%s", err, out)
	}
	t.Cleanup(func() { engine.ImageRemove(context.Background(), testImage, moby.ImageRemoveOptions{Force: true}) })
}

func TestApplyingTheSameTargetAgainWritesNothing(t *testing.T) {
	testenv.NoGoroutineLeft(t)
	f := newFake(testImage)
	d := start(t, f, t.TempDir(), t.TempDir())
	d.apply(target())
	writes := f.Writes()
	d.apply(target())
	d.is("POST", "/v1/update", `{}`, 204, "")
	d.settled()
	if got := f.Writes(); got != writes {
		t.Errorf("the second apply made %d changes, want none", got-writes)
	}
}

func TestContainersAreNamedLabelledAndConnected(t *testing.T) {
	f := newFake(testImage)
	d := start(t, f, t.TempDir(), t.TempDir())
	ids := d.apply(target(`"labels":{}`, `"labels":{"io.resin.features.supervisor-api":"1"}`))
	res, err := f.ContainerInspect(t.Context(), ids["web"], client.ContainerInspectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	c := res.Container
	if c.Name != "/web_1_7_c1" {
		t.Errorf("name = %s, want /web_1_7_c1", c.Name)
	}
	for k, want := range map[string]string{
		"io.balena.supervised": "true", "io.balena.app-id": "1", "io.balena.app-uuid": "1", "io.balena.service-id": "1",
		"io.balena.service-name": "web", "io.balena.features.supervisor-api": "1",
	} {
		if c.Config.Labels[k] != want {
			t.Errorf("label %s = %q, want %q", k, c.Config.Labels[k], want)
		}
	}
	for _, network := range []string{"1_default", "supervisor0"} {
		if c.NetworkSettings.Networks[network] == nil {
			t.Errorf("not connected to %s", network)
		}
	}
}

func TestAnImageThatCannotBeHadIsReportedAndTriedAgain(t *testing.T) {
	f := newFake()
	d := start(t, f, t.TempDir(), t.TempDir())
	d.is("POST", "/v2/local/target-state", target(), 200, `{"status":"success","message":"OK"}`)
	d.until("the reason is shown", func() bool { return strings.Contains(d.status().Error, "no registry has "+testImage) })
	f.has(t, testImage) // built on the device meanwhile
	if got := d.settled(); len(got) != 2 {
		t.Errorf("containers = %v, want both", got)
	}
}

func TestManagedDevicesWantAKey(t *testing.T) {
	f := newFake(testImage)
	boot := t.TempDir()
	if err := os.WriteFile(filepath.Join(boot, "config.json"), []byte(`{"apiEndpoint":"https://fleet.example","uuid":"abc"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	d := startWith(t, supervisor.Config{Engine: f, Dir: dir, HostTmp: t.TempDir(), BootDir: boot})
	raw, err := os.ReadFile(filepath.Join(dir, "device.json"))
	if err != nil {
		t.Fatal(err)
	}
	var stored struct{ GlobalKey string }
	if err := json.Unmarshal(raw, &stored); err != nil {
		t.Fatal(err)
	}
	d.is("GET", "/v2/version", "", 401, "Unauthorized")
	d.is("GET", "/nosuch", "", 401, "Unauthorized")
	d.is("GET", "/v1/healthy", "", 200, "OK")
	d.is("GET", "/v2/version?apikey=wrong", "", 401, "Unauthorized")
	d.is("GET", "/v2/version?apikey="+stored.GlobalKey, "", 200, `{"status":"success","version":"19.0.5"}`)
	d.is("POST", "/v2/local/target-state?apikey="+stored.GlobalKey, empty, 400, `{"status":"failed","message":"Target state can only set when device is in local mode"}`)
	for _, header := range []string{"Bearer ", "apikey ", "ApiKey "} {
		req, _ := http.NewRequest("GET", d.base+"/v2/version", nil)
		req.Header.Set("Authorization", header+stored.GlobalKey)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != 200 {
			t.Errorf("%q = %d, want 200", header, resp.StatusCode)
		}
	}
}

func TestALostTargetStopsNothing(t *testing.T) {
	f := newFake(testImage)
	dir, tmp := t.TempDir(), t.TempDir()
	d := start(t, f, dir, tmp)
	before := d.apply(target())
	d.stop()
	if err := os.WriteFile(filepath.Join(dir, "target.json"), []byte("{torn"), 0o600); err != nil {
		t.Fatal(err)
	}
	writes := f.Writes()
	d = start(t, f, dir, tmp)
	d.is("POST", "/v1/update", `{}`, 204, "")
	if got := d.settled(); fmt.Sprint(got) != fmt.Sprint(before) || f.Writes() != writes {
		t.Errorf("containers = %v after %d changes, want %v untouched", got, f.Writes()-writes, before)
	}
	if _, err := os.Stat(filepath.Join(dir, "target.json.corrupt")); err != nil {
		t.Errorf("the damaged file was not set aside: %v", err)
	}
}
