package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/oci"
)

// A Repaired is what Repair took out of the store.
type Repaired struct {
	Layers, Objects int
	Images          []string // by name, or by ID if they had none: to be pulled again
}

// Repair takes what Check found to be damaged out of the store: objects are
// deleted, the records of layers that need them, of the layers above and of
// their images are set aside, and the layers' directories deleted. What is
// left is sound, and pulling the images again brings what went, no more.
//
// It refuses, with errdef.Conflict, while a container runs on such an image.
// Damage to the database itself it cannot mend. A crash leaves less to be done
// by the next Check and Repair.
func (s *Store) Repair(ctx context.Context, r Report, inUse func(oci.ImageID) (container string, running bool)) (Repaired, error) {
	done, err := s.repair(ctx, r, inUse)
	if err != nil {
		return done, fmt.Errorf("repair store: %w", err)
	}
	return done, nil
}

func (s *Store) repair(ctx context.Context, r Report, inUse func(oci.ImageID) (string, bool)) (Repaired, error) {
	var done Repaired
	d, err := s.damage(ctx, r)
	if err != nil {
		return done, err
	}
	if done.Images, err = s.setDamageAside(d, inUse); err != nil {
		return done, err
	}
	for _, id := range slices.Sorted(maps.Keys(d.layers)) {
		if _, err := s.removeLayerDir(oci.ChainID(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return done, err
		}
		done.Layers++
	}
	for _, name := range slices.Sorted(maps.Keys(d.objects)) {
		if err := s.removeDamaged(name); err != nil {
			return done, err
		}
		done.Objects++
	}
	return done, nil
}

// A damage is what has to go, and why.
type damage struct {
	objects map[string]error
	layers  map[string]error // by chain ID
	records map[string]error // bucket/key
}

// damage adds to what was found the layers that have a damaged object.
func (s *Store) damage(ctx context.Context, r Report) (damage, error) {
	d := damage{map[string]error{}, map[string]error{}, map[string]error{}}
	for _, p := range r.Problems {
		why := errors.New(p.What)
		if p.object != "" {
			d.objects[p.object] = why
		}
		if p.layer != "" {
			d.layers[string(p.layer)] = why
		}
		if p.record != "" {
			d.records[p.record] = why
		}
	}
	ids, err := s.layerIDs()
	if err != nil {
		return d, err
	}
	for _, id := range ids {
		if err := ctx.Err(); err != nil {
			return d, err
		}
		if d.layers[string(id)] != nil {
			continue // perhaps it has no toc
		}
		err := readToc(s.layerPath(id, "toc"), func([]byte) error { return nil }, func(c content) error {
			if why := d.objects[c.object]; why != nil {
				d.layers[string(id)] = why
			}
			return nil
		})
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return d, err
		}
	}
	return d, nil
}

// setDamageAside moves the records and says which images they were.
func (s *Store) setDamageAside(d damage, inUse func(oci.ImageID) (string, bool)) ([]string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var gone []string
	err := s.update(func(t tables) error {
		t.addLayersAbove(d.layers)
		images := t.imagesWith(d)
		for id := range images {
			if c, running := inUse(oci.ImageID(id)); running {
				return errdef.Conflict.Errorf("container %s runs on the damaged image %s; stop it and repair again", c, oci.ImageID(id).Short())
			}
		}
		gone = nil
		names := map[string]error{}
		for key, v := range keys(t.names) {
			if why := cmp.Or(images[string(v)], d.records[string(namesBucket)+"/"+key]); why != nil {
				names[key] = why
				gone = append(gone, familiarName(key))
			}
		}
		for id := range images {
			if len(t.namesOf(oci.ImageID(id))) == 0 {
				gone = append(gone, id)
			}
		}
		for key := range d.records {
			if m, ok := strings.CutPrefix(key, string(manifestsBucket)+"/"); ok {
				if err := t.manifests.Delete([]byte(m)); err != nil {
					return err
				}
			}
		}
		return errors.Join(s.setAside(t, t.layers, string(layersBucket), present(t.layers.Get, d.layers)),
			s.setImagesAside(t, images), s.setAside(t, t.names, string(namesBucket), names))
	})
	if err != nil {
		return nil, err
	}
	for id := range d.layers {
		delete(s.added, oci.ChainID(id))
	}
	slices.Sort(gone)
	return gone, nil
}

// familiarName is a name as people type it.
func familiarName(key string) string {
	if ref, err := parseName(key); err == nil {
		return ref.Familiar()
	}
	return key
}

// addLayersAbove adds to layers those that lie upon one of them.
func (t tables) addLayersAbove(layers map[string]error) {
	for again := true; again; {
		again = false
		for key := range keys(t.layers) {
			r, err := t.layer(oci.ChainID(key))
			if why := layers[string(r.Parent)]; err == nil && why != nil && layers[key] == nil {
				layers[key], again = why, true
			}
		}
	}
}

// imagesWith are the images that are damaged or have a damaged layer.
func (t tables) imagesWith(d damage) map[string]error {
	images := map[string]error{}
	for key := range keys(t.images) {
		if why := d.records[string(imagesBucket)+"/"+key]; why != nil {
			images[key] = why
			continue
		}
		_, diffs, err := parseConfig(t.configs.Get([]byte(key)))
		if err != nil {
			images[key] = err
			continue
		}
		for i := range diffs {
			if why := d.layers[string(oci.ChainOf(diffs[:i+1]))]; why != nil {
				images[key] = why
			}
		}
	}
	return images
}

// present are the records that exist.
func present(get func([]byte) []byte, all map[string]error) map[string]error {
	out := maps.Clone(all)
	maps.DeleteFunc(out, func(key string, _ error) bool { return get([]byte(key)) == nil })
	return out
}

// removeDamaged deletes an object, so that nobody takes it for what its name
// says.
func (s *Store) removeDamaged(name string) error {
	s.mu.Lock()
	if s.pinnedLocked(name) {
		s.mu.Unlock()
		return errdef.Busy.Errorf("object %s is wanted by a layer that is being added; repair again when that is done", objectPath(name))
	}
	fi, err := os.Lstat(s.objectFile(name))
	if err == nil {
		err = os.Remove(s.objectFile(name))
	}
	s.mu.Unlock()
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return s.forgetSizes([]string{string(sizeKey(fi.Size(), name))})
}
