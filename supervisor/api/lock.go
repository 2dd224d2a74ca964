package api

import (
	"context"
	"net/http"

	"github.com/minke-os/minke/supervisor/model"
)

type lockAnswer struct {
	AppID   int    `json:"appId"`
	Service string `json:"serviceName"`
	Holder  string `json:"holder"`
	Since   string `json:"since"`
}

func (s *server) locks(w http.ResponseWriter, r *request) error {
	list, err := s.b.Locks()
	if err != nil {
		return err
	}
	out := struct {
		Status string       `json:"status"`
		Locks  []lockAnswer `json:"locks"`
	}{success, []lockAnswer{}}
	for _, h := range list {
		if r.scope.allows(h.App) {
			out.Locks = append(out.Locks, lockAnswer{int(h.App), h.Service, string(h.Holder), isoTime(h.Since)})
		}
	}
	write(w, http.StatusOK, out)
	return nil
}

func (s *server) holdLock(w http.ResponseWriter, r *request) error {
	return s.lockAction(w, r, s.b.HoldLocks)
}

func (s *server) freeLock(w http.ResponseWriter, r *request) error {
	return s.lockAction(w, r, s.b.FreeLocks)
}

// lockAction is for the service that the body names, else for all of the
// application.
func (s *server) lockAction(w http.ResponseWriter, r *request, act func(context.Context, model.AppID, []string, bool) error) error {
	id, valid := r.pathApp()
	if !valid {
		return jsonError(http.StatusBadRequest, "Invalid app id")
	}
	if !r.scope.allows(id) {
		return jsonError(http.StatusUnauthorized, "Unauthorized")
	}
	app, ok := s.b.Target().App(id)
	if !ok {
		return jsonError(http.StatusNotFound, "application %d is not in the target state", id)
	}
	name, named := model.Str(r.body["serviceName"])
	var services []string
	for _, svc := range app.Services {
		if !named || svc.Name == name {
			services = append(services, svc.Name)
		}
	}
	if len(services) == 0 {
		return jsonError(http.StatusNotFound, "application %d has no service %q", id, name)
	}
	if err := act(r.Context(), id, services, r.force()); err != nil {
		return err
	}
	write(w, http.StatusOK, struct {
		Status string `json:"status"`
	}{success})
	return nil
}
