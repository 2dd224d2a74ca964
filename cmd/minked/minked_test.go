package main

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/client"

	"github.com/minke-os/minke/internal/testdaemon"
)

func TestMain(m *testing.M) { testdaemon.Main(m) }

func cmd(words ...string) container.Config { return container.Config{Cmd: words} }

func sh(script string) container.Config { return cmd("sh", "-c", script) }

func published(port uint16, host int) (network.PortSet, network.PortMap) {
	p, _ := network.PortFrom(port, network.TCP)
	return network.PortSet{p: {}}, network.PortMap{p: {{HostPort: strconv.Itoa(host)}}}
}

func TestRun(t *testing.T) {
	d := testdaemon.Start(t)
	mem := int64(64 << 20)
	tests := []struct {
		name   string
		config container.Config
		host   container.HostConfig
		want   string // in stdout
		errs   string // in stderr
		code   int
	}{
		{"output", sh("echo out; echo err >&2"), container.HostConfig{}, "out\n", "err\n", 0},
		{"exit-code", sh("exit 7"), container.HostConfig{}, "", "", 7},
		{"signal-is-128-and-its-number", sh("sh -c 'kill -9 $$'; exit $?"), container.HostConfig{}, "", "", 137},
		{"environment", container.Config{Cmd: []string{"sh", "-c", "echo $A $HOME $HOSTNAME"}, Env: []string{"A=b"}, Hostname: "box"}, container.HostConfig{}, "b /root box\n", "", 0},
		{"user-and-groups", container.Config{Cmd: []string{"id"}, User: "user"}, container.HostConfig{}, "uid=1000(user) gid=1000(user) groups=100(users),1000(user)\n", "", 0},
		{"working-dir-is-made", container.Config{Cmd: []string{"pwd"}, WorkingDir: "/new/dir"}, container.HostConfig{}, "/new/dir\n", "", 0},
		{"entrypoint", container.Config{Entrypoint: []string{"echo", "a"}, Cmd: []string{"b"}}, container.HostConfig{}, "a b\n", "", 0},
		{"terminal", container.Config{Cmd: []string{"sh", "-c", "tty"}, Tty: true}, container.HostConfig{}, "/dev/pts/0\r\n", "", 0},
		{"read-only-root", sh("touch /x"), container.HostConfig{ReadonlyRootfs: true}, "", "Read-only file system", 1},
		{"tmpfs", sh("touch /t/x; mount | grep ' /t ' | cut -d' ' -f1"), container.HostConfig{ReadonlyRootfs: true, Tmpfs: map[string]string{"/t": "size=1m"}}, "tmpfs\n", "", 0},
		{"memory-limit", sh("cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || cat /sys/fs/cgroup/memory.max"), container.HostConfig{Resources: container.Resources{Memory: mem}}, "67108864\n", "", 0},
		{"first-process-is-1", sh("echo $$"), container.HostConfig{}, "1\n", "", 0},
		{"default-capabilities", sh("grep CapEff /proc/self/status"), container.HostConfig{}, "CapEff:\t00000000a80425fb\n", "", 0},
		{"dropped-capabilities", sh("grep CapEff /proc/self/status"), container.HostConfig{CapDrop: []string{"ALL"}}, "CapEff:\t0000000000000000\n", "", 0},
		{"no-mount-without-privilege", sh("mount -t tmpfs x /tmp"), container.HostConfig{}, "", "permission denied", 1},
		{"mount-with-privilege", sh("mount -t tmpfs x /tmp"), container.HostConfig{Privileged: true}, "", "", 0},
		{"masked-paths-read-empty", sh("cat /proc/kcore | wc -c"), container.HostConfig{}, "0\n", "", 0},
		{"sysctls-are-read-only", sh("echo 1 > /proc/sys/kernel/panic"), container.HostConfig{}, "", "Read-only file system", 1},
		{"no-network", sh("ip -o link | wc -l"), container.HostConfig{NetworkMode: "none"}, "1\n", "", 0},
		{"shared-memory-size", sh("df -k /dev/shm | tail -1 | awk '{print $2}'"), container.HostConfig{ShmSize: 1 << 20}, "1024\n", "", 0},
		{"command-not-found-in-shell", sh("nosuch"), container.HostConfig{}, "", "not found", 127},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			out, errOut, code := d.Run(testdaemon.Spec{Config: tt.config, Host: tt.host})
			if out != tt.want || !strings.Contains(errOut, tt.errs) || code != tt.code {
				t.Errorf("stdout %q, stderr %q, code %d; want %q, %q, %d", out, errOut, code, tt.want, tt.errs, tt.code)
			}
		})
	}
}

func TestKilledDaemonLosesNothing(t *testing.T) {
	d := testdaemon.Start(t)
	ports, bindings := published(80, 8001)
	serving := sh("mkdir /w; echo hello > /w/f; httpd -p 80 -h /w; i=0; while true; do echo line $i; i=$((i+1)); sleep 0.05; done")
	serving.ExposedPorts = ports
	web := d.RunDetached(testdaemon.Spec{Name: "web", Config: serving, Host: container.HostConfig{PortBindings: bindings}})
	ends := d.RunDetached(testdaemon.Spec{Name: "ends", Config: sh("exit 9")})
	always := d.RunDetached(testdaemon.Spec{Name: "always", Config: cmd("sleep", "1000"), Host: container.HostConfig{RestartPolicy: container.RestartPolicy{Name: "always"}}})
	d.WaitExit(ends)
	pid := d.Inspect(web).State.Pid

	d.Kill()
	if got, err := d.Get("http://127.0.0.1:8001/f"); err != nil || got != "hello\n" {
		t.Errorf("published port while minked is dead: %q, %v; want it to work", got, err)
	}
	d.Up()

	after := d.Inspect(web)
	if !after.State.Running || after.State.Pid != pid {
		t.Errorf("container after restart: %+v, want it running as process %d", after.State, pid)
	}
	if got, err := d.Get("http://127.0.0.1:8001/f"); err != nil || got != "hello\n" {
		t.Errorf("published port: %q, %v", got, err)
	}
	if p := after.NetworkSettings.Ports; len(p) != 1 {
		t.Errorf("ports shown: %v, want 80/tcp", p)
	}
	// Every line is there, in order, across the gap.
	for i, line := range strings.Split(strings.TrimSpace(d.Logs(web)), "\n") {
		if line != fmt.Sprintf("line %d", i) {
			t.Fatalf("log line %d is %q", i, line)
		}
	}
	if c := d.Inspect(always); !c.State.Running || c.RestartCount != 0 {
		t.Errorf("container with policy always: running %v, restarts %d; want it untouched", c.State.Running, c.RestartCount)
	}
	if out, code := d.Exec(web, "echo", "in"); out != "in\n" || code != 0 {
		t.Errorf("exec after restart: %q, %d", out, code)
	}
	if c := d.Inspect(ends); c.State.Running || c.State.ExitCode != 9 {
		t.Errorf("container that ended: %+v, want exit code 9", c.State)
	}
}

func TestExitWhileDaemonIsDeadIsSeen(t *testing.T) {
	d := testdaemon.Start(t)
	id := d.RunDetached(testdaemon.Spec{Config: sh("trap 'echo bye; exit 9' TERM; echo ready; while true; do sleep 0.05; done")})
	pid := d.Inspect(id).State.Pid
	// The first process of a container ignores what it has no handler for yet.
	for deadline := time.Now().Add(20 * time.Second); d.Logs(id) != "ready\n"; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the shell does not set its trap")
		}
	}
	d.Kill()
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	testdaemon.WaitDead(t, pid)
	d.Up()
	if code := d.WaitExit(id); code != 9 {
		t.Errorf("exit code = %d, want 9", code)
	}
	if log := d.Logs(id); log != "ready\nbye\n" {
		t.Errorf("log = %q, want its last word", log)
	}
}

func TestKilledMonitorLosesNothing(t *testing.T) {
	d := testdaemon.Start(t)
	id := d.RunDetached(testdaemon.Spec{Config: sh("trap 'exit 4' TERM; i=0; while true; do echo line $i; i=$((i+1)); sleep 0.02; done")})
	monitor := d.Monitor()
	syscall.Kill(monitor, syscall.SIGKILL)
	testdaemon.WaitDead(t, monitor)
	if out, code := d.Exec(id, "echo", "in"); out != "in\n" || code != 0 {
		t.Errorf("exec under the new monitor: %q, %d", out, code)
	}
	if _, err := d.ContainerStop(t.Context(), id, client.ContainerStopOptions{}); err != nil {
		t.Fatal(err)
	}
	if c := d.Inspect(id); c.State.ExitCode != 4 {
		t.Errorf("exit code = %d, want 4", c.State.ExitCode)
	}
	for i, line := range strings.Split(strings.TrimSpace(d.Logs(id)), "\n") {
		if line != fmt.Sprintf("line %d", i) {
			t.Fatalf("log line %d is %q", i, line)
		}
	}
}

// afterTheEnd checks that restart policies apply where a container's end was
// nobody's wish.
func afterTheEnd(t *testing.T, interrupt func(*testdaemon.Daemon)) {
	d := testdaemon.Start(t)
	if _, err := d.NetworkCreate(t.Context(), "own", client.NetworkCreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.NetworkRemove(t.Context(), "own", client.NetworkRemoveOptions{}) })
	ports, bindings := published(80, 8005)
	conf := sh("mkdir -p /w; echo hello > /w/f; exec httpd -f -p 80 -h /w")
	conf.ExposedPorts = ports
	policy := func(name string) container.HostConfig {
		return container.HostConfig{RestartPolicy: container.RestartPolicy{Name: container.RestartPolicyMode(name)}}
	}
	host := policy("always")
	host.PortBindings, host.NetworkMode, host.Binds = bindings, "own", []string{"kept:/data"}
	always := d.RunDetached(testdaemon.Spec{Name: "always", Config: conf, Host: host})
	d.Exec(always, "sh", "-c", "echo x > /data/x; echo y > /y; sync")
	plain := d.RunDetached(testdaemon.Spec{Name: "plain", Config: cmd("sleep", "1000")})
	stopped := d.RunDetached(testdaemon.Spec{Name: "stopped", Config: cmd("sleep", "1000"), Host: policy("unless-stopped")})
	now := 0
	if _, err := d.ContainerStop(t.Context(), stopped, client.ContainerStopOptions{Timeout: &now}); err != nil {
		t.Fatal(err)
	}
	passing := d.RunDetached(testdaemon.Spec{Name: "passing", Config: cmd("sleep", "1000"), Host: container.HostConfig{AutoRemove: true}})
	old := d.Inspect(always)

	interrupt(d)
	d.Up()

	testdaemon.WaitDead(t, old.State.Pid)
	c := d.WaitFor(always, "started again", func(c container.InspectResponse) bool { return c.State.Status == "running" })
	if c.State.Pid == old.State.Pid {
		t.Errorf("still process %d, want another", c.State.Pid)
	}
	if got, want := c.NetworkSettings.Networks["own"].IPAddress, old.NetworkSettings.Networks["own"].IPAddress; got != want {
		t.Errorf("address = %s, want the one it had, %s", got, want)
	}
	if out, _ := d.Exec(always, "cat", "/data/x", "/y"); out != "x\ny\n" {
		t.Errorf("files after the restart: %q, want both", out)
	}
	if got, err := d.Get("http://127.0.0.1:8005/f"); err != nil || got != "hello\n" {
		t.Errorf("published port: %q, %v", got, err)
	}
	if c := d.Inspect(plain); c.State.Running || c.State.ExitCode == 0 {
		t.Errorf("container without a policy: %+v, want it ended with an error", c.State)
	}
	if c := d.Inspect(stopped); c.State.Running {
		t.Errorf("container that was stopped before: %+v, want it stopped", c.State)
	}
	if _, err := d.ContainerInspect(t.Context(), passing, client.ContainerInspectOptions{}); err == nil {
		t.Errorf("container with --rm is still there")
	}
}

func TestKilledWithItsMonitor(t *testing.T) { afterTheEnd(t, (*testdaemon.Daemon).KillAll) }

func TestPowerCut(t *testing.T) { afterTheEnd(t, (*testdaemon.Daemon).Reboot) }

func TestContainersStartAfterThoseTheyNeed(t *testing.T) {
	d := testdaemon.Start(t)
	always := container.RestartPolicy{Name: container.RestartPolicyAlways}
	base := d.RunDetached(testdaemon.Spec{Name: "base", Config: sh("sleep 600"), Host: container.HostConfig{RestartPolicy: always}})
	ids := []string{base}
	for i, h := range []container.HostConfig{
		{NetworkMode: container.NetworkMode("container:base")}, {PidMode: "container:base"}, {Links: []string{"base:b"}},
	} {
		h.RestartPolicy = always
		ids = append(ids, d.RunDetached(testdaemon.Spec{Name: fmt.Sprint("needs", i), Config: sh("sleep 600"), Host: h}))
	}
	// A chain: this one needs one that needs base.
	ids = append(ids, d.RunDetached(testdaemon.Spec{Name: "last", Config: sh("sleep 600"), Host: container.HostConfig{RestartPolicy: always, PidMode: "container:needs0"}}))
	stopped := d.RunDetached(testdaemon.Spec{Name: "stopped", Config: sh("sleep 600"), Host: container.HostConfig{RestartPolicy: container.RestartPolicy{Name: container.RestartPolicyUnlessStopped}}})
	now := 0
	if _, err := d.ContainerStop(t.Context(), stopped, client.ContainerStopOptions{Timeout: &now}); err != nil {
		t.Fatal(err)
	}
	d.Reboot()
	d.Up()
	for _, id := range ids {
		c := d.WaitFor(id, "to run after the reboot", func(c container.InspectResponse) bool { return c.State.Status == container.StateRunning })
		if c.RestartCount > 1 {
			t.Errorf("%s was started %d times, want once: the one it needs comes first", c.Name, c.RestartCount)
		}
	}
	if log := d.Log(); strings.Contains(log, "did not start") {
		t.Errorf("log tells of failed starts:\n%s", log)
	}
	if c := d.Inspect(stopped); c.State.Running {
		t.Error("unless-stopped was stopped, and runs after the reboot")
	}
}

func TestManyRunsAtOnceLeaveNothing(t *testing.T) {
	d := testdaemon.Start(t)
	// One run first, so that what lives as long as the daemon is there.
	d.Sh("true", container.HostConfig{})
	before := count(t, d)
	rounds := 10
	if testing.Short() {
		rounds = 2
	}
	for range rounds {
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() {
				s := testdaemon.Spec{Config: cmd("true"), Host: container.HostConfig{AutoRemove: true}}
				id := d.Create(s)
				w := d.ContainerWait(t.Context(), id, client.ContainerWaitOptions{Condition: container.WaitConditionRemoved})
				if _, err := d.ContainerStart(t.Context(), id, client.ContainerStartOptions{}); err != nil {
					t.Error(err)
				}
				select {
				case <-w.Result:
				case err := <-w.Error:
					t.Error(err)
				}
			})
		}
		wg.Wait()
	}
	waitGone(t, d, before)
}

// count is everything a container may leave behind.
func count(t *testing.T, d *testdaemon.Daemon) map[string]int {
	t.Helper()
	dirs := func(pattern string) int {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		return len(found)
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	info, err := d.Info(t.Context(), client.InfoOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return map[string]int{
		"interfaces":   len(d.Links()),
		"mounts":       strings.Count(string(mounts), "\n"),
		"directories":  dirs(filepath.Join(d.Dir, "data", "containers", "*")),
		"state":        dirs(filepath.Join(d.Dir, "run", "runtime", "*")),
		"descriptors":  dirs(fmt.Sprintf("/proc/%d/fd/*", d.Pid())),
		"monitor's":    dirs(fmt.Sprintf("/proc/%d/fd/*", d.Monitor())),
		"containers":   info.Info.Containers,
		"listed rules": elements(t, d),
	}
}

// waitGone waits for what the kernel removes in its own time, and fails if
// something stays.
func waitGone(t *testing.T, d *testdaemon.Daemon, before map[string]int) {
	t.Helper()
	var after map[string]int
	for range 100 {
		after = count(t, d)
		more := false
		for what, n := range after {
			more = more || n > before[what]
		}
		if !more {
			return
		}
		d.Sh("sleep 0.05", container.HostConfig{NetworkMode: "none"})
	}
	t.Errorf("before %v, after %v", before, after)
}

func TestUsedPortIsRefusedWithItsHolder(t *testing.T) {
	d := testdaemon.Start(t)
	_, bindings := published(80, 8002)
	d.RunDetached(testdaemon.Spec{Name: "first", Config: cmd("sleep", "1000"), Host: container.HostConfig{PortBindings: bindings}})
	second := d.Create(testdaemon.Spec{Name: "second", Config: cmd("sleep", "1000"), Host: container.HostConfig{PortBindings: bindings}})
	_, err := d.ContainerStart(t.Context(), second, client.ContainerStartOptions{})
	if err == nil || !strings.Contains(err.Error(), "port is already allocated") || !strings.Contains(err.Error(), "first") {
		t.Errorf("start with a used port: %v, want it refused and the holder named", err)
	}

	var l net.Listener
	if err := d.InNetNS(func() (err error) { l, err = net.Listen("tcp4", "127.0.0.1:8003"); return err }); err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, bindings = published(80, 8003)
	third := d.Create(testdaemon.Spec{Name: "third", Config: cmd("sleep", "1000"), Host: container.HostConfig{PortBindings: bindings}})
	_, err = d.ContainerStart(t.Context(), third, client.ContainerStartOptions{})
	if err == nil || !strings.Contains(err.Error(), "address already in use") || !strings.Contains(err.Error(), strconv.Itoa(os.Getpid())) {
		t.Errorf("start with a port that this process holds: %v, want it refused and process %d named", err, os.Getpid())
	}
	if c := d.Inspect(third); c.State.Running || c.State.Error == "" {
		t.Errorf("refused container: %+v, want it stopped with the reason", c.State)
	}
}

func TestNetworks(t *testing.T) {
	d := testdaemon.Start(t)
	for _, name := range []string{"one", "two"} {
		if _, err := d.NetworkCreate(t.Context(), name, client.NetworkCreateOptions{}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { d.NetworkRemove(t.Context(), name, client.NetworkRemoveOptions{}) })
	}
	if _, err := d.NetworkCreate(t.Context(), "inner", client.NetworkCreateOptions{Internal: true}); err != nil {
		t.Fatal(err)
	}
	ports, bindings := published(80, 8004)
	conf := sh("mkdir /w; echo hello > /w/f; httpd -f -p 80 -h /w")
	conf.ExposedPorts = ports
	web := d.RunDetached(testdaemon.Spec{Name: "web", Config: conf, Host: container.HostConfig{NetworkMode: "one", PortBindings: bindings}})
	ip := d.Inspect(web).NetworkSettings.Networks["one"].IPAddress.String()
	gateway := d.Inspect(web).NetworkSettings.Networks["one"].Gateway.String()
	fetch := func(from, host string) string {
		return d.Sh("printf 'GET /f HTTP/1.0\\r\\n\\r\\n' | timeout 2 nc "+host+" | tail -1; true", container.HostConfig{NetworkMode: container.NetworkMode(from)})
	}
	for _, tt := range []struct{ name, from, host, want string }{
		{"by-name-on-its-network", "one", "web 80", "hello\n"},
		{"not-from-another-network", "two", ip + " 80", ""},
		{"not-from-the-default-network", "bridge", ip + " 80", ""},
		{"not-from-an-internal-network", "inner", ip + " 80", ""},
		{"published-port-from-another-network", "two", gateway + " 8004", "hello\n"},
		{"published-port-from-its-own-network", "one", gateway + " 8004", "hello\n"},
		{"published-port-from-host-network", "host", "127.0.0.1 8004", "hello\n"},
		{"host-loopback-is-out-of-reach", "one", "127.0.0.1 8004", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := fetch(tt.from, tt.host); got != tt.want {
				t.Errorf("from network %s to %s: %q, want %q", tt.from, tt.host, got, tt.want)
			}
		})
	}
	for _, host := range []string{"127.0.0.1", "[::1]", gateway} {
		if got, err := d.Get("http://" + host + ":8004/f"); got != "hello\n" {
			t.Errorf("from the host by %s: %q, %v", host, got, err)
		}
	}
	if out, _ := d.Exec(web, "sh", "-c", "printf 'GET /f HTTP/1.0\\r\\n\\r\\n' | timeout 2 nc "+gateway+" 8004 | tail -1"); out != "hello\n" {
		t.Errorf("from itself by the host's address: %q, want hello", out)
	}
	if out := d.Sh("nslookup web 2>&1 | tail -3; nslookup nosuch.invalid 2>&1; true", container.HostConfig{NetworkMode: "two"}); strings.Contains(out, ip) {
		t.Errorf("a name of another network resolves: %s", out)
	}
	if _, err := d.NetworkRemove(t.Context(), "one", client.NetworkRemoveOptions{}); err == nil || !strings.Contains(err.Error(), "active endpoints") {
		t.Errorf("remove of a network in use: %v, want it refused", err)
	}
	late := d.RunDetached(testdaemon.Spec{Name: "late", Config: cmd("sleep", "1000")})
	for _, id := range []string{web, late} {
		if _, err := d.NetworkConnect(t.Context(), "two", client.NetworkConnectOptions{Container: id}); err != nil {
			t.Fatal(err)
		}
	}
	if out, code := d.Exec(late, "nslookup", "web"); code != 0 {
		t.Errorf("names after a container of the default network was connected: %s", out)
	}
	if _, err := d.ContainerRemove(t.Context(), late, client.ContainerRemoveOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	if got := fetch("two", "web 80"); got != "hello\n" {
		t.Errorf("after connect: %q, want hello", got)
	}
	if _, err := d.NetworkDisconnect(t.Context(), "two", client.NetworkDisconnectOptions{Container: web}); err != nil {
		t.Fatal(err)
	}
	if got := fetch("two", "web 80"); got != "" {
		t.Errorf("after disconnect: %q, want nothing", got)
	}
}

func TestVolumes(t *testing.T) {
	d := testdaemon.Start(t)
	d.RunDetached(testdaemon.Spec{Name: "user", Config: cmd("sleep", "1000"), Host: container.HostConfig{Binds: []string{"data:/etc", "data:/mnt/again:ro"}}})
	if out, _ := d.Exec("user", "sh", "-c", "grep -c root /etc/passwd; echo x > /etc/new; cat /mnt/again/new; touch /mnt/again/y"); !strings.Contains(out, "1\n") || !strings.Contains(out, "x\n") || !strings.Contains(out, "Read-only") {
		t.Errorf("volume at two places: %q, want the image's content, the new file, and one place read-only", out)
	}
	_, err := d.VolumeRemove(t.Context(), "data", client.VolumeRemoveOptions{})
	if err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("remove of a volume in use: %v, want it refused", err)
	}
	if _, err := d.ContainerRemove(t.Context(), "user", client.ContainerRemoveOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	if out := d.Sh("cat /v/new", container.HostConfig{Binds: []string{"data:/v"}}); out != "x\n" {
		t.Errorf("content after its container is gone: %q, want x", out)
	}
	if _, err := d.VolumeRemove(t.Context(), "data", client.VolumeRemoveOptions{}); err != nil {
		t.Error(err)
	}
}

func TestLifeCycle(t *testing.T) {
	d := testdaemon.Start(t)
	t.Run("restart-policy-restarts-until-stopped", func(t *testing.T) {
		id := d.RunDetached(testdaemon.Spec{Config: sh("exit 3"), Host: container.HostConfig{RestartPolicy: container.RestartPolicy{Name: "always"}}})
		d.WaitFor(id, "restarted twice", func(c container.InspectResponse) bool { return c.RestartCount >= 2 })
		if _, err := d.ContainerStop(t.Context(), id, client.ContainerStopOptions{}); err != nil {
			t.Fatal(err)
		}
		if c := d.Inspect(id); c.State.Running || c.State.ExitCode != 3 {
			t.Errorf("after stop: %+v", c.State)
		}
	})
	t.Run("on-failure-gives-up", func(t *testing.T) {
		id := d.RunDetached(testdaemon.Spec{Config: sh("exit 3"), Host: container.HostConfig{RestartPolicy: container.RestartPolicy{Name: "on-failure", MaximumRetryCount: 2}}})
		c := d.WaitFor(id, "given up", func(c container.InspectResponse) bool { return !c.State.Running })
		if c.RestartCount != 2 {
			t.Errorf("restarts = %d, want 2", c.RestartCount)
		}
	})
	t.Run("health", func(t *testing.T) {
		conf := sh("touch /ok; sleep 1000")
		conf.Healthcheck = &container.HealthConfig{Test: []string{"CMD", "test", "-e", "/ok"}, Interval: 20e6, Retries: 2}
		id := d.RunDetached(testdaemon.Spec{Config: conf})
		d.WaitFor(id, "healthy", func(c container.InspectResponse) bool { return c.State.Health.Status == container.Healthy })
		d.Exec(id, "rm", "/ok")
		c := d.WaitFor(id, "unhealthy", func(c container.InspectResponse) bool { return c.State.Health.Status == container.Unhealthy })
		if c.State.Health.FailingStreak < 2 {
			t.Errorf("failing streak = %d, want 2 or more", c.State.Health.FailingStreak)
		}
	})
	t.Run("out-of-memory-is-told", func(t *testing.T) {
		id := d.RunDetached(testdaemon.Spec{Config: sh("head -c 100m /dev/zero | tail"), Host: container.HostConfig{Resources: container.Resources{Memory: 16 << 20}}})
		d.WaitExit(id)
		if c := d.Inspect(id); !c.State.OOMKilled {
			t.Errorf("state = %+v, want OOMKilled", c.State)
		}
	})
	t.Run("stop-kills-what-does-not-listen", func(t *testing.T) {
		id := d.RunDetached(testdaemon.Spec{Config: sh("trap '' TERM; while true; do sleep 1; done")})
		now := 0
		if _, err := d.ContainerStop(t.Context(), id, client.ContainerStopOptions{Timeout: &now}); err != nil {
			t.Fatal(err)
		}
		if c := d.Inspect(id); c.State.ExitCode != 137 {
			t.Errorf("exit code = %d, want 137", c.State.ExitCode)
		}
	})
	t.Run("pause-holds-and-unpause-lets-go", func(t *testing.T) {
		id := d.RunDetached(testdaemon.Spec{Config: cmd("sleep", "1000")})
		if _, err := d.ContainerPause(t.Context(), id, client.ContainerPauseOptions{}); err != nil {
			t.Fatal(err)
		}
		if c := d.Inspect(id); c.State.Status != "paused" {
			t.Errorf("status = %s, want paused", c.State.Status)
		}
		if _, err := d.ContainerUnpause(t.Context(), id, client.ContainerUnpauseOptions{}); err != nil {
			t.Fatal(err)
		}
		if out, _ := d.Exec(id, "echo", "in"); out != "in\n" {
			t.Errorf("exec after unpause: %q", out)
		}
	})
}

func TestBadRequestsAreRefusedClearly(t *testing.T) {
	d := testdaemon.Start(t)
	d.RunDetached(testdaemon.Spec{Name: "taken", Config: cmd("sleep", "1000")})
	raw := http.Client{Transport: &http.Transport{DialContext: dialUnix(d.Socket), DisableKeepAlives: true}}
	tests := []struct {
		name, method, path, body string
		status                   int
		want                     string
	}{
		{"broken-json", "POST", "/containers/create", "{", 400, "invalid JSON"},
		{"no-body", "POST", "/containers/create", "", 400, "EOF"},
		{"no-image", "POST", "/containers/create", `{"Image":"nosuch"}`, 404, "No such image: nosuch:latest"},
		{"used-name", "POST", "/containers/create?name=taken", `{"Image":"busybox"}`, 409, "is already in use by container"},
		{"bad-name", "POST", "/containers/create?name=a/b", `{"Image":"busybox"}`, 400, "Invalid container name"},
		{"too-little-memory", "POST", "/containers/create", `{"Image":"busybox","HostConfig":{"Memory":1000}}`, 400, "6MB"},
		{"unknown-network-is-no-matter-before-the-start", "POST", "/containers/create?name=lonely", `{"Image":"busybox","HostConfig":{"NetworkMode":"nosuch"}}`, 201, "Id"},
		{"unknown-network", "POST", "/containers/lonely/start", "", 404, "failed to set up container networking: network nosuch not found"},
		{"short-health-check", "POST", "/containers/create", `{"Image":"busybox","Healthcheck":{"Test":["CMD","a"],"Interval":5}}`, 400, "Interval in Healthcheck cannot be less than 1ms"},
		{"nameless-variable", "POST", "/containers/create", `{"Image":"busybox","Env":["=x"]}`, 400, "invalid environment variable: =x"},
		{"unknown-stop-signal", "POST", "/containers/create", `{"Image":"busybox","StopSignal":"FOO"}`, 400, "invalid signal: FOO"},
		{"relative-working-directory", "POST", "/containers/create", `{"Image":"busybox","WorkingDir":"a"}`, 400, "the working directory 'a' is invalid, it needs to be an absolute path"},
		{"half-a-host", "POST", "/containers/create", `{"Image":"busybox","HostConfig":{"ExtraHosts":["x"]}}`, 400, "bad format for add-host"},
		{"oom-score", "POST", "/containers/create", `{"Image":"busybox","HostConfig":{"OomScoreAdj":2000}}`, 400, "range for oom score adj is [-1000, 1000]"},
		{"swappiness", "POST", "/containers/create", `{"Image":"busybox","HostConfig":{"MemorySwappiness":200}}`, 400, "valid memory swappiness range is 0-100"},
		{"null-in-a-list", "POST", "/containers/create", `{"Image":"busybox","HostConfig":{"Ulimits":[null]}}`, 400, "null in a list"},
		{"soft-above-hard", "POST", "/containers/create", `{"Image":"busybox","HostConfig":{"Ulimits":[{"Name":"nofile","Soft":2,"Hard":1}]}}`, 400, "ulimit soft limit must be less than or equal to hard limit"},
		{"isolation", "POST", "/containers/create", `{"Image":"busybox","HostConfig":{"Isolation":"hyperv"}}`, 400, "Invalid isolation"},
		{"old-hardware-address", "POST", "/v1.41/containers/create", `{"Image":"busybox","MacAddress":"zz"}`, 400, "invalid MAC address"},
		{"relative-tmpfs", "POST", "/containers/create", `{"Image":"busybox","HostConfig":{"Tmpfs":{"a":""}}}`, 400, "mount path must be absolute"},
		{"hostname-of-another", "POST", "/containers/create", `{"Image":"busybox","Hostname":"x","HostConfig":{"NetworkMode":"container:taken"}}`, 400, "conflicting options: hostname and the network mode"},
		{"relative-mount", "POST", "/containers/create", `{"Image":"busybox","HostConfig":{"Binds":["/a:b"]}}`, 400, "must be absolute"},
		{"missing-bind", "POST", "/containers/create", `{"Image":"busybox","HostConfig":{"Mounts":[{"Type":"bind","Source":"/nosuch","Target":"/x"}]}}`, 400, "bind source path does not exist: /nosuch"},
		{"unknown-capability", "POST", "/containers/create", `{"Image":"busybox","HostConfig":{"CapAdd":["FLY"]}}`, 400, "invalid CapAdd: unknown capability"},
		{"volumes-of-nobody", "POST", "/containers/create", `{"Image":"busybox","HostConfig":{"VolumesFrom":["nosuch"]}}`, 400, "No such container: nosuch"},
		{"unknown-exit-code", "GET", "/containers/json?filters=%7B%22exited%22%3A%5B%22red%22%5D%7D", "", 400, "invalid filter 'exited=red'"},
		{"unknown-container", "POST", "/containers/nosuch/start", "", 404, "No such container: nosuch"},
		{"running-container", "DELETE", "/containers/taken", "", 409, "stop the container before removing or force remove"},
		{"start-twice", "POST", "/containers/taken/start", "", 304, ""},
		{"new-version", "GET", "/v1.99/info", "", 400, "client version 1.99 is too new. Maximum supported API version is 1.56"},
		{"old-version", "GET", "/v1.10/info", "", 400, "client version 1.10 is too old"},
		{"oldest-version", "GET", "/v1.22/info", "", 200, ""},
		{"unknown-route", "GET", "/nosuch", "", 404, "page not found"},
		{"swarm", "GET", "/services", "", 503, "not a swarm manager"},
		{"bad-filter", "GET", "/containers/json?filters=%7B%22colour%22%3A%5B%22red%22%5D%7D", "", 400, "invalid filter 'colour'"},
		{"image-in-use", "DELETE", "/images/busybox", "", 409, "conflict"},
		{"build-with-an-unknown-instruction", "POST", "/build", "FORM x\n", 400, "unknown instruction: FORM"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			req, err := http.NewRequestWithContext(t.Context(), tt.method, "http://minke"+tt.path, strings.NewReader(tt.body))
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Content-Type", "application/json")
			resp, err := raw.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			var buf strings.Builder
			if _, err := copyAll(&buf, resp.Body); err != nil {
				t.Fatal(err)
			}
			if resp.StatusCode != tt.status || !strings.Contains(buf.String(), tt.want) {
				t.Errorf("%s %s: %d %s; want %d and %q", tt.method, tt.path, resp.StatusCode, buf.String(), tt.status, tt.want)
			}
			if tt.status >= 400 && !strings.HasPrefix(buf.String(), `{"message":"`) {
				t.Errorf("error body %s, want an object with a message", buf.String())
			}
		})
	}
}

func TestLinksMakeVariables(t *testing.T) {
	d := testdaemon.Start(t)
	db := sh("sleep 600")
	db.Env = []string{"USER_NAME=admin"}
	db.ExposedPorts = network.PortSet{network.MustParsePort("5432/tcp"): {}, network.MustParsePort("53/udp"): {}}
	id := d.RunDetached(testdaemon.Spec{Name: "db", Config: db})
	ip := d.Inspect(id).NetworkSettings.Networks["bridge"].IPAddress.String()
	c := cmd("env")
	c.Env = []string{"MY_DB_NAME=mine"}
	out, _, _ := d.Run(testdaemon.Spec{Name: "web", Config: c, Host: container.HostConfig{Links: []string{"db:my-db"}}})
	for _, want := range []string{
		"MY_DB_PORT=tcp://" + ip + ":5432\n", "MY_DB_PORT_5432_TCP=tcp://" + ip + ":5432\n", "MY_DB_PORT_5432_TCP_ADDR=" + ip + "\n",
		"MY_DB_PORT_5432_TCP_PORT=5432\n", "MY_DB_PORT_5432_TCP_PROTO=tcp\n", "MY_DB_PORT_53_UDP_PORT=53\n", "MY_DB_ENV_USER_NAME=admin\n", "MY_DB_NAME=mine\n",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("environment lacks %q:\n%s", want, out)
		}
	}
}

// POSIX shared memory is files in /dev/shm.
func TestSharedIPCNamespaceHasItsSharedMemory(t *testing.T) {
	d := testdaemon.Start(t)
	id := d.RunDetached(testdaemon.Spec{Name: "donor", Config: cmd("sleep", "600"), Host: container.HostConfig{IpcMode: container.IPCModeShareable}})
	d.Exec(id, "sh", "-c", "echo theirs > /dev/shm/a")
	if out := d.Sh("cat /dev/shm/a; echo mine > /dev/shm/b", container.HostConfig{IpcMode: "container:donor"}); out != "theirs\n" {
		t.Errorf("shared memory of the donor is %q", out)
	}
	if out, _ := d.Exec(id, "cat", "/dev/shm/b"); out != "mine\n" {
		t.Errorf("the donor sees %q", out)
	}
	d.RunDetached(testdaemon.Spec{Name: "closed", Config: cmd("sleep", "600")})
	other := d.Create(testdaemon.Spec{Config: cmd("true"), Host: container.HostConfig{IpcMode: "container:closed"}})
	if _, err := d.ContainerStart(t.Context(), other, client.ContainerStartOptions{}); err == nil || !strings.Contains(err.Error(), "non-shareable IPC") {
		t.Errorf("joining a private IPC namespace: %v", err)
	}
	if out := d.Sh("ls /dev/shm 2>&1 || true", container.HostConfig{IpcMode: container.IPCModeNone}); !strings.Contains(out, "No such file") {
		t.Errorf("--ipc none has /dev/shm: %q", out)
	}
}

func TestExecDoesNotMakeItsWorkingDirectory(t *testing.T) {
	d := testdaemon.Start(t)
	id := d.RunDetached(testdaemon.Spec{Config: cmd("sleep", "600")})
	created, err := d.ExecCreate(t.Context(), id, client.ExecCreateOptions{Cmd: []string{"true"}, WorkingDir: "/nope"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.ExecStart(t.Context(), created.ID, client.ExecStartOptions{Detach: true}); err == nil || !strings.Contains(err.Error(), "/nope") {
		t.Errorf("exec in /nope = %v, want an error that names it", err)
	}
	if _, code := d.Exec(id, "ls", "/nope"); code == 0 {
		t.Error("/nope is there now")
	}
}

func TestOldHardwareAddressIsTheEndpoints(t *testing.T) {
	d := testdaemon.Start(t)
	raw := http.Client{Transport: &http.Transport{DialContext: dialUnix(d.Socket), DisableKeepAlives: true}}
	resp, err := raw.Post("http://minke/v1.41/containers/create?name=mac", "application/json", strings.NewReader(`{"Image":"busybox","Cmd":["sleep","600"],"MacAddress":"02:42:ac:11:00:77"}`))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if _, err := d.ContainerStart(t.Context(), "mac", client.ContainerStartOptions{}); err != nil {
		t.Fatal(err)
	}
	if got, _ := d.Exec("mac", "cat", "/sys/class/net/eth0/address"); strings.TrimSpace(got) != "02:42:ac:11:00:77" {
		t.Errorf("address = %q", got)
	}
}

func TestProgramThatCannotRun(t *testing.T) {
	d := testdaemon.Start(t)
	for _, tt := range []struct {
		name, command, want string
		code                int
	}{
		{"not-found", "nosuch", "executable file not found in $PATH", 127},
		{"no-such-path", "/bin/nosuch", "no such file or directory", 127},
		{"directory", "/etc", "is a directory", 126},
		{"not-executable", "/etc/passwd", "permission denied", 126},
	} {
		t.Run(tt.name, func(t *testing.T) {
			id := d.Create(testdaemon.Spec{Config: cmd(tt.command)})
			_, err := d.ContainerStart(t.Context(), id, client.ContainerStartOptions{})
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("start: %v, want %q", err, tt.want)
			}
			if c := d.Inspect(id); c.State.ExitCode != tt.code || c.State.Status != container.StateCreated {
				t.Errorf("state %s, exit code %d; want created, %d", c.State.Status, c.State.ExitCode, tt.code)
			}
		})
	}
}

func TestSecondDaemonOnADataRootIsRefused(t *testing.T) {
	d := testdaemon.Start(t)
	out, err := minked(t, "--data-root", filepath.Join(d.Dir, "data"), "--exec-root", filepath.Join(d.Dir, "run2"), "-H", "unix://"+filepath.Join(d.Dir, "b.sock"), "--pidfile", "")
	if err == nil || !strings.Contains(out, "in use by another minked") {
		t.Errorf("second daemon: %v, %s; want it refused", err, out)
	}
}

func TestDamagedRecordIsSetAside(t *testing.T) {
	d := testdaemon.Start(t)
	bad := d.Create(testdaemon.Spec{Name: "bad", Config: cmd("true")})
	d.Create(testdaemon.Spec{Name: "good", Config: cmd("true")})
	d.Stop()
	damage(t, filepath.Join(d.Dir, "data", "minke.db"), bad)
	d.Up()
	list, err := d.ContainerList(t.Context(), client.ContainerListOptions{All: true})
	if err != nil || len(list.Items) != 1 || list.Items[0].Names[0] != "/good" {
		t.Errorf("containers after damage: %v, %v; want the good one", list.Items, err)
	}
	if !strings.Contains(d.Log(), bad) {
		t.Errorf("the log does not name the damaged record")
	}
}

func TestEngineRunsOnWithoutItsSupervisor(t *testing.T) {
	d := testdaemon.Start(t)
	d.Stop()
	var l net.Listener
	err := d.InNetNS(func() (err error) { l, err = net.Listen("tcp", "127.0.0.1:48484"); return err })
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	d.Up("--supervisor=true")
	if out := d.Sh("echo works", container.HostConfig{}); out != "works\n" {
		t.Errorf("run beside a supervisor that cannot listen: %q", out)
	}
	for range 100 {
		if strings.Contains(d.Log(), "supervisor stopped") {
			return
		}
		d.Sh("sleep 0.05", container.HostConfig{NetworkMode: "none"})
	}
	t.Errorf("the log does not tell that the supervisor stopped:\n%s", d.Log())
}

func TestSignalAtTheVeryStartReachesTheProgramOfInit(t *testing.T) {
	d := testdaemon.Start(t)
	yes := true
	for range 10 {
		id := d.RunDetached(testdaemon.Spec{Config: cmd("sleep", "1000"), Host: container.HostConfig{Init: &yes}})
		if _, err := d.ContainerKill(t.Context(), id, client.ContainerKillOptions{Signal: "TERM"}); err != nil {
			t.Fatal(err)
		}
		if code := d.WaitExit(id); code != 143 {
			t.Fatalf("exit code %d, want that of the signal, 143", code)
		}
	}
	out, _, code := d.Run(testdaemon.Spec{Config: sh("grep SigBlk /proc/self/status"), Host: container.HostConfig{Init: &yes}})
	if code != 0 || out != "SigBlk:\t0000000000000000\n" {
		t.Errorf("signals that the program starts with blocked: %q, %d; want none", out, code)
	}
}
