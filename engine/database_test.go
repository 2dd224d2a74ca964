package engine

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.etcd.io/bbolt"
)

// records are what a database of these tests has: one bucket of the engine's
// kind, and one within another.
const records = 400

// makeDatabase gives the file as it was after each transaction.
func makeDatabase(t *testing.T, path string) (versions [][]byte) {
	t.Helper()
	db, err := bbolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	for part := range 4 { // several transactions leave free pages
		err = db.Update(func(tx *bbolt.Tx) error {
			a, err := tx.CreateBucketIfNotExists([]byte("a"))
			if err != nil {
				return err
			}
			b, err := a.CreateBucketIfNotExists([]byte("b"))
			if err != nil {
				return err
			}
			for i := range records / 4 {
				key := []byte(fmt.Sprintf("%04d", part*records/4+i))
				for _, in := range []*bbolt.Bucket{a, b} {
					if err := in.Put(key, []byte(strings.Repeat(string(key), 1+i%30))); err != nil {
						return err
					}
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		versions = append(versions, data)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	return versions
}

// have counts records, and fails if one is not what was written.
func have(t *testing.T, db *bbolt.DB) (n int) {
	t.Helper()
	err := db.View(func(tx *bbolt.Tx) error {
		a := tx.Bucket([]byte("a"))
		if a == nil {
			return nil
		}
		for _, in := range []*bbolt.Bucket{a, a.Bucket([]byte("b"))} {
			if in == nil {
				continue
			}
			err := in.ForEach(func(k, v []byte) error {
				if v == nil {
					return nil
				}
				if strings.ReplaceAll(string(v), string(k), "") != "" {
					t.Errorf("record %s is %s", k, v)
				}
				n++
				return nil
			})
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestADamagedDatabaseIsSavedAsFarAsItCanBeRead(t *testing.T) {
	versions := makeDatabase(t, filepath.Join(t.TempDir(), "minke.db"))
	good := versions[len(versions)-1]
	const page = 4096
	damages := map[string][]byte{"cut-to-a-third": good[:len(good)/3/page*page], "not-a-database": make([]byte, len(good)), "short": good[:100]}
	for i := range len(good) / page {
		bad := append([]byte{}, good...)
		clear(bad[i*page : (i+1)*page])
		damages[fmt.Sprintf("page-%d", i)] = bad
	}
	// Pages that were never written, though the disk said so.
	for v, old := range versions[:len(versions)-1] {
		for i := 2; i < len(old)/page; i++ {
			bad := append([]byte{}, good...)
			copy(bad[i*page:], old[i*page:(i+1)*page])
			damages[fmt.Sprintf("page-%d-of-transaction-%d", i, v)] = bad
		}
	}
	kept := 0
	for name, bad := range damages {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "minke.db")
			if err := os.WriteFile(path, bad, 0o600); err != nil {
				t.Fatal(err)
			}
			db, lost, err := openDatabase(path, slog.New(slog.DiscardHandler))
			if err != nil {
				t.Fatal(err)
			}
			defer db.Close()
			n := have(t, db)
			if strings.Contains(name, "transaction") { // which may look as good as new
				if n > 2*records {
					t.Errorf("%d records, more than there ever were", n)
				}
				return
			}
			kept += n
			old, _ := filepath.Glob(path + ".damaged-*")
			if name == "page-1" { // the newer of two heads: the state before is whole
				n += records / 2
			}
			if n < 2*records && !lost || lost != (len(old) > 0) {
				t.Errorf("of %d records there are %d, lost = %v, kept %v", 2*records, n, lost, old)
			}
			if err := db.Update(func(tx *bbolt.Tx) error { _, err := tx.CreateBucket([]byte("new")); return err }); err != nil {
				t.Errorf("it cannot be written: %v", err)
			}
		})
	}
	// One page of some dozens was gone each time.
	if all := 2 * records * len(good) / page; kept < all*8/10 {
		t.Errorf("%d of %d records were saved", kept, all)
	}
}

func TestASoundDatabaseIsOpenedAsItIs(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "minke.db")
	makeDatabase(t, path)
	before, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	db, lost, err := openDatabase(path, slog.New(slog.DiscardHandler))
	if err != nil || lost {
		t.Fatalf("open = %v, lost %v", err, lost)
	}
	defer db.Close()
	if after, err := os.Stat(path); err != nil || !os.SameFile(before, after) || have(t, db) != 2*records {
		t.Errorf("%v, %d records, want the same file with %d", err, have(t, db), 2*records)
	}
	began := time.Now()
	if _, _, err := openDatabase(path, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), "in use by another minked") {
		t.Errorf("a second open after %v: %v", time.Since(began), err)
	}
}
