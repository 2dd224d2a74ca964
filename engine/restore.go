package engine

import (
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/moby/moby/api/types/mount"

	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/oci"
	"github.com/minke-os/minke/runtime"
)

// restore brings records and reality together after a start of this process.
func (e *Engine) restore(ctx context.Context) error {
	records, err := e.loadRecords()
	if err != nil {
		return err
	}
	states, err := e.rt.List(ctx)
	if err != nil {
		return err
	}
	found := map[string]runtime.State{}
	for _, s := range states {
		found[s.ID] = s
	}
	known := map[string]bool{}
	for _, r := range records {
		c := newContainer(r)
		if c.release, err = e.keepImages(&r); err != nil {
			e.log.Error("the image of a container is gone; it cannot start", "container", r.Name, "err", err)
		}
		e.containers[r.ID], e.names[r.Name] = c, r.ID
		known[r.ID] = true
	}
	// What runs goes first, so that addresses and ports in use are taken
	// before anything else asks for them.
	adopted := map[string]bool{}
	for _, c := range e.containers {
		s, ok := found[c.ID]
		if ok && !c.Build && c.runs() && (s.Status == runtime.Running || s.Status == runtime.Paused) {
			e.adopt(ctx, c, s)
			adopted[c.ID] = true
			delete(found, c.ID)
		}
	}
	// Then what ended, or was never quite started or recorded.
	for id := range found {
		if c := e.containers[id]; c != nil && c.runs() && found[id].Status == runtime.Stopped {
			continue // settle does it
		}
		if err := e.clear(ctx, found[id]); err != nil {
			e.log.Error("remove a process that no record knows", "container", id, "err", err)
		}
	}
	if err := e.net.Reconcile(ctx); err != nil {
		return err
	}
	if err := e.volumes.Reconcile(); err != nil {
		return err
	}
	if err := e.removeStray(known); err != nil {
		return err
	}
	var start []*Container
	for _, c := range e.all() {
		c.op.Lock()
		if !adopted[c.ID] && e.settle(c, found[c.ID].Exit) {
			start = append(start, c)
		}
		c.op.Unlock()
	}
	e.startAll(start)
	return nil
}

// clear ends what a start that was broken off has left. Its client never heard
// that it ran.
func (e *Engine) clear(ctx context.Context, s runtime.State) error {
	if s.Status == runtime.Running || s.Status == runtime.Paused {
		if err := e.rt.Kill(ctx, s.ID, syscall.SIGKILL, true); err != nil {
			return err
		}
		if s.Status == runtime.Paused {
			if err := e.rt.Resume(ctx, s.ID); err != nil {
				return err
			}
		}
		if _, err := e.rt.Wait(ctx, s.ID); err != nil {
			return err
		}
	}
	return e.rt.Delete(ctx, s.ID)
}

// keepLayers keeps a stack of layers from garbage collection. The function it
// returns works even with an error.
func (e *Engine) keepLayers(top oci.ChainID) (release func(), err error) {
	if top == "" {
		return func() {}, nil
	}
	if release, err = e.images.Lease(top); err != nil {
		return func() {}, err
	}
	return release, nil
}

// keepImages keeps all that a container is made of: its own image and those it
// mounts. The function it returns works even with an error.
func (e *Engine) keepImages(r *record) (release func(), err error) {
	var all []func()
	for _, top := range append(slices.Collect(maps.Values(r.ImageMounts)), r.Layer) {
		more, kerr := e.keepLayers(top)
		all, err = append(all, more), errors.Join(err, kerr)
	}
	return func() {
		for _, f := range all {
			f()
		}
	}, err
}

// resumeVolumes takes up the volumes of a container that runs. They are
// mounted already, or it is not the container's fault.
func (e *Engine) resumeVolumes(r *record) {
	for _, p := range r.Mounts {
		if p.Type != mount.TypeVolume {
			continue
		}
		if err := e.volumes.Resume(p.Name, r.ID); err != nil {
			e.log.Error("take up the volume of a running container", "volume", p.Name, "container", r.Name, "err", err)
		}
	}
}

// adopt takes up a container that runs.
func (e *Engine) adopt(ctx context.Context, c *Container, s runtime.State) {
	done := make(chan struct{})
	r := e.change(c, func(r *record) {
		r.Pid, r.Paused = s.Pid, s.Status == runtime.Paused
		c.logsDone = done
	})
	e.resumeVolumes(&r)
	if sb, ok := e.sandbox(&r, s.Pid); ok {
		sb.Ports = r.Ports // one that was any stays what it is
		joined, err := e.net.Rejoin(ctx, sb)
		if err != nil {
			e.log.Error("take up the network of a running container", "container", r.Name, "err", err)
		} else {
			e.change(c, func(r *record) { r.Networks, r.Ports = joined.Endpoints, joined.Ports })
		}
	}
	e.watch(c, done)
	e.startHealth(c, &r, r.Health)
}

// settle does with one container that does not run what its record says, and
// reports whether it is to be started; it then counts as restarting. exit is
// how it ended if the monitor still knew. Called with c.op held.
func (e *Engine) settle(c *Container, exit *runtime.Exit) (start bool) {
	r := c.snapshot()
	if r.Build { // restore has ended it
		r = e.change(c, func(r *record) { r.Running, r.Restarting, r.Removing, r.RemovingVolumes = false, false, true, true })
	}
	switch {
	case r.Removing || r.Dead:
		if err := e.remove(c, r.Host.AutoRemove || r.RemovingVolumes); err != nil {
			e.log.Error("finish removal of container", "container", r.Name, "err", err)
		}
	case r.Restarting:
		return true
	case r.Running && exit != nil:
		return e.ended(c, *exit)
	case r.Running:
		// The machine went down under it.
		return e.ended(c, runtime.Exit{Code: lostCode, At: time.Now()})
	case r.Host.AutoRemove && !r.StartedAt.IsZero():
		if err := e.remove(c, true); err != nil {
			e.log.Error("remove container", "container", r.Name, "err", err)
		}
	case startsAtBoot(&r):
		e.change(c, func(r *record) { r.Running, r.Restarting = true, true })
		return true
	}
	return false
}

const (
	startsAtOnce = 4                // containers that start at the same time: a small board has no more to give
	needsWait    = 10 * time.Second // how long one waits for those it needs
)

// startAll starts containers in the background, each after those of them that
// it needs: whose namespaces it joins, or to which it links.
func (e *Engine) startAll(list []*Container) {
	tried := map[string]chan struct{}{}
	for _, c := range list {
		tried[c.ID] = make(chan struct{})
	}
	slots := make(chan struct{}, startsAtOnce)
	for _, c := range list {
		r := c.snapshot()
		e.wg.Go(func() {
			defer close(tried[c.ID])
			limit := time.After(needsWait)
			for _, id := range e.needs(&r) {
				if tried[id] == nil {
					continue // it runs, or is not to
				}
				select {
				case <-tried[id]:
				case <-limit:
				case <-e.ctx.Done():
					return
				}
			}
			slots <- struct{}{}
			defer func() { <-slots }()
			e.startAgain(c)
		})
	}
}

// needs are the IDs of those containers that have to run before r does.
func (e *Engine) needs(r *record) (ids []string) {
	names := []string{r.Host.NetworkMode.ConnectedContainer(), r.Host.PidMode.Container(), r.Host.IpcMode.Container()}
	for _, l := range r.links() {
		names = append(names, l.name)
	}
	for _, name := range names {
		if c, err := e.find(name); name != "" && err == nil {
			ids = append(ids, c.ID)
		}
	}
	return ids
}

// lostCode is the exit code of a container whose end nobody saw, as in Docker.
const lostCode = 255

// startsAtBoot reports whether a stopped container comes up with the engine:
// "always" does even if somebody stopped it, as in Docker.
func startsAtBoot(r *record) bool {
	p := r.Host.RestartPolicy
	return !r.StartedAt.IsZero() && p.IsAlways() && r.StoppedByUser
}

func putAside(dir, name string) error {
	aside := filepath.Join(filepath.Dir(dir), "lost-containers")
	if err := os.MkdirAll(aside, 0o700); err != nil {
		return err
	}
	return os.Rename(filepath.Join(dir, name), filepath.Join(aside, name))
}

// removeStray deletes directories of containers whose record was never written,
// and the volumes without a name that were made for them. Where records were
// lost, they are put aside: somebody may want what is in them.
func (e *Engine) removeStray(known map[string]bool) error {
	dir := filepath.Join(e.cfg.DataRoot, "containers")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, d := range entries {
		if known[d.Name()] {
			continue
		}
		if e.lostRecords {
			if err := putAside(dir, d.Name()); err != nil {
				return err
			}
			e.log.Error("a container's record was lost; its files are in lost-containers", "container", d.Name())
			continue
		}
		made, _ := os.ReadDir(filepath.Join(dir, d.Name(), madeVolumes)) // mostly there is none
		for _, v := range made {
			if err := e.volumes.Remove(v.Name()); err != nil && !errdef.Is(err, errdef.NotFound) {
				e.log.Error("remove stray volume", "volume", v.Name(), "err", err)
			}
		}
		if err := os.RemoveAll(filepath.Join(dir, d.Name())); err != nil {
			e.log.Error("remove stray container directory", "dir", d.Name(), "err", err)
		}
	}
	return nil
}
