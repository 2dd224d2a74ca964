package runtime

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/minke-os/minke/internal/testenv"
)

// cli calls the program as a container engine would.
type cli struct {
	t      *testing.T
	root   string
	bundle string
}

func newCLI(t *testing.T, args ...string) cli {
	testenv.NeedRoot(t)
	c := cli{t, memoryDir(t), testenv.DiskDir(t)}
	testenv.BusyboxRoot(t, filepath.Join(c.bundle, "rootfs"))
	s := dockerSpec("cli", args)
	s.Root.Path = "rootfs"
	data, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(c.bundle, "config.json"), data, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.call("delete", "--force", "x")
		if left, _ := filepath.Glob(c.root + "/containers/*"); len(left) > 0 {
			t.Errorf("left: %v", left)
		}
	})
	return c
}

func (c cli) call(args ...string) (out string, code int) {
	cmd := exec.Command(binary, append([]string{"--root", c.root}, args...)...)
	cmd.Dir = c.bundle
	// A file, not a pipe: the container's processes inherit it.
	f, err := os.CreateTemp(c.bundle, "out")
	if err != nil {
		c.t.Fatal(err)
	}
	defer f.Close()
	cmd.Stdout, cmd.Stderr = f, f
	err = cmd.Run()
	data, _ := os.ReadFile(f.Name())
	if _, ok := err.(*exec.ExitError); err != nil && !ok {
		c.t.Fatal(err)
	}
	return string(data), cmd.ProcessState.ExitCode()
}

func TestCommandLineRunsABundle(t *testing.T) {
	c := newCLI(t, "sh", "-c", "hostname; exit 3")
	if out, code := c.call("run", "x"); out != "cli\n" || code != 3 {
		t.Errorf("run = %q, %d; want the program's output and code 3", out, code)
	}
	if out, code := c.call("state", "x"); code == 0 || !strings.Contains(out, "does not exist") {
		t.Errorf("state after run = %q, %d; want that it does not exist", out, code)
	}
}

func TestCommandLineLifeCycle(t *testing.T) {
	c := newCLI(t, "sleep", "1000")
	status := func() string {
		out, _ := c.call("state", "x")
		var s specs.State
		if err := json.Unmarshal([]byte(out), &s); err != nil {
			t.Fatalf("state = %q: %v", out, err)
		}
		return string(s.Status)
	}
	steps := []struct {
		args []string
		code int
		want string
	}{
		{[]string{"create", "--pid-file", "pid", "x"}, 0, "created"},
		{[]string{"create", "x"}, 1, "created"},
		{[]string{"start", "x"}, 0, "running"},
		{[]string{"exec", "x", "sh", "-c", "exit 7"}, 7, "running"},
		{[]string{"exec", "x", "nonsense"}, 127, "running"},
		{[]string{"delete", "x"}, 1, "running"},
		{[]string{"kill", "x", "FANCY"}, 1, "running"},
	}
	for _, s := range steps {
		out, code := c.call(s.args...)
		if got := status(); code != s.code || got != s.want {
			t.Errorf("%q = %q, %d, status %s; want %d, %s", s.args, out, code, got, s.code, s.want)
		}
	}
	if pid, err := os.ReadFile(filepath.Join(c.bundle, "pid")); err != nil || len(pid) == 0 {
		t.Errorf("pid file: %q, %v", pid, err)
	}
	if out, _ := c.call("list", "--quiet"); out != "x\n" {
		t.Errorf("list = %q, want x", out)
	}
	if out, code := c.call("kill", "x", "KILL"); code != 0 {
		t.Errorf("kill = %q, %d", out, code)
	}
}

func TestFeaturesIsJSON(t *testing.T) {
	out, code := newCLI(t).call("features")
	if code != 0 || !json.Valid([]byte(out)) || !strings.Contains(out, `"rro"`) {
		t.Errorf("features = %.100q, %d; want JSON that names the option rro", out, code)
	}
}
