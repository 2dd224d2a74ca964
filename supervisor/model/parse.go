package model

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/internal/order"
	"github.com/minke-os/minke/supervisor/contract"
)

var (
	configKey = regexp.MustCompile(`^[a-zA-Z_][a-zA-Z0-9_:]*$`)
	envKey    = regexp.MustCompile(`^[a-zA-Z_][a-zA-Z0-9_]*$`)
	labelKey  = regexp.MustCompile("^[!#-&(-_a-~]+$") // printable, no space, quotes or backtick
	objName   = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]*$`)
)

const maxString = 255

// ParseLocal reads the body of POST /v2/local/target-state: the older form,
// with numbered services whose compose keys sit beside our own.
func ParseLocal(body []byte) (Target, error) {
	root, err := decode(body)
	if err != nil {
		return Target{}, err
	}
	p := &parser{}
	local := p.object(root, "local", "")
	t := p.device(local, "local")
	apps := p.object(local, "apps", "local")
	for _, key := range slices.Sorted(maps.Keys(apps)) {
		path := "local.apps." + key
		body := p.object(apps, key, "local.apps")
		id, _ := Int(key)
		if id <= 0 {
			p.fail(path, "want a positive number as application ID")
			continue
		}
		t.Apps = append(t.Apps, p.localApp(AppID(id), key, body, path))
	}
	return p.finish(t)
}

// ParseV3 reads the answer of GET /device/v3/<uuid>/state.
func ParseV3(body []byte, deviceUUID string) (Target, error) {
	root, err := decode(body)
	if err != nil {
		return Target{}, err
	}
	p := &parser{}
	if _, ok := root[deviceUUID]; !ok {
		return Target{}, errdef.Invalid.Errorf("target state is not for this device: it has no key %q", deviceUUID)
	}
	dev := p.object(root, deviceUUID, "")
	t := p.device(dev, deviceUUID)
	apps := p.object(dev, "apps", deviceUUID)
	for _, uuid := range slices.Sorted(maps.Keys(apps)) {
		path := deviceUUID + ".apps." + uuid
		t.Apps = append(t.Apps, p.v3App(uuid, p.object(apps, uuid, deviceUUID+".apps"), path))
	}
	return p.finish(t)
}

func decode(body []byte) (map[string]any, error) {
	dec := json.NewDecoder(bytes.NewReader(body))
	var root map[string]any
	if err := dec.Decode(&root); err != nil {
		return nil, errdef.Invalid.Errorf("target state is not a JSON object: %w", err)
	}
	return root, nil
}

// A parser collects every problem, so that a person sees all of them at once.
type parser struct{ problems []string }

func (p *parser) fail(path, format string, args ...any) {
	p.problems = append(p.problems, path+": "+fmt.Sprintf(format, args...))
}

func (p *parser) finish(t Target) (Target, error) {
	if len(p.problems) > 0 {
		return Target{}, errdef.Invalid.Errorf("%s", strings.Join(p.problems, "\n"))
	}
	order.By(t.Apps, func(a, b App) int { return cmp.Compare(a.ID, b.ID) })
	for i := 1; i < len(t.Apps); i++ {
		if t.Apps[i].ID == t.Apps[i-1].ID {
			return Target{}, errdef.Invalid.Errorf("apps: two applications have the ID %d", t.Apps[i].ID)
		}
	}
	return t, nil
}

// object is m[key] as an object; absent and null count as empty.
func (p *parser) object(m map[string]any, key, path string) map[string]any {
	v, ok := m[key].(map[string]any)
	if !ok && m[key] != nil {
		p.fail(join(path, key), "want an object")
	}
	return v
}

func (p *parser) id(m map[string]any, key, path string) int {
	if m[key] == nil {
		return 0
	}
	n, ok := Int(m[key])
	if !ok || n < 0 {
		p.fail(join(path, key), "want a non-negative number, not %v", m[key])
	}
	return n
}

func (p *parser) str(m map[string]any, key, path string) string {
	if m[key] == nil {
		return ""
	}
	s, ok := m[key].(string)
	if !ok {
		p.fail(join(path, key), "want a string, not %v", m[key])
	}
	if len(s) > maxString {
		p.fail(join(path, key), "longer than %d characters", maxString)
	}
	return s
}

// pairs is m[key] as strings by name. Scalars are written out: people type
// PORT: 8080 without quotes.
func (p *parser) pairs(m map[string]any, key, path string, name *regexp.Regexp) map[string]string {
	out := map[string]string{}
	for k, v := range p.object(m, key, path) {
		s, ok := text(v)
		switch at := join(path, key) + "." + k; {
		case !name.MatchString(k) || len(k) > maxString:
			p.fail(at, "not a valid name")
		case !ok:
			p.fail(at, "want a string, not %v", v)
		default:
			out[k] = s
		}
	}
	return out
}

func (p *parser) bodies(m map[string]any, key, path string) map[string]map[string]any {
	out := map[string]map[string]any{}
	objects := p.object(m, key, path)
	for k := range objects {
		if !objName.MatchString(k) {
			p.fail(join(path, key)+"."+k, "not a valid name")
		}
		out[k] = snakeKeys(p.object(objects, k, join(path, key)))
	}
	return out
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

func (p *parser) device(m map[string]any, path string) Target {
	t := Target{Name: p.str(m, "name", path), Config: map[string]string{}}
	if strings.Contains(t.Name, "\n") {
		p.fail(path+".name", "must be one line")
	}
	raw := p.pairs(m, "config", path, configKey)
	// BALENA_X beats RESIN_X beats X.
	for _, prefix := range []string{"", "RESIN_", "BALENA_"} {
		for k, v := range raw {
			bare, ok := strings.CutPrefix(k, prefix)
			if ok && (prefix != "" || !strings.HasPrefix(k, "RESIN_") && !strings.HasPrefix(k, "BALENA_")) {
				t.Config[bare] = v
			}
		}
	}
	const lock = "OVERRIDE_LOCK" // older servers' name
	if v, ok := t.Config[lock]; ok && t.Config["SUPERVISOR_"+lock] == "" {
		t.Config["SUPERVISOR_"+lock] = v
	}
	return t
}

func (p *parser) localApp(id AppID, key string, m map[string]any, path string) App {
	app := App{
		ID: id, UUID: key,
		Name:      p.str(m, "name", path),
		Commit:    p.str(m, "commit", path),
		ReleaseID: p.id(m, "releaseId", path),
		Networks:  p.bodies(m, "networks", path),
		Volumes:   p.bodies(m, "volumes", path),
	}
	if app.Commit == "" { // no release, nothing to run
		return app
	}
	services := p.object(m, "services", path)
	for _, k := range slices.Sorted(maps.Keys(services)) {
		body := p.object(services, k, path+".services")
		s := p.service(p.str(body, "serviceName", path+".services."+k), body, path+".services."+k)
		s.ImageID = p.id(body, "imageId", path+".services."+k)
		s.ID, _ = Int(k)
		s.Composition = map[string]any{}
		for field, v := range snakeKeys(body) {
			if !own[field] {
				s.Composition[field] = v
			}
		}
		app.Services = append(app.Services, s)
	}
	return p.app(app, path)
}

// own are the keys of a local service that are not compose's.
var own = map[string]bool{
	"image_id": true, "service_name": true, "image": true, "environment": true,
	"labels": true, "running": true, "service_id": true, "contract": true,
}

func (p *parser) v3App(uuid string, m map[string]any, path string) App {
	app := App{
		ID: AppID(p.id(m, "id", path)), UUID: uuid,
		Name:   p.str(m, "name", path),
		IsHost: Truthy(m["is_host"]),
	}
	if class := p.str(m, "class", path); class != "" && class != "fleet" && class != "app" && class != "block" {
		p.fail(path+".class", "want fleet, app or block, not %q", class)
	}
	releases := p.object(m, "releases", path)
	commits := slices.Sorted(maps.Keys(releases))
	if len(commits) == 0 {
		return p.app(app, path)
	}
	// Only one release is ever run; a server sends no more.
	app.Commit = commits[0]
	path += ".releases." + app.Commit
	rel := p.object(releases, app.Commit, path)
	app.ReleaseID = p.id(rel, "id", path)
	app.Networks = p.bodies(rel, "networks", path)
	app.Volumes = p.bodies(rel, "volumes", path)
	services := p.object(rel, "services", path)
	for name := range services {
		at := path + ".services." + name
		body := p.object(services, name, path+".services")
		s := p.service(name, body, at)
		s.ID, s.ImageID = p.id(body, "id", at), p.id(body, "image_id", at)
		s.Composition = snakeKeys(p.object(body, "composition", at))
		app.Services = append(app.Services, s)
	}
	return p.app(app, path)
}

func (p *parser) service(name string, m map[string]any, path string) Service {
	s := Service{
		Name:        name,
		Image:       p.str(m, "image", path),
		Running:     m["running"] == nil || Truthy(m["running"]),
		Environment: p.pairs(m, "environment", path, envKey),
		Labels:      p.pairs(m, "labels", path, labelKey),
	}
	var err error
	if s.Contract, err = contract.Parse(m["contract"]); err != nil {
		p.problems = append(p.problems, path+"."+err.Error())
	}
	if !objName.MatchString(name) {
		p.fail(path, "service name %q: want letters, digits, '_', '.', '-'", name)
	}
	if s.Image == "" {
		p.fail(path+".image", "missing")
	}
	return s
}

func (p *parser) app(app App, path string) App {
	order.By(app.Services, func(a, b Service) int { return strings.Compare(a.Name, b.Name) })
	for i := 1; i < len(app.Services); i++ {
		if app.Services[i].Name == app.Services[i-1].Name {
			p.fail(path+".services", "two services are named %q", app.Services[i].Name)
		}
	}
	return app
}
