package api

import (
	"encoding/json"
	"net/http"
	"strconv"

	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/supervisor/logs"
	"github.com/minke-os/minke/supervisor/model"
)

func (s *server) deviceInfo(w http.ResponseWriter, _ *request) error {
	d := s.b.Device()
	type info struct {
		Arch       string `json:"arch"`
		DeviceType string `json:"deviceType"`
	}
	write(w, http.StatusOK, struct {
		Status string `json:"status"`
		Info   info   `json:"info"`
	}{success, info{d.Arch, d.Type}})
	return nil
}

type localApp struct {
	AppID         int                       `json:"appId"`
	AppUUID       string                    `json:"appUuid"`
	AppName       string                    `json:"appName"`
	Commit        string                    `json:"commit"`
	Source        string                    `json:"source"`
	IsHost        bool                      `json:"isHost"`
	IsRejected    bool                      `json:"isRejected"`
	IsTargetState bool                      `json:"isTargetState"`
	Services      []localService            `json:"services"`
	Networks      map[string]map[string]any `json:"networks"`
	Volumes       map[string]map[string]any `json:"volumes"`
}

type localService struct {
	AppID       int            `json:"appId"`
	AppUUID     string         `json:"appUuid"`
	ImageID     int            `json:"imageId"`
	ServiceName string         `json:"serviceName"`
	Commit      string         `json:"commit"`
	ReleaseID   int            `json:"releaseId"`
	ServiceID   int            `json:"serviceId"`
	ImageName   string         `json:"imageName"`
	Config      map[string]any `json:"config"`
}

// localTarget is not what setLocalTarget takes: clients read local, replace
// apps and send that back.
func (s *server) localTarget(w http.ResponseWriter, _ *request) error {
	t := s.b.Target()
	type local struct {
		Name   string              `json:"name"`
		Config map[string]string   `json:"config"`
		Apps   map[string]localApp `json:"apps"`
	}
	out := local{Name: s.b.Device().Name, Config: t.Config, Apps: map[string]localApp{}}
	if out.Config == nil {
		out.Config = map[string]string{}
	}
	for _, app := range t.Apps {
		out.Apps[app.ID.String()] = expand(app)
	}
	type state struct {
		Local local `json:"local"`
	}
	write(w, http.StatusOK, struct {
		Status string `json:"status"`
		State  state  `json:"state"`
	}{success, state{out}})
	return nil
}

func expand(app model.App) localApp {
	out := localApp{
		AppID: int(app.ID), AppUUID: app.UUID, AppName: app.Name, Commit: app.Commit,
		Source: "local", IsHost: app.IsHost, IsTargetState: true,
		Services: []localService{}, Networks: app.Networks, Volumes: app.Volumes,
	}
	for _, svc := range app.Services {
		config := map[string]any{"image": svc.Image, "running": svc.Running, "environment": svc.Environment, "labels": svc.Labels}
		for k, v := range svc.Composition {
			config[k] = v
		}
		out.Services = append(out.Services, localService{
			int(app.ID), app.UUID, svc.ImageID, svc.Name, app.Commit, app.ReleaseID, svc.ID, svc.Image, config,
		})
	}
	return out
}

func (s *server) setLocalTarget(w http.ResponseWriter, r *request) error {
	err := s.b.SetLocalTarget(r.Context(), r.raw)
	if errdef.Is(err, errdef.Invalid) {
		return jsonError(http.StatusBadRequest, "%v", err)
	}
	if err != nil {
		return err
	}
	write(w, http.StatusOK, struct {
		Status  string `json:"status"`
		Message string `json:"message"`
	}{success, "OK"})
	return nil
}

// localLogs streams one JSON object a line. Clients time out without a first
// line, so it comes before anything is known. Our own clients may ask for
// history (tail) and an end (follow=false).
func (s *server) localLogs(w http.ResponseWriter, r *request) error {
	q := r.URL.Query()
	o := logs.Options{Follow: q.Get("follow") != "false"}
	if n, err := strconv.Atoi(q.Get("tail")); err == nil {
		o.Tail = n
	}
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	flush := http.NewResponseController(w)
	emit := func(m logs.Message) error {
		if err := enc.Encode(m); err != nil {
			return err
		}
		return flush.Flush()
	}
	if err := emit(logs.Message{Message: "Streaming logs", IsSystem: true}); err != nil {
		return nil // the client left, which is how this request ends
	}
	s.b.StreamLogs(r.Context(), o, emit)
	return nil
}
