package api

import (
	"cmp"
	"encoding/json"
	"net/http"
	"slices"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/jsonstream"

	"github.com/minke-os/minke/engine"
	"github.com/minke-os/minke/engine/delta"
	"github.com/minke-os/minke/engine/registry"
	"github.com/minke-os/minke/engine/store"
	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/oci"
)

// deltaReport is what the makers of a delta want to know of it, in "aux".
type deltaReport struct {
	Size   int64
	Layers []deltaLayer
}

type deltaLayer struct {
	Layer    string // diff ID
	Size     int64
	Skeleton int64
	Files    []delta.FileReport // those that cost most
}

// reported is how many files of a layer are in a report.
const reported = 20

func reportOf(d *store.ImageDelta) (out deltaReport) {
	for _, l := range d.Layers {
		files := slices.Clone(l.Report.Files)
		slices.SortStableFunc(files, func(a, b delta.FileReport) int { return -cmp.Compare(a.Cost, b.Cost) })
		out.Layers = append(out.Layers, deltaLayer{string(l.Target), l.Size, l.Report.Skeleton, files[:min(len(files), reported)]})
		out.Size += l.Size
	}
	return out
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
	aux, err := json.Marshal(reportOf(d))
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
