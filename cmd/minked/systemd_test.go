package main

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/client"

	"github.com/minke-os/minke/internal/testdaemon"
)

// told waits for a state among those that the service tells.
func told(t *testing.T, states <-chan string, want string) string {
	t.Helper()
	limit := time.After(20 * time.Second)
	for {
		select {
		case s := <-states:
			if strings.Contains(s, want) {
				return s
			}
		case <-limit:
			t.Fatalf("the service did not tell %s", want)
		}
	}
}

// asSystemd starts the daemon as a service: with a socket, a place to tell
// states to, a watchdog.
func asSystemd(t *testing.T, l *net.TCPListener, notify string) func(*exec.Cmd) {
	f, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return func(c *exec.Cmd) {
		// LISTEN_PID is only known by the process itself.
		c.Args = append([]string{"sh", "-c", `LISTEN_PID=$$ exec "$@"`, "sh", c.Path}, c.Args[1:]...)
		c.Path = "/bin/sh"
		c.ExtraFiles = []*os.File{f}
		c.Env = append(os.Environ(), "LISTEN_FDS=1", "LISTEN_FDNAMES=api", "NOTIFY_SOCKET="+notify, "WATCHDOG_USEC=200000")
	}
}

func TestServiceOfSystemd(t *testing.T) {
	t.Parallel()
	d := testdaemon.Start(t)
	d.Stop()
	dir := t.TempDir()
	notify, file := filepath.Join(dir, "notify"), filepath.Join(dir, "minked.json")
	configure := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	configure(`{"labels": ["site=one"]}`)
	states := logSocket(t, notify)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	d.Prepare = asSystemd(t, l.(*net.TCPListener), notify)
	d.Up("-H", "fd://api", "--config-file", file)
	told(t, states, "READY=1")
	told(t, states, "WATCHDOG=1")

	// The socket is of this network namespace, whatever the daemon's is.
	c, err := client.New(client.WithHost("tcp://" + l.Addr().String()))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Ping(t.Context(), client.PingOptions{}); err != nil {
		t.Fatalf("the socket of the service manager does not answer: %v", err)
	}

	stream := c.Events(t.Context(), client.EventsListOptions{Filters: client.Filters{}.Add("type", "daemon")})
	for info, err := c.Info(t.Context(), client.InfoOptions{}); info.Info.NEventsListener == 0; info, err = c.Info(t.Context(), client.InfoOptions{}) {
		if err != nil {
			t.Fatal(err)
		}
	}
	configure(`{"labels": ["site=two"], "debug": true, "registry-mirrors": ["https://mirror.example"], "log-driver": "local"}`)
	syscall.Kill(d.Pid(), syscall.SIGHUP)
	if s := told(t, states, "RELOADING=1"); !strings.Contains(s, "MONOTONIC_USEC=") {
		t.Errorf("told %q, want the time, too", s)
	}
	told(t, states, "READY=1")
	select {
	case m := <-stream.Messages:
		if m.Action != events.ActionReload || m.Actor.Attributes["labels"] != `["site=two"]` || m.Actor.Attributes["debug"] != "true" {
			t.Errorf("event = %+v, want a reload", m)
		}
	case err := <-stream.Err:
		t.Fatal(err)
	case <-time.After(20 * time.Second):
		t.Error("no event of the reload")
	}
	info, err := c.Info(t.Context(), client.InfoOptions{})
	if err != nil || strings.Join(info.Info.Labels, " ") != "site=two" || !info.Info.Debug || len(info.Info.RegistryConfig.Mirrors) != 1 {
		t.Errorf("info after the reload = %v %v %v, %v", info.Info.Labels, info.Info.Debug, info.Info.RegistryConfig, err)
	}
	if log := d.Log(); !strings.Contains(log, "takes a restart") || !strings.Contains(log, "directives=log-driver") {
		t.Errorf("log does not say that the log driver takes a restart:\n%s", log)
	}
	if out, err := d.Command(t.Context(), "docker", "info", "-f", "{{.Debug}}"); err == nil && strings.TrimSpace(out) != "true" {
		t.Errorf("docker info = %q", out)
	}

	configure(`{"labels": ["site"]}`)
	syscall.Kill(d.Pid(), syscall.SIGHUP)
	told(t, states, "RELOADING=1")
	told(t, states, "READY=1")
	if info, err := c.Info(t.Context(), client.InfoOptions{}); err != nil || strings.Join(info.Info.Labels, " ") != "site=two" {
		t.Errorf("labels after a broken file = %v, %v; want the old ones", info.Info.Labels, err)
	}
	d.Stop()
	told(t, states, "STOPPING=1")
	d.Prepare = nil
	d.Up()
}

func TestConfigurationFile(t *testing.T) {
	tests := []struct {
		name, file string
		args       []string
		want       string // "" is good
	}{
		{"good", `{"debug": true, "log-driver": "local", "log-opts": {"max-size": "1m"}, "labels": ["a=b"], "live-restore": true}`, nil, ""},
		{"empty", "", nil, ""},
		{"unknown-name", `{"debug": true, "debog": true, "a": 1}`, nil, "the following directives don't match any configuration option: a, debog"},
		{"said-twice", `{"hosts": ["unix:///a"], "debug": true}`, []string{"-H", "unix:///b"}, "specified both as a flag and in the configuration file: hosts: (from flag: [unix:///b], from file: [\"unix:///a\"])"},
		{"not-json", `{"debug":`, nil, "unable to configure minked with file"},
		{"wrong-type", `{"debug": "yes"}`, nil, "debug"},
		{"bad-log-option", `{"log-opts": {"max-sise": "1m"}}`, nil, "unknown log opt 'max-sise'"},
		{"bad-log-driver", `{"log-driver": "gelf"}`, nil, "no log driver named 'gelf'"},
		{"bad-label", `{"labels": ["a"]}`, nil, "bad attribute format: a"},
		{"bad-level", `{"log-level": "loud"}`, nil, "invalid log level"},
		{"containers-end", `{"live-restore": false}`, nil, "cannot be switched off"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "minked.json")
			if err := os.WriteFile(file, []byte(tt.file), 0o600); err != nil {
				t.Fatal(err)
			}
			out, err := minked(t, append(tt.args, "--config-file", file, "--validate")...)
			if tt.want == "" && (err != nil || !strings.Contains(out, "configuration OK")) || tt.want != "" && (err == nil || !strings.Contains(out, tt.want)) {
				t.Errorf("minked --validate = %q, %v; want %q", out, err, tt.want)
			}
		})
	}
}

func TestDebugEndpointsAreThereWhileDebuggingIsOn(t *testing.T) {
	d := testdaemon.Start(t)
	get := func(path string) string {
		t.Helper()
		c := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialUnix(d.Socket)(ctx, "", "")
		}, DisableKeepAlives: true}}
		resp, err := c.Get("http://minked" + path)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		out, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return string(out)
	}
	if out := get("/debug/vars"); !strings.Contains(out, "page not found") {
		t.Errorf("vars without --debug = %.100q, want nothing there", out)
	}
	d.Stop()
	d.Up("--debug")
	if out := get("/debug/pprof/goroutine"); !strings.Contains(out, "goroutine ") {
		t.Errorf("stacks = %.100q", out)
	}
	var vars struct{ Goroutines int }
	if err := json.Unmarshal([]byte(get("/debug/vars")), &vars); err != nil || vars.Goroutines < 2 {
		t.Errorf("vars = %+v, %v", vars, err)
	}
}
