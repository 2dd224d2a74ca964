package registry

import (
	"encoding/json"
	"slices"

	"go.etcd.io/bbolt"

	"github.com/minke-os/minke/oci"
)

// A blobMemory knows as which blobs a layer is in registries, so that pushing
// an image back need not compress what the registry has. A wrong entry costs a
// question: the registry is always asked.
type blobMemory struct{ db *bbolt.DB }

// A known is one blob that has a layer's content, and where it was seen.
type known struct {
	Digest     oci.Digest `json:"digest"`
	Size       int64      `json:"size"`
	MediaType  string     `json:"mediaType"`
	Repository string     `json:"repository"` // in full: docker.io/library/redis
}

type memoryRecord struct {
	V     int     `json:"v"`
	Blobs []known `json:"blobs"` // latest first
}

var blobsBucket = []byte("blobs")

const (
	memoryVersion = 1
	maxKnown      = 8 // blobs for a layer
)

func (m blobMemory) prepare() error {
	return m.db.Update(func(tx *bbolt.Tx) error {
		_, err := tx.CreateBucketIfNotExists(blobsBucket)
		return err
	})
}

// of lists what is known of a layer, latest first.
func (m blobMemory) of(diff oci.DiffID) (out []known) {
	m.db.View(func(tx *bbolt.Tx) error {
		out = decodeKnown(tx.Bucket(blobsBucket).Get([]byte(diff)))
		return nil
	})
	return out
}

// decodeKnown takes a record that it cannot read as an empty one: what is lost
// is learned again.
func decodeKnown(v []byte) []known {
	var r memoryRecord
	if json.Unmarshal(v, &r) != nil || r.V != memoryVersion {
		return nil
	}
	return r.Blobs
}

// learn records the blobs of an image's layers, and forgets layers that are
// not in live, if that is given.
func (m blobMemory) learn(blobs map[oci.DiffID]known, live map[oci.DiffID]bool) error {
	return m.db.Update(func(tx *bbolt.Tx) error {
		b := tx.Bucket(blobsBucket)
		for diff, k := range blobs {
			others := slices.DeleteFunc(decodeKnown(b.Get([]byte(diff))), func(o known) bool { return o.Repository == k.Repository })
			all := append([]known{k}, others...)
			v, err := json.Marshal(memoryRecord{V: memoryVersion, Blobs: all[:min(len(all), maxKnown)]})
			if err != nil {
				return err
			}
			if err := b.Put([]byte(diff), v); err != nil {
				return err
			}
		}
		if live == nil {
			return nil
		}
		var gone [][]byte
		b.ForEach(func(k, _ []byte) error {
			if !live[oci.DiffID(k)] {
				gone = append(gone, k)
			}
			return nil
		})
		for _, k := range gone {
			if err := b.Delete(k); err != nil {
				return err
			}
		}
		return nil
	})
}
