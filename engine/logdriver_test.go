package engine

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/container"

	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/runtime"
)

func TestLogOptionsThatMeanNothingAreRefused(t *testing.T) {
	tests := []struct {
		driver, opts, want string // opts as k=v,k=v; want "" is good
	}{
		{"json-file", "", ""},
		{"json-file", "max-size=10m,max-file=3,compress=true,labels=a,env=b,tag={{.Name}}/{{ .ID }},mode=non-blocking,max-buffer-size=4m", ""},
		{"json-file", "max-size=-1", ""},
		{"json-file", "max-size=much", "invalid value for 'max-size'"},
		{"json-file", "max-file=0", "invalid value for 'max-file'"},
		{"json-file", "compress=perhaps", "invalid value for 'compress'"},
		{"json-file", "max-size=1m,compress=true", "compress cannot be true"},
		{"json-file", "max-sise=1m", "unknown log opt 'max-sise' for json-file log driver"},
		{"json-file", "labels-regex=(", "invalid value for 'labels-regex'"},
		{"json-file", "mode=sometimes", "logging mode not supported: sometimes"},
		{"json-file", "max-buffer-size=1m", "only supported with 'mode=non-blocking'"},
		{"json-file", "mode=non-blocking,max-buffer-size=x", "error parsing option max-buffer-size"},
		{"json-file", "tag={{.Nme}}", "{{.Nme}} is not known"},
		{"json-file", "tag={{if .Name}}x", "of templates only fields"},
		{"local", "max-size=1m,max-file=2,compress=false", ""},
		{"local", "labels=a", "unknown log opt 'labels' for local"},
		{"none", "whatever=1", ""},
		{"journald", "tag=x,labels=a", ""},
		{"journald", "max-size=1m", "unknown log opt"},
		{"syslog", "syslog-address=udp://127.0.0.1:514,syslog-facility=local3,syslog-format=rfc5424", ""},
		{"syslog", "syslog-address=127.0.0.1:514", "invalid syslog-address"},
		{"syslog", "syslog-address=tcp+tls://127.0.0.1:514", "relay"},
		{"syslog", "syslog-facility=kernel", "invalid syslog facility"},
		{"syslog", "syslog-facility=24", "invalid syslog facility"},
		{"syslog", "syslog-format=xml", "Invalid syslog format"},
		{"fluentd", "", "no log driver named 'fluentd' is registered"},
	}
	for _, tt := range tests {
		t.Run(tt.driver+"-"+tt.opts, func(t *testing.T) {
			err := CheckLog(container.LogConfig{Type: tt.driver, Config: options(tt.opts)})
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want) || !errdef.Is(err, errdef.Invalid)) {
				t.Errorf("CheckLog = %v, want %q", err, tt.want)
			}
		})
	}
}

func options(s string) map[string]string {
	out := map[string]string{}
	for _, kv := range strings.FieldsFunc(s, func(c rune) bool { return c == ',' }) {
		k, v, _ := strings.Cut(kv, "=")
		out[k] = v
	}
	return out
}

func TestDaemonsLogOptionsAreForItsOwnDriver(t *testing.T) {
	e := bare()
	e.cfg.LogDriver, e.cfg.LogOpts = "local", map[string]string{"max-size": "1m"}
	tests := []struct {
		name, driver, opts, want string
	}{
		{"nothing-said", "", "", "local map[max-size:1m]"},
		{"the-same-driver", "local", "max-file=2", "local map[max-file:2 max-size:1m]"},
		{"the-container-wins", "", "max-size=2m", "local map[max-size:2m]"},
		{"another-driver", "json-file", "", "json-file map[]"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := container.LogConfig{Type: tt.driver, Config: options(tt.opts)}
			if err := e.settleLog(&c); err != nil {
				t.Fatal(err)
			}
			if got := fmt.Sprint(c.Type, " ", c.Config); got != tt.want {
				t.Errorf("log = %s, want %s", got, tt.want)
			}
		})
	}
}

func TestWhatTheMonitorIsToldToLog(t *testing.T) {
	e := bare()
	e.cfg.DataRoot = t.TempDir()
	target := func(driver, opts string) runtime.Log {
		t.Helper()
		r := record{
			ID: strings.Repeat("a", 64), Name: "web", Path: "sh", Args: []string{"-c"}, Image: "sha256:bbbbbbbbbbbbbbbb",
			Config: &container.Config{Image: "busybox", Labels: map[string]string{"app": "x", "other": "y"}, Env: []string{"APP_A=1", "B=2\nEVIL=1"}},
			Host:   &container.HostConfig{LogConfig: container.LogConfig{Type: driver, Config: options(opts)}},
		}
		l, err := e.logTarget(context.Background(), &r)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	if l := target("json-file", "labels=app|none,env-regex=^APP,tag={{.Name}}"); l.Attrs != `{"APP_A":"1","tag":"web"}` {
		t.Errorf("attributes = %s", l.Attrs)
	}
	if l := target("json-file", ""); l.MaxSize != 10<<20 || l.MaxFiles != 3 || l.Attrs != "" || !strings.HasSuffix(l.Path, "-json.log") {
		t.Errorf("json-file = %+v, want three files of 10 MiB", l)
	}
	if l := target("json-file", "max-size=5k"); l.MaxSize != 5<<10 || l.MaxFiles != 1 {
		t.Errorf("json-file = %+v, want one file of 5 KiB", l)
	}
	if l := target("local", "mode=non-blocking"); l.MaxSize != 20<<20 || l.MaxFiles != 5 || !l.Compress || l.Buffer != 1<<20 {
		t.Errorf("local = %+v, want five compressed files of 20 MiB and a buffer", l)
	}
	if l := target("none", ""); l.Path != "" || l.Forward != nil {
		t.Errorf("none = %+v", l)
	}
	l := target("journald", "labels=app,env=B")
	want := `["APP=x" "B=2 EVIL=1" "CONTAINER_ID=aaaaaaaaaaaa"`
	if got := fmt.Sprintf("%q", l.Forward.Journal); !strings.HasPrefix(got, want) || l.Path != "" {
		t.Errorf("journald's fields = %s, want %s first, and no field made by a newline", got, want)
	}
	l = target("syslog", "syslog-address=udp://127.0.0.1,tag=t")
	if f := l.Forward; f.Network != "udp" || f.Address != "127.0.0.1:514" || f.Syslog.Tag != "t" || f.Syslog.Facility != 3 || l.Path == "" {
		t.Errorf("syslog = %+v %+v, want a copy in a file, too", f, f.Syslog)
	}
	if l = target("syslog", "cache-disabled=true"); l.Path != "" || l.Forward.Address != "/dev/log" {
		t.Errorf("syslog without a copy = %+v", l)
	}
}

func FuzzLogOptions(f *testing.F) {
	f.Add("json-file", "max-size", "10m")
	f.Add("syslog", "syslog-address", "udp://[::1]:514")
	f.Add("journald", "tag", "{{.Name}}{{")
	f.Fuzz(func(t *testing.T, driver, key, value string) {
		e := bare()
		e.cfg.DataRoot = t.TempDir()
		c := container.LogConfig{Type: driver, Config: map[string]string{key: value}}
		if CheckLog(c) != nil {
			return
		}
		r := record{ID: "a", Config: &container.Config{Labels: map[string]string{value: "x"}}, Host: &container.HostConfig{LogConfig: c}}
		if driver == "syslog" {
			return // would look names up
		}
		if _, err := e.logTarget(t.Context(), &r); err != nil {
			t.Errorf("CheckLog takes %+v, but the start fails: %v", c, err)
		}
	})
}
