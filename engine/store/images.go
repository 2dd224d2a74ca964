package store

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/oci"
)

// PutImage records an image; all its layers must be present. Parent is the
// image that a build step started from, "" for an image from elsewhere. An
// image that is there already keeps its names, and its parent if it has one.
func (s *Store) PutImage(ctx context.Context, config []byte, parent oci.ImageID) (oci.ImageID, error) {
	if err := ctx.Err(); err != nil {
		return "", err
	}
	id := oci.ImageID(oci.FromBytes(config))
	_, diffs, err := parseConfig(config)
	if err != nil {
		return "", errdef.Invalid.Errorf("image %s: %w", id, err)
	}
	err = s.update(func(t tables) error {
		if _, err := t.sizeOf(diffs); err != nil {
			return err
		}
		r, err := t.image(id)
		if err != nil {
			r = imageRecord{V: version}
		}
		if r.Parent == "" {
			r.Parent = parent
		}
		if err := t.configs.Put([]byte(id), config); err != nil {
			return err
		}
		return put(t.images, string(id), r)
	})
	if err != nil {
		return "", fmt.Errorf("image %s: %w", id, err)
	}
	return id, nil
}

func parseConfig(raw []byte) (dockerspec.DockerOCIImage, []oci.DiffID, error) {
	var c dockerspec.DockerOCIImage
	if err := json.Unmarshal(raw, &c); err != nil {
		return c, nil, fmt.Errorf("configuration: %w", err)
	}
	diffs := make([]oci.DiffID, len(c.RootFS.DiffIDs))
	for i, d := range c.RootFS.DiffIDs {
		p, err := oci.ParseDigest(string(d))
		if err != nil {
			return c, nil, fmt.Errorf("configuration: layer %d: %w", i, err)
		}
		diffs[i] = oci.DiffID(p)
	}
	return c, diffs, nil
}

// sizeOf is the size of a stack of layers, all of which must be present.
func (t tables) sizeOf(diffs []oci.DiffID) (int64, error) {
	var size int64
	var chain oci.ChainID
	for _, d := range diffs {
		chain = oci.Chain(chain, d)
		r, err := t.layer(chain)
		if err != nil {
			return 0, err
		}
		size += r.Size
	}
	return size, nil
}

// fullImage is an image without its names.
func (t tables) fullImage(id oci.ImageID) (Image, error) {
	r, err := t.image(id)
	if err != nil {
		return Image{}, err
	}
	raw := slices.Clone(t.configs.Get([]byte(id)))
	if oci.ImageID(oci.FromBytes(raw)) != id {
		return Image{}, fmt.Errorf("image %s: its configuration is damaged", id)
	}
	config, diffs, err := parseConfig(raw)
	if err != nil {
		return Image{}, err
	}
	size, err := t.sizeOf(diffs)
	if err != nil {
		return Image{}, fmt.Errorf("image %s: %w", id, err)
	}
	return Image{ID: id, Config: config, Raw: raw, Size: size, Tagged: r.Tagged, Parent: r.Parent}, nil
}

// addName puts a name where Docker shows it.
func (i *Image) addName(ref oci.Reference) {
	if ref.Digest != "" {
		i.Digests = append(i.Digests, ref)
	} else {
		i.Tags = append(i.Tags, ref)
	}
}

// Image describes an image; its absence is errdef.NotFound.
func (s *Store) Image(id oci.ImageID) (Image, error) {
	var img Image
	err := s.view(func(t tables) error {
		var err error
		if img, err = t.fullImage(id); err != nil {
			return err
		}
		for _, ref := range t.namesOf(id) {
			img.addName(ref)
		}
		return nil
	})
	return img, err
}

// namesOf lists an image's names, sorted.
func (t tables) namesOf(id oci.ImageID) []oci.Reference {
	var refs []oci.Reference
	for key, v := range keys(t.names) {
		if string(v) != string(id) {
			continue
		}
		if ref, err := parseName(key); err == nil {
			refs = append(refs, ref)
		}
	}
	return refs
}

// Images lists all images in the order of their IDs, intermediate ones too.
func (s *Store) Images() ([]Image, error) {
	var all []Image
	err := s.view(func(t tables) error {
		at := map[string]int{}
		for key := range keys(t.images) {
			img, err := t.fullImage(oci.ImageID(key))
			if err != nil {
				return err
			}
			at[key] = len(all)
			all = append(all, img)
		}
		for key, v := range keys(t.names) {
			i, ok := at[string(v)]
			ref, err := parseName(key)
			if ok && err == nil {
				all[i].addName(ref)
			}
		}
		return nil
	})
	return all, err
}

// Tag gives an image a name, taking it from the image that had it. A reference
// with a digest records under which digest a registry has the image.
func (s *Store) Tag(id oci.ImageID, ref oci.Reference) error {
	return s.update(func(t tables) error {
		r, err := t.image(id)
		if err != nil {
			return err
		}
		r.Tagged = time.Now().UTC()
		if err := put(t.images, string(id), r); err != nil {
			return err
		}
		return t.names.Put([]byte(nameKey(ref)), []byte(id))
	})
}

// Settle writes what the file system still has in memory of what was added,
// though it is safe in its journal: after a pull nothing is left to be written
// at a moment that suits a container less.
func (s *Store) Settle() error {
	return os.NewSyscallError("syncfs", unix.Syncfs(int(s.dir.Fd())))
}

// nameKey is a name as the bucket has it: a tag beside a digest does not count,
// as in Docker.
func nameKey(ref oci.Reference) string {
	if ref.Digest != "" {
		ref.Tag = ""
	}
	return ref.String()
}

func parseName(key string) (oci.Reference, error) { return oci.ParseReference(key) }

// Resolve finds an image by name, name@digest, full ID or unique ID prefix.
// The reference is set if it was found by name. No image is errdef.NotFound,
// several are errdef.Invalid.
func (s *Store) Resolve(name string) (oci.ImageID, oci.Reference, error) {
	var id oci.ImageID
	var ref oci.Reference
	err := s.view(func(t tables) error {
		var err error
		id, ref, err = t.resolve(name)
		return err
	})
	return id, ref, err
}

// resolve prefers a full ID to a name, and a name to the prefix of an ID.
func (t tables) resolve(name string) (oci.ImageID, oci.Reference, error) {
	hex := strings.TrimPrefix(name, oci.Prefix)
	if oci.IsHex(hex) {
		id := oci.ImageID(oci.Prefix + hex)
		if t.images.Get([]byte(id)) == nil {
			return "", oci.Reference{}, noSuchImage(name)
		}
		return id, oci.Reference{}, nil
	}
	ref, err := oci.ParseReference(name)
	if err == nil {
		if v := t.names.Get([]byte(nameKey(ref))); v != nil {
			return oci.ImageID(v), ref, nil
		}
	}
	if !isHexPrefix(hex) {
		if err != nil {
			return "", oci.Reference{}, errdef.Invalid.Wrap(err)
		}
		return "", oci.Reference{}, noSuchImage(ref.Familiar())
	}
	id, err := t.byPrefix(hex)
	return id, oci.Reference{}, err
}

func (t tables) byPrefix(hex string) (oci.ImageID, error) {
	prefix := oci.Prefix + hex
	c := t.images.Cursor()
	k, _ := c.Seek([]byte(prefix))
	if !strings.HasPrefix(string(k), prefix) {
		return "", noSuchImage(hex)
	}
	found := oci.ImageID(k)
	if k, _ := c.Next(); strings.HasPrefix(string(k), prefix) {
		return "", errdef.Invalid.Errorf("image ID %s is ambiguous: it begins more than one; give more digits", hex)
	}
	return found, nil
}

func noSuchImage(name string) error { return errdef.NotFound.Errorf("No such image: %s", name) }

func isHexPrefix(s string) bool {
	return s != "" && len(s) < 64 && strings.Trim(s, "0123456789abcdef") == ""
}
