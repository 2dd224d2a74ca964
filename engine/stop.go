package engine

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"syscall"
	"time"

	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/internal/signal"
	"github.com/moby/moby/api/types/events"
)

// StopOptions are those of stop and restart.
type StopOptions struct {
	Signal  string // "" means the container's own
	Timeout *int   // seconds before SIGKILL; nil the container's own, negative for ever
}

const defaultStopTimeout = 10 // seconds, as Docker's

// ContainerStop ends a container's process and keeps restart policies from
// starting it again. It is NotModified for one that does not run.
func (e *Engine) ContainerStop(ctx context.Context, name string, o StopOptions) error {
	c, err := e.find(name)
	if err != nil {
		return err
	}
	if r := c.snapshot(); !r.Running {
		return errdef.NotModified.Errorf("container is already stopped")
	}
	err = e.stop(ctx, c, o)
	// What follows an exit, such as the removal that --rm asks for, goes on
	// under op after the exit is seen: have it done when the client hears.
	c.op.Lock()
	defer c.op.Unlock()
	return err
}

// kill ends a container at once, and its restarts.
func (e *Engine) kill(ctx context.Context, c *Container) error {
	r := e.noRestart(c)
	if !r.Running {
		return nil
	}
	if err := e.signal(ctx, c, syscall.SIGKILL, true); err != nil {
		return err
	}
	if r.Paused { // v1's freezer holds back even SIGKILL
		if err := e.resume(ctx, c); err != nil {
			return err
		}
	}
	return e.waitStopped(ctx, c)
}

// noRestart has restart policies leave the container alone from now on.
func (e *Engine) noRestart(c *Container) record {
	r := e.change(c, func(r *record) { r.StoppedByUser = true })
	if !r.Restarting {
		return r
	}
	c.op.Lock()
	defer c.op.Unlock()
	e.giveUpRestart(c)
	return c.snapshot() // it may just have started
}

func (e *Engine) stop(ctx context.Context, c *Container, o StopOptions) error {
	r := e.noRestart(c)
	if !r.Running {
		return nil
	}
	sig, err := signalOf(o.Signal, r.Config.StopSignal, syscall.SIGTERM)
	if err != nil {
		return err
	}
	seconds := defaultStopTimeout
	if r.Config.StopTimeout != nil {
		seconds = *r.Config.StopTimeout
	}
	if o.Timeout != nil {
		seconds = *o.Timeout
	}
	if err := e.signal(ctx, c, sig, false); err != nil {
		return err
	}
	if r.Paused {
		if err := e.resume(ctx, c); err != nil {
			return err
		}
	}
	e.at("stop-signal")
	// A stop that was begun is carried out, with its grace, also when the
	// client leaves.
	ctx = context.WithoutCancel(ctx)
	grace, cancel := ctx, context.CancelFunc(func() {})
	if seconds >= 0 {
		grace, cancel = context.WithTimeout(ctx, time.Duration(seconds)*time.Second)
	}
	defer cancel()
	if e.waitStopped(grace, c) != nil {
		if err := e.signal(ctx, c, syscall.SIGKILL, true); err != nil {
			return err
		}
		if err := e.waitStopped(ctx, c); err != nil {
			return err
		}
	}
	e.at("stop-end")
	r = c.snapshot()
	e.publish(events.ActionStop, &r, nil)
	return nil
}

// waitStopped returns when no process of the container runs any more.
func (e *Engine) waitStopped(ctx context.Context, c *Container) error {
	for {
		c.mu.Lock()
		runs, changed := c.runs(), c.changed
		c.mu.Unlock()
		if !runs {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// signal sends a signal and publishes it. A process that has just ended is no
// error: whoever waits for the end sees it.
func (e *Engine) signal(ctx context.Context, c *Container, sig syscall.Signal, all bool) error {
	err := e.rt.Kill(ctx, c.ID, sig, all)
	ended := errdef.Is(err, errdef.Conflict) || errdef.Is(err, errdef.NotFound) || errors.Is(err, syscall.ESRCH)
	if err != nil && !ended {
		return fmt.Errorf("signal container %s: %w", c.Name, err)
	}
	r := c.snapshot()
	e.publish(events.ActionKill, &r, map[string]string{"signal": strconv.Itoa(int(sig))})
	return nil
}

// ContainerKill sends a signal, SIGKILL if none is named.
func (e *Engine) ContainerKill(ctx context.Context, name, signal string) error {
	sig, err := signalOf(signal, "", syscall.SIGKILL)
	if err != nil {
		return err
	}
	c, r, err := e.findRunning(name)
	if err != nil {
		if errdef.Is(err, errdef.Conflict) {
			return errdef.Conflict.Errorf("cannot kill container: %s: %w", name, err)
		}
		return err
	}
	stop, err := signalOf("", r.Config.StopSignal, syscall.SIGTERM)
	if err == nil && (sig == syscall.SIGKILL || sig == stop) {
		e.change(c, func(r *record) { r.StoppedByUser = true })
	}
	if err := e.signal(ctx, c, sig, false); err != nil || sig != syscall.SIGKILL {
		return err
	}
	if r.Paused { // v1's freezer holds back even SIGKILL
		if err := e.resume(ctx, c); err != nil {
			return err
		}
	}
	return e.waitStopped(ctx, c)
}

// signalOf reads the first of two names that is set: "9", "KILL", "SIGKILL".
func signalOf(name, second string, otherwise syscall.Signal) (syscall.Signal, error) {
	if name == "" {
		name = second
	}
	if name == "" {
		return otherwise, nil
	}
	return signal.Parse(name)
}

// ContainerRestart stops a container if it runs, and starts it.
func (e *Engine) ContainerRestart(ctx context.Context, name string, o StopOptions) error {
	c, err := e.find(name)
	if err != nil {
		return err
	}
	if c.snapshot().Running {
		if err := e.stopToRestart(ctx, c, o); err != nil {
			return err
		}
	}
	if err := e.ContainerStart(ctx, c.ID); err != nil && !errdef.Is(err, errdef.NotModified) {
		return err
	}
	r := c.snapshot()
	e.publish(events.ActionRestart, &r, nil)
	return nil
}

// stopToRestart stops a container that stays even if it is to be removed when
// it ends (--rm).
func (e *Engine) stopToRestart(ctx context.Context, c *Container, o StopOptions) error {
	keep := func(kept bool) {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.kept = kept
	}
	keep(true)
	err := e.stop(ctx, c, o)
	// What follows an exit goes on after it is seen, under op.
	c.op.Lock()
	defer c.op.Unlock()
	keep(false)
	return err
}
