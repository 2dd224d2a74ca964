package supervisor

import (
	"context"

	"github.com/minke-os/minke/supervisor/lock"
	"github.com/minke-os/minke/supervisor/model"
)

// Locks are the update locks that somebody holds.
func (s *Supervisor) Locks() ([]lock.Held, error) { return s.locks.List() }

// HoldLocks keeps an application from being updated, for a client of the API.
func (s *Supervisor) HoldLocks(ctx context.Context, app model.AppID, services []string, force bool) error {
	return s.job(ctx, app, func(context.Context) error { return s.locks.Hold(app, services, force) })
}

// FreeLocks gives back what HoldLocks took. An update that waited goes on at once.
func (s *Supervisor) FreeLocks(ctx context.Context, app model.AppID, services []string, force bool) error {
	return s.job(ctx, app, func(context.Context) error {
		if err := s.locks.Free(app, services, force); err != nil {
			return err
		}
		s.forget(app)
		return nil
	})
}
