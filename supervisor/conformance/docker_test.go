package conformance

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/moby/moby/client"
	"golang.org/x/sys/unix"

	"github.com/minke-os/minke/internal/testdaemon"
	"github.com/minke-os/minke/internal/testenv"
)

// needDocker skips where there is no Docker to be started, one at a time.
func needDocker(t *testing.T) {
	t.Helper()
	testenv.Need(t, "dockerd")
	testenv.Need(t, "containerd")
	if os.Getenv("MINKE_TEST_DOCKER") == "" {
		t.Skip("takes minutes: make test-conformance, or set MINKE_TEST_DOCKER=1")
	}
	if _, err := os.Stat("/run/containerd/containerd.sock"); err == nil {
		t.Skip("a containerd runs already, which dockerd would use; stop it first")
	}
}

// besideDocker starts dockerd, and makes minked supervise it.
func (d *device) besideDocker(args []string, disk string, prepare func(*exec.Cmd)) {
	d.t.Helper()
	dir := filepath.Join(d.host.Dir, "docker")
	socket := filepath.Join(dir, "docker.sock")
	config := filepath.Join(dir, "daemon.json")
	if err := os.MkdirAll(filepath.Join(dir, "data"), 0o700); err != nil {
		d.t.Fatal(err)
	}
	if disk != "" {
		data := filepath.Join(dir, "data")
		if err := unix.Mount("tmpfs", data, "tmpfs", 0, disk); err != nil {
			d.t.Fatal(err)
		}
		d.t.Cleanup(func() { unix.Unmount(data, unix.MNT_DETACH) })
	}
	d.write(config, "{}")
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() { log.Close() })
	dockerd := exec.Command("dockerd", "--config-file", config, "--data-root", filepath.Join(dir, "data"), "--exec-root", filepath.Join(dir, "run"),
		"-H", "unix://"+socket, "--pidfile", filepath.Join(dir, "pid"), "--log-level", "error")
	dockerd.Stdout, dockerd.Stderr = log, log
	if err := d.host.InNetNS(dockerd.Start); err != nil {
		d.t.Fatal(err)
	}
	if d.engine, err = client.New(client.WithHost("unix://" + socket)); err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() {
		ctx := context.Background()
		list, _ := d.engine.ContainerList(ctx, client.ContainerListOptions{All: true})
		for _, c := range list.Items {
			d.engine.ContainerRemove(ctx, c.ID, client.ContainerRemoveOptions{Force: true, RemoveVolumes: true})
		}
		networks, _ := d.engine.NetworkList(ctx, client.NetworkListOptions{})
		for _, n := range networks.Items {
			d.engine.NetworkRemove(ctx, n.ID, client.NetworkRemoveOptions{})
		}
		d.engine.Close()
		dockerd.Process.Signal(syscall.SIGTERM)
		dockerd.Wait()
		d.host.InNetNS(func() error { return exec.Command("ip", "link", "del", "docker0").Run() })
		mounts, _ := filepath.Glob(filepath.Join(dir, "run/netns/*")) // of services in the host's network
		for _, m := range mounts {
			unix.Unmount(m, unix.MNT_DETACH)
		}
	})
	d.until("dockerd answers", func() bool { _, err := d.engine.Ping(d.t.Context(), client.PingOptions{}); return err == nil })
	own := filepath.Join(d.host.Dir, "beside")
	d.data, d.tmp = filepath.Join(own, "data"), filepath.Join(own, "run/supervisor")
	var minked *exec.Cmd
	d.up = func() {
		minked = exec.Command(filepath.Join(testdaemon.Build(d.t), "minked"), append(args, "--engine", "unix://"+socket,
			"--data-root", d.data, "--exec-root", filepath.Join(own, "run"), "--pidfile", filepath.Join(own, "pid"))...)
		minked.Stdout, minked.Stderr = log, log
		prepare(minked)
		if err := d.host.InNetNS(minked.Start); err != nil {
			d.t.Fatal(err)
		}
		d.answers()
	}
	end := func(sig syscall.Signal) func() {
		return func() { minked.Process.Signal(sig); minked.Wait() }
	}
	d.down, d.kill = end(syscall.SIGTERM), end(syscall.SIGKILL)
	d.log = func() string { data, _ := os.ReadFile(log.Name()); return string(data) }
}
