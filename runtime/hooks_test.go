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

func TestHooksUnderTheMonitor(t *testing.T) {
	b := newBox(t)
	busybox := testenv.Busybox(t)
	hook := func(file string) []specs.Hook {
		return []specs.Hook{{Path: busybox, Env: []string{"PATH=/usr/bin:/bin"}, Args: []string{"sh", "-c", `state=$(cat); echo "$(readlink /proc/self/ns/uts) $state" >> ` + file}}}
	}
	t.Run("each-in-its-place", func(t *testing.T) {
		c := b.container("sh", "-c", "cat /made /inside")
		outside := filepath.Join(b.dir, "outside")
		c.Spec.Hooks = &specs.Hooks{Prestart: hook(outside), CreateRuntime: hook(outside), StartContainer: hook("/inside")}
		// As vendors' hooks do: they find the root by the configuration.
		c.Spec.Hooks.CreateContainer = []specs.Hook{{Path: busybox, Env: []string{"PATH=/usr/bin:/bin"}, Args: []string{"sh", "-c",
			`grep -o '"root":{"path":"[^"]*' ` + c.Bundle + `/config.json | cut -d'"' -f6 | { read root; echo made > $root/made; }`}}}
		c.Spec.Hooks.StartContainer[0].Path = "/bin/busybox"
		code, out := b.run(c)
		data, _ := os.ReadFile(outside)
		ours, _ := os.Readlink("/proc/self/ns/uts")
		if lines := strings.Split(strings.TrimSpace(string(data)), "\n"); len(lines) != 2 || !strings.HasPrefix(lines[0], ours+" ") || !strings.Contains(lines[1], `"id":"`+c.ID+`"`) {
			t.Errorf("prestart and createRuntime saw %q", data)
		}
		if code != 0 || !strings.HasPrefix(out, "made\nuts:") || !strings.Contains(out, `"status":"created"`) || strings.Contains(out, ours) {
			t.Errorf("createContainer and startContainer saw %q, code %d", out, code)
		}
	})
	t.Run("a-failure-ends-the-start", func(t *testing.T) {
		c := b.container("true")
		c.Spec.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{{Path: busybox, Args: []string{"sh", "-c", "echo too bad; exit 1"}}}}
		_, _, err := b.Create(b.ctx, c)
		if err == nil {
			err = b.Start(b.ctx, c.ID)
		}
		if err == nil || !strings.Contains(err.Error(), "too bad") {
			t.Errorf("start: %v, want the hook's words", err)
		}
	})
	t.Run("those-that-nobody-runs-are-refused", func(t *testing.T) {
		c := b.container("true")
		c.Spec.Hooks = &specs.Hooks{Poststop: hook("/never")}
		if _, _, err := b.Create(b.ctx, c); err == nil || !strings.Contains(err.Error(), "poststop") {
			t.Errorf("create: %v, want a refusal", err)
		}
	})
}
