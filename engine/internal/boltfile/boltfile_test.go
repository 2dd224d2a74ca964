package boltfile

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"go.etcd.io/bbolt"
)

// sample is a small database with buckets in buckets, inline and not.
func sample(t testing.TB, path string) []byte {
	t.Helper()
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{NoFreelistSync: true})
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		for _, name := range []string{"few", "many"} {
			b, err := tx.CreateBucket([]byte(name))
			if err != nil {
				return err
			}
			inner, err := b.CreateBucket([]byte("inner"))
			if err != nil {
				return err
			}
			for i := range map[string]int{"few": 2, "many": 120}[name] {
				key := []byte(fmt.Sprintf("%04d", i))
				if err := inner.Put(key, make([]byte, i*3)); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// What Check believes, bbolt reads.
func FuzzCheck(f *testing.F) {
	good := sample(f, filepath.Join(f.TempDir(), "good"))
	heads := 2 * os.Getpagesize()
	f.Add(uint32(0), []byte{})
	f.Add(uint32(10), []byte{255, 255})
	f.Add(uint32(16), []byte{1, 0, 0, 0})
	f.Add(uint32(4096), make([]byte, 4096))
	f.Fuzz(func(t *testing.T, at uint32, patch []byte) {
		data := append([]byte{}, good...)
		copy(data[heads+int(at)%(len(data)-heads):], patch)
		path := filepath.Join(t.TempDir(), "db")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		sound := Check(path) == nil
		copied, err := bbolt.Open(filepath.Join(t.TempDir(), "copy"), 0o600, &bbolt.Options{NoSync: true})
		if err != nil {
			t.Fatal(err)
		}
		defer copied.Close()
		if err := copied.Update(func(tx *bbolt.Tx) error { return Copy(path, tx) }); err != nil {
			t.Errorf("Copy = %v", err)
		}
		if !sound {
			return
		}
		db, err := bbolt.Open(path, 0o600, &bbolt.Options{ReadOnly: true})
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		db.View(func(tx *bbolt.Tx) error {
			return tx.ForEach(func(_ []byte, b *bbolt.Bucket) error {
				return b.ForEachBucket(func(k []byte) error {
					return b.Bucket(k).ForEach(func(_, v []byte) error { return nil })
				})
			})
		})
	})
}
