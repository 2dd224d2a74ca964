package api

import (
	"net/http"

	"github.com/moby/moby/api/types/volume"
)

func (s *Server) volumeList(w http.ResponseWriter, r *http.Request) error {
	f, err := filtersOf(r)
	if err != nil {
		return err
	}
	list, err := s.engine.VolumeList(f)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, list)
}

func (s *Server) volumeCreate(w http.ResponseWriter, r *http.Request) error {
	var req volume.CreateRequest
	if err := readJSON(r, &req, false); err != nil {
		return err
	}
	v, err := s.engine.VolumeCreate(req)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusCreated, v)
}

func (s *Server) volumeInspect(w http.ResponseWriter, r *http.Request) error {
	v, err := s.engine.VolumeInspect(r.PathValue("name"))
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, v)
}

func (s *Server) volumeRemove(w http.ResponseWriter, r *http.Request) error {
	return done(w, s.engine.VolumeRemove(r.PathValue("name"), boolParam(r, "force")))
}

func (s *Server) volumePrune(w http.ResponseWriter, r *http.Request) error {
	f, err := filtersOf(r)
	if err != nil {
		return err
	}
	if versionOf(r) < 42 { // named volumes were pruned, too
		f = engineFilters(f, "all", "true")
	}
	report, err := s.engine.VolumePrune(f)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, report)
}
