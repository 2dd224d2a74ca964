package engine

import (
	"encoding/json"
	"fmt"

	"go.etcd.io/bbolt"
)

// Buckets of minke.db. The number is the format's version; a new one gets a
// new bucket, filled from the old one when the engine opens.
var (
	containerBucket = []byte("containers.1") // ID to record, JSON
	damagedBucket   = []byte("damaged")      // what could not be read, for people to look at
	engineBucket    = []byte("engine.1")     // "id": this engine's ID
)

func (e *Engine) openRecords() error {
	return e.db.Update(func(tx *bbolt.Tx) error {
		for _, b := range [][]byte{containerBucket, damagedBucket, engineBucket} {
			if _, err := tx.CreateBucketIfNotExists(b); err != nil {
				return err
			}
		}
		b := tx.Bucket(engineBucket)
		if id := b.Get([]byte("id")); id != nil {
			e.id = string(id)
			return nil
		}
		e.id = newID()
		return b.Put([]byte("id"), []byte(e.id))
	})
}

// saveLocked makes the container's record durable. Called with c.mu held.
func (e *Engine) saveLocked(c *Container) error {
	data, err := json.Marshal(&c.record)
	if err != nil {
		return fmt.Errorf("container %s: %w", c.ID, err)
	}
	return e.db.Update(func(tx *bbolt.Tx) error { return tx.Bucket(containerBucket).Put([]byte(c.ID), data) })
}

// change applies f to the record, saves it and wakes those who wait. A record
// that cannot be saved, as on a full disk, still changes in memory: what runs
// is a fact. The error is logged, for nobody could undo the fact.
func (e *Engine) change(c *Container, f func(r *record)) record {
	return e.changeWhere(c, true, f)
}

// finish is change for what happens to a container after its end. One that is
// removed when it ends needs no record of it: Open finds that it does not run,
// and removes it. Each record costs two syncs, which flash feels.
func (e *Engine) finish(c *Container, f func(r *record)) record {
	r := c.snapshot()
	return e.changeWhere(c, !r.Host.AutoRemove || r.StartedAt.IsZero(), f)
}

func (e *Engine) changeWhere(c *Container, onDisk bool, f func(r *record)) record {
	c.mu.Lock()
	defer c.mu.Unlock()
	f(&c.record)
	if onDisk && !c.removed {
		if err := e.saveLocked(c); err != nil {
			e.log.Error("container state is not on disk", "container", c.ID, "err", err)
		}
	}
	c.notifyLocked()
	return c.record
}

func (e *Engine) forget(id string) error {
	return e.db.Update(func(tx *bbolt.Tx) error { return tx.Bucket(containerBucket).Delete([]byte(id)) })
}

// loadRecords reads all records; those that cannot be read are moved aside.
func (e *Engine) loadRecords() (all []record, err error) {
	damaged := map[string][]byte{}
	err = e.db.View(func(tx *bbolt.Tx) error {
		return tx.Bucket(containerBucket).ForEach(func(id, data []byte) error {
			var r record
			if err := json.Unmarshal(data, &r); err != nil || r.ID != string(id) || r.Config == nil || r.Host == nil {
				e.log.Error("damaged container record is set aside", "container", string(id), "err", err)
				damaged[string(id)] = append([]byte(nil), data...)
				return nil
			}
			all = append(all, r)
			return nil
		})
	})
	if err != nil || len(damaged) == 0 {
		return all, err
	}
	return all, e.db.Update(func(tx *bbolt.Tx) error {
		for id, data := range damaged {
			if err := tx.Bucket(damagedBucket).Put([]byte(id), data); err != nil {
				return err
			}
			if err := tx.Bucket(containerBucket).Delete([]byte(id)); err != nil {
				return err
			}
		}
		return nil
	})
}
