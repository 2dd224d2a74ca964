package conformance

// An app is an application of a target state.
type app struct {
	id       int
	uuid     string
	name     string
	commit   string
	services obj
	volumes  obj
	networks obj
}

// target is a target state in which the device has these settings.
func target(config obj, apps ...app) string {
	all := obj{}
	for _, a := range apps {
		volumes, networks := a.volumes, a.networks
		if volumes == nil {
			volumes = obj{}
		}
		if networks == nil {
			networks = obj{}
		}
		all[a.uuid] = obj{"id": a.id, "name": a.name, "class": "fleet", "releases": obj{
			a.commit: obj{"id": 778, "services": a.services, "volumes": volumes, "networks": networks},
		}}
	}
	if config == nil {
		config = obj{}
	}
	return jsonOf(obj{"UUID": obj{"name": "damp-haze", "config": config, "apps": all}})
}

// service is one of a release. Of more, "labels", "environment", "running" and
// "contract" are the service's; the rest is its composition.
func service(id int, image string, more obj) obj {
	s := obj{"id": id, "image_id": 5000 + id, "image": "REGISTRY/" + image, "environment": obj{}, "labels": obj{}}
	composition := obj{"tty": false, "stop_grace_period": "2s"}
	for k, v := range more {
		switch k {
		case "labels", "environment", "running", "contract":
			s[k] = v
		default:
			composition[k] = v
			if v == nil {
				delete(composition, k)
			}
		}
	}
	s["composition"] = composition
	return s
}

// withAPI gives a service access to the Supervisor API.
var withAPI = obj{"io.balena.features.supervisor-api": "1"}

// fleetApp is the application that most checks look at: web, which has the API,
// needs db, which has a volume.
func fleetApp(commit string, edit ...func(a *app)) app {
	a := app{id: 1234, uuid: "deadbeef01", name: "my-fleet", commit: commit, volumes: obj{"data": obj{}}, services: obj{
		"web": service(91, "garden:1", obj{"labels": withAPI, "depends_on": []string{"db"}}),
		"db":  service(92, "garden:1", obj{"volumes": []string{"data:/data"}}),
	}}
	for _, f := range edit {
		f(&a)
	}
	return a
}

// shed is another application, with one service.
var shed = app{id: 5678, uuid: "shed02", name: "shed", commit: "5ed", services: obj{
	"tool": service(93, "shed:1", obj{"labels": obj{"io.balena.features.supervisor-api": "1", "io.balena.features.balena-api": "1"}}),
}}
