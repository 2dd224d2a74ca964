package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
	"go.yaml.in/yaml/v4"

	"github.com/minke-os/minke/internal/testdaemon"
)

// A specification is Docker's own of the Engine API, in Swagger 2.
type specification struct {
	BasePath    string                          `yaml:"basePath"`
	Paths       map[string]map[string]operation `yaml:"paths"`
	Definitions map[string]*schema              `yaml:"definitions"`
}

type operation struct {
	Responses map[string]struct {
		Schema *schema `yaml:"schema"`
	} `yaml:"responses"`
}

type schema struct {
	Ref        string             `yaml:"$ref"`
	Type       string             `yaml:"type"`
	AllOf      []*schema          `yaml:"allOf"`
	Properties map[string]*schema `yaml:"properties"`
	Additional *schema            `yaml:"additionalProperties"`
	Items      *schema            `yaml:"items"`
	Enum       []any              `yaml:"enum"`
	Nullable   bool               `yaml:"x-nullable"`
	OmitEmpty  bool               `yaml:"x-omitempty"`
}

// readSpecification reads the one that comes with the module of API types.
func readSpecification(t *testing.T) *specification {
	t.Helper()
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/moby/moby/api").Output()
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(dir)), "swagger.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var s specification
	if err := yaml.Unmarshal(data, &s); err != nil {
		t.Fatal(err)
	}
	return &s
}

// resolve follows references and puts together what is made of parts.
func (s *specification) resolve(sc *schema) *schema {
	for sc != nil && sc.Ref != "" {
		sc = s.Definitions[strings.TrimPrefix(sc.Ref, "#/definitions/")]
	}
	if sc == nil || len(sc.AllOf) == 0 {
		return sc
	}
	whole := &schema{Type: "object", Properties: maps.Clone(sc.Properties)}
	if whole.Properties == nil {
		whole.Properties = map[string]*schema{}
	}
	for _, part := range sc.AllOf {
		maps.Copy(whole.Properties, s.resolve(part).Properties)
	}
	return whole
}

// An audit collects what does not fit, and which fields were seen at all.
type audit struct {
	spec    *specification
	faults  map[string]bool
	fields  map[string]bool // all that the answers may have
	present map[string]bool
}

func (a *audit) check(path string, sc *schema, v any) {
	sc = a.spec.resolve(sc)
	if sc == nil || v == nil {
		return
	}
	fault := func(format string, args ...any) { a.faults[path+": "+fmt.Sprintf(format, args...)] = true }
	switch v := v.(type) {
	case map[string]any:
		if sc.Type != "object" && sc.Type != "" {
			fault("an object, want %s", sc.Type)
			return
		}
		for name, p := range sc.Properties {
			a.fields[path+"."+name] = a.fields[path+"."+name] || !p.OmitEmpty
		}
		for name, value := range v {
			p := sc.Properties[name]
			switch {
			case p != nil:
				a.present[path+"."+name] = true
				a.check(path+"."+name, p, value)
			case sc.Additional != nil:
				a.check(path+".*", sc.Additional, value)
			case len(sc.Properties) > 0:
				fault("field %s is not in the specification", name)
			}
		}
	case []any:
		if sc.Type != "array" {
			fault("an array, want %s", sc.Type)
			return
		}
		for _, e := range v {
			a.check(path+"[]", sc.Items, e)
		}
	case string:
		if sc.Type != "string" && sc.Type != "" {
			fault("string %q, want %s", v, sc.Type)
		}
		if len(sc.Enum) > 0 && !slices.Contains(sc.Enum, any(v)) {
			fault("%q is none of %v", v, sc.Enum)
		}
	case bool:
		if sc.Type != "boolean" {
			fault("a boolean, want %s", sc.Type)
		}
	case json.Number:
		if _, err := v.Int64(); sc.Type != "number" && (sc.Type != "integer" || err != nil) {
			fault("number %s, want %s", v, sc.Type)
		}
	}
}

// ours is what answers have on purpose: how such faults begin.
var ours = []string{
	// The specification has a reference beside a description, which is an enumeration of strings.
	"GET /containers/json[].Mounts[].Type: string", "GET /containers/{id}/json.Mounts[].Type: string",
	// Docker took these away in 1.52 and 1.53; scripts still look for them.
	"GET /containers/{id}/json.NetworkSettings: field", "GET /system/df: field", "GET /events: field",
	// In 1.45; docker-compose 1 asks for the newest version and cannot recreate a container without it.
	"GET /images/{name}/json: field ContainerConfig",
}

// Every answer with a body is held against Docker's specification: no field that
// it does not know and none of another type. What an answer may have and has not is
// in the verbose log.
func TestAnswersFitDockersSpecification(t *testing.T) {
	spec := readSpecification(t)
	d := testdaemon.Start(t)
	conf := sh("echo hello; touch /new; sleep 1000")
	conf.Healthcheck = &container.HealthConfig{Test: []string{"CMD", "true"}, Interval: 1e8}
	ports, bindings := published(80, 0)
	conf.ExposedPorts = ports
	d.RunDetached(testdaemon.Spec{Name: "web", Config: conf, Host: container.HostConfig{Binds: []string{"vol:/v", "/etc:/host:ro"}, PortBindings: bindings}})
	d.WaitFor("web", "healthy", func(c container.InspectResponse) bool {
		return c.State.Health != nil && c.State.Health.Status == container.Healthy
	})

	h := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return net.Dial("unix", d.Socket) }, DisableKeepAlives: true}}
	ask := func(method, path, body string) (int, []byte) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, "http://engine"+spec.BasePath+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		resp, err := h.Do(req)
		if err != nil {
			t.Fatalf("%s %s: %v", method, path, err)
		}
		defer resp.Body.Close()
		data, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatalf("%s %s: %v", method, path, err)
		}
		return resp.StatusCode, data
	}
	a := &audit{spec: spec, faults: map[string]bool{}, fields: map[string]bool{}, present: map[string]bool{}}
	image := testdaemon.Image
	var execID string
	for _, tt := range []struct{ method, path, real, body string }{
		{"GET", "/containers/json", "/containers/json?size=1", ""},
		{"POST", "/containers/create", "/containers/create?name=other", `{"Image": "` + image + `", "Cmd": ["true"]}`},
		{"GET", "/containers/{id}/json", "/containers/web/json?size=1", ""},
		{"GET", "/containers/{id}/top", "/containers/web/top", ""},
		{"GET", "/containers/{id}/changes", "/containers/web/changes", ""},
		{"GET", "/containers/{id}/stats", "/containers/web/stats?stream=0", ""},
		{"POST", "/containers/{id}/update", "/containers/web/update", `{"Memory": 67108864, "MemorySwap": 67108864}`},
		{"POST", "/containers/{id}/exec", "/containers/web/exec", `{"Cmd": ["true"]}`},
		{"GET", "/exec/{id}/json", "/exec/EXEC/json", ""},
		{"POST", "/commit", "/commit?container=web&repo=made", "{}"},
		{"GET", "/images/json", "/images/json?shared-size=1", ""},
		{"GET", "/images/{name}/json", "/images/" + image + "/json", ""},
		{"GET", "/images/{name}/history", "/images/" + image + "/history", ""},
		{"GET", "/info", "/info", ""},
		{"GET", "/version", "/version", ""},
		{"GET", "/events", fmt.Sprint("/events?since=1&until=", time.Now().Unix()+1), ""},
		{"GET", "/system/df", "/system/df", ""},
		{"GET", "/volumes", "/volumes", ""},
		{"GET", "/volumes/{name}", "/volumes/vol", ""},
		{"POST", "/volumes/create", "/volumes/create", `{"Name": "vol2", "Labels": {"a": "b"}}`},
		{"GET", "/networks", "/networks", ""},
		{"GET", "/networks/{id}", "/networks/bridge", ""},
		{"POST", "/networks/create", "/networks/create", `{"Name": "net"}`},
		{"POST", "/networks/prune", "/networks/prune", ""},
		{"POST", "/volumes/prune", "/volumes/prune?all=1", ""},
		{"POST", "/containers/prune", "/containers/prune", ""},
		{"DELETE", "/images/{name}", "/images/made", ""},
		{"POST", "/images/prune", "/images/prune", ""},
		{"POST", "/build/prune", "/build/prune", ""},
		{"GET", "/plugins", "/plugins", ""},
		{"POST", "/containers/{id}/wait", "/containers/web/wait?condition=removed", ""},
	} {
		name := tt.method + " " + tt.path
		if strings.HasSuffix(tt.path, "/wait") {
			// It ends while somebody waits.
			go func() {
				if _, err := d.ContainerRemove(t.Context(), "web", client.ContainerRemoveOptions{Force: true}); err != nil {
					t.Error(err)
				}
			}()
		}
		status, data := ask(tt.method, strings.ReplaceAll(tt.real, "EXEC", execID), tt.body)
		want, ok := spec.Paths[tt.path][strings.ToLower(tt.method)].Responses[fmt.Sprint(status)]
		if !ok || want.Schema == nil || status >= 300 {
			t.Errorf("%s answers %d: %s", name, status, data)
			continue
		}
		dec := json.NewDecoder(bytes.NewReader(data))
		dec.UseNumber()
		for {
			var v any
			if err := dec.Decode(&v); err == io.EOF {
				break
			} else if err != nil {
				t.Fatalf("%s: %v in %s", name, err, data)
			}
			a.check(name, want.Schema, v)
			if m, ok := v.(map[string]any); ok && strings.HasSuffix(tt.path, "/exec") {
				execID, _ = m["Id"].(string)
			}
		}
	}
	for _, f := range slices.Sorted(maps.Keys(a.faults)) {
		if !slices.ContainsFunc(ours, func(o string) bool { return strings.HasPrefix(f, o) }) {
			t.Error(f)
		}
	}
	for path, operations := range spec.Paths {
		for method := range operations {
			if !strings.Contains(path, "{") || path == "/images/{name}/push" {
				continue // these were asked, or would change something; a push has errors in its stream
			}
			real := strings.NewReplacer("{id}", "nosuch", "{name}", "nosuch").Replace(path)
			if status, data := ask(strings.ToUpper(method), real, "{}"); status < 300 || strings.Contains(string(data), "page not found") {
				t.Errorf("%s %s: %d %s, want a refusal that says why", strings.ToUpper(method), path, status, data)
			}
		}
	}
	for _, f := range slices.Sorted(maps.Keys(a.fields)) {
		if a.fields[f] && !a.present[f] {
			t.Log("absent:", f)
		}
	}
}
