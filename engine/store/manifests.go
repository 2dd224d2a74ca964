package store

import (
	"bytes"
	"errors"
	"fmt"
	"strings"

	"go.etcd.io/bbolt"

	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/oci"
)

// A Manifest is a document by which a registry or an archive described an
// image, kept as it came so that the image can leave under the same digest. It
// may be an index that lists the image among others.
type Manifest struct {
	Digest    oci.Digest
	MediaType string
	Raw       []byte
}

type manifestRecord struct {
	V         int    `json:"v"`
	MediaType string `json:"mediaType"`
	Raw       []byte `json:"raw"`
}

// PutManifest keeps a manifest with an image, and goes with it.
func (s *Store) PutManifest(id oci.ImageID, m Manifest) error {
	if oci.FromBytes(m.Raw) != m.Digest {
		return errdef.Internal.Errorf("manifest %s of image %s: its bytes have another digest", m.Digest, id)
	}
	return s.update(func(t tables) error {
		if _, err := t.image(id); err != nil {
			return err
		}
		return put(t.manifests, manifestKey(id, m.Digest), manifestRecord{version, m.MediaType, m.Raw})
	})
}

func manifestKey(id oci.ImageID, d oci.Digest) string { return string(id) + "/" + string(d) }

// Manifests are those that were kept with an image, by digest. One that the
// disk has damaged is left out.
func (s *Store) Manifests(id oci.ImageID) ([]Manifest, error) {
	var all []Manifest
	err := s.view(func(t tables) error {
		for key, v := range withPrefix(t.manifests, string(id)+"/") {
			if m, err := parseManifest(key, v); err == nil {
				all = append(all, m)
			}
		}
		return nil
	})
	return all, err
}

// ImageOf finds the image that a manifest describes; none is errdef.NotFound.
func (s *Store) ImageOf(manifest oci.Digest) (oci.ImageID, error) {
	var id oci.ImageID
	err := s.view(func(t tables) error {
		for key := range keys(t.manifests) {
			if of, d, _ := strings.Cut(key, "/"); d == string(manifest) {
				id = oci.ImageID(of)
				return nil
			}
		}
		return errdef.NotFound.Errorf("no image has the manifest %s", manifest)
	})
	return id, err
}

func parseManifest(key string, v []byte) (Manifest, error) {
	var r manifestRecord
	if err := decode(v, &r, &r.V); err != nil {
		return Manifest{}, err
	}
	_, d, _ := strings.Cut(key, "/")
	if string(oci.FromBytes(r.Raw)) != d {
		return Manifest{}, fmt.Errorf("its bytes have another digest")
	}
	return Manifest{oci.Digest(d), r.MediaType, r.Raw}, nil
}

// forgetManifests deletes those of an image.
func (t tables) forgetManifests(id string) error {
	var gone []string
	for key := range withPrefix(t.manifests, id+"/") {
		gone = append(gone, key)
	}
	var errs []error
	for _, key := range gone {
		errs = append(errs, t.manifests.Delete([]byte(key)))
	}
	return errors.Join(errs...)
}

// withPrefix goes over a part of a bucket, which must not be changed meanwhile.
func withPrefix(b *bbolt.Bucket, prefix string) func(yield func(string, []byte) bool) {
	return func(yield func(string, []byte) bool) {
		c := b.Cursor()
		for k, v := c.Seek([]byte(prefix)); bytes.HasPrefix(k, []byte(prefix)); k, v = c.Next() {
			if !yield(string(k), v) {
				return
			}
		}
	}
}
