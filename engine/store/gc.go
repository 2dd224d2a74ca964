package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/oci"
)

// GC removes layers and files that no image and no lease needs, and returns
// the bytes of disk that this gave back. It may run beside everything else; a
// crash leaves less to be done by the next.
func (s *Store) GC(ctx context.Context) (int64, error) {
	if err := s.beginGC(); err != nil {
		return 0, fmt.Errorf("collect garbage: %w", err)
	}
	freed, err := s.collect(ctx)
	s.endGC()
	if err != nil {
		return freed, fmt.Errorf("collect garbage: %w", err)
	}
	return freed, nil
}

// beginGC starts to note which objects are pinned from now on: whatever gets a
// toc after collect has read the tocs is pinned until after that.
func (s *Store) beginGC() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.kept != nil {
		return errdef.Busy.Errorf("it is being collected already")
	}
	s.kept = map[string]struct{}{}
	for name := range s.pins {
		s.kept[name] = struct{}{}
	}
	s.keptSets = slices.Collect(maps.Keys(s.pinSets))
	return nil
}

func (s *Store) endGC() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.kept, s.keptSets = nil, nil
}

func (s *Store) collect(ctx context.Context) (int64, error) {
	gone, err := s.forgetLayers()
	if err != nil {
		return 0, err
	}
	var freed int64
	for _, id := range gone {
		n, err := s.removeLayerDir(id)
		freed += n
		if err != nil {
			return freed, err
		}
	}
	live, err := s.liveObjects(ctx)
	if err == nil {
		err = s.looseObjects(time.Now(), live)
	}
	if err != nil {
		return freed, err
	}
	n, err := s.sweep(ctx, live)
	return freed + n, errors.Join(err, s.removeForeign())
}

// removeForeign removes what is in files/ and not ours: objects of version 1.
func (s *Store) removeForeign() error {
	dirs, err := os.ReadDir(s.path("files"))
	if err != nil {
		return err
	}
	for _, d := range dirs {
		if !strings.HasPrefix(d.Name(), whiteoutPrefix) {
			err = errors.Join(err, os.RemoveAll(s.path("files", d.Name())))
		}
	}
	return err
}

// forgetLayers deletes the records of layers that nobody needs. From then on
// nobody can begin to need them.
func (s *Store) forgetLayers() ([]oci.ChainID, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var gone []oci.ChainID
	err := s.update(func(t tables) error {
		live, err := t.liveLayers(s.leasedLocked())
		if err != nil {
			return err
		}
		gone = nil
		for key := range keys(t.layers) {
			if !live[oci.ChainID(key)] {
				gone = append(gone, oci.ChainID(key))
			}
		}
		for _, id := range gone {
			if err := t.layers.Delete([]byte(id)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	for _, id := range gone {
		delete(s.added, id)
	}
	return gone, nil
}

// liveLayers are those of all images and of the leased stacks.
func (t tables) liveLayers(leased []oci.ChainID) (map[oci.ChainID]bool, error) {
	live := map[oci.ChainID]bool{}
	for key := range keys(t.images) {
		_, diffs, err := parseConfig(t.configs.Get([]byte(key)))
		if err != nil {
			return nil, fmt.Errorf("image %s: %w", key, err)
		}
		var chain oci.ChainID
		for _, d := range diffs {
			chain = oci.Chain(chain, d)
			live[chain] = true
		}
	}
	for _, id := range leased {
		for id != "" && !live[id] {
			r, err := t.layer(id)
			if err != nil {
				break // leased before it exists
			}
			live[id] = true
			id = r.Parent
		}
	}
	return live, nil
}

// removeLayerDir moves the directory to staging first, so that a layer with
// the same ID can be added while this one is being deleted. It needs no room
// on the disk, which may be full.
func (s *Store) removeLayerDir(id oci.ChainID) (int64, error) {
	s.mu.Lock()
	s.clock++
	tmp := s.path("staging", fmt.Sprintf("gone-%s-%d", id.Hex()[:12], s.clock))
	_, again := s.added[id]
	var err error
	if !again {
		err = os.Rename(s.layerPath(id), tmp)
	}
	s.mu.Unlock()
	if err != nil || again {
		return 0, err
	}
	freed, err := diskUse(tmp, nil)
	return freed, errors.Join(err, os.RemoveAll(tmp))
}

// liveObjects reads all tocs.
func (s *Store) liveObjects(ctx context.Context) (map[string]struct{}, error) {
	ids, err := s.layerIDs()
	if err != nil {
		return nil, err
	}
	live := map[string]struct{}{}
	for _, id := range ids {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		err := readToc(s.layerPath(id, "toc"), func([]byte) error { return nil }, func(c content) error {
			live[c.object] = struct{}{}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return live, nil
}

func (s *Store) layerIDs() ([]oci.ChainID, error) {
	var ids []oci.ChainID
	err := s.view(func(t tables) error {
		for key := range keys(t.layers) {
			ids = append(ids, oci.ChainID(key))
		}
		return nil
	})
	return ids, err
}

// sweep removes the objects that are neither live nor kept.
func (s *Store) sweep(ctx context.Context, live map[string]struct{}) (int64, error) {
	var freed int64
	var big []string
	for i := range len(alphabet) {
		if err := ctx.Err(); err != nil {
			return freed, err
		}
		letter := alphabet[i : i+1]
		objects, err := os.ReadDir(s.objectDir(letter))
		if err != nil {
			return freed, err
		}
		for _, o := range objects {
			name := letter + o.Name()
			if _, ok := live[name]; ok {
				continue
			}
			st, err := s.removeObject(name)
			if err != nil {
				return freed, err
			}
			if st.Nlink == 1 {
				freed += st.Blocks * 512
			}
			if st.Size >= bigFile {
				big = append(big, string(sizeKey(st.Size, name)))
			}
		}
	}
	return freed, s.forgetSizes(big)
}

// removeObject removes an object unless it is kept, and says what it was.
func (s *Store) removeObject(name string) (unix.Stat_t, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var st unix.Stat_t
	if s.keptLocked(name) {
		return st, nil
	}
	if err := unix.Lstat(s.objectFile(name), &st); err != nil {
		return st, &os.PathError{Op: "lstat", Path: s.objectFile(name), Err: err}
	}
	return st, os.Remove(s.objectFile(name))
}

func (s *Store) forgetSizes(keys []string) error {
	if len(keys) == 0 {
		return nil
	}
	return s.update(func(t tables) error {
		for _, k := range keys {
			if err := t.sizes.Delete([]byte(k)); err != nil {
				return err
			}
		}
		return nil
	})
}

// Usage is the disk taken by layers and their files, each counted once.
func (s *Store) Usage() (int64, error) {
	seen := map[uint64]bool{}
	var total int64
	for _, d := range []string{"files", "layers"} {
		n, err := diskUse(s.path(d), seen)
		if err != nil {
			return 0, fmt.Errorf("disk usage: %w", err)
		}
		total += n
	}
	return total, nil
}

// diskUse is the disk that a tree takes, an inode with many links counted
// once. With seen nil, inodes with links elsewhere do not count: they stay.
func diskUse(root string, seen map[uint64]bool) (int64, error) {
	var total int64
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return ignoreGone(err)
		}
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return ignoreGone(err)
		}
		if st.Nlink > 1 && !d.IsDir() {
			if seen == nil || seen[st.Ino] {
				return nil
			}
			seen[st.Ino] = true
		}
		total += st.Blocks * 512
		return nil
	})
	return total, err
}

func ignoreGone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
