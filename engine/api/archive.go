package api

import (
	"cmp"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"

	"github.com/moby/moby/api/types/jsonstream"

	"github.com/minke-os/minke/engine"
	"github.com/minke-os/minke/engine/archive"
	"github.com/minke-os/minke/engine/build"
	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/oci"
)

// messages is an answer of JSON objects, one a line, as load, import, pull and
// build give. Its status is sent with the first one, so an error before that
// has a status code of its own. Methods may be called from many goroutines.
type messages struct {
	w    http.ResponseWriter
	mu   sync.Mutex
	sent bool
}

// A message has the old field "error" beside the new one; clients read either.
type message struct {
	jsonstream.Message
	ErrorText    string `json:"error,omitempty"`
	ProgressText string `json:"progress,omitempty"`
}

func (m *messages) send(msg message) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.sent {
		m.w.Header().Set("Content-Type", "application/json")
		m.w.WriteHeader(http.StatusOK)
		m.sent = true
	}
	enc := json.NewEncoder(flushing(m.w))
	enc.SetEscapeHTML(false)
	return enc.Encode(msg)
}

func (m *messages) stream(text string) error {
	return m.send(message{Message: jsonstream.Message{Stream: text}})
}

func (m *messages) status(text string) error {
	return m.send(message{Message: jsonstream.Message{Status: text}})
}

// fail ends the answer with an error: as a line if the status is out already.
func (m *messages) fail(err error) error {
	m.mu.Lock()
	sent := m.sent
	m.mu.Unlock()
	if err == nil || !sent {
		return err
	}
	detail := &jsonstream.Error{Message: err.Error()}
	if exit, ok := errors.AsType[*build.ExitError](err); ok {
		detail.Code = exit.Code // the CLI ends with it
	}
	m.send(message{Message: jsonstream.Message{Error: detail}, ErrorText: err.Error()})
	return nil
}

// streamWriter sends what is written as stream messages.
type streamWriter struct {
	m             *messages
	before, after string // colour, as the classic builder marks what came by stderr
}

func (w streamWriter) Write(p []byte) (int, error) {
	if err := w.m.stream(w.before + string(p) + w.after); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (s *Server) imageLoad(w http.ResponseWriter, r *http.Request) error {
	platform, err := platformOf(r)
	if err != nil {
		return err
	}
	defer bothWays(w, r)()
	out := &messages{w: w}
	quiet := boolParam(r, "quiet")
	err = s.engine.ImageLoad(r.Context(), r.Body, platform, func(p archive.Progress) {
		switch {
		case p.Loaded != "" && strings.HasPrefix(p.Loaded, oci.Prefix):
			out.stream("Loaded image ID: " + p.Loaded + "\n")
		case p.Loaded != "":
			out.stream("Loaded image: " + p.Loaded + "\n")
		case !quiet:
			out.send(message{Message: jsonstream.Message{
				ID: p.ID, Status: "Loading layer", Progress: &jsonstream.Progress{Current: p.Current, Total: p.Total},
			}})
		}
	})
	return out.fail(err)
}

func (s *Server) imageSave(w http.ResponseWriter, r *http.Request) error {
	return s.save(w, r, r.URL.Query()["names"])
}

func (s *Server) save(w http.ResponseWriter, r *http.Request, names []string) error {
	platform, err := platformOf(r)
	if err != nil {
		return err
	}
	write, err := s.engine.ImageSave(r.Context(), names, platform)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/x-tar")
	return s.streamed(r, write(w))
}

// imageCreate pulls (fromImage) or imports (fromSrc).
func (s *Server) imageCreate(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	if q.Get("fromImage") != "" {
		return s.imagePull(w, r)
	}
	src := q.Get("fromSrc")
	if src == "" {
		return errdef.Invalid.Errorf("name an image (fromImage) or a source (fromSrc)")
	}
	body := io.Reader(r.Body)
	if src != "-" {
		remote, err := fetch(r, src)
		if err != nil {
			return err
		}
		defer remote.Close()
		body = remote
	}
	o := engine.ImportOptions{Repo: q.Get("repo"), Tag: q.Get("tag"), Message: cmp.Or(q.Get("message"), "Imported from "+src), Changes: q["changes"]}
	if p := q.Get("platform"); p != "" {
		var err error
		if o.Platform, err = oci.ParsePlatform(p); err != nil {
			return errdef.Invalid.Wrap(err)
		}
	}
	id, err := s.engine.ImageImport(r.Context(), body, o)
	if err != nil {
		return err
	}
	out := &messages{w: w}
	return out.status(string(id))
}

// fetch opens a remote source of import or build.
func fetch(r *http.Request, url string) (io.ReadCloser, error) {
	if !strings.HasPrefix(url, "http://") && !strings.HasPrefix(url, "https://") {
		return nil, errdef.Invalid.Errorf("source %q: want an http or https URL, or -", url)
	}
	req, err := http.NewRequestWithContext(r.Context(), http.MethodGet, url, nil)
	if err != nil {
		return nil, errdef.Invalid.Wrap(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, errdef.Unavailable.Errorf("fetch %s: %w", url, err)
	}
	if resp.StatusCode != http.StatusOK {
		resp.Body.Close()
		return nil, errdef.Unavailable.Errorf("fetch %s: the server answered %s", url, resp.Status)
	}
	return resp.Body, nil
}
