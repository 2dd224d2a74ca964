package runtime

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/minke-os/minke/internal/testenv"
)

// edit changes the configuration of the bundle.
func (c cli) edit(f func(*specs.Spec)) {
	c.t.Helper()
	path := filepath.Join(c.bundle, "config.json")
	data, err := os.ReadFile(path)
	if err != nil {
		c.t.Fatal(err)
	}
	var s specs.Spec
	if err := json.Unmarshal(data, &s); err != nil {
		c.t.Fatal(err)
	}
	f(&s)
	if data, err = json.Marshal(s); err != nil {
		c.t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		c.t.Fatal(err)
	}
}

func TestHooksRunInTheirOrderAndPlace(t *testing.T) {
	c := newCLI(t, "sh", "-c", "cat /seen")
	// What a hook saw, into a file of the bundle or, from inside, of the root.
	hook := func(name, file string) []specs.Hook {
		return []specs.Hook{{
			Path: testenv.Busybox(t), Env: []string{"NAME=" + name, "PATH=/usr/bin:/bin"},
			Args: []string{"sh", "-c", `state=$(cat); echo "$NAME $(readlink /proc/self/ns/uts) $state" >> ` + file},
		}}
	}
	outside := filepath.Join(c.bundle, "order")
	c.edit(func(s *specs.Spec) {
		s.Annotations = map[string]string{"key": "value"}
		s.Hooks = &specs.Hooks{
			Prestart: hook("prestart", outside), CreateRuntime: hook("createRuntime", outside), CreateContainer: hook("createContainer", outside),
			StartContainer: hook("startContainer", "/seen"), Poststart: hook("poststart", outside), Poststop: hook("poststop", outside),
		}
		s.Hooks.StartContainer[0].Path = "/bin/busybox"
	})
	out, code := c.call("run", "x")
	if code != 0 {
		t.Fatalf("run = %q, %d", out, code)
	}
	data, err := os.ReadFile(outside)
	if err != nil {
		t.Fatal(err)
	}
	ours, err := os.Readlink("/proc/self/ns/uts")
	if err != nil {
		t.Fatal(err)
	}
	var order []string
	for line := range strings.Lines(string(data) + out) {
		f := strings.SplitN(line, " ", 3)
		var s specs.State
		if len(f) != 3 || json.Unmarshal([]byte(f[2]), &s) != nil {
			t.Fatalf("a hook saw %q, want a state", line)
		}
		if s.ID != "x" || s.Bundle != c.bundle || s.Annotations["key"] != "value" || (s.Pid == 0) != (f[0] == "poststop") {
			t.Errorf("%s saw %+v", f[0], s)
		}
		if inside := f[0] == "createContainer" || f[0] == "startContainer"; (f[1] != ours) != inside {
			t.Errorf("%s ran in the wrong namespace", f[0])
		}
		order = append(order, f[0]+" "+string(s.Status))
	}
	want := []string{
		"prestart creating", "createRuntime creating", "createContainer creating", "poststart running", "poststop stopped", "startContainer created",
	}
	if !slices.Equal(order, want) {
		t.Errorf("hooks ran as %q, want %q", order, want)
	}
}

func TestFailedHookStopsTheStart(t *testing.T) {
	second := 1
	tests := map[string]struct {
		hooks specs.Hooks
		want  string
	}{
		"create-runtime":   {specs.Hooks{CreateRuntime: []specs.Hook{{Path: "/bin/false"}}}, "/bin/false"},
		"create-container": {specs.Hooks{CreateContainer: []specs.Hook{{Path: "/nowhere"}}}, "/nowhere"},
		"start-container":  {specs.Hooks{StartContainer: []specs.Hook{{Path: "/bin/false"}}}, "/bin/false"},
		"poststart":        {specs.Hooks{Poststart: []specs.Hook{{Path: "/bin/false"}}}, "/bin/false"},
		"timeout":          {specs.Hooks{Prestart: []specs.Hook{{Path: "/bin/sleep", Args: []string{"sleep", "1000"}, Timeout: &second}}}, "timeout"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			c := newCLI(t, "sleep", "1000")
			c.edit(func(s *specs.Spec) { s.Hooks = &tt.hooks })
			if out, code := c.call("run", "x"); code == 0 || !strings.Contains(out, tt.want) {
				t.Errorf("run = %q, %d; want a failure that names %s", out, code, tt.want)
			}
			if out, code := c.call("state", "x"); code == 0 {
				t.Errorf("state = %q; want that nothing is left", out)
			}
		})
	}
}
