package api

import (
	"encoding/json"
	"errors"
	"net/http"
	"strings"

	"github.com/moby/moby/api/types/image"

	"github.com/minke-os/minke/engine"
	"github.com/minke-os/minke/engine/store"
	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/oci"
)

func (s *Server) imageList(w http.ResponseWriter, r *http.Request) error {
	f, err := filtersOf(r)
	if err != nil {
		return err
	}
	if name := r.URL.Query().Get("filter"); name != "" && versionOf(r) < 41 {
		f = engineFilters(f, "reference", name)
	}
	list, err := s.engine.ImageList(engine.ImageListOptions{All: boolParam(r, "all"), SharedSize: boolParam(r, "shared-size"), Filters: f})
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, oldImages(list, versionOf(r)))
}

// imageGet tells GET /images/{name}/{json,history,get} apart.
func (s *Server) imageGet(w http.ResponseWriter, r *http.Request) error {
	path := r.PathValue("name")
	p, err := platformOf(r)
	if err != nil {
		return err
	}
	if name, ok := strings.CutSuffix(path, "/json"); ok {
		i, err := s.engine.ImageInspect(name, p)
		if err != nil {
			return err
		}
		if v := versionOf(r); v < 52 {
			return writeJSON(w, http.StatusOK, oldImage(i, v))
		}
		return writeJSON(w, http.StatusOK, withContainerConfig(i))
	}
	if name, ok := strings.CutSuffix(path, "/history"); ok {
		h, err := s.engine.ImageHistory(name, p)
		if err != nil {
			return err
		}
		return writeJSON(w, http.StatusOK, h)
	}
	if name, ok := strings.CutSuffix(path, "/get"); ok {
		return s.save(w, r, []string{name})
	}
	return notFound(w, r)
}

// platformOf reads the platform by which images are chosen since API 1.48: a
// JSON object of the OCI's, which some clients give as text.
func platformOf(r *http.Request) (p oci.Platform, err error) {
	text := r.URL.Query().Get("platform")
	switch {
	case text == "":
		return p, nil
	case strings.HasPrefix(text, "{"):
		if err = json.Unmarshal([]byte(text), &p); err == nil && (p.OS == "" || p.Architecture == "") {
			err = errors.New("os or architecture is missing")
		}
	default:
		p, err = oci.ParsePlatform(text)
	}
	if err != nil {
		return p, errdef.Invalid.Errorf("platform %q: %w", text, err)
	}
	return p, nil
}

// imagePost tells POST /images/{name}/{tag,push} apart.
func (s *Server) imagePost(w http.ResponseWriter, r *http.Request) error {
	path := r.PathValue("name")
	if name, ok := strings.CutSuffix(path, "/tag"); ok {
		q := r.URL.Query()
		if err := s.engine.ImageTag(name, q.Get("repo"), q.Get("tag")); err != nil {
			return err
		}
		w.WriteHeader(http.StatusCreated)
		return nil
	}
	if name, ok := strings.CutSuffix(path, "/push"); ok {
		return s.imagePush(w, r, name)
	}
	return notFound(w, r)
}

func (s *Server) imageRemove(w http.ResponseWriter, r *http.Request) error {
	removed, err := s.engine.ImageRemove(r.Context(), r.PathValue("name"), store.RemoveOptions{Force: boolParam(r, "force"), KeepParents: boolParam(r, "noprune")})
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, removed)
}

func (s *Server) imagePrune(w http.ResponseWriter, r *http.Request) error {
	f, err := filtersOf(r)
	if err != nil {
		return err
	}
	deleted, reclaimed, err := s.engine.ImagePrune(r.Context(), f)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, struct {
		ImagesDeleted  []image.DeleteResponse
		SpaceReclaimed int64
	}{deleted, reclaimed})
}
