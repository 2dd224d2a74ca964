package main

import (
	"archive/tar"
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"

	"github.com/minke-os/minke/internal/testdaemon"
	"github.com/minke-os/minke/internal/testenv"
)

// subordinates gives the daemon an /etc/subuid and /etc/subgid of its own.
func subordinates(t *testing.T, d *testdaemon.Daemon, line string) {
	t.Helper()
	file := filepath.Join(d.Dir, "subids")
	if err := os.WriteFile(file, []byte(line), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{"/etc/subuid", "/etc/subgid"} {
		if _, err := os.Stat(f); err != nil {
			t.Skipf("there is nothing to put another file over: %v", err)
		}
	}
	sh, unshare := testenv.Need(t, "sh"), testenv.Need(t, "unshare")
	script := "mount --bind " + file + " /etc/subuid && mount --bind " + file + ` /etc/subgid && exec "$@"`
	d.Prepare = func(cmd *exec.Cmd) {
		cmd.Args = append([]string{unshare, "--mount", sh, "-c", script, "minked", cmd.Path}, cmd.Args[1:]...)
		cmd.Path = unshare
	}
}

func diskOwner(t *testing.T, path string) [2]uint32 {
	t.Helper()
	var st syscall.Stat_t
	if err := syscall.Lstat(path, &st); err != nil {
		t.Fatal(err)
	}
	return [2]uint32{st.Uid, st.Gid}
}

func TestUserNamespaces(t *testing.T) {
	d := testdaemon.Start(t)
	d.Stop()
	subordinates(t, d, "someone:1:2\n424242:500000:65536\n")
	remapped := []string{"--userns-remap", "424242:424242"}
	d.Up(remapped...)
	ctx := t.Context()

	t.Run("info-tells", func(t *testing.T) {
		info, err := d.Info(ctx, client.InfoOptions{})
		if err != nil || !slices.Contains(info.Info.SecurityOptions, "name=userns") {
			t.Errorf("security options %v, %v; want name=userns among them", info.Info.SecurityOptions, err)
		}
	})
	t.Run("root-is-nobody-outside", func(t *testing.T) {
		host := filepath.Join(d.Dir, "host")
		if err := os.Mkdir(host, 0o755); err != nil {
			t.Fatal(err)
		}
		secret := filepath.Join(host, "secret")
		if err := os.WriteFile(secret, []byte("secret"), 0o600); err != nil {
			t.Fatal(err)
		}
		out := d.Sh("cat /proc/self/uid_map; id -u; stat -c %u:%g /bin/busybox /etc/hosts; (cat /h/secret; echo x > /h/secret; touch /h/new; rm /h/secret) 2>&1; true", binds(host+":/h"))
		if !strings.Contains(out, "500000      65536\n0\n0:0\n0:0\n") || strings.Count(out, "Permission denied") != 4 {
			t.Errorf("output:\n%s\nwant the mapping, root's own files and four refusals", out)
		}
		if out := d.Sh("cat /proc/self/uid_map", container.HostConfig{UsernsMode: "host"}); !strings.Contains(out, "4294967295") {
			t.Errorf("with --userns=host the mapping is %q", out)
		}
	})
	t.Run("what-needs-the-host-is-refused-in-dockers-words", func(t *testing.T) {
		for want, h := range map[string]container.HostConfig{
			"privileged mode is incompatible with user namespaces.  You must run the container in the host namespace when running privileged mode": {Privileged: true},
			"cannot share the host's network namespace when user namespaces are enabled":                                                           {NetworkMode: "host"},
			"cannot share the host PID namespace when user namespaces are enabled":                                                                 {PidMode: "host"},
		} {
			_, err := d.ContainerCreate(ctx, client.ContainerCreateOptions{Config: &container.Config{Image: testdaemon.Image}, HostConfig: &h})
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("create: %v, want %q", err, want)
			}
			h.UsernsMode, h.AutoRemove = "host", false
			c, err := d.ContainerCreate(ctx, client.ContainerCreateOptions{Config: &container.Config{Image: testdaemon.Image}, HostConfig: &h})
			if err != nil {
				t.Errorf("create with --userns=host: %v", err)
				continue
			}
			d.ContainerRemove(ctx, c.ID, client.ContainerRemoveOptions{})
		}
	})
	t.Run("owners-on-disk-are-the-containers", func(t *testing.T) { ownersOnDisk(t, d, remapped) })
	t.Run("namespaces-are-shared-with-users", func(t *testing.T) {
		id := d.RunDetached(testdaemon.Spec{Name: "first", Config: container.Config{Cmd: []string{"sleep", "1000"}}, Host: container.HostConfig{IpcMode: "shareable"}})
		want, _ := d.Exec(id, "sh", "-c", "readlink /proc/self/ns/user; readlink /proc/self/ns/net")
		got := d.Sh("readlink /proc/self/ns/user; readlink /proc/self/ns/net; ps | grep -c 'sleep 1000$'", container.HostConfig{NetworkMode: "container:first", PidMode: "container:first", IpcMode: "container:first"})
		if !strings.HasPrefix(got, want) || len(got) <= len(want) {
			t.Errorf("namespaces %q, want %q and the other's process", got, want)
		}
		d.Exec(id, "touch", "/dev/shm/shared")
		if out := d.Sh("ls /dev/shm", container.HostConfig{IpcMode: "container:first"}); out != "shared\n" {
			t.Errorf("/dev/shm of the IPC namespace that it joined has %q, want shared", out)
		}
		remove(t, d, id)
		if out := d.Sh("ls /dev/mqueue /dev/shm | wc -l", container.HostConfig{IpcMode: "host"}); out == "" {
			t.Error("nothing runs with --ipc host")
		}
	})
	t.Run("the-daemon-dies", func(t *testing.T) {
		id := d.RunDetached(testdaemon.Spec{
			Name: "long", Config: container.Config{Cmd: []string{"sh", "-c", "trap 'exit 9' TERM; while true; do sleep 0.1; done"}},
			Host: container.HostConfig{RestartPolicy: container.RestartPolicy{Name: "no"}},
		})
		for _, more := range [][]string{remapped, nil} { // also without the flag
			d.Kill()
			d.Up(more...)
			if out, code := d.Exec(id, "sh", "-c", "id -u; touch /after; cat /proc/self/uid_map"); code != 0 || !strings.Contains(out, "500000") {
				t.Errorf("exec after kill -9: %q, code %d", out, code)
			}
			if got := copiedOwner(t, d, id, "/after"); got != [2]int{} {
				t.Errorf("docker cp says that the file is %v's, want 0:0", got)
			}
		}
		if _, err := d.ContainerUpdate(ctx, id, client.ContainerUpdateOptions{Resources: &container.Resources{Memory: 64 << 20, MemorySwap: -1}}); err != nil {
			t.Error(err)
		}
		if _, err := d.ContainerStop(ctx, id, client.ContainerStopOptions{}); err != nil {
			t.Fatal(err)
		}
		if code := d.WaitExit(id); code != 9 {
			t.Errorf("exit code %d, want 9", code)
		}
		remove(t, d, id)
	})
}

func remove(t *testing.T, d *testdaemon.Daemon, id string) {
	t.Helper()
	if _, err := d.ContainerRemove(t.Context(), id, client.ContainerRemoveOptions{Force: true, RemoveVolumes: true}); err != nil {
		t.Error(err)
	}
}

// copiedOwner is the owner in the archive of docker cp.
func copiedOwner(t *testing.T, d *testdaemon.Daemon, id, path string) [2]int {
	t.Helper()
	r, err := d.CopyFromContainer(t.Context(), id, client.CopyFromContainerOptions{SourcePath: path})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Content.Close()
	h, err := tar.NewReader(r.Content).Next()
	if err != nil {
		t.Fatal(err)
	}
	return [2]int{h.Uid, h.Gid}
}

func ownersOnDisk(t *testing.T, d *testdaemon.Daemon, remapped []string) {
	ctx := t.Context()
	script := "touch /data/new /new; chown 12:34 /new; mkdir /dir; sleep 1000"
	id := d.RunDetached(testdaemon.Spec{
		Name: "owners", Config: container.Config{Cmd: []string{"sh", "-c", script}, Volumes: map[string]struct{}{"/bin": {}}},
		Host: container.HostConfig{Binds: []string{"data:/data"}, Resources: container.Resources{Devices: []container.DeviceMapping{{PathOnHost: "/dev/zero", PathInContainer: "/dev/board"}}}},
	})
	eventually(t, "the container has made its files", func() bool {
		_, code := d.Exec(id, "test", "-d", "/dir")
		return code == 0
	})
	volume := filepath.Join(d.Dir, "data/volumes/data/_data/new")
	if got := diskOwner(t, volume); got != [2]uint32{} {
		t.Errorf("root's file on the volume is %v's on disk, want 0:0", got)
	}
	if out, _ := d.Exec(id, "stat", "-c", "%u:%g", "/bin/busybox"); out != "0:0\n" {
		t.Errorf("what the image had below the volume is %q's, want root's", out)
	}
	if out, code := d.Exec(id, "sh", "-c", "head -c 2 /dev/board | wc -c; stat -c %u:%g /dev/board"); code != 0 || out != "2\n0:0\n" {
		t.Errorf("the device says %q, code %d", out, code)
	}

	// Into the running container, a directory that is not there, and out again.
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	tw.WriteHeader(&tar.Header{Name: "sub/file", Mode: 0o600, Uid: 7, Gid: 8, Size: 1, Typeflag: tar.TypeReg})
	tw.Write([]byte("x"))
	tw.Close()
	if _, err := d.CopyToContainer(ctx, id, client.CopyToContainerOptions{DestinationPath: "/dir", Content: &b}); err != nil {
		t.Fatalf("docker cp into it: %v", err)
	}
	if out, _ := d.Exec(id, "stat", "-c", "%u:%g", "/dir/sub", "/dir/sub/file"); out != "0:0\n7:8\n" {
		t.Errorf("what was copied into it is %q's, want 0:0 and 7:8", out)
	}
	if got := copiedOwner(t, d, id, "/dir/sub/file"); got != [2]int{7, 8} {
		t.Errorf("copied out it is %v's, want 7:8", got)
	}

	// An image of it, which a container with the host's users runs.
	c, err := d.ContainerCommit(ctx, id, client.ContainerCommitOptions{Reference: "committed"})
	if err != nil {
		t.Fatal(err)
	}
	run := testdaemon.Spec{Config: container.Config{Image: c.ID, Cmd: []string{"stat", "-c", "%u:%g", "/new", "/dir/sub/file", "/dir"}}}
	for _, mode := range []container.UsernsMode{"", "host"} {
		run.Host.UsernsMode = mode
		if out, errs, _ := d.Run(run); out != "12:34\n7:8\n0:0\n" {
			t.Errorf("with users %q the committed files are %q's %s", mode, out, errs)
		}
	}
	export, err := d.ContainerExport(ctx, id, client.ContainerExportOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer export.Close()
	owner := ""
	for tr := tar.NewReader(export); ; {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Name == "new" {
			owner = string(rune('0'+h.Uid/12)) + string(rune('0'+h.Gid/34))
		}
	}
	if owner != "11" {
		t.Error("in the export /new is not 12:34's")
	}

	// The same container without the flag has the same files.
	if _, err := d.ContainerStop(ctx, id, client.ContainerStopOptions{Timeout: new(int)}); err != nil {
		t.Fatal(err)
	}
	d.Stop()
	d.Up()
	if _, err := d.ContainerStart(ctx, id, client.ContainerStartOptions{}); err != nil {
		t.Fatal(err)
	}
	if out, _ := d.Exec(id, "sh", "-c", "stat -c %u:%g /new /data/new; grep -c 4294967295 /proc/self/uid_map"); out != "12:34\n0:0\n1\n" {
		t.Errorf("without the flag the container says %q", out)
	}
	remove(t, d, id)
	d.Stop()
	d.Up(remapped...)
	d.VolumeRemove(ctx, "data", client.VolumeRemoveOptions{})
}

func TestUserNamespacesThatCannotBeAreRefused(t *testing.T) {
	testenv.NeedRoot(t)
	bin := testdaemon.Build(t)
	dir := testenv.DiskDir(t)
	run := func(root, remap string) string {
		cmd := exec.Command(filepath.Join(bin, "minked"), "--userns-remap", remap, "--data-root", root,
			"--exec-root", filepath.Join(dir, "run"), "-H", "unix://"+filepath.Join(dir, "sock"), "--pidfile", "", "--supervisor=false")
		out, err := cmd.CombinedOutput()
		if err == nil {
			t.Errorf("minked --userns-remap %s ran", remap)
		}
		return string(out)
	}
	if out := run(filepath.Join(dir, "data"), "nobodyknows"); !strings.Contains(out, "no subordinate IDs for \"nobodyknows\" in /etc/subuid") {
		t.Errorf("minked says %q, want what is missing", out)
	}
}
