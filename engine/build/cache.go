package build

import (
	"bytes"
	"context"
	"encoding/json"
	"slices"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"

	"github.com/minke-os/minke/engine/store"
	"github.com/minke-os/minke/oci"
)

// openCache lists what may be hit in this stage.
func (st *stage) openCache() error {
	st.cache = nil
	if st.o.NoCache {
		return nil
	}
	all, err := st.Store.Images()
	if err != nil {
		return err
	}
	st.cache = all
	if len(st.o.CacheFrom) > 0 {
		st.allowed = ancestors(all, st.sourcesOfCache())
	}
	return nil
}

// sourcesOfCache are the images that the request names as caches. What is not
// here is left out: only what was loaded or pulled before can help.
func (st *stage) sourcesOfCache() (list []store.Image) {
	for _, name := range st.o.CacheFrom {
		id, _, err := st.Store.Resolve(name)
		if err != nil {
			continue
		}
		if img, err := st.Store.Image(id); err == nil {
			list = append(list, img)
		}
	}
	return list
}

// ancestors are the images that others were built on.
func ancestors(all, of []store.Image) map[oci.ImageID]bool {
	parent := map[oci.ImageID]oci.ImageID{}
	for _, img := range all {
		parent[img.ID] = img.Parent
	}
	found := map[oci.ImageID]bool{}
	for _, img := range of {
		for id := parent[img.ID]; id != "" && !found[id]; id = parent[id] {
			found[id] = true
		}
	}
	return found
}

// hit goes on with the image that an earlier build made by the same
// instruction from the same image. After the first miss there are no more.
func (st *stage) hit(ctx context.Context, createdBy string) bool {
	for _, img := range st.cache {
		if st.allowed != nil && !st.allowed[img.ID] {
			continue
		}
		if img.Parent == st.image && st.follows(img, createdBy) {
			st.printf(" ---> Using cache\n")
			st.become(img)
			return true
		}
	}
	if st.hitForeign(ctx, createdBy) {
		return true
	}
	st.cache = nil
	return false
}

// follows reports whether an image is the current one and one instruction.
func (st *stage) follows(img store.Image, createdBy string) bool {
	n := len(st.config.History)
	if len(img.Config.History) != n+1 || img.Config.History[n].CreatedBy != createdBy {
		return false
	}
	if n == 0 && (img.Config.OS != st.config.OS || img.Config.Architecture != st.config.Architecture) {
		return false
	}
	want, err1 := json.Marshal(st.config.Config)
	got, err2 := json.Marshal(img.Config.Config)
	return err1 == nil && err2 == nil && bytes.Equal(want, got)
}

// hitForeign takes a step from the history of an image that the request names
// as a cache: it was built elsewhere, so its intermediate images are missing,
// but history and layers tell what they were.
func (st *stage) hitForeign(ctx context.Context, createdBy string) bool {
	if st.cache == nil {
		return false
	}
	for _, img := range st.sourcesOfCache() {
		layer, ok := st.foreignStep(img.Config, createdBy)
		if !ok {
			continue
		}
		step := len(st.config.History)
		if len(img.Config.History) == step+1 && len(img.Config.RootFS.DiffIDs) == len(st.config.RootFS.DiffIDs)+count(layer) {
			st.printf(" ---> Using cache\n")
			st.become(img)
			return true
		}
		// With the time that the step has there it is the same image each time.
		created := st.now
		if at := img.Config.History[step].Created; at != nil {
			created = *at
		}
		if st.commitAt(ctx, createdBy, layer, created) == nil {
			st.printf(" ---> Using cache\n")
			return true
		}
	}
	return false
}

func count(l *store.Layer) int {
	if l == nil {
		return 0
	}
	return 1
}

// foreignStep reports whether c was built from the current image and then by
// createdBy, and gives the layer that this made, nil if none.
func (st *stage) foreignStep(c dockerspec.DockerOCIImage, createdBy string) (*store.Layer, bool) {
	n := len(st.config.History)
	if len(c.History) <= n || c.History[n].CreatedBy != createdBy {
		return nil, false
	}
	layers := 0
	for i, h := range c.History[:n] {
		if h.CreatedBy != st.config.History[i].CreatedBy {
			return nil, false
		}
		if !h.EmptyLayer {
			layers++
		}
	}
	if layers > len(c.RootFS.DiffIDs) || !slices.Equal(c.RootFS.DiffIDs[:layers], st.config.RootFS.DiffIDs) {
		return nil, false
	}
	if c.History[n].EmptyLayer || layers == len(c.RootFS.DiffIDs) {
		return nil, c.History[n].EmptyLayer
	}
	l, err := st.Store.Layer(oci.Chain(st.chain, oci.DiffID(c.RootFS.DiffIDs[layers])))
	return &l, err == nil
}
