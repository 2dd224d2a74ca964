package main

import (
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"

	"github.com/minke-os/minke/internal/testdaemon"
	"github.com/minke-os/minke/internal/testenv"
)

// TestOtherRuntimes wants of containers that another runtime made what holds
// for our own.
func TestOtherRuntimes(t *testing.T) {
	for _, name := range []string{"runc", "crun"} {
		t.Run(name, func(t *testing.T) {
			testenv.Need(t, name)
			d := testdaemon.Start(t)
			host := func() container.HostConfig { return container.HostConfig{Runtime: name} }
			info, err := d.Info(t.Context(), client.InfoOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if _, ok := info.Info.Runtimes[name]; !ok {
				t.Errorf("docker info lists %v, want %s too", info.Info.Runtimes, name)
			}
			first := d.Create(testdaemon.Spec{Config: cmd("true"), Host: host()})
			if _, err := d.ContainerStart(t.Context(), first, client.ContainerStartOptions{}); err != nil && strings.Contains(err.Error(), "hybrid mode not supported") {
				t.Skipf("%s does not work with this host's control groups: %v", name, err)
			}
			out, errOut, code := d.Run(testdaemon.Spec{Config: sh("echo out; echo err >&2; exit 7"), Host: host()})
			if out != "out\n" || errOut != "err\n" || code != 7 {
				t.Errorf("run = %q, %q, %d; want out, err, 7", out, errOut, code)
			}
			out, _, code = d.Run(testdaemon.Spec{Config: container.Config{Cmd: []string{"sh", "-c", "tty; stty size"}, Tty: true}, Host: host()})
			if code != 0 || !strings.HasPrefix(out, "/dev/pts/0\r\n") {
				t.Errorf("with a terminal = %q, %d", out, code)
			}
			wrong := d.Create(testdaemon.Spec{Config: cmd("nosuch"), Host: host()})
			if _, err := d.ContainerStart(t.Context(), wrong, client.ContainerStartOptions{}); err == nil || !strings.Contains(err.Error(), "not found") {
				t.Errorf("start of a program that is not there: %v", err)
			}
			if s := d.Inspect(wrong).State; s.ExitCode != 127 {
				t.Errorf("its exit code is %d, want 127", s.ExitCode)
			}

			limited := host()
			limited.Memory = 64 << 20
			limited.Binds = []string{"data:/data"}
			id := d.RunDetached(testdaemon.Spec{Name: "long", Host: limited,
				Config: sh("trap 'echo ended; exit 5' TERM; i=0; while true; do echo line $i; i=$((i+1)); sleep 0.02; done")})
			inside := func(when string) {
				t.Helper()
				if out, code := d.Exec(id, "sh", "-c", "echo in; exit 3"); out != "in\n" || code != 3 {
					t.Errorf("exec %s = %q, %d; want in, 3", when, out, code)
				}
			}
			inside("at first")
			if _, err := d.ContainerUpdate(t.Context(), id, client.ContainerUpdateOptions{Resources: &container.Resources{Memory: 96 << 20, MemorySwap: 192 << 20}}); err != nil {
				t.Errorf("update: %v", err)
			}
			if _, err := d.ContainerPause(t.Context(), id, client.ContainerPauseOptions{}); err != nil {
				t.Errorf("pause: %v", err)
			}
			if _, err := d.ContainerUnpause(t.Context(), id, client.ContainerUnpauseOptions{}); err != nil {
				t.Errorf("unpause: %v", err)
			}
			d.Kill()
			d.Up()
			inside("after minked was killed")
			monitor := d.Monitor()
			syscall.Kill(monitor, syscall.SIGKILL)
			testdaemon.WaitDead(t, monitor)
			inside("after the monitor was killed")
			if _, err := d.ContainerStop(t.Context(), id, client.ContainerStopOptions{}); err != nil {
				t.Fatal(err)
			}
			if s := d.Inspect(id).State; s.Running || s.ExitCode != 5 {
				t.Errorf("state %+v, want exit code 5", s)
			}
			lines := strings.Split(strings.TrimSpace(d.Logs(id)), "\n")
			for i, l := range lines[:len(lines)-1] {
				if l != "line "+strconv.Itoa(i) {
					t.Fatalf("line %d of the log is %q", i, l)
				}
			}
			if last := lines[len(lines)-1]; last != "ended" {
				t.Errorf("the last line is %q, want ended", last)
			}
		})
	}
}
