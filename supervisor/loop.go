package supervisor

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/supervisor/api"
	"github.com/minke-os/minke/supervisor/apply"
	"github.com/minke-os/minke/supervisor/model"
	"github.com/minke-os/minke/supervisor/observe"
	"github.com/minke-os/minke/supervisor/plan"
)

const (
	maxRetry     = 5 * time.Minute
	maxFullRetry = time.Hour        // a download that does not fit may have come half
	roomPoll     = 10 * time.Second // whether it does now
	maxDownloads = 3                // images at once
	maxLockRetry = 10 * time.Second // looking at a lock costs nothing
	handOverPoll = 200 * time.Millisecond
	never        = time.Duration(1<<63 - 1)
)

// A failure is a step that failed and when it may be tried again.
type failure struct {
	count int
	until time.Time
	err   error
	full  int64 // bytes that were free when there was no room; 0 if that was not why
}

// poke makes the loop look again.
func (s *Supervisor) poke() {
	s.stirred()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// loop is the state engine: observe, plan, apply, until nothing is left to do;
// then sleep until something happens.
func (s *Supervisor) loop(ctx context.Context) {
	defer s.stopDownloads()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case j := <-s.jobs:
			j.done <- j.run(ctx)
		case <-s.wake:
		case <-timer.C:
		}
		timer.Reset(s.settle(ctx))
	}
}

// settle runs rounds until there is nothing to do now, and says when to look
// again even if nothing happens. A waiting job ends it early.
func (s *Supervisor) settle(ctx context.Context) time.Duration {
	for ctx.Err() == nil {
		s.protect()
		look := s.configure(ctx)
		want, force := s.wanted()
		err := s.artefacts(ctx, want)
		var again time.Duration
		if err == nil {
			again, err = s.round(ctx, want, force, nil)
		}
		if err != nil {
			return s.engineTrouble(err)
		}
		if again > 0 {
			return min(again, look)
		}
		select {
		case j := <-s.jobs:
			j.done <- j.run(ctx)
		default:
		}
	}
	return never
}

const engineRetry = 2 * time.Second

func (s *Supervisor) engineTrouble(err error) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.problem != err.Error() {
		s.log.Warn("cannot observe the engine", "err", err)
	}
	s.problem = err.Error()
	return engineRetry
}

// observe reads the engine and tells those who show it.
func (s *Supervisor) observe(ctx context.Context, want plan.Want) (plan.Current, error) {
	cur, err := observe.Observe(ctx, s.cfg.Engine, images(want), s.store.EngineName)
	if err != nil {
		return cur, err
	}
	s.hub.Containers(cur.Containers)
	if slices.ContainsFunc(cur.Networks, func(n plan.Network) bool { return n.Name == model.SupervisorNetwork && n.Right }) {
		s.gateway.exists()
	}
	return cur, nil
}

// An only limits a round to one application, for a job.
type only struct {
	app         model.AppID
	keepVolumes bool
}

// round does all steps that may run now. It returns 0 if there may be more,
// else when to look again.
func (s *Supervisor) round(ctx context.Context, want plan.Want, force bool, o *only) (time.Duration, error) {
	cur, err := s.observe(ctx, want)
	if err != nil {
		return 0, err
	}
	if want.Generation == 0 {
		// No target was ever given, or the stored one was lost: what runs is
		// all that is left of somebody's intention.
		return never, nil
	}
	facts := s.facts(want, cur)
	if o != nil {
		facts.KeepVolumes, facts.Asked = o.keepVolumes, true
	}
	steps := plan.Next(want, cur, facts)
	look := never
	if o == nil {
		look = s.judge(want, cur, steps)
	}
	if o != nil {
		steps = slices.DeleteFunc(steps, func(st plan.Step) bool { return st.App != o.app && st.App != 0 })
	}
	if len(steps) == 0 && o == nil {
		if s.converged(want) {
			s.removeImages(ctx, want)
		}
		look = min(look, s.rebootIfNeeded(ctx, force))
		return look, nil // a newer target has poked the loop
	}
	ready, again := s.sift(steps)
	if len(ready) == 0 {
		s.waiting(steps)
		if o == nil && s.onlyReboot(steps) {
			look = min(look, s.rebootFor(ctx, force))
		}
		return min(again, look), nil
	}
	s.do(ctx, apply.Round{Want: want, Cur: cur, Force: force}, ready)
	return 0, nil
}

// sift separates what may run now from what waits, and says when the first of
// those that wait should be looked at again.
func (s *Supervisor) sift(steps []plan.Step) (ready []plan.Step, again time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	again = never
	now := time.Now()
	downloads := len(s.fetching)
	for _, st := range steps {
		if st.Idle() {
			if st.Container != "" {
				again = min(again, handOverPoll)
			}
			continue
		}
		if f, ok := s.failures[key(st)]; ok && now.Before(f.until) && !s.roomierLocked(f) {
			again = min(again, f.until.Sub(now))
			if f.full > 0 {
				again = min(again, roomPoll)
			}
			continue
		}
		if st.Kind == plan.Fetch {
			if downloads == maxDownloads {
				continue // the end of one pokes the loop
			}
			downloads++
		}
		ready = append(ready, st)
	}
	return ready, max(again, time.Millisecond)
}

// roomierLocked reports whether a download that found no room may find some now.
func (s *Supervisor) roomierLocked(f failure) bool {
	const enough = 16 << 20 // bytes; logs come and go
	return f.full > 0 && s.freeLocked() > f.full+enough
}

func key(st plan.Step) string {
	return fmt.Sprintf("%s/%d/%s/%s", st.Kind, st.App, st.Service, st.Object)
}

func (s *Supervisor) facts(want plan.Want, cur plan.Current) plan.Facts {
	local := s.localMode()
	s.mu.Lock()
	defer s.mu.Unlock()
	f := plan.Facts{Fetching: map[string]bool{}, Locked: map[model.AppID]bool{}, HandedOver: map[string]bool{}, Rested: s.store.Rested(), KeepVolumes: local}
	for ref := range s.fetching {
		f.Fetching[ref] = true
	}
	for id := range s.locked {
		f.Locked[id] = true
	}
	f.New = maps.Clone(s.fresh)
	s.handOversLocked(want, cur)
	for id := range s.handed {
		f.HandedOver[id] = true
	}
	return f
}

// converged notes that the target is reached, unless there is a newer one. It
// reports whether that is news.
func (s *Supervisor) converged(want plan.Want) bool {
	err := s.store.SetRested(func(rested map[string]bool) {
		clear(rested)
		maps.Copy(rested, resting(want))
	})
	if err != nil {
		s.log.Error("remember what rests", "err", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if want.Generation != s.want.Generation {
		return false
	}
	news := s.applying
	s.applying, s.force, s.problem = false, false, ""
	for _, app := range want.Apps {
		if app.Frozen {
			continue // nobody knows what it is in
		}
		news = news || s.commits[app.ID] != app.Commit
		s.commits[app.ID] = app.Commit
	}
	if news {
		s.stirred()
	}
	return news
}

// waiting notes why nothing can be done now.
func (s *Supervisor) waiting(steps []plan.Step) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.applying = true
	s.problem = ""
	for _, st := range steps {
		if f, ok := s.failures[key(st)]; ok {
			s.problem = f.err.Error()
			return
		}
	}
	for _, st := range steps {
		if st.Idle() && st.Service != "" {
			s.problem = st.Service + ": " + st.Why
			return
		}
	}
}

// do runs steps at the same time and waits for all of them. Downloads only
// start here.
func (s *Supervisor) do(ctx context.Context, r apply.Round, steps []plan.Step) {
	s.mu.Lock()
	s.applying = true
	s.mu.Unlock()
	var wg sync.WaitGroup
	for _, st := range steps {
		if st.Kind == plan.Fetch {
			s.download(ctx, r.Cur, st)
			continue
		}
		wg.Go(func() { s.step(ctx, r, st) })
	}
	wg.Wait()
}

func (s *Supervisor) step(ctx context.Context, r apply.Round, st plan.Step) {
	before, after := messages(st, r)
	s.log.Info(st.String())
	if before != "" {
		s.hub.System(before)
	}
	s.setDoing(st, true)
	err := s.perform(ctx, r, st)
	s.setDoing(st, false)
	s.outcome(ctx, st, err)
	if err == nil && after != "" {
		s.hub.System(after)
	}
}

func (s *Supervisor) perform(ctx context.Context, r apply.Round, st plan.Step) error {
	switch st.Kind {
	case plan.TakeLock:
		return s.takeLock(r.Want, st.App, r.Force)
	case plan.ReleaseLock:
		return s.releaseLock(st.App)
	case plan.Stop: // a later target may come before this one is reached
		err := s.store.SetRested(func(rested map[string]bool) { maps.Copy(rested, resting(r.Want)) })
		if err != nil {
			return err
		}
	}
	if st.Kind == plan.Create {
		if err := s.created(r.Want, st); err != nil {
			return err
		}
	}
	err := s.applier.Do(ctx, r, st)
	if err == nil && st.Kind == plan.Start {
		err = s.store.SetRested(func(rested map[string]bool) { delete(rested, serviceKey(st.App, st.Service)) })
	}
	return err
}

// resting are the services that a target keeps from running.
func resting(want plan.Want) map[string]bool {
	out := map[string]bool{}
	for _, app := range want.Apps {
		for _, svc := range app.Services {
			if !svc.Running {
				out[serviceKey(app.ID, svc.Service)] = true
			}
		}
	}
	return out
}

// outcome remembers a failure, so that the step is tried again later and
// people can see why.
func (s *Supervisor) outcome(ctx context.Context, st plan.Step, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil || ctx.Err() != nil {
		delete(s.failures, key(st))
		return
	}
	limit, full := maxRetry, int64(0)
	switch {
	case errdef.Is(err, errdef.Busy):
		limit = maxLockRetry
	case isFull(err):
		limit, full = maxFullRetry, max(s.freeLocked(), 1)
	}
	f := s.failures[key(st)]
	delay := min(time.Second/2<<min(f.count, 12), limit)
	first := f.err == nil || f.err.Error() != err.Error()
	s.failures[key(st)] = failure{f.count + 1, time.Now().Add(delay), err, full}
	s.problem = err.Error()
	if !first { // said once is enough
		return
	}
	s.log.Warn("step failed", "step", st.String(), "err", err, "retry", delay)
	if errdef.Is(err, errdef.Busy) {
		s.hub.System(fmt.Sprintf("Updates are locked, retrying in %v. Reason: %v", delay, err))
		return
	}
	s.hub.System(fmt.Sprintf("Failed to %s, retrying in %v: %v", st.Kind, delay, err))
}

func (s *Supervisor) takeLock(want plan.Want, id model.AppID, force bool) error {
	var services []string
	for _, app := range want.Apps {
		for _, svc := range app.Services {
			if app.ID == id {
				services = append(services, svc.Service)
			}
		}
	}
	if err := s.locks.Take(id, services, force || s.overrideLock()); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.locked[id] = true
	return nil
}

func (s *Supervisor) releaseLock(id model.AppID) error {
	s.mu.Lock()
	delete(s.locked, id)
	s.mu.Unlock()
	return s.locks.Release(id)
}

// because remembers why a service was stopped or replaced last.
func (s *Supervisor) because(app model.AppID, service, why string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reasons[serviceKey(app, service)] = api.Reason{Why: why, At: time.Now()}
}

// setDoing keeps what the status shows while a step runs.
func (s *Supervisor) setDoing(st plan.Step, on bool) {
	if on && st.Why != "" && slices.Contains([]plan.Kind{plan.Kill, plan.Stop, plan.StepAside}, st.Kind) {
		s.because(st.App, st.Service, st.Why)
	}
	words := map[plan.Kind]string{
		plan.Kill: "Stopping", plan.Stop: "Stopping", plan.Create: "Installing", plan.Start: "Starting",
	}
	word := words[st.Kind]
	if word == "" {
		return
	}
	s.stirred()
	s.mu.Lock()
	defer s.mu.Unlock()
	k := serviceKey(st.App, st.Service)
	if on {
		s.doing[k] = word
	} else {
		delete(s.doing, k)
	}
}
