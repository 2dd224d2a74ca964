package main

import (
	"os"
	"os/exec"
	"regexp"
	"slices"
	"testing"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"

	"github.com/minke-os/minke/internal/testdaemon"
)

// faultPoints are the names in the calls of Engine.at.
func faultPoints(t *testing.T) (names []string) {
	t.Helper()
	call := regexp.MustCompile(`e\.at\("([a-z-]+)"\)`)
	for _, file := range []string{"create.go", "start.go", "stop.go", "exit.go", "remove.go"} {
		data, err := os.ReadFile("../../engine/" + file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range call.FindAllStringSubmatch(string(data), -1) {
			names = append(names, m[1])
		}
	}
	if len(names) < 15 {
		t.Fatalf("fault points = %v, want at least 15", names)
	}
	return names
}

// life takes a container from its creation to its removal, as far as the
// daemon lives, and returns what clients were told was done.
func life(t *testing.T, d *testdaemon.Daemon) (done []string) {
	t.Helper()
	ctx, now := t.Context(), 0
	c := sh("echo line; exec sleep 600")
	c.Image, c.Volumes = testdaemon.Image, map[string]struct{}{"/v": {}}
	var h container.HostConfig
	c.ExposedPorts, h.PortBindings = published(80, 0)
	for _, step := range []struct {
		name string
		do   func() error
	}{
		{"create", func() error {
			_, err := d.ContainerCreate(ctx, client.ContainerCreateOptions{Name: "victim", Config: &c, HostConfig: &h})
			return err
		}},
		{"start", func() error { _, err := d.ContainerStart(ctx, "victim", client.ContainerStartOptions{}); return err }},
		{"stop", func() error {
			_, err := d.ContainerStop(ctx, "victim", client.ContainerStopOptions{Timeout: &now})
			return err
		}},
		{"remove", func() error {
			_, err := d.ContainerRemove(ctx, "victim", client.ContainerRemoveOptions{RemoveVolumes: true})
			return err
		}},
	} {
		if step.do() != nil {
			return done
		}
		done = append(done, step.name)
	}
	return done
}

func TestDeathAtEachStepLeaksAndLosesNothing(t *testing.T) {
	t.Parallel()
	d := testdaemon.Start(t)
	bystander := d.RunDetached(testdaemon.Spec{Name: "bystander", Config: sh("sleep 6000")})
	pid := d.Inspect(bystander).State.Pid
	for _, point := range faultPoints(t) {
		t.Run(point, func(t *testing.T) {
			ctx := t.Context()
			before := count(t, d)
			// It is another process afterwards, and the monitor has connections to both.
			before["descriptors"], before["monitor's"] = 1<<20, before["monitor's"]+20
			before["mounts"] = 1 << 20 // of all that runs here; ours are looked for at the end
			d.Stop()
			d.Prepare = func(c *exec.Cmd) { c.Env = append(os.Environ(), "MINKE_DIE_AT="+point) }
			d.Up()
			told := life(t, d)
			if slices.Contains(told, "remove") {
				t.Fatalf("the daemon outlived %s", point)
			}
			testdaemon.WaitDead(t, d.Pid())
			d.Kill() // collects it
			d.Prepare = nil
			d.Up()
			if c := d.Inspect(bystander); c.State.Pid != pid || !c.State.Running {
				t.Errorf("the bystander is %s with pid %d, was %d", c.State.Status, c.State.Pid, pid)
			}
			victim, err := d.ContainerInspect(ctx, "victim", client.ContainerInspectOptions{})
			switch removing := slices.Contains(told, "stop"); {
			case err != nil && !removing && slices.Contains(told, "create"):
				t.Errorf("clients were told %v; the container is gone: %v", told, err)
			case err == nil && slices.Contains(told, "start") && !slices.Contains(told, "stop") && victim.Container.State.StartedAt == "":
				t.Errorf("clients were told %v; the container never ran", told)
			case err == nil:
				if s := victim.Container.State; s.Status == container.StateExited && s.ExitCode != 137 {
					t.Errorf("the exit code is %d, want that of SIGKILL", s.ExitCode)
				}
				if _, err := d.ContainerRemove(ctx, "victim", client.ContainerRemoveOptions{Force: true, RemoveVolumes: true}); err != nil {
					t.Errorf("remove what was left: %v", err)
				}
			}
			waitGone(t, d, before)
			if list, err := d.VolumeList(ctx, client.VolumeListOptions{}); err != nil || len(list.Items) > 0 {
				t.Errorf("volumes left: %+v, %v", list.Items, err)
			}
		})
	}
}
