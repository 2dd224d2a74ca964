package compose

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/minke-os/minke/supervisor/model"
)

// project writes files and loads them.
func project(t *testing.T, files map[string]string, o Options) (*Project, error) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "shop")
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	o.Dir = dir
	for i, f := range o.Files {
		o.Files[i] = filepath.Join(dir, f)
	}
	return Load(context.Background(), o)
}

func TestErrorsNameFileLineAndKey(t *testing.T) {
	tests := []struct{ name, file, want string }{
		{"unknown-key", "services:\n  web:\n    image: x\n    prots: [a]\n",
			"docker-compose.yml:4: services.web.prots: unknown key; check its spelling and indentation"},
		{"not-yaml", "services:\n  web:\n    image: x\n   foo: bar\n", "docker-compose.yml:3: not valid YAML: "},
		{"wrong-type", "services:\n  web:\n    image: x\n    cpus: abc\n", "docker-compose.yml:4: "},
		{"missing-dependency", "services:\n  web:\n    image: x\n    depends_on: [y]\n",
			`docker-compose.yml:2: services.web: depends on undefined service "y"`},
		{"bind-mount", "services:\n  web:\n    image: x\n    volumes:\n      - /etc/passwd:/x\n",
			"docker-compose.yml:4: services.web.volumes: cannot mount /etc/passwd of this computer at /x: a device does not have it; use a named volume, or copy it into the image"},
		{"secrets", "services:\n  web:\n    image: x\n    secrets: [s]\nsecrets:\n  s: {file: f}\n",
			"docker-compose.yml:4: services.web.secrets: secrets are not supported; use environment"},
		{"foreign-network", "services:\n  web:\n    image: x\n    networks: [n]\nnetworks:\n  n:\n    external: true\n",
			"docker-compose.yml:7: networks.n.external: a device has no networks but those of its application"},
		{"network-driver", "services:\n  web: {image: x, networks: [n]}\nnetworks:\n  n:\n    driver: macvlan\n",
			`docker-compose.yml:5: networks.n.driver: only bridge networks are supported, not "macvlan"`},
		{"container-network", "services:\n  web:\n    image: x\n    network_mode: container:y\n",
			`docker-compose.yml:4: services.web.network_mode: "container:y" names a container that may be replaced at any time; use service:<name>`},
		{"inline-dockerfile", "services:\n  web:\n    build:\n      dockerfile_inline: FROM x\n",
			"docker-compose.yml:4: services.web.build.dockerfile_inline: not supported by the classic builder"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := project(t, map[string]string{"docker-compose.yml": tt.file}, Options{})
			if err == nil || !strings.HasPrefix(err.Error(), tt.want) {
				t.Errorf("Load:\n%s\n= %v\nwant %s", tt.file, err, tt.want)
			}
		})
	}
}

func TestKeysWithoutEffectAreReported(t *testing.T) {
	p, err := project(t, map[string]string{"docker-compose.yml": "services:\n  web:\n    image: x\n    logging: {driver: none}\n    container_name: mine\n    volumes:\n      - /run/dbus:/host/run/dbus\n"}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"docker-compose.yml:5: services.web.container_name has no effect: containers are named after service and release",
		"docker-compose.yml:4: services.web.logging has no effect: the device keeps logs in its own way",
		"docker-compose.yml:6: services.web.volumes has no effect: mounting /run/dbus; the label io.balena.features.dbus is set instead",
	}
	if !reflect.DeepEqual(p.Notices, want) {
		t.Errorf("Notices = %q\nwant %q", p.Notices, want)
	}
	if got := p.Services[0].Labels["io.balena.features.dbus"]; got != "1" {
		t.Errorf("the label of the mount is %q, want 1", got)
	}
}

func TestFieldsTakeTheirShortForm(t *testing.T) {
	p, err := project(t, map[string]string{"docker-compose.yml": `services:
  web:
    image: x
    ports: ["8080:80", "127.0.0.1:53:53/udp", "9000-9001:9000-9001", "77"]
    devices: ["/dev/null:/dev/x:r"]
    depends_on: [db]
    volumes: ["data:/data:ro", "/anonymous"]
    environment: {A: 1, B: "", C: null}
    command: sh -c "echo $$HOME"
  db:
    image: y
    depends_on:
      cache: {condition: service_healthy}
  cache: {image: z}
volumes: {data: {}}
`}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	web := p.Services[2]
	want := map[string]any{
		"ports":      []any{"8080:80", "127.0.0.1:53:53/udp", "9000:9000", "9001:9001", "77"},
		"devices":    []any{"/dev/null:/dev/x:r"},
		"depends_on": []any{"db"},
		"volumes":    []any{"data:/data:ro", "/anonymous"},
		"command":    []any{"sh", "-c", "echo $HOME"},
		"networks":   map[string]any{"default": nil},
	}
	if !reflect.DeepEqual(web.Composition, want) {
		t.Errorf("web = %v\nwant %v", web.Composition, want)
	}
	if want := map[string]string{"A": "1", "B": ""}; !reflect.DeepEqual(web.Environment, want) {
		t.Errorf("environment = %v, want %v", web.Environment, want)
	}
	conditions := map[string]any{"cache": map[string]any{"condition": "service_healthy"}}
	if got := p.Services[1].Composition["depends_on"]; !reflect.DeepEqual(got, conditions) {
		t.Errorf("db depends on %v, want %v", got, conditions)
	}
}

func TestFilesEnvironmentAndProfiles(t *testing.T) {
	files := map[string]string{
		"docker-compose.yml":     "services:\n  web:\n    image: web:${TAG:-latest}\n    environment: {FROM: \"${FROM_FILE}\"}\n  debug:\n    image: debug\n    profiles: [debug]\n",
		"docker-compose.dev.yml": "services:\n  web:\n    command: dev\n",
		".env":                   "FROM_FILE=dotenv\n",
	}
	p, err := project(t, files, Options{
		Files: []string{"docker-compose.yml", "docker-compose.dev.yml"}, Profiles: []string{"debug"}, Env: []string{"TAG=7"}, Name: "mine",
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(p.Services) != 2 || p.Services[0].Name != "debug" || p.Name != "mine" {
		t.Fatalf("%s has services %+v, want mine with debug and web", p.Name, p.Services)
	}
	web := p.Services[1]
	if web.Image != "web:7" || web.Environment["FROM"] != "dotenv" || !reflect.DeepEqual(web.Composition["command"], []any{"dev"}) {
		t.Errorf("web = %+v, want image web:7, FROM dotenv, command dev", web)
	}
	p, err = project(t, files, Options{})
	if err != nil || len(p.Services) != 1 || p.Services[0].Image != "web:latest" || p.Name != "shop" {
		t.Errorf("without options: %+v, %v; want shop with web:latest alone", p, err)
	}
}

func TestALoneDockerfileIsTheServiceMain(t *testing.T) {
	p, err := project(t, map[string]string{"Dockerfile.template": "FROM %%BALENA_ARCH%%"}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	main := p.Services[0]
	if main.Name != "main" || main.Composition["network_mode"] != "host" || main.Composition["privileged"] != true ||
		main.Labels["io.resin.features.dbus"] != "1" || p.Volumes["resin-data"] == nil {
		t.Errorf("service = %+v", main)
	}
	if file, err := main.Build.FileFor("raspberrypi4-64", "aarch64"); file != "Dockerfile.template" || err != nil {
		t.Errorf("FileFor = %s, %v; want Dockerfile.template", file, err)
	}
	if err := os.WriteFile(filepath.Join(main.Build.Context, "Dockerfile.aarch64"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if file, err := main.Build.FileFor("raspberrypi4-64", "aarch64"); file != "Dockerfile.aarch64" || err != nil {
		t.Errorf("FileFor = %s, %v; want Dockerfile.aarch64", file, err)
	}
	if _, err := project(t, map[string]string{"README": ""}, Options{}); err == nil || !strings.Contains(err.Error(), "no docker-compose.yml and no Dockerfile here") {
		t.Errorf("an empty directory: %v", err)
	}
}

func TestTargetsAreWhatTheSupervisorTakes(t *testing.T) {
	p, err := project(t, map[string]string{"docker-compose.yml": `services:
  web:
    build: .
    ports: ["8080:80"]
    depends_on: {db: {condition: service_healthy}}
    volumes: ["data:/data", {type: tmpfs, target: /t, tmpfs: {size: 1m}}]
    ulimits: {nofile: {soft: 10, hard: 20}}
    mem_limit: 64m
    cpus: 0.5
    stop_grace_period: 1m
    sysctls: {net.core.somaxconn: 1}
    healthcheck: {test: "true", interval: 5s}
  db: {image: "redis:7", healthcheck: {test: ["CMD", "x"], start_period: 1s}}
volumes: {data: {}}
networks: {default: {ipam: {config: [{subnet: 10.1.0.0/24, gateway: 10.1.0.1}]}}}
`}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	body, err := Target(p, map[string]any{"name": "bench", "config": map[string]any{"SUPERVISOR_LOCAL_MODE": "1"}, "apps": map[string]any{"9": nil}}, false)
	if err != nil {
		t.Fatal(err)
	}
	target, err := model.ParseLocal(body)
	if err != nil {
		t.Fatalf("ParseLocal(%s): %v", body, err)
	}
	if len(target.Apps) != 1 || target.Name != "bench" || target.Config["SUPERVISOR_LOCAL_MODE"] != "1" {
		t.Fatalf("target = %+v", target)
	}
	spec, err := model.Compose(target.Apps[0], model.Device{})
	if err != nil {
		t.Fatal(err)
	}
	web := spec.Services[1]
	if web.Name != "web_2_1_10ca12e1ea5e" || web.Image != "local_image_web:latest" || web.Host.Memory != 64<<20 ||
		web.Host.NanoCPUs != 5e8 || *web.Config.StopTimeout != 60 || web.Host.Ulimits[0].Hard != 20 || len(web.Warnings) != 0 {
		raw, _ := json.Marshal(web)
		t.Errorf("web = %s", raw)
	}
}

func FuzzLocate(f *testing.F) {
	f.Add("services:\n  web:\n    image: x\n", "services.web.image")
	f.Add("a: &x [*x]\n", "a.b")
	f.Fuzz(func(t *testing.T, text, path string) {
		file := filepath.Join(t.TempDir(), "compose.yml")
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		locate([]string{file}, path)
	})
}
