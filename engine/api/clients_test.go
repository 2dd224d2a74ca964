package api_test

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/minke-os/minke/internal/testdaemon"
)

func TestMain(m *testing.M) { testdaemon.Main(m) }

// A foreign is a client that other people wrote, and an engine to use it on.
type foreign struct {
	t   *testing.T
	d   *testdaemon.Daemon
	dir string // to run in
}

// clientTimeout is far more than any of them needs.
const clientTimeout = 2 * time.Minute

// foreignClient starts an engine, unless the probe, which asks for the client,
// fails: then it skips.
func foreignClient(t *testing.T, install string, probe ...string) foreign {
	t.Helper()
	if out, err := exec.Command(probe[0], probe[1:]...).CombinedOutput(); err != nil {
		t.Skipf("%s is not here (%v); %s\n%s", probe[0], err, install, out)
	}
	return foreign{t, testdaemon.Start(t), "testdata/clients"}
}

// try runs a command against the engine and returns what it printed.
func (f foreign) try(args ...string) (string, error) {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(f.t.Context(), clientTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Dir = f.dir
	cmd.Env = append(os.Environ(), "DOCKER_HOST=unix://"+f.d.Socket, "DOCKER_CONFIG="+f.d.Dir, "COMPOSE_DOCKER_CLI_BUILD=0", "DOCKER_BUILDKIT=0")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	return out.String(), err
}

func (f foreign) run(args ...string) string {
	f.t.Helper()
	out, err := f.try(args...)
	if err != nil {
		f.t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

func TestDockerPyWorksUnchanged(t *testing.T) {
	python := "/usr/bin/python3"
	f := foreignClient(t, "apt-get install python3-docker", python, "-c", "import docker")
	f.run(python, "docker_py.py")
}

func TestDockerodeWorksUnchanged(t *testing.T) {
	f := foreignClient(t, "npm install dockerode and set NODE_PATH to its node_modules", "node", "-e", "require('dockerode')")
	f.run("node", "dockerode.js")
}

func TestComposeOfPythonWorksUnchanged(t *testing.T) {
	program := composeOf("1.")
	if program == "" {
		t.Skip("docker-compose 1 is not here; apt-get install docker-compose on Debian 12")
	}
	f := foreignClient(t, "", program, "version", "--short")
	f.dir = "testdata/clients/compose"
	compose, has := f.compose(program), f.has
	has("build", compose("up", "-d"), "Successfully tagged project_web:latest")
	has("ps", compose("ps"), "Up (healthy)")
	has("logs", compose("logs", "--no-color", "web"), "hello world")
	has("name of another service", compose("exec", "-T", "web", "wget", "-qO-", "http://database/f"), "data")
	has("port", compose("port", "web", "80"), "0.0.0.0:")
	compose("up", "-d", "--scale", "db=2")
	has("scaled", compose("ps", "-q", "db"), "\n")
	has("second up", compose("up", "-d", "--scale", "db=2"), "project_web_1 is up-to-date")
	compose("restart", "-t", "0", "web")
	has("recreated", compose("up", "-d", "-t", "0", "--force-recreate"), "Recreating project_web_1")
	has("run", compose("run", "--rm", "-T", "web", "echo", "one-off"), "one-off")
	compose("down", "-t", "0", "-v", "--rmi", "local")
	if out := f.run(program, "-p", "project", "ps", "-q"); out != "" {
		t.Errorf("left by down: %q", out)
	}
}

// compose is docker-compose of one project.
func (f foreign) compose(program string) func(args ...string) string {
	return func(args ...string) string {
		f.t.Helper()
		return f.run(append([]string{program, "-p", "project", "--ansi", "never"}, args...)...)
	}
}

func (f foreign) has(what, out, want string) {
	f.t.Helper()
	if !strings.Contains(out, want) {
		f.t.Errorf("%s: %q, want %q in it", what, out, want)
	}
}

// composeOf finds a docker-compose whose version begins so, on the PATH or
// among the plugins of the docker command; "" if there is none.
func composeOf(version string) string {
	dirs := append(filepath.SplitList(os.Getenv("PATH")), "/usr/libexec/docker/cli-plugins", "/usr/lib/docker/cli-plugins", "/usr/local/lib/docker/cli-plugins")
	for _, dir := range dirs {
		program := filepath.Join(dir, "docker-compose")
		out, err := exec.Command(program, "version", "--short").Output()
		if err == nil && strings.HasPrefix(strings.TrimPrefix(string(out), "v"), version) {
			return program
		}
	}
	return ""
}

func TestComposeOfGoWorksUnchanged(t *testing.T) {
	program := composeOf("2.")
	if program == "" {
		t.Skip("docker compose 2 is not here; it is the package docker-compose of Debian 13")
	}
	f := foreignClient(t, "", program, "version", "--short")
	f.dir = "testdata/clients/compose2"
	compose, has := f.compose(program), f.has
	has("up", compose("up", "-d"), "Container project-db-1  Healthy")
	has("ps", compose("ps"), "(healthy)")
	has("logs", compose("logs", "--no-color", "web"), "hello world")
	has("logs that are followed", compose("logs", "--no-color", "-f", "job"), "job done")
	has("name of another service", compose("exec", "-T", "web", "wget", "-qO-", "http://database/f"), "data")
	has("port", compose("port", "web", "80"), "0.0.0.0:")
	has("scale", compose("up", "-d", "--scale", "web=2"), "Container project-web-2  Started")
	has("second up", compose("up", "-d", "--scale", "web=2"), "Container project-web-2  Running")
	if out := compose("ps", "-a", "--services"); strings.Contains(out, "extra") {
		t.Errorf("a service of a profile that was not asked for is there: %q", out)
	}
	has("profile", compose("--profile", "more", "up", "-d", "extra"), "Container project-extra-1  Started")
	has("top", compose("top", "web"), "httpd")
	compose("cp", "compose.yml", "db:/tmp/")
	has("cp", compose("exec", "-T", "db", "ls", "/tmp"), "compose.yml")
	compose("pause", "db")
	has("paused", compose("ps", "db"), "(Paused)")
	compose("unpause", "db")
	compose("restart", "-t", "0", "web")
	compose("stop", "web")
	compose("start", "web")
	has("run", compose("run", "--rm", "-T", "web", "echo", "one-off"), "one-off")
	compose("--profile", "more", "down", "-t", "0", "-v")
	for _, list := range [][]string{{"container", "-aq"}, {"volume", "-q"}} {
		if out := f.run("docker", list[0], "ls", list[1], "--filter", "label=com.docker.compose.project=project"); out != "" {
			t.Errorf("left by down: %s %q", list[0], out)
		}
	}
}

// A machine may have more than one docker command, of different age.
func TestDockerCommandWorksUnchanged(t *testing.T) {
	tried := map[string]bool{}
	for _, dir := range filepath.SplitList(os.Getenv("PATH")) {
		program, err := filepath.EvalSymlinks(filepath.Join(dir, "docker"))
		if err != nil || tried[program] {
			continue
		}
		tried[program] = true
		t.Run(strings.ReplaceAll(program, "/", "-"), func(t *testing.T) { testDockerCommand(t, program) })
	}
	if len(tried) == 0 {
		t.Skip("no docker command is here; install one")
	}
}

func testDockerCommand(t *testing.T, program string) {
	f := foreignClient(t, "install the docker command", program, "--version")
	f.dir = t.TempDir()
	write(t, filepath.Join(f.dir, "Dockerfile"), "FROM busybox\nCOPY file /file\nRUN echo more >> /file\nCMD [\"cat\", \"/file\"]\n")
	write(t, filepath.Join(f.dir, "file"), "content\n")
	steps := []struct {
		command string // words, split at spaces
		want    string // in the output
		fails   bool
	}{
		{"version --format {{.Server.Os}}", "linux", false},
		{"run --rm --init busybox ps", "/sbin/docker-init -- ps", false},
		{"run --rm busybox nosuch", "executable file not found in $PATH", true},
		{"run --rm --network nosuch busybox true", "network nosuch not found", true},
		{"run --rm --platform linux/s390x busybox true", "Unable to find image", true},
		{"run --rm --gpus all busybox true", "could not select device driver", true},
		{"run -d --name web --hostname box --label a=b -p 80 -v data:/data busybox sleep 1000", "", false},
		{"run --rm --link web:alias busybox ping -c1 alias", "1 packets received", false},
		{"ps --filter publish=80/tcp --filter label=a=b --format {{.Names}}", "web", false},
		{"ps --filter publish=70-90 --format {{.Names}}", "web", false},
		{"port web 80", "0.0.0.0:", false},
		{"exec -e A=b -w /tmp web env", "A=b", false},
		{"exec web nosuch", "executable file not found in $PATH", true},
		{"exec -u nosuch web true", "no matching entries in passwd file", true},
		{"run -d --name limited --ulimit nofile=100:200 busybox sleep 1000", "", false},
		{"exec limited sh -c ulimit${IFS}-n", "100", false},
		{"pause limited", "limited", false},
		{"kill limited", "limited", false},
		{"inspect -f ip={{.NetworkSettings.IPAddress}}. limited", "ip=.", false},
		{"rm limited", "limited", false},
		{"cp file web:/tmp/", "", false},
		{"exec web cat /tmp/file", "content", false},
		{"diff web", "A /tmp/file", false},
		{"top web", "sleep 1000", false},
		{"stats --no-stream --format {{.Name}}={{.PIDs}} web", "web=1", false},
		{"update --memory 32m --memory-swap 64m web", "web", false},
		{"inspect -f {{.HostConfig.Memory}} web", "33554432", false},
		{"pause web", "web", false},
		{"ps", "(Paused)", false},
		{"unpause web", "web", false},
		{"commit -m note web made:1", "sha256:", false},
		{"history made:1", "note", false},
		{"build -q -t built .", "sha256:", false},
		{"run --rm built", "content\nmore\n", false},
		{"save -o saved.tar built", "", false},
		{"rmi built", "Untagged: built:latest", false},
		{"load -i saved.tar", "Loaded image: built:latest", false},
		{"network create --subnet 10.98.0.0/24 net", "", false},
		{"network connect --ip 10.98.0.9 --alias other net web", "", false},
		{"run --rm --network net busybox ping -c1 other", "10.98.0.9", false},
		{"network rm net", "active endpoints", true},
		{"network disconnect net web", "", false},
		{"network rm net", "net", false},
		{"system df", "RECLAIMABLE", false},
		{"events --since 1h --until 0s --filter event=die", "container die", false},
		{"stop -t 0 web", "web", false},
		{"run -d --rm --name once busybox sleep 1000", "", false},
		{"restart -t 0 once", "once", false},
		{"exec once echo still", "still", false},
		{"stop -t 0 once", "once", false},
		{"inspect once", "No such object", true},
		{"rm -v web", "web", false},
		{"volume rm data", "data", false},
		{"system prune -af --volumes", "Total reclaimed space", false},
	}
	for _, s := range steps {
		out, err := f.try(append([]string{program}, strings.Fields(s.command)...)...)
		if (err != nil) != s.fails || !strings.Contains(out, s.want) {
			t.Errorf("docker %s: %v, fails: %v wanted\n%s\nwant %q in it", s.command, err, s.fails, out, s.want)
		}
	}
}

func write(t *testing.T, name, data string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(data), 0o600); err != nil {
		t.Fatal(err)
	}
}

// What docker cp makes of a path depends on the names in the archive that the
// engine gives for it.
func TestDockerCpPutsFilesWhereTheyBelong(t *testing.T) {
	f := foreignClient(t, "get the docker CLI", "docker", "--version")
	f.dir = t.TempDir()
	f.run("docker", "run", "-d", "--name", "source", "busybox", "sh", "-c", "mkdir -p /d/sub && echo 1 >/d/f && echo 2 >/d/sub/g && ln -s d /link && exec sleep 1000")
	tests := []struct{ from, to, want string }{
		{"/d/.", "new1", "new1 new1/f new1/sub new1/sub/g"},
		{"/d/.", "there", "there there/f there/sub there/sub/g"},
		{"/d", "new2", "new2 new2/f new2/sub new2/sub/g"},
		{"/d", "there", "there there/d there/d/f there/d/sub there/d/sub/g"},
		{"/d/", "there", "there there/d there/d/f there/d/sub there/d/sub/g"},
		{"/d/f", "new3", "new3"},
		{"/d/f", "there", "there there/f"},
		{"/link/.", "new4", "new4 new4/f new4/sub new4/sub/g"},
		{"/link/", "there", "there there/link there/link/f there/link/sub there/link/sub/g"},
		{"d/sub/..", "new5", "new5 new5/f new5/sub new5/sub/g"},
	}
	for _, tt := range tests {
		f.run("sh", "-c", "rm -rf there && mkdir there")
		f.run("docker", "cp", "-q", "source:"+tt.from, tt.to)
		if got := f.run("sh", "-c", "find "+tt.to+" | LC_ALL=C sort | xargs echo -n"); got != tt.want {
			t.Errorf("docker cp c:%s %s makes %q, want %q", tt.from, tt.to, got, tt.want)
		}
	}
	f.run("docker", "cp", "-q", "source:/", "all")
	if got := f.run("sh", "-c", "cat all/d/sub/g"); got != "2\n" {
		t.Errorf("docker cp c:/ all: all/d/sub/g is %q", got)
	}
}
