package engine

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"github.com/minke-os/minke/internal/durable"
	"github.com/minke-os/minke/internal/errdef"
)

// openDatabase opens minke.db. Power cuts do not hurt it, but disks forget:
// what can be read of a damaged file goes into a new one, and the old one is
// kept beside it. lost reports that something could not be read.
//
// bbolt may panic where nobody can catch it. So marker, a file that a reboot
// clears, is there while the database is read; a start that finds it makes the
// database anew first.
func openDatabase(path, marker string, log *slog.Logger) (db *bbolt.DB, lost bool, err error) {
	if _, err := os.Lstat(marker); err != nil {
		if db, err = openSound(path, marker); !errors.Is(err, errDamaged) {
			return db, false, err
		}
		log.Error("the database is damaged", "file", path, "err", err)
	}
	kept, err := salvage(path)
	if err != nil {
		return nil, false, fmt.Errorf("make %s anew of what can be read: %w", path, err)
	}
	if kept != "" {
		log.Error("some records could not be read: run minke store check --repair, and pull or create what is missing", "damaged", kept)
	}
	db, err = openSound(path, marker)
	return db, kept != "", err
}

var errDamaged = errors.New("damaged")

// openSound opens a database and reads all of it.
func openSound(path, marker string) (db *bbolt.DB, err error) {
	if err := os.WriteFile(marker, nil, 0o600); err != nil {
		return nil, err
	}
	defer os.Remove(marker)
	err = catch(func() error {
		// No list of free pages on the disk: less to write, and to damage.
		db, err = bbolt.Open(path, 0o600, &bbolt.Options{Timeout: 2 * time.Second, FreelistType: bbolt.FreelistMapType, NoFreelistSync: true})
		return err
	})
	if err == nil {
		var r reader
		db.View(func(tx *bbolt.Tx) error { return r.read(tx) })
		if err = r.damage; err != nil {
			db.Close()
		}
	}
	switch {
	case err == nil:
		return db, nil
	case errors.Is(err, bbolt.ErrTimeout):
		return nil, errdef.Busy.Errorf("data root %s is in use by another minked; stop it or choose another --data-root", filepath.Dir(path))
	case errors.Is(err, bolterrors.ErrInvalid), errors.Is(err, bolterrors.ErrChecksum):
		err = fmt.Errorf("%w: %w", errDamaged, err)
	}
	return nil, fmt.Errorf("open %s: %w", path, err)
}

// salvage replaces the database by one that has all that can be read of it. If
// that is not all, the name is of a copy of the old one.
func salvage(path string) (kept string, err error) {
	kept = path + ".damaged-" + time.Now().UTC().Format("20060102T150405")
	if err := copyFile(path, kept); err != nil {
		return "", err
	}
	fresh := path + ".new"
	if err := os.RemoveAll(fresh); err != nil {
		return "", err
	}
	to, err := bbolt.Open(fresh, 0o600, &bbolt.Options{NoFreelistSync: true})
	if err != nil {
		return "", err
	}
	var r reader
	err = to.Update(func(tx *bbolt.Tx) error { return r.copyFile(kept, tx) })
	if err := errors.Join(err, to.Close()); err != nil {
		return "", err
	}
	if r.damage == nil {
		err = os.Remove(kept)
		kept = ""
	}
	return kept, errors.Join(err, durable.Rename(fresh, path))
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Sync(), out.Close())
}

// reader reads databases as far as they can be read.
type reader struct{ damage error } // the first that was met

// node is a transaction or a bucket.
type node interface {
	Cursor() *bbolt.Cursor
	Bucket(name []byte) *bbolt.Bucket
	CreateBucketIfNotExists(name []byte) (*bbolt.Bucket, error)
}

// copyFile copies the database in a file. An error is one of writing.
func (r *reader) copyFile(path string, to *bbolt.Tx) error {
	var tx *bbolt.Tx
	err := catch(func() error {
		// To be read only, it takes no notice of free pages.
		from, err := bbolt.Open(path, 0o600, &bbolt.Options{ReadOnly: true})
		if err == nil {
			tx, err = from.Begin(false)
		}
		return err
	})
	if err != nil {
		r.damage = err
		return nil
	}
	defer tx.DB().Close()
	defer tx.Rollback()
	return r.copy(tx, to)
}

func (r *reader) copy(from, to node) error {
	return r.each(from, func(k, v []byte) error {
		if v != nil {
			return to.(*bbolt.Bucket).Put(k, bytes.Clone(v)) // which would be read only when it is written
		}
		b, err := to.CreateBucketIfNotExists(k)
		if err != nil {
			return err
		}
		return r.copy(from.Bucket(k), b)
	})
}

// read looks at every page.
func (r *reader) read(n node) error {
	return r.each(n, func(k, v []byte) error {
		if v == nil {
			return r.read(n.Bucket(k))
		}
		crc32.ChecksumIEEE(v)
		return nil
	})
}

// each calls f for the pairs of n up to the first that cannot be read, then
// from the last one backwards. Its error is f's.
func (r *reader) each(n node, f func(k, v []byte) error) error {
	var last []byte
	err := catch(func() error {
		c := n.Cursor()
		for k, v := c.First(); k != nil; k, v = c.Next() {
			if err := f(k, v); err != nil {
				return err
			}
			last = bytes.Clone(k)
		}
		return nil
	})
	if !errors.Is(err, errDamaged) {
		return err
	}
	if r.damage == nil {
		r.damage = err
	}
	err = catch(func() error {
		c := n.Cursor()
		for k, v := c.Last(); bytes.Compare(k, last) > 0; k, v = c.Prev() {
			if err := f(k, v); err != nil {
				return err
			}
		}
		return nil
	})
	if errors.Is(err, errDamaged) {
		return nil
	}
	return err
}

// catch makes errors of panics, and of reading what a mapped file has lost.
func catch(f func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: %v", errDamaged, p)
		}
	}()
	return f()
}
