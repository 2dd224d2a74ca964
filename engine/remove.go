package engine

import (
	"context"
	"fmt"
	"os"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"

	"github.com/minke-os/minke/internal/errdef"
)

// RemoveOptions are those of docker rm.
type RemoveOptions struct {
	Force   bool // kill it first
	Volumes bool // remove its anonymous volumes, too
}

// ContainerRemove deletes a container and everything it wrote outside volumes.
func (e *Engine) ContainerRemove(ctx context.Context, name string, o RemoveOptions) error {
	c, err := e.find(name)
	if err != nil {
		return err
	}
	r := c.snapshot()
	if r.Running {
		if !o.Force {
			state, how := "running", "stop the container before removing or force remove"
			if r.Paused {
				state, how = "paused and must be unpaused first", "unpause and then stop the container before removing or force remove"
				return errdef.Conflict.Errorf("cannot remove container %q: container is %s; %s", "/"+r.Name, state, how)
			}
			return errdef.Conflict.Errorf("cannot remove container %q: container is %s: %s", "/"+r.Name, state, how)
		}
		if err := e.kill(context.WithoutCancel(ctx), c); err != nil {
			return err
		}
	}
	c.op.Lock()
	defer c.op.Unlock()
	if c.snapshot().Running {
		return errdef.Conflict.Errorf("cannot remove container %q: it was started again meanwhile", "/"+r.Name)
	}
	return e.remove(c, o.Volumes)
}

// remove deletes a stopped container. Called with c.op held. It is done in an
// order that Open can finish: the record goes last.
func (e *Engine) remove(c *Container, volumes bool) error {
	if c.removed {
		return nil
	}
	r := e.finish(c, func(r *record) { r.Removing, r.RemovingVolumes = true, volumes })
	e.at("remove-mark")
	if err := os.RemoveAll(e.containerDir(r.ID)); err != nil {
		e.change(c, func(r *record) { r.Removing, r.Dead = false, true })
		return fmt.Errorf("remove container %s: %w", r.Name, err)
	}
	e.at("remove-directory")
	if volumes {
		e.removeAnonymous(&r)
	}
	e.at("remove-volumes")
	if err := e.forget(r.ID); err != nil {
		return err
	}
	e.at("remove-record")
	c.release()
	e.mu.Lock()
	delete(e.containers, r.ID)
	delete(e.names, r.Name)
	for _, id := range c.execIDs {
		delete(e.execs, id)
	}
	e.mu.Unlock()
	e.publish(events.ActionDestroy, &r, nil)
	c.mu.Lock()
	c.removed = true
	c.notifyLocked()
	c.mu.Unlock()
	e.dropPending(c)
	return nil
}

// ContainersPrune removes containers that do not run.
func (e *Engine) ContainersPrune(ctx context.Context, f Filters) (container.PruneReport, error) {
	out := container.PruneReport{ContainersDeleted: []string{}}
	if err := f.check("label", "label!", "until"); err != nil {
		return out, err
	}
	until, err := f.until()
	if err != nil {
		return out, err
	}
	for _, c := range e.all() {
		r := c.snapshot()
		if r.Running || !f.Labels("label", r.Config.Labels) || !f.unlabelled("label!", r.Config.Labels) || !until.IsZero() && r.Created.After(until) {
			continue
		}
		size := e.writtenSize(&r)
		if err := e.ContainerRemove(ctx, r.ID, RemoveOptions{}); err != nil {
			return out, err
		}
		out.ContainersDeleted = append(out.ContainersDeleted, r.ID)
		out.SpaceReclaimed += uint64(size)
	}
	e.publishPrune(events.ContainerEventType, int64(out.SpaceReclaimed))
	return out, nil
}
