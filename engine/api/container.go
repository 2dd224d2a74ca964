package api

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"strconv"
	"time"

	"github.com/moby/moby/api/types/container"
	"golang.org/x/net/websocket"

	"github.com/minke-os/minke/engine"
	"github.com/minke-os/minke/internal/errdef"
)

func filtersOf(r *http.Request) (engine.Filters, error) {
	return engine.ParseFilters(r.URL.Query().Get("filters"))
}

func (s *Server) containerList(w http.ResponseWriter, r *http.Request) error {
	f, err := filtersOf(r)
	if err != nil {
		return err
	}
	limit, _, err := intParam(r, "limit")
	if err != nil {
		return err
	}
	o := engine.ListOptions{All: boolParam(r, "all"), Limit: limit, Size: boolParam(r, "size"), Filters: f}
	list, err := s.engine.ContainerList(r.Context(), o)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, list)
}

func (s *Server) containerCreate(w http.ResponseWriter, r *http.Request) error {
	var req createRequest
	if err := readJSON(r, &req, false); err != nil {
		return err
	}
	if err := req.settle(); err != nil {
		return err
	}
	q := r.URL.Query()
	created, err := s.engine.ContainerCreate(r.Context(), q.Get("name"), q.Get("platform"), req.CreateRequest)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusCreated, created)
}

func (s *Server) containerInspect(w http.ResponseWriter, r *http.Request) error {
	c, err := s.engine.ContainerInspect(r.PathValue("id"), boolParam(r, "size"))
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, withAddress(c))
}

// done answers an action that has no result.
func done(w http.ResponseWriter, err error) error {
	if err == nil {
		w.WriteHeader(http.StatusNoContent)
	}
	return err
}

func (s *Server) containerStart(w http.ResponseWriter, r *http.Request) error {
	return done(w, s.engine.ContainerStart(r.Context(), r.PathValue("id")))
}

func stopOptions(r *http.Request) (engine.StopOptions, error) {
	o := engine.StopOptions{Signal: r.URL.Query().Get("signal")}
	n, given, err := intParam(r, "t")
	if given {
		o.Timeout = &n
	}
	return o, err
}

func (s *Server) containerStop(w http.ResponseWriter, r *http.Request) error {
	o, err := stopOptions(r)
	if err != nil {
		return err
	}
	return done(w, s.engine.ContainerStop(r.Context(), r.PathValue("id"), o))
}

func (s *Server) containerRestart(w http.ResponseWriter, r *http.Request) error {
	o, err := stopOptions(r)
	if err != nil {
		return err
	}
	return done(w, s.engine.ContainerRestart(r.Context(), r.PathValue("id"), o))
}

func (s *Server) containerKill(w http.ResponseWriter, r *http.Request) error {
	return done(w, s.engine.ContainerKill(r.Context(), r.PathValue("id"), r.URL.Query().Get("signal")))
}

func (s *Server) containerPause(w http.ResponseWriter, r *http.Request) error {
	return done(w, s.engine.ContainerPause(r.Context(), r.PathValue("id")))
}

func (s *Server) containerUnpause(w http.ResponseWriter, r *http.Request) error {
	return done(w, s.engine.ContainerUnpause(r.Context(), r.PathValue("id")))
}

func (s *Server) containerRename(w http.ResponseWriter, r *http.Request) error {
	return done(w, s.engine.ContainerRename(r.Context(), r.PathValue("id"), r.URL.Query().Get("name")))
}

func (s *Server) containerRemove(w http.ResponseWriter, r *http.Request) error {
	o := engine.RemoveOptions{Force: boolParam(r, "force"), Volumes: boolParam(r, "v")}
	if boolParam(r, "link") {
		return done(w, s.engine.LinkRemove(r.PathValue("id")))
	}
	return done(w, s.engine.ContainerRemove(r.Context(), r.PathValue("id"), o))
}

func (s *Server) containerUpdate(w http.ResponseWriter, r *http.Request) error {
	var req container.UpdateConfig
	if err := readJSON(r, &req, false); err != nil {
		return err
	}
	out, err := s.engine.ContainerUpdate(r.Context(), r.PathValue("id"), req)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, out)
}

func (s *Server) containerResize(w http.ResponseWriter, r *http.Request) error {
	height, width, err := sizeParams(r)
	if err != nil {
		return err
	}
	if err := s.engine.ContainerResize(r.Context(), r.PathValue("id"), height, width); err != nil {
		return err
	}
	w.WriteHeader(http.StatusOK)
	return nil
}

func (s *Server) containerWait(w http.ResponseWriter, r *http.Request) error {
	cond := container.WaitCondition(r.URL.Query().Get("condition"))
	switch cond {
	case "":
		cond = container.WaitConditionNotRunning
	case container.WaitConditionNotRunning, container.WaitConditionNextExit, container.WaitConditionRemoved:
	default:
		return errdef.Invalid.Errorf("invalid condition: %q", cond)
	}
	wait, err := s.engine.ContainerWait(r.PathValue("id"), cond)
	if err != nil {
		return err
	}
	// The client starts the container when it has seen this.
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusOK)
	if http.NewResponseController(w).Flush() != nil {
		return nil // the client left
	}
	code, err := wait(r.Context())
	if err != nil {
		return nil // the client left
	}
	return json.NewEncoder(w).Encode(container.WaitResponse{StatusCode: int64(code)})
}

func (s *Server) containerLogs(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	o := engine.LogOptions{
		Stdout: boolParam(r, "stdout"), Stderr: boolParam(r, "stderr"), Follow: boolParam(r, "follow"), Timestamps: boolParam(r, "timestamps"),
		Details: boolParam(r, "details"), Tail: -1,
	}
	if t := q.Get("tail"); t != "" && t != "all" {
		// A tail that is no number is all, as in Docker.
		if n, err := strconv.Atoi(t); err == nil && n >= 0 {
			o.Tail = n
		}
	}
	var err error
	now := time.Now()
	if o.Since, err = engine.ParseTime(q.Get("since"), now); err != nil {
		return err
	}
	if o.Until, err = engine.ParseTime(q.Get("until"), now); err != nil {
		return err
	}
	logs, err := s.engine.ContainerLogs(r.PathValue("id"), o)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", streamType(versionOf(r), logs.TTY))
	w.WriteHeader(http.StatusOK)
	out := flushing(w)
	if out.rc.Flush() != nil {
		return nil // the client left
	}
	stdout, stderr := outputs(out, logs.TTY)
	if err := logs.Copy(r.Context(), stdout, stderr); err != nil && r.Context().Err() == nil {
		s.log.Warn("logs", "container", r.PathValue("id"), "err", err)
	}
	return nil
}

func (s *Server) containerTop(w http.ResponseWriter, r *http.Request) error {
	top, err := s.engine.ContainerTop(r.PathValue("id"), r.URL.Query().Get("ps_args"))
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, top)
}

func (s *Server) containerStats(w http.ResponseWriter, r *http.Request) error {
	o := engine.StatsOptions{Stream: boolOr(r, "stream", true), OneShot: boolParam(r, "one-shot")}
	if o.Stream && o.OneShot {
		return errdef.Invalid.Errorf("cannot have stream=true and one-shot=true")
	}
	w.Header().Set("Content-Type", "application/json")
	enc, sent := json.NewEncoder(flushing(w)), false
	err := s.engine.ContainerStats(r.Context(), r.PathValue("id"), o, func(sample container.StatsResponse) error {
		sent = true
		return enc.Encode(sample)
	})
	if !sent {
		return err
	}
	return s.streamed(r, err)
}

func attachOptions(r *http.Request) engine.AttachOptions {
	return engine.AttachOptions{
		Stdin: boolParam(r, "stdin"), Stdout: boolParam(r, "stdout"), Stderr: boolParam(r, "stderr"),
		Logs: boolParam(r, "logs"), Stream: boolParam(r, "stream"), DetachKeys: r.URL.Query().Get("detachKeys"),
	}
}

func (s *Server) containerAttach(w http.ResponseWriter, r *http.Request) error {
	a, err := s.engine.Attach(r.Context(), r.PathValue("id"), attachOptions(r))
	if err != nil {
		return err
	}
	return runAttached(w, r, a, streamType(versionOf(r), a.TTY))
}

// containerAttachWS is attach for browsers: over a websocket, both outputs as
// they come, in binary frames.
func (s *Server) containerAttachWS(w http.ResponseWriter, r *http.Request) error {
	a, err := s.engine.Attach(r.Context(), r.PathValue("id"), attachOptions(r))
	if err != nil {
		return err
	}
	ran := false
	websocket.Server{Handler: func(conn *websocket.Conn) {
		ran = true
		conn.PayloadType = websocket.BinaryFrame
		a.Run(context.WithoutCancel(r.Context()), conn, conn, conn)
	}}.ServeHTTP(w, r)
	if !ran {
		a.Close() // it was no websocket's request, and has been told so
	}
	return nil
}

func (s *Server) containerChanges(w http.ResponseWriter, r *http.Request) error {
	changes, err := s.engine.ContainerChanges(r.PathValue("id"))
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, changes)
}

func (s *Server) containerExport(w http.ResponseWriter, r *http.Request) error {
	write, err := s.engine.ContainerExport(r.PathValue("id"))
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	return s.streamed(r, write(r.Context(), w))
}

// streamed ends an answer whose status was sent: an error breaks the
// connection, so that the client does not take half for the whole.
func (s *Server) streamed(r *http.Request, err error) error {
	if err == nil {
		return nil
	}
	if r.Context().Err() == nil {
		s.log.Error("answer broken off", "path", r.URL.Path, "err", err)
	}
	panic(http.ErrAbortHandler)
}

func statHeader(w http.ResponseWriter, stat container.PathStat) error {
	data, err := json.Marshal(stat)
	if err != nil {
		return err
	}
	w.Header().Set("X-Docker-Container-Path-Stat", base64.StdEncoding.EncodeToString(data))
	return nil
}

func (s *Server) archiveHead(w http.ResponseWriter, r *http.Request) error {
	stat, err := s.engine.StatPath(r.PathValue("id"), r.URL.Query().Get("path"))
	if err != nil {
		return err
	}
	return statHeader(w, stat)
}

func (s *Server) archiveGet(w http.ResponseWriter, r *http.Request) error {
	stat, write, closer, err := s.engine.CopyFrom(r.PathValue("id"), r.URL.Query().Get("path"))
	if err != nil {
		return err
	}
	defer closer()
	if err := statHeader(w, stat); err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/x-tar")
	return s.streamed(r, write(w))
}

func (s *Server) archivePut(w http.ResponseWriter, r *http.Request) error {
	o := engine.CopyToOptions{KeepType: boolParam(r, "noOverwriteDirNonDir"), AsUser: boolParam(r, "copyUIDGID")}
	if err := s.engine.CopyTo(r.PathValue("id"), r.URL.Query().Get("path"), r.Body, o); err != nil {
		return err
	}
	w.WriteHeader(http.StatusOK)
	return nil
}

func (s *Server) containerCommit(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	o := engine.CommitOptions{
		Repo: q.Get("repo"), Tag: q.Get("tag"), Author: q.Get("author"), Comment: q.Get("comment"), Pause: boolOr(r, "pause", true), Changes: q["changes"],
	}
	var config container.Config
	if err := readJSON(r, &config, true); err != nil {
		return err
	}
	if r.ContentLength != 0 && (config.Cmd != nil || config.Env != nil || config.Labels != nil) {
		o.Config = &config
	}
	id, err := s.engine.ContainerCommit(r.Context(), q.Get("container"), o)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusCreated, container.CommitResponse{ID: string(id)})
}

func (s *Server) containersPrune(w http.ResponseWriter, r *http.Request) error {
	f, err := filtersOf(r)
	if err != nil {
		return err
	}
	report, err := s.engine.ContainersPrune(r.Context(), f)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, report)
}
