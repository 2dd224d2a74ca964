package supervisor_test

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/minke-os/minke/internal/testenv"
	"github.com/minke-os/minke/internal/testfleet"
	"github.com/minke-os/minke/supervisor"
)

// release is a target of one application with two services.
func release(commit, image, labels, config string) string {
	return fmt.Sprintf(`{"UUID":{"name":"porch","config":{%[4]s},"apps":{"aaaa":{"id":1,"name":"garden","class":"fleet","releases":{%[1]q:{"id":10,"services":{
	 "web":{"id":1,"image_id":11,"image":%[2]q,"environment":{},"labels":{%[3]s},"composition":{}},
	 "db":{"id":2,"image_id":12,"image":%[2]q,"environment":{},"labels":{},"composition":{}}},"volumes":{},"networks":{}}}},
	"bbbb":{"id":2,"name":"shed","class":"app","releases":{"c9":{"id":20,"services":{
	 "tool":{"id":3,"image_id":13,"image":"shed:1","environment":{},"labels":{},"composition":{}}},"volumes":{},"networks":{}}}}}}}`, commit, image, labels, config)
}

// A managed device, its key, and the files it has.
type managed struct {
	*device
	f           *testfleet.Fleet
	engine      *fake
	dir, boot   string
	tmp, global string
	cfg         supervisor.Config
}

func manage(t *testing.T, first string, cfg supervisor.Config) *managed {
	t.Helper()
	engine, given := cfg.Engine.(*fake)
	if !given {
		engine = newFake()
	}
	m := &managed{f: testfleet.Start(t, nil), engine: engine, dir: cmp.Or(cfg.Dir, t.TempDir()), boot: cmp.Or(cfg.BootDir, t.TempDir()), tmp: t.TempDir()}
	for _, ref := range []string{"garden:1", "garden:2", "garden:3", "shed:1"} {
		m.engine.registry[ref] = true
	}
	m.f.Wants(first)
	config := fmt.Sprintf(`{"apiEndpoint":%[1]q,"deltaEndpoint":"%[1]s/deltas","apiKey":"provisioning","applicationId":"5","deviceType":"generic-amd64","persistentLogging":true}`, m.f.URL)
	if err := os.WriteFile(filepath.Join(m.boot, "config.json"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg.Engine, cfg.Dir, cfg.HostTmp, cfg.BootDir = m.engine, m.dir, m.tmp, m.boot
	m.cfg = cfg
	m.device = startWith(t, cfg)
	m.global = m.stored().GlobalKey
	m.until("two applications run", func() bool { return len(m.running()) == 3 })
	return m
}

// restart ends the supervisor and starts another on the same device.
func (m *managed) restart() {
	m.t.Helper()
	m.stop()
	m.device = startWith(m.t, m.cfg)
}

type storedDevice struct {
	GlobalKey string
	Keys      map[string]string
}

func (m *managed) stored() (s storedDevice) {
	m.t.Helper()
	raw, err := os.ReadFile(filepath.Join(m.dir, "device.json"))
	if err == nil {
		err = json.Unmarshal(raw, &s)
	}
	if err != nil {
		m.t.Fatal(err)
	}
	return s
}

// running are the images of running containers, by service.
func (m *managed) running() map[string]string {
	m.engine.mu.Lock()
	defer m.engine.mu.Unlock()
	out := map[string]string{}
	for _, c := range m.engine.containers {
		if c.State.Status == "running" {
			for ref, id := range m.engine.images {
				if id == c.Config.Image {
					out[c.Config.Labels["io.balena.service-name"]] = ref
				}
			}
		}
	}
	return out
}

func (m *managed) config() map[string]any {
	m.t.Helper()
	raw, err := os.ReadFile(filepath.Join(m.boot, "config.json"))
	out := map[string]any{}
	if err == nil {
		err = json.Unmarshal(raw, &out)
	}
	if err != nil {
		m.t.Fatal(err)
	}
	return out
}

func (m *managed) update() { m.is("POST", "/v1/update?apikey="+m.global, `{}`, 204, "") }

func TestADeviceRegistersRunsItsFleetsReleaseAndReports(t *testing.T) {
	testenv.NoGoroutineLeft(t)
	m := manage(t, release("c1", "garden:1", "", ""), supervisor.Config{})
	if want := map[string]string{"web": "garden:1", "db": "garden:1", "tool": "shed:1"}; !maps.Equal(m.running(), want) {
		t.Errorf("running = %v, want %v", m.running(), want)
	}
	got := m.config()
	if got["apiKey"] != nil || got["deviceId"] != 77.0 || got["registered_at"] == nil || got["persistentLogging"] != true {
		t.Errorf("config.json = %v, want a device ID, no key to register with, and the rest as it was", got)
	}
	if r := m.f.Registered(); r["application"] != 5.0 || r["uuid"] != got["uuid"] || r["device_type"] != "generic-amd64" {
		t.Errorf("registered %v", r)
	}
	m.until("the server knows the release", func() bool {
		return m.f.Reported("apps", "aaaa", "releases", "c1", "update_status") == "done" && m.f.Reported("apps", "aaaa", "release_uuid") == "c1"
	})
	if got := m.f.Reported("apps", "aaaa", "releases", "c1", "services", "web", "status"); got != "Running" {
		t.Errorf("reported status of web = %v, want Running", got)
	}
	m.until("the server hears of it", func() bool { return m.f.Heard("Supervisor starting") })
	m.engine.mu.Lock()
	for _, p := range m.engine.pulls {
		if !strings.HasSuffix(p, " ") {
			t.Errorf("pull %s, want no credentials for an image of no registry", p)
		}
	}
	m.engine.mu.Unlock()

	m.f.Wants(release("c2", "garden:2", "", ""))
	m.update()
	m.until("the next release runs", func() bool { return m.running()["web"] == "garden:2" && m.running()["db"] == "garden:2" })
	m.until("the image of the one before is gone", func() bool {
		_, err := m.engine.ImageInspect(t.Context(), "garden:1")
		return err != nil
	})
	m.f.Wants(`{"UUID":{"apps":{"aaaa":{"id":1,"releases":{"c3":{"services":{"a b":{}}}}}}}}`)
	m.update()
	m.until("people learn why a release is refused", func() bool { return m.f.Heard("Could not move to new release") })
	if m.running()["web"] != "garden:2" {
		t.Errorf("running = %v after a target that is refused, want what ran", m.running())
	}
	m.stop()
	m.f.Close() // no network
	d := startWith(t, supervisor.Config{Engine: m.engine, Dir: m.dir, HostTmp: m.tmp, BootDir: m.boot})
	d.is("POST", "/v1/restart?apikey="+m.global, `{"appId":1}`, 200, "OK")
	if m.running()["web"] != "garden:2" {
		t.Errorf("running = %v after a start without a network, want what ran", m.running())
	}
	d.stop()
}

// What a service with its own key gets of each endpoint: its own application, and
// of the device what tells nothing of others.
func TestWhatAServicesKeyReaches(t *testing.T) {
	t.Parallel()
	m := manage(t, release("c1", "garden:1", `"io.balena.features.supervisor-api":"1"`, ""), supervisor.Config{})
	web := m.stored().Keys["1/web"]
	for _, tt := range []struct {
		request string
		status  int
	}{
		{"GET /ping", 200}, {"GET /v1/healthy", 200}, {"GET /v1/device", 200}, {"POST /v1/update", 204}, {"POST /v1/blink", 200},
		{"GET /v1/apps/2", 401}, {"POST /v1/apps/2/stop", 401}, {"POST /v1/apps/2/start", 401}, {"POST /v1/restart", 401}, {"POST /v1/purge", 401},
		{"POST /v1/reboot", 401}, {"POST /v1/shutdown", 401}, {"GET /v1/device/host-config", 200}, {"PATCH /v1/device/host-config", 401},
		{"GET /v2/version", 200}, {"GET /v2/device/name", 200}, {"GET /v2/device/tags", 200}, {"GET /v2/device/vpn", 200}, {"POST /v2/journal-logs", 401},
		{"GET /v2/device/metrics", 200}, {"GET /metrics", 200}, {"GET /v2/state/status", 200}, {"GET /v2/applications/state", 200},
		{"GET /v2/applications/1/state", 200}, {"GET /v2/applications/2/state", 409}, {"POST /v2/applications/2/restart-service", 401},
		{"POST /v2/applications/2/stop-service", 401}, {"POST /v2/applications/2/start-service", 401}, {"POST /v2/applications/2/restart", 401},
		{"POST /v2/applications/2/purge", 401}, {"GET /v2/containerId", 200}, {"GET /v2/cleanup-volumes", 401},
		{"GET /v2/locks", 200}, {"POST /v2/applications/2/lock", 401}, {"DELETE /v2/applications/2/lock", 401},
		{"GET /v2/local/target-state", 401}, {"POST /v2/local/target-state", 401}, {"GET /v2/local/device-info", 200}, {"GET /v2/local/logs", 401},
	} {
		method, path, _ := strings.Cut(tt.request, " ")
		if status, text := m.call(method, path+"?apikey="+web, `{"appId":2,"serviceName":"web"}`); status != tt.status {
			t.Errorf("%s by another application's service: %d %s, want %d", tt.request, status, text, tt.status)
		}
	}
	for _, body := range []string{"{", "[1]", `"x"`, "null garbage", strings.Repeat("x", 9<<20)} {
		if status, text := m.call("POST", "/v1/restart?apikey="+m.global, body); status < 400 {
			t.Errorf("a body of %d bytes that is no object: %d %s", len(body), status, text)
		}
	}
}

func TestGuessingKeysIsSlowAndHoldsNobodyElseUp(t *testing.T) {
	t.Parallel()
	m := manage(t, release("c1", "garden:1", `"io.balena.features.supervisor-api":"1"`, ""), supervisor.Config{})
	const guesses = 40
	codes := make(chan int, guesses)
	for i := range guesses {
		go func() {
			resp, err := http.Get(m.base + fmt.Sprintf("/v2/version?apikey=guess%d", i))
			if err != nil {
				t.Error(err)
				codes <- 0
				return
			}
			resp.Body.Close()
			codes <- resp.StatusCode
		}()
	}
	seen := map[int]int{}
	for n := range guesses {
		if n == guesses/2 { // the others wait
			m.is("GET", "/v2/version?apikey="+m.global, "", 200, `{"status":"success","version":"19.0.5"}`)
		}
		seen[<-codes]++
	}
	if seen[401] == 0 || seen[429] == 0 || seen[401]+seen[429] != guesses {
		t.Errorf("%d guesses at once were answered %v, want some of them turned away at once", guesses, seen)
	}
	m.is("GET", "/v2/version", "", 401, "Unauthorized")
}

func TestKeysAreMadeAnewAndReachOnlyTheirApplication(t *testing.T) {
	t.Parallel() // reports are ten seconds apart
	const api = `"io.balena.features.supervisor-api":"1"`
	m := manage(t, release("c1", "garden:1", api, ""), supervisor.Config{})
	web := m.stored().Keys["1/web"]
	m.is("GET", "/v2/version?apikey="+web, "", 200, `{"status":"success","version":"19.0.5"}`)
	m.is("POST", "/v1/restart?apikey="+web, `{"appId":1}`, 200, "OK")
	m.is("POST", "/v1/restart?apikey="+web, `{"appId":2}`, 401, `{"status":"failed","message":"Unauthorized"}`)
	code, text := m.call("POST", "/v1/reboot?apikey="+web, `{}`)
	if code != 401 || !strings.Contains(text, "io.minke.features.device-control") {
		t.Errorf("reboot by a service = %d %s, want 401 with what to do", code, text)
	}

	code, fresh := m.call("POST", "/v1/regenerate-api-key?apikey="+m.global, "")
	if code != 200 || fresh == m.global || len(fresh) < 32 {
		t.Fatalf("a new key = %d %q", code, fresh)
	}
	m.is("GET", "/v2/version?apikey="+m.global, "", 401, "Unauthorized")
	m.is("GET", "/v2/version?apikey="+fresh, "", 200, `{"status":"success","version":"19.0.5"}`)
	m.until("the server has the new key", func() bool { return m.f.Reported("api_secret") == fresh })
	m.global = fresh

	_, own := m.call("POST", "/v1/regenerate-api-key?apikey="+web, "")
	m.is("GET", "/v2/version?apikey="+web, "", 401, "Unauthorized")
	m.until("the service has its new key", func() bool {
		m.engine.mu.Lock()
		defer m.engine.mu.Unlock()
		for _, c := range m.engine.containers {
			if c.State.Status == "running" && slices.Contains(c.Config.Env, "BALENA_SUPERVISOR_API_KEY="+own) {
				return true
			}
		}
		return false
	})
}

func TestTagsAreKeptUntilTheServerHasThem(t *testing.T) {
	t.Parallel() // reports are ten seconds apart
	m := manage(t, release("c1", "garden:1", "", ""), supervisor.Config{})
	m.is("PATCH", "/v2/device/tags?apikey="+m.global, `{"place":"porch"}`, 202, `{"status":"success"}`)
	m.until("the server has the tag", func() bool {
		return m.f.Tags()["place"] == "porch"
	})
	m.is("GET", "/v2/device/tags?apikey="+m.global, "", 200, `{"status":"success","tags":[{"id":1,"name":"place","value":"porch"}]}`)
	m.is("PATCH", "/v2/device/tags?apikey="+m.global, `{"a b":"c"}`, 400, `{"status":"failed","message":"tag \"a b\": want a key without blanks and a string"}`)
}

func TestAReleaseThatKeepsCrashingIsUndone(t *testing.T) {
	t.Parallel() // reports are ten seconds apart
	m := manage(t, release("c1", "garden:1", "", ""), supervisor.Config{})
	m.until("the first release has settled", func() bool {
		_, body := m.call("GET", "/v2/state/status?apikey="+m.global, "")
		return strings.Contains(body, `"appState":"applied"`)
	})
	m.engine.mu.Lock()
	m.engine.crashing["garden:2"] = true
	m.engine.mu.Unlock()
	m.f.Wants(release("c2", "garden:2", `"io.minke.rollback-timeout":"600000"`, ""))
	m.update()
	back := func() bool { return m.running()["web"] == "garden:1" && m.running()["db"] == "garden:1" }
	m.until("people learn why", func() bool { return m.f.Heard("Rolling back to the release before, because") })
	m.until("the release before runs", back)
	m.until("the server knows", func() bool { return m.f.Reported("apps", "aaaa", "releases", "c2", "update_status") == "rejected" })
	_, body := m.call("GET", "/v2/state/status?apikey="+m.global, "")
	if !strings.Contains(body, "rolled back to the release before: db keeps ending") || !strings.Contains(body, `"undone":true`) {
		t.Errorf("status = %s, want that it was undone, and the reason", body)
	}

	m.stop()
	writes := m.engine.Writes()
	m.restart()
	m.update()
	m.until("the server answered", func() bool { return m.f.Reported("apps", "aaaa", "release_uuid") == "c1" })
	if !back() || m.engine.Writes() != writes {
		t.Errorf("running = %v after a new start and %d changes, want the release before", m.running(), m.engine.Writes()-writes)
	}

	m.f.Wants(release("c3", "garden:3", `"io.minke.rollback-timeout":"600000"`, ""))
	m.update()
	m.until("a better release runs", func() bool { return m.running()["web"] == "garden:3" })
	m.until("the status says that it is on trial", func() bool {
		_, body := m.call("GET", "/v2/state/status?apikey="+m.global, "")
		return strings.Contains(body, `"trial":`) && !strings.Contains(body, `"undone"`)
	})
}

func TestAReleaseThatDoesNotBecomeHealthyIsUndoneWhenItsTimeIsUp(t *testing.T) {
	t.Parallel() // reports are ten seconds apart
	m := manage(t, release("c1", "garden:1", "", ""), supervisor.Config{})
	m.until("the first release has settled", func() bool {
		_, body := m.call("GET", "/v2/state/status?apikey="+m.global, "")
		return strings.Contains(body, `"appState":"applied"`)
	})
	m.engine.mu.Lock()
	m.engine.sickly["garden:2"] = true
	m.engine.mu.Unlock()
	m.f.Wants(release("c2", "garden:2", "", `"SUPERVISOR_ROLLBACK_TIMEOUT":"300"`))
	m.update()
	m.until("the new release runs", func() bool { return m.running()["web"] == "garden:2" })
	if _, err := m.engine.ImageInspect(t.Context(), "garden:1"); err != nil {
		t.Errorf("the image to go back to is gone: %v", err)
	}
	m.until("the release before runs", func() bool { return m.running()["web"] == "garden:1" })
}

func TestANewDeviceStartsWithWhatCameWithTheMedium(t *testing.T) {
	const apps = `{"config":{},"pinDevice":false,"apps":{"aaaa":{"id":1,"name":"garden","releases":{"c1":{"id":10,"services":{
	 "web":{"id":1,"image_id":11,"image":"garden:1","environment":{},"labels":{},"composition":{}}}}}}}}`
	for name, config := range map[string]string{"unmanaged": `{}`, "managed without a network": `{"apiEndpoint":"http://127.0.0.1:1","apiKey":"p","applicationId":5}`} {
		t.Run(name, func(t *testing.T) {
			dir, boot, preload := t.TempDir(), t.TempDir(), filepath.Join(t.TempDir(), "apps.json")
			for path, text := range map[string]string{filepath.Join(boot, "config.json"): config, preload: apps} {
				if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			cfg := supervisor.Config{Engine: newFake("garden:1"), Dir: dir, HostTmp: t.TempDir(), BootDir: boot, Preload: preload}
			m := &managed{engine: cfg.Engine.(*fake), dir: dir, boot: boot}
			m.device = startWith(t, cfg)
			m.until("it runs", func() bool { return m.running()["web"] == "garden:1" })
			m.stop()
			left, _ := os.ReadFile(preload)
			used, _ := os.ReadFile(preload + ".preloaded")
			if string(left) != "{}\n" || string(used) != apps {
				t.Errorf("apps.json = %q and .preloaded = %q, want {} and what it was", left, used)
			}
			writes := m.engine.Writes()
			m.device = startWith(t, cfg)
			m.global = m.stored().GlobalKey
			m.until("it has settled again", func() bool {
				_, body := m.call("GET", "/v2/state/status?apikey="+m.global, "")
				return strings.Contains(body, `"appState":"applied"`)
			})
			if m.engine.Writes() != writes {
				t.Errorf("the second start made %d changes, want none", m.engine.Writes()-writes)
			}
		})
	}
	t.Run("wrong", func(t *testing.T) {
		preload := filepath.Join(t.TempDir(), "apps.json")
		if err := os.WriteFile(preload, []byte(`{"apps":{"1":{"name":"old"}}}`), 0o600); err != nil {
			t.Fatal(err)
		}
		d := startWith(t, supervisor.Config{Engine: newFake(), Dir: t.TempDir(), HostTmp: t.TempDir(), Preload: preload})
		if got := d.status().Error; !strings.Contains(got, "apps.1 has no releases") {
			t.Errorf("status has the error %q, want what is wrong with the file", got)
		}
		if _, err := os.Stat(preload + ".preloaded"); err == nil {
			t.Error("a wrong file is taken for used")
		}
	})
}

// ids are the containers that run.
func (m *managed) ids() string {
	m.engine.mu.Lock()
	defer m.engine.mu.Unlock()
	var out []string
	for id, c := range m.engine.containers {
		if c.State.Status == "running" {
			out = append(out, id)
		}
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

func TestAnUpdateWaitsForALockHeldThroughTheAPI(t *testing.T) {
	testenv.NeedRoot(t) // update locks
	t.Parallel()
	m := manage(t, release("c1", "garden:1", `"io.balena.features.supervisor-api":"1"`, ""), supervisor.Config{})
	m.until("it has settled", func() bool {
		_, body := m.call("GET", "/v2/locks?apikey="+m.global, "")
		return body == `{"status":"success","locks":[]}`
	})
	web := "?apikey=" + m.stored().Keys["1/web"]
	m.is("POST", "/v2/applications/1/lock"+web, `{"serviceName":"db"}`, 200, `{"status":"success"}`)
	m.is("POST", "/v2/applications/1/lock"+web, `{}`, 423, `{"status":"failed","message":"Lockfile exists for { appId: 1, service: db }, held by a client of this API"}`)
	m.is("POST", "/v2/applications/1/lock"+web, `{"serviceName":"../../x"}`, 404, `{"status":"failed","message":"application 1 has no service \"../../x\""}`)
	m.is("POST", "/v2/applications/7/lock?apikey="+m.global, `{}`, 404, `{"status":"failed","message":"application 7 is not in the target state"}`)
	m.is("POST", "/v1/restart"+web, `{"appId":1}`, 423, `{"status":"failed","message":"Lockfile exists for { appId: 1, service: db }"}`)
	if _, err := os.Lstat(filepath.Join(m.tmp, "services", "1", "db", "updates.lock")); err != nil {
		t.Errorf("containers do not see the lock: %v", err)
	}
	if _, body := m.call("GET", "/v2/locks"+web, ""); !strings.Contains(body, `{"appId":1,"serviceName":"db","holder":"api","since":"2`) {
		t.Errorf("locks are %s", body)
	}

	m.f.Wants(release("c2", "garden:2", `"io.balena.features.supervisor-api":"1"`, ""))
	m.update()
	m.until("the update waits", func() bool {
		_, body := m.call("GET", "/v2/state/status?apikey="+m.global, "")
		return strings.Contains(body, "Lockfile exists")
	})
	if got := m.running()["db"]; got != "garden:1" {
		t.Errorf("db runs %s while it is locked", got)
	}
	m.is("DELETE", "/v2/applications/1/lock"+web, `{}`, 200, `{"status":"success"}`)
	m.until("the update goes on", func() bool { return m.running()["db"] == "garden:2" && m.running()["web"] == "garden:2" })
}
