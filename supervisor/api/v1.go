package api

import (
	"net/http"
	"strings"

	"github.com/minke-os/minke/supervisor/model"
)

const (
	appNotFound     = "App not found: an app needs to be installed for this endpoint to work. If you've recently moved this device from another app, please push an app and wait for it to be installed first."
	serviceNotFound = "Service not found, a container must exist for this endpoint to work"
	singleOnly      = "Some v1 endpoints are only allowed on single-container apps"
)

// bodyApp is the application that a v1 request's body names.
func (r *request) bodyApp() (model.AppID, bool) {
	id, ok := model.Int(r.body["appId"])
	return model.AppID(id), ok && id > 0
}

// pathApp is the application that the path names.
func (r *request) pathApp() (model.AppID, bool) {
	id, ok := model.Int(r.PathValue("app"))
	return model.AppID(id), ok && id > 0
}

type deviceAnswer struct {
	APIPort           int     `json:"api_port"`
	IPAddress         string  `json:"ip_address,omitempty"`
	OSVersion         string  `json:"os_version,omitempty"`
	MACAddress        string  `json:"mac_address,omitempty"`
	SupervisorVersion string  `json:"supervisor_version"`
	UpdatePending     bool    `json:"update_pending"`
	UpdateFailed      bool    `json:"update_failed"`
	UpdateDownloaded  bool    `json:"update_downloaded"`
	Commit            string  `json:"commit,omitempty"`
	Status            *string `json:"status,omitempty"`
	DownloadProgress  any     `json:"download_progress"` // null with a status, absent without
}

func (s *server) device(w http.ResponseWriter, r *request) error {
	st, err := s.b.Status(r.Context())
	if err != nil {
		return err
	}
	d := s.b.Device()
	port, _ := model.Int(d.Port)
	out := deviceAnswer{
		APIPort: port, OSVersion: d.OSVersion, SupervisorVersion: d.Version,
		IPAddress: strings.Join(d.IPs, " "), MACAddress: strings.Join(d.MACs, " "),
		UpdatePending: st.Applying, UpdateFailed: st.Failed,
		UpdateDownloaded: st.Applying && downloaded(st),
	}
	if !st.Applying && len(st.Commits) > 0 {
		out.Commit = st.Commits[0].Commit
	}
	if len(st.Containers) > 0 {
		word := st.Containers[0].Status
		if word == "Running" {
			word = "Idle"
		}
		out.Status = &word
	}
	for _, img := range st.Images {
		if img.Progress != nil {
			word := img.Status
			out.Status, out.DownloadProgress = &word, *img.Progress
			break
		}
	}
	write(w, http.StatusOK, out)
	return nil
}

func downloaded(st Status) bool {
	for _, img := range st.Images {
		if img.EngineID == "" {
			return false
		}
	}
	return len(st.Images) > 0
}

// single is the one container of an application, which v1 was made for.
func (s *server) single(r *request, badID string) (Container, error) {
	id, ok := r.pathApp()
	if !ok {
		return Container{}, textError(http.StatusBadRequest, "%s", badID)
	}
	st, err := s.b.Status(r.Context())
	if err != nil {
		return Container{}, err
	}
	var found []Container
	for _, c := range st.Containers {
		if c.App == id {
			found = append(found, c)
		}
	}
	target, _ := s.b.Target().App(id)
	switch {
	case len(found) == 0 && len(target.Services) == 0:
		return Container{}, textError(http.StatusBadRequest, "%s", appNotFound)
	case len(found) > 1 || len(target.Services) > 1:
		return Container{}, textError(http.StatusBadRequest, "%s", singleOnly)
	case len(found) == 0:
		return Container{}, textError(http.StatusBadRequest, "%s", serviceNotFound)
	}
	return found[0], nil
}

type appAnswer struct {
	AppID       int               `json:"appId"`
	Commit      string            `json:"commit"`
	ContainerID string            `json:"containerId"`
	Env         map[string]string `json:"env"`
	ImageID     string            `json:"imageId"`
	ReleaseID   int               `json:"releaseId"`
}

// secrets are variables that only the service itself may see.
var secrets = map[string]bool{
	"RESIN_SUPERVISOR_API_KEY": true, "BALENA_SUPERVISOR_API_KEY": true,
	"RESIN_API_KEY": true, "BALENA_API_KEY": true,
}

func (s *server) app(w http.ResponseWriter, r *request) error {
	c, err := s.single(r, "Missing app id")
	if err != nil {
		return err
	}
	if !r.scope.allows(c.App) {
		return jsonError(http.StatusUnauthorized, "Application is not available")
	}
	env := map[string]string{}
	for _, kv := range c.Env {
		if k, v, _ := strings.Cut(kv, "="); !secrets[k] {
			env[k] = v
		}
	}
	write(w, http.StatusOK, appAnswer{int(c.App), c.Commit, c.ID, env, c.ImageRef, c.Release})
	return nil
}

type containerAnswer struct {
	ContainerID string `json:"containerId"`
}

func (s *server) appStop(w http.ResponseWriter, r *request) error {
	c, err := s.singleAction(r)
	if err != nil {
		return err
	}
	if err := s.b.StopService(r.Context(), c.Container, r.force()); err != nil {
		return err
	}
	write(w, http.StatusOK, containerAnswer{c.ID})
	return nil
}

func (s *server) appStart(w http.ResponseWriter, r *request) error {
	c, err := s.singleAction(r)
	if err != nil {
		return err
	}
	if err := s.b.StartService(r.Context(), c.Container); err != nil {
		return err
	}
	write(w, http.StatusOK, containerAnswer{c.ID})
	return nil
}

func (s *server) singleAction(r *request) (Container, error) {
	c, err := s.single(r, "Invalid app id")
	if err != nil {
		return c, err
	}
	if !r.scope.allows(c.App) {
		return c, textError(http.StatusUnauthorized, "Unauthorized")
	}
	app, _ := s.b.Target().App(c.App)
	if _, ok := app.Service(c.Service); !ok {
		return c, textError(http.StatusNotFound, "Service does not exist in target release")
	}
	return c, nil
}

func (s *server) restart(w http.ResponseWriter, r *request) error {
	id, valid := r.bodyApp()
	if !valid {
		return textError(http.StatusBadRequest, "Missing app id")
	}
	if !r.scope.allows(id) {
		return jsonError(http.StatusUnauthorized, "Unauthorized")
	}
	if err := s.b.RestartApp(r.Context(), id, r.force()); err != nil {
		return err
	}
	return ok(w)
}

func (s *server) purge(w http.ResponseWriter, r *request) error {
	id, valid := r.bodyApp()
	if !valid {
		return textError(http.StatusBadRequest, "Invalid or missing appId")
	}
	if !r.scope.allows(id) {
		return jsonError(http.StatusUnauthorized, "Unauthorized")
	}
	if err := s.b.PurgeApp(r.Context(), id, r.force()); err != nil {
		return err
	}
	write(w, http.StatusOK, struct{ Data, Error string }{"OK", ""})
	return nil
}

func (s *server) update(w http.ResponseWriter, r *request) error {
	if !s.b.Update(r.force(), model.Truthy(r.body["cancel"])) {
		text(w, http.StatusAccepted, "Accepted")
		return nil
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}
