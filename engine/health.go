package engine

import (
	"bytes"
	"cmp"
	"context"
	"io"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"

	"github.com/minke-os/minke/runtime"
)

// Docker's defaults for a health check.
const (
	defaultInterval      = 30 * time.Second
	defaultProbeTimeout  = 30 * time.Second
	defaultStartInterval = 5 * time.Second
	defaultRetries       = 3
	keptProbes           = 5    // results shown by inspect
	maxProbeOutput       = 4096 // bytes of output kept of each
)

// health is the state of a container's health check. It is made at each start
// and lives in memory; the record has its last status.
type health struct {
	stop context.CancelFunc

	mu      sync.Mutex
	status  container.HealthStatus
	streak  int
	results []*container.HealthcheckResult
}

func (h *health) snapshot() *container.Health {
	if h == nil {
		return nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	return &container.Health{Status: h.status, FailingStreak: h.streak, Log: slices.Clone(h.results)}
}

// mergeHealth fills what the client left open from the image. A test of NONE
// switches the image's check off.
func mergeHealth(c, img *container.HealthConfig) *container.HealthConfig {
	if c == nil || img == nil {
		if c == nil {
			return img
		}
		return c
	}
	out := *c
	if len(out.Test) == 0 {
		out.Test = img.Test
	}
	out.Interval = cmp.Or(c.Interval, img.Interval)
	out.Timeout = cmp.Or(c.Timeout, img.Timeout)
	out.StartPeriod = cmp.Or(c.StartPeriod, img.StartPeriod)
	out.StartInterval = cmp.Or(c.StartInterval, img.StartInterval)
	out.Retries = cmp.Or(c.Retries, img.Retries)
	return &out
}

// probeCommand is what a health check runs; nil if there is none.
func probeCommand(r *record) []string {
	h := r.Config.Healthcheck
	if h == nil || len(h.Test) == 0 {
		return nil
	}
	switch h.Test[0] {
	case "CMD":
		return h.Test[1:]
	case "CMD-SHELL":
		shell := r.Config.Shell
		if len(shell) == 0 {
			shell = []string{"/bin/sh", "-c"}
		}
		return append(slices.Clone(shell), h.Test[1:]...)
	}
	return nil
}

// startHealth begins checking a container that has just started, or was found
// running, when known is what was known of it. Called with c.op held.
func (e *Engine) startHealth(c *Container, r *record, known container.HealthStatus) {
	command := probeCommand(r)
	if len(command) == 0 {
		return
	}
	ctx, cancel := context.WithCancel(e.ctx)
	h := &health{stop: cancel, status: cmp.Or(known, container.Starting)}
	c.mu.Lock()
	c.health = h
	c.mu.Unlock()
	e.wg.Go(func() { e.checkHealth(ctx, c, h, r.StartedAt, command) })
}

func (e *Engine) stopHealth(c *Container) {
	c.mu.Lock()
	h := c.health
	c.mu.Unlock()
	if h != nil {
		h.stop()
	}
}

// checkHealth probes until the container stops.
func (e *Engine) checkHealth(ctx context.Context, c *Container, h *health, started time.Time, command []string) {
	conf := c.snapshot().Config.Healthcheck
	interval := cmp.Or(conf.Interval, defaultInterval)
	timer := time.NewTimer(0)
	defer timer.Stop()
	<-timer.C
	for {
		h.mu.Lock()
		wait := interval
		if h.status == container.Starting && time.Since(started) < conf.StartPeriod {
			wait = cmp.Or(conf.StartInterval, min(interval, defaultStartInterval))
		}
		h.mu.Unlock()
		timer.Reset(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			return
		}
		if c.snapshot().Paused {
			continue
		}
		result := e.probe(ctx, c, command, cmp.Or(conf.Timeout, defaultProbeTimeout))
		if ctx.Err() != nil {
			return
		}
		inStartPeriod := result.Start.Sub(started) < conf.StartPeriod
		if before, now := h.add(result, cmp.Or(conf.Retries, defaultRetries), inStartPeriod); before != now {
			r := e.change(c, func(r *record) { r.Health = now })
			e.publish(events.ActionHealthStatus+events.Action(": "+string(now)), &r, nil)
		}
	}
}

// add takes a result and returns the status before and after.
func (h *health) add(r *container.HealthcheckResult, retries int, inStartPeriod bool) (before, now container.HealthStatus) {
	h.mu.Lock()
	defer h.mu.Unlock()
	before = h.status
	h.results = append(h.results, r)
	if len(h.results) > keptProbes {
		h.results = h.results[1:]
	}
	switch {
	case r.ExitCode == 0:
		h.streak, h.status = 0, container.Healthy
	case h.status == container.Starting && inStartPeriod:
		// It may still be starting up.
	default:
		if h.streak++; h.streak >= retries {
			h.status = container.Unhealthy
		}
	}
	return before, h.status
}

// probe runs the check once.
func (e *Engine) probe(ctx context.Context, c *Container, command []string, timeout time.Duration) *container.HealthcheckResult {
	result := &container.HealthcheckResult{Start: time.Now(), ExitCode: -1}
	r := c.snapshot()
	id := newID()
	p, err := e.execProcess(&r, container.ExecCreateRequest{Cmd: command})
	if err == nil {
		err = e.runProbe(ctx, &r, runtime.Exec{ID: id, Process: p, Stdout: true, Stderr: true, Foreign: isForeign(&r)}, timeout, result)
	}
	if err != nil {
		result.Output = err.Error()
	}
	result.End = time.Now()
	return result
}

func (e *Engine) runProbe(ctx context.Context, r *record, x runtime.Exec, timeout time.Duration, result *container.HealthcheckResult) error {
	pid, streams, err := e.rt.Exec(ctx, r.ID, x)
	if err != nil {
		return err
	}
	defer closeStreams(streams)
	var out limited
	var wg sync.WaitGroup
	wg.Go(func() { io.Copy(&out, streams.Stdout) })
	wg.Go(func() { io.Copy(&out, streams.Stderr) })
	limit, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	exit, err := e.rt.WaitExec(limit, r.ID, x.ID)
	if err != nil {
		syscall.Kill(pid, syscall.SIGKILL)
		closeStreams(streams) // children of the probe may hold them
		wg.Wait()
		if limit.Err() != nil && ctx.Err() == nil {
			result.Output = "Health check exceeded timeout (" + timeout.String() + ")"
			if s := out.String(); s != "" {
				result.Output += ": " + s
			}
			return nil
		}
		return err
	}
	// A child of the probe may keep the pipes open after it.
	late := time.AfterFunc(time.Second, func() { closeStreams(streams) })
	defer late.Stop()
	wg.Wait()
	result.ExitCode, result.Output = exit.Code, out.String()
	return nil
}

// limited keeps the first bytes written to it.
type limited struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *limited) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.buf.Write(p[:min(len(p), maxProbeOutput-l.buf.Len())])
	return len(p), nil
}

func (l *limited) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}
