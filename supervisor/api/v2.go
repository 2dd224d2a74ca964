package api

import (
	"context"
	"math"
	"net/http"
	"strconv"
	"time"

	"github.com/minke-os/minke/supervisor/model"
	"github.com/minke-os/minke/supervisor/plan"
)

const success = "success"

func (s *server) version(w http.ResponseWriter, _ *request) error {
	write(w, http.StatusOK, struct {
		Status  string `json:"status"`
		Version string `json:"version"`
	}{success, s.b.Device().Version})
	return nil
}

func (s *server) deviceName(w http.ResponseWriter, _ *request) error {
	write(w, http.StatusOK, struct {
		Status string `json:"status"`
		Name   string `json:"deviceName"`
	}{success, s.b.Device().Name})
	return nil
}

type statusContainer struct {
	Status      string `json:"status"`
	ServiceName string `json:"serviceName"`
	AppID       int    `json:"appId"`
	ImageID     int    `json:"imageId"`
	ServiceID   int    `json:"serviceId"`
	ContainerID string `json:"containerId"`
	CreatedAt   string `json:"createdAt"`
	Health      string `json:"health,omitempty"`
	ExitCode    *int   `json:"exitCode,omitempty"`
	Restarts    int    `json:"restarts,omitempty"`
}

type statusImage struct {
	Name             string `json:"name"`
	AppID            int    `json:"appId"`
	ServiceName      string `json:"serviceName"`
	ImageID          int    `json:"imageId"`
	DockerImageID    string `json:"dockerImageId"`
	Status           string `json:"status"`
	DownloadProgress *int   `json:"downloadProgress"`
}

type statusAnswer struct {
	Status                  string            `json:"status"`
	AppState                string            `json:"appState"`
	OverallDownloadProgress *int              `json:"overallDownloadProgress"`
	Containers              []statusContainer `json:"containers"`
	Images                  []statusImage     `json:"images"`
	Release                 string            `json:"release,omitempty"`
	Error                   string            `json:"error,omitempty"`
	Undone                  bool              `json:"undone,omitempty"`
	Trial                   int               `json:"trial,omitempty"` // s
}

func (s *server) stateStatus(w http.ResponseWriter, r *request) error {
	st, err := s.b.Status(r.Context())
	if err != nil {
		return err
	}
	out := statusAnswer{Status: success, AppState: "applied", Error: st.Problem, Undone: st.Undone, Trial: int(math.Ceil(st.Trial.Seconds())), Containers: []statusContainer{}, Images: []statusImage{}}
	if st.Applying {
		out.AppState = "applying"
	}
	for _, c := range st.Containers {
		if !r.scope.allows(c.App) {
			continue
		}
		sc := statusContainer{
			c.Status, c.Service, int(c.App), c.ReleaseImage, c.ServiceID, c.ID, isoTime(c.Created), c.Health, nil, c.Restarts,
		}
		if c.State == "exited" || c.State == "restarting" {
			sc.ExitCode = &c.ExitCode
		}
		out.Containers = append(out.Containers, sc)
	}
	sum, n := 0, 0
	for _, i := range st.Images {
		if !r.scope.allows(i.App) {
			continue
		}
		out.Images = append(out.Images, statusImage{i.Name, int(i.App), i.Service, i.ReleaseImage, i.EngineID, i.Status, i.Progress})
		if i.Progress != nil {
			sum, n = sum+*i.Progress, n+1
		}
	}
	if n > 0 {
		mean := sum / n
		out.OverallDownloadProgress = &mean
	}
	for _, c := range st.Commits {
		if r.scope.allows(c.App) {
			out.Release = c.Commit
			break
		}
	}
	write(w, http.StatusOK, out)
	return nil
}

func isoTime(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000Z") }

type serviceState struct {
	Status           string `json:"status"`
	Image            string `json:"image"`
	DownloadProgress *int   `json:"downloadProgress"`
	ReleaseID        int    `json:"releaseId"`

	// Ours: why its image does not come, and why it was stopped or replaced
	// last, since the supervisor began.
	Error    string `json:"error,omitempty"`
	Reason   string `json:"reason,omitempty"`
	ReasonAt string `json:"reasonAt,omitempty"`
}

type appStateAnswer struct {
	AppID        int                     `json:"appId"`
	AppUUID      string                  `json:"appUuid"`
	Commit       string                  `json:"commit"`
	UpdateStatus string                  `json:"updateStatus"`
	Services     map[string]serviceState `json:"services"`
}

// appsState is keyed by the application's name.
func (s *server) appsState(w http.ResponseWriter, r *request) error {
	st, err := s.b.Status(r.Context())
	if err != nil {
		return err
	}
	out := map[string]appStateAnswer{}
	for _, app := range s.b.Target().Apps {
		if !r.scope.allows(app.ID) {
			continue
		}
		a := appStateAnswer{int(app.ID), app.UUID, app.Commit, "", map[string]serviceState{}}
		var states []string
		for _, svc := range app.Services {
			x := st.Service(app, svc)
			one := serviceState{Status: x.Status, Image: svc.Image, DownloadProgress: x.Progress, ReleaseID: x.Release, Error: x.Problem}
			if why, ok := st.Reasons[plan.ServiceKey(app.ID, svc.Name)]; ok {
				one.Reason, one.ReasonAt = why.Why, isoTime(why.At)
			}
			a.Services[svc.Name] = one
			states = append(states, x.Status)
		}
		a.UpdateStatus = st.UpdateStatus(states)
		out[app.Name] = a
	}
	write(w, http.StatusOK, out)
	return nil
}

// A ServiceState is what a service of the target is doing.
type ServiceState struct {
	Status   string
	Progress *int // of a download, per cent
	Release  int
	Problem  string // why its image does not come
}

// Service finds what a service of the target is doing. A container of another
// release, which the service still runs in, tells nothing of that.
func (st Status) Service(app model.App, svc model.Service) ServiceState {
	out := ServiceState{Status: "Downloading", Release: app.ReleaseID}
	for _, i := range st.Images {
		if i.App == app.ID && i.Service == svc.Name {
			out.Status, out.Progress, out.Problem = i.Status, i.Progress, i.Problem
		}
	}
	for _, m := range st.Missing {
		if m.App == app.ID && m.Service == svc.Name && m.Status != "" {
			out.Status = m.Status
		}
	}
	for _, c := range st.Containers {
		if c.App == app.ID && c.Service == svc.Name && c.Commit == app.Commit && out.Progress == nil {
			out.Status, out.Release = c.Status, c.Release
		}
	}
	return out
}

// UpdateStatus is a release's state: the least advanced of its services'.
func (st Status) UpdateStatus(services []string) string {
	if !st.Applying {
		return "done"
	}
	rank := 0
	for _, s := range services {
		switch s {
		case "Downloading":
			rank = max(rank, 3)
		case "Downloaded":
			rank = max(rank, 2)
		case "Installing", "Installed", "Awaiting handover":
			rank = max(rank, 1)
		}
	}
	return [...]string{"done", "applying changes", "downloaded", "downloading"}[rank]
}

type serviceProgress struct {
	Status           string `json:"status"`
	ReleaseID        int    `json:"releaseId"`
	DownloadProgress *int   `json:"download_progress"`
}

// appState is keyed by the release's image number.
func (s *server) appState(w http.ResponseWriter, r *request) error {
	id, valid := r.pathApp()
	if !valid {
		return jsonError(http.StatusBadRequest, "Invalid application ID: %s", r.PathValue("app"))
	}
	app, found := s.b.Target().App(id)
	if !found || !r.scope.allows(id) {
		return jsonError(http.StatusConflict, "Application ID does not exist: %d", id)
	}
	st, err := s.b.Status(r.Context())
	if err != nil {
		return jsonError(http.StatusInternalServerError, "%v", err)
	}
	type services struct {
		Services map[string]serviceProgress `json:"services"`
	}
	local := services{map[string]serviceProgress{}}
	for _, svc := range app.Services {
		x := st.Service(app, svc)
		local.Services[strconv.Itoa(svc.ImageID)] = serviceProgress{x.Status, x.Release, x.Progress}
	}
	write(w, http.StatusOK, struct {
		Commit string              `json:"commit"`
		Local  map[string]services `json:"local"`
	}{app.Commit, map[string]services{id.String(): local}})
	return nil
}

// containerID finds one service's container, or all by name.
func (s *server) containerID(w http.ResponseWriter, r *request) error {
	st, err := s.b.Status(r.Context())
	if err != nil {
		return err
	}
	name := r.URL.Query().Get("serviceName")
	if name == "" {
		name = r.URL.Query().Get("service")
	}
	services := map[string]string{}
	for _, c := range st.Containers {
		if r.scope.allows(c.App) && !c.Old() {
			services[c.Service] = c.ID
		}
	}
	if name == "" {
		write(w, http.StatusOK, struct {
			Status   string            `json:"status"`
			Services map[string]string `json:"services"`
		}{success, services})
		return nil
	}
	id, found := services[name]
	if !found {
		return jsonError(http.StatusServiceUnavailable, "Could not find service with that name")
	}
	write(w, http.StatusOK, struct {
		Status      string `json:"status"`
		ContainerID string `json:"containerId"`
	}{success, id})
	return nil
}

func (s *server) cleanupVolumes(w http.ResponseWriter, r *request) error {
	if !r.scope.Global {
		return jsonError(http.StatusUnauthorized, "Unauthorized")
	}
	if err := s.b.CleanupVolumes(r.Context()); err != nil {
		return err
	}
	write(w, http.StatusOK, struct {
		Status string `json:"status"`
	}{success})
	return nil
}

// service finds the container that a service action means: by name or image
// number, or the only one there is.
func (s *server) service(r *request) (Container, error) {
	id, valid := r.pathApp()
	if !valid {
		return Container{}, jsonError(http.StatusBadRequest, "Invalid app id")
	}
	if !r.scope.allows(id) {
		return Container{}, jsonError(http.StatusUnauthorized, "Unauthorized")
	}
	name, _ := model.Str(r.body["serviceName"])
	imageID, hasImage := model.Int(r.body["imageId"])
	app, found := s.b.Target().App(id)
	if name == "" && !hasImage && len(app.Services) != 1 {
		return Container{}, textError(http.StatusBadRequest, "serviceName or imageId parameters were not provided or the app is multi-container. Use the v2 service action endpoints.")
	}
	st, err := s.b.Status(r.Context())
	if err != nil {
		return Container{}, err
	}
	for _, c := range st.Containers {
		if c.App != id || c.Old() {
			continue
		}
		found = true
		if len(app.Services) != 1 && c.Service != name && (!hasImage || c.ReleaseImage != imageID) {
			continue
		}
		if _, ok := app.Service(c.Service); !ok {
			return Container{}, textError(http.StatusNotFound, "Service does not exist in target release")
		}
		return c, nil
	}
	if !found {
		return Container{}, textError(http.StatusNotFound, "%s", appNotFound)
	}
	return Container{}, textError(http.StatusNotFound, "%s", serviceNotFound)
}

func (s *server) restartService(w http.ResponseWriter, r *request) error {
	c, err := s.service(r)
	if err != nil {
		return err
	}
	if err := s.b.RestartService(r.Context(), c.Container, r.force()); err != nil {
		return err
	}
	return ok(w)
}

func (s *server) stopService(w http.ResponseWriter, r *request) error {
	c, err := s.service(r)
	if err != nil {
		return err
	}
	if err := s.b.StopService(r.Context(), c.Container, r.force()); err != nil {
		return err
	}
	return ok(w)
}

func (s *server) startService(w http.ResponseWriter, r *request) error {
	c, err := s.service(r)
	if err != nil {
		return err
	}
	if err := s.b.StartService(r.Context(), c.Container); err != nil {
		return err
	}
	return ok(w)
}

func (s *server) restartApp(w http.ResponseWriter, r *request) error {
	return s.appAction(w, r, s.b.RestartApp)
}

func (s *server) purgeApp(w http.ResponseWriter, r *request) error {
	return s.appAction(w, r, s.b.PurgeApp)
}

func (s *server) appAction(w http.ResponseWriter, r *request, act func(context.Context, model.AppID, bool) error) error {
	id, valid := r.pathApp()
	if !valid {
		return jsonError(http.StatusBadRequest, "Missing app id")
	}
	if !r.scope.allows(id) {
		return jsonError(http.StatusUnauthorized, "Unauthorized")
	}
	if err := act(r.Context(), id, r.force()); err != nil {
		return err
	}
	return ok(w)
}
