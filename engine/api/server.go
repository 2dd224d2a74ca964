// Package api serves the Docker Engine API over an engine.
//
// It is three layers thin: routes in one table (routes.go), handlers that
// decode, call and encode (a file per noun), and one adapter that turns an
// error's kind into a status code. What differs between API versions is in
// versions.go. Streams (attach, exec, logs, build, events) are framed, flushed
// and ended here; the engine sees contexts, readers and writers.
//
// Reference: the Docker Engine API specification that belongs to
// github.com/moby/moby/api, versions 1.22 to 1.56.
package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/common"

	"github.com/minke-os/minke/internal/errdef"
)

// A Server answers requests; it is an http.Handler.
type Server struct {
	engine Engine
	log    *slog.Logger
	mux    *http.ServeMux
}

// New makes a server for an engine.
func New(e Engine, log *slog.Logger) *Server {
	s := &Server{engine: e, log: log, mux: http.NewServeMux()}
	s.routes()
	return s
}

// A handler answers a request, or returns why it cannot. Once it has written
// it must return nil, or an error that can only be logged.
type handler func(w http.ResponseWriter, r *http.Request) error

func (s *Server) handle(pattern string, h handler) {
	s.mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		if err := h(w, r); err != nil {
			s.fail(w, r, err)
		}
	})
}

// ServeHTTP takes the version off the path and hands on.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Api-Version", MaxVersion)
	w.Header().Set("Docker-Experimental", "false")
	w.Header().Set("Ostype", "linux")
	w.Header().Set("Server", "minke/"+s.engine.Version().Version+" (linux)")
	v, rest, err := cutVersion(r.URL.Path)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	r = r.WithContext(context.WithValue(r.Context(), versionKey{}, v))
	r.URL.Path, r.URL.RawPath = rest, ""
	s.mux.ServeHTTP(w, r)
}

// statusOf maps an error's kind to a status code, here and nowhere else.
func statusOf(err error) int {
	switch errdef.Of(err) {
	case errdef.Invalid:
		return http.StatusBadRequest
	case errdef.Unauthorized:
		return http.StatusUnauthorized
	case errdef.Forbidden:
		return http.StatusForbidden
	case errdef.NotFound:
		return http.StatusNotFound
	case errdef.Conflict, errdef.Busy:
		return http.StatusConflict
	case errdef.NotModified:
		return http.StatusNotModified
	case errdef.Unavailable:
		return http.StatusServiceUnavailable
	case errdef.Unsupported:
		return http.StatusNotImplemented
	}
	return http.StatusInternalServerError
}

func (s *Server) fail(w http.ResponseWriter, r *http.Request, err error) {
	if r.Context().Err() != nil && errors.Is(err, context.Canceled) {
		return // the client left
	}
	status := statusOf(err)
	if status == http.StatusInternalServerError {
		s.log.Error("request failed", "method", r.Method, "path", r.URL.Path, "err", err)
	}
	if status == http.StatusNotModified {
		w.WriteHeader(status)
		return
	}
	writeJSON(w, status, common.ErrorResponse{Message: err.Error()})
}

// writeJSON answers with v. Its error is that v cannot be written as JSON; a
// client that has left gets none.
func writeJSON(w http.ResponseWriter, status int, v any) error {
	var body bytes.Buffer
	enc := json.NewEncoder(&body)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	w.Write(body.Bytes())
	return nil
}

// readJSON decodes a request's body. An empty body is an error unless optional.
func readJSON(r *http.Request, v any, optional bool) error {
	if r.ContentLength == 0 && optional {
		return nil
	}
	if ct := r.Header.Get("Content-Type"); ct != "" || !optional {
		if mt, _, err := mime.ParseMediaType(ct); err != nil || mt != "application/json" {
			if r.ContentLength != 0 {
				return errdef.Invalid.Errorf("unsupported Content-Type header (%s): must be 'application/json'", ct)
			}
		}
	}
	dec := json.NewDecoder(r.Body)
	err := dec.Decode(v)
	switch {
	case err == io.EOF && optional:
		return nil
	case err == io.EOF:
		return errdef.Invalid.Errorf("invalid JSON: got EOF while reading request body")
	case err != nil:
		return errdef.Invalid.Errorf("invalid JSON: %w", err)
	}
	if dec.More() {
		return errdef.Invalid.Errorf("unexpected content after JSON")
	}
	return nil
}

// boolParam reads a flag of the query as Docker does: anything but these words
// is true.
func boolParam(r *http.Request, name string) bool { return boolOr(r, name, false) }

func boolOr(r *http.Request, name string, otherwise bool) bool {
	if !r.URL.Query().Has(name) {
		return otherwise
	}
	switch strings.ToLower(strings.TrimSpace(r.URL.Query().Get(name))) {
	case "", "0", "no", "false", "none":
		return false
	}
	return true
}

func intParam(r *http.Request, name string) (n int, given bool, err error) {
	text := r.URL.Query().Get(name)
	if text == "" {
		return 0, false, nil
	}
	if n, err = strconv.Atoi(text); err != nil {
		return 0, false, errdef.Invalid.Errorf("invalid value %q for %s: want a number", text, name)
	}
	return n, true, nil
}

// flushed writes through to the client at once.
type flushed struct {
	w  io.Writer
	rc *http.ResponseController
}

func flushing(w http.ResponseWriter) flushed { return flushed{w, http.NewResponseController(w)} }

func (f flushed) Write(p []byte) (int, error) {
	n, err := f.w.Write(p)
	if err == nil {
		err = f.rc.Flush()
	}
	return n, err
}

func notFound(w http.ResponseWriter, r *http.Request) error {
	return errdef.NotFound.Errorf("page not found")
}

func refused(what string) handler {
	return func(http.ResponseWriter, *http.Request) error {
		return errdef.Unavailable.Errorf("%s", what)
	}
}

func sizeParams(r *http.Request) (height, width uint16, err error) {
	var out [2]uint16
	for i, name := range []string{"h", "w"} {
		n, err := strconv.ParseUint(r.URL.Query().Get(name), 10, 16)
		if err != nil {
			return 0, 0, errdef.Invalid.Errorf("invalid resize %s %q: %w", map[string]string{"h": "height", "w": "width"}[name], r.URL.Query().Get(name), err)
		}
		out[i] = uint16(n)
	}
	return out[0], out[1], nil
}
