package engine

import (
	"context"
	"strconv"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"

	"github.com/minke-os/minke/internal/errdef"
	"github.com/minke-os/minke/runtime"
)

// Docker's back-off between restarts: it doubles, and starts anew after a
// container ran for a while.
const (
	firstBackoff = 100 * time.Millisecond
	maxBackoff   = time.Minute
	ranWell      = 10 * time.Second
)

// watch waits for a running container's end, in a goroutine that Close waits
// for. done is closed when its last output is in the log.
func (e *Engine) watch(c *Container, done chan struct{}) {
	e.wg.Go(func() {
		exit, err := e.rt.Wait(e.ctx, c.ID)
		if e.ctx.Err() != nil {
			return // the next Open takes it up
		}
		close(done)
		if err != nil {
			e.log.Error("lost sight of container", "container", c.ID, "err", err)
			exit = runtime.Exit{Code: lostCode, At: time.Now()}
		}
		c.op.Lock()
		defer c.op.Unlock()
		if e.ended(c, exit) {
			e.restartLater(c, exit.At.Sub(c.snapshot().StartedAt))
		}
	})
}

// ended cleans up after a container's process and reports whether its restart
// policy wants it started again. Called with c.op held.
func (e *Engine) ended(c *Container, exit runtime.Exit) (again bool) {
	e.at("exit")
	e.stopHealth(c)
	e.forgetExecs(c)
	r := c.snapshot()
	if err := e.leaveNetwork(e.ctx, &r); err != nil {
		e.log.Error("release container's network", "container", c.ID, "err", err)
	}
	e.at("exit-network")
	again = !e.closing() && shouldRestart(&r, exit)
	kept := false
	r = e.finish(c, func(r *record) {
		r.Running, r.Restarting, r.Paused = again, again, false
		r.Pid, r.ExitCode, r.FinishedAt = 0, exit.Code, exit.At.UTC()
		r.OOMKilled = exit.OOM
		if again {
			r.RestartCount++
		}
		c.exits++
		kept = c.kept
	})
	e.at("exit-record")
	// Not before: the monitor is asked for the exit code until it is recorded.
	if err := e.rt.Delete(e.ctx, c.ID); err != nil && !errdef.Is(err, errdef.NotFound) {
		e.log.Error("clean up after container", "container", c.ID, "err", err)
	}
	e.releaseVolumes(&r)
	e.at("exit-process")
	e.publishMounts(events.ActionUnmount, &r)
	e.publish(events.ActionDie, &r, map[string]string{
		"exitCode": strconv.Itoa(exit.Code), "execDuration": strconv.Itoa(int(exit.At.Sub(r.StartedAt).Seconds())),
	})
	if !again && r.Host.AutoRemove && !kept {
		if err := e.remove(c, true); err != nil {
			e.log.Error("remove container", "container", c.ID, "err", err)
		}
	}
	return again
}

func (e *Engine) closing() bool { return e.ctx.Err() != nil }

func shouldRestart(r *record, exit runtime.Exit) bool {
	p := r.Host.RestartPolicy
	switch {
	case r.StoppedByUser || r.Removing:
		return false
	case p.IsAlways() || p.IsUnlessStopped():
		return true
	case p.IsOnFailure():
		return exit.Code != 0 && (p.MaximumRetryCount == 0 || r.RestartCount < p.MaximumRetryCount)
	}
	return false
}

// restartLater starts the container again after its back-off, unless somebody
// starts, stops or removes it before.
func (e *Engine) restartLater(c *Container, ran time.Duration) {
	c.mu.Lock()
	switch {
	case ran >= ranWell || c.backoff == 0:
		c.backoff = firstBackoff
	default:
		c.backoff = min(2*c.backoff, maxBackoff)
	}
	wait, awaken := c.backoff, make(chan struct{})
	c.awaken = awaken
	c.mu.Unlock()
	e.wg.Go(func() {
		timer := time.NewTimer(wait)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-awaken:
			return
		case <-e.ctx.Done():
			return
		}
		e.startAgain(c)
	})
}

// startAgain starts a container that still waits for it.
func (e *Engine) startAgain(c *Container) {
	c.op.Lock()
	defer c.op.Unlock()
	if r := c.snapshot(); !r.Restarting || c.removed {
		return
	}
	if err := e.start(e.ctx, c); err != nil {
		e.log.Warn("container did not start", "container", c.Name, "err", err)
		e.retryStart(c)
	}
}

// retryStart keeps a container whose restart failed on its policy: a port or a
// device that is missing now may be there in a minute.
func (e *Engine) retryStart(c *Container) {
	r := c.snapshot()
	if c.removed || !shouldRestart(&r, runtime.Exit{Code: r.ExitCode}) {
		return
	}
	e.change(c, func(r *record) { r.Running, r.Restarting, r.RestartCount = true, true, r.RestartCount+1 })
	e.restartLater(c, 0)
}

// giveUpRestart ends the wait for a restart; the container is then exited.
func (e *Engine) giveUpRestart(c *Container) {
	c.mu.Lock()
	if c.awaken != nil {
		close(c.awaken)
		c.awaken = nil
	}
	c.backoff = 0
	restarting := c.Restarting
	c.mu.Unlock()
	if restarting {
		e.change(c, func(r *record) { r.Running, r.Restarting = false, false })
	}
}

// onOOM is told by the runtime that the kernel killed something.
func (e *Engine) onOOM(id string) {
	e.mu.Lock()
	c := e.containers[id]
	e.mu.Unlock()
	if c == nil {
		return
	}
	r := c.snapshot()
	e.publish(events.ActionOOM, &r, nil)
}

// ContainerWait registers a wait before it returns, so that a start that
// follows cannot be missed, and returns a function that waits.
func (e *Engine) ContainerWait(name string, cond container.WaitCondition) (func(context.Context) (exitCode int, err error), error) {
	c, err := e.find(name)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	from := c.exits
	c.mu.Unlock()
	return func(ctx context.Context) (int, error) {
		for {
			c.mu.Lock()
			r, exits, removed, changed := c.record, c.exits, c.removed, c.changed
			c.mu.Unlock()
			var met bool
			switch cond {
			case container.WaitConditionNextExit:
				met = exits > from || removed
			case container.WaitConditionRemoved:
				met = removed
			default:
				met = !r.Running || removed
			}
			if met {
				return r.ExitCode, nil
			}
			select {
			case <-changed:
			case <-ctx.Done():
				return 0, ctx.Err()
			}
		}
	}, nil
}
