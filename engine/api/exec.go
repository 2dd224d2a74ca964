package api

import (
	"context"
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
	if req.Detach {
		if _, err := s.engine.ExecStart(r.Context(), r.PathValue("id"), req); err != nil {
			return err
		}
		w.WriteHeader(http.StatusOK)
		return nil
	}
	return s.execAttached(w, r, req)
}

// execAttached answers before the program starts: a client that reads ahead
// while it looks for the end of the header would lose the first output. So a
// failure is told on the stream, which is where clients show it from; they take
// the exit code from the inspection.
func (s *Server) execAttached(w http.ResponseWriter, r *http.Request, req container.ExecStartRequest) error {
	x, err := s.engine.ExecInspect(r.PathValue("id"))
	if err != nil {
		return err
	}
	if x.Running || x.ExitCode != nil {
		return errdef.Conflict.Errorf("exec instance %s has already run", x.ID)
	}
	tty := x.ProcessConfig.Tty
	conn, in, err := hijacked(w, r, streamType(versionOf(r), tty))
	if err != nil {
		return err
	}
	defer conn.Close()
	stdout, stderr := outputs(conn, tty)
	// The request's context ends with the hijacking handler, not the client.
	ctx := context.WithoutCancel(r.Context())
	a, err := s.engine.ExecStart(ctx, x.ID, req)
	if err != nil {
		fmt.Fprintf(stdout, "%s\r\n", err)
		return nil
	}
	a.Run(ctx, in, stdout, stderr)
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
