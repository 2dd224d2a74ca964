package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"go.etcd.io/bbolt"

	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/oci"
)

// The buckets, all within rootBucket, and what they hold:
//
//	layers     chain ID -> layerRecord
//	images     image ID -> imageRecord
//	configs    image ID -> the configuration's bytes
//	manifests  image ID/digest -> manifestRecord
//	names      repository:tag or repository@digest -> image ID
//	sizes      size/object of big content, see adding.twin
//	aside      bucket/key -> a record that could not be used
var (
	rootBucket      = []byte("store")
	layersBucket    = []byte("layers")
	imagesBucket    = []byte("images")
	configsBucket   = []byte("configs")
	manifestsBucket = []byte("manifests")
	namesBucket     = []byte("names")
	sizesBucket     = []byte("sizes")
	asideBucket     = []byte("aside")
)

// version is that of the records and of the directories' layout. In version 1
// objects were in files/<x>/.
const version = 2

type layerRecord struct {
	V      int         `json:"v"`
	DiffID oci.DiffID  `json:"diffID"`
	Parent oci.ChainID `json:"parent,omitempty"`
	Size   int64       `json:"size"`
	Tar    int64       `json:"tar"`
	Links  bool        `json:"links,omitempty"` // regular files are hard links into files/
}

type imageRecord struct {
	V      int         `json:"v"`
	Parent oci.ImageID `json:"parent,omitempty"`
	Tagged time.Time   `json:"tagged,omitzero"`
}

// tables is a transaction's view of the store's buckets.
type tables struct {
	layers, images, configs, manifests, names, sizes, aside *bbolt.Bucket
}

func tablesOf(tx *bbolt.Tx) tables {
	b := tx.Bucket(rootBucket)
	return tables{
		b.Bucket(layersBucket), b.Bucket(imagesBucket), b.Bucket(configsBucket),
		b.Bucket(manifestsBucket), b.Bucket(namesBucket), b.Bucket(sizesBucket), b.Bucket(asideBucket),
	}
}

func (s *Store) view(f func(tables) error) error {
	return s.db.View(func(tx *bbolt.Tx) error { return f(tablesOf(tx)) })
}

func (s *Store) update(f func(tables) error) error {
	return s.db.Update(func(tx *bbolt.Tx) error { return f(tablesOf(tx)) })
}

func put(b *bbolt.Bucket, key string, record any) error {
	v, err := json.Marshal(record)
	if err != nil {
		return err
	}
	return b.Put([]byte(key), v)
}

func (t tables) layer(id oci.ChainID) (layerRecord, error) {
	var r layerRecord
	v := t.layers.Get([]byte(id))
	if v == nil {
		return r, errdef.NotFound.Errorf("no such layer: %s", id)
	}
	if err := decode(v, &r, &r.V); err != nil {
		return r, fmt.Errorf("layer %s: %w", id, err)
	}
	return r, nil
}

func (t tables) image(id oci.ImageID) (imageRecord, error) {
	var r imageRecord
	v := t.images.Get([]byte(id))
	if v == nil {
		return r, errdef.NotFound.Errorf("No such image: %s", id)
	}
	if err := decode(v, &r, &r.V); err != nil {
		return r, fmt.Errorf("image %s: %w", id, err)
	}
	return r, nil
}

func decode(v []byte, record any, recordVersion *int) error {
	if err := json.Unmarshal(v, record); err != nil {
		return fmt.Errorf("record: %w", err)
	}
	if *recordVersion != version {
		return fmt.Errorf("record has version %d, this program knows %d", *recordVersion, version)
	}
	return nil
}

// check makes the buckets, sets unusable records aside and removes layer
// directories that have no record.
func (s *Store) check() error {
	err := s.db.Update(func(tx *bbolt.Tx) error {
		root, err := tx.CreateBucketIfNotExists(rootBucket)
		if err != nil {
			return err
		}
		for _, name := range [][]byte{layersBucket, imagesBucket, configsBucket, manifestsBucket, namesBucket, sizesBucket, asideBucket} {
			if _, err := root.CreateBucketIfNotExists(name); err != nil {
				return err
			}
		}
		t := tablesOf(tx)
		return errors.Join(s.checkLayers(t), s.checkImages(t), s.checkNames(t))
	})
	if err != nil {
		return err
	}
	return s.removeUnrecorded()
}

// checkLayers runs until nothing changes, for a layer goes when its parent does.
func (s *Store) checkLayers(t tables) error {
	gone := map[string]bool{}
	for {
		bad := map[string]error{}
		for key := range keys(t.layers) {
			if err := s.checkLayer(t, oci.ChainID(key)); err != nil {
				bad[key] = err
			}
			if gone[key] {
				return fmt.Errorf("database: record %s is listed, and cannot be found or removed", key)
			}
		}
		if len(bad) == 0 {
			return nil
		}
		if err := s.setAside(t, t.layers, string(layersBucket), bad); err != nil {
			return err
		}
		for key := range bad {
			gone[key] = true
		}
	}
}

func (s *Store) checkLayer(t tables, id oci.ChainID) error {
	r, err := t.layer(id)
	if err != nil {
		return err
	}
	if oci.Chain(r.Parent, r.DiffID) != id {
		return fmt.Errorf("record names layer %s on %q, whose chain ID is another", r.DiffID, r.Parent)
	}
	if r.Parent != "" && t.layers.Get([]byte(r.Parent)) == nil {
		return fmt.Errorf("its parent layer %s is missing", r.Parent)
	}
	for _, name := range []string{"diff", "toc"} {
		if _, err := os.Lstat(s.layerPath(id, name)); err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) checkImages(t tables) error {
	bad := map[string]error{}
	for key := range keys(t.images) {
		if _, err := t.fullImage(oci.ImageID(key)); err != nil {
			bad[key] = err
		}
	}
	return s.setImagesAside(t, bad)
}

// setImagesAside takes their manifests away, which come again with the image.
func (s *Store) setImagesAside(t tables, bad map[string]error) error {
	for id := range bad {
		if err := t.forgetManifests(id); err != nil {
			return err
		}
	}
	return s.setAside(t, t.images, string(imagesBucket), bad)
}

func (s *Store) checkNames(t tables) error {
	bad := map[string]error{}
	for key, v := range keys(t.names) {
		if t.images.Get(v) == nil {
			bad[key] = errors.New("the image it names is missing")
		} else if _, err := oci.ParseReference(key); err != nil {
			bad[key] = err
		}
	}
	return s.setAside(t, t.names, string(namesBucket), bad)
}

func (s *Store) setAside(t tables, b *bbolt.Bucket, bucket string, bad map[string]error) error {
	for key, why := range bad {
		s.log.Error("record set aside", "record", bucket+"/"+key, "why", why)
		if err := t.aside.Put([]byte(bucket+"/"+key), b.Get([]byte(key))); err != nil {
			return err
		}
		if err := b.Delete([]byte(key)); err != nil {
			return err
		}
	}
	return nil
}

// removeUnrecorded deletes layer directories that were renamed into place but
// not recorded, or whose record was deleted first.
func (s *Store) removeUnrecorded() error {
	dirs, err := os.ReadDir(s.path("layers"))
	if err != nil {
		return err
	}
	var gone []string
	err = s.view(func(t tables) error {
		for _, d := range dirs {
			if t.layers.Get([]byte(oci.Prefix+d.Name())) == nil {
				gone = append(gone, d.Name())
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, name := range gone {
		if err := os.RemoveAll(s.path("layers", name)); err != nil {
			return err
		}
	}
	return nil
}

// keys goes over a bucket. The bucket must not be changed meanwhile.
func keys(b *bbolt.Bucket) func(yield func(string, []byte) bool) {
	return func(yield func(string, []byte) bool) {
		c := b.Cursor()
		for k, v := c.First(); k != nil; k, v = c.Next() {
			if !yield(string(k), v) {
				return
			}
		}
	}
}
