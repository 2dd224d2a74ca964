package appsjson

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	"github.com/minke-os/minke/supervisor/model"
)

const three = `{"name":"porch","config":{"A":"1"},"pinDevice":true,"apps":{
	"aaaa":{"id":7,"name":"garden","class":"fleet","releases":{"c1":{"id":10,"services":{"web":{"id":1,"image_id":11,"image":"garden:1"}}}}},
	"bbbb":{"id":2,"name":"block","class":"block","releases":{"b1":{"services":{"x":{"image":"x:1"}}}}},
	"cccc":{"id":3,"name":"os","is_host":true,"releases":{"h1":{"services":{"y":{"image":"y:1"}}}}}}}`

const two = `{"config":{"RESIN_SUPERVISOR_DELTA":"1"},"pinDevice":"1","apps":{"1234":{"name":"garden","commit":"c1","releaseId":10,
	"services":{"91":{"serviceName":"web","imageId":"11","serviceId":91,"image":"garden:1","running":true,"environment":{"A":"b"},
		"labels":{"io.resin.features.dbus":"1"},"ports":["80:80"],"networkMode":"host","depends_on":["db"],"contract":{"requires":[{"type":"sw.os"}]}},
		"92":{"serviceName":"db","imageId":12,"image":"db:1"}},
	"volumes":{"data":{}},"networks":{"inner":{"internal":true}}}}}`

const legacy = `[{"appId":"1234","name":"garden","commit":"c1","imageId":"registry.example/garden/1","env":{"A":"b","N":7},
	"config":{"RESIN_SUPERVISOR_UPDATE_STRATEGY":"kill-then-download","RESIN_APP_RESTART_POLICY":"on-failure","RESIN_HOST_CONFIG_gpu_mem":"16"}}]`

// target is a file as package model reads it.
func target(t *testing.T, text string) (model.Target, File) {
	t.Helper()
	f, err := Parse([]byte(text))
	if err != nil {
		t.Fatalf("Parse = %v", err)
	}
	body, err := f.Body("dev")
	if err != nil {
		t.Fatal(err)
	}
	got, err := model.ParseV3(body, "dev")
	if err != nil {
		t.Fatalf("ParseV3(%s) = %v", body, err)
	}
	return got, f
}

func TestVersion3(t *testing.T) {
	got, f := target(t, three)
	if len(got.Apps) != 3 || got.Name != "porch" || got.Config["A"] != "1" || got.Apps[2].UUID != "aaaa" || got.Apps[2].Services[0].Image != "garden:1" {
		t.Errorf("target = %+v", got)
	}
	if want := (&Pin{7, "c1"}); !reflect.DeepEqual(f.Pin, want) {
		t.Errorf("Pin = %v, want that of the fleet, %v", f.Pin, want)
	}
	if _, f := target(t, strings.Replace(three, `"pinDevice":true`, `"pinDevice":false`, 1)); f.Pin != nil {
		t.Errorf("Pin = %v where the device follows its fleet", f.Pin)
	}
}

// Version 2 becomes what the same applications are when they are posted in its
// own form.
func TestVersion2(t *testing.T) {
	got, f := target(t, two)
	want, err := model.ParseLocal([]byte(`{"local":` + two + `}`))
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("target = %+v\nwant %+v", got, want)
	}
	if want := (&Pin{1234, "c1"}); !reflect.DeepEqual(f.Pin, want) {
		t.Errorf("Pin = %v, want %v", f.Pin, want)
	}
	if app := got.Apps[0]; !Provisional(app.UUID, int(app.ID)) {
		t.Errorf("the UUID %s of app %d counts as known to a server", app.UUID, app.ID)
	}
}

func TestLegacy(t *testing.T) {
	got, f := target(t, legacy)
	if got.Config["HOST_CONFIG_gpu_mem"] != "16" || f.Pin != nil {
		t.Errorf("config = %v, pin = %v", got.Config, f.Pin)
	}
	app := got.Apps[0]
	svc, ok := app.Service("main")
	if !ok || app.ID != 1234 || app.Commit != "c1" || app.Name != "garden" || svc.Image != "registry.example/garden/1" {
		t.Fatalf("application = %+v", app)
	}
	if svc.Environment["A"] != "b" || svc.Environment["N"] != "7" || svc.Labels["io.balena.update.strategy"] != "kill-then-download" {
		t.Errorf("environment = %v, labels = %v", svc.Environment, svc.Labels)
	}
	for _, f := range []string{"kernel-modules", "firmware", "dbus", "supervisor-api", "balena-api"} {
		if !svc.Feature(f) {
			t.Errorf("it has not the feature %s", f)
		}
	}
	spec, err := model.Compose(app, model.Device{ServiceKey: func(model.AppID, string) string { return "key" }})
	if err != nil {
		t.Fatal(err)
	}
	s := spec.Services[0]
	if !s.Host.Privileged || s.Host.NetworkMode != "host" || s.Host.RestartPolicy.Name != "on-failure" || len(spec.Volumes) != 1 || spec.Volumes[0].Name != "1234_resin-data" {
		t.Errorf("engine objects: %+v of %+v", s.Host, spec.Volumes)
	}
}

func TestNoApplications(t *testing.T) {
	for _, text := range []string{`{}`, `[]`, `{"apps":{}}`, " {\n}\n"} {
		if f, err := Parse([]byte(text)); err != nil || len(f.Apps) != 0 {
			t.Errorf("Parse(%s) = %v, %v", text, f, err)
		}
	}
}

func TestParseSaysWhatIsWrong(t *testing.T) {
	for text, want := range map[string]string{
		``:                              "unexpected end",
		`7`:                             "cannot unmarshal",
		`{"apps":{"1":{"name":"old"}}}`: "apps.1 has no releases",
		`{"apps":{"aaaa":{"commit":"c1","services":{}}}}`:                                             "apps.aaaa has no releases",
		`{"apps":{"1":{"commit":"c1","services":[]}}}`:                                                "apps.1.services: want an object",
		`{"apps":{"1":{"commit":"c1","services":{"5":{"image":"x"}}}}}`:                               "apps.1.services.5.serviceName: missing",
		`{"apps":{"1":{"commit":"c1","services":{"5":{"serviceName":"a"},"6":{"serviceName":"a"}}}}}`: `apps.1.services: two services are named "a"`,
		`[{"appId":"x"}]`:             "0.appId: want a positive number",
		`[{"appId":1,"imageId":"x"}]`: "0.commit: missing",
		`[{"appId":1,"commit":"c"}]`:  "0.imageId: missing",
	} {
		if _, err := Parse([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Parse(%s) = %v, want %q", text, err, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{three, two, legacy, `{}`, `[]`, `[null]`, `{"apps":{"1":null}}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		file, err := Parse(data)
		if err != nil {
			return
		}
		body, err := file.Body("dev")
		if err != nil || !json.Valid(body) {
			t.Errorf("Body = %q, %v", body, err)
		}
	})
}
