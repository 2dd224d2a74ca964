package engine

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"github.com/minke-os/minke/engine/internal/boltfile"
	"github.com/minke-os/minke/internal/durable"
	"github.com/minke-os/minke/internal/errdef"
)

// openDatabase opens minke.db. Power cuts do not hurt it, but disks forget, and
// say that something is written when it is not: what can be read of a damaged
// file goes into a new one, and the old one is kept beside it. lost reports
// that this happened.
func openDatabase(path string, log *slog.Logger) (db *bbolt.DB, lost bool, err error) {
	free, err := lock(path)
	if err != nil {
		return nil, false, err
	}
	lost, err = mend(path, log)
	free()
	if err != nil {
		return nil, false, err
	}
	// No list of free pages on the disk: less to write, and to damage.
	db, err = bbolt.Open(path, 0o600, &bbolt.Options{Timeout: lockTimeout, FreelistType: bbolt.FreelistMapType, NoFreelistSync: true})
	if errors.Is(err, bbolt.ErrTimeout) {
		err = inUse(path)
	} else if err != nil {
		err = fmt.Errorf("open %s: %w", path, err)
	}
	return db, lost, err
}

// lockTimeout is how long a minked that ends may take to let go of the database.
const lockTimeout = 2 * time.Second

func inUse(path string) error {
	return errdef.Busy.Errorf("data root %s is in use by another minked; stop it or choose another --data-root", filepath.Dir(path))
}

// lock makes the file, if need be, and has it alone, as bbolt does.
func lock(path string) (free func(), err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	for deadline := time.Now().Add(lockTimeout); ; time.Sleep(20 * time.Millisecond) {
		if err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == nil {
			return func() { f.Close() }, nil
		}
		if time.Now().After(deadline) {
			f.Close()
			if errors.Is(err, unix.EWOULDBLOCK) {
				err = inUse(path)
			}
			return nil, err
		}
	}
}

// mend makes a damaged database anew. An empty file is a new one.
func mend(path string, log *slog.Logger) (lost bool, err error) {
	if st, err := os.Stat(path); err != nil || st.Size() == 0 {
		return false, err
	}
	damage := boltfile.Check(path)
	if damage == nil {
		return false, nil
	}
	kept, err := salvage(path)
	if err != nil {
		return false, fmt.Errorf("%s is damaged (%w), and cannot be made anew of what is readable: %w", path, damage, err)
	}
	log.Error("the database was damaged and some records may be lost: run minke store check --repair, and pull or create what is missing",
		"damage", damage, "kept", kept)
	return true, nil
}

// salvage replaces a database by one that has all that can be read of it. The
// old one is kept under another name.
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
	err = to.Update(func(tx *bbolt.Tx) error { return boltfile.Copy(kept, tx) })
	if err := errors.Join(err, to.Close()); err != nil {
		return "", err
	}
	return kept, durable.Rename(fresh, path)
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
