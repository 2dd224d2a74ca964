package conformance

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/client"

	"github.com/minke-os/minke/internal/testbus"
	"github.com/minke-os/minke/internal/testdaemon"
	"github.com/minke-os/minke/internal/testfleet"
)

func TestMain(m *testing.M) { testdaemon.Main(m) }

type obj = map[string]any

// A device is one under test.
type device struct {
	t      *testing.T
	engine *client.Client
	docker bool             // it is a stock Docker's
	fleet  *testfleet.Fleet // nil on a device that nobody manages
	images *registry
	boot   string // where config.json is
	tmp    string // the host's /tmp/balena-supervisor
	data   string // data root of the minked whose supervisor it is
	key    string // the global one

	logind   *testbus.Host
	mntState string // its /mnt/state, where that is its own

	host *testdaemon.Daemon   // its network
	far  *testdaemon.Neighbor // where the fleet server is, if on a cable
	up   func()               // starts the minked with the supervisor
	down func()
	kill func() // as down, by kill -9
	log  func() string
}

// A setup is what differs between devices.
type setup struct {
	docker  bool   // a stock dockerd is the engine
	disk    string // mount options of the tmpfs that it has, "" for a directory
	managed bool
	config  obj      // more of config.json
	env     []string // more of minked's environment
	state   string   // is put at /mnt/state
	knows   bool     // the fleet server has the device already
	wants   string   // target, with REGISTRY for the registry's address
	preload string   // apps.json, likewise
	cable   bool     // the fleet server is on another host
}

// start makes a device. Its target is not settled yet.
func start(t *testing.T, s setup) *device {
	t.Helper()
	host := testdaemon.Start(t)
	d := &device{t: t, docker: s.docker, host: host, engine: host.Client, boot: t.TempDir(), tmp: filepath.Join(host.Dir, "run/supervisor"), data: filepath.Join(host.Dir, "data"), log: host.Log}
	d.images = startRegistry(t, d.listen())
	config := obj{"uuid": strings.Repeat("0123456789abcdef", 2), "deviceType": "generic-amd64"}
	if s.managed {
		l := d.listen()
		if s.cable {
			l.Close()
			l = d.listenFar()
		}
		d.fleet = testfleet.Start(t, l)
		d.wants(s.wants)
		if s.knows {
			d.fleet.Knows()
		}
		config["apiEndpoint"], config["apiKey"], config["applicationId"] = d.fleet.URL, testfleet.Provisioning, 5
	}
	for k, v := range s.config {
		config[k] = v
	}
	d.write(filepath.Join(d.boot, "config.json"), jsonOf(config))
	if s.preload != "" {
		d.write(filepath.Join(d.boot, "apps.json"), d.images.fill(s.preload))
	}
	args := []string{"--supervisor=true", "--boot-dir", d.boot, "--preload", filepath.Join(d.boot, "apps.json")}
	prepare := func(c *exec.Cmd) { s.prepare(c) }
	if s.docker {
		d.besideDocker(args, s.disk, prepare)
	} else {
		host.Stop()
		host.Prepare = prepare
		d.up = func() { host.Up(args...); d.answers() }
		d.down, d.kill = host.Stop, host.Kill
	}
	d.up()
	if s.managed {
		d.until("the fleet server has the key of the API", func() bool { _, ok := d.fleet.Reported("api_secret").(string); return ok })
		d.key = d.fleet.Reported("api_secret").(string)
	}
	return d
}

// prepare gives minked its environment, and a /mnt/state of its own.
func (s setup) prepare(c *exec.Cmd) {
	c.Env = append(os.Environ(), s.env...)
	if s.state != "" {
		c.Args = append([]string{"unshare", "--mount", "sh", "-c", `mount -t tmpfs tmpfs /mnt && mkdir /mnt/state && mount --bind "$0" /mnt/state && exec "$@"`, s.state, c.Path}, c.Args[1:]...)
		c.Path, c.Err = exec.LookPath("unshare")
	}
}

// empty takes the supervisor away, so that the engine can be emptied. It works
// while the test runs, not in a clean-up.
func (d *device) empty() {
	if d.down == nil {
		return
	}
	d.down()
	if !d.docker {
		d.host.Prepare = nil
		d.host.Up()
	}
}

func (d *device) listen() (l net.Listener) {
	d.t.Helper()
	err := d.host.InNetNS(func() (err error) { l, err = net.Listen("tcp", "127.0.0.1:0"); return err })
	if err != nil {
		d.t.Fatal(err)
	}
	return l
}

// listenFar listens on the other end of a cable.
func (d *device) listenFar() (l net.Listener) {
	d.t.Helper()
	d.far = d.host.Neighbor()
	err := d.far.Do(func() (err error) {
		l, err = net.Listen("tcp", net.JoinHostPort(testdaemon.NeighborIPv4, "0"))
		return err
	})
	if err != nil {
		d.t.Fatal(err)
	}
	return l
}

// plug puts the cable in, or takes it out.
func (d *device) plug(in bool) {
	d.t.Helper()
	way := map[bool]string{true: "up", false: "down"}[in]
	if err := d.far.Do(exec.Command("ip", "link", "set", "up0", way).Run); err != nil {
		d.t.Fatal(err)
	}
}

func (d *device) answers() {
	d.t.Helper()
	d.until("the API answers", func() bool { out, err := d.host.Get("http://127.0.0.1:48484/ping"); return err == nil && out == "OK" })
}

func (d *device) write(path, text string) {
	d.t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		d.t.Fatal(err)
	}
}

func jsonOf(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(b)
}

// wants changes the fleet's target state; REGISTRY in it is the registry's address.
func (d *device) wants(target string) { d.fleet.Wants(d.images.fill(target)) }

// deploy has the fleet want something and the device ask for it.
func (d *device) deploy(target string) {
	d.t.Helper()
	d.wants(target)
	d.is("POST", "/v1/update", `{"force":false}`, 204, "")
}

// patience is how long anything may take that has no time of its own.
const patience = 40 * time.Second

// until polls what only the outside can tell.
func (d *device) until(what string, ok func() bool) {
	d.t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			_, status := d.call("GET", "/v2/state/status", "")
			d.t.Fatalf("it does not come to pass that %s\nstatus %s\nlog of minked:\n%s", what, status, d.log())
		}
	}
}

// An answer is one of the Supervisor API.
type answer struct {
	status int
	body   string
}

// ask makes a request with nothing but what is said.
func (d *device) ask(method, path, body string, header ...string) answer {
	d.t.Helper()
	req, err := http.NewRequest(method, "http://127.0.0.1:48484"+path, strings.NewReader(body))
	if err != nil {
		d.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	c := http.Client{Transport: &http.Transport{DialContext: d.host.Dial, DisableKeepAlives: true}, Timeout: time.Minute}
	resp, err := c.Do(req)
	if err != nil {
		return answer{0, err.Error()}
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		return answer{0, err.Error()}
	}
	return answer{resp.StatusCode, string(data)}
}

// call asks with the global key.
func (d *device) call(method, path, body string) (int, string) {
	d.t.Helper()
	a := d.ask(method, path, body, "Authorization", "Bearer "+d.key)
	return a.status, a.body
}

func (d *device) is(method, path, body string, status int, want string) {
	d.t.Helper()
	if code, got := d.call(method, path, body); code != status || got != want {
		d.t.Errorf("%s %s %s = %d %s\nwant %d %s", method, path, body, code, got, status, want)
	}
}

// has is for answers of which only a part is known.
func (d *device) has(method, path, body string, status int, parts ...string) {
	d.t.Helper()
	code, got := d.call(method, path, body)
	if code != status || slices.ContainsFunc(parts, func(p string) bool { return !strings.Contains(got, p) }) {
		d.t.Errorf("%s %s %s = %d %s\nwant %d with %q", method, path, body, code, got, status, parts)
	}
}

func (d *device) get(path string, into any) {
	d.t.Helper()
	if code, body := d.call("GET", path, ""); code != 200 || json.Unmarshal([]byte(body), into) != nil {
		d.t.Fatalf("GET %s = %d %s", path, code, body)
	}
}

type status struct {
	AppState   string
	Release    string
	Progress   any `json:"overallDownloadProgress"`
	Containers []struct{ Status, ServiceName, ContainerID string }
}

func (d *device) status() (s status) {
	d.t.Helper()
	d.get("/v2/state/status", &s)
	return s
}

// settled waits until applications run these releases and nothing is left to do.
func (d *device) settled(commits ...string) {
	d.t.Helper()
	d.until(fmt.Sprintf("releases %v have settled", commits), func() bool {
		var apps map[string]struct{ Commit, UpdateStatus string }
		code, body := d.call("GET", "/v2/applications/state", "")
		if code != 200 || json.Unmarshal([]byte(body), &apps) != nil || d.status().AppState != "applied" {
			return false
		}
		for _, c := range commits {
			found := false
			for _, a := range apps {
				found = found || a.Commit == c && a.UpdateStatus == "done"
			}
			if !found {
				return false
			}
		}
		return true
	})
}

// container is the one container of a service; it fails if there are two.
func (d *device) container(service string) container.InspectResponse {
	d.t.Helper()
	all := d.containers(service)
	if len(all) != 1 {
		var names []string
		for _, c := range all {
			names = append(names, c.Name+" "+string(c.State.Status))
		}
		d.t.Fatalf("service %s has the containers %v, want one; log of minked:\n%s", service, names, d.log())
	}
	return all[0]
}

// containers are those of a service, the oldest first.
func (d *device) containers(service string) (out []container.InspectResponse) {
	d.t.Helper()
	list, err := d.engine.ContainerList(d.t.Context(), client.ContainerListOptions{All: true, Filters: make(client.Filters).Add("label", "io.balena.service-name="+service)})
	if err != nil {
		d.t.Fatal(err)
	}
	for _, c := range list.Items {
		if r, err := d.engine.ContainerInspect(d.t.Context(), c.ID, client.ContainerInspectOptions{}); err == nil {
			out = append(out, r.Container)
		}
	}
	slices.SortFunc(out, func(a, b container.InspectResponse) int { return strings.Compare(a.Created, b.Created) })
	return out
}

func (d *device) id(service string) string { d.t.Helper(); return d.container(service).ID }

// state is how a service's one container is, "" while there is not one.
func (d *device) state(service string) string {
	d.t.Helper()
	if all := d.containers(service); len(all) == 1 {
		return string(all[0].State.Status)
	}
	return ""
}

func env(c container.InspectResponse) map[string]string {
	out := map[string]string{}
	for _, kv := range c.Config.Env {
		k, v, _ := strings.Cut(kv, "=")
		out[k] = v
	}
	return out
}

// keyOf is the API key that a service has.
func (d *device) keyOf(service string) string {
	d.t.Helper()
	return env(d.container(service))["BALENA_SUPERVISOR_API_KEY"]
}

// sh runs a command in a service's container.
func (d *device) sh(service, command string) string {
	d.t.Helper()
	return d.exec(d.id(service), command)
}

func (d *device) exec(id, command string) string {
	d.t.Helper()
	ctx := d.t.Context()
	var out bytes.Buffer
	x, err := d.engine.ExecCreate(ctx, id, client.ExecCreateOptions{Cmd: []string{"sh", "-c", command}, AttachStdout: true, AttachStderr: true})
	if err == nil {
		var a client.ExecAttachResult
		if a, err = d.engine.ExecAttach(ctx, x.ID, client.ExecAttachOptions{}); err == nil {
			defer a.Close()
			_, err = stdcopy.StdCopy(&out, &out, a.Reader)
		}
	}
	if err != nil {
		d.t.Fatalf("%s in %s: %v", command, id, err)
	}
	return strings.TrimSpace(out.String())
}

// now is the engine's clock, for eventsSince.
func now() string { return fmt.Sprintf("%d.%09d", time.Now().Unix(), time.Now().Nanosecond()) }

// eventsSince are an engine's events, as "start web", "pull REPO:TAG", "create <network>".
func (d *device) eventsSince(since string) (out []string) {
	d.t.Helper()
	res := d.engine.Events(d.t.Context(), client.EventsListOptions{Since: since, Until: now()})
	for {
		select {
		case m := <-res.Messages:
			out = append(out, eventText(m))
		case err := <-res.Err:
			if err != nil && err != io.EOF {
				d.t.Fatal(err)
			}
			for { // what came before the end
				select {
				case m := <-res.Messages:
					out = append(out, eventText(m))
				default:
					return out
				}
			}
		}
	}
}

func eventText(m events.Message) string {
	name := m.Actor.Attributes["io.balena.service-name"]
	if m.Type == events.ImageEventType {
		name = m.Actor.ID
		_, name, _ = strings.Cut(name, "/") // without the registry, whose port differs
	} else if name == "" {
		name = m.Actor.Attributes["name"]
	}
	return string(m.Action) + " " + name
}

// before reports whether the events have a, and b later.
func before(list []string, a, b string) bool {
	i := slices.Index(list, a)
	return i >= 0 && slices.Index(list[i:], b) > 0
}
