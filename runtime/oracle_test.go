package runtime

import (
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/minke-os/minke/internal/testenv"
)

// TestContainersAreAsRuncMakesThem looks at a container from inside, made by
// this runtime and by runc of the same configuration.
func TestContainersAreAsRuncMakesThem(t *testing.T) {
	runc := testenv.Need(t, "runc")
	signal.Ignore(unix.SIGHUP) // as under nohup; no container is to know
	t.Cleanup(func() { signal.Reset(unix.SIGHUP) })
	const look = `grep -E '^(Uid|Gid|Groups|Cap|NoNew|Seccomp:|SigBlk|SigIgn|Umask)' /proc/self/status
cat /proc/self/limits /proc/self/oom_score_adj; env | sort; id; hostname; pwd; ls -ld /dev/* /etc/* | awk '{print $1,$3,$4,$5,$6,$NF}' | sort
awk '{print $5,$6}' /proc/self/mountinfo; grep -c . /proc/self/cgroup; cat /proc/kcore | wc -c; touch /proc/sys/kernel/x; exit 9`
	umask, score := uint32(0o27), 200
	tests := map[string]func(*specs.Spec){
		"as-docker-does": func(*specs.Spec) {},
		"user-with-groups": func(s *specs.Spec) {
			s.Process.User = specs.User{UID: 1000, GID: 1000, AdditionalGids: []uint32{10, 20}, Umask: &umask}
		},
		"no-new-privileges": func(s *specs.Spec) { s.Process.NoNewPrivileges = true },
		"ambient": func(s *specs.Spec) {
			set := []string{"CAP_NET_BIND_SERVICE"}
			s.Process.Capabilities = &specs.LinuxCapabilities{Bounding: set, Permitted: set, Effective: set, Inheritable: set, Ambient: set}
			s.Process.User = specs.User{UID: 1000, GID: 1000}
		},
		"limits": func(s *specs.Spec) {
			s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 100, Hard: 200}, {Type: "RLIMIT_CORE"}}
			s.Process.OOMScoreAdj = &score
		},
		"read-only-root": func(s *specs.Spec) { s.Root.Readonly = true },
		"mounts": func(s *specs.Spec) {
			s.Mounts = append(s.Mounts,
				specs.Mount{Destination: "/ro", Type: "bind", Source: "/usr", Options: []string{"rbind", "ro", "nosuid", "nodev", "noexec"}},
				specs.Mount{Destination: "/rro", Type: "bind", Source: "/sys", Options: []string{"rbind", "rro", "rslave"}},
				specs.Mount{Destination: "/tmp", Type: "tmpfs", Source: "tmpfs", Options: []string{"size=1m", "mode=1777", "noatime"}},
				specs.Mount{Destination: "/etc", Type: "tmpfs", Source: "tmpfs", Options: []string{"tmpcopyup", "mode=755"}})
		},
	}
	for name, change := range tests {
		t.Run(name, func(t *testing.T) {
			c := newCLI(t, "sh", "-c", look)
			c.edit(func(s *specs.Spec) {
				s.Process.Env = []string{"PATH=/bin", "HOME=/root", "A=b"}
				s.Mounts = slices.DeleteFunc(s.Mounts, func(m specs.Mount) bool { return m.Type == "cgroup" }) // runc's differ by version
				change(s)
			})
			ours, code := c.call("run", "x")
			cmd := exec.Command(runc, "--root", memoryDir(t), "run", "--bundle", c.bundle, "minke-oracle")
			out, err := os.Create(filepath.Join(c.bundle, "runc"))
			if err != nil {
				t.Fatal(err)
			}
			defer out.Close()
			cmd.Stdout, cmd.Stderr = out, out
			cmd.Run()
			theirs, _ := os.ReadFile(out.Name())
			if code != 9 || cmd.ProcessState.ExitCode() != 9 {
				t.Fatalf("exit codes %d and runc's %d, want 9\n%s\n%s", code, cmd.ProcessState.ExitCode(), ours, theirs)
			}
			a, b := normal(ours), normal(string(theirs))
			for _, l := range a {
				if !slices.Contains(b, l) {
					t.Errorf("not with runc: %s", l)
				}
			}
			for _, l := range b {
				if !slices.Contains(a, l) {
					t.Errorf("only with runc: %s", l)
				}
			}
		})
	}
}

var (
	pids  = regexp.MustCompile(`/proc/[0-9]+/|pipe:\[[0-9]+\]`)
	times = regexp.MustCompile(`[0-9]{2}:[0-9]{2}`)
)

// normal is output without what differs from run to run.
func normal(out string) []string {
	var lines []string
	for l := range strings.Lines(out) {
		lines = append(lines, strings.TrimSpace(times.ReplaceAllString(pids.ReplaceAllString(l, "*"), "*")))
	}
	return lines
}

func TestDescriptorsArePreserved(t *testing.T) {
	c := newCLI(t, "sh", "-c", "cat <&3; cat <&4; ls /proc/self/fd | wc -l")
	var files []*os.File
	for _, text := range []string{"three\n", "four\n"} {
		fd, err := unix.MemfdCreate("text", 0)
		if err != nil {
			t.Fatal(err)
		}
		f := os.NewFile(uintptr(fd), "text")
		defer f.Close()
		f.WriteString(text)
		f.Seek(0, 0)
		files = append(files, f)
	}
	cmd := exec.Command(binary, "--root", c.root, "run", "--preserve-fds", "2", "x")
	cmd.Dir, cmd.ExtraFiles = c.bundle, files
	out, err := cmd.CombinedOutput()
	if want := "three\nfour\n6\n"; err != nil || string(out) != want { // 0–4 and that of ls
		t.Errorf("run = %q, %v; want %q", out, err, want)
	}
}

func TestTimeNamespace(t *testing.T) {
	c := newCLI(t, "sh", "-c", "cut -d. -f1 /proc/uptime")
	c.edit(func(s *specs.Spec) {
		s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.TimeNamespace})
		s.Linux.TimeOffsets = map[string]specs.LinuxTimeOffset{"boottime": {Secs: 1_000_000_000}}
	})
	out, code := c.call("run", "x")
	if strings.Contains(out, "kernel is too old") {
		t.Skip("this kernel has no time namespaces for processes that share memory until they exec (6.1 does not)")
	}
	if code != 0 || len(strings.TrimSpace(out)) != 10 {
		t.Errorf("run = %q, %d; want an uptime of a billion seconds", out, code)
	}
}

func TestCommandLineControlsAContainer(t *testing.T) {
	c := newCLI(t, "sleep", "1000")
	if out, code := c.call("run", "--detach", "x"); code != 0 {
		t.Fatalf("run = %q, %d", out, code)
	}
	for _, s := range []struct {
		args string
		code int
		want string
	}{
		{"pause x", 0, ""},
		{"state x", 0, `"paused"`},
		{"exec x true", 1, "paused"},
		{"resume x", 0, ""},
		{"resume x", 1, "not paused"},
		{"ps --format json x", 0, "["},
		{"ps x", 0, "sleep 1000"},
		{"update --pids-limit 50 x", 0, ""},
		{"events --stats x", 0, `"pids":{"current":1}`},
		{"exec --user 1000:100 --cwd /tmp --env A=b x sh -c id;pwd;env", 0, "uid=1000(user) gid=100(users)"},
		{"list --format json", 0, `"running"`},
		{"checkpoint x", 1, "does not checkpoint"},
		{"--systemd-cgroup list", 1, "cgroupfs"},
		{"exec --detach --pid-file execpid x sleep 1", 0, ""},
	} {
		if out, code := c.call(strings.Fields(s.args)...); code != s.code || !strings.Contains(out, s.want) {
			t.Errorf("%s = %q, %d; want %q, %d", s.args, out, code, s.want, s.code)
		}
	}
	if pid, err := os.ReadFile(filepath.Join(c.bundle, "execpid")); err != nil || len(pid) == 0 {
		t.Errorf("pid file of an exec: %q, %v", pid, err)
	}
}
