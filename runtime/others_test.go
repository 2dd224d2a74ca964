package runtime

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/minke-os/minke/internal/testenv"
)

// A step is a command of another engine, with what must come of it.
type step struct {
	args string // in words; the rest of a line after " -- " is one word
	code int
	want string // in what it prints
}

func runSteps(t *testing.T, prefix []string, steps []step) {
	t.Helper()
	for _, s := range steps {
		words, last, quoted := strings.Cut(s.args, " -- ")
		args := append(append([]string{}, prefix...), strings.Fields(words)...)
		if quoted {
			args = append(args, last)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		cmd := exec.CommandContext(ctx, args[0], args[1:]...)
		cmd.WaitDelay = time.Second
		out, _ := cmd.CombinedOutput()
		cancel()
		if code := cmd.ProcessState.ExitCode(); code != s.code || !strings.Contains(string(out), s.want) {
			t.Errorf("%s = %d, %q; want %d, %q", s.args, code, out, s.code, s.want)
		}
	}
}

func TestUnderPodman(t *testing.T) {
	testenv.NeedRoot(t)
	podman := testenv.Need(t, "podman")
	dir := testenv.DiskDir(t)
	tar := filepath.Join(dir, "image.tar")
	if err := os.WriteFile(tar, testenv.BusyboxTar(t), 0o600); err != nil {
		t.Fatal(err)
	}
	prefix := []string{
		podman, "--root", dir + "/root", "--runroot", dir + "/run", "--tmpdir", dir + "/tmp", "--storage-driver", "vfs",
		"--cgroup-manager", "cgroupfs", "--events-backend", "file", "--runtime", binary,
	}
	defer runSteps(t, prefix, []step{{"rm --force --all", 0, ""}})
	runSteps(t, prefix, []step{
		{"import " + tar + " box", 0, ""},
		{"run --rm --network none box sh -c -- echo out; exit 3", 3, "out\n"},
		{"run --rm -t --network none box sh -c -- tty", 0, "/dev/pts/0"},
		{"run --rm --network none box nosuch", 127, "not found"},
		{"run --rm --network none --cap-drop all box sh -c -- grep CapEff /proc/self/status", 0, "0000000000000000"},
		{"run --detach --name c --network none box sleep 1000", 0, ""},
		{"exec c sh -c -- echo in; exit 5", 5, "in\n"},
		{"exec -t c sh -c -- tty", 0, "/dev/pts/0"},
		{"pause c", 0, "c"},
		{"ps --all --format -- {{.Status}}", 0, "Paused"},
		{"unpause c", 0, "c"},
		{"update --memory 64m c", 0, ""},
		{"exec c sh -c -- cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null; true", 0, "67108864"},
		{"top c pid args", 0, "sleep 1000"},
		{"kill --signal TERM c", 0, "c"},
		{"kill c", 0, "c"},
		{"wait c", 0, "137"},
		{"rm c", 0, "c"},
	})
}

func TestUnderContainerd(t *testing.T) {
	testenv.NeedRoot(t)
	daemon, ctr := testenv.Need(t, "containerd"), testenv.Need(t, "ctr")
	testenv.Need(t, "containerd-shim-runc-v2")
	dir, state := testenv.DiskDir(t), memoryDir(t)
	testenv.BusyboxRoot(t, dir+"/rootfs")
	config := fmt.Sprintf("version = 2\nroot = %q\nstate = %q\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\n  address = %q\n", dir+"/root", state+"/s", state+"/sock")
	if err := os.WriteFile(dir+"/config.toml", []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	cmd := exec.Command(daemon, "--config", dir+"/config.toml")
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		cmd.Process.Signal(os.Interrupt)
		cmd.Wait()
		if t.Failed() {
			t.Logf("containerd: %s", log.String())
		}
	}()
	prefix := []string{ctr, "--address", state + "/sock"}
	for deadline := time.Now().Add(20 * time.Second); exec.Command(ctr, "--address", state+"/sock", "version").Run() != nil; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("containerd does not answer: %s", log.String())
		}
	}
	const with = " --runtime io.containerd.runc.v2 --runc-binary "
	runSteps(t, prefix, []step{
		{"run --rm" + with + binary + " --rootfs " + dir + "/rootfs one /bin/sh -c -- echo out; exit 3", 3, "out\n"},
		{"run --detach --null-io" + with + binary + " --rootfs " + dir + "/rootfs c /bin/sleep 1000", 0, ""},
		{"task exec --exec-id e c /bin/sh -c -- echo in; exit 5", 5, "in\n"},
		{"task ls", 0, "RUNNING"},
		{"task pause c", 0, ""},
		{"task ls", 0, "PAUSED"},
		{"task resume c", 0, ""},
		{"task ps c", 0, "PID"},
		{"task kill --signal SIGKILL c", 0, ""},
		{"task rm --force c", 0, "exit code 137"},
		{"container rm c", 0, ""},
	})
}

// A daemon on a network and with mounts of its own.
func startDockerd(t *testing.T, dir string, args ...string) (prefix []string) {
	t.Helper()
	daemon, docker, unshare := testenv.Need(t, "dockerd"), testenv.Need(t, "docker"), testenv.Need(t, "unshare")
	testenv.Need(t, "containerd")
	state := memoryDir(t)
	// Its users with subordinate IDs, for --userns-remap.
	if err := os.WriteFile(dir+"/subids", []byte("nobody:500000:65536\nnogroup:500000:65536\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	script := `for f in subuid subgid; do test ! -e /etc/$f || mount --bind "$0" /etc/$f; done; exec "$@"`
	args = append([]string{
		"--net", "--mount", "sh", "-c", script, dir + "/subids", daemon, "--data-root", dir + "/data", "--exec-root", state + "/run",
		"-H", "unix://" + state + "/sock", "--pidfile", state + "/pid", "--config-file", state + "/none.json", "--bridge", "none",
		"--iptables=false", "--ip6tables=false", "--storage-driver", "vfs", "--add-runtime", "minke=" + binary, "--default-runtime", "minke",
	}, args...)
	if err := os.WriteFile(state+"/none.json", []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	cmd := exec.Command(unshare, args...)
	cmd.Stdout, cmd.Stderr = &log, &log
	cmd.WaitDelay = time.Second
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		cmd.Process.Signal(unix.SIGTERM)
		<-ended
		os.RemoveAll(state + ".500000.500000") // its own, for mapped users
		if t.Failed() {
			t.Logf("dockerd: %s", log.String())
		}
	})
	prefix = []string{docker, "-H", "unix://" + state + "/sock"}
	for deadline := time.Now().Add(30 * time.Second); exec.Command(docker, append(prefix[1:], "version")...).Run() != nil; time.Sleep(20 * time.Millisecond) {
		select {
		case err := <-ended:
			ended <- err
			t.Skipf("dockerd does not run here: %v\n%s", err, log.String())
		default:
		}
		if time.Now().After(deadline) {
			t.Fatal("dockerd does not answer")
		}
	}
	return prefix
}

func TestUnderDocker(t *testing.T) {
	testenv.NeedRoot(t)
	for name, args := range map[string][]string{"plain": nil, "user-namespaces": {"--userns-remap", "nobody:nogroup"}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := testenv.DiskDir(t)
			if err := os.Chmod(dir, 0o711); err != nil { // for mapped users
				t.Fatal(err)
			}
			tar := filepath.Join(dir, "image.tar")
			if err := os.WriteFile(tar, testenv.BusyboxTar(t), 0o600); err != nil {
				t.Fatal(err)
			}
			first := "         0          0"
			if args != nil {
				first = "         0     500000"
			}
			prefix := startDockerd(t, dir, args...)
			runSteps(t, prefix, []step{
				{"import " + tar + " box", 0, ""},
				{"run --rm box sh -c -- cat /proc/self/uid_map; exit 3", 3, first},
				{"run --rm -t box sh -c -- tty", 0, "/dev/pts/0"},
				{"run --rm box nosuch", 127, "executable file not found in $PATH"},
			})
			if args != nil {
				runSteps(t, prefix, []step{
					{"run --detach --name one --device /dev/zero:/dev/board box sleep 1000", 0, ""},
					{"exec -t one sh -c -- tty; stat -c %u /dev/board", 0, "/dev/pts/0\r\n0"},
					{"rm --force one", 0, "one"},
				})
				return
			}
			runSteps(t, prefix, []step{
				{"run --rm --init --read-only --tmpfs /tmp -v vol:/data -m 32m --pids-limit 20 --security-opt no-new-privileges --user 5:6 box sh -c -- touch /tmp/a; id; touch /x", 1, "uid=5 gid=6"},
				{"run --detach --name one box sh -c -- trap 'exit 5' TERM; echo up; while true; do sleep 0.1; done", 0, ""},
				{"exec one sh -c -- echo in; exit 5", 5, "in\n"},
				{"exec -t one sh -c -- tty", 0, "/dev/pts/0"},
				{"pause one", 0, "one"},
				{"ps --format {{.Status}}", 0, "Paused"},
				{"unpause one", 0, "one"},
				{"update --memory 64m --memory-swap 64m one", 0, "one"},
				{"top one", 0, "trap"},
				{"stop one", 0, "one"},
				{"inspect --format {{.State.ExitCode}} one", 0, "5\n"},
				{"logs one", 0, "up\n"},
				{"start one", 0, "one"},
				{"kill one", 0, "one"},
				{"rm one", 0, "one"},
				{"run --rm --privileged --net host --pid host --ipc host box sh -c -- echo $$", 0, "\n"},
			})
		})
	}
}
