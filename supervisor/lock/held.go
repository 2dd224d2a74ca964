package lock

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/supervisor/model"
)

// A Holder says whose a lock is.
type Holder string

const (
	Service    Holder = "service"    // a program in a container put it there
	Supervisor Holder = "supervisor" // an update or a person's request is under way
	API        Holder = "api"        // somebody holds it through the Supervisor API
)

// apiMark is what is in a lock that is held through the API.
const apiMark = "held through the Supervisor API\n"

// A Held is a service's lock that somebody holds.
type Held struct {
	App     model.AppID
	Service string
	Holder  Holder
	Since   time.Time
}

// List tells all locks, at most one for each service.
func (l *Locks) List() ([]Held, error) {
	apps, err := os.ReadDir(l.root)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out []Held
	for _, a := range apps {
		id, ok := model.Int(a.Name())
		if !ok || !a.IsDir() {
			continue
		}
		services, err := os.ReadDir(filepath.Join(l.root, a.Name()))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		for _, s := range services {
			if h, ok := l.held(model.AppID(id), s.Name()); ok {
				out = append(out, h)
			}
		}
	}
	return out, nil
}

func (l *Locks) held(app model.AppID, service string) (Held, bool) {
	for _, name := range names {
		path := filepath.Join(model.LockDir(l.root, app, service), name)
		if st, err := os.Lstat(path); err == nil {
			return Held{app, service, holder(path, st), st.ModTime()}, true
		}
	}
	return Held{}, false
}

// holder looks whose the lock at path is. Services own the directory: what is
// there need not be a file, nor stay what it was.
func holder(path string, st fs.FileInfo) Holder {
	if ownedBy(st, owner) {
		return Supervisor
	}
	if !st.Mode().IsRegular() || st.Size() != int64(len(apiMark)) {
		return Service
	}
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return Service
	}
	defer f.Close()
	text := make([]byte, len(apiMark))
	if _, err := io.ReadFull(f, text); err != nil || string(text) != apiMark {
		return Service
	}
	return API
}

// Hold takes the locks of services for a client of the API, all or none: if
// one is held already the error is errdef.Busy. Force takes those of services
// and of other clients, never the supervisor's own, which protect an update
// that is under way.
func (l *Locks) Hold(app model.AppID, services []string, force bool) error {
	for _, s := range services {
		h, held := l.held(app, s)
		if held && (!force || h.Holder == Supervisor) {
			return busy(h)
		}
	}
	for i, s := range services {
		if err := l.holdOne(app, s); err != nil {
			return errors.Join(err, l.Free(app, services[:i], false))
		}
	}
	return nil
}

func (l *Locks) holdOne(app model.AppID, service string) error {
	if err := l.Prepare(app, service); err != nil {
		return err
	}
	for _, name := range names {
		path := filepath.Join(model.LockDir(l.root, app, service), name)
		if err := os.RemoveAll(path); err != nil {
			return err
		}
		mine, err := create(path, API)
		if err != nil {
			return err
		}
		if !mine { // the service was faster
			return busy(Held{App: app, Service: service, Holder: Service})
		}
	}
	return nil
}

// Free gives back what Hold took. What a service holds itself is errdef.Busy
// unless forced; what the supervisor holds always is.
func (l *Locks) Free(app model.AppID, services []string, force bool) error {
	for _, s := range services {
		h, held := l.held(app, s)
		if held && (h.Holder == Supervisor || h.Holder == Service && !force) {
			return busy(h)
		}
	}
	var errs []error
	for _, s := range services {
		for _, name := range names {
			path := filepath.Join(model.LockDir(l.root, app, s), name)
			st, err := os.Lstat(path)
			if err == nil && (force || holder(path, st) == API) {
				errs = append(errs, os.RemoveAll(path))
			}
		}
	}
	return errors.Join(errs...)
}

func busy(h Held) error {
	return errdef.Busy.Errorf("Lockfile exists for { appId: %d, service: %s }, held by %s", h.App, h.Service, map[Holder]string{
		Service: "the service itself", Supervisor: "the supervisor, which is at work", API: "a client of this API",
	}[h.Holder])
}
