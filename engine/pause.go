package engine

import (
	"context"
	"fmt"

	"github.com/moby/moby/api/types/events"

	"github.com/minke-os/minke/internal/errdef"
)

// ContainerPause freezes all processes of a container.
func (e *Engine) ContainerPause(ctx context.Context, name string) error {
	c, r, err := e.findRunning(name)
	if err != nil {
		return err
	}
	if r.Paused {
		return errdef.Conflict.Errorf("container %s is already paused", r.ID)
	}
	if err := e.rt.Pause(ctx, c.ID); err != nil {
		return fmt.Errorf("cannot pause container %s: %w", r.ID, err)
	}
	r = e.change(c, func(r *record) { r.Paused = true })
	e.publish(events.ActionPause, &r, nil)
	return nil
}

// ContainerUnpause lets them run on.
func (e *Engine) ContainerUnpause(ctx context.Context, name string) error {
	c, err := e.find(name)
	if err != nil {
		return err
	}
	if r := c.snapshot(); !r.Paused {
		return errdef.Conflict.Errorf("container %s is not paused", r.ID)
	}
	return e.resume(ctx, c)
}

func (e *Engine) resume(ctx context.Context, c *Container) error {
	// A killed container has been let go on already, so that it can die.
	if err := e.rt.Resume(ctx, c.ID); err != nil && !errdef.Is(err, errdef.NotFound) && !errdef.Is(err, errdef.Conflict) {
		return fmt.Errorf("cannot unpause container %s: %w", c.ID, err)
	}
	r := e.change(c, func(r *record) { r.Paused = false })
	e.publish(events.ActionUnPause, &r, nil)
	return nil
}
