// Package appsjson reads apps.json, which names the applications that came with
// a device's medium, in all forms that it ever had:
//
//	3       {"config":{…},"apps":{"<uuid>":{"id":…,"releases":{…}}}}, as balena preload writes it
//	2       {"config":{…},"apps":{"<id>":{"commit":…,"services":{…}}}}
//	legacy  [{"appId":…,"commit":…,"imageId":…,"env":{…},"config":{…}}], one container each
//
// Older ones are turned into version 3, of which package model checks the
// rest. They do not know applications' UUIDs: until a fleet server says them an
// application's ID stands for its UUID; see Provisional.
//
// The package is pure.
package appsjson

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"

	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/supervisor/model"
)

// A File is what apps.json says, in version 3.
type File struct {
	Name   string
	Config map[string]any
	Apps   map[string]any // by UUID
	Pin    *Pin           // nil unless the device is to stay in a release
}

// A Pin is a release of a fleet that a device is to stay in.
type Pin struct {
	Fleet  int    `json:"fleet"`
	Commit string `json:"commit"`
}

// Provisional reports whether an application's UUID is one that nobody but
// this device knows.
func Provisional(uuid string, id int) bool { return uuid == strconv.Itoa(id) }

// Body is the file as the target state of a device.
func (f File) Body(deviceUUID string) ([]byte, error) {
	return json.Marshal(map[string]any{deviceUUID: map[string]any{"name": f.Name, "config": f.Config, "apps": f.Apps}})
}

// Parse reads a file. One without applications is no error. An error begins
// with the path of what is wrong.
func Parse(data []byte) (File, error) {
	if bytes.HasPrefix(bytes.TrimSpace(data), []byte("[")) {
		return parseLegacy(data)
	}
	var raw struct {
		Name      string                    `json:"name"`
		Config    map[string]any            `json:"config"`
		Apps      map[string]map[string]any `json:"apps"`
		PinDevice any                       `json:"pinDevice"`
	}
	if err := json.Unmarshal(data, &raw); err != nil {
		return File{}, errdef.Invalid.Wrap(err)
	}
	f := File{Name: raw.Name, Config: raw.Config, Apps: map[string]any{}}
	for _, key := range slices.Sorted(maps.Keys(raw.Apps)) {
		app := raw.Apps[key]
		releases, _ := app["releases"].(map[string]any)
		id, err := strconv.Atoi(key)
		switch {
		case len(releases) > 0:
		case err == nil && id > 0 && text(app["commit"]) != "":
			if app, err = upgrade(id, app); err != nil {
				return File{}, errdef.Invalid.Errorf("apps.%s.%w", key, err)
			}
		default:
			return File{}, errdef.Invalid.Errorf("apps.%s has no releases; want a target state of version 3, as balena preload writes it, or an older one with a number here and a commit", key)
		}
		f.Apps[key] = app
	}
	if model.Truthy(raw.PinDevice) {
		f.Pin = f.pin()
	}
	return f, nil
}

// pin is the release to stay in: that of the fleet, which is one application
// among those that blocks and the host bring.
func (f File) pin() *Pin {
	var out *Pin
	for _, v := range f.Apps {
		app, _ := v.(map[string]any)
		releases, _ := app["releases"].(map[string]any)
		id, class := number(app["id"]), text(app["class"])
		if class != "" && class != "fleet" || model.Truthy(app["is_host"]) || len(releases) == 0 || id == 0 {
			continue
		}
		if out == nil || id < out.Fleet {
			out = &Pin{id, slices.Min(slices.Collect(maps.Keys(releases)))}
		}
	}
	return out
}

// ours are the keys of a service of version 2 that are not compose's, and what
// they are called in version 3; "" is not taken over.
var ours = map[string]string{
	"imageId": "image_id", "image_id": "image_id", "image": "image", "environment": "environment", "labels": "labels",
	"running": "running", "contract": "contract", "serviceName": "", "serviceId": "",
}

// upgrade makes an application of version 3 from one of version 2.
func upgrade(id int, app map[string]any) (map[string]any, error) {
	services := map[string]any{}
	old, ok := app["services"].(map[string]any)
	if !ok && app["services"] != nil {
		return nil, fmt.Errorf("services: want an object")
	}
	for _, key := range slices.Sorted(maps.Keys(old)) {
		body, ok := old[key].(map[string]any)
		name := text(body["serviceName"])
		if !ok || name == "" {
			return nil, fmt.Errorf("services.%s.serviceName: missing", key)
		}
		if services[name] != nil {
			return nil, fmt.Errorf("services: two services are named %q", name)
		}
		composition, service := map[string]any{}, map[string]any{"id": key, "composition": nil}
		for k, v := range body {
			if to, known := ours[k]; !known {
				composition[k] = v
			} else if to != "" {
				service[to] = v
			}
		}
		service["composition"] = composition
		services[name] = service
	}
	return map[string]any{
		"id": id, "name": app["name"], "class": "fleet",
		"releases": map[string]any{text(app["commit"]): map[string]any{
			"id": app["releaseId"], "services": services, "volumes": app["volumes"], "networks": app["networks"],
		}},
	}, nil
}

// parseLegacy reads the form of devices that ran one container.
func parseLegacy(data []byte) (File, error) {
	var apps []struct {
		AppID     any            `json:"appId"`
		Name      string         `json:"name"`
		Commit    string         `json:"commit"`
		ImageID   string         `json:"imageId"` // the image's name
		ReleaseID any            `json:"releaseId"`
		Env       map[string]any `json:"env"`
		Config    map[string]any `json:"config"`
	}
	if err := json.Unmarshal(data, &apps); err != nil {
		return File{}, errdef.Invalid.Wrap(err)
	}
	f := File{Config: map[string]any{}, Apps: map[string]any{}}
	for i, a := range apps {
		id := number(a.AppID)
		switch {
		case id <= 0:
			return File{}, errdef.Invalid.Errorf("%d.appId: want a positive number", i)
		case a.Commit == "":
			return File{}, errdef.Invalid.Errorf("%d.commit: missing", i)
		case a.ImageID == "":
			return File{}, errdef.Invalid.Errorf("%d.imageId: missing", i)
		}
		maps.Copy(f.Config, a.Config)
		setting := func(name, otherwise string) string {
			return cmp.Or(text(a.Config["BALENA_"+name]), text(a.Config["RESIN_"+name]), otherwise)
		}
		labels := map[string]any{
			"io.balena.update.strategy":  setting("SUPERVISOR_UPDATE_STRATEGY", "download-then-kill"),
			"io.balena.legacy-container": "1",
		}
		if timeout := setting("SUPERVISOR_HANDOVER_TIMEOUT", ""); timeout != "" {
			labels["io.balena.update.handover-timeout"] = timeout
		}
		for _, feature := range []string{"kernel-modules", "firmware", "dbus", "supervisor-api", "balena-api"} {
			labels["io.balena.features."+feature] = "1"
		}
		release := a.ReleaseID
		if number(release) == 0 {
			release = 1
		}
		f.Apps[strconv.Itoa(id)] = map[string]any{
			"id": id, "name": a.Name, "class": "fleet",
			"releases": map[string]any{a.Commit: map[string]any{
				"id": release, "volumes": map[string]any{"resin-data": map[string]any{}},
				"services": map[string]any{"main": map[string]any{
					"id": 1, "image_id": 1, "image": a.ImageID, "environment": a.Env, "labels": labels,
					"composition": map[string]any{
						"privileged": true, "network_mode": "host", "volumes": []any{"resin-data:/data"},
						"restart": setting("APP_RESTART_POLICY", "always"),
					},
				}},
			}},
		}
	}
	return f, nil
}

func text(v any) string {
	s, _ := v.(string)
	return s
}

// number reads 12 and "12"; anything else is 0.
func number(v any) int {
	n, _ := model.Int(v)
	return n
}
