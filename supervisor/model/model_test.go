package model

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write the golden files anew")

func bench() Device {
	return Device{
		UUID: "abcdef0123456789", Name: "damp-haze", Type: "raspberrypi4-64", Arch: "aarch64", OSVersion: "balenaOS 6.5.1",
		Hostname: "abcdef0", LockRoot: "/tmp/balena-supervisor/services", EngineSocket: "/run/minke/engine.sock",
		CloudKey: "cloud-key", CloudURL: "https://api.example", HasModules: true, HasFirmware: true,
		ServiceKey: func(AppID, string) string { return "service-key" },
	}
}

// one makes an application with one service of a composition.
func one(t *testing.T, composition string) (Spec, error) {
	t.Helper()
	body := fmt.Sprintf(`{"dev":{"apps":{"u1":{"id":5,"name":"app","releases":{"c1":{"id":7,"services":{"web":{"id":9,"image_id":11,"image":"web:1",
		"composition":%s}},"networks":{"inner":{"internal":true}}}}}}}}`, composition)
	target, err := ParseV3([]byte(body), "dev")
	if err != nil {
		t.Fatalf("ParseV3(%s): %v", composition, err)
	}
	spec, err := Compose(target.Apps[0], bench())
	if err != nil {
		return Spec{}, err
	}
	return spec.Services[0], nil
}

// Each file of testdata is a target state; beside it is what the engine is
// asked for.
func TestTargetsBecomeEngineObjects(t *testing.T) {
	files, err := filepath.Glob("testdata/*.target.json")
	if err != nil || len(files) == 0 {
		t.Fatalf("no targets: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".target.json"), func(t *testing.T) {
			body, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			target, err := ParseLocal(body)
			if err != nil {
				t.Fatal(err)
			}
			var got strings.Builder
			for _, app := range target.Apps {
				spec, err := Compose(app, bench())
				if err != nil {
					t.Fatal(err)
				}
				raw, err := json.MarshalIndent(spec, "", "  ")
				if err != nil {
					t.Fatal(err)
				}
				var v any
				json.Unmarshal(raw, &v)
				raw, _ = json.MarshalIndent(prune(v), "", "  ")
				got.Write(append(raw, '\n'))
			}
			golden := strings.Replace(file, ".target.", ".engine.", 1)
			if *update {
				if err := os.WriteFile(golden, []byte(got.String()), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if got.String() != string(want) {
				t.Errorf("%s differs; go test -update and read the difference. got:\n%s", golden, got.String())
			}
		})
	}
}

func TestComposeReadsFields(t *testing.T) {
	tests := []struct {
		name, composition string
		got               func(Spec) any
		want              any
	}{
		{"command-string-is-split", `{"command":"sh -c \"echo $X\" *"}`, func(s Spec) any { return s.Config.Cmd }, []string{"sh", "-c", "echo $X", "*"}},
		{"command-null-is-the-image's", `{"command":null}`, func(s Spec) any { return s.Config.Cmd == nil }, true},
		{"restart-defaults-to-always", `{}`, func(s Spec) any { return string(s.Host.RestartPolicy.Name) }, "always"},
		{"restart-invalid-is-always", `{"restart":"on-failure:3"}`, func(s Spec) any { return string(s.Host.RestartPolicy.Name) }, "always"},
		{"restart-no", `{"restart":"no"}`, func(s Spec) any { return string(s.Host.RestartPolicy.Name) }, "no"},
		{"tty-defaults-to-true", `{}`, func(s Spec) any { return s.Config.Tty }, true},
		{"tty-false", `{"tty":false}`, func(s Spec) any { return s.Config.Tty }, false},
		{"working-dir-loses-a-slash", `{"working_dir":"/a/"}`, func(s Spec) any { return s.Config.WorkingDir }, "/a"},
		{"camel-case-keys", `{"stopGracePeriod":"1m30s"}`, func(s Spec) any { return *s.Config.StopTimeout }, 90},
		{"stop-timeout-defaults-to-10", `{}`, func(s Spec) any { return *s.Config.StopTimeout }, 10},
		{"memory", `{"mem_limit":"64m"}`, func(s Spec) any { return s.Host.Memory }, int64(64 << 20)},
		{"memory-nonsense-is-the-default", `{"mem_limit":"1.5g","shm_size":"x"}`, func(s Spec) any { return []int64{s.Host.Memory, s.Host.ShmSize} }, []int64{0, 64 << 20}},
		{"cpus", `{"cpus":"0.5"}`, func(s Spec) any { return s.Host.NanoCPUs }, int64(5e8)},
		{"selinux-labels-are-dropped", `{"security_opt":["label=disable","no-new-privileges"]}`, func(s Spec) any { return s.Host.SecurityOpt }, []string{"no-new-privileges"}},
		{"extra-hosts", `{"extra_hosts":["a=::1"]}`, func(s Spec) any { return s.Host.ExtraHosts }, []string{"a:::1"}},
		{"healthcheck-string-and-both-spellings", `{"healthcheck":{"test":"true","start_period":"2s"}}`,
			func(s Spec) any { return []any{s.Config.Healthcheck.Test, s.Config.Healthcheck.StartPeriod} }, []any{[]string{"CMD-SHELL", "true"}, 2 * time.Second}},
		{"healthcheck-camel", `{"healthcheck":{"startPeriod":"2s"}}`, func(s Spec) any { return s.Config.Healthcheck.StartPeriod }, 2 * time.Second},
		{"healthcheck-disable", `{"healthcheck":{"disable":true}}`, func(s Spec) any { return s.Config.Healthcheck.Test }, []string{"NONE"}},
		{"bind-mounts-are-dropped-with-a-warning", `{"volumes":["/etc:/x"]}`, func(s Spec) any { return len(s.Warnings) }, 1},
		{"unknown-keys-warn", `{"expose":["1"]}`, func(s Spec) any { return len(s.Warnings) }, 1},
		{"anonymous-volume", `{"volumes":["/x"]}`, func(s Spec) any { return s.Config.Volumes }, map[string]struct{}{"/x": {}}},
		{"volume-gets-the-app's-name", `{"volumes":["data:/x:ro"]}`, func(s Spec) any { return s.Volumes }, []string{"5_data"}},
		{"tmpfs-with-options", `{"tmpfs":"/x:size=64m"}`, func(s Spec) any { return s.Host.Tmpfs }, map[string]string{"/x": "size=64m"}},
		{"default-network", `{}`, func(s Spec) any { return s.Networks }, []string{"u1_default"}},
		{"first-listed-network-is-the-mode", `{"networks":["inner","default"]}`, func(s Spec) any { return string(s.Host.NetworkMode) }, "u1_inner"},
		{"network-aliases-have-the-service", `{"networks":{"inner":{"aliases":["z"]}}}`, func(s Spec) any { return s.Endpoints[0].Settings.Aliases }, []string{"web", "z"}},
		{"host-mode-takes-the-device's-name", `{"network_mode":"host"}`, func(s Spec) any { return s.Config.Hostname }, "abcdef0"},
		{"api-in-host-mode-is-loopback", `{"network_mode":"host","labels":{"io.balena.features.supervisor-api":"1"}}`,
			func(s Spec) any { return env(s)["BALENA_SUPERVISOR_ADDRESS"] }, "http://127.0.0.1:48484"},
		{"api-on-its-own-network", `{"labels":{"io.balena.features.supervisor-api":"true"}}`,
			func(s Spec) any { return env(s)["BALENA_SUPERVISOR_ADDRESS"] }, "http://10.114.104.1:48484"},
		{"user's-environment-wins", `{"environment":{"USER":"me"}}`, func(s Spec) any { return env(s)["USER"] }, "me"},
		{"device-name-is-forced", `{"environment":{"BALENA_DEVICE_NAME_AT_INIT":"me"}}`, func(s Spec) any { return env(s)["BALENA_DEVICE_NAME_AT_INIT"] }, "damp-haze"},
		{"resin-labels-are-renamed", `{"labels":{"io.resin.features.resin-api":"1"}}`, func(s Spec) any { return s.Config.Labels["io.balena.features.balena-api"] }, "1"},
		{"balena-label-beats-resin's", `{"labels":{"io.resin.features.dbus":"1","io.balena.features.dbus":"0"}}`, func(s Spec) any { return s.Config.Labels["io.balena.features.dbus"] }, "0"},
		{"depends-on-list", `{"depends_on":[]}`, func(s Spec) any { return len(s.DependsOn) }, 0},
		{"strategy-unknown-is-default", `{"labels":{"io.balena.update.strategy":"x"}}`, func(s Spec) any { return s.Strategy }, DownloadThenKill},
		{"hand-over-timeout", `{"labels":{"io.balena.update.strategy":"hand-over","io.balena.update.handover-timeout":"1500"}}`, func(s Spec) any { return s.HandOver }, 1500 * time.Millisecond},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s, err := one(t, tt.composition)
			if err != nil {
				t.Fatalf("Compose(%s): %v", tt.composition, err)
			}
			if got := tt.got(s); !reflect.DeepEqual(got, tt.want) {
				t.Errorf("Compose(%s): got %#v, want %#v", tt.composition, got, tt.want)
			}
		})
	}
}

func env(s Spec) map[string]string {
	out := map[string]string{}
	for _, kv := range s.Config.Env {
		k, v, _ := strings.Cut(kv, "=")
		out[k] = v
	}
	return out
}

func TestComposeRefuses(t *testing.T) {
	for composition, want := range map[string]string{
		`{"ports":["80-81:90"]}`:                             `service web: ports: "80-81:90": the two ranges differ in length`,
		`{"ports":["x"]}`:                                    `service web: ports: cannot read x; write it as "8080:80" or "127.0.0.1:53:53/udp"`,
		`{"network_mode":"container:x"}`:                     `service web: network_mode: "container:x" names a container that may be replaced at any time; use service:<name>`,
		`{"networks":["nosuch"]}`:                            `service web uses network "nosuch", which is not declared under networks`,
		`{"depends_on":["nosuch"]}`:                          `service web depends on "nosuch", which is not a service of this application`,
		`{"depends_on":["web"]}`:                             `service web depends on itself through depends_on`,
		`{"depends_on":{"web":{"condition":"x"}}}`:           `service web: depends_on.web: unknown condition "x"`,
		`{"stop_grace_period":"soon"}`:                       `service web: stop_grace_period: want a duration such as 30s, not "soon"`,
		`{"dns":["x"]}`:                                      `service web: dns: ParseAddr("x"): unable to parse IP`,
		`{"healthcheck":{"test":"true","interval":"often"}}`: `service web: healthcheck.interval: want a duration such as 30s, not "often"`,
	} {
		if _, err := one(t, composition); err == nil || err.Error() != want {
			t.Errorf("Compose(%s) = %v, want %s", composition, err, want)
		}
	}
}

func TestPorts(t *testing.T) {
	for in, want := range map[string]string{
		`["8080"]`:                  "8080/tcp=:8080",
		`[8080]`:                    "8080/tcp=:8080",
		`["80:8080/udp"]`:           "8080/udp=:80",
		`["127.0.0.1:80:8080"]`:     "8080/tcp=127.0.0.1:80",
		`["[::1]:80:8080"]`:         "8080/tcp=::1:80",
		`["90-91:80-81"]`:           "80/tcp=:90 81/tcp=:91",
		`["80-81"]`:                 "80/tcp=:80 81/tcp=:81",
		`["0.0.0.0:80:80","81:80"]`: "80/tcp=0.0.0.0:80 80/tcp=:81",
	} {
		s, err := one(t, `{"ports":`+in+`}`)
		if err != nil {
			t.Errorf("ports %s: %v", in, err)
			continue
		}
		var got []string
		for p, list := range s.Host.PortBindings {
			for _, b := range list {
				ip := ""
				if b.HostIP.IsValid() {
					ip = b.HostIP.String()
				}
				got = append(got, fmt.Sprintf("%s=%s:%s", p, ip, b.HostPort))
			}
		}
		slices.Sort(got)
		if strings.Join(got, " ") != want {
			t.Errorf("ports %s = %q, want %q", in, got, want)
		}
	}
}

func TestFingerprintsNameWhatChanged(t *testing.T) {
	base := `{"command":"a","ports":["80:80"],"volumes":["/x"]}`
	for other, want := range map[string][]string{
		base: nil,
		`{"command":"b","ports":["80:80"],"volumes":["/x"]}`:                            {"Cmd"},
		`{"command":"a","ports":["81:80"],"volumes":["/x"]}`:                            {"PortBindings"},
		`{"command":"a","ports":["80:80"],"volumes":["/y"]}`:                            {"Volumes"},
		`{"command":"a","ports":["80:80"],"volumes":["/x"],"environment":{"A":"b"}}`:    {"Env"},
		`{"command":"a","ports":["80:80"],"volumes":["/x"],"networks":["inner"]}`:       {"NetworkMode", "Networks"},
		`{"command":"a","ports":["80:80"],"volumes":["/x"],"cap_add":["SYS_ADMIN"]}`:    {"CapAdd"},
		`{"ports":["80:80"],"command":["a"],"volumes":["/x"],"cap_add":[],"labels":{}}`: nil,
	} {
		a, err1 := one(t, base)
		b, err2 := one(t, other)
		if err1 != nil || err2 != nil {
			t.Fatal(err1, err2)
		}
		if got := a.Print.Changed(b.Print); !slices.Equal(got, want) {
			t.Errorf("from %s to %s: Changed = %v, want %v", base, other, got, want)
		}
	}
}

func TestParseSaysWhichFieldIsWrong(t *testing.T) {
	app := func(s string) string { return `{"local":{"apps":{"1":` + s + `}}}` }
	tests := []struct{ name, body, want string }{
		{"not-json", `{`, "target state is not a JSON object: unexpected EOF"},
		{"not-an-object", `[]`, "target state is not a JSON object: json: cannot unmarshal array into Go value of type map[string]interface {}"},
		{"app-id", `{"local":{"apps":{"x":{}}}}`, `local.apps.x: want a positive number as application ID`},
		{"image", app(`{"commit":"c","services":{"1":{"serviceName":"a"}}}`), "local.apps.1.services.1.image: missing"},
		{"environment-key", app(`{"commit":"c","services":{"1":{"serviceName":"a","image":"i","environment":{"1A":"x"}}}}`),
			"local.apps.1.services.1.environment.1A: not a valid name"},
		{"environment-value", app(`{"commit":"c","services":{"1":{"serviceName":"a","image":"i","environment":{"A":{}}}}}`),
			"local.apps.1.services.1.environment.A: want a string, not map[]"},
		{"label-key", app(`{"commit":"c","services":{"1":{"serviceName":"a","image":"i","labels":{"a b":"x"}}}}`),
			"local.apps.1.services.1.labels.a b: not a valid name"},
		{"volumes", app(`{"commit":"c","volumes":[]}`), "local.apps.1.volumes: want an object"},
		{"device-name", `{"local":{"name":"a\nb"}}`, "local.name: must be one line"},
		{"twice", app(`{"commit":"c","services":{"1":{"serviceName":"a","image":"i"},"2":{"serviceName":"a","image":"i"}}}`),
			`local.apps.1.services: two services are named "a"`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := ParseLocal([]byte(tt.body)); err == nil || err.Error() != tt.want {
				t.Errorf("ParseLocal(%s) = %v, want %s", tt.body, err, tt.want)
			}
		})
	}
	if _, err := ParseV3([]byte(`{"other":{}}`), "mine"); err == nil {
		t.Error("ParseV3 takes another device's target")
	}
}

func TestConfigPrefixes(t *testing.T) {
	target, err := ParseLocal([]byte(`{"local":{"config":{"X":"1","RESIN_X":"2","BALENA_X":"3","RESIN_Y":"4","Z":"5","RESIN_OVERRIDE_LOCK":"1"}}}`))
	want := map[string]string{"X": "3", "Y": "4", "Z": "5", "OVERRIDE_LOCK": "1", "SUPERVISOR_OVERRIDE_LOCK": "1"}
	if err != nil || !reflect.DeepEqual(target.Config, want) {
		t.Errorf("config = %v, %v; want %v", target.Config, err, want)
	}
}

func TestScalars(t *testing.T) {
	for _, v := range []any{true, 1.0, "1", "true", "ON", "True"} {
		if !Truthy(v) {
			t.Errorf("Truthy(%v) = false", v)
		}
	}
	for _, v := range []any{false, 0.0, "0", "off", "yes", "", nil, 2.0} {
		if Truthy(v) {
			t.Errorf("Truthy(%v) = true", v)
		}
	}
	for in, want := range map[any]int{"12": 12, 12.0: 12, "12.0": 12, "-3": -3, "12.": 12} {
		if got, ok := Int(in); !ok || got != want {
			t.Errorf("Int(%v) = %d, %v; want %d", in, got, ok, want)
		}
	}
	for _, bad := range []any{"", "1a", 1.5, "1.5", nil, "0x1", true} {
		if got, ok := Int(bad); ok {
			t.Errorf("Int(%v) = %d, want no number", bad, got)
		}
	}
}

func TestContainerNames(t *testing.T) {
	for name, want := range map[string]string{
		"/web_2_1_10ca12e1ea5e": "2 1 10ca12e1ea5e true",
		"my_web_2_1":            "2 1  true",
		"old_web_2_1_c":         "2 1 c true",
		"balena_supervisor":     "0 0  false",
	} {
		i, r, c, ok := ParseContainerName(name)
		if got := fmt.Sprint(i, r, " ", c, " ", ok); strings.Join(strings.Fields(got), " ") != strings.Join(strings.Fields(want), " ") {
			t.Errorf("ParseContainerName(%s) = %s, want %s", name, got, want)
		}
	}
}

func FuzzTarget(f *testing.F) {
	f.Add([]byte(`{"local":{"name":"n","config":{"A":"b"},"apps":{"1":{"name":"a","commit":"c","releaseId":"1","services":{"1":{"serviceName":"web","imageId":1,"image":"i:1",
		"ports":["80-81:80-81"],"networks":{"default":null},"depends_on":{"web":{"condition":"service_started"}},"healthcheck":{"test":["CMD","x"],"interval":"1s"},
		"ulimits":{"nofile":{"soft":1,"hard":2}},"volumes":["a:/b",{"type":"tmpfs","target":"/t"}]}},"volumes":{"a":{}},"networks":{"x":{"ipam":{"config":[{"subnet":"10.0.0.0/24"}]}}}}}}}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		target, err := ParseLocal(body)
		if err != nil {
			return
		}
		for _, app := range target.Apps {
			a, err := Compose(app, bench())
			if err != nil {
				continue
			}
			b, err := Compose(app, bench())
			if err != nil {
				t.Fatalf("Compose fails the second time: %v", err)
			}
			for i := range a.Services {
				if a.Services[i].Print != b.Services[i].Print {
					t.Errorf("fingerprints of the same service differ: %s, %s", a.Services[i].Print, b.Services[i].Print)
				}
			}
		}
	})
}
