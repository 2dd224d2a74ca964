package api

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/moby/moby/api/types/events"

	"github.com/minke-os/minke/engine"
	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/oci"
)

func (s *Server) ping(w http.ResponseWriter, r *http.Request) error {
	h := w.Header()
	h.Set("Cache-Control", "no-cache, no-store, must-revalidate")
	h.Set("Pragma", "no-cache")
	h.Set("Builder-Version", "1") // the classic builder
	h.Set("Swarm", "inactive")
	h.Set("Content-Type", "text/plain; charset=utf-8")
	if r.Method == http.MethodHead {
		h.Set("Content-Length", "0")
		return nil
	}
	_, err := w.Write([]byte("OK"))
	return err
}

func (s *Server) version(w http.ResponseWriter, r *http.Request) error {
	return writeJSON(w, http.StatusOK, serverVersion(s.engine.Version()))
}

func (s *Server) info(w http.ResponseWriter, r *http.Request) error {
	info, err := s.engine.Info()
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, info)
}

func (s *Server) systemDF(w http.ResponseWriter, r *http.Request) error {
	u, err := s.engine.DiskUsage(r.Context())
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, usageFor(versionOf(r), u, boolParam(r, "verbose")))
}

func (s *Server) plugins(w http.ResponseWriter, r *http.Request) error {
	return writeJSON(w, http.StatusOK, []struct{}{})
}

// events streams events of the past and the present until the client leaves or
// the time it named.
func (s *Server) events(w http.ResponseWriter, r *http.Request) error {
	f, err := filtersOf(r)
	if err != nil {
		return err
	}
	q, now := r.URL.Query(), time.Now()
	since, err := engine.ParseTime(q.Get("since"), now)
	if err != nil {
		return err
	}
	until, err := engine.ParseTime(q.Get("until"), now)
	if err != nil {
		return err
	}
	if !since.IsZero() && !until.IsZero() && until.Before(since) {
		return errdef.Invalid.Errorf("`since` time (%s) cannot be after `until` time (%s)", q.Get("since"), q.Get("until"))
	}
	past, next, stop := s.engine.Events()
	defer stop()
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusOK)
	out := flushing(w)
	if out.rc.Flush() != nil {
		return nil // the client left
	}
	enc := json.NewEncoder(out)
	if !since.IsZero() {
		for _, m := range past {
			at := time.Unix(0, m.TimeNano)
			if at.Before(since) || !until.IsZero() && at.After(until) || !wanted(f, m) {
				continue
			}
			if err := enc.Encode(withStatus(m)); err != nil {
				return nil
			}
		}
	}
	var deadline <-chan time.Time
	if !until.IsZero() {
		timer := time.NewTimer(time.Until(until))
		defer timer.Stop()
		deadline = timer.C
	}
	for {
		select {
		case m, ok := <-next:
			if !ok {
				return nil
			}
			if wanted(f, m) && enc.Encode(withStatus(m)) != nil {
				return nil
			}
		case <-deadline:
			return nil
		case <-r.Context().Done():
			return nil
		}
	}
}

// wanted applies the filters of GET /events.
func wanted(f engine.Filters, m events.Message) bool {
	is := func(key string, values ...string) bool {
		return len(f[key]) == 0 || slices.ContainsFunc(f[key], func(want string) bool { return slices.Contains(values, want) })
	}
	of := func(key string, t events.Type) bool {
		if len(f[key]) == 0 {
			return true
		}
		if m.Type != t {
			return false
		}
		return slices.ContainsFunc(f[key], func(want string) bool {
			return m.Actor.Attributes["name"] == want || m.Actor.ID == want || len(want) >= 4 && len(m.Actor.ID) > len(want) && m.Actor.ID[:len(want)] == want
		})
	}
	short, _, _ := strings.Cut(string(m.Action), ":")
	return is("type", string(m.Type)) && is("event", string(m.Action), short) && is("scope", m.Scope) &&
		of("container", events.ContainerEventType) && of("network", events.NetworkEventType) && of("volume", events.VolumeEventType) &&
		is("image", imagesOf(m)...) &&
		f.Labels("label", m.Actor.Attributes)
}

// imagesOf are the names under which an event's image may be asked for, with
// and without its tag.
func imagesOf(m events.Message) (names []string) {
	name := m.Actor.Attributes["image"]
	if m.Type == events.ImageEventType {
		name = m.Actor.Attributes["name"]
	}
	for _, n := range []string{name, m.Actor.ID} {
		names = append(names, n)
		if ref, err := oci.ParseReference(n); err == nil {
			names = append(names, ref.FamiliarRepository())
		}
	}
	return names
}
