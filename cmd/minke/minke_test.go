//go:build linux

package main

import (
	"context"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/client"

	"github.com/minke-os/minke/internal/testdaemon"
	"github.com/minke-os/minke/internal/testenv"
)

func TestMain(m *testing.M) { testdaemon.Main(m) }

// greenhouse is a copy of the example with a busybox beside each Dockerfile.
func greenhouse(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "greenhouse")
	if err := os.CopyFS(dir, os.DirFS("../../examples/greenhouse")); err != nil {
		t.Fatal(err)
	}
	busybox, err := os.ReadFile(testenv.Busybox(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, service := range []string{"sensor", "hub", "watcher"} {
		if err := os.WriteFile(filepath.Join(dir, service, "busybox"), busybox, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func minke(t *testing.T, d *testdaemon.Daemon, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	out, err := d.Command(ctx, "minke", args...)
	if err != nil {
		t.Fatalf("minke %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// services are the IDs of an application's containers by service.
func services(t *testing.T, d *testdaemon.Daemon) map[string]string {
	t.Helper()
	list, err := d.ContainerList(t.Context(), client.ContainerListOptions{All: true})
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, c := range list.Items {
		if name := c.Labels["io.balena.service-name"]; name != "" {
			out[name] = c.ID
		}
	}
	return out
}

func TestGreenhouse(t *testing.T) {
	d := testdaemon.Start(t, "--supervisor=true")
	d.WaitSupervisor()
	dir := greenhouse(t)
	if out := minke(t, d, "up", dir); !strings.Contains(out, "http://localhost:8080") {
		t.Errorf("up does not print the address:\n%s", out)
	}
	before := services(t, d)
	if len(before) != 3 {
		t.Fatalf("services %v, want three", before)
	}

	t.Run("page-and-api-answer", func(t *testing.T) {
		page, err := d.Get("http://127.0.0.1:8080/")
		if err != nil || !strings.Contains(page, "<title>Greenhouse</title>") {
			t.Errorf("page: %v, %.200s", err, page)
		}
		device, err := d.Get("http://127.0.0.1:8080/cgi-bin/device")
		if err != nil || !strings.Contains(device, `"BALENA_SERVICE_NAME":"hub"`) || !strings.Contains(device, `"BALENA_SUPERVISOR_ADDRESS":"http://10.114.104.1:48484"`) {
			t.Errorf("device: %v, %s", err, device)
		}
	})
	t.Run("supervisor-is-reached-from-a-service", func(t *testing.T) {
		out, code := d.Exec(before["hub"], "sh", "-c", "wget -qO- $BALENA_SUPERVISOR_ADDRESS/ping")
		if out != "OK" || code != 0 {
			t.Errorf("ping: %q, %d", out, code)
		}
	})
	t.Run("readings-arrive-through-names-and-a-shared-volume", func(t *testing.T) {
		out, code := d.Exec(before["watcher"], "sh", "-c", "until [ -s /data/readings ] || ls /data | grep -q .; do sleep 0.1; done; ls /data")
		if out == "" || code != 0 {
			t.Errorf("volume as the watcher sees it: %q, %d", out, code)
		}
	})
	t.Run("second-up-changes-nothing", func(t *testing.T) {
		minke(t, d, "up", dir)
		if after := services(t, d); !equal(before, after) {
			t.Errorf("before %v, after %v", before, after)
		}
	})
	t.Run("changed-service-alone-is-replaced", func(t *testing.T) {
		file := filepath.Join(dir, "docker-compose.yml")
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		changed := strings.Replace(string(text), "TOO_HOT: 30", "TOO_HOT: 25", 1)
		if err := os.WriteFile(file, []byte(changed), 0o644); err != nil {
			t.Fatal(err)
		}
		minke(t, d, "up", dir)
		after := services(t, d)
		if after["hub"] != before["hub"] || after["sensor"] != before["sensor"] || after["watcher"] == before["watcher"] {
			t.Errorf("before %v, after %v: want another watcher alone", before, after)
		}
		before = after
	})
	t.Run("all-goes-on-when-minked-is-killed", func(t *testing.T) {
		d.Kill()
		d.Up()
		d.WaitSupervisor()
		if after := services(t, d); !equal(before, after) {
			t.Errorf("before %v, after %v", before, after)
		}
		if out := minke(t, d, "status"); strings.Count(out, "running")+strings.Count(out, "healthy") != 3 {
			t.Errorf("status after the restart:\n%s", out)
		}
	})
	t.Run("listings-have-the-columns-of-balena-engine", func(t *testing.T) {
		out := minke(t, d, "ps", "--format", `table {{.Names}}\t{{.Ports}}`)
		if !regexp.MustCompile(`(?m)^NAMES +PORTS\n(.*\n)*hub_1_1_[0-9a-f]+ +0\.0\.0\.0:8080->8080/tcp`).MatchString(out) {
			t.Errorf("ps:\n%s", out)
		}
		out = minke(t, d, "ps", "--format", `table {{.Names}}\t{{.Size}}\t{{.Image}}`)
		if !regexp.MustCompile(`(?m)^sensor_2_1_[0-9a-f]+ +\S+ \(virtual 1\.98MB\) +[0-9a-f]{12}$`).MatchString(out) {
			t.Errorf("ps with sizes:\n%s", out)
		}
		out = minke(t, d, "history", "local_image_hub", "--format", `table {{.Size}}\t{{.CreatedBy}}`)
		if !regexp.MustCompile(`(?m)^SIZE +CREATED BY$`).MatchString(out) || !strings.Contains(out, "#(nop) COPY dir:") {
			t.Errorf("history:\n%s", out)
		}
	})
	t.Run("down-leaves-the-volume-and-no-container", func(t *testing.T) {
		minke(t, d, "down")
		if left := services(t, d); len(left) != 0 {
			t.Errorf("left: %v", left)
		}
		if _, err := d.VolumeInspect(t.Context(), "1_readings", client.VolumeInspectOptions{}); err != nil {
			t.Errorf("volume: %v", err)
		}
		minke(t, d, "down", "--volumes")
		if _, err := d.VolumeInspect(t.Context(), "1_readings", client.VolumeInspectOptions{}); err == nil {
			t.Errorf("the volume is still there after down --volumes")
		}
	})
}

func equal(a, b map[string]string) bool {
	if len(a) != len(b) {
		return false
	}
	for k, v := range a {
		if b[k] != v {
			return false
		}
	}
	return true
}

func TestMistakesInAProjectAreNamed(t *testing.T) {
	d := testdaemon.Start(t, "--supervisor=true")
	d.WaitSupervisor()
	for _, tt := range []struct{ name, compose, want string }{
		{"unknown-key", "services:\n  web:\n    image: busybox\n    colour: red\n", "docker-compose.yml:4"},
		{"broken-yaml", "services:\n  web:\n   - image: x\n  image: [\n", "docker-compose.yml"},
		{"missing-image", "services:\n  web:\n    image: nosuch\n", "nosuch"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, "docker-compose.yml"), []byte(tt.compose), 0o644); err != nil {
				t.Fatal(err)
			}
			out, err := d.Command(t.Context(), "minke", "up", dir)
			if err == nil || !strings.Contains(out, tt.want) {
				t.Errorf("up: %v, %s; want an error with %q", err, out, tt.want)
			}
			if left := services(t, d); len(left) != 0 {
				t.Errorf("half made: %v", left)
			}
		})
	}
}
