package cli

import (
	"bytes"
	"context"
	"flag"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/minke-os/minke/cli/connect"
	"github.com/minke-os/minke/cli/term"
)

var update = flag.Bool("update", false, "write the golden files anew")

// engine answers every GET with the file testdata/<last parts of the path>.json.
func engine(t *testing.T) string {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Api-Version", "1.41")
		parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
		if parts[len(parts)-1] == "_ping" {
			return
		}
		if strings.HasPrefix(parts[0], "v") {
			parts = parts[1:]
		}
		data, err := os.ReadFile(filepath.Join("testdata", strings.Join(parts, "_")+".json"))
		if err != nil {
			w.WriteHeader(http.StatusNotFound)
			io.WriteString(w, `{"message":"no such thing: `+r.URL.Path+`"}`)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		w.Write(data)
	}))
	t.Cleanup(srv.Close)
	return "tcp://" + strings.TrimPrefix(srv.URL, "http://")
}

// run runs the program as program and returns what it prints.
func run(t *testing.T, env map[string]string, program string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	s := &connect.Session{
		Streams: term.Streams{In: strings.NewReader(""), Out: &out, Err: &errs},
		Program: program, Getenv: func(k string) string { return env[k] }, Exit: &connect.Exit{},
	}
	code = Run(context.Background(), s, args, "1.2.3")
	return code, out.String(), errs.String()
}

// Each listing is printed just as the documentation of ide49 shows it.
func TestListings(t *testing.T) {
	env := map[string]string{"DOCKER_HOST": engine(t), "HOME": "/home/root"}
	tests := []struct {
		golden string
		args   []string
	}{
		{"ps-size.txt", []string{"ps", "--format", `table {{.Names}}\t{{.Size}}\t{{.Image}}`}},
		{"ps-ports.txt", []string{"ps", "--format", `table {{.Names}}\t{{.Ports}}`}},
		{"history.txt", []string{"history", "5a7c64cb8d95", "--format", `table {{.Size}}\t{{.CreatedBy}}`}},
		{"help.txt", []string{"--help"}},
		{"ps-template.txt", []string{"ps", "--format", `{{.ID}} {{upper .State}} {{json .Names}}`}},
		{"ps-quiet.txt", []string{"ps", "-q"}},
	}
	for _, tt := range tests {
		t.Run(tt.golden, func(t *testing.T) {
			code, got, stderr := run(t, env, "balena-engine", tt.args...)
			if code != 0 || stderr != "" {
				t.Fatalf("exit %d: %s", code, stderr)
			}
			path := filepath.Join("testdata", tt.golden)
			if *update {
				if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("balena-engine %q prints\n%s\nwant\n%s", tt.args, got, want)
			}
		})
	}
}

func TestErrorsSayWhatToDo(t *testing.T) {
	env := map[string]string{"DOCKER_HOST": engine(t)}
	tests := []struct {
		name, program string
		args          []string
		want          string
	}{
		{"no-engine", "minke", []string{"-H", "unix:///nowhere/engine.sock", "ps"},
			"minke: cannot reach the engine at unix:///nowhere/engine.sock. Is it running? Start it with \"minked\" (as root), or name another one with -H or MINKE_HOST\n"},
		{"no-supervisor", "minke", []string{"--supervisor", "127.0.0.1:1", "status"},
			"minke: cannot reach the supervisor at http://127.0.0.1:1. Is it running? Start it with \"minked\" (as root), or name a device with --supervisor or MINKE_SUPERVISOR\n"},
		{"unknown-command", "minke", []string{"pss"}, "minke: there is no command \"pss\"; did you mean \"ps\"? See \"minke --help\"\n"},
		{"unknown-command-of-docker", "docker", []string{"pss"}, "docker: 'pss' is not a docker command.\nSee 'docker --help'\n"},
		{"bad-template", "minke", []string{"ps", "--format", "{{.Nosuch"}, "minke: --format: 1: unclosed action\n"},
		{"bad-filter", "minke", []string{"ps", "-f", "x"}, "minke: --filter \"x\": want key=value, such as status=exited\n"},
		{"nothing-to-run", "minke", []string{"up", t.TempDir()}, "no docker-compose.yml and no Dockerfile here; write one, or name the project's directory or file (-f)\n"},
		{"no-such-object", "minke", []string{"inspect", "nosuch"}, "[]\nminke: no such object: nosuch\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			code, stdout, stderr := run(t, env, tt.program, tt.args...)
			if got := stdout + stderr; code == 0 || !strings.HasSuffix(got, tt.want) {
				t.Errorf("%s %q = %d, %q; want %q", tt.program, tt.args, code, got, tt.want)
			}
		})
	}
}

func TestDockersGlobalOptionsAreTaken(t *testing.T) {
	host := engine(t)
	code, got, stderr := run(t, nil, "docker", "--config", "/x", "-c", "default", "-D", "-l", "warn", "-H", host, "ps", "-q")
	if code != 0 || !strings.HasPrefix(got, "000000000001\n") {
		t.Errorf("docker with all options = %d %q %s", code, got, stderr)
	}
	if _, got, _ := run(t, nil, "balena-engine", "--version"); got != "Balena-engine version 1.2.3, build minke\n" {
		t.Errorf("--version prints %q", got)
	}
}

func TestHelpHasALineForEveryCommand(t *testing.T) {
	_, help, _ := run(t, nil, "minke", "--help")
	s := &connect.Session{Program: "minke", Getenv: func(string) string { return "" }, Exit: &connect.Exit{}}
	for _, c := range New(s, "").Commands() {
		if c.Hidden || c.Name() == "completion" {
			continue
		}
		if !strings.Contains(help, "\n  "+c.Name()+" ") {
			t.Errorf("minke --help does not list %s", c.Name())
		}
		if c.Short == "" || c.Example == "" && !c.HasSubCommands() {
			t.Errorf("%s has no description or no example", c.Name())
		}
	}
}
