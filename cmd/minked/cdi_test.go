package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/system"
	"github.com/moby/moby/client"

	"github.com/minke-os/minke/internal/testdaemon"
)

const boardSpec = `cdiVersion: 0.6.0
kind: example.com/board
devices:
- name: first
  containerEdits:
    deviceNodes:
    - path: /dev/board
      hostPath: /dev/loop-control
      permissions: r
    env:
    - BOARD=first
containerEdits:
  mounts:
  - hostPath: DIR/board.yaml
    containerPath: /usr/lib/board
    options: []
  hooks:
  - hookName: createContainer
    path: /bin/sh
    args:
    - sh
    - -c
    - "cat > /dev/null; echo hooked >> DIR/hooked"
`

func TestDevicesByCDI(t *testing.T) {
	d := testdaemon.Start(t)
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		t.Skipf("needs a device to give: %v", err)
	}
	dir := filepath.Join(d.Dir, "cdi")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	text := strings.ReplaceAll(strings.Replace(boardSpec, "[]", "\n    - ro\n    - bind", 1), "DIR", dir)
	if err := os.WriteFile(filepath.Join(dir, "board.yaml"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	d.Stop()
	d.Up("--cdi-spec-dir", dir)
	info, err := d.Info(t.Context(), client.InfoOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if i := info.Info; !slices.Equal(i.CDISpecDirs, []string{dir}) || !slices.Equal(i.DiscoveredDevices, []system.DeviceInfo{{Source: "cdi", ID: "example.com/board=first"}}) {
		t.Errorf("info says %v, %v", i.CDISpecDirs, i.DiscoveredDevices)
	}
	ask := func(driver string, caps [][]string, ids ...string) container.HostConfig {
		return container.HostConfig{Resources: container.Resources{DeviceRequests: []container.DeviceRequest{{Driver: driver, DeviceIDs: ids, Capabilities: caps}}}}
	}
	out := d.Sh("(exec 3</dev/board) && echo opened; echo $BOARD; test -s /usr/lib/board && echo mounted; (echo x > /dev/board) 2>&1; (echo x > /usr/lib/board) 2>&1; true", ask("cdi", nil, "example.com/board=first"))
	if !strings.HasPrefix(out, "opened\nfirst\nmounted\n") || !strings.Contains(out, "/dev/board: Operation not permitted") || !strings.Contains(out, "Read-only") {
		t.Errorf("the container says %q", out)
	}
	if hooked, _ := os.ReadFile(filepath.Join(dir, "hooked")); string(hooked) != "hooked\n" {
		t.Errorf("the hook ran as %q, want once", hooked)
	}
	for want, h := range map[string]container.HostConfig{
		"CDI device injection failed: unresolvable CDI devices example.com/board=second": ask("cdi", nil, "example.com/board=second"),
		`could not select device driver "" with capabilities: [[gpu]]`:                   ask("", [][]string{{"gpu"}}),
	} {
		id := d.Create(testdaemon.Spec{Host: h})
		if _, err := d.ContainerStart(t.Context(), id, client.ContainerStartOptions{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("start: %v, want %q", err, want)
		}
		remove(t, d, id)
	}
}
