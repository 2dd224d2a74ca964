package api

import (
	"fmt"
	"net/http"

	"github.com/moby/moby/api/types/container"

	"github.com/minke-os/minke/internal/errdef"
)

func (s *Server) execCreate(w http.ResponseWriter, r *http.Request) error {
	var req container.ExecCreateRequest
	if err := readJSON(r, &req, false); err != nil {
		return err
	}
	id, err := s.engine.ExecCreate(r.Context(), r.PathValue("id"), req)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusCreated, container.ExecCreateResponse{ID: id})
}

func (s *Server) execStart(w http.ResponseWriter, r *http.Request) error {
	var req container.ExecStartRequest
	if err := readJSON(r, &req, true); err != nil {
		return err
	}
	a, err := s.engine.ExecStart(r.Context(), r.PathValue("id"), req)
	if err != nil && !req.Detach && errdef.Of(err) == errdef.Invalid {
		return s.execRefused(w, r, err)
	}
	if err != nil {
		return err
	}
	if a == nil {
		w.WriteHeader(http.StatusOK)
		return nil
	}
	return runAttached(w, r, a, streamType(versionOf(r), a.TTY))
}

// execRefused tells why a program does not run on the stream where its output
// would be: that is where clients show it from; of a status they show only the
// number. They take the exit code from the inspection.
func (s *Server) execRefused(w http.ResponseWriter, r *http.Request, why error) error {
	x, err := s.engine.ExecInspect(r.PathValue("id"))
	if err != nil {
		return err
	}
	tty := x.ProcessConfig.Tty
	conn, _, err := hijacked(w, r, streamType(versionOf(r), tty))
	if err != nil {
		return err
	}
	defer conn.Close()
	stdout, _ := outputs(conn, tty)
	fmt.Fprintf(stdout, "%s\r\n", why)
	return nil
}

func (s *Server) execResize(w http.ResponseWriter, r *http.Request) error {
	height, width, err := sizeParams(r)
	if err != nil {
		return err
	}
	if err := s.engine.ExecResize(r.Context(), r.PathValue("id"), height, width); err != nil {
		return err
	}
	w.WriteHeader(http.StatusOK)
	return nil
}

func (s *Server) execInspect(w http.ResponseWriter, r *http.Request) error {
	x, err := s.engine.ExecInspect(r.PathValue("id"))
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, x)
}
