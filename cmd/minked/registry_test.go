package main

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/minke-os/minke/internal/testdaemon"
	"github.com/minke-os/minke/internal/testenv"
)

// startRegistry runs Debian's docker-registry on all addresses of the daemon's
// host network and returns one.
func startRegistry(t *testing.T, d *testdaemon.Daemon) string {
	t.Helper()
	const addr = "127.0.0.1:5000"
	dir := t.TempDir()
	config := filepath.Join(dir, "config.yml")
	text := fmt.Sprintf("version: 0.1\nlog: {level: error}\nstorage: {filesystem: {rootdirectory: %s}}\nhttp: {addr: \":5000\"}\n", dir)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(testenv.Need(t, "docker-registry"), "serve", config)
	if err := d.InNetNS(cmd.Start); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	c := http.Client{Transport: &http.Transport{DialContext: d.Dial, DisableKeepAlives: true}}
	for deadline := time.Now().Add(20 * time.Second); ; {
		if resp, err := c.Get("http://" + addr + "/v2/"); err == nil {
			resp.Body.Close()
			return addr
		}
		if time.Now().After(deadline) {
			t.Fatal("docker-registry does not answer")
		}
		time.Sleep(10 * time.Millisecond) // another process: there is nothing to wait on
	}
}

// TestRegistryWithDockersClient moves an image to a registry and back, as
// people do it, and reads what they see.
func TestRegistryWithDockersClient(t *testing.T) {
	docker := testenv.Need(t, "docker")
	testenv.Need(t, "docker-registry")
	d := testdaemon.Start(t)
	addr := startRegistry(t, d)
	home := t.TempDir()
	if err := os.WriteFile(filepath.Join(home, "Dockerfile"), []byte("FROM "+addr+"/lib/busybox:1\nCOPY Dockerfile /\nCMD cat /Dockerfile\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	steps := []struct {
		name string
		args string
		fail bool
		want []string // each in the output
	}{
		{"pull-of-nothing", "pull ADDR/lib/busybox:1", true, []string{"manifest for ADDR/lib/busybox:1 not found: manifest unknown: manifest unknown"}},
		{"push-of-nothing", "push ADDR/lib/busybox:1", true, []string{"The push refers to repository [ADDR/lib/busybox]", "An image does not exist locally with the tag: ADDR/lib/busybox"}},
		{"tag", "tag busybox ADDR/lib/busybox:1", false, nil},
		{"push", "push ADDR/lib/busybox:1", false, []string{": Preparing", ": Pushed", "1: digest: sha256:"}},
		{"second-push", "push ADDR/lib/busybox:1", false, []string{": Layer already exists", "1: digest: sha256:"}},
		{"remove", "rmi -f busybox ADDR/lib/busybox:1", false, []string{"Deleted: sha256:"}},
		{"pull", "pull ADDR/lib/busybox:1", false, []string{"1: Pulling from lib/busybox", ": Pulling fs layer", ": Download complete", ": Pull complete", "Digest: sha256:", "Status: Downloaded newer image for ADDR/lib/busybox:1"}},
		{"second-pull", "pull ADDR/lib/busybox:1", false, []string{"Status: Image is up to date for ADDR/lib/busybox:1"}},
		{"run", "run --rm --network none ADDR/lib/busybox:1 echo it runs", false, []string{"it runs"}},
		{"digests-are-listed", "images --digests --format {{.Repository}}@{{.Digest}}", false, []string{"ADDR/lib/busybox@sha256:"}},
		{"remove-again", "rmi ADDR/lib/busybox:1", false, nil},
		{"build-pulls-its-base", "build -t ADDR/app HOME", false, []string{"Status: Downloaded newer image for ADDR/lib/busybox:1", "Successfully tagged ADDR/app:latest"}},
		{"push-takes-what-is-there", "push ADDR/app", false, []string{"Mounted from lib/busybox", "Pushed", "latest: digest: sha256:"}},
		{"another-tag", "tag ADDR/app ADDR/app:2", false, nil},
		{"push-all", "push -a ADDR/app", false, []string{"2: digest: sha256:", "latest: digest: sha256:"}},
		{"remove-both", "rmi ADDR/app ADDR/app:2", false, []string{"Untagged: ADDR/app:2"}},
		{"pull-all", "pull -a ADDR/app", false, []string{"2: Pulling from app", "latest: Pulling from app"}},
		{"run-pulls-nothing-twice", "run --rm --network none ADDR/app:2", false, []string{"CMD cat /Dockerfile"}},
	}
	for _, s := range steps {
		fill := strings.NewReplacer("ADDR", addr, "HOME", home)
		cmd := exec.Command(docker, append([]string{"-H", "unix://" + d.Socket}, strings.Fields(fill.Replace(s.args))...)...)
		cmd.Env = append(os.Environ(), "DOCKER_CONFIG="+home, "DOCKER_BUILDKIT=0")
		out, err := cmd.CombinedOutput()
		if (err != nil) != s.fail {
			t.Fatalf("%s: docker %s: %v\n%s", s.name, s.args, err, out)
		}
		for _, want := range s.want {
			if !strings.Contains(string(out), fill.Replace(want)) {
				t.Errorf("%s: docker %s: output has no %q:\n%s", s.name, s.args, fill.Replace(want), out)
			}
		}
	}
}
