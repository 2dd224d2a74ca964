// Package lock implements update locks: files by which a service keeps the
// supervisor from stopping it at a bad moment.
//
// A service sees <root>/<app>/<service> as /tmp/balena and /tmp/resin. Any
// file, directory or link named updates.lock or resin-updates.lock there is a
// lock, and one lock holds the whole application. The supervisor's own locks
// are the same files, owned by a user ID that no service has, so that services
// see them too; those left by a crash are recognized by their owner and are
// simply ours again. The directories live on a tmpfs: a reboot clears locks.
//
// People hold locks through the Supervisor API: the same files again, known by
// what is in them. For the supervisor they are as a service's own.
//
// Whether a step needs the lock is not this package's business. Its functions
// are not safe for concurrent use on one application, except List; the state
// engine is the only caller of the others.
package lock

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/supervisor/model"
)

// owner is the user ID of the supervisor's own locks, "nobody".
const owner = 65534

var names = []string{"updates.lock", "resin-updates.lock"}

// handOverFiles tell the supervisor that a new container has taken over.
var handOverFiles = []string{"handover-complete", "resin-kill-me"}

// Locks are the update locks below one directory.
type Locks struct{ root string }

// New uses root, which need not exist yet.
func New(root string) *Locks { return &Locks{root} }

// Prepare makes the directory that a service's container mounts.
func (l *Locks) Prepare(app model.AppID, service string) error {
	dir := model.LockDir(l.root, app, service)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return os.Chmod(dir, 0o777|fs.ModeSticky)
}

// Take locks all services of an application, those given and those that have
// a directory from before, or none: if a service holds a lock itself the error
// is errdef.Busy. Force removes such locks first.
func (l *Locks) Take(app model.AppID, services []string, force bool) error {
	entries, err := os.ReadDir(filepath.Join(l.root, app.String()))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	all := slices.Clone(services)
	for _, e := range entries {
		if e.IsDir() && !slices.Contains(all, e.Name()) {
			all = append(all, e.Name())
		}
	}
	for _, s := range all {
		if err := l.takeOne(app, s, force); err != nil {
			if rerr := l.Release(app); rerr != nil {
				return errors.Join(err, rerr)
			}
			return err
		}
	}
	return nil
}

func (l *Locks) takeOne(app model.AppID, service string, force bool) error {
	if err := l.Prepare(app, service); err != nil {
		return err
	}
	dir := model.LockDir(l.root, app, service)
	for _, name := range names {
		path := filepath.Join(dir, name)
		mine, err := create(path, Supervisor)
		if err != nil {
			return err
		}
		if mine {
			continue
		}
		if !force {
			return errdef.Busy.Errorf("Lockfile exists for { appId: %d, service: %s }", app, service)
		}
		if err := os.RemoveAll(path); err != nil {
			return err
		}
		if _, err := create(path, Supervisor); err != nil {
			return err
		}
	}
	return nil
}

// create reports whether path is a lock of this holder now. The file gets its
// owner and content before it gets its name, so that a crash never leaves one
// that looks like a service's.
func create(path string, by Holder) (mine bool, err error) {
	if st, err := os.Lstat(path); err == nil {
		return holder(path, st) == by, nil
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".minke-lock-*")
	if err != nil {
		return false, err
	}
	defer os.Remove(f.Name())
	if by == Supervisor {
		err = f.Chown(owner, owner)
	} else {
		_, err = f.WriteString(apiMark)
	}
	if err := errors.Join(err, f.Chmod(0o644), f.Close()); err != nil {
		return false, err
	}
	// Unlike a rename, a link does not replace what a service just put there.
	err = os.Link(f.Name(), path)
	if errors.Is(err, fs.ErrExist) {
		return false, nil
	}
	return err == nil, err
}

// Release removes our locks of an application and leaves the services' own.
func (l *Locks) Release(app model.AppID) error {
	var errs []error
	for _, name := range names {
		paths, err := filepath.Glob(filepath.Join(l.root, app.String(), "*", name))
		errs = append(errs, err)
		for _, p := range paths {
			if st, err := os.Lstat(p); err == nil && ownedBy(st, owner) {
				errs = append(errs, os.Remove(p))
			}
		}
	}
	return errors.Join(errs...)
}

// ReleaseAll clears what a supervisor that died has left.
func (l *Locks) ReleaseAll() error {
	entries, err := os.ReadDir(l.root)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		if id, ok := model.Int(e.Name()); ok {
			errs = append(errs, l.Release(model.AppID(id)))
		}
	}
	return errors.Join(errs...)
}

// HandedOver reports whether a service's new container said that it has taken
// over, and forgets it.
func (l *Locks) HandedOver(app model.AppID, service string) (bool, error) {
	done := false
	for _, name := range handOverFiles {
		err := os.Remove(filepath.Join(model.LockDir(l.root, app, service), name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return false, fmt.Errorf("hand-over of %s: %w", service, err)
		}
		done = true
	}
	return done, nil
}
