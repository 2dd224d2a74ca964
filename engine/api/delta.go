package api

import (
	"cmp"
	"encoding/json"
	"net/http"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/jsonstream"

	"github.com/minke-os/minke/engine"
	"github.com/minke-os/minke/engine/registry"
	"github.com/minke-os/minke/engine/store"
	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/oci"
)

// deltaReport is what costs the bytes of a delta.
type deltaReport struct {
	Base   string // ID of the image that it was made from
	Size   int64
	Layers []deltaLayer
}

type deltaLayer struct {
	Layer string // diff ID
	Size  int64
	Table int64 // of files: the header and the skeleton
	deltaCost
	Count int         // of new contents
	Files []deltaFile // the most costly of them, in this order
}

type deltaCost struct{ Whole, Operations, Changes, Added int64 }

type deltaFile struct {
	Path   string // "" where it is not known
	Digest string
	Base   string // path or, where that is not known, digest of what it is made from; "" if it is sent whole
	Opened bool   // what it is made from, too: both are compressed
	Size   int64
	Cost   int64
	deltaCost
}

func reportOf(r store.DeltaReport) deltaReport {
	out := deltaReport{Base: string(r.Base), Layers: []deltaLayer{}}
	for _, l := range r.Layers {
		layer := deltaLayer{Layer: string(l.Target), Size: l.Size, Table: l.Header + l.Skeleton, deltaCost: deltaCost(l.Contents), Count: l.Count, Files: []deltaFile{}}
		for _, f := range l.Files {
			layer.Files = append(layer.Files, deltaFile{
				Path: f.Path, Digest: string(f.Content.Digest), Base: cmp.Or(l.Bases[f.Base.Digest], string(f.Base.Digest)),
				Opened: f.Opened, Size: f.Content.Size, Cost: f.Cost.Total(), deltaCost: deltaCost(f.Cost),
			})
		}
		out.Layers = append(out.Layers, layer)
		out.Size += l.Size
	}
	return out
}

// deltaInspect answers GET /minke/delta/report?image=: what the deltas cost that
// a registry has of an image.
func (s *Server) deltaInspect(w http.ResponseWriter, r *http.Request) error {
	all, err := s.engine.DeltaInspectAll(r.Context(), r.URL.Query().Get("image"), credentialsOf(r))
	if err != nil {
		return err
	}
	reports := []deltaReport{}
	for _, d := range all {
		reports = append(reports, reportOf(d))
	}
	return writeJSON(w, http.StatusOK, reports)
}

// deltaInspectFile answers POST /minke/delta/report with an archive.
func (s *Server) deltaInspectFile(w http.ResponseWriter, r *http.Request) error {
	d, err := s.engine.DeltaInspectFile(r.Context(), r.Body)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, []deltaReport{reportOf(d)})
}

func deltaOptions(r *http.Request, progress func(registry.Progress)) (engine.DeltaOptions, error) {
	o := engine.DeltaOptions{Progress: func(layer oci.DiffID, done, total int64) {
		progress(registry.Progress{ID: oci.Digest(layer).Hex()[:12], Layer: true, Status: "Computing delta", Current: done, Total: total})
	}}
	text := r.URL.Query().Get("memory")
	if text == "" {
		return o, nil
	}
	n, err := units.RAMInBytes(text)
	if err != nil || n <= 0 {
		return o, errdef.Invalid.Errorf("memory %q: want a size such as 512m", text)
	}
	o.Memory = n
	return o, nil
}

// deltaPush answers POST /minke/delta?base=&target=&push=: it makes a delta and
// brings it to a registry, or, without push, only says what it would cost.
func (s *Server) deltaPush(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	out := &messages{w: w}
	o, err := deltaOptions(r, out.progress)
	if err != nil {
		return err
	}
	d, err := s.engine.DeltaCreate(r.Context(), q.Get("base"), q.Get("target"), o)
	if err != nil {
		return out.fail(err)
	}
	defer d.Close()
	report, err := s.engine.DeltaInspect(r.Context(), d)
	if err != nil {
		return out.fail(err)
	}
	aux, err := json.Marshal(reportOf(report))
	if err != nil {
		return err
	}
	out.send(message{Message: jsonstream.Message{Aux: (*json.RawMessage)(&aux)}})
	if q.Get("push") == "" {
		return nil
	}
	return out.fail(s.engine.DeltaPush(r.Context(), d, q.Get("push"), engine.PushOptions{
		Credentials: credentialsOf(r), Progress: out.progress, Pushed: out.pushed,
	}))
}

// deltaSave answers GET /minke/delta?base=&target= with an archive.
func (s *Server) deltaSave(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	o, err := deltaOptions(r, func(registry.Progress) {})
	if err != nil {
		return err
	}
	d, err := s.engine.DeltaCreate(r.Context(), q.Get("base"), q.Get("target"), o)
	if err != nil {
		return err
	}
	defer d.Close()
	w.Header().Set("Content-Type", "application/x-tar")
	return s.engine.DeltaSave(d, w)
}

// imageDelta answers POST /images/delta?src=&dest=&t=, which balenaEngine has.
func (s *Server) imageDelta(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	out := &messages{w: w}
	id, err := s.engine.ImageDelta(r.Context(), q.Get("src"), q.Get("dest"), q.Get("t"), out.progress)
	if err != nil {
		return out.fail(err)
	}
	out.status("Created delta: " + string(id))
	if t := q.Get("t"); t != "" {
		out.status("Successfully tagged " + t)
	}
	return nil
}
