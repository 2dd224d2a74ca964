package engine

import (
	"encoding/json"
	"syscall"
	"testing"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/moby/moby/api/types/container"

	"github.com/minke-os/minke/engine/internal/spec"
	"github.com/minke-os/minke/internal/errdef"
)

// bare is an engine that only knows names.
func bare() *Engine {
	return &Engine{containers: map[string]*Container{}, names: map[string]string{}, execs: map[string]*execution{}}
}

func TestNames(t *testing.T) {
	tests := []struct {
		name string
		kind errdef.Kind // "" if it is fine
	}{
		{"web", ""},
		{"/web-2", ""},
		{"a.b_c-d", ""},
		{"web", errdef.Conflict},
		{"/web", errdef.Conflict},
		{"x", errdef.Invalid},
		{"-web", errdef.Invalid},
		{"a b", errdef.Invalid},
		{"../web", errdef.Invalid},
		{"web/alias", errdef.Invalid},
	}
	e := bare()
	for _, tt := range tests {
		if _, err := e.reserveName(tt.name, newID()); err != nil != (tt.kind != "") || err != nil && !errdef.Is(err, tt.kind) {
			t.Errorf("reserveName(%q) = %v, want kind %q", tt.name, err, tt.kind)
		}
	}
}

func TestNamesOfOurChoiceAreValidAndDiffer(t *testing.T) {
	e, seen := bare(), map[string]bool{}
	for range 100 {
		// The same ID, so that the second wish for it is taken.
		name, err := e.reserveName("", "0123456789abcdef")
		if err != nil || seen[name] || !containerNames.MatchString(name) {
			t.Fatalf("name %q, %v; want a new valid one", name, err)
		}
		seen[name] = true
	}
}

func TestFindTakesIDsThenNamesThenPrefixes(t *testing.T) {
	e := bare()
	add := func(id, name string) {
		e.containers[id] = newContainer(record{ID: id, Name: name})
		e.names[name] = id
	}
	add("abc1", "web")
	add("abd2", "abc") // a name that is another's prefix
	add("eee3", "abc1x")
	tests := []struct {
		name, want string
		kind       errdef.Kind
	}{
		{"abc1", "abc1", ""},
		{"web", "abc1", ""},
		{"/web", "abc1", ""},
		{"abc", "abd2", ""},
		{"e", "eee3", ""},
		{"ab", "", errdef.Invalid},
		{"", "", errdef.NotFound},
		{"nosuch", "", errdef.NotFound},
	}
	for _, tt := range tests {
		c, err := e.find(tt.name)
		if tt.kind != "" && !errdef.Is(err, tt.kind) || tt.kind == "" && (err != nil || c.ID != tt.want) {
			t.Errorf("find(%q) = %v, %v; want %q, kind %q", tt.name, c, err, tt.want, tt.kind)
		}
	}
}

func TestSignalOf(t *testing.T) {
	tests := []struct {
		name, second string
		want         syscall.Signal
		ok           bool
	}{
		{"", "", syscall.SIGTERM, true},
		{"", "INT", syscall.SIGINT, true},
		{"KILL", "INT", syscall.SIGKILL, true},
		{"sigkill", "", syscall.SIGKILL, true},
		{"9", "", syscall.SIGKILL, true},
		{"SIGRTMIN+3", "", 37, true},
		{"0", "", 0, false},
		{"65", "", 0, false},
		{"NOSUCH", "", 0, false},
	}
	for _, tt := range tests {
		got, err := signalOf(tt.name, tt.second, syscall.SIGTERM)
		if (err == nil) != tt.ok || got != tt.want {
			t.Errorf("signalOf(%q, %q) = %v, %v; want %v, ok %v", tt.name, tt.second, got, err, tt.want, tt.ok)
		}
	}
}

func TestHostSettingsThatWouldBeIgnoredAreRefused(t *testing.T) {
	tests := map[string]container.HostConfig{
		"storage-size":   {StorageOpt: map[string]string{"size": "1G"}},
		"cgroup-outside": {Resources: container.Resources{CgroupParent: "../../x"}},
		"user-namespace": {UsernsMode: "private"},
		"processors":     {Resources: container.Resources{CpusetCpus: "8000"}},
	}
	for name, h := range tests {
		if err := checkHost(&h); !errdef.Is(err, errdef.Invalid) {
			t.Errorf("%s: %v, want kind %v", name, err, errdef.Invalid)
		}
	}
	if err := checkHost(&container.HostConfig{UsernsMode: "host", Resources: container.Resources{CpusetCpus: "0"}}); err != nil {
		t.Errorf("what is fine is refused: %v", err)
	}
}

func FuzzCreateRequest(f *testing.F) {
	f.Add([]byte(`{"Image":"a","Env":["A=b"],"Cmd":"sh","Healthcheck":{"Test":["CMD","x"],"Interval":5},"HostConfig":{"Links":["a:b"],"Binds":["/a:/b:ro"]}}`))
	f.Add([]byte(`{"HostConfig":{"PortBindings":{"80/tcp":[{"HostPort":"1-"}]},"NetworkMode":"container:","ExtraHosts":["a=::1"],"LogConfig":{"Type":"local"}}}`))
	f.Add([]byte(`{"HostConfig":{"SecurityOpt":["seccomp={}"],"CapAdd":["ALL"],"Ulimits":[null],"Devices":[{}],"Sysctls":{"":""},"Mounts":[{"Type":"bind"}]}}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		var req container.CreateRequest
		if json.Unmarshal(body, &req) != nil || req.Config == nil {
			return
		}
		if req.HostConfig == nil {
			req.HostConfig = &container.HostConfig{}
		}
		cfg := withImageDefaults(*req.Config, dockerspec.DockerOCIImageConfig{})
		if checkConfig(&cfg) != nil || bare().checkHostConfig(req.HostConfig) != nil {
			return
		}
		if req.HostConfig.Privileged || len(req.HostConfig.Devices) > 0 {
			return // looks at devices of this machine
		}
		// What is taken can be asked about.
		r := record{ID: "a", Config: &cfg, Host: req.HostConfig}
		r.links()
		probeCommand(&r)
		wantedPorts(&r)
		hostsContent(&r, nil, nil)
		bare().createWarnings(r.Host)
		spec.Generate(spec.Input{ID: "a", Config: bare().withLinks(&r), Host: r.Host, Args: []string{"a"}, Root: "/nosuch"})
	})
}

// A configuration that came with an image is as foreign as a client's.
func FuzzImageConfig(f *testing.F) {
	f.Add([]byte(`{"architecture":"arm","config":{"User":"a:b","ExposedPorts":{"80/tcp":{},"x":{}},"Env":["A","=b"],"Entrypoint":[""],"Volumes":{"/v":{},"..":{}},"WorkingDir":"w","Healthcheck":{"Test":["CMD-SHELL"],"Interval":-1,"Retries":-1},"StopSignal":"x"},"history":[{}],"rootfs":{"diff_ids":[]}}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		var img dockerspec.DockerOCIImage
		if json.Unmarshal(raw, &img) != nil {
			return
		}
		ContainerConfig(img.Config)
		cfg := withImageDefaults(container.Config{Image: "a"}, img.Config)
		if checkConfig(&cfg) != nil {
			return
		}
		r := record{ID: "a", Config: &cfg, Host: &container.HostConfig{PublishAllPorts: true}}
		probeCommand(&r)
		wantedPorts(&r)
		spec.Generate(spec.Input{ID: "a", Config: &cfg, Host: r.Host, Args: []string{"a"}, Root: "/nosuch"})
	})
}

func FuzzDetachKeys(f *testing.F) {
	f.Add("ctrl-p,ctrl-q")
	f.Add("a,,ctrl-")
	f.Fuzz(func(t *testing.T, keys string) {
		if got, err := parseDetachKeys(keys); err == nil && len(got) == 0 {
			t.Errorf("parseDetachKeys(%q) = nothing, want keys or an error", keys)
		}
	})
}
