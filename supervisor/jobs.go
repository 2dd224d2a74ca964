package supervisor

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/supervisor/client"
	"github.com/minke-os/minke/supervisor/model"
	"github.com/minke-os/minke/supervisor/plan"
)

// A job is a person's request that acts, run by the loop between its rounds.
type job struct {
	run  func(context.Context) error
	done chan error
}

const queueLimit = 10 * time.Second

// job runs f on the loop. It ends early when the client leaves; the loop then
// brings back whatever f took away.
func (s *Supervisor) job(ctx context.Context, app model.AppID, f func(context.Context) error) error {
	j := job{done: make(chan error, 1)}
	j.run = func(loop context.Context) error {
		both, cancel := context.WithCancel(loop)
		defer cancel()
		defer context.AfterFunc(ctx, cancel)()
		return f(both)
	}
	select {
	case s.jobs <- j:
		return <-j.done
	case <-time.After(queueLimit):
		return errdef.Busy.Errorf("Locks for app %d are being held by another supervisor operation", app)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// RestartApp removes an application's containers and makes them again.
func (s *Supervisor) RestartApp(ctx context.Context, id model.AppID, force bool) error {
	return s.job(ctx, id, func(ctx context.Context) error {
		return s.cycle(ctx, id, force, "a restart was asked for", func(a model.AppSpec) []model.AppSpec {
			a.Services = nil
			return []model.AppSpec{a}
		})
	})
}

// PurgeApp does the same, and its volumes start empty.
func (s *Supervisor) PurgeApp(ctx context.Context, id model.AppID, force bool) error {
	return s.job(ctx, id, func(ctx context.Context) error {
		s.hub.System(fmt.Sprintf("Purging data for app %d", id))
		err := s.cycle(ctx, id, force, "a purge was asked for", func(model.AppSpec) []model.AppSpec { return nil })
		if err != nil {
			s.hub.System(fmt.Sprintf("Error purging data for app %d: %v", id, err))
			return err
		}
		s.hub.System(fmt.Sprintf("Purged data for app %d", id))
		return nil
	})
}

// cycle converges to a reduced application, then to the wanted one. why is what
// its services stopped for.
func (s *Supervisor) cycle(ctx context.Context, id model.AppID, force bool, why string, reduce func(model.AppSpec) []model.AppSpec) error {
	want, _ := s.wanted()
	i := slices.IndexFunc(want.Apps, func(a model.AppSpec) bool { return a.ID == id })
	if i < 0 {
		return errdef.NotFound.Errorf("application %d is not in the target state", id)
	}
	if want.Apps[i].Frozen {
		return errdef.Conflict.Errorf("application %d stays as it is, for its release was rejected; see /v2/state/status", id)
	}
	less := want
	less.Apps = slices.Concat(want.Apps[:i], reduce(want.Apps[i]), want.Apps[i+1:])
	if err := s.converge(ctx, less, force, id); err != nil {
		return err
	}
	for _, svc := range want.Apps[i].Services {
		s.because(id, svc.Service, why)
	}
	return s.converge(ctx, want, force, id)
}

// converge runs rounds for one application until it is as want says. Unlike
// the loop it gives up at the first failure, because a person waits.
func (s *Supervisor) converge(ctx context.Context, want plan.Want, force bool, id model.AppID) error {
	s.forget(id)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		again, err := s.round(ctx, want, force, &only{id, false})
		if err != nil {
			return err
		}
		if err := s.failed(id); err != nil {
			return err
		}
		if again == 0 {
			continue
		}
		done, err := s.settled(ctx, want, id)
		if done || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
		case <-s.wake:
		case <-time.After(min(again, time.Second)):
		}
	}
}

// settled is that not even a wait is left for an application.
func (s *Supervisor) settled(ctx context.Context, want plan.Want, id model.AppID) (bool, error) {
	cur, err := s.observe(ctx, want)
	if err != nil {
		return false, err
	}
	steps := plan.Next(want, cur, s.facts(want, cur))
	return !slices.ContainsFunc(steps, func(st plan.Step) bool { return st.App == id }), nil
}

// forget clears the failures of an application.
func (s *Supervisor) forget(id model.AppID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for k := range s.failures {
		if belongs(k, id) {
			delete(s.failures, k)
		}
	}
}

func (s *Supervisor) failed(id model.AppID) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for k, f := range s.failures {
		if belongs(k, id) {
			return f.err
		}
	}
	return nil
}

// belongs reads a failure's key back, which is kind/app/….
func belongs(key string, id model.AppID) bool {
	kind, rest, _ := cut(key)
	app, _, _ := cut(rest)
	return kind != "" && app == id.String()
}

// StopService stops a service's container and keeps it; it stays stopped
// until a person starts it.
func (s *Supervisor) StopService(ctx context.Context, c plan.Container, force bool) error {
	return s.job(ctx, c.App, func(ctx context.Context) error {
		want, _ := s.wanted()
		if err := s.takeLock(want, c.App, force); err != nil {
			return err
		}
		if err := s.store.SetStopped(true, serviceKey(c.App, c.Service)); err != nil {
			return err
		}
		st := plan.Step{Kind: plan.Stop, App: c.App, Service: c.Service, Container: c.ID, Name: c.Name, Why: "a stop was asked for"}
		return s.single(ctx, st)
	})
}

// StartService starts the container that a service has.
func (s *Supervisor) StartService(ctx context.Context, c plan.Container) error {
	return s.job(ctx, c.App, func(ctx context.Context) error {
		if err := s.store.SetStopped(false, serviceKey(c.App, c.Service)); err != nil {
			return err
		}
		if c.Runs() {
			return nil
		}
		s.hub.System(fmt.Sprintf("Starting service '%s'", c.Service))
		if err := s.locks.Prepare(c.App, c.Service); err != nil {
			return err
		}
		_, err := s.cfg.Engine.ContainerStart(ctx, c.ID, client.ContainerStartOptions{})
		return err
	})
}

// RestartService removes a service's container and makes it again.
func (s *Supervisor) RestartService(ctx context.Context, c plan.Container, force bool) error {
	return s.job(ctx, c.App, func(ctx context.Context) error {
		want, _ := s.wanted()
		if err := s.takeLock(want, c.App, force); err != nil {
			return err
		}
		if err := s.store.SetStopped(false, serviceKey(c.App, c.Service)); err != nil {
			return err
		}
		st := plan.Step{Kind: plan.Kill, App: c.App, Service: c.Service, Container: c.ID, Name: c.Name, Why: "a restart was asked for"}
		if err := s.single(ctx, st); err != nil {
			return err
		}
		want, _ = s.wanted()
		return s.converge(ctx, want, force, c.App)
	})
}

// single does one step outside of a plan.
func (s *Supervisor) single(ctx context.Context, st plan.Step) error {
	want, force := s.wanted()
	before, after := messages(st, roundOf(want, force))
	s.log.Info(st.String())
	s.hub.System(before)
	s.setDoing(st, true)
	defer s.setDoing(st, false)
	if err := s.applier.Do(ctx, roundOf(want, force), st); err != nil {
		return err
	}
	s.hub.System(after)
	return nil
}

// CleanupVolumes removes the engine's volumes that no container mounts and no
// target names.
func (s *Supervisor) CleanupVolumes(ctx context.Context) error {
	return s.job(ctx, 0, func(ctx context.Context) error { return s.removeVolumes(ctx) })
}
